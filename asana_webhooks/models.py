"""What travels: webhooks, filters, events, deliveries, and the secret that must not be shown.

The classes that mirror Asana's JSON are read by name and type alone (no converters, no aliases), so that bytes become
objects in one step. Whatever Asana adds later passes: unknown members are skipped, unknown actions and resource types
are strings like any other.

Sources: https://developers.asana.com/reference/webhooks and https://developers.asana.com/reference/events
"""

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Never

from attrs import field, frozen

__all__ = [
    "Change",
    "CreatedWebhook",
    "Delivery",
    "Event",
    "ResourceRef",
    "Secret",
    "Webhook",
    "WebhookFilter",
]


class Secret:
    """A text that must not show up in logs: a webhook's secret or an access token.

    `str`, `repr` and format strings hide it, it cannot be pickled, it compares in constant time, and it is no attrs
    class, so dumps of the objects around it hold a `Secret` and never its text. Error trackers show the `repr` of
    local variables: keep the `Secret` in them, and call `reveal` inside the expression that needs the text.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text itself; keep it out of logs and messages."""
        return self.__text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.__text.encode(), other.__text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self.__text))

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce_ex__(self, protocol: object) -> Never:
        raise TypeError("a Secret cannot be pickled; call reveal() and protect the text yourself")

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self


@frozen(kw_only=True)
class ResourceRef:
    """A task, project, user, section … as Asana names it inside other objects."""

    gid: str
    """Digits, always as text."""
    resource_type: str | None = None
    resource_subtype: str | None = None
    name: str | None = None
    """Present in webhooks (the subscribed resource), absent in events."""
    enum_value: "ResourceRef | None" = None
    """Set when this is a custom field in `Change.new_value`: the option that was chosen."""


@frozen(kw_only=True)
class WebhookFilter:
    """Which events a webhook lets pass: those for which every given member matches.

    A webhook with several filters sends an event if any of them lets it pass; one without filters sends everything.
    *fields* (names such as ``due_on``) goes only with ``action="changed"``, and not with webhooks on workspaces, teams
    or portfolios.
    """

    resource_type: str | None = None
    resource_subtype: str | None = None
    action: str | None = None
    """``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``."""
    fields: tuple[str, ...] | None = None


def _without_endpoint(target: str | None) -> str:
    """Return a target's repr with three stars for what may tell whose secret it is.

    That is whatever is long in its path and query; scheme, host and short segments stay, user and password go.
    """
    if target is None:
        return "None"
    origin = "".join(re.findall(r"^[A-Za-z]+://[^/?#]*", target))
    rest = target.removeprefix(origin)
    return repr(re.sub(r"//.*@", "//***@", origin, flags=re.DOTALL) + re.sub(r"[^/?#]{16,}", "***", rest))


@frozen(kw_only=True)
class Webhook:
    """A subscription as Asana keeps it.

    With the full record (what this package asks for unless told otherwise) ``None`` means that Asana said null; with
    Asana's compact records everything below `target` is ``None``.

    Its repr, and so a log, shows ``https://example.com/asana/***`` for the target: the endpoint at its end tells whose
    secret a delivery is verified with. The attribute, ``attrs.asdict``, JSON and pickles carry the whole target.
    """

    gid: str
    resource_type: str | None = None
    active: bool | None = None
    """False: Asana sends nothing."""
    resource: ResourceRef | None = None
    target: str | None = field(default=None, repr=_without_endpoint)
    """The URL Asana posts to, as the string Asana sent."""
    created_at: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str | None = None
    """What the target answered when a delivery last failed; empty on a healthy webhook."""
    delivery_retry_count: int | None = None
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    """When Asana will delete the webhook if no delivery succeeds before."""
    filters: tuple[WebhookFilter, ...] | None = None
    is_workspace_webhook: bool | None = None
    """Undocumented; Asana sends it when it likes."""


@frozen(kw_only=True)
class CreatedWebhook:
    """What createWebhook answers: the webhook, and the secret its deliveries will be signed with.

    No repr, dump or JSON shows the secret, and with one in it this cannot be pickled.
    """

    webhook: Webhook
    secret: Secret | None
    """``None`` only if Asana's answer held none, against its documentation."""


@frozen(kw_only=True)
class Change:
    """What happened to one field of a resource. The values are set only where they are Asana resources themselves."""

    field: str
    action: str | None = None
    """``changed``, ``added`` or ``removed``: what happened to the field, not to the resource."""
    new_value: ResourceRef | None = None
    added_value: ResourceRef | None = None
    removed_value: ResourceRef | None = None


def _gid(resource: ResourceRef | None) -> str | None:
    return None if resource is None else resource.gid


@frozen(kw_only=True)
class Event:
    """One thing that happened in Asana. It says what changed, not the new content: fetch that from Asana."""

    action: str
    """What happened to the resource: ``changed``, ``added``, ``removed``, ``deleted``, ``undeleted``, or a new word."""
    resource: ResourceRef
    """What it happened to; often something inside the subscribed resource, such as a task of a project."""
    created_at: datetime
    user: ResourceRef | None = None
    """Who did it; ``None`` for the system."""
    parent: ResourceRef | None = None
    """For added and removed: where to or from."""
    change: Change | None = None
    type: str | None = None
    """Deprecated by Asana: see ``resource.resource_type``."""
    registration: str = field(default="", repr=False)
    """The registration whose delivery brought the event."""

    @property
    def fingerprint(self) -> str:
        """A text that is the same whenever Asana sends this event again for the same webhook: an idempotency key.

        Asana's events carry no id. This hashes everything that tells one from another: the registration, user,
        resource, parent, action, change and time, whatever order the JSON's members came in.
        """
        change = self.change
        parts = [
            self.registration,
            _gid(self.user),
            self.resource.gid,
            _gid(self.parent),
            self.action,
            None if change is None else [change.field, change.action, *_values(change)],
            self.created_at.isoformat(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _values(change: Change) -> list[list[str | None]]:
    values: tuple[ResourceRef | None, ...] = (change.new_value, change.added_value, change.removed_value)
    return [[_gid(value), _gid(value.enum_value) if value else None] for value in values]


@frozen(kw_only=True)
class Delivery:
    """One POST from Asana, verified and stored, as a worker's handler gets it."""

    id: int
    """Its number in the store."""
    registration: str
    """The registration it came in for."""
    webhook_gid: str | None
    resource: str
    """The gid of the resource the webhook watches."""
    received_at: datetime
    """When it was stored, in UTC."""
    attempt: int
    """1 when it is handled for the first time."""
    events: tuple[Event, ...]
    body: bytes = field(repr=False)
    """The raw bytes Asana signed, with whatever members this package does not know."""

    @property
    def stale(self) -> bool:
        """Whether even its newest event happened more than 25 hours before it was stored.

        Asana tries for 24 hours. So this is an old delivery that somebody has recorded and sent again (its signature
        holds for ever), or the clock of this machine is wrong.
        Source: https://developers.asana.com/docs/webhooks-guide
        """
        newest = max(map(_happened, self.events), default=None)
        return newest is not None and self.received_at - newest > _STALE_AFTER


_STALE_AFTER = timedelta(hours=25)


def _happened(event: Event) -> datetime:
    at = event.created_at
    return at if at.tzinfo else at.replace(tzinfo=UTC)
