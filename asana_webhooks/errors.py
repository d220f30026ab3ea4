"""The exceptions of this package, in one tree.

::

    AsanaError
    ├── ConfigurationError             the caller: a bad argument, setting or use (also a ValueError)
    │   └── UnusableHandlerError       a handler that cannot work with any delivery
    ├── ResponseError                  Asana answered with an error
    │   ├── BadRequestError            400
    │   ├── NotAuthorizedError         401
    │   │   └── TokenRefreshError      Asana refuses to refresh the access token
    │   ├── PaymentRequiredError       402
    │   ├── ForbiddenError             403
    │   │   ├── DuplicateWebhookError  403, this resource and target already have a webhook
    │   │   └── WebhookNotVisibleError 403, the store has this webhook, but the token cannot see it
    │   ├── TargetRejectedError        400 or 403, Asana rejected the target
    │   ├── NotFoundError              404
    │   ├── RateLimitedError           429
    │   ├── ServerError                5xx
    │   └── UnexpectedResponseError    the answer does not match Asana's documentation
    ├── PaginationError                pagination cannot continue; `reason` says why
    ├── NetworkError                   no usable answer arrived
    │   ├── ConnectionFailedError      refused, reset, cut off, unresolvable, bad TLS
    │   ├── DeadlineExceededError      the call's deadline passed
    │   └── CreateOutcomeUnknownError  the webhook may or may not exist now
    ├── HandshakeMismatchError         the 201 does not fit the handshakes
    ├── RegistrationClosedError        Asana answered after the registration was closed or expired
    ├── WebhookExistsError             the store has a live webhook for this resource and label
    ├── InvalidSignatureError          the signature of a delivery is missing or wrong
    ├── PayloadError                   invalid JSON, or JSON of the wrong shape
    ├── PermanentFailure               for handlers to raise: do not retry this delivery
    ├── HandlerExitError               a handler raised SystemExit
    └── StoreError                     a store operation failed
        ├── StoreUnavailableError      the store cannot be read or written now
        │   └── SecretUnavailableError a webhook's secret cannot be sealed or opened
        └── StoreFullError             too many calls are waiting, or a quarantine is full

No message and no ``repr`` shows an access token, a webhook's secret, a signature, a body or a target's endpoint.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal

import attrs

__all__ = [
    "AsanaError",
    "BadRequestError",
    "ConfigurationError",
    "ConnectionFailedError",
    "CreateOutcomeUnknownError",
    "DeadlineExceededError",
    "DuplicateWebhookError",
    "ForbiddenError",
    "HandlerExitError",
    "HandshakeMismatchError",
    "InvalidSignatureError",
    "NetworkError",
    "NotAuthorizedError",
    "NotFoundError",
    "PaginationError",
    "PayloadError",
    "PaymentRequiredError",
    "PermanentFailure",
    "RateLimitedError",
    "RegistrationClosedError",
    "ResponseError",
    "SecretUnavailableError",
    "ServerError",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "TargetRejectedError",
    "TokenRefreshError",
    "UnexpectedResponseError",
    "UnusableHandlerError",
    "WebhookExistsError",
    "WebhookNotVisibleError",
]


def _rebuild(kind: type["AsanaError"], args: tuple[Any, ...], fields: dict[str, Any]) -> "AsanaError":
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def describe(error: BaseException) -> str:
    """Return the text of an error of this package, and only the type of any other, whose text may show a secret."""
    return str(error) if isinstance(error, AsanaError) else type(error).__name__


class AsanaError(Exception):
    """The base class of all errors of this package."""

    def __reduce__(self) -> tuple[Callable[..., "AsanaError"], tuple[Any, ...]]:
        # Pickle rebuilds exceptions from positional arguments. Ours take keywords, so process pools need this.
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigurationError(AsanaError, ValueError):
    """An invalid argument or setting (raised before anything is sent), or a misuse of an object."""


class UnusableHandlerError(ConfigurationError):
    """A handler that cannot work with any delivery. It ends the worker's run, and the attempt does not count."""


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


@attrs.define(eq=False, kw_only=True, slots=False)
class ResponseError(AsanaError):
    """Asana answered a call with an error.

    Source: https://developers.asana.com/docs/errors
    """

    operation: str
    """Asana's operation id, such as ``createWebhook``."""
    status: int
    """The HTTP status of the answer."""
    messages: tuple[str, ...] = ()
    """Asana's error messages, one for each error in the answer."""
    help: str | None = None
    """Asana's hint on where to read more."""
    phrase: str | None = None
    """On some 500s: words that Asana's support can look the error up by."""
    code: str | None = None
    """Asana's code for the error, such as ``invalid_filters_for_larger_scoped_webhooks``. It is undocumented, and few
    answers have one, but it tells errors of one status apart."""
    sync: str | None = attrs.field(default=None, repr=False)
    """In a 412 of ``GET /events``: the sync token to go on with. Source:
    https://developers.asana.com/reference/getevents"""
    attempts: int = 1
    """Attempts made. 0 if Asana answered 429 to another call of the session, and the pause outlasts this call's
    deadline."""
    retry_after: float | None = None
    """Seconds to wait, as Asana asked; ``None`` if it did not ask."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return "See Asana's message for the cause."

    def __str__(self) -> str:
        said = "; ".join(message.rstrip(".") for message in self.messages) or "no message"
        phrase = f" (phrase for Asana's support: {self.phrase!r})" if self.phrase else ""
        wait = f" Asana asked to wait {self.retry_after:g} seconds." if self.retry_after is not None else ""
        to_whom = f"after {_times(self.attempts)}" if self.attempts else "to another call, so this was not sent"
        return f"{self.operation}: Asana answered {self.status} {to_whom}: {said}{phrase}.{wait} {self.advice}"


class BadRequestError(ResponseError):
    """400: a parameter is missing or malformed."""

    advice = "Check the arguments of the call."


class NotAuthorizedError(ResponseError):
    """401: the request carried no valid access token."""

    advice = "Check the access token: it may be mistyped, revoked, expired, or its app disabled in this workspace."


class TokenRefreshError(NotAuthorizedError):
    """Asana refuses to issue a new access token for the refresh token; retrying does not help.

    `code` is OAuth's, such as ``invalid_grant`` or ``invalid_client``. Source: https://developers.asana.com/docs/oauth
    """

    advice = "Let the user authorize the app again; for invalid_client, check client_id and client_secret."

    def __str__(self) -> str:
        said = "; ".join(message.rstrip(".") for message in self.messages) or "no message"
        return f"{self.operation}: Asana answered {self.status}, {self.code}: {said}. {self.advice}"


class PaymentRequiredError(ResponseError):
    """402: the workspace's plan does not include the feature."""

    advice = "The workspace's plan does not include this feature; upgrade the plan to use it."


class ForbiddenError(ResponseError):
    """403: the request was understood and refused."""

    advice = "Check that the token's user can see the resource, and that its scopes include webhooks."


class DuplicateWebhookError(ForbiddenError):
    """403: the same user, resource and target already have a webhook."""

    advice = "Delete the old webhook first, or create this one with another target."


@attrs.define(eq=False, kw_only=True, slots=False)
class WebhookNotVisibleError(ForbiddenError):
    """403: the store has a live webhook, but this token may not see it. It is left as it is, and not replaced."""

    webhook_gid: str
    """The gid of the webhook."""
    registration: str
    """The id of its registration."""

    def __str__(self) -> str:
        return (
            f"{super().__str__()} The store has webhook {self.webhook_gid:.40} (registration {self.registration:.12}), "
            "which is left as it is. Use a token of the app and user that created it, or another label."
        )


_HANDSHAKE_ADVICE: Final = {
    r"status code:? *404\b": (
        "Either the URL does not lead to the receiver's path (check public_url), or the receiver uses another store "
        "than ensure_webhook, or a proxy in between answered."
    ),
    r"status code:? *40[13]\b": (
        "A login page or a gateway in front of the receiver wants credentials: let this path through without a login, "
        "or put the gateway's key into the query of the URL. If the receiver's log says 'no signature', a proxy "
        "removes the header X-Hook-Secret."
    ),
    r"status code:? *3[0-9]{2}\b": (
        "The URL is redirected, and Asana follows no redirect: use the URL to which it leads."
    ),
    r"status code:? *2[0-9]{2}\b": (
        "Asana accepts only 200 and 204: find what answers in the receiver's place or changes its status."
    ),
    r"status code:? *[0-9]{3}\b": (
        "A proxy or another program answered, because the receiver is stopped or not running, or the path is not its "
        "own. If the receiver answered, its log says why."
    ),
    r"handshake secret": (
        "Something answers in the receiver's place, such as a login page, or a proxy removes the header X-Hook-Secret "
        "from the request or from the answer."
    ),
    # Asana's words for an unreachable target are unknown, so this must fit any other message.
    r"": (
        "Open the port before the create call: in aiohttp's on_startup or in an ASGI lifespan it is not open yet. "
        "Asana must reach the URL from the internet: no private address, no firewall, a valid certificate. The "
        "receiver must answer the handshake with 200 or 204 and the same X-Hook-Secret while the create call is open."
    ),
}
"""What to do if a handshake failed: the first one whose pattern is in Asana's message."""


class TargetRejectedError(ResponseError):
    """Asana rejected the target: it is unreachable, answered a wrong status, or did not echo the handshake's secret.

    The advice depends on what Asana says about the target.
    """

    @property
    def advice(self) -> str:
        """What to do about it."""
        said = " ".join(self.messages)
        return next(advice for pattern, advice in _HANDSHAKE_ADVICE.items() if re.search(pattern, said))


@attrs.define(eq=False, kw_only=True, slots=False)
class NotFoundError(ResponseError):
    """404: no such webhook, or no such route."""

    base_url: str = attrs.field(default="", repr=False)
    """The base URL of the request, if the answer does not say that an object is missing."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.base_url and not self.base_url.endswith("/api/1.0"):
            return f"The base URL {self.base_url} lacks /api/1.0; Asana's is https://app.asana.com/api/1.0."
        return "Check the gid: the object may have been deleted, or belong to another app or user."


class RateLimitedError(ResponseError):
    """429: too many requests with this token."""

    advice = "Send fewer requests: give the session a limiter."


class ServerError(ResponseError):
    """5xx: an error on Asana's side."""

    advice = "Retry later; if the error persists, give the phrase to Asana's support."


@attrs.define(eq=False, kw_only=True, slots=False)
class UnexpectedResponseError(ResponseError):
    """An answer that does not match Asana's documentation: not JSON, a wrong type, a redirect, cut off, or too long."""

    problem: str
    """What is wrong, with its place in the JSON if there is one."""

    def __str__(self) -> str:
        return (
            f"{self.operation}: Asana's answer with status {self.status} cannot be used "
            f"({_times(self.attempts)}): {self.problem}. Check that the base URL is Asana's API and that no proxy "
            "answers in its place."
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class PaginationError(AsanaError):
    """Iterating over the pages of a list cannot continue.

    Source: https://developers.asana.com/docs/pagination ("an offset token will expire after some time")
    """

    reason: Literal["expired", "repeated", "endless"]
    """``expired``: the offset of the next page has expired. ``repeated``: the server sent the same offset twice.
    ``endless``: 100 pages in a row had no new item, or 100,000 pages were read, and the server offers more."""
    items_so_far: int
    """How many webhooks, projects or workspaces the iteration had received."""
    offset: str | None = attrs.field(default=None, repr=False)
    """The offset of the page that cannot be fetched."""
    operation: str = "getWebhooks"
    """Asana's operation id."""

    def __str__(self) -> str:
        problem, advice = {
            "expired": ("the offset of the next page has expired", "Start over, and take less time between pages."),
            "repeated": ("the server sent the same offset twice", "Start over; if it persists, tell Asana's support."),
            "endless": ("the list does not end", "Start over; if it persists, tell Asana's support."),
        }[self.reason]
        return f"{self.operation}: {problem} (items so far: {self.items_so_far}). {advice}"


@attrs.define(eq=False, kw_only=True, slots=False)
class NetworkError(AsanaError):
    """No usable answer arrived."""

    operation: str
    """Asana's operation id, such as ``getWebhook``."""
    attempts: int
    """Attempts made."""
    problem: str
    """What went wrong in the last attempt."""

    def __str__(self) -> str:
        return f"{self.operation}: {self.problem} ({_times(self.attempts)}). {self.advice}"

    advice = "Check the connection to Asana."


class ConnectionFailedError(NetworkError):
    """Connecting failed, or the connection broke before the whole answer arrived."""

    advice = "Check DNS, proxy, firewall and TLS between here and Asana."


@attrs.define(eq=False, kw_only=True, slots=False)
class DeadlineExceededError(NetworkError):
    """A call did not finish within the session's *timeout*, or waited for its turn longer than its *slot_timeout*."""

    timeout: float
    """Seconds the call was allowed."""
    advice: str = attrs.field(default="Give the session a longer timeout, or retry later.", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.operation}: no answer within {self.timeout:g} seconds: {self.problem} ({_times(self.attempts)}). "
            f"{self.advice}"
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class CreateOutcomeUnknownError(NetworkError):
    """Asana may have executed a create request, but no answer confirms it: the webhook may exist now.

    The request is not retried, because that could create a second webhook. `establish_webhook` tries once more with a
    new endpoint. With `create_webhook`, list the webhooks of the workspace and look for the target.
    """

    target: str = attrs.field(repr=False)
    """The target of the webhook that may exist."""
    sent_at: datetime
    """When the request was last sent, in UTC."""

    def __str__(self) -> str:
        return (
            f"{self.operation}: the request sent at {self.sent_at:%Y-%m-%dT%H:%M:%SZ} may have created a webhook, but "
            f"no answer confirms it: {self.problem}. Before creating again, list the workspace's webhooks and look "
            "for the target."
        )


def _deleted(deleted: bool) -> str:
    if deleted:
        return "The webhook has been deleted; retry."
    return "Deleting the webhook failed: delete it, or Asana does so after 24 hours of failed deliveries."


@attrs.define(eq=False, kw_only=True, slots=False)
class HandshakeMismatchError(AsanaError):
    """The secret in Asana's 201 is missing or matches no handshake, so deliveries could not be verified."""

    webhook_gid: str
    """The gid of the webhook Asana created."""
    deleted: bool
    """Whether the webhook has been deleted."""

    def __str__(self) -> str:
        return (
            f"webhook {self.webhook_gid}: Asana's answer has no secret from a handshake that the receiver got. "
            f"Something between Asana and the receiver may be answering handshakes. {_deleted(self.deleted)}"
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class RegistrationClosedError(AsanaError):
    """Asana's handshake or 201 arrived after the webhook's registration was closed or its deadline passed."""

    webhook_gid: str | None
    """The gid of the webhook Asana created; ``None`` if it created none, because its handshake was refused."""
    deleted: bool
    """Whether the webhook has been deleted, or was not created."""

    def __str__(self) -> str:
        created = f"webhook {self.webhook_gid}" if self.webhook_gid else "no webhook was created"
        return (
            f"{created}: its registration was closed or expired before Asana's answer arrived. Another process closed "
            "it, this one was suspended, or the clock was set forward. "
            f"{_deleted(self.deleted) if self.webhook_gid else 'Retry.'}"
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class WebhookExistsError(AsanaError):
    """The store has a live webhook for this resource and label already. Nothing was sent."""

    registration: str
    """The id of its registration."""
    webhook_gid: str | None
    """Its gid; ``None`` while it is being created, or if the process that did so was killed a short while ago."""

    def __str__(self) -> str:
        if self.webhook_gid is None:
            return (
                f"a webhook for this resource and label is being created (registration {self.registration:.12}). If "
                "its process was killed, retry when the registration has expired; ensure_webhook waits for that."
            )
        return (
            f"the store has a live webhook for this resource and label: {self.webhook_gid} (registration "
            f"{self.registration:.12}). ensure_webhook brings it to what you want; a second one needs another label."
        )


class InvalidSignatureError(AsanaError):
    """The signature of a delivery is missing or wrong: answer 401.

    Source: https://developers.asana.com/docs/webhooks-guide
    """


class PermanentFailure(AsanaError):  # noqa: N818 - raised by handlers, not by this package
    """Raise this in a handler if a retry cannot help: the delivery becomes a dead letter at once.

    ::

        raise PermanentFailure("the task is gone")
    """


class HandlerExitError(AsanaError):
    """A handler raised `SystemExit` (the ``__cause__``). The worker recorded a failed attempt and stopped."""


@attrs.define(eq=False, kw_only=True, slots=False)
class PayloadError(AsanaError):
    """Invalid JSON, or JSON whose shape differs from the documentation."""

    problem: str
    """What is wrong."""
    path: str = "$"
    """Its place, as a JSON path: ``$.data.gid``."""
    malformed: bool = False
    """True if the bytes are not valid JSON (for example cut off); False if the JSON has a wrong shape."""

    def __str__(self) -> str:
        return f"{self.problem} @ {self.path}"


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreError(AsanaError):
    """A store operation failed; it leaves no partial change."""

    problem: str
    """What went wrong."""
    advice: str = "Check the store."
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.problem}. {self.advice}"


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreUnavailableError(StoreError):
    """The store cannot be read or written now. A receiver answers 503, and Asana resends."""

    advice: str = "Check disk space and permissions, and that no other process locks the database."


class SecretUnavailableError(StoreUnavailableError):
    """A webhook's secret cannot be sealed or opened: its key is missing, or the key service does not answer."""


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreFullError(StoreError):
    """Too many calls wait for the store, or a quarantine is full. A receiver answers 503, and Asana resends."""

    advice: str = "Retry later, or raise the limits of the store."
