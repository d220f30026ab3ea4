"""Checks of numbers that people give us, the same everywhere. Decisions only."""

import sys
from typing import Any

from asana_webhooks.errors import ConfigurationError

__all__ = ["check_count", "check_seconds"]


def check_seconds(name: str, value: Any, *, zero: bool = True) -> float:
    """Return *value* if it is a finite number of seconds and not negative.

    Args:
        name: what it is called, for the error.
        value: what was given.
        zero: whether 0 is fine too.

    Raises:
        ConfigurationError: it is anything else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
        bound = "0 or more" if zero else "above 0"
        raise ConfigurationError(f"{name} must be a finite number of seconds, {bound}, not {value!r:.80}")
    return float(value)


def check_count(name: str, value: Any, *, zero: bool = False) -> int:
    """Return *value* if it is a whole number of at least 1.

    Args:
        name: what it is called, for the error.
        value: what was given.
        zero: whether 0 is fine too.

    Raises:
        ConfigurationError: it is anything else.
    """
    least = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    return value
