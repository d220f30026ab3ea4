"""What a receiver tells when it is asked: how many deliveries it has stored, and how late its event loop was."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.harness import percentile

__all__ = ["telling"]


@contextmanager
def telling(pipe: Connection, stored: Callable[[], Awaitable[int]]) -> Iterator[None]:
    """Answer whoever asks through the pipe, while the block runs: a number, and the p99 in seconds since last time."""
    delays: list[float] = []

    async def answer() -> None:
        pipe.send((await stored(), percentile(delays or [0.0], 0.99)))
        delays.clear()

    def asked() -> None:
        pipe.recv()
        tasks.append(asyncio.create_task(answer()))

    tasks = [asyncio.create_task(_watch_loop(delays))]
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), asked)
    try:
        yield
    finally:
        loop.remove_reader(pipe.fileno())
        for task in tasks:
            task.cancel()


async def _watch_loop(delays: list[float]) -> None:
    """Note how many seconds too late the loop comes back to what wants to run every five milliseconds."""
    while True:
        due = time.perf_counter() + 0.005
        await asyncio.sleep(0.005)
        delays.append(time.perf_counter() - due)
