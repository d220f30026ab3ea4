"""Scripted faults: `Fault`, the script that decides which requests they apply to, and holds that stop requests."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Final

from attrs import Attribute, define, field, frozen

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.world import check_text

__all__ = ["TOKEN_REQUEST", "Fault", "FaultScript", "Hold", "Plan"]

OPERATIONS: Final = (
    *("createWebhook", "getWebhook", "getWebhooks", "updateWebhook", "deleteWebhook"),
    *("getProjects", "getWorkspaces", "readResource"),
)
"""Asana's operation ids; ``readResource`` stands for getTask, getProject and so on."""

TOKEN_REQUEST: Final = "oauth_token"  # noqa: S105 (a name)
"""The name of requests to the token endpoint; Asana has no operation id for them."""

_CREATE_ONLY: Final = ("wrong_secret", "no_secret", "skip_handshake", "early_event")
_ON_OPERATIONS: Final = ("answer", "reset", "lose_answer", "truncate", "delay")
_ON_DELIVERIES: Final = ("duplicate", "lose", "tamper", "forge", "delay")
_KINDS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("*", *OPERATIONS, TOKEN_REQUEST), _ON_OPERATIONS),
    "createWebhook": (*_ON_OPERATIONS, *_CREATE_ONLY),
    "handshake": ("stranger", "drop", "duplicate", "delay"),
    "delivery": _ON_DELIVERIES,
    "heartbeat": _ON_DELIVERIES,
}
# Several of these can apply to one request. The other kinds decide how it ends, so only one of them applies.
_MODIFIERS: Final = ("delay", "stranger", "early_event", "skip_handshake")
_MOMENTS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("*", *OPERATIONS, TOKEN_REQUEST), ("before", "before_answer")),
    "createWebhook": ("before", "after_handshake", "before_answer"),
    "handshake": ("before", "after"),
    "delivery": ("before",),
    "heartbeat": ("before",),
}

# https://www.rfc-editor.org/rfc/rfc9110#name-tokens and #name-field-values; non-ASCII characters are sent as UTF-8
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
# The server sets these, to match the body it sends; the fault to break an answer is ``truncate``.
_FRAMING: Final = ("content-length", "transfer-encoding")

_Check = Callable[[object, "Attribute[Any]", Any], None]


def _check_header(name: str, value: str, *, header: str = "X") -> None:
    if not _NAME.fullmatch(header) or header.lower() in _FRAMING:
        raise ConfigurationError(f"{name} cannot include a header named {header!r:.80}")
    if not _VALUE.fullmatch(value):
        raise ConfigurationError(f"{name} has an invalid header value: {value!r:.80}")
    check_text(name, value)


def _is_retry_after(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise ConfigurationError(f"{attribute.name} must be a string or a number, not {value!r:.80}")
    _check_header(attribute.name, str(value))


def _is(kind: type | UnionType) -> _Check:
    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and attribute.default is None:
            return
        if not isinstance(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else kind
            raise ConfigurationError(f"{attribute.name} must be of type {wanted}, not {value!r:.80}")
        if isinstance(value, str):
            check_text(attribute.name, value)

    return check


def _is_number(least: float, most: float = float("inf"), *, whole: bool = True, optional: bool = False) -> _Check:
    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and optional:
            return
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= value <= most or value == float("inf"):
            kind = "whole number" if whole else "number"
            bounds = f"of at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
            raise ConfigurationError(f"{attribute.name} must be a {kind} {bounds}, not {value!r:.80}")

    return check


def _is_headers(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ConfigurationError(f"{attribute.name} must be a mapping of strings to strings, not {value!r:.80}")
    for header, text in value.items():
        _check_header(attribute.name, text, header=header)


@frozen(kw_only=True)
class Fault:
    """One fault: which requests it applies to, what it does, and how often. All other requests succeed.

    For an operation of the API (``at="createWebhook"`` …, or ``"*"`` for any) and for requests to the
    token endpoint (``at="oauth_token"``), `do` is one of

    - ``answer`` (the default): answer with `status` in Asana's error envelope, or with `body` and `headers` as given.
      The operation is not executed, unless ``executed=True``;
    - ``reset``: reset the connection without executing the operation;
    - ``lose_answer``: execute it, then close the connection without an answer;
    - ``truncate``: execute it, then cut the answer off after `size` bytes of its body;
    - ``delay``: wait `seconds` first, or ``when="before_answer"``.

    For ``createWebhook`` also

    - ``wrong_secret``: the 201 has another secret (`secret`, or a random one);
    - ``no_secret``: the 201 has no secret;
    - ``skip_handshake``: the webhook is created without a handshake;
    - ``early_event``: an event of the webhook's resource is delivered before the 201.

    For ``at="handshake"``

    - ``stranger``: someone else posts a handshake with another `secret` (or a random one) to the same target, before
      the real one or ``when="after"`` it;
    - ``drop``: the handshake never arrives, so that the create call fails;
    - ``duplicate``: the same handshake arrives twice;
    - ``delay``: it is sent `seconds` later.

    For ``at="delivery"`` (with events) and ``at="heartbeat"`` (without)

    - ``duplicate``: once accepted, the same bytes are sent again;
    - ``lose``: it is never sent, and the fake counts it as accepted;
    - ``tamper``: the body is changed after signing (to `body`, if given). If it is refused, the true one follows;
    - ``forge``: it is signed with another secret (`secret`, or a random one). If it is refused, the true one follows;
    - ``delay``: it is sent `seconds` later.

    The first fault that matches a request applies to it. ``delay``, ``stranger``, ``early_event`` and
    ``skip_handshake`` apply in addition.

    Raises:
        ConfigurationError: a value is invalid, or *do* or *when* does not fit *at*; the message says which.
    """

    at: str = field(validator=_is(str))
    """Which requests: an operation id, ``*``, ``oauth_token``, ``handshake``, ``delivery`` or ``heartbeat``."""
    do: str = field(default="answer", validator=_is(str))
    """The kind of fault: see above."""
    times: int | None = field(default=1, validator=_is_number(1, optional=True))
    """How many requests to apply it to; ``None`` for all."""
    after: int = field(default=0, validator=_is_number(0))
    """How many matching requests to leave alone first."""
    webhook: str | None = field(default=None, validator=_is(str))
    """Only requests about the webhook with this gid. Creating, listing and handshakes have no gid and never match."""
    when: str = field(default="before", validator=_is(str))
    """For ``delay`` and ``stranger``: the moment."""

    status: int = field(default=500, validator=_is_number(200, 599))
    message: str | None = field(default=None, validator=_is(str))
    """The message in the error envelope; by default Asana's usual one for the status."""
    retry_after: str | float | None = field(default=None, validator=_is_retry_after)
    """The ``Retry-After`` header: seconds, or any string."""
    body: str | bytes | None = field(default=None, validator=_is(str | bytes))
    """Sent as given, instead of the error envelope or, with ``tamper``, instead of the true body."""
    headers: Mapping[str, str] = field(factory=dict, validator=_is_headers)
    """Additional headers, or another ``Content-Type``; ``Content-Length`` and ``Transfer-Encoding`` are refused."""
    executed: bool = field(default=False, validator=_is(bool))
    """For ``answer``: True to execute the operation before answering."""

    size: int = field(default=1, validator=_is_number(0))
    """For ``truncate``: how many bytes of the body to send."""
    seconds: float = field(default=0.0, validator=_is_number(0, whole=False))
    """For ``delay``: seconds of real time."""
    secret: str | None = field(default=None, repr=False, validator=_is(str))
    """For ``wrong_secret``, ``stranger`` and ``forge``: the secret to use, which may be empty."""

    def __attrs_post_init__(self) -> None:
        if self.at not in _KINDS:
            raise ConfigurationError(f"at must be one of {', '.join(_KINDS)}, not {self.at!r:.80}")
        if self.do not in _KINDS[self.at]:
            raise ConfigurationError(
                f"do for at={self.at!r} must be one of {', '.join(_KINDS[self.at])}, not {self.do!r:.80}"
            )
        _check_moment(self.at, self.when)


def _check_moment(at: str, when: str) -> None:
    if at not in _MOMENTS:
        raise ConfigurationError(f"at must be one of {', '.join(_MOMENTS)}, not {at!r:.80}")
    if when not in _MOMENTS[at]:
        raise ConfigurationError(f"when for at={at!r} must be one of {', '.join(_MOMENTS[at])}, not {when!r:.80}")


class Hold:
    """Stops requests at one moment until `release` is called; created by `FakeAsana.hold`."""

    def __init__(self, when: str, changed: Callable[[], None]) -> None:
        self.when = when
        """The moment at which it stops requests."""
        self.waiting = 0
        """How many requests wait now."""
        self._changed = changed
        self._arrived = 0
        self._arrival = asyncio.Event()
        self._released = asyncio.Event()

    async def reached(self, requests: int = 1) -> None:
        """Return once that many requests have arrived here, counting those already released."""
        while self._arrived < requests:
            self._arrival.clear()
            await self._arrival.wait()

    def release(self) -> None:
        """Let the waiting requests continue, and later ones pass."""
        self._released.set()

    @property
    def held(self) -> int:
        """How many requests wait for `release`."""
        return 0 if self._released.is_set() else self.waiting

    async def wait(self) -> None:
        """Wait until `release`; the fake calls this for each request it holds."""
        self.waiting += 1
        self._arrived += 1
        self._arrival.set()
        self._changed()
        try:
            await self._released.wait()
        finally:
            self.waiting -= 1


class Activity:
    """Counts the work in flight, and how much of it waits in holds."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []
        self._busy = 0
        self._closed = False
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Count one more request or delivery as in flight, until `end`."""
        self._busy += 1

    def end(self) -> None:
        """Stop counting one that `begin` counted."""
        self._busy -= 1
        self.changed()

    def changed(self) -> None:
        """Wake `settled`, after work has ended or begun to wait in a hold."""
        self._changed.set()

    def close(self) -> None:
        """Let `settled` return at once from now on."""
        self._closed = True
        self.changed()

    async def settled(self) -> None:
        """Return once nothing is in flight, except held requests."""
        while not self._closed and self._busy > sum(hold.held for hold in self.holds):
            self._changed.clear()
            await self._changed.wait()


@define
class _Scripted:
    effect: Fault | Hold
    at: str
    webhook: str | None
    times: int | None
    after: int = 0
    seen: int = 0
    applied: int = 0

    def matches(self, at: str, webhook: str | None) -> bool:
        """Count a request if `at` and `webhook` match, and return whether this applies to it."""
        if at != self.at and not (self.at == "*" and at in OPERATIONS):
            return False
        if self.webhook not in (None, webhook):
            return False
        self.seen += 1
        return self.seen > self.after and (self.times is None or self.applied < self.times)


@frozen
class Plan:
    """The faults and holds of one request."""

    fault: Fault | None = None
    """The one that decides how the request ends."""
    modifiers: tuple[Fault, ...] = ()
    holds: tuple[Hold, ...] = ()

    def find(self, do: str, when: str | None = None) -> Fault | None:
        """Return the fault of this kind, if there is one."""
        every = (*self.modifiers, *([self.fault] if self.fault else []))
        return next((one for one in every if one.do == do and when in (None, one.when)), None)

    async def wait(self, when: str) -> None:
        """Wait for the delay and the holds of this moment."""
        delay = self.find("delay", when)
        if delay is not None:
            await asyncio.sleep(delay.seconds)
        for hold in self.holds:
            if hold.when == when:
                await hold.wait()


class FaultScript:
    """The scripted faults and holds, each for requests after it was added; and a count of the work in flight."""

    def __init__(self) -> None:
        self.activity = Activity()
        self._scripted: list[_Scripted] = []

    def add(self, *faults: Fault) -> None:
        """Add faults, to happen in this order, after those added before."""
        for fault in faults:
            self._scripted.append(
                _Scripted(fault, at=fault.at, webhook=fault.webhook, times=fault.times, after=fault.after)
            )

    def hold(self, at: str, *, when: str, times: int | None, webhook: str | None) -> Hold:
        """Add a hold; see `FakeAsana.hold`."""
        _check_moment(at, when)
        hold = Hold(when, self.activity.changed)
        self.activity.holds.append(hold)
        self._scripted.append(_Scripted(hold, at=at, webhook=webhook, times=times))
        return hold

    def clear(self) -> None:
        """Remove all faults still to come, and release all holds."""
        self._scripted.clear()
        for hold in self.activity.holds:
            hold.release()

    def take(self, at: str, *, webhook: str | None = None) -> Plan:
        """Return the faults and holds of a new request, and count them as applied."""
        chosen: dict[object, Fault | Hold] = {}
        for scripted in self._scripted:
            if scripted.matches(at, webhook):
                effect = scripted.effect
                group: object = "fault"
                if isinstance(effect, Hold):
                    group = effect
                elif effect.do in _MODIFIERS:
                    group = (effect.do, effect.when)
                if group not in chosen:
                    chosen[group] = effect
                    scripted.applied += 1
        faults = [effect for effect in chosen.values() if isinstance(effect, Fault)]
        return Plan(
            fault=next((one for one in faults if one.do not in _MODIFIERS), None),
            modifiers=tuple(one for one in faults if one.do in _MODIFIERS),
            holds=tuple(effect for effect in chosen.values() if isinstance(effect, Hold)),
        )
