"""What every store decides in the same way, as plain functions: no storage, clock or randomness in here."""

import enum
import math
from collections.abc import Container

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import RegistrationState, candidate_id

__all__ = ["UNFINISHED", "DeliveryState", "check_seconds", "landing", "readable"]


class DeliveryState(enum.StrEnum):
    """Where a delivery stands. Sources speak of waiting; a store splits it, so that claiming need not look far."""

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


UNFINISHED = (DeliveryState.WAITING, DeliveryState.DELAYED, DeliveryState.LEASED)


def landing(
    state: RegistrationState, *, secret: Secret | None, candidates: Container[str], candidate: str | None
) -> DeliveryState | None:
    """Decide where a new delivery goes.

    Args:
        state: of its registration.
        secret: the registration's secret, once it is confirmed.
        candidates: the registration's `candidate_id` values, while it is pending.
        candidate: `NewDelivery.candidate`.

    Returns:
        The state it starts in; ``None`` to refuse it.
    """
    if state is RegistrationState.PENDING and candidate is not None and candidate in candidates:
        return DeliveryState.QUARANTINED
    if state is RegistrationState.CONFIRMED and secret is not None and candidate in {None, candidate_id(secret)}:
        return DeliveryState.WAITING
    return None


def check_seconds(name: str, value: float) -> float:
    """Return *value*, a number of seconds; a negative or infinite one is a `ConfigurationError`."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(f"{name} must be a finite number of seconds and not negative, not {value!r}")
    return value


def readable(error: str) -> str:
    """Return the text of an error in a form every store can keep: lone surrogates and NUL become escapes."""
    return error.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
