"""Cancelling at every step: whatever a coroutine awaits, it is cancelled there once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ["cancel_at_every_step"]


async def cancel_at_every_step(
    start: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]], *, most: int = 2000
) -> int:
    """Run ``start()`` again and again, each time cancelled one turn of the loop later, until it ends by itself.

    After each run `check` looks for what is left behind. Returns how many runs were cancelled.
    """
    for turns in range(most):
        running = asyncio.get_running_loop().create_task(start())
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
        await check()
        if not running.cancelled():
            running.result()
            return turns
    raise AssertionError(f"still not finished after {most} turns")
