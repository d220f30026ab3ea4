"""Work on many things at a time, and finish cleanup even while its task is being cancelled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["finish", "for_each", "is_being_cancelled"]

_log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def finish(cleanup: Coroutine[Any, Any, ResultT], *, seconds: float = 5.0) -> ResultT | None:
    """Await *cleanup* to its end and return its result; ``None``, with a warning logged, if it failed.

    After *seconds* it is cancelled. If the caller is cancelled, the cancellation is raised once *cleanup* has ended,
    so nothing keeps running afterwards. (A *cleanup* that ignores cancellation can take longer than *seconds*.)
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


async def for_each(items: Iterable[ItemT], do: Callable[[ItemT], Awaitable[None]], *, at_once: int) -> None:
    """Await *do* for each item, so many at a time. The first error cancels the others, and is raised as it is."""
    first: BaseException | None = None
    todo = list(items)
    left = iter(todo)

    async def work() -> None:
        for item in left:
            try:
                await do(item)
            except asyncio.CancelledError as error:
                if is_being_cancelled():
                    raise
                # The group would take the task for one that was meant to end, and leave out its items.
                raise RuntimeError("something that was awaited has been cancelled elsewhere") from error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(todo))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
    if first is not None:
        raise first  # not in the handler, where it would lose its own cause or get another context


def is_being_cancelled() -> bool:
    """Return whether the current task is being cancelled.

    If not, a `CancelledError` in it comes from an awaitable that was cancelled elsewhere. Raised again, it would end
    the task silently, as if the task itself had been cancelled.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
