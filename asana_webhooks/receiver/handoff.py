"""Handing proven deliveries to the store: bounded, and brought to an end whatever becomes of the request."""

import asyncio
from functools import partial
from typing import Final

from asana_webhooks.receiver.reply import Outcome, refusal
from asana_webhooks.store.base import NewDelivery, PutResult, Store

__all__ = ["HandOff"]

_ENDING: Final = 1.0
"""Seconds a store may take over being interrupted."""


class HandOff:
    """Deliveries on their way into a store.

    Args:
        store: where they go.
        max_deliveries: how many may be on their way.
        max_bytes: how many bytes their bodies may have together.
    """

    def __init__(self, store: Store, *, max_deliveries: int, max_bytes: int) -> None:
        self._store = store
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tasks: set[asyncio.Task[PutResult]] = set()

    def check_room(self, size: int = 0) -> None:
        """Refuse a delivery whose body has *size* bytes if there is no room for it.

        Raises:
            RejectedError: 503.
        """
        if len(self._tasks) >= self._max_deliveries or self._bytes + size > self._max_bytes:
            raise refusal(Outcome.CROWDED)

    async def put(self, delivery: NewDelivery) -> PutResult:
        """Have the store keep a delivery. Cancelling this stops the waiting and nothing else.

        Raises:
            RejectedError: 503, too much is on its way already.
            StoreError: whatever `Store.put` raises, being cancelled itself included.
        """
        size = len(delivery.body)
        self.check_room(size)
        # A task of its own: a peer that gives up must not interrupt a store in the middle of writing.
        task = asyncio.ensure_future(self._store.put(delivery))
        self._tasks.add(task)
        self._bytes += size
        task.add_done_callback(partial(self._arrived, size))
        return await asyncio.shield(task)

    def _arrived(self, size: int, task: "asyncio.Task[PutResult]") -> None:
        self._tasks.discard(task)
        self._bytes -= size
        if not task.cancelled():
            task.exception()  # looked at, for perhaps nobody waits for it any more

    async def empty(self, seconds: float) -> int:
        """Wait at most *seconds* for what is on its way; end the waiting for the rest, and return how many that are.

        Nobody has been told that those are stored, so Asana sends them again.
        """
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        ended = [task for task in late if not task.cancelling()]  # others may be closing at the same time
        for task in ended:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_ENDING)
        return len(ended)
