"""The models: webhooks, filters, events, deliveries, and a wrapper that hides secrets.

The classes that mirror Asana's JSON are decoded by name and type alone: no converters, no aliases. Asana may add to its
API: unknown members are skipped, and unknown actions and resource types are ordinary strings.

Sources: https://developers.asana.com/reference/webhooks and https://developers.asana.com/reference/events
"""

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Never

from attrs import field, frozen

__all__ = [
    "Change",
    "CreatedWebhook",
    "Delivery",
    "Event",
    "ParsedDelivery",
    "ResourceRef",
    "Secret",
    "UnreadableEvent",
    "Webhook",
    "WebhookFilter",
]


class Secret:
    """A string that must not appear in logs: a webhook's secret or an access token.

    `str`, `repr` and format strings hide it. It cannot be pickled, and it compares in constant time. It is not an attrs
    class, so ``attrs.asdict`` of an object around it keeps the `Secret` and never shows its text. Error trackers show
    the `repr` of local variables: store the `Secret` there, and call `reveal` only inside the expression that needs it.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the plain text. Keep it out of logs and messages."""
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
    """A reference to a task, project, user, section or other resource inside an Asana object."""

    gid: str
    """A string of digits."""
    resource_type: str | None = None
    resource_subtype: str | None = None
    name: str | None = None
    """Set on a webhook's resource, absent from events."""
    enum_value: "ResourceRef | None" = None
    """The chosen option, if this is a custom field in `Change.new_value`."""


@frozen(kw_only=True)
class WebhookFilter:
    """Selects the events a webhook sends: those that match every member that is set.

    A webhook with several filters sends an event if any filter matches. A webhook without filters sends every event.
    *fields* (names such as ``due_on``) needs ``action="changed"``. Asana does not support it for webhooks on
    workspaces, teams or portfolios.
    """

    resource_type: str | None = None
    resource_subtype: str | None = None
    action: str | None = None
    """``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``."""
    fields: tuple[str, ...] | None = None

    def matches(self, event: "Event") -> bool:
        """Return whether *event* matches every member that is set.

        Source: https://developers.asana.com/reference/createwebhook
        """
        resource = event.resource
        return (
            self.resource_type in (None, resource.resource_type)
            and self.resource_subtype in (None, resource.resource_subtype)
            and self.action in (None, event.action)
            and (not self.fields or event.field in self.fields)
        )


def _redact_target(target: str | None) -> str:
    """Return a target's repr with three stars instead of its endpoint, user and password.

    Path and query segments of 16 or more characters are hidden. The scheme, host and shorter segments stay.
    """
    if target is None:
        return "None"
    origin = "".join(re.findall(r"^[A-Za-z]+://[^/?#]*", target))
    rest = target.removeprefix(origin)
    return repr(re.sub(r"//.*@", "//***@", origin, flags=re.DOTALL) + re.sub(r"[^/?#]{16,}", "***", rest))


@frozen(kw_only=True)
class Webhook:
    """A webhook as Asana returns it.

    In a full record, which the operations return by default, ``None`` means that Asana sent null. In Asana's compact
    records every attribute below `target` is ``None``.

    The repr, and so a log, shows the target as ``https://example.com/asana/***``. It hides the endpoint, which
    selects the secret that verifies deliveries. The attribute, ``attrs.asdict``, JSON and pickles hold the full target.
    """

    gid: str
    resource_type: str | None = None
    active: bool | None = None
    """False if Asana sends no deliveries."""
    resource: ResourceRef | None = None
    target: str | None = field(default=None, repr=_redact_target)
    """The URL Asana posts to, exactly as Asana returned it."""
    created_at: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str | None = None
    """The target's response to the last failed delivery; empty on a healthy webhook."""
    delivery_retry_count: int | None = None
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    """When Asana deletes the webhook unless a delivery succeeds first."""
    filters: tuple[WebhookFilter, ...] | None = None
    is_workspace_webhook: bool | None = None
    """Undocumented; Asana does not always send it."""


@frozen(kw_only=True)
class CreatedWebhook:
    """Asana's answer to createWebhook: the webhook, and the secret that signs its deliveries.

    No repr, dump or JSON shows the secret. An object that holds one cannot be pickled.
    """

    webhook: Webhook
    secret: Secret | None
    """``None`` only if Asana's answer had no secret, which contradicts its documentation."""


@frozen(kw_only=True)
class Change:
    """A change to one field of a resource. The values are set only if they are Asana resources themselves."""

    field: str
    action: str | None = None
    """``changed``, ``added`` or ``removed``: the change to the field, not to the resource."""
    new_value: ResourceRef | None = None
    added_value: ResourceRef | None = None
    removed_value: ResourceRef | None = None


def _gid(resource: ResourceRef | None) -> str | None:
    return None if resource is None else resource.gid


@frozen(kw_only=True)
class Event:
    """One event in Asana. It says what changed, but not the new content: fetch that from Asana."""

    action: str
    """The action on the resource: ``changed``, ``added``, ``removed``, ``deleted``, ``undeleted``, or a newer one."""
    resource: ResourceRef
    """The affected resource, often one inside the subscribed resource, such as a task in a project."""
    created_at: datetime
    user: ResourceRef | None = None
    """The user who caused the event; ``None`` for system events."""
    parent: ResourceRef | None = None
    """For ``added`` and ``removed``: the resource it was added to or removed from."""
    change: Change | None = None
    type: str | None = None
    """Deprecated by Asana: use ``resource.resource_type``."""
    registration: str = field(default="", repr=False)
    """The registration whose delivery contained the event."""

    @property
    def field(self) -> str | None:
        """The changed field; ``None`` if the event names none."""
        return None if self.change is None else self.change.field

    @property
    def value(self) -> ResourceRef | None:
        """The new, added or removed value of the changed field, whichever there is."""
        change = self.change
        return None if change is None else change.new_value or change.added_value or change.removed_value

    @property
    def fingerprint(self) -> str:
        """An idempotency key: the same string each time Asana sends this event for the same webhook.

        Asana's events have no id. The fingerprint is a hash of the registration, user, resource, parent, action,
        change and time. The order of the JSON's members does not matter.
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
class UnreadableEvent:
    """An event of a delivery that does not have the shape of an `Event`."""

    raw: Any = field(repr=False)
    """The event as parsed JSON."""
    problem: str
    """What is wrong, with the JSON path: ``Expected `object`, got `null` @ $.events[1].resource``."""


@frozen(kw_only=True)
class ParsedDelivery:
    """The content of one verified POST from Asana."""

    events: tuple[Event, ...]
    unreadable: tuple[UnreadableEvent, ...] = ()


@frozen(kw_only=True)
class Delivery:
    """One POST from Asana, verified and stored, as a worker passes it to its handler."""

    id: int
    """The delivery's number in the store."""
    registration: str
    """The id of the registration that received it."""
    webhook_gid: str | None
    resource: str
    """The gid of the resource the webhook watches."""
    received_at: datetime
    """When the delivery was stored, in UTC."""
    attempt: int
    """The number of this attempt, counted from 1."""
    events: tuple[Event, ...]
    """The events that can be read, in Asana's order."""
    unreadable: tuple[UnreadableEvent, ...] = ()
    """The events that cannot."""
    body: bytes = field(repr=False)
    """The raw bytes Asana signed, including members this package does not decode."""

    @property
    def stale(self) -> bool:
        """Whether its newest event happened more than 25 hours before the delivery was stored.

        Asana resends a delivery for 24 hours. A stale delivery is therefore a replayed recording (signatures never
        expire), or the clock of this machine is wrong. A delivery without events is never stale.
        Source: https://developers.asana.com/docs/webhooks-guide
        """
        newest = max(map(_utc_time, self.events), default=None)
        return newest is not None and self.received_at - newest > _STALE_AFTER


_STALE_AFTER = timedelta(hours=25)


def _utc_time(event: Event) -> datetime:
    at = event.created_at
    return at if at.tzinfo else at.replace(tzinfo=UTC)
