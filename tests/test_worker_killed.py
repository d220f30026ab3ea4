"""Real worker processes that are killed, frozen and stopped while they hold deliveries."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from asana_webhooks import DeliveryState, SQLiteStore
from asana_webhooks.store.base import registration_id
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.raw import later
from tests.helpers.stores import ENDPOINT, Clock, body, deliver, event, register

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, signal, sys, time
from asana_webhooks import SQLiteStore, Worker

async def wait(delivery):
    print(delivery.id, delivery.attempt, flush=True)
    if delivery.id == 1:
        await asyncio.to_thread(sys.stdin.readline)
    else:
        await asyncio.Event().wait()

def stop(worker):
    worker.stop()
    print("stopping", flush=True)

def turn_clock(loop):
    loop.time = lambda: time.monotonic() + 600

async def main(path, concurrency, lease, stop_timeout):
    async with SQLiteStore(path) as store:
        worker = Worker(
            store,
            wait,
            concurrency=int(concurrency),
            lease=float(lease),
            attempts=2,
            poll=0.05,
            stop_timeout=float(stop_timeout),
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop, worker)
        loop.add_signal_handler(signal.SIGUSR1, turn_clock, loop)
        async with worker:
            await worker.run()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def working(
    path: Path, *, concurrency: int = 1, lease: float = 20, stop_timeout: float = 30
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker while the block runs; it prints what it is given.

    The handler of the first delivery waits to be told to finish; the others wait for ever.
    """
    arguments = (path, concurrency, lease, stop_timeout)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    """Wait for what a worker says next: the id of the delivery it is given and which attempt it is."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_finish(process: subprocess.Popen[str]) -> None:
    """Have the handler of the first delivery return."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def freeze(process: subprocess.Popen[str], path: Path) -> None:
    """Stop a process where it is, but not in the middle of a transaction, for all others would be stopped as well."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
            else:
                connection.execute("ROLLBACK")
                return


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """The clock of the store, which only a test puts forward; workers have the real time."""
    return Clock(time.time())


@pytest.fixture(name="store")
async def _store(path: Path, clock: Clock) -> AsyncIterator[SQLiteStore]:
    """An open store with one delivery."""
    async with SQLiteStore(path, clock=clock) as store:
        registration = await register(store)
        await deliver(store, registration, body(event()))
        yield store


async def test_a_killed_worker(store: SQLiteStore, path: Path, clock: Clock) -> None:
    """What a worker held when it was killed is handed out when its lease has run out, as the second attempt."""
    with working(path) as worker:
        assert heard(worker) == "1 1"
        assert list(await store.claim(1, lease=60)) == []
        worker.kill()
        clock.now = time.time() + 21
        [lease] = await store.claim(1, lease=60)
        assert (lease.id, lease.attempt) == (1, 2)
        assert await store.ack(lease)


async def test_a_frozen_worker(store: SQLiteStore, path: Path, clock: Clock) -> None:
    """A worker that stood still past its lease changes nothing when it goes on: the delivery is another's by now."""
    with working(path) as worker:
        assert heard(worker) == "1 1"
        freeze(worker, path)
        clock.now = time.time() + 21
        [lease] = await store.claim(1, lease=60)
        assert lease.attempt == 2

        let_finish(worker)
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
        _, log = worker.communicate()
        assert worker.returncode == 0
        assert "lease lost before the result was recorded" in log
        assert (await store.health()).leased == 1
        assert await store.ack(lease)


async def test_sigterm(store: SQLiteStore, path: Path) -> None:
    """A handler that finishes in time is acknowledged; what another holds is free at once, as if untried."""
    await deliver(store, registration_id(ENDPOINT), body(event()))
    with working(path, concurrency=2, lease=3600, stop_timeout=600) as worker:
        assert sorted([heard(worker), heard(worker)]) == ["1 1", "2 1"]
        worker.terminate()
        assert heard(worker) == "stopping"
        for _ in range(5):
            assert list(await store.claim(9, lease=60)) == []  # both may still finish
        let_finish(worker)
        while (await store.health()).leased != 1:
            await later(0.02)
        worker.send_signal(signal.SIGUSR1)
        assert worker.wait() == 0
        [lease] = await store.claim(9, lease=60)
        assert (lease.id, lease.attempt) == (2, 1)


KILLS_ITSELF = """
import asyncio, os, signal, sys, time
from asana_webhooks import SQLiteStore, Worker

async def handle(delivery):
    if delivery.id == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.01)

async def main(path, ahead):
    async with SQLiteStore(path, clock=lambda: time.time() + float(ahead)) as store:
        await Worker(store, handle, attempts=3).drain()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.long
async def test_a_delivery_that_kills_its_workers(store: SQLiteStore, path: Path) -> None:
    """Of 200 deliveries for two workers at a time, one kills its process whenever it runs: it alone becomes a dead
    letter, after its three attempts, and all the others are handled.
    """
    for _ in range(199):
        await deliver(store, registration_id(ENDPOINT), body(event()))
    kills = ahead = 0
    while (await store.health()).oldest_age is not None:
        starts = [
            asyncio.create_subprocess_exec(sys.executable, "-c", KILLS_ITSELF, str(path), str(ahead)) for _ in range(2)
        ]
        workers = await asyncio.gather(*starts)
        ends = await asyncio.gather(*(worker.wait() for worker in workers))
        assert {*ends} <= {0, -signal.SIGKILL}
        kills += sum(map(bool, ends))
        ahead += 61  # the leases of those that were killed have run out
    assert kills == 3
    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert (letter.id, letter.attempts) == (100, 4)
    assert "attempts exhausted: 3 made, 3 allowed" in letter.error
