"""The health check for load balancers: can this receiver take deliveries?"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final

from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.store.base import Store, StoreHealth

__all__ = ["HealthCheck", "health_reply"]

_HEADERS: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
_FIELDS: Final = ("writable", "waiting", "leased", "quarantined", "dead", "oldest_age", "log_bytes", "problems")
_CANCEL_SECONDS: Final = 1.0
"""How long a store may take to stop a check that is cancelled."""


def health_reply(health: StoreHealth | None, *, stopping: bool) -> Reply:
    """Return 200 if deliveries can be stored and 503 if not, with the store's health as JSON.

    The JSON must not reveal the outcome of a single request. By asking before and after a request, an attacker
    could learn the outcome that its reply hides.

    Args:
        health: the store's health; ``None`` if it did not answer.
        stopping: whether the receiver is stopped.
    """
    is_healthy = health is not None and health.writable and not stopping
    shown: dict[str, Any] = {"status": "stopping" if stopping else "ok" if is_healthy else "unavailable"}
    if health is not None:
        shown |= {name: getattr(health, name) for name in _FIELDS} | {"webhooks": len(health.heartbeats)}
    return Reply(status=200 if is_healthy else 503, headers=_HEADERS, body=json.dumps(shown).encode())


class HealthCheck:
    """Asks a store for its health; callers at about the same time share one check.

    Anyone may ask, and each check tries a write, so one result is reused for a while.

    Args:
        store: the store to ask.
        timeout: seconds to wait for its answer.
        keep: seconds a result is reused.
        give_up: seconds after which a check without an answer is cancelled and replaced by a new one.
        clock: a monotonic clock, in seconds.
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
        self._check: asyncio.Task[StoreHealth] | None = None

    async def ask(self) -> StoreHealth | None:
        """Return the store's health; ``None`` if the check fails or takes too long.

        Cancelling this does not cancel the check, because other callers share it.
        """
        check, now = self._check, self._clock()
        if check is None or now - self._asked_at > (self._keep if check.done() else self._give_up):
            if check is not None:
                check.cancel()
            self._asked_at = now
            self._check = check = asyncio.ensure_future(self._store.health())
            check.add_done_callback(_retrieve_error)
        if not check.done():
            await asyncio.wait({check}, timeout=self._timeout)
        if not check.done() or check.cancelled() or check.exception() is not None:
            return None
        return check.result()

    async def aclose(self) -> None:
        """Cancel a check that is still running."""
        if self._check is not None and not self._check.done():
            self._check.cancel()
            await asyncio.wait({self._check}, timeout=_CANCEL_SECONDS)


def _retrieve_error(check: asyncio.Task[StoreHealth]) -> None:
    if not check.cancelled():
        check.exception()  # or asyncio logs it if no caller is left
