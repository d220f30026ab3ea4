"""Handing proven deliveries to the store: bounded, and brought to an end whatever becomes of the request."""

import asyncio
from functools import partial
from typing import Final

from asana_webhooks.receiver.deadlines import Deadlines
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
        timeout: seconds until nobody waits for one any more.
    """

    def __init__(self, store: Store, *, max_deliveries: int, max_bytes: int, timeout: float) -> None:
        self._store = store
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._deadlines = Deadlines(timeout)
        self._writing: dict[asyncio.Future[PutResult], asyncio.Future[PutResult]] = {}
        """By answer, what the store is at."""

    def check_room(self, size: int = 0) -> None:
        """Refuse a delivery whose body has *size* bytes if there is no room for it.

        Raises:
            RejectedError: 503.
        """
        if len(self._writing) >= self._max_deliveries or self._bytes + size > self._max_bytes:
            raise refusal(Outcome.CROWDED)

    def put(self, delivery: NewDelivery) -> asyncio.Future[PutResult]:
        """Have the store keep a delivery. Cancelling the future stops the waiting and nothing else.

        Raises:
            RejectedError: 503, too much is on its way already; at once.
            TimeoutError: it takes too long; this and the next when the future is awaited.
            StoreError: whatever `Store.put` raises, being cancelled itself included.
        """
        size = len(delivery.body)
        self.check_room(size)
        # A future of its own, for a peer that gives up must not interrupt a store in the middle of writing.
        answer: asyncio.Future[PutResult] = asyncio.get_running_loop().create_future()
        writing = asyncio.ensure_future(self._store.put(delivery))
        self._writing[answer] = writing
        self._bytes += size
        writing.add_done_callback(partial(self._arrived, answer, size))
        self._deadlines.add(answer)
        return answer

    def _arrived(self, answer: "asyncio.Future[PutResult]", size: int, writing: "asyncio.Future[PutResult]") -> None:
        del self._writing[answer]
        self._bytes -= size
        self._deadlines.remove(answer)
        if writing.cancelled():
            answer.cancel()
            return
        error = writing.exception()  # looked at, though perhaps nobody waits for it any more
        if answer.done():
            return
        if error is None:
            answer.set_result(writing.result())
        else:
            answer.set_exception(error)

    async def empty(self, seconds: float) -> int:
        """Wait at most *seconds* for what is on its way; end the waiting for the rest, and return how many that are.

        Nobody has been told that those are stored, so Asana sends them again.
        """
        self._deadlines.clear()
        if not self._writing:
            return 0
        _, late = await asyncio.wait(set(self._writing.values()), timeout=seconds)
        ended = [writing for writing in late if not _is_ending(writing)]  # others may be closing at the same time
        for writing in ended:
            writing.cancel()
        if late:
            await asyncio.wait(late, timeout=_ENDING)
        return len(ended)


def _is_ending(writing: "asyncio.Future[PutResult]") -> bool:
    return isinstance(writing, asyncio.Task) and writing.cancelling() > 0
