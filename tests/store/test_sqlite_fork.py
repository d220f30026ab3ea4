"""A process that forks while its store is open: the child is refused, and takes nothing from others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asana_webhooks.store import SQLiteStore
from tests.helpers.receiving import ROOT
from tests.store.sqlite_help import confirmed, new, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

FORKING = """
import asyncio, os, selectors, sys
from asana_webhooks import ConfigurationError, SQLiteStore
from tests.store.sqlite_help import new

path, children, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
loop = asyncio.SelectorEventLoop(selectors.SelectSelector())  # parent and child would share an epoll
store, unused = SQLiteStore(path), SQLiteStore(path + ".unused")

async def begin():
    await store.put(new(0))  # and no read: of two connections, the one that closes last could be the reader's
    puts = [asyncio.ensure_future(store.put(new(number))) for number in range(1, 50)]
    await (asyncio.wait(puts) if mode == "late" else asyncio.sleep(0))
    return puts  # unless it is late, a thread is storing them when the process forks

async def refused():
    for use in (store.__aenter__, lambda: store.put(new(1000)), store.health, SQLiteStore(path).__aenter__,
                SQLiteStore(path).health):
        try:
            await asyncio.wait_for(use(), 20)
        except ConfigurationError as error:
            assert "after the fork" in str(error)
        else:
            raise AssertionError
    await asyncio.wait_for(store.aclose(), 20)
    if mode == "late":  # else SQLite may be locked for ever by the thread that the child does not have
        async with unused:
            assert (await unused.health()).writable

puts = loop.run_until_complete(begin())
pids = []
for _ in range(children):
    pids.append(os.fork())
    if not pids[-1]:
        grandchild = os.fork() if mode == "grandchild" else 0
        if grandchild:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        asyncio.run(refused())
        if mode == "hard":
            os._exit(0)
        sys.stdin.read()
        sys.exit()

async def rest():
    assert [await put for put in puts] == ["stored"] * 49
    for number in range(50, 60):
        assert await store.put(new(number)) == "stored"
    await store.aclose()

loop.run_until_complete(rest())
if mode != "late":
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""

DYING = """
import asyncio, os, sys
from asana_webhooks import SQLiteStore
from tests.store.sqlite_help import new

async def main():
    store = SQLiteStore(sys.argv[1])
    assert await store.put(new(100)) == "stored"
    os._exit(0)

asyncio.run(main())
"""


def start(script: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("children", "mode"), [(1, "hard"), (2, "soft"), (1, "grandchild")])
async def test_a_child_is_refused(tmp_path: Path, children: int, mode: str) -> None:
    """The inherited store and a new one say what to do, and nobody loses a delivery, however the children end.

    A grandchild is refused as well. A store that was not yet open at the fork works in the child.
    """
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as third:
        await confirmed(third)
        process = start(FORKING, path, children, mode)
        process.communicate()
        assert process.returncode == 0
        assert await third.put(new(100)) == "stored"
    assert len(rows(path)) == 61
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_child_that_ends_late_deletes_no_log(tmp_path: Path) -> None:
    """It inherited connections to a log that is gone; at its exit it leaves the present one alone."""
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as store:
        await confirmed(store)
    forking = start(FORKING, path, 1, "late")
    assert forking.wait() == 0
    start(DYING, path).communicate()
    log = path.with_name("store.db-wal")
    assert log.stat().st_size > 0
    forking.communicate()  # returns when the child has ended
    assert log.exists()
    assert len(rows(path)) == 61
