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
from attrs import define, field, frozen

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.wire import ErrorDetail

__all__ = ["Decision", "Outcome", "RetryPolicy", "decide", "parse_retry_after"]


def _check_count(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_count(attribute.name, value, zero=attribute.name == "budget")


def _check_function(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not callable(value):
        raise ConfigurationError(f"{attribute.name} must be a function, not {value!r:.80}")


def _check_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    # A wait of nothing is fine; a time limit of nothing would let nothing happen.
    check_seconds(attribute.name, value, zero=attribute.name.endswith("_wait"))


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how patiently a session sends again. All times are in seconds.

    The wait before attempt n+1 is random between 0 and ``min(longest_wait, first_wait * 2**(n-1))``; if Asana asked for
    more with ``Retry-After``, it is that plus up to a tenth. A wait that would pass the call's deadline is not begun.

    All calls of a session share a retry budget, so that many callers cannot make an outage of Asana's worse:
    sending again takes 10 from it (5 after a 429, nothing if the session was paused already), a success gives 1 back,
    and what it cannot pay is not sent again.

    Raises:
        ConfigurationError: a number of attempts below 1, a budget below 0, or a time that is negative or not finite.
    """

    attempts: int = field(default=4, validator=_check_count)
    """How often one call is sent at the most."""
    create_attempts: int = field(default=2, validator=_check_count)
    """The same for createWebhook, which is repeated only when nothing can have been created."""
    budget: int = field(default=100, validator=_check_count)
    """What the session's retry budget holds when it is full, as it is in the beginning."""
    first_wait: float = field(default=0.5, validator=_check_seconds)
    longest_wait: float = field(default=20.0, validator=_check_seconds)
    longest_pause: float = field(default=3600.0, validator=_check_seconds)
    """The longest pause for all calls of a session that a 429 can ask for; a longer ``Retry-After`` counts as this."""
    connect_timeout: float = field(default=10.0, validator=_check_seconds)
    """For one connection to be made. With a lent http session looking up the name, and a proxy's answer to
    CONNECT, count as part of the attempt."""
    attempt_timeout: float = field(default=30.0, validator=_check_seconds)
    """For one attempt, from sending to the last byte of the answer."""
    create_attempt_timeout: float = field(default=45.0, validator=_check_seconds)
    """The same for createWebhook, because Asana waits for the handshake inside the call."""
    clock: Callable[[], float] = field(default=time.monotonic, validator=_check_function, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, validator=_check_function, repr=False)
    random: Callable[[], float] = field(default=random.random, validator=_check_function, repr=False)
    """Returns a number from 0 to 1 for the jitter."""


@define(kw_only=True)  # every attempt makes one, and to make it frozen would take twice as long (1 of 17 µs)
class Outcome:
    """What one attempt came to. Nobody changes it."""

    kind: Literal["answered", "not_sent", "lost", "refused", "garbled", "paused"]
    """``answered``: a good answer. ``not_sent``: nothing left this machine. ``lost``: sent, perhaps executed, no whole
    answer. ``refused``: a status outside 2xx. ``garbled``: 2xx with a body that cannot be used. ``paused``: not even
    tried, because a 429 to another call pauses the whole session."""
    answer: Any = field(default=None, repr=False)
    status: int = 0
    retry_after: float | None = None
    """Seconds, as Asana asked; for ``paused``, what is left of the pause."""
    details: tuple[ErrorDetail, ...] = field(default=(), repr=False)
    refusal: Literal["", "duplicate", "target"] = ""
    """For ``refused``, where the status alone does not say it: this webhook exists, or its target did not agree."""
    problem: str = ""
    """For error texts; names no secret."""
    cause: AsanaError | None = None
    """For ``not_sent``: the error that says why, if there is one already."""
    malformed: bool = False
    """For ``garbled``: True if it was cut off or no JSON, so that asking again may help."""

    @property
    def not_executed(self) -> bool:
        """Whether the answer tells that Asana did not do what it was asked."""
        return self.kind == "refused" and 400 <= self.status < 500


Action = Literal["again", "renew", "raise", "succeeded", "unknown"]


@frozen
class Decision:
    """What to do after an attempt."""

    action: Action
    """``again``: send again after *wait*. ``renew``: send again at once, with another token. ``succeeded``: return the
    answer. ``unknown``: raise that nobody knows whether it was executed. ``raise``: raise what the outcome says."""
    wait: float = 0.0
    """Seconds to wait before sending again."""
    pause: float = 0.0
    """Seconds for which no call of the session may send."""
    cost: int = 0
    """What to take from the session's retry budget; negative to give back."""
    reason: str = ""
    """For ``raise``: why something that is worth repeating is not repeated, for the log."""


_TABLE: Final[Mapping[str, tuple[Action, Action, Action]]] = {
    # what happened          get, list, update  delete       create
    "answered":             ("succeeded",       "succeeded", "succeeded"),
    "paused":               ("again",           "again",     "again"),
    "nothing sent":         ("again",           "again",     "again"),
    "429":                  ("again",           "again",     "again"),
    "401, token renewable": ("renew",           "renew",     "renew"),
    "5xx":                  ("again",           "again",     "unknown"),
    "no whole answer":      ("again",           "again",     "unknown"),
    "2xx, malformed":       ("again",           "succeeded", "unknown"),
    "2xx, mistyped":        ("raise",           "succeeded", "unknown"),
    "404 after a repeat":   ("raise",           "succeeded", "unknown"),
    "other status":         ("raise",           "raise",     "raise"),
}  # fmt: skip
_COLUMNS: Final = {"deleteWebhook": 1, "createWebhook": 2}

_COST: Final = 10
_COST_AFTER_429: Final = 5  # cheaper: Asana is well, and has said when to come back
_GIVEN_BACK: Final = 1
_SUCCEEDED: Final = Decision("succeeded", cost=-_GIVEN_BACK)


def decide(
    operation: str,
    outcome: Outcome,
    *,
    attempt: int,
    maybe_done: bool,
    renewable: bool,
    pause_left: float,
    budget: int,
    time_left: float,
    policy: RetryPolicy,
) -> Decision:
    """Decide what follows from an attempt.

    Args:
        operation: Asana's operation id.
        outcome: what the attempt came to.
        attempt: which one it was, from 1.
        maybe_done: whether an earlier sending of the same call may have been executed.
        renewable: whether there may be another token to try, should Asana refuse this one.
        pause_left: seconds for which an earlier 429 still pauses the session.
        budget: what is left of the session's retry budget.
        time_left: seconds until the call's deadline.
        policy: the bounds.
    """
    happened = _what_happened(outcome, maybe_done=maybe_done, renewable=renewable)
    action = _TABLE[happened][_COLUMNS.get(operation, 0)]
    if operation == "createWebhook" and maybe_done and action != "succeeded":
        action = "unknown"  # the first copy may have created it, whatever came of the second
    if action == "succeeded":
        return _SUCCEEDED
    wait, pause = _times(outcome, attempt, pause_left, policy)
    if action != "again":
        return Decision(action, pause=pause)
    attempts = policy.create_attempts if operation == "createWebhook" else policy.attempts
    paused = outcome.kind == "paused"  # nothing was sent, so nothing is counted
    cost = _cost(outcome, paused=pause_left > 0)
    if attempt >= attempts and not paused:
        return Decision("raise", pause=pause, reason="no attempt is left")
    if wait >= time_left:
        return Decision("raise", pause=pause, reason=f"waiting {wait:.1f} seconds would pass the deadline")
    if cost > budget:
        return Decision("raise", pause=pause, reason="the session's retry budget is exhausted")
    return Decision("again", wait, pause=pause, cost=cost)


def _what_happened(outcome: Outcome, *, maybe_done: bool, renewable: bool) -> str:
    if outcome.kind == "refused":
        return _what_was_said(outcome.status, maybe_done=maybe_done, renewable=renewable)
    if outcome.kind == "garbled":
        return "2xx, malformed" if outcome.malformed else "2xx, mistyped"
    return {"answered": "answered", "paused": "paused", "not_sent": "nothing sent", "lost": "no whole answer"}[
        outcome.kind
    ]


def _what_was_said(status: int, *, maybe_done: bool, renewable: bool) -> str:
    if status == 429:
        return "429"
    if status == 401 and renewable:
        return "401, token renewable"
    if status == 404 and maybe_done:
        return "404 after a repeat"
    # What HTTP does not know, or not as a last word, tells as little as a 5xx.
    return "other status" if 300 <= status < 500 else "5xx"


def _times(outcome: Outcome, attempt: int, pause_left: float, policy: RetryPolicy) -> tuple[float, float]:
    """Return for how long this call waits before it is sent again, and for how long a 429 pauses the whole session."""
    chance = policy.random()
    backoff = chance * min(policy.longest_wait, policy.first_wait * 2.0 ** min(attempt - 1, 60))
    if outcome.kind == "paused":
        backoff = 0.0
    asked = 0.0 if outcome.retry_after is None else min(outcome.retry_after, policy.longest_pause)
    # Never before Asana said, to this call or another, and not all callers in the same moment.
    wait = max(backoff, max(asked, pause_left) * (1 + chance / 10))
    if outcome.kind != "refused" or outcome.status != 429:
        return wait, 0.0
    return wait, backoff if outcome.retry_after is None else asked


def _cost(outcome: Outcome, *, paused: bool) -> int:
    if outcome.kind == "paused":
        return 0
    if outcome.kind == "refused" and outcome.status == 429:
        return 0 if paused else _COST_AFTER_429  # all that were in flight hear of the same trouble
    return _COST


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
