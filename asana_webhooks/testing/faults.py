"""The word for one thing that goes wrong: `Fault`. `asana_webhooks.testing.script` says when it is its turn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import Attribute, field, frozen

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.texts import check_header, check_text

__all__ = ["BESIDES", "OPERATIONS", "TOKEN_REQUEST", "Fault", "check_moment"]

OPERATIONS: Final = ("createWebhook", "getWebhook", "getWebhooks", "updateWebhook", "deleteWebhook")

TOKEN_REQUEST: Final = "oauth_token"  # noqa: S105 (a name)
"""What a request to the token endpoint is called; Asana has no operation id for it."""

_CREATE_ONLY: Final = ("wrong_secret", "no_secret", "skip_handshake", "early_event")
_ON_OPERATIONS: Final = ("answer", "reset", "lose_answer", "truncate", "delay")
_ON_DELIVERIES: Final = ("duplicate", "lose", "reorder", "tamper", "forge", "delay")
_KINDS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("*", *OPERATIONS, TOKEN_REQUEST), _ON_OPERATIONS),
    "createWebhook": (*_ON_OPERATIONS, *_CREATE_ONLY),
    "handshake": ("stranger", "drop", "duplicate", "delay"),
    "delivery": _ON_DELIVERIES,
    "heartbeat": _ON_DELIVERIES,
}
# These change how a request goes on; of the others, which decide how it ends, only one applies to each request.
BESIDES: Final = ("delay", "stranger", "early_event", "skip_handshake")
_MOMENTS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("*", *OPERATIONS, TOKEN_REQUEST), ("before", "before_answer")),
    "createWebhook": ("before", "after_handshake", "before_answer"),
    "handshake": ("before", "after"),
    "delivery": ("before",),
    "heartbeat": ("before",),
}


def _is_retry_after(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise ConfigurationError(f"{attribute.name} must be a text or a number, not {value!r:.80}")
    check_header(attribute.name, str(value))


def _is(kind: type) -> Callable[[object, "Attribute[Any]", Any], None]:
    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and attribute.default is None:
            return
        if not isinstance(value, kind):
            raise ConfigurationError(f"{attribute.name} must be of type {kind.__name__}, not {value!r:.80}")
        if isinstance(value, str):
            check_text(attribute.name, value)

    return check


def _is_number(least: float, *, whole: bool = True) -> Callable[[object, "Attribute[Any]", Any], None]:
    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= value < float("inf"):
            kind = "whole number" if whole else "number"
            raise ConfigurationError(f"{attribute.name} must be a {kind} from {least:g} up, not {value!r:.80}")

    return check


def _is_times(fault: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None:
        _is_number(1)(fault, attribute, value)


def _is_headers(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ConfigurationError(f"{attribute.name} must be names with texts, not {value!r:.80}")
    for header, text in value.items():
        check_header(attribute.name, text, header=header)


@frozen(kw_only=True)
class Fault:
    """One thing that goes wrong, where, and how often. Requests that are not named go well.

    For an operation of the API (``at="createWebhook"`` …, or ``"*"`` for any of the five) and for requests to the
    token endpoint (``at="oauth_token"``), `do` is one of

    - ``answer`` (the default): answer with `status` instead of doing it, in Asana's error envelope, or with `body`,
      `headers` and `content_type` as they are; with ``executed=True`` it is done first all the same;
    - ``reset``: reset the connection, nothing done;
    - ``lose_answer``: do it, then close the connection without an answer;
    - ``truncate``: do it, then cut the answer off after `size` bytes of its body;
    - ``delay``: wait `seconds` first, or ``when="before_answer"``.

    For ``createWebhook`` also

    - ``wrong_secret``: the 201 names another secret (`secret`, or a random one);
    - ``no_secret``: the 201 names none;
    - ``skip_handshake``: the webhook is created without a handshake;
    - ``early_event``: an event of the webhook's resource is delivered before the 201.

    For ``at="handshake"``

    - ``stranger``: someone else posts a handshake with another `secret` (or a random one) to the same target, before
      the real one or ``when="after"`` it;
    - ``drop``: the handshake never arrives, so that the create call fails;
    - ``duplicate``: the same handshake arrives twice;
    - ``delay``: it comes `seconds` later.

    For ``at="delivery"`` (with events) and ``at="heartbeat"`` (without)

    - ``duplicate``: once accepted, the same bytes are sent again;
    - ``lose``: it is never sent, and Asana does not know;
    - ``reorder``: the webhook's next delivery goes first; a retry is sent as if nothing were said;
    - ``tamper``: the body is changed after signing (to `body`, if given); once refused, the true one follows;
    - ``forge``: it is signed with another secret (`secret`, or a random one); once refused, the true one follows;
    - ``delay``: it comes `seconds` later.

    For each request the first fault that fits decides; ``delay``, ``stranger``, ``early_event`` and
    ``skip_handshake`` apply besides.

    Raises:
        ConfigurationError: the members do not fit together; the message says which.
    """

    at: str = field(validator=_is(str))
    """Which requests: an operation id, ``*``, ``oauth_token``, ``handshake``, ``delivery`` or ``heartbeat``."""
    do: str = field(default="answer", validator=_is(str))
    """What happens to them."""
    times: int | None = field(default=1, validator=_is_times)
    """How many of them; ``None`` for all."""
    after: int = field(default=0, validator=_is_number(0))
    """How many go well first."""
    webhook: str | None = field(default=None, validator=_is(str))
    """Only requests about the webhook with this gid; not for creating, handshakes and listing, which have no gid."""
    when: str = field(default="before", validator=_is(str))
    """For ``delay`` and ``stranger``: the moment."""

    status: int = field(default=500, validator=_is_number(200))
    message: str | None = field(default=None, validator=_is(str))
    """Asana's sentence in the error envelope; by default the usual one for the status."""
    phrase: str | None = field(default=None, validator=_is(str))
    """The words for Asana's support; by default some with a 500."""
    retry_after: str | float | None = field(default=None, validator=_is_retry_after)
    """``Retry-After``: seconds, or any text."""
    body: str | bytes | None = field(default=None)
    """Sent as it is, instead of the error envelope or, with ``tamper``, of the true body."""
    headers: Mapping[str, str] = field(factory=dict, validator=_is_headers)
    """They count for more than `content_type`; none may say how long the answer is."""
    content_type: str = field(default="application/json; charset=UTF-8", validator=_is(str))
    executed: bool = field(default=False, validator=_is(bool))
    """For ``answer``: whether the operation is carried out although the answer says otherwise."""

    size: int = field(default=1, validator=_is_number(0))
    """For ``truncate``: bytes of the body that arrive."""
    seconds: float = field(default=0.0, validator=_is_number(0, whole=False))
    """For ``delay``: seconds of real time."""
    secret: str | None = field(default=None, repr=False, validator=_is(str))
    """For the hostile ones: the secret they use, which may be empty."""

    def __attrs_post_init__(self) -> None:
        if self.at not in _KINDS:
            raise ConfigurationError(f"at must be one of {', '.join(_KINDS)}, not {self.at!r:.80}")
        if self.do not in _KINDS[self.at]:
            raise ConfigurationError(
                f"do at {self.at} must be one of {', '.join(_KINDS[self.at])}, not {self.do!r:.80}"
            )
        check_moment(self.at, self.when)
        check_header("content_type", self.content_type)
        if not isinstance(self.body, str | bytes | None):
            raise ConfigurationError(f"body must be a text or bytes, not {self.body!r:.80}")
        if isinstance(self.body, str):
            check_text("body", self.body)
        if self.status > 599:
            raise ConfigurationError(f"status must be between 200 and 599, not {self.status}")


def check_moment(at: str, when: str) -> None:
    """Check that requests *at* have the moment *when*.

    Raises:
        ConfigurationError: they do not; the message says which they have.
    """
    if at not in _MOMENTS:
        raise ConfigurationError(f"at must be one of {', '.join(_MOMENTS)}, not {at!r:.80}")
    if when not in _MOMENTS[at]:
        raise ConfigurationError(f"when at {at} must be one of {', '.join(_MOMENTS[at])}, not {when!r:.80}")
