"""Deliveries being written to the store: limited, with a timeout, and completed even if the request is cancelled."""

import asyncio
from functools import partial
from typing import Final

from asana_webhooks.receiver.protocol import ReceiveResult, RefusedError
from asana_webhooks.store.base import NewDelivery, PutResult, Store

__all__ = ["PendingDeliveries"]

_CANCEL_SECONDS: Final = 1.0
"""How long a store may take to stop a write that is cancelled."""


class PendingDeliveries:
    """Verified deliveries that the store is writing.

    All have the same timeout, so the oldest always expires first, and one timer of the loop serves them all. With
    ``asyncio.timeout`` for each, which sets a timer and cancels it, a delivery takes 6 us longer, a tenth of its time.

    Args:
        store: writes the deliveries.
        max_deliveries: how many may be in flight.
        max_bytes: bytes their bodies may have together.
        timeout: seconds to wait for a write; the write itself goes on.
    """

    def __init__(self, store: Store, *, max_deliveries: int, max_bytes: int, timeout: float) -> None:
        self._store = store
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._bytes = 0
        self._writing: dict[asyncio.Future[PutResult], asyncio.Future[PutResult]] = {}
        """The store's write for each answer."""
        self._deadlines: dict[asyncio.Future[PutResult], float] = {}
        """The deadline of each answer, earliest first."""
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self, size: int) -> bool:
        """Return whether a delivery whose body has *size* bytes would be accepted now."""
        return len(self._writing) < self._max_deliveries and self._bytes + size <= self._max_bytes

    def check_room(self, size: int = 0) -> None:
        """Refuse a delivery whose body has *size* bytes if that would exceed a limit.

        Raises:
            RefusedError: 503.
        """
        if not self.has_room(size):
            raise RefusedError(ReceiveResult.OVERLOADED)

    def put(self, delivery: NewDelivery) -> asyncio.Future[PutResult]:
        """Store a delivery. Cancelling the returned future stops the waiting, but not the write.

        Raises:
            RefusedError: 503, a limit is exceeded; raised at once.
            TimeoutError: the write takes too long; this and the next are raised when the future is awaited.
            StoreError: any error of `Store.put`, including a ``CancelledError`` if the write is cancelled.
        """
        size = len(delivery.body)
        self.check_room(size)
        loop = asyncio.get_running_loop()
        # A separate future: a peer that disconnects must not interrupt a write.
        answer: asyncio.Future[PutResult] = loop.create_future()
        writing = asyncio.ensure_future(self._store.put(delivery))
        self._writing[answer] = writing
        self._bytes += size
        writing.add_done_callback(partial(self._finish, answer, size))
        self._deadlines[answer] = deadline = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire_overdue)
        return answer

    def _finish(self, answer: asyncio.Future[PutResult], size: int, writing: asyncio.Future[PutResult]) -> None:
        del self._writing[answer]
        self._bytes -= size
        self._deadlines.pop(answer, None)  # the timer stays for deliveries that arrive before it fires
        if writing.cancelled():
            answer.cancel()
            return
        error = writing.exception()  # retrieved even if no caller is left, or asyncio logs it
        if answer.done():
            return
        if error is None:
            answer.set_result(writing.result())
        else:
            answer.set_exception(error)

    def _expire_overdue(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for answer, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = loop.call_at(deadline, self._expire_overdue)
                return
            del self._deadlines[answer]
            if not answer.done():
                answer.set_exception(TimeoutError())

    async def drain(self, seconds: float) -> int:
        """Wait at most *seconds* for writes in flight, cancel the rest, and return how many were cancelled.

        Those deliveries were not acknowledged, so Asana resends them.
        """
        if self._timer is not None and all(answer.done() for answer in self._deadlines):
            self._timer.cancel()
            self._timer = None
        if not self._writing:
            return 0
        _, late = await asyncio.wait(set(self._writing.values()), timeout=seconds)
        # Another call, closing at the same time, may have cancelled some already.
        cancelled = [one for one in late if not (isinstance(one, asyncio.Task) and one.cancelling())]
        for one in cancelled:
            one.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_SECONDS)
        return len(cancelled)
