"""Stop a worker on signals of the process, and put the earlier signal handlers back."""

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from attrs import frozen

from asana_webhooks.errors import ConfigurationError

__all__ = ["stop_on_signals"]


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
