"""How long a failed delivery waits for its next attempt. Decisions only."""

import random
from collections.abc import Callable
from typing import Any

import attrs
from attrs import field, frozen

from asana_webhooks._checks import check_seconds

__all__ = ["Backoff"]


def _is_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_seconds(attribute.name, value, zero=False)


@frozen(kw_only=True)
class Backoff:
    """How long a failed delivery waits for its next attempt; times are in seconds.

    The wait after attempt n is random between half and all of ``min(longest_wait, first_wait * 2**(n-1))``.
    """

    first_wait: float = field(default=1.0, validator=_is_seconds)
    longest_wait: float = field(default=3600.0, validator=_is_seconds)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def after(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number *attempt*, counted from 1."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        return full * (0.5 + self.random() / 2)
