"""Workers that are stopped by signals, and services that end in time."""

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import ConfigurationError, Delivery, MemoryStore, SQLiteStore, Worker
from asana_webhooks._tasks import stop_on_signals
from asana_webhooks.testing import FakeAsana
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.raw import later
from tests.helpers.receiving import sending, stored
from tests.helpers.stores import body, deliver, event, register

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[Any]]:
    """The handlers of both signals before a test, which must be there afterwards."""
    before = [signal.getsignal(number) for number in BOTH]
    yield before
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.fixture
async def store() -> MemoryStore:
    """A store with one delivery."""
    store = MemoryStore()
    await deliver(store, await register(store), body(event()))
    return store


def without_loop_signals(*_: object) -> None:
    """Stand in for ``loop.add_signal_handler`` on Windows."""
    raise NotImplementedError


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("number", BOTH)
async def test_a_signal_stops_the_run(
    store: MemoryStore, number: signal.Signals, windows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running handler finishes, and the signal means afterwards what it meant before; twice is fine."""
    if windows:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", without_loop_signals)

    async def handle(_: Delivery) -> None:
        for _again in range(2):
            signal.raise_signal(number)

    worker = Worker(store, handle)
    await worker.run(signals=(number,))
    assert worker.counts["done"] == 1


async def test_once() -> None:
    """One signal is one call."""
    calls, called = list[int](), asyncio.Event()

    def stop() -> None:
        calls.append(len(calls))
        called.set()

    with stop_on_signals(BOTH, stop):
        for number in BOTH:
            signal.raise_signal(number)
            await called.wait()
            called.clear()
            await later(0.01)
    assert calls == [0, 1]


async def test_a_handler_of_the_loop(store: MemoryStore) -> None:
    """A signal that the program gave to its event loop has its default effect afterwards, and is not ignored."""

    async def handle(_: Delivery) -> None:
        signal.raise_signal(signal.SIGTERM)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pytest.fail)
    await Worker(store, handle).run(signals=(signal.SIGTERM,))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("earlier", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None], ids=["ignore", "default", "own"])
async def test_earlier_handlers_come_back(store: MemoryStore, earlier: Any, handlers: list[Any]) -> None:
    """All earlier handlers are restored; also when the run raises."""

    async def handle(_: Delivery) -> None:
        assert signal.getsignal(signal.SIGTERM) is not earlier
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, earlier)
    worker = Worker(store, handle, attempts=1)
    try:
        with pytest.raises(KeyboardInterrupt):
            await worker.run(signals=BOTH)
        assert signal.getsignal(signal.SIGTERM) is earlier
        if earlier is not signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)
        running = asyncio.create_task(worker.run())
        await later(0.01)
        assert not running.done()  # the signal has not stopped the worker
        worker.stop()
        await running
    finally:
        signal.signal(signal.SIGTERM, handlers[1])


async def test_a_signal_that_another_thread_gets() -> None:
    """The event loop wakes up at once, though no system call of the main thread is interrupted."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, daemon=True)
    thread.start()
    assert thread.ident is not None
    worker = Worker(MemoryStore(), AsyncNothing(), poll=600, lease=6000, retention=None)
    running = asyncio.create_task(worker.run(signals=BOTH))
    asyncio.get_running_loop().call_later(0.01, signal.pthread_kill, thread.ident, signal.SIGTERM)
    await running
    ended.set()
    thread.join()


def test_ctrl_c_after_the_run() -> None:
    """Asyncio's own handler of Ctrl-C works again: it cancels the program."""

    async def main() -> None:
        worker = Worker(MemoryStore(), AsyncNothing())
        worker.stop()
        await worker.run(signals=BOTH)
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


class AsyncNothing:
    """A handler that does nothing."""

    async def __call__(self, _: Delivery) -> None: ...


async def test_no_signal_is_touched(store: MemoryStore) -> None:
    """Unless they are named."""
    before, seen = [signal.getsignal(number) for number in BOTH], list[Any]()

    async def handle(_: Delivery) -> None:
        seen.extend(signal.getsignal(number) for number in BOTH)
        worker.stop()

    worker = Worker(store, handle)
    await worker.run()
    assert seen == before


async def test_a_signal_that_another_run_has(store: MemoryStore) -> None:
    """The second run is refused before it claims anything, and the first one keeps its signals."""
    first = Worker(MemoryStore(), AsyncNothing())
    running = asyncio.create_task(first.run(signals=BOTH))
    await asyncio.sleep(0)
    second = Worker(store, AsyncNothing())
    with pytest.raises(ConfigurationError, match="another run handles SIGTERM already"):
        await second.run(signals=(signal.SIGTERM, signal.SIGUSR1))
    assert second.health().last_claim_at is None
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    signal.raise_signal(signal.SIGTERM)
    await running


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        (signal.SIGTERM, r"signals must be a tuple of signals, such as \(signal.SIGINT, signal.SIGTERM\), not"),
        (("SIGTERM",), "signals must be a tuple"),
        ((999,), "signals must be a tuple"),
        ((signal.SIGTERM, signal.SIGKILL), "SIGKILL cannot be handled here"),
    ],
    ids=str,
)
async def test_what_is_no_signal_to_handle(store: MemoryStore, signals: Any, said: str) -> None:
    """It is refused before anything is claimed, and changes nothing."""
    worker = Worker(store, AsyncNothing())
    with pytest.raises(ConfigurationError, match=said):
        await worker.run(signals=signals)
    assert worker.health().last_claim_at is None


async def test_outside_the_main_thread(store: MemoryStore) -> None:
    """Python runs signal handlers in the main thread only, so a run elsewhere cannot have signals."""
    worker = Worker(store, AsyncNothing())

    def run() -> None:
        assert threading.current_thread() is not threading.main_thread()
        with pytest.raises(
            ConfigurationError, match="SIGTERM cannot be handled here: signal only works in main thread"
        ):
            asyncio.run(worker.run(signals=(signal.SIGTERM,)))

    await asyncio.to_thread(run)
    assert worker.health().last_claim_at is None


HANG = """    print("hanging", flush=True)
    await asyncio.Event().wait()
"""


async def end_under_load(folder: Path, change: Callable[[str], str]) -> float:
    """Run README's service with handlers that hang, under load, and send SIGTERM; return the seconds until its end."""
    async with SQLiteStore(folder / "asana.db") as store:
        await register(store)
    port, source = free_port(), program("README", "A whole service")
    hanging, number = re.subn(r"(?<=-> None:\n)    for event in .*\n.*\n", HANG, source)
    assert number == 1
    async with FakeAsana(projects=("8675310",)) as fake:  # another project than that of the load
        service = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", change(hanging)),
            cwd=folder,
            env=os.environ
            | {"PORT": str(port), "ASANA_ACCESS_TOKEN": fake.token, "ASANA_BASE_URL": fake.url}
            | {"PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": fake.projects[0]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert service.stdout is not None
        assert (await service.stdout.readline()).startswith(b"ready: created ")
        async with sending(f"http://127.0.0.1:{port}/asana") as load:
            await load.acknowledge(100)
            for _ in range(8):  # all its handlers
                assert await service.stdout.readline() == b"hanging\n"
            began = time.monotonic()
            service.terminate()
            _, log = await service.communicate()
            seconds = time.monotonic() - began
    assert service.returncode == 0, log.decode()
    assert b"Traceback" not in log, log.decode()
    assert log.count(b"not released") == 0
    async with SQLiteStore(folder / "asana.db") as store:
        health = await store.health()
        assert (health.leased, health.dead) == (0, 0)
        assert load.acknowledged <= set(stored(folder / "asana.db").bodies)
        assert {lease.attempt for lease in await store.claim(20, lease=60)} == {1}
    return seconds


@pytest.mark.slow
async def test_a_service_ends_on_sigterm(tmp_path: Path) -> None:
    """After stop_timeout it has released its deliveries, without an attempt, and ends soon."""

    def change(source: str) -> str:
        return source.replace("Worker(store, handle)", "Worker(store, handle, stop_timeout=0.5)")

    assert 0.5 <= await end_under_load(tmp_path, change) < 7  # not the default of 8 seconds


@pytest.mark.long
async def test_a_service_ends_on_sigterm_by_default(tmp_path: Path) -> None:
    """It ends within the ten seconds that Docker allows."""
    assert 8 <= await end_under_load(tmp_path, str) < 10
