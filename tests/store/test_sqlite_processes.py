"""Several processes on one SQLite file, some of which end badly."""

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asana_webhooks.store import SQLiteStore
from tests.helpers.stores import Clock
from tests.store.sqlite_help import SECRET, confirmed, new, rows

PUTTING = """
import asyncio, sys
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import NewDelivery

async def caller(store, first):
    number = first
    while number < first + 100 * int(sys.argv[2]):
        new = NewDelivery(registration="r", signature=f"{number:064x}", body=b"%d" % number)
        assert await store.put(new) == "stored"
        print(number, flush=True)  # the answer
        number += 1

async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        await asyncio.gather(*(caller(store, 10**6 * int(sys.argv[3]) + 10**4 * part) for part in range(4)))

asyncio.run(main())
"""

OPENING = """
import asyncio, sys
from asana_webhooks.store import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    async with store:
        await store.open_registration(sys.argv[2], resource=sys.argv[2], public_url="https://example.com/asana", ttl=60)

asyncio.run(main())
"""


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def prepare(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await confirmed(store)


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A process that is killed while it writes has stored all that it had acknowledged, and nothing in part."""
    path = tmp_path / "store.db"
    asyncio.run(prepare(path))
    with start(PUTTING, path, 1000, 0) as process:
        assert process.stdout
        acknowledged = [next(process.stdout) for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [line for line in process.stdout if line.endswith("\n")]
        process.wait()
    stored = {int(str(signature), 16) for (signature,) in rows(path)}
    assert len(acknowledged) >= 200
    assert {int(line) for line in acknowledged} <= stored
    assert rows(path, "SELECT count(*) FROM inbox") == rows(path, "SELECT count(*) FROM bodies")
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    """Several processes share a file: nobody is refused, and nothing is lost."""
    path = tmp_path / "store.db"
    asyncio.run(prepare(path))
    processes = [start(PUTTING, path, 1, number) for number in range(2)]
    answers = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(answers) == len(set(answers)) == len(rows(path)) == 800


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_processes_write_at_the_same_time(tmp_path: Path) -> None:
    """Four processes put more than 10,000 deliveries together, and none of them is ever told that the file is busy."""
    path = tmp_path / "store.db"
    asyncio.run(prepare(path))
    processes = [start(PUTTING, path, 7, number) for number in range(4)]
    with ThreadPoolExecutor(4) as readers:  # a pipe that nobody reads would hold its process up
        answers = [out.splitlines() for out, _ in readers.map(lambda process: process.communicate(), processes)]
    assert [process.returncode for process in processes] == [0] * 4
    assert [len(each) for each in answers] == [2_800] * 4
    assert len(rows(path)) == 11_200
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_processes_make_the_file_together(tmp_path: Path) -> None:
    """Processes that all find no database make it once, and all of them can use it."""
    path = tmp_path / "store.db"
    processes = [start(OPENING, path, f"r{number}") for number in range(3)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    assert rows(path, "SELECT id FROM registrations ORDER BY id") == [(f"r{number}",) for number in range(3)]


async def test_the_creator_and_the_receiver_are_two(tmp_path: Path) -> None:
    """What one process opens the other can offer for, and the first can confirm it: they share the file alone."""
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as creator, SQLiteStore(path) as receiver:
        await creator.open_registration("r", resource="1", public_url="https://example.com/asana", ttl=60)
        assert await receiver.add_candidate("r", SECRET)
        assert await creator.confirm_registration("r", webhook_gid="2", secret=SECRET)
        found = await receiver.find_registration("r")
        assert found is not None
        assert found.secret == SECRET
        assert await receiver.put(new(1)) == "stored"
        assert len(await creator.claim(1, lease=60)) == 1


async def test_a_worker_that_died(tmp_path: Path) -> None:
    """The lease of a process that is gone runs out, and another gets its delivery, one attempt later."""
    path, clock = tmp_path / "store.db", Clock()
    gone = await confirmed(SQLiteStore(path, clock=clock))
    await gone.put(new(1))
    (old,) = await gone.claim(1, lease=60)
    async with SQLiteStore(path, clock=clock) as store:
        assert not await store.claim(1, lease=60)
        clock.advance(61)
        (lease,) = await store.claim(1, lease=60)
        assert (lease.id, lease.attempt) == (old.id, 2)
        assert await gone.ack(old) is False
        assert await store.ack(lease) is True
    await gone.aclose()
