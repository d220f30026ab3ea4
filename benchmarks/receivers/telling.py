"""What a receiver tells when it is asked: what it has stored, what that has cost, and how late its event loop was."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, cast

from attrs import evolve, frozen

from benchmarks.harness import Round, UnequalWorkError, percentile
from benchmarks.processes import pin

_PAUSE: Final = 0.005
"""Seconds between two pokes."""


@frozen(kw_only=True)
class Told:
    """What a receiver tells."""

    stored: int
    """How many deliveries."""
    cpu: float
    """Seconds of CPU time its process has taken so far."""
    lateness: float
    """Seconds its event loop was late at p99 since the last time, when it was poked."""


def telling(pipe: Connection, stored: Callable[[], Awaitable[int]]) -> None:
    """Answer `ask` through the pipe, and note when `poking` pokes, as long as this process lasts."""
    delays: list[float] = []
    tasks: list[asyncio.Task[None]] = []

    async def answer() -> None:
        cpu = time.process_time()
        pipe.send(Told(stored=await stored(), cpu=cpu, lateness=percentile(delays or [0.0], 0.99)))
        delays.clear()

    def heard() -> None:
        poked_at = pipe.recv()
        if poked_at is None:
            tasks.append(asyncio.create_task(answer()))
        else:
            delays.append(time.monotonic() - poked_at)

    asyncio.get_running_loop().add_reader(pipe.fileno(), heard)


def ask(pipe: Connection) -> Told:
    """Have a receiver tell."""
    pipe.send(None)
    told = pipe.recv()
    assert isinstance(told, Told)
    return told


def watched(load: Callable[[], Round], pipe: Connection, *, keeps: bool = True) -> Callable[[], Round]:
    """Have a round tell what it has cost; it counts only if all was stored that was answered, or nothing by design."""

    def run() -> Round:
        before = ask(pipe)
        done = load()
        after = ask(pipe)
        requests = sum(cast("dict[int, int]", done.work).values())
        stored = after.stored - before.stored
        if {200: stored if keeps else requests} != done.work:
            raise UnequalWorkError(f"{done.work} were answered, and {stored} stored")
        cpu = (after.cpu - before.cpu) / requests * 1e6
        return evolve(done, extras={**done.extras, "CPU µs a request": cpu})

    return run


@contextmanager
def poking(pipe: Connection, *, core: int) -> Iterator[None]:
    """Send the time every few milliseconds while the block runs: how old it is when it is read is how late the loop is.

    *core* is where from: not the receiver's own, which would have to share it.

    A timer of the loop itself would not do: asyncio waits in whole milliseconds, and so comes up to one too late with
    nothing else to do.
    """
    over = threading.Event()

    def poke() -> None:
        pin(core)  # this thread only
        while not over.wait(_PAUSE):
            pipe.send(time.monotonic())

    thread = threading.Thread(target=poke)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
