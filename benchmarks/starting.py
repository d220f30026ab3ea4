"""Starting: CPU time of a fresh interpreter that imports this package, or only the libraries that it needs."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import OURS, Case, Goal, Round, Size

TITLE: Final = "Starting a fresh interpreter"

LIBRARIES: Final = "import aiohttp, attrs, cattrs, msgspec"


def start(statement: str) -> Round:
    """Run an interpreter; return the milliseconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Compiled code is kept, as it is where this package is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", statement], cwd=Path(__file__).parent.parent, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Round(value=seconds * 1e3, work=None)


def cases(size: Size) -> Iterator[Case]:
    """Compare imports."""
    imports = {OURS: "import asana_webhooks", LIBRARIES: LIBRARIES}
    if not size.quick:
        for statement in imports.values():
            start(statement)  # so that all of it is compiled
    yield Case(
        name="import",
        unit="ms of CPU",
        competitors={name: partial(start, statement) for name, statement in imports.items()},
        reference=LIBRARIES,
        rounds=9,
        goals=[Goal(against=LIBRARIES, at_most=1.1)],
    )
