"""Starting: CPU time of a fresh interpreter that imports something, or shows the help of a command line.

``import asana_webhooks`` imports each name when it is first asked for, so what services ask for is shown beside it.
"""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import OURS, Case, Goal, Round, Size

__all__ = ["TITLE", "cases"]

TITLE: Final = "Starting a fresh interpreter"

LIBRARIES: Final = "import aiohttp, attrs, cattrs, msgspec"
FRAMEWORK: Final = "bare cyclopts"


def python(*arguments: str, looked_for: str = "") -> Round:
    """Run an interpreter; return the milliseconds it took, and which words it printed of those looked for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Compiled code is kept, as it is where this package is installed.
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent.parent,
        env=surroundings,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = set(re.findall(looked_for, ended.stdout)) if looked_for else set()
    return Round(value=seconds * 1e3, work=sorted(found))


def _import(statement: str) -> Round:
    return python("-c", statement)


def _help(arguments: Sequence[str]) -> Round:
    return python(*arguments, "--help", looked_for="demo|fake")


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare imports, then command lines."""
    imports = {
        OURS: "import asana_webhooks",
        f"{OURS}, the client": "from asana_webhooks import AsanaSession, create_webhook",
        f"{OURS}, the receiver with store and worker": "from asana_webhooks import Receiver, SQLiteStore, Worker",
        f"{OURS}, every name": "from asana_webhooks import *",
        LIBRARIES: LIBRARIES,
        "import asana, the official client": "import asana",
    }
    lines = {OURS: ["-m", "asana_webhooks"], FRAMEWORK: ["-m", "benchmarks.bare_cli"]}
    if not size.quick:
        for statement in imports.values():
            _import(statement)  # so that all of it is compiled
    yield iter(
        [
            Case(
                name="import",
                unit="ms of CPU",
                competitors={name: partial(_import, statement) for name, statement in imports.items()},
                reference=LIBRARIES,
                rounds=9,
                goals=[Goal(against=LIBRARIES, at_most=1.1)],
            ),
            Case(
                name="--help",
                unit="ms of CPU",
                competitors={name: partial(_help, line) for name, line in lines.items()},
                reference=FRAMEWORK,
                rounds=9,
                goals=[Goal(against=FRAMEWORK, at_most=1.5)],
            ),
        ]
    )
