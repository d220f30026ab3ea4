"""Finishing what must be finished, even while the task that has to do it is being cancelled."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finish"]

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


async def finish(cleanup: Coroutine[Any, Any, ResultT], *, seconds: float = 5.0) -> ResultT | None:
    """Await *cleanup* to its end and return its result; ``None``, with a warning logged, if it failed.

    Cancellation waits until it is over, for *seconds* at most, and goes on then. Nothing keeps running afterwards.
    """
    task = asyncio.ensure_future(asyncio.wait_for(cleanup, seconds))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    failed = None if task.cancelled() else task.exception()
    if failed is not None:
        _log.warning("cleaning up failed with %s", type(failed).__name__)
    if cancelled is not None:
        raise cancelled
    return None if failed is not None or task.cancelled() else task.result()
