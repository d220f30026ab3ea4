"""What every store decides in the same way, as plain functions: no storage, clock or randomness in here."""

import enum
import re
from collections.abc import Container
from typing import Any

from attrs import evolve, field, frozen

from asana_webhooks._checks import check_count
from asana_webhooks.errors import ConfigurationError, StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import Registration, RegistrationState

__all__ = [
    "MAX_SKEW",
    "DeliveryState",
    "QuarantineLimits",
    "as_found",
    "check_integer",
    "check_texts",
    "effective_state",
    "initial_state",
    "readable",
    "runs",
]

MAX_SKEW = 60.0
"""By how many seconds the clocks of those who share a store may differ."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class DeliveryState(enum.StrEnum):
    """Where a delivery stands.

    `Store` calls waiting all that nobody holds. Here `WAITING` can be claimed now, and `DELAYED` cannot yet, so that a
    claim need not look through those that are not due.
    """

    QUARANTINED = "quarantined"
    """Verified with a candidate; nobody gets it before the 201 decides."""
    WAITING = "waiting"
    """Anyone may claim it now."""
    DELAYED = "delayed"
    """Waiting for its next attempt, not before its due time."""
    LEASED = "leased"
    """A worker holds it until its due time."""
    DONE = "done"
    """Handled; only its key is kept."""
    DEAD = "dead"
    """A dead letter."""


@frozen
class QuarantineLimits:
    """How much one pending registration may have in quarantine."""

    max_quarantined: int = field(default=1_000)
    """How many deliveries."""
    max_quarantined_bytes: int = field(default=16 * 1024**2)
    """How many bytes their bodies may have together."""

    @max_quarantined.validator
    @max_quarantined_bytes.validator
    def _check(self, attribute: Any, value: Any) -> None:
        check_count(attribute.name, value, zero=True)

    def check_room(self, count: int, total: int, size: int) -> None:
        """Raise `StoreFullError` if a body of *size* bytes has no room beside *count* others of *total* bytes."""
        if count >= self.max_quarantined or total + size > self.max_quarantined_bytes:
            raise StoreFullError(problem="a pending registration has no room for more in quarantine")


def effective_state(state: RegistrationState, *, deadline: float, now: float) -> RegistrationState:
    """Return the state a registration counts as: a pending one is closed once its deadline has passed."""
    if state is RegistrationState.PENDING and deadline <= now:
        return RegistrationState.CLOSED
    return state


def as_found(registration: Registration, *, now: float) -> Registration:
    """Return a registration as `Store.find` does: one that counts as closed has no candidates."""
    state = effective_state(registration.state, deadline=registration.deadline, now=now)
    return registration if state is registration.state else evolve(registration, state=state, candidates=())


def runs(*, since: float, until: float, now: float) -> bool:
    """Tell whether a lease or delay still runs.

    One that began in the future is void: the clock was ahead then and was set right, and to wait for its end could
    take years.
    """
    return since <= now + MAX_SKEW and now < until


def initial_state(
    state: RegistrationState, *, confirmed: str | None, candidates: Container[str], candidate: str | None
) -> DeliveryState | None:
    """Decide which state a new delivery starts in.

    Args:
        state: of its registration, as `effective_state` tells it.
        confirmed: the `candidate_id` of the registration's secret, once it is confirmed.
        candidates: the registration's `candidate_id` values, while it is pending.
        candidate: `NewDelivery.candidate`.

    Returns:
        The state; ``None`` to refuse the delivery.
    """
    if state is RegistrationState.PENDING and candidate is not None and candidate in candidates:
        return DeliveryState.QUARANTINED
    if state is RegistrationState.CONFIRMED and candidate in {None, confirmed}:
        return DeliveryState.WAITING
    return None


def check_integer(name: str, value: Any) -> int:
    """Return *value*; what is no integer of at most 64 bits, which every store can hold, is a `ConfigurationError`."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ConfigurationError(f"{name} must be an integer of at most 64 bits")
    return value


def check_texts(*values: str | Secret) -> None:
    """Raise `ConfigurationError` if one of these holds a lone surrogate, which no store can keep."""
    if any(_SURROGATE.search(value.reveal() if isinstance(value, Secret) else value) for value in values):
        # No value in the message, and no UnicodeError behind it: either may show a secret.
        raise ConfigurationError("the store cannot keep one of the values given: it holds a lone surrogate")


def readable(error: str) -> str:
    """Return the text of an error in a form every store can keep: lone surrogates and NUL become escapes."""
    return error.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
