"""Memory of a client and of a receiver that have done one request and wait for the next one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness import OURS, Case, Goal, Round, Size

__all__ = ["TITLE", "cases"]

TITLE: Final = "Memory of an idle process"

IMPORTS: Final = "x its imports"
"""What an extra is called: against the same process that has only imported aiohttp, attrs, cattrs and msgspec."""


def idle(function: str) -> Round:
    """Run one of the functions of `benchmarks.idle` in a fresh process; return the megabytes it takes."""
    command = [sys.executable, "-m", "benchmarks.idle", function]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE)
    before, work, resident = json.loads(ended.stdout)
    return Round(value=resident / 2**20, work=work, extras={IMPORTS: resident / before})


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare clients, receivers, and receivers that store what they get on the disk."""
    del size  # it is quick
    bare, stores = "bare aiohttp", "bare aiohttp, sqlite3"
    in_memory, on_disk = f"{OURS}, in memory", f"{OURS}, in SQLite"
    yield iter(
        [
            Case(
                name="a client",
                unit="MB resident",
                competitors={OURS: lambda: idle("our_client"), bare: lambda: idle("aiohttp_client")},
                reference=bare,
                goals=[Goal(against=bare, at_most=1.1), Goal(extra=IMPORTS, at_most=1.1)],
            ),
            Case(
                name="a receiver",
                unit="MB resident",
                competitors={
                    in_memory: lambda: idle("our_receiver"),
                    on_disk: lambda: idle("our_receiver_with_sqlite"),
                    bare: lambda: idle("aiohttp_receiver"),
                    stores: lambda: idle("aiohttp_receiver_with_sqlite"),
                },
                reference=bare,
                goals=[
                    Goal(competitor=in_memory, against=bare, at_most=1.1),
                    Goal(competitor=in_memory, extra=IMPORTS, at_most=1.1),
                    Goal(competitor=on_disk, against=stores, at_most=1.1),
                    Goal(competitor=on_disk, extra=IMPORTS, at_most=1.1),
                ],
            ),
        ]
    )
