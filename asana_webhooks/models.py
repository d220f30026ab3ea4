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
from typing import Any, Final, Never

import attrs
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
    other_members: dict[str, Any] | None = field(default=None, hash=False)
    """In a value of a `Change`: its other members, as parsed JSON. Six of them are also properties. ``None`` elsewhere.

    ``ResourceRef(gid="52", other_members={"number_value": 5.2})`` is a number field with its value.
    """

    @classmethod
    def from_json(cls, tree: Any) -> "ResourceRef | None":
        """Return the reference in parsed JSON, or ``None`` if it is not an object with a gid."""
        if not isinstance(tree, dict):
            return None
        get = tree.get  # no loop over the names: it takes twice as long
        gid, kind, subtype, name = get("gid"), get("resource_type"), get("resource_subtype"), get("name")
        if not (
            isinstance(gid, str)
            and isinstance(kind, _OPTIONAL_TEXT)
            and isinstance(subtype, _OPTIONAL_TEXT)
            and isinstance(name, _OPTIONAL_TEXT)
        ):
            return None
        others = None
        if not tree.keys() <= _REF_MEMBERS:
            others = {key: value for key, value in tree.items() if key not in _REF_MEMBERS}
        return cls(gid=gid, resource_type=kind, resource_subtype=subtype, name=name, other_members=others)

    def to_dict(self) -> dict[str, Any]:
        """Return the reference for JSON, with Asana's names. Missing members are ``None``."""
        named = {
            "gid": self.gid,
            "resource_type": self.resource_type,
            "resource_subtype": self.resource_subtype,
            "name": self.name,
        }
        return named | (self.other_members or {})

    @property
    def enum_value(self) -> "ResourceRef | None":
        """The chosen option of an enum field."""
        return ResourceRef.from_json(self._other("enum_value"))

    @property
    def multi_enum_values(self) -> "tuple[ResourceRef, ...] | None":
        """The chosen options of a multi-enum field."""
        return _refs(self._other("multi_enum_values"))

    @property
    def people_value(self) -> "tuple[ResourceRef, ...] | None":
        """The users in a people field."""
        return _refs(self._other("people_value"))

    @property
    def number_value(self) -> float | None:
        """The number in a number field: an `int` if Asana wrote it without a decimal point."""
        value = self._other("number_value")
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def text_value(self) -> str | None:
        """The text in a text field."""
        value = self._other("text_value")
        return value if isinstance(value, str) else None

    @property
    def date_value(self) -> dict[str, Any] | None:
        """The date in a date field: ``{"date": "2026-12-01", "date_time": None}``."""
        value = self._other("date_value")
        return value if isinstance(value, dict) else None

    def _other(self, name: str) -> Any:
        return (self.other_members or {}).get(name)


_REF_MEMBERS: Final = {"gid", "resource_type", "resource_subtype", "name"}
_OPTIONAL_TEXT: Final = (str, type(None))


def _refs(tree: Any) -> tuple[ResourceRef, ...] | None:
    refs = tuple(map(ResourceRef.from_json, tree)) if isinstance(tree, list) else (None,)
    return tuple(ref for ref in refs if ref is not None) if None not in refs else None


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
        """Return whether *event* matches every member that is set. Without *fields*, events of all fields match.

        Source: https://developers.asana.com/reference/createwebhook
        """
        return (
            self.resource_type in (None, event.resource.resource_type)
            and self.resource_subtype in (None, event.resource.resource_subtype)
            and self.action in (None, event.action)
            and (not self.fields or event.field in self.fields)
        )


def _redact_target(target: str | None) -> str:
    """Return a target's repr with three stars instead of its endpoint, query, user and password.

    Segments of 16 or more characters are hidden. The scheme, host and shorter segments stay.
    """
    if target is None:
        return "None"
    origin = "".join(re.findall(r"^[A-Za-z]+://[^/?#]*", target))
    rest = re.sub(r"\?[^#]+", "?***", target.removeprefix(origin))
    return repr(re.sub(r"//.*@", "//***@", origin, flags=re.DOTALL) + re.sub(r"[^/?#]{16,}", "***", rest))


@frozen(kw_only=True)
class Webhook:
    """A webhook as Asana returns it.

    ``None`` means that Asana sent null or left the field out. The operations return full records by default. In Asana's
    compact records every attribute below `target` is ``None``.

    The repr, and so a log, shows the target as ``https://example.com/asana/***``. It hides the endpoint, which
    selects the secret that verifies deliveries, and the query. The attribute, ``attrs.asdict``, JSON and pickles hold
    the full target.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the webhook for JSON, times as ISO text. It contains the full *target*, and so the endpoint."""
        return _members(self)


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
    """A change to one field of a resource.

    Most changes have no value. A value is a `ResourceRef`, or parsed JSON if it is not a resource.
    """

    field: str
    action: str | None = None
    """``changed``, ``added`` or ``removed``: the change to the field, not to the resource."""
    new_value: Any = attrs.field(default=None, hash=False)
    added_value: Any = attrs.field(default=None, hash=False)
    removed_value: Any = attrs.field(default=None, hash=False)

    @property
    def _values(self) -> tuple[Any, Any, Any]:
        return self.new_value, self.added_value, self.removed_value


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

    @property
    def field(self) -> str | None:
        """The name of the changed field, or ``None`` if the event has no `change`."""
        return None if self.change is None else self.change.field

    @property
    def value(self) -> ResourceRef | None:
        """The new, added or removed value of the change, or ``None`` if it is not a resource."""
        values = () if self.change is None else self.change._values  # noqa: SLF001
        return next((one for one in values if isinstance(one, ResourceRef)), None)

    @property
    def fingerprint(self) -> str:
        """An idempotency key: the same string each time Asana sends this event, through any webhook.

        Asana's events have no id. The fingerprint is a hash of the resource, parent, action, change and time. The user,
        names, `type`, and the order of the JSON's members do not matter. Null counts as missing. If several
        tenants share a table, add the tenant's name to the key.
        """
        change = self.change
        parts = [
            _identity(self.resource),
            _identity(self.parent),
            self.action,
            None if change is None else [change.field, change.action, *map(_canonical, change._values)],  # noqa: SLF001
            (_utc_time(self) - _EPOCH) // timedelta(microseconds=1),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the event for JSON, with Asana's names. Missing members are ``None``; times are ISO text."""
        return _members(self)


def _identity(resource: ResourceRef | None) -> list[str | None] | None:
    return None if resource is None else [resource.gid, resource.resource_type, resource.resource_subtype]


def _canonical(value: Any) -> Any:
    """Return JSON without nulls in objects and without the names of resources; equal numbers are written alike."""
    match value:
        case ResourceRef():
            return _canonical(value.to_dict())
        case dict():
            left_out = ("name",) if "gid" in value else ()
            return {name: _canonical(one) for name, one in value.items() if one is not None and name not in left_out}
        case list() | tuple():
            return [_canonical(one) for one in value]
        case float() if value.is_integer():
            return int(value)
    return value


@frozen(kw_only=True)
class UnreadableEvent:
    """An event of a delivery that does not have the shape of an `Event`."""

    raw: Any = field(repr=False, hash=False)
    """The event as parsed JSON."""
    index: int
    """Its place in the body's ``events``, counted from 0."""
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
    label: str = ""
    """The label of the webhook, as given to `establish_webhook`."""
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
    """The events that cannot be read."""
    done: tuple[int, ...] = ()
    """The indices of the events that earlier attempts handled, counted in the body's ``events`` from 0. A worker
    with an `EventRouter` skips them."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return the delivery without its body, for JSON. Times are ISO text."""
        return {name: value for name, value in _members(self).items() if name != "body"}


_STALE_AFTER: Final = timedelta(hours=25)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _utc_time(event: Event) -> datetime:
    at = event.created_at
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _members(model: "attrs.AttrsInstance") -> dict[str, Any]:
    return {one.name: _to_json(getattr(model, one.name)) for one in attrs.fields(type(model))}


def _to_json(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case tuple():
            return [_to_json(one) for one in value]
        case ResourceRef():
            return value.to_dict()
    return _members(value) if attrs.has(type(value)) else value
