"""Finishing what must be finished, even while the task that has to do it is being cancelled."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finish", "is_being_cancelled"]

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


async def finish(cleanup: Coroutine[Any, Any, ResultT], *, seconds: float = 5.0) -> ResultT | None:
    """Await *cleanup* to its end and return its result; ``None``, with a warning logged, if it failed.

    After *seconds* it is cancelled. Cancellation of the caller waits until it is over and goes on then, so nothing
    keeps running afterwards. (A clean-up that ignores being cancelled itself takes as long as it likes.)
    """
    task = asyncio.ensure_future(asyncio.wait_for(cleanup, seconds))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    failed = asyncio.CancelledError() if task.cancelled() else task.exception()  # the loop may be shutting down
    if failed is not None:
        _log.warning("cleaning up failed with %s", type(failed).__name__)
    if cancelled is not None:
        raise cancelled
    return None if failed is not None else task.result()


def is_being_cancelled() -> bool:
    """Tell whether somebody has cancelled the current task.

    If not, a `CancelledError` that comes up in it is from something it awaited that was cancelled elsewhere. Passed on,
    it would end the task as if it had been asked to, and nobody would hear of it.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
