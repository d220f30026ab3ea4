"""Events and deliveries for tests of one handler, without a fake Asana or a store."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Delivery, Event, ResourceRef, UnreadableEvent

__all__ = ["make_delivery", "make_event"]

_NOON: Final = datetime(2026, 1, 2, 12, tzinfo=UTC)
_USER: Final = ResourceRef(gid="11", resource_type="user")
_SUBTYPES: Final[Mapping[str, str]] = {"task": "default_task", "story": "comment_added"}


def make_event(
    resource_type: str = "task",
    action: str = "changed",
    *,
    field: str | None = None,
    gid: str = "21",
    resource_subtype: str | None = None,
    change_action: str | None = None,
    new_value: Any = None,
    added_value: Any = None,
    removed_value: Any = None,
    parent: ResourceRef | None = None,
    user: ResourceRef | None = _USER,
    created_at: datetime = _NOON,
) -> Event:
    """Return an event as a worker decodes it. Equal arguments make equal events with one fingerprint.

    Args:
        resource_type: the type of the affected resource.
        action: what happened to it.
        field: the changed field; needs ``action="changed"``.
        gid: the affected resource.
        resource_subtype: its subtype; ``default_task`` for tasks and ``comment_added`` for stories if it is left out.
        change_action: ``changed``, ``added`` or ``removed``; by default it follows from the value.
        new_value: the field's new value: a `ResourceRef`, or JSON as Asana writes it.
        added_value: what was added to the field.
        removed_value: what was removed from it.
        parent: for ``added`` and ``removed``: where it was added or removed.
        user: who caused the event.
        created_at: when it happened; in UTC if it has no time zone.

    Raises:
        ConfigurationError: a value without *field*, *field* with another action, or values that no event has.
    """
    values = {"new_value": new_value, "added_value": added_value, "removed_value": removed_value}
    given = {name: value for name, value in values.items() if value is not None}
    if field is None and (given or change_action):
        raise ConfigurationError(f"{[*given, 'change_action'][0]} needs a field")
    if field is not None and action != "changed":
        raise ConfigurationError(f"field needs action='changed', not {action!r:.80}")
    done = change_action or {"added_value": "added", "removed_value": "removed"}.get(next(iter(given), ""), "changed")
    subtype = resource_subtype or _SUBTYPES.get(resource_type)
    tree = {
        "action": action,
        "resource": ResourceRef(gid=gid, resource_type=resource_type, resource_subtype=subtype),
        "created_at": created_at,
        "user": user,
        "parent": parent,
        "change": None if field is None else {"field": field, "action": done} | given,
    }
    try:
        made = wire.decode_delivery(wire.encode({"events": [tree]}))
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError("this event cannot be encoded as JSON") from None
    if made.unreadable:
        raise ConfigurationError(f"Asana sends no such event: {made.unreadable[0].problem}")
    event = made.events[0]
    at = event.created_at
    return event if at.tzinfo else attrs.evolve(event, created_at=at.replace(tzinfo=UTC))


def make_delivery(
    *events: Event,
    unreadable: tuple[UnreadableEvent, ...] = (),
    id: int = 1,
    registration: str = "0" * 64,
    label: str = "",
    webhook_gid: str | None = "43",
    resource: str = "31",
    received_at: datetime | None = None,
    attempt: int = 1,
    done: tuple[int, ...] = (),
    body: bytes | None = None,
) -> Delivery:
    """Return a delivery as a worker passes it to its handler; `Delivery` explains the arguments.

    By default it was received one second after its newest event, and *body* is the JSON of its events, each unreadable
    one at its `UnreadableEvent.index`.

    Raises:
        ConfigurationError: two unreadable events have the same index, or one is not below the number of all events.
    """
    raw: list[Any] = [event.to_dict() for event in events]
    for one in sorted(unreadable, key=lambda one: one.index):
        raw.insert(one.index, one.raw)
    if len({one.index for one in unreadable} & {*range(len(raw))}) < len(unreadable):
        raise ConfigurationError("each unreadable event needs an index of its own, below the number of all events")
    return Delivery(
        id=id,
        registration=registration,
        label=label,
        webhook_gid=webhook_gid,
        resource=resource,
        received_at=received_at or max((one.created_at for one in events), default=_NOON) + timedelta(seconds=1),
        attempt=attempt,
        events=events,
        unreadable=unreadable,
        done=done,
        body=wire.encode({"events": raw}) if body is None else body,
    )
