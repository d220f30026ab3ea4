"""The health check for load balancers: can this receiver take deliveries?"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from asana_webhooks.errors import describe
from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.store.base import Store, StoreHealth

__all__ = ["HealthCheck", "health_reply"]

_HEADERS: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))
_FIELDS: Final = (
    *("writable", "secrets_readable"),
    *("waiting", "leased", "quarantined", "dead", "oldest_age", "log_bytes", "webhooks"),
)
_CANCEL_SECONDS: Final = 1.0
"""How long a store may take to stop a check that is cancelled."""


def health_reply(
    health: StoreHealth | None, problems: Sequence[str] = (), *, overload: str = "", stopping: bool = False
) -> Reply:
    """Return 200 if deliveries can be stored and 503 if not, with the store's health as JSON.

    The JSON always has the same members; those that only the store knows are null if it did not answer.

    The JSON must not reveal the outcome of a single request. By asking before and after a request, an attacker
    could learn the outcome that its reply hides.

    Args:
        health: the store's health; ``None`` if it did not answer.
        problems: the store's problems, or why it did not answer.
        overload: why the receiver itself would refuse a delivery now.
        stopping: whether the receiver is stopped.
    """
    own = "the receiver is stopping" if stopping else overload
    is_ready = health is not None and _is_well(health) and not own
    shown: dict[str, Any] = {"status": "stopping" if stopping else "ok" if is_ready else "unavailable"}
    shown |= {name: getattr(health, name, None) for name in _FIELDS}
    shown["silent"] = None if health is None else len(health.silent)  # not their gids: anyone may ask
    shown["problems"] = [own, *problems] if own else [*problems]
    return Reply(status=200 if is_ready else 503, headers=_HEADERS, body=json.dumps(shown).encode())


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
        self._last_problems: Sequence[str] = ()
        """The problems of the last check that ended, if it failed."""

    async def ask(self) -> tuple[StoreHealth | None, Sequence[str]]:
        """Return the store's health and its problems; ``None`` and the reason if the check fails or takes too long.

        Cancelling this does not cancel the check, because other callers share it.
        """
        check, now = self._check, self._clock()
        if check is None or now - self._asked_at > (self._keep if check.done() else self._give_up):
            if check is not None:
                check.cancel()
            self._asked_at = now
            self._check = check = asyncio.create_task(self._ask_store())
            check.add_done_callback(self._note)
        if not check.done():
            await asyncio.wait({check}, timeout=self._timeout)
        if not check.done():
            return None, [f"the store did not answer within {self._timeout:g} seconds", *self._last_problems]
        return _outcome(check)

    async def _ask_store(self) -> StoreHealth:
        return await self._store.health()

    def _note(self, check: asyncio.Task[StoreHealth]) -> None:
        health, problems = _outcome(check)  # it retrieves the error, or asyncio logs it if no caller is left
        if not check.cancelled():
            self._last_problems = () if health is not None and _is_well(health) else problems

    async def aclose(self) -> None:
        """Cancel a check that is still running."""
        if self._check is not None and not self._check.done():
            self._check.cancel()
            await asyncio.wait({self._check}, timeout=_CANCEL_SECONDS)


def _is_well(health: StoreHealth) -> bool:
    return health.writable and health.secrets_readable


def _outcome(check: asyncio.Task[StoreHealth]) -> tuple[StoreHealth | None, Sequence[str]]:
    """Return the result of a check that ended, as `HealthCheck.ask` does."""
    error = asyncio.CancelledError() if check.cancelled() else check.exception()
    if error is not None:
        return None, [describe(error)]
    health = check.result()
    return health, health.problems
