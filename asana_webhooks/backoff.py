"""How long a failed delivery waits for its next attempt, and the checks of a worker's numbers. Decisions only."""

import math
import random
from collections.abc import Callable
from typing import Any

import attrs
from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError

__all__ = ["Backoff", "check_count", "check_seconds"]


def check_seconds(name: str, value: Any, *, or_none_at_all: bool = False) -> None:
    """Refuse what is no finite number of seconds above 0 (or 0, with *or_none_at_all*).

    Raises:
        ConfigurationError: *value* is not.
    """
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0 or not (value or or_none_at_all):
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {value!r:.80}")


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        ConfigurationError: *value* is not.
    """
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r:.80}")


def _is_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_seconds(attribute.name, value)


@frozen(kw_only=True)
class Backoff:
    """How long a failed delivery waits for its next attempt; times are in seconds.

    The wait after attempt n is random between half and all of ``min(longest, first * 2**(n-1))``.
    """

    first: float = field(default=1.0, validator=_is_seconds)
    longest: float = field(default=3600.0, validator=_is_seconds)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def after(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number *attempt*, counted from 1."""
        full = min(self.longest, self.first * 2.0 ** min(attempt - 1, 60))
        return full * (0.5 + self.random() / 2)
