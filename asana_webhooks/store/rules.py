"""The rules that all stores share, as pure functions: no storage, clock or randomness."""

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
"""Seconds by which the clocks of processes that share a store may differ."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class DeliveryState(enum.StrEnum):
    """The state of a delivery.

    `Store` calls `WAITING` and `DELAYED` deliveries both waiting. They are separate here, so that a claim skips
    deliveries that are not yet due.
    """

    QUARANTINED = "quarantined"
    """Verified with a candidate; it cannot be claimed before the registration is confirmed."""
    WAITING = "waiting"
    """Any worker may claim it now."""
    DELAYED = "delayed"
    """Waiting for its next attempt, until its due time."""
    LEASED = "leased"
    """A worker holds it until its due time."""
    DONE = "done"
    """Acknowledged; kept without its body, to recognize duplicates."""
    DEAD = "dead"
    """A dead letter."""


@frozen
class QuarantineLimits:
    """The limits of one pending registration's quarantine."""

    max_quarantined: int = field(default=1_000)
    """The number of deliveries."""
    max_quarantined_bytes: int = field(default=16 * 1024**2)
    """The total size of their bodies in bytes."""

    @max_quarantined.validator
    @max_quarantined_bytes.validator
    def _check(self, attribute: Any, value: Any) -> None:
        check_count(attribute.name, value, zero=True)

    def check_room(self, count: int, total: int, size: int) -> None:
        """Raise `StoreFullError` if a body of *size* bytes has no room beside *count* others of *total* bytes."""
        if count >= self.max_quarantined or total + size > self.max_quarantined_bytes:
            advice = "Retry when it is confirmed, or raise max_quarantined and max_quarantined_bytes."
            raise StoreFullError(problem="a pending registration has no room in quarantine", advice=advice)


def effective_state(state: RegistrationState, *, deadline: float, now: float) -> RegistrationState:
    """Return the effective state of a registration: a pending one past its deadline is closed."""
    if state is RegistrationState.PENDING and deadline <= now:
        return RegistrationState.CLOSED
    return state


def as_found(registration: Registration, *, now: float) -> Registration:
    """Return a registration as `Store.find` does: a pending one past its deadline as closed, without candidates."""
    state = effective_state(registration.state, deadline=registration.deadline, now=now)
    return registration if state is registration.state else evolve(registration, state=state, candidates=())


def runs(*, since: float, until: float, now: float) -> bool:
    """Return whether a lease or delay still runs.

    One that began more than `MAX_SKEW` in the future is void: the clock was set back, and the end may be years away.
    """
    return since <= now + MAX_SKEW and now < until


def initial_state(
    state: RegistrationState, *, confirmed: str | None, candidates: Container[str], candidate: str | None
) -> DeliveryState | None:
    """Return the initial state of a new delivery.

    Args:
        state: the `effective_state` of its registration.
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
    """Return *value*; raise `ConfigurationError` unless it is an integer of at most 64 bits, as stores require."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ConfigurationError(f"{name} must be an integer of at most 64 bits")
    return value


def check_texts(*values: str | Secret) -> None:
    """Raise `ConfigurationError` if a value contains a lone surrogate, which no store can save."""
    if any(_SURROGATE.search(value.reveal() if isinstance(value, Secret) else value) for value in values):
        # Neither the value nor a chained UnicodeError: both may show a secret.
        raise ConfigurationError("the store cannot save one of the values given: it contains a lone surrogate")


def readable(error: str) -> str:
    """Return an error text that every store can save: lone surrogates and NUL become escapes."""
    return error.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
