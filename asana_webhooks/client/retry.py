"""Whether to send again: one pure function over what happened, and the policy that bounds it.

Nothing else in the package decides whether to repeat. The rule behind the table: whatever can be repeated without
harm is repeated; creating a webhook is repeated only when the request cannot have been executed.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

import attrs
from attrs import field, frozen

from asana_webhooks.checks import check_count, check_seconds
from asana_webhooks.wire import ErrorDetail

__all__ = ["Outcome", "RetryPolicy", "Verdict", "parse_retry_after", "verdict"]


def _check_count(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_count(attribute.name, value)


def _check_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    # A wait of nothing is fine; a time limit of nothing would let nothing happen.
    check_seconds(attribute.name, value, zero=attribute.name.startswith("wait_"))


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how patiently a session sends again. All times are in seconds.

    The wait before attempt n+1 is random between 0 and ``min(wait_max, wait_initial * 2**(n-1))``; if Asana asked for
    more with ``Retry-After``, it is that plus up to a tenth. A wait that would pass the call's deadline is not begun.

    Raises:
        ConfigurationError: a number of attempts below 1, or a time that is negative or not finite.
    """

    attempts: int = field(default=4, validator=_check_count)
    """How often one call is sent at the most."""
    create_attempts: int = field(default=2, validator=_check_count)
    """The same for createWebhook, which is repeated only when nothing can have been created."""
    wait_initial: float = field(default=0.5, validator=_check_seconds)
    wait_max: float = field(default=20.0, validator=_check_seconds)
    connect_timeout: float = field(default=10.0, validator=_check_seconds)
    """For one connection to be made."""
    attempt_timeout: float = field(default=30.0, validator=_check_seconds)
    """For one attempt, from asking the token to the last byte of the answer."""
    create_attempt_timeout: float = field(default=45.0, validator=_check_seconds)
    """The same for createWebhook, because Asana waits for the handshake inside the call."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)
    """Returns a number from 0 to 1 for the jitter."""


@frozen(kw_only=True)
class Outcome:
    """What one attempt came to."""

    kind: Literal["answered", "not_sent", "lost", "refused", "garbled"]
    """``answered``: a good answer. ``not_sent``: nothing left this machine. ``lost``: sent, perhaps executed, no whole
    answer. ``refused``: a status outside 2xx. ``garbled``: 2xx with a body that cannot be used."""
    answer: Any = field(default=None, repr=False)
    status: int = 0
    retry_after: float | None = None
    """Seconds, as Asana asked."""
    details: tuple[ErrorDetail, ...] = field(default=(), repr=False)
    refusal: Literal["", "duplicate", "target"] = ""
    """For ``refused``, where the status alone does not say it: this webhook exists, or its target did not agree."""
    problem: str = ""
    """For error texts; names no secret."""
    malformed: bool = False
    """For ``garbled``: True if it was cut off or no JSON, so that asking again may help."""


Action = Literal["again", "raise", "succeeded", "unknown"]


@frozen
class Verdict:
    """What to do after an attempt."""

    action: Action
    wait: float = 0.0
    """Seconds to wait before sending again."""


_TABLE: Final[Mapping[str, tuple[Action, Action, Action]]] = {
    # what happened       get, list, update  delete       create
    "answered":           ("succeeded",      "succeeded", "succeeded"),
    "nothing sent":       ("again",          "again",     "again"),
    "429":                ("again",          "again",     "again"),
    "5xx":                ("again",          "again",     "unknown"),
    "no whole answer":    ("again",          "again",     "unknown"),
    "2xx, malformed":     ("again",          "succeeded", "unknown"),
    "2xx, mistyped":      ("raise",          "succeeded", "unknown"),
    "404 after a repeat": ("raise",          "succeeded", "raise"),
    "other status":       ("raise",          "raise",     "raise"),
}  # fmt: skip
_COLUMNS: Final = {"deleteWebhook": 1, "createWebhook": 2}


def verdict(
    operation: str,
    outcome: Outcome,
    *,
    attempt: int,
    maybe_done: bool,
    time_left: float,
    policy: RetryPolicy,
) -> Verdict:
    """Decide what follows from an attempt.

    Args:
        operation: Asana's operation id.
        outcome: what the attempt came to.
        attempt: which one it was, from 1.
        maybe_done: whether an earlier sending of the same call may have been executed.
        time_left: seconds until the call's deadline.
        policy: the bounds.
    """
    action = _TABLE[_what_happened(outcome, maybe_done=maybe_done)][_COLUMNS.get(operation, 0)]
    if action != "again":
        return Verdict(action)
    attempts = policy.create_attempts if operation == "createWebhook" else policy.attempts
    wait = _wait(outcome.retry_after, attempt, policy)
    return Verdict("again", wait) if attempt < attempts and wait < time_left else Verdict("raise")


def _what_happened(outcome: Outcome, *, maybe_done: bool) -> str:
    match outcome:
        case Outcome(kind="refused", status=429):
            return "429"
        case Outcome(kind="refused", status=404) if maybe_done:
            return "404 after a repeat"
        case Outcome(kind="refused", status=status):
            return "5xx" if status >= 500 else "other status"
        case Outcome(kind="garbled", malformed=malformed):
            return "2xx, malformed" if malformed else "2xx, mistyped"
    return {"answered": "answered", "not_sent": "nothing sent", "lost": "no whole answer"}[outcome.kind]


def _wait(retry_after: float | None, attempt: int, policy: RetryPolicy) -> float:
    chance = policy.random()
    wait = chance * min(policy.wait_max, policy.wait_initial * 2.0 ** min(attempt - 1, 60))
    return wait if retry_after is None else max(wait, retry_after * (1 + chance / 10))


def parse_retry_after(values: Sequence[str], date: str | None) -> float | None:
    """Read the ``Retry-After`` headers of an answer as seconds; ``None`` if there is none or it makes no sense.

    Args:
        values: all values of the header. More than one make no sense.
        date: the answer's own ``Date``, which an HTTP-date is counted from, because local clocks lie.

    Source: https://developers.asana.com/docs/rate-limits (whole seconds; the rest is HTTP's own)
    """
    if len(values) != 1:
        return None
    value = values[0].strip()
    is_number = re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)  # float() alone takes more than that
    seconds = float(value) if is_number else _seconds_between(date, value)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_between(start: str | None, end: str) -> float:
    try:
        return (parsedate_to_datetime(end) - parsedate_to_datetime(start or "")).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
