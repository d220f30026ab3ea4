"""Work on many things at a time, and finish cleanup even while its task is being cancelled."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from attrs import frozen

from asana_webhooks.errors import ConfigurationError

__all__ = ["finish", "for_each", "is_being_cancelled", "stop_on_signals"]

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


@frozen
class _Stopper:
    """The signal handler of a run. Other runs recognize it by its class."""

    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.stop)


@contextmanager
def stop_on_signals(signals: Iterable[int], stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* in the running event loop, once for each of *signals* that arrives while the block runs.

    Afterwards the handlers set with `signal.signal` are restored, also that of `asyncio.run` for SIGINT. A handler that
    was added with ``loop.add_signal_handler`` is removed.

    Raises:
        ConfigurationError: another run handles one of *signals*, or it cannot be handled, or this is not the main
            thread. No signal handler is changed.
    """
    try:
        numbers = {signal.Signals(number) for number in signals}
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"signals must be a tuple of signals, such as (signal.SIGINT, signal.SIGTERM), not {signals!r:.80}"
        ) from None
    stopper = _Stopper(asyncio.get_running_loop(), stop)
    with ExitStack() as restore:
        for number in numbers:
            _install(number, stopper, restore)
        yield


def _nothing() -> None:
    """Handle a signal in the event loop. Python calls the `_Stopper`, too."""


def _install(number: signal.Signals, stopper: _Stopper, restore: ExitStack) -> None:
    if isinstance(signal.getsignal(number), _Stopper):
        raise ConfigurationError(f"another run handles {number.name} already; stop this worker when that run ends")
    with suppress(NotImplementedError):
        stopper.loop.remove_signal_handler(number)  # else asyncio's placeholder would be put back, which ignores it
    previous = signal.getsignal(number)
    try:
        signal.signal(number, stopper)
    except (OSError, ValueError) as error:  # such as SIGKILL; or not the main thread
        raise ConfigurationError(f"signals: {number.name} cannot be handled here: {error}") from None
    restore.callback(signal.signal, number, previous or signal.SIG_DFL)  # None: it was not set from Python
    with suppress(NotImplementedError):  # Windows, whose event loop wakes up by itself
        # This wakes up the event loop, whichever thread gets the signal. It also replaces the handler.
        stopper.loop.add_signal_handler(number, _nothing)
        restore.callback(stopper.loop.remove_signal_handler, number)
        signal.signal(number, stopper)
