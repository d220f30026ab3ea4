"""Single flight: one run of a coroutine function for all who want its result at the same time."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from attrs import define, field

from asana_webhooks._tasks import finish

__all__ = ["SingleFlight"]

ResultT = TypeVar("ResultT")


_inside: ContextVar[tuple[object, ...]] = ContextVar("inside", default=())
"""The runs that the current task is part of."""


@define(eq=False)
class _Flight(Generic[ResultT]):
    task: "asyncio.Task[ResultT]" = field(init=False)
    waiting: int = 0
    dropped: bool = False
    """Whether it was cancelled because nobody waits any more."""


class SingleFlight(Generic[ResultT]):
    """Calls a coroutine function once for everybody who calls this while it runs.

    Whoever is cancelled leaves it to the others; the last one to leave cancels it and waits until it has ended, so
    nothing runs that nobody waits for.

    Args:
        start: what to run, in a task of its own. All get the same result, or the same exception.
        ending: seconds it may take to end once it is cancelled.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, ResultT]], *, ending: float) -> None:
        self._start = start
        self._ending = ending
        self._flight: _Flight[ResultT] | None = None

    async def __call__(self) -> ResultT:
        """Await the run under way, or a new one, and return its result."""
        patient = True
        while True:
            if self._flight is None or self._flight.task.done():
                self._flight = _Flight()
                self._flight.task = asyncio.create_task(self._run(self._flight))
            flight = self._flight
            await self._wait(flight)
            if not flight.task.cancelled():
                return flight.task.result()
            # It was being dropped when we came; or a stranger cancelled it, or it did so itself, and may again.
            if not flight.dropped and not patient:
                raise RuntimeError("the run was cancelled twice")
            patient = flight.dropped

    def is_inside(self) -> bool:
        """Tell whether it is the run itself that asks, or a task it has begun: they must not wait for its end."""
        return self._flight in _inside.get() and self._flight is not None and not self._flight.task.done()

    async def _run(self, flight: _Flight[ResultT]) -> ResultT:
        _inside.set((*_inside.get(), flight))  # for this task and those that come from it
        return await self._start()

    async def _wait(self, flight: _Flight[ResultT]) -> None:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task})
        except asyncio.CancelledError:
            if flight.waiting == 1:
                flight.dropped = flight.task.cancel()
                await finish(asyncio.wait({flight.task}), seconds=self._ending)
                if flight.task.done() and not flight.task.cancelled():
                    flight.task.exception()  # nobody is left to ask for it
            raise
        finally:
            flight.waiting -= 1
