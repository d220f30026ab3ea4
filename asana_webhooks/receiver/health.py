"""The answer a load balancer asks for: is this receiver worth sending requests to?"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final

from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.store.base import Store, StoreHealth

__all__ = ["HealthCheck", "health_reply"]

_HEADERS: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
_SHOWN: Final = ("writable", "waiting", "leased", "quarantined", "dead", "oldest_age", "log_bytes", "problems")
_ENDING: Final = 1.0
"""Seconds a store may take over being interrupted."""


def health_reply(health: StoreHealth | None, *, stopping: bool) -> Reply:
    """Return 200 if deliveries can be stored, and 503 if not, with what is known as JSON.

    Nothing in it tells what became of a single request: strangers could ask before and after one of theirs, and learn
    what its answer hides.

    Args:
        health: what the store says; ``None`` if it says nothing.
        stopping: whether the receiver takes no more requests.
    """
    is_well = health is not None and health.writable and not stopping
    told: dict[str, Any] = {"status": "stopping" if stopping else "ok" if is_well else "unavailable"}
    if health is not None:
        told |= {name: getattr(health, name) for name in _SHOWN} | {"webhooks": len(health.heartbeats)}
    return Reply(status=200 if is_well else 503, headers=_HEADERS, body=json.dumps(told).encode())


class HealthCheck:
    """Asks a store how it is, once for all who want to know at about the same time.

    Anyone may ask, and a store writes something to find out, so one answer is good for a while.

    Args:
        store: the store.
        timeout: seconds to wait for its answer.
        keep: seconds an answer is good for.
        give_up: seconds after which a question without an answer is dropped, and another one asked.
        clock: returns seconds from any beginning.
    """

    def __init__(
        self,
        store: Store,
        *,
        timeout: float = 2.0,
        keep: float = 1.0,
        give_up: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._keep = keep
        self._give_up = give_up
        self._clock = clock
        self._asked_at = 0.0
        self._question: asyncio.Task[StoreHealth] | None = None

    async def ask(self) -> StoreHealth | None:
        """Return what the store says; ``None`` if it fails or takes too long.

        Cancelling this lets the store answer the others.
        """
        question, now = self._question, self._clock()
        if question is None or now - self._asked_at > (self._keep if question.done() else self._give_up):
            if question is not None:
                question.cancel()
            self._asked_at = now
            self._question = question = asyncio.ensure_future(self._store.health())
            question.add_done_callback(_look_at)
        if not question.done():
            await asyncio.wait({question}, timeout=self._timeout)
        if not question.done() or question.cancelled() or question.exception() is not None:
            return None
        return question.result()

    async def aclose(self) -> None:
        """Stop waiting for an answer that is still out."""
        if self._question is not None and not self._question.done():
            self._question.cancel()
            await asyncio.wait({self._question}, timeout=_ENDING)


def _look_at(question: asyncio.Task[StoreHealth]) -> None:
    if not question.cancelled():
        question.exception()  # perhaps nobody waits for it any more
