"""What the fake is busy with, and the wait until it is nothing."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Activity"]


class Activity:
    """Counts what is under way.

    Args:
        held: tells how much of it waits in holds, and so goes on only when a test says so.
    """

    def __init__(self, held: Callable[[], int]) -> None:
        self._held = held
        self._busy = 0
        self._closed = False
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Count one more thing, until `end`."""
        self._busy += 1

    def end(self) -> None:
        """Something counted by `begin` is over."""
        self._busy -= 1
        self.changed()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count one more thing for as long as this lasts."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def changed(self) -> None:
        """Say that something ended, or has begun to wait in a hold."""
        self._changed.set()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self.changed()

    async def settled(self) -> None:
        """Return once nothing is under way but what is held."""
        while not self._closed and self._busy > self._held():
            self._changed.clear()
            await self._changed.wait()
