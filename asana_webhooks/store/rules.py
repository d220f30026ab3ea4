"""The rules that all stores share, as pure functions: no storage, clock or randomness."""

import re
from collections.abc import Container, Iterable
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, field, frozen

from asana_webhooks._checks import check_count
from asana_webhooks.errors import ConfigurationError, StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import DeliveryState, Registration, RegistrationState

__all__ = [
    "MAX_SILENT",
    "MAX_SKEW",
    "SILENT_AFTER",
    "QuarantineLimits",
    "add_done",
    "as_found",
    "check_integer",
    "check_label",
    "check_state",
    "check_texts",
    "effective_state",
    "event_time",
    "initial_state",
    "is_alone",
    "last_sign",
    "may_open",
    "minute_of",
    "readable",
    "runs",
]

MAX_SKEW = 60.0
"""Seconds by which the clocks of processes that share a store may differ."""

SILENT_AFTER = 10 * 3600.0
"""Seconds without a heartbeat or delivery after which a webhook counts as silent. Asana sends a heartbeat every eight
hours. Source: https://developers.asana.com/docs/webhooks-guide"""

MAX_SILENT = 100
"""How many silent webhooks `Store.health` names at most."""

_CREATED_AT = re.compile(rb'"created_at"\s*:\s*"([0-9T:.Z+-]{1,40})"')
_LONGEST_LABEL = 200

_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """Return a registration as `Store.find_registration` does.

    A pending one past its deadline is closed, and has no candidates.
    """
    state = effective_state(registration.state, deadline=registration.deadline, now=now)
    return registration if state is registration.state else evolve(registration, state=state, candidates=())


def may_open(live: Iterable[str], *, replaces: str | None) -> bool:
    """Return whether a registration may be opened beside the ids that are *live* for its resource and label."""
    return set(live) == (set() if replaces is None else {replaces})


def runs(*, since: float, until: float, now: float) -> bool:
    """Return whether a lease or delay still runs.

    One that began more than `MAX_SKEW` in the future is void: the clock was set back, and the end may be years away.
    """
    return since <= now + MAX_SKEW and now < until


def initial_state(state: RegistrationState, *, secrets: Container[str], candidate: str | None) -> DeliveryState | None:
    """Return the initial state of a new delivery.

    Args:
        state: the `effective_state` of its registration.
        secrets: the `candidate_id` of the registration's candidates, or of its secret once it is confirmed.
        candidate: `NewDelivery.candidate`.

    Returns:
        The state; ``None`` to refuse the delivery.
    """
    if state is RegistrationState.PENDING and candidate is not None and candidate in secrets:
        return DeliveryState.QUARANTINED
    if state is RegistrationState.CONFIRMED and (candidate is None or candidate in secrets):
        return DeliveryState.WAITING
    return None


def event_time(body: bytes) -> int:
    """Return when the first event of a delivery was created, in milliseconds since the epoch; 0 if it has no time.

    It depends on the body alone, so identical bodies have identical times. It reads the first ``created_at`` in the raw
    bytes, because the body need not be valid JSON.
    """
    found = _CREATED_AT.search(body)
    if found is None:
        return 0
    try:
        at = datetime.fromisoformat(found[1].decode())
        return max(0, round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        return 0


def minute_of(now: float) -> float:
    """Return a time rounded down to the minute."""
    return now - now % 60


def last_sign(registration: Registration) -> float:
    """Return when a webhook last showed that it exists: by a heartbeat, a delivery, or when it was opened."""
    return max(registration.opened_at, registration.last_heartbeat_at or 0.0, registration.last_delivery_at or 0.0)


def is_alone(unanswered: int) -> bool:
    """Return whether a delivery must run alone, given how many of its last attempts ended without an answer."""
    return unanswered >= 2


def add_done(before: Iterable[int], done: Iterable[int]) -> tuple[int, ...]:
    """Return the indices of the events that are done now, in ascending order."""
    added = [check_integer("done", index) for index in done]
    if min(added, default=0) < 0:
        raise ConfigurationError("done must contain indices of events, which are not negative")
    return tuple(sorted({*before, *added}))


def check_integer(name: str, value: Any) -> int:
    """Return *value*; raise `ConfigurationError` unless it is an integer of at most 64 bits, as stores require."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ConfigurationError(f"{name} must be an integer of at most 64 bits")
    return value


def check_state(state: str) -> DeliveryState:
    """Return *state* as a `DeliveryState`; raise `ConfigurationError` if there is no such state."""
    try:
        return DeliveryState(state)
    except ValueError:
        names = ", ".join(DeliveryState)
        raise ConfigurationError(f"state must be one of {names}, not {state!r:.80}") from None


def check_label(label: str) -> str:
    """Return *label*; raise `ConfigurationError` unless it is a text of at most 200 characters."""
    text: Any = label
    if not isinstance(text, str) or len(label) > _LONGEST_LABEL:
        raise ConfigurationError(f"label must be a text of at most {_LONGEST_LABEL} characters")
    check_texts(label)
    return label


def check_texts(*values: str | Secret) -> None:
    """Raise `ConfigurationError` if a value contains a lone surrogate, which no store can save."""
    if any(_SURROGATE.search(value.reveal() if isinstance(value, Secret) else value) for value in values):
        # Neither the value nor a chained UnicodeError: both may show a secret.
        raise ConfigurationError("the store cannot save one of the values given: it contains a lone surrogate")


def readable(error: str) -> str:
    """Return an error text that every store can save: lone surrogates and NUL become escapes."""
    return error.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
