"""Deliveries on their way into the store: bounded, and brought to an end whatever becomes of the request."""

import asyncio
from functools import partial
from typing import Final

from asana_webhooks.receiver.protocol import ReceiveResult, RefusedError
from asana_webhooks.store.base import NewDelivery, PutResult, Store

__all__ = ["PendingDeliveries"]

_ENDING: Final = 1.0
"""Seconds a store may take over being interrupted."""


class PendingDeliveries:
    """Deliveries that have been verified, and that the store is writing.

    All may wait equally long, so the first is always the next to time out, and one timer of the loop serves them all.
    With ``asyncio.timeout`` for each, which sets a timer and cancels it, a delivery takes 6 us more, a tenth of all.

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
        self._timeout = timeout
        self._bytes = 0
        self._writing: dict[asyncio.Future[PutResult], asyncio.Future[PutResult]] = {}
        """By answer, what the store is at."""
        self._deadlines: dict[asyncio.Future[PutResult], float] = {}
        """By answer, in the order in which they time out."""
        self._timer: asyncio.TimerHandle | None = None

    def check_room(self, size: int = 0) -> None:
        """Refuse a delivery whose body has *size* bytes if there is no room for it.

        Raises:
            RefusedError: 503.
        """
        if len(self._writing) >= self._max_deliveries or self._bytes + size > self._max_bytes:
            raise RefusedError(ReceiveResult.CROWDED)

    def put(self, delivery: NewDelivery) -> asyncio.Future[PutResult]:
        """Have the store keep a delivery. Cancelling the future stops the waiting and nothing else.

        Raises:
            RefusedError: 503, too much is on its way already; at once.
            TimeoutError: it takes too long; this and the next when the future is awaited.
            StoreError: whatever `Store.put` raises, being cancelled itself included.
        """
        size = len(delivery.body)
        self.check_room(size)
        loop = asyncio.get_running_loop()
        # A future of its own, for a peer that gives up must not interrupt a store in the middle of writing.
        answer: asyncio.Future[PutResult] = loop.create_future()
        writing = asyncio.ensure_future(self._store.put(delivery))
        self._writing[answer] = writing
        self._bytes += size
        writing.add_done_callback(partial(self._finish, answer, size))
        self._deadlines[answer] = deadline = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._end_overdue)
        return answer

    def _finish(self, answer: asyncio.Future[PutResult], size: int, writing: asyncio.Future[PutResult]) -> None:
        del self._writing[answer]
        self._bytes -= size
        self._deadlines.pop(answer, None)  # the timer stays for those that come until it is due
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

    def _end_overdue(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for answer, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = loop.call_at(deadline, self._end_overdue)
                return
            del self._deadlines[answer]
            if not answer.done():
                answer.set_exception(TimeoutError())

    async def drain(self, seconds: float) -> int:
        """Wait at most *seconds* for what is on its way, interrupt the rest, and return how many that are.

        Nobody has been told that those are stored, so Asana sends them again.
        """
        if self._timer is not None and all(answer.done() for answer in self._deadlines):
            self._timer.cancel()
            self._timer = None
        if not self._writing:
            return 0
        _, late = await asyncio.wait(set(self._writing.values()), timeout=seconds)
        # Others may be closing at the same time, and have interrupted some.
        interrupted = [one for one in late if not (isinstance(one, asyncio.Task) and one.cancelling())]
        for one in interrupted:
            one.cancel()
        if late:
            await asyncio.wait(late, timeout=_ENDING)
        return len(interrupted)
