"""From "this changed" to the event Asana would send, with the mistakes a test can make found out first. Decisions only.

Source: https://developers.asana.com/reference/events
"""

import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs
from attrs import frozen

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.world import ACTIONS, Resource, World, make_event

__all__ = ["DEFAULT_USER", "ChangeRequest", "Value", "record_change"]

DEFAULT_USER = "11"
"""The user who changes things when nobody else is named."""

Value = str | Mapping[str, Any]
"""A resource as a value of a field: the gid of a known one, or ``{"gid": …, "resource_type": …}``."""


@frozen(kw_only=True)
class ChangeRequest:
    """One thing that happens in the workspace. `FakeAsana.change` explains the members."""

    resource: str
    action: str = "changed"
    field: str | None = None
    change_action: str | None = None
    new_value: Value | None = None
    added_value: Value | None = None
    removed_value: Value | None = None
    user: str | None = DEFAULT_USER
    parent: str | None = None
    resource_type: str | None = None
    resource_subtype: str | None = None


def record_change(
    world: World, change: ChangeRequest, *, now: datetime, rng: random.Random
) -> tuple[dict[str, Any], Resource, list[Resource]]:
    """Let *change* happen in *world*.

    Returns:
        The event, the changed resource, and everything it is in.

    Raises:
        ConfigurationError: it could not happen; nothing was changed.
    """
    if change.action not in ACTIONS:
        raise ConfigurationError(f"action must be one of {', '.join(ACTIONS)}, not {change.action!r:.80}")
    _check_sendable(change)
    details = _details(world, change)
    parent = None if change.parent is None else world.get(change.parent)
    resource = _place(world, change, parent)
    if change.action in ("added", "removed") and parent is None and resource.parents:
        parent = world.get(resource.parents[0])
    lineage = world.lineage(resource.gid)
    if change.action == "removed" and parent is not None:
        lineage += [one for one in world.lineage(parent.gid) if one not in lineage]
        world.take_out(resource.gid, parent.gid)
    event = make_event(
        resource=resource,
        action=change.action,
        created_at=now,
        user=change.user,
        parent=parent if change.action in ("added", "removed") else None,
        change=details,
        rng=rng,
    )
    return event, resource, lineage


def _check_sendable(change: ChangeRequest) -> None:
    try:
        wire.encode(attrs.asdict(change))
    except (TypeError, ValueError):
        raise ConfigurationError("a change is sent as JSON, which cannot hold this one") from None


def _place(world: World, change: ChangeRequest, parent: Resource | None) -> Resource:
    if change.resource in world.resources:
        if parent is not None and change.action != "removed":
            world.put_under(change.resource, parent.gid)
        return world.get(change.resource)
    if parent is None:
        return world.get(change.resource)  # which says that there is none
    return world.add(
        change.resource_type or "task",
        change.resource,
        parents=[parent.gid],
        resource_subtype=change.resource_subtype,
    )


def _details(world: World, change: ChangeRequest) -> dict[str, Any] | None:
    values = {
        "new_value": (change.new_value, "changed"),
        "added_value": (change.added_value, "added"),
        "removed_value": (change.removed_value, "removed"),
    }
    given = [(name, value, action) for name, (value, action) in values.items() if value is not None]
    if change.field is None:
        if given or change.change_action is not None:
            raise ConfigurationError(f"{given[0][0] if given else 'change_action'} needs the field it is about")
        return None
    if change.action != "changed":
        raise ConfigurationError(f"field goes with action='changed' only, not with {change.action!r}")
    if len(given) > 1:
        raise ConfigurationError(f"a change has one value, not {' and '.join(name for name, *_ in given)}")
    implied = given[0][2] if given else "changed"
    action = change.change_action or implied
    if action not in ("changed", "added", "removed") or (given and action != implied):
        raise ConfigurationError(f"change_action must fit the value ({implied}), not be {action!r:.80}")
    return {"field": change.field, "action": action} | {name: _value(world, value) for name, value, _ in given}


def _value(world: World, value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        resource = world.get(value)
        # In webhooks these have a gid and a type, nothing more.
        return {"gid": resource.gid, "resource_type": resource.resource_type}
    if not isinstance(value.get("gid"), str) or not isinstance(value.get("resource_type"), str):
        raise ConfigurationError("a value is the gid of a known resource, or has a gid and a resource_type")
    return dict(value)
