"""Every exception a user of this package can meet, in one tree.

::

    AsanaError
    ├── ConfigurationError             the caller: a bad argument, setting or use (also a ValueError)
    ├── ResponseError                  Asana answered, and the answer was no
    │   ├── BadRequestError            400
    │   ├── NotAuthorizedError         401
    │   │   └── TokenRefreshError      the access token cannot be refreshed any more
    │   ├── PaymentRequiredError       402
    │   ├── ForbiddenError             403
    │   │   └── DuplicateWebhookError  403, this resource and target already have a webhook
    │   ├── TargetRejectedError        400 or 403, Asana could not agree with the target
    │   ├── NotFoundError              404
    │   ├── RateLimitedError           429
    │   ├── ServerError                5xx
    │   └── UnexpectedResponseError    an answer that is not what Asana documents
    ├── PaginationError                a walk over pages cannot go on: its reason says why
    ├── NetworkError                   no usable answer arrived
    │   ├── ConnectionFailedError      refused, reset, cut off, unresolvable, bad TLS
    │   ├── DeadlineExceededError      the time for the whole call ran out
    │   └── CreateOutcomeUnknownError  the webhook may or may not exist now
    ├── HandshakeMismatchError         the 201 and the handshake name different secrets
    ├── PayloadError                   bytes that are not the JSON they should be
    └── StoreError                     the store
        ├── StoreUnavailableError      it cannot be read or written now
        └── StoreFullError             it takes no more for the moment

No message and no ``repr`` holds an access token, a webhook's secret, a signature, a body or the endpoint of a target.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

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
    "HandshakeMismatchError",
    "NetworkError",
    "NotAuthorizedError",
    "NotFoundError",
    "PaginationError",
    "PayloadError",
    "PaymentRequiredError",
    "RateLimitedError",
    "ResponseError",
    "ServerError",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "TargetRejectedError",
    "TokenRefreshError",
    "UnexpectedResponseError",
]


def _rebuild(kind: type["AsanaError"], args: tuple[Any, ...], fields: dict[str, Any]) -> "AsanaError":
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class AsanaError(Exception):
    """The base of everything this package raises on purpose."""

    def __reduce__(self) -> tuple[Callable[..., "AsanaError"], tuple[Any, ...]]:
        # Exceptions are rebuilt from positional arguments; ours take keywords, so process pools could not carry them.
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigurationError(AsanaError, ValueError):
    """An argument or a setting that cannot work (raised before anything is sent), or a use that makes no sense."""


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
    """Asana's own sentences, one for each error in the answer."""
    help: str | None = None
    """Where Asana says to read on."""
    phrase: str | None = None
    """On some 500s: the words Asana's support finds the incident by."""
    attempts: int = 1
    """How often the request was sent before this was raised; 0 if Asana had answered 429 to another call of the
    session, and the pause it asked for is longer than the call may take."""
    retry_after: float | None = None
    """Seconds Asana asked to wait, if it did."""

    advice = "Asana's messages above say what it wants."

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
    """401: no valid access token came with the request."""

    advice = "Check the access token: it may be mistyped, revoked, expired, or its app disabled in this workspace."


@attrs.define(eq=False, kw_only=True, slots=False)
class TokenRefreshError(NotAuthorizedError):
    """Asana refuses to issue a new access token for a refresh token; asking again would not help.

    Source: https://developers.asana.com/docs/oauth
    """

    code: str
    """Which of OAuth's errors it is, such as ``invalid_grant`` or ``invalid_client``."""

    advice = "Let the user authorize the app again; for invalid_client, check client_id and client_secret."

    def __str__(self) -> str:
        said = "; ".join(message.rstrip(".") for message in self.messages) or "no message"
        return f"{self.operation}: Asana answered {self.status}, {self.code}: {said}. {self.advice}"


class PaymentRequiredError(ResponseError):
    """402: the feature is above the workspace's plan."""

    advice = "The workspace's plan does not include this."


class ForbiddenError(ResponseError):
    """403: the request was understood and refused."""

    advice = "Check that the token's user can see the resource, and that its scopes include webhooks."


class DuplicateWebhookError(ForbiddenError):
    """403: the same user, resource and target already have a webhook."""

    advice = "Delete the old webhook first, or create this one with another target."


class TargetRejectedError(ResponseError):
    """Asana could not agree with the target: unreachable, a wrong status, or the handshake's secret was not echoed."""

    advice = (
        "The receiver must be reachable from Asana and must answer the handshake with 200 or 204 and the same "
        "X-Hook-Secret while the create call is still open."
    )


class NotFoundError(ResponseError):
    """404: no such webhook, or no such route."""

    advice = "It may have been deleted, or belong to another app or user."


class RateLimitedError(ResponseError):
    """429: too many requests with this token."""

    advice = "Slow down; a limiter on the session keeps calls under Asana's limits."


class ServerError(ResponseError):
    """5xx: Asana's side failed."""

    advice = "Try again later; if it stays, give the phrase to Asana's support."


@attrs.define(eq=False, kw_only=True, slots=False)
class UnexpectedResponseError(ResponseError):
    """An answer that is not what Asana documents: no JSON, a wrong type, a redirect, cut off, or far too long."""

    problem: str
    """What is wrong, with the place in the JSON where there is one."""

    def __str__(self) -> str:
        return (
            f"{self.operation}: Asana's answer with status {self.status} cannot be used after "
            f"{_times(self.attempts)}: {self.problem}. Check that the base URL is Asana's API and that no "
            "proxy answers in its place."
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class PaginationError(AsanaError):
    """A walk over the pages of a list cannot go on.

    Source: https://developers.asana.com/docs/pagination ("an offset token will expire after some time")
    """

    reason: Literal["expired", "repeated", "endless"]
    """``expired``: the offset of the next page is too old for Asana. ``repeated``: the server sent an offset a second
    time. ``endless``: it sent 100 pages in a row with nothing new, or 100,000 pages, and more are to follow."""
    items_so_far: int
    """How many items the walk had yielded."""
    offset: str | None = attrs.field(default=None, repr=False)
    """The offset of the page that cannot be had."""

    def __str__(self) -> str:
        problem, advice = {
            "expired": ("the offset of the next page has expired", "Walk again, and take less time between pages."),
            "repeated": ("the server repeated an offset", "Walk again; if it stays, tell Asana's support."),
            "endless": ("the pages do not end", "Walk again; if it stays, tell Asana's support."),
        }[self.reason]
        return f"getWebhooks: {problem} after {self.items_so_far} items. {advice}"


@attrs.define(eq=False, kw_only=True, slots=False)
class NetworkError(AsanaError):
    """No usable answer arrived."""

    operation: str
    """Asana's operation id, such as ``getWebhook``."""
    attempts: int
    """How often sending was tried."""
    problem: str
    """What went wrong last."""

    def __str__(self) -> str:
        return f"{self.operation}: {self.problem} ({_times(self.attempts)}). {self.advice}"

    advice = "Check the connection to Asana."


class ConnectionFailedError(NetworkError):
    """The connection could not be made, or broke before a whole answer had arrived."""

    advice = "Check DNS, proxy, firewall and TLS between here and Asana."


@attrs.define(eq=False, kw_only=True, slots=False)
class DeadlineExceededError(NetworkError):
    """The session's *timeout* for one whole call ran out."""

    timeout: float
    """Seconds the call was allowed."""

    def __str__(self) -> str:
        return (
            f"{self.operation}: no answer within {self.timeout:g} seconds: {self.problem} ({_times(self.attempts)}). "
            "Give the session a longer timeout, or try again later."
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class CreateOutcomeUnknownError(NetworkError):
    """The create request may have landed, and no answer says so: the webhook may exist now.

    It was not sent again, because two webhooks for one call are worse than an error. `establish_webhook` resolves
    this by itself; with `create_webhook`, list the webhooks of the workspace and look for the target.
    """

    target: str = attrs.field(repr=False)
    """The target of the webhook that may exist."""
    sent_at: datetime
    """When the request was last sent, in UTC."""

    def __str__(self) -> str:
        return (
            f"{self.operation}: the request sent at {self.sent_at:%Y-%m-%dT%H:%M:%SZ} may have created a webhook, but "
            f"no answer says so: {self.problem}. List the workspace's webhooks and look for the target before creating "
            "again."
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class HandshakeMismatchError(AsanaError):
    """Asana's 201 names a secret that no handshake brought, so deliveries could not be verified."""

    webhook_gid: str
    """The webhook Asana had created."""
    deleted: bool
    """Whether it could be deleted again."""

    def __str__(self) -> str:
        outcome = (
            "It has been deleted again; try once more."
            if self.deleted
            else "Deleting it failed; Asana deletes it by itself after 24 hours of refused deliveries."
        )
        return (
            f"webhook {self.webhook_gid}: the secret in Asana's answer matches no handshake the receiver got. "
            f"Something between Asana and the receiver may answer handshakes in its place. {outcome}"
        )


@attrs.define(eq=False, kw_only=True, slots=False)
class PayloadError(AsanaError):
    """Bytes that are not JSON, or JSON of another shape than documented."""

    problem: str
    """What is wrong."""
    path: str = "$"
    """Where, as a JSON path: ``$.data.gid``."""
    malformed: bool = False
    """True if the bytes are no JSON at all (cut off, for one); False if the JSON has a wrong shape."""

    def __str__(self) -> str:
        return f"{self.problem} @ {self.path}"


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreError(AsanaError):
    """The store could not do what was asked of it; nothing was half done."""

    problem: str
    """What went wrong."""
    advice: str = "Check the store."
    """What to do about it."""

    def __str__(self) -> str:
        return f"store: {self.problem}. {self.advice}"


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreUnavailableError(StoreError):
    """The store cannot be read or written now. A receiver answers 503, and Asana sends again."""

    advice: str = "Check disk space, permissions and that no other process holds the database."


@attrs.define(eq=False, kw_only=True, slots=False)
class StoreFullError(StoreError):
    """The store takes no more for the moment. A receiver answers 503, and Asana sends again."""

    advice: str = "Let the workers catch up, or raise the limits."
