"""Retry decisions: one pure function, and the policy that limits retries.

No other code of the client decides whether to retry. Reads, updates and deletes are safe to repeat, so the client
retries them. It retries creating a webhook only if Asana cannot have executed the request.
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

__all__ = ["SUCCEEDED", "Decision", "Outcome", "RetryPolicy", "decide", "parse_retry_after"]


def _check_count(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_count(attribute.name, value, zero=attribute.name == "budget")


def _check_function(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not callable(value):
        raise ConfigurationError(f"{attribute.name} must be a function, not {value!r:.80}")


def _check_seconds(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    # A wait may be 0; with a timeout of 0 every attempt would fail.
    check_seconds(attribute.name, value, zero=attribute.name.endswith("_wait"))


@frozen(kw_only=True)
class RetryPolicy:
    """Retry limits and backoff. All times are in seconds.

    The wait before attempt n+1 is random between 0 and ``min(longest_wait, first_wait * 2**(n-1))``. If ``Retry-After``
    asks for more, it is that plus up to 10 %. If the wait would pass the call's deadline, the call fails at once. A 429
    uses up no attempt, and the session's *slot_timeout* limits the pauses after it. A 401 uses up none if
    another token is requested.

    All calls of a session share a retry budget, so that many callers cannot worsen an outage. A retry costs 10 (5 after
    a 429, or 0 if an earlier 429 already pauses the session); a success returns 1. Once the budget is spent, failures
    are not retried.

    Raises:
        ConfigurationError: attempts below 1, a negative budget or wait, another time of 0 or less, or one not finite.
    """

    attempts: int = field(default=4, validator=_check_count)
    """Maximum number of attempts of one call, without those that use up none."""
    create_attempts: int = field(default=2, validator=_check_count)
    """The same for createWebhook, which is retried only if no webhook can have been created."""
    budget: int = field(default=100, validator=_check_count)
    """The size of the session's retry budget, which starts full."""
    first_wait: float = field(default=0.5, validator=_check_seconds)
    longest_wait: float = field(default=20.0, validator=_check_seconds)
    longest_pause: float = field(default=3600.0, validator=_check_seconds)
    """The longest pause of a session after a 429; a longer ``Retry-After`` is cut to this."""
    connect_timeout: float = field(default=10.0, validator=_check_seconds)
    """For opening one connection. With a session passed as *http*, DNS lookup and a proxy's answer to CONNECT
    are not included; only the attempt's timeout limits them."""
    attempt_timeout: float = field(default=30.0, validator=_check_seconds)
    """For one attempt, from connecting to the last byte of the answer."""
    create_attempt_timeout: float = field(default=45.0, validator=_check_seconds)
    """The same for createWebhook, because Asana waits for the handshake during the call."""
    clock: Callable[[], float] = field(default=time.monotonic, validator=_check_function, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, validator=_check_function, repr=False)
    random: Callable[[], float] = field(default=random.random, validator=_check_function, repr=False)
    """Returns a number from 0 to 1 for the jitter."""


@define(kw_only=True)  # not frozen: every attempt creates one, and frozen takes twice as long (1 of 17 µs)
class Outcome:
    """The outcome of one attempt. Treat it as immutable."""

    kind: Literal["answered", "not_sent", "lost", "refused", "garbled", "paused"]
    """``answered``: a valid answer. ``not_sent``: nothing was sent. ``lost``: sent and perhaps executed, no complete
    answer. ``refused``: a status outside 2xx. ``garbled``: 2xx with an invalid body. ``paused``: not tried, because a
    429 to another call pauses the session."""
    answer: Any = field(default=None, repr=False)
    status: int = 0
    retry_after: float | None = None
    """Seconds, as Asana asked; for ``paused``, the rest of the pause."""
    details: tuple[ErrorDetail, ...] = field(default=(), repr=False)
    sync: str | None = field(default=None, repr=False)
    """The sync token in a 412."""
    refusal: Literal["", "duplicate", "target"] = ""
    """For ``refused`` creates, read from Asana's messages: the webhook exists already, or Asana rejected the target."""
    problem: str = ""
    """For error messages; contains no secret."""
    cause: AsanaError | None = None
    """For ``not_sent``: the error the token provider raised, if it raised one."""
    malformed: bool = False
    """For ``garbled``: True if the body was cut off or is not JSON, so a retry may help."""
    repeated: bool = False
    """Whether aiohttp silently sent the request twice, so that this is the answer to the second copy."""

    @property
    def maybe_done(self) -> bool:
        """Whether Asana may have executed the request, or a copy of it."""
        was_refused = self.kind == "refused" and 400 <= self.status < 500
        return self.repeated or not (was_refused or self.kind in {"not_sent", "paused"})


Action = Literal["again", "renew", "raise", "succeeded", "unknown"]


@frozen
class Decision:
    """The next step after an attempt."""

    action: Action
    """``again``: retry after *wait*. ``renew``: retry at once with another token. ``succeeded``: return the answer.
    ``unknown``: raise `CreateOutcomeUnknownError`. ``raise``: raise the error for the outcome."""
    wait: float = 0.0
    """Seconds to wait before the retry."""
    paused: float = 0.0
    """The part of *wait* that is a pause after a 429, which *slot_timeout* bounds and not *timeout*."""
    pause: float = 0.0
    """Seconds for which no call of the session may send."""
    cost: int = 0
    """The amount to take from the session's retry budget; negative to return some."""
    reason: str = ""
    """For ``raise``: why a retryable failure is not retried, for the log."""


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
_COST_AFTER_429: Final = 5  # cheaper: Asana works, and states when to retry
_RETURNED: Final = 1
SUCCEEDED: Final = Decision("succeeded", cost=-_RETURNED)


def decide(
    operation: str,
    outcome: Outcome,
    *,
    attempt: int,
    refusals: int,
    maybe_done: bool,
    renewable: bool,
    pause_left: float,
    budget: int,
    time_left: float,
    slot_time_left: float,
    policy: RetryPolicy,
) -> Decision:
    """Decide the next step after an attempt.

    Args:
        operation: Asana's operation id.
        outcome: the outcome of the attempt.
        attempt: the number of the attempt, from 1; those answered 429, and a renewed 401, are not counted.
        refusals: how many attempts of the call were answered 429.
        maybe_done: whether Asana may have executed an earlier attempt of the same call.
        renewable: whether there may be another token to try after a 401.
        pause_left: seconds left of the pause after an earlier 429.
        budget: the rest of the session's retry budget.
        time_left: seconds left of the session's *timeout*.
        slot_time_left: seconds left of its *slot_timeout*, which bounds the pauses after a 429.
        policy: the limits.
    """
    happened = _classify(outcome, maybe_done=maybe_done, renewable=renewable)
    action = _TABLE[happened][_COLUMNS.get(operation, 0)]
    if operation == "createWebhook" and maybe_done and action != "succeeded":
        action = "unknown"  # an earlier attempt may have created it, even if this one did not
    if action == "succeeded":
        return SUCCEEDED
    waits = _times(outcome, attempt, refusals, pause_left, policy)
    if action != "again":
        return Decision(action, pause=waits.session)
    cost = _cost(outcome, paused=pause_left > 0)
    is_429 = happened in {"429", "paused"}  # it says nothing about the request, so it uses up no attempt
    own = waits.wait - waits.paused
    reason = ""
    if attempt >= (policy.create_attempts if operation == "createWebhook" else policy.attempts) and not is_429:
        reason = "no attempts left"
    elif own >= time_left:
        reason = f"waiting {own:.1f} seconds would pass the deadline"
    elif waits.paused >= slot_time_left and (is_429 or waits.paused):
        reason = f"a pause of {waits.paused:.1f} seconds would pass slot_timeout"
    elif cost > budget:
        reason = "the session's retry budget is exhausted"
    if reason:
        return Decision("raise", pause=waits.session, reason=reason)
    return Decision("again", waits.wait, waits.paused, pause=waits.session, cost=cost)


def _classify(outcome: Outcome, *, maybe_done: bool, renewable: bool) -> str:
    if outcome.kind == "refused":
        return _classify_status(outcome.status, maybe_done=maybe_done, renewable=renewable)
    if outcome.kind == "garbled":
        return "2xx, malformed" if outcome.malformed else "2xx, mistyped"
    return {"answered": "answered", "paused": "paused", "not_sent": "nothing sent", "lost": "no whole answer"}[
        outcome.kind
    ]


def _classify_status(status: int, *, maybe_done: bool, renewable: bool) -> str:
    if status == 429:
        return "429"
    if status == 401 and renewable:
        return "401, token renewable"
    if status == 404 and maybe_done:
        return "404 after a repeat"
    # A 1xx or a status outside HTTP says as little about the outcome as a 5xx.
    return "other status" if 300 <= status < 500 else "5xx"


@frozen
class _Waits:
    wait: float
    """How long to wait before the call is retried."""
    paused: float
    """The part of it that is a pause after a 429."""
    session: float
    """How long the whole session pauses from now on."""


def _times(outcome: Outcome, attempt: int, refusals: int, pause_left: float, policy: RetryPolicy) -> _Waits:
    chance = policy.random()
    is_429 = outcome.kind == "refused" and outcome.status == 429
    backoff = chance * min(
        policy.longest_wait, policy.first_wait * 2.0 ** min((refusals if is_429 else attempt) - 1, 60)
    )
    if outcome.kind == "paused":
        backoff = 0.0
    asked = 0.0 if outcome.retry_after is None else min(outcome.retry_after, policy.longest_pause)
    # Not before the time Asana gave this call or another; the jitter keeps callers from retrying together.
    late = 1 + chance / 10
    wait = max(backoff, max(asked, pause_left) * late)
    if is_429:
        return _Waits(wait, paused=wait, session=backoff if outcome.retry_after is None else asked)
    return _Waits(wait, paused=wait if outcome.kind == "paused" else pause_left * late, session=0.0)


def _cost(outcome: Outcome, *, paused: bool) -> int:
    if outcome.kind == "paused":
        return 0
    if outcome.kind == "refused" and outcome.status == 429:
        return 0 if paused else _COST_AFTER_429  # requests in flight together all get a 429 for the same reason
    return _COST


def parse_retry_after(values: Sequence[str], date: str | None) -> float | None:
    """Read the ``Retry-After`` headers of an answer as seconds; ``None`` if missing or invalid.

    Args:
        values: all values of the header. More than one are invalid.
        date: the answer's own ``Date``; an HTTP-date counts from it, because local clocks may be wrong.

    Source: https://developers.asana.com/docs/rate-limits (whole seconds; the other forms are HTTP's)
    """
    if len(values) != 1:
        return None
    value = values[0].strip()
    is_number = re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)  # float() alone accepts more
    seconds = float(value) if is_number else _seconds_between(date, value)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_between(start: str | None, end: str) -> float:
    try:
        return (parsedate_to_datetime(end) - parsedate_to_datetime(start or "")).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
