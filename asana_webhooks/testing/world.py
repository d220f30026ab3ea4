"""The fake's workspace: its resources and webhooks, changes to them, and which webhooks each change reaches.

Sources: https://developers.asana.com/reference/events and https://developers.asana.com/docs/webhooks-guide
"""

import itertools
import random
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

import attrs
from attrs import frozen

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Event, Secret, WebhookFilter
from asana_webhooks.testing.clock import FakeClock, format_time
from asana_webhooks.testing.records import (
    DeliveryRecord,
    HandshakeRecord,
    RecentRecords,
    RequestRecord,
    Resource,
    WebhookRecord,
)

__all__ = [
    "ACTIONS",
    "DEFAULT_USER",
    "FILTERED_TYPES",
    "HEARTBEAT_EVERY",
    "Value",
    "World",
    "WorldChange",
    "check_text",
]

ACTIONS: Final = ("changed", "added", "removed", "deleted", "undeleted")
"""The actions of events. Source: https://developers.asana.com/reference/events"""

DEFAULT_USER: Final = "11"
"""The default user of a change."""

FILTERED_TYPES: Final = ("workspace", "team", "portfolio")
"""Types of resources whose webhooks need filters, which must not have fields."""

HEARTBEAT_EVERY: Final = timedelta(hours=8)

# https://developers.asana.com/docs/webhooks-guide: tasks, subtasks and stories do not reach webhooks this high up.
_REACHING_HIGH: Final = ("project", "team_membership", "workspace_membership")
# How many changes are sent before the one made just before them.
_OVERTAKING: Final = 0.25
_SUBTYPES: Final[Mapping[str, str]] = {"task": "default_task", "story": "comment_added"}

Value = str | Mapping[str, Any]
"""A resource as a field's value: the gid of a known one, or ``{"gid": …, "resource_type": …}``."""


@frozen(kw_only=True)
class WorldChange:
    """One change in the workspace; `FakeAsana.change` documents the members."""

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


def check_text(name: str, text: str) -> None:
    """Check that UTF-8 can encode *text*; the error message calls it *name*.

    Raises:
        ConfigurationError: the text has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        # The message leaves out the text, which may be a secret.
        raise ConfigurationError(f"{name} contains a lone surrogate, which UTF-8 cannot encode") from None


class World:
    """The state of the fake: resources, webhooks, and records of requests, handshakes and deliveries.

    Args:
        clock: the fake's clock.
        seed: seed of everything random.
    """

    def __init__(self, *, clock: FakeClock, seed: int) -> None:
        self.clock = clock
        self.rng = random.Random(seed)  # noqa: S311 (tests need the same secrets in every run)
        # Nothing but changes draws from it, so that their order depends on nothing else.
        self._order = random.Random(seed)  # noqa: S311
        self.resources: dict[str, Resource] = {}
        self.webhooks: dict[str, WebhookRecord] = {}
        self.requests: list[RequestRecord] = RecentRecords()
        self.handshakes: list[HandshakeRecord] = RecentRecords()
        self.deliveries: list[DeliveryRecord] = RecentRecords()
        self._numbers = itertools.count(1_200_000_000_000_001)

    def new_gid(self) -> str:
        """Return an unused gid, larger than those returned before."""
        return next(gid for gid in map(str, self._numbers) if gid not in self.resources)

    def secret(self, given: Secret | str | None = None) -> Secret:
        """Return the given secret, or a random one of 32 hex digits, Asana's form since 2021.

        Raises:
            ConfigurationError: UTF-8 cannot encode the given text.
        """
        if given is None:
            return Secret(f"{self.rng.getrandbits(128):032x}")
        if isinstance(given, Secret):
            return given
        check_text("secret", given)
        return Secret(given)

    def new_webhook(
        self,
        resource: Resource,
        target: str,
        filters: tuple[WebhookFilter, ...] = (),
        *,
        user: str = DEFAULT_USER,
        app: str | None = None,
    ) -> WebhookRecord:
        """Create a webhook without adding it to `webhooks`."""
        now = self.clock.now()
        return WebhookRecord(
            gid=self.new_gid(),
            resource=resource,
            target=target,
            filters=filters,
            secret=self.secret(),
            created_at=now,
            user=user,
            app=app,
            next_heartbeat=now + HEARTBEAT_EVERY,
        )

    def add_quiet_webhook(self, workspace: str) -> WebhookRecord:
        """Add a webhook on a new project. Its target is never contacted."""
        project = self.add("project", parents=[workspace])
        webhook = self.new_webhook(project, f"https://example.com/receive-webhook/{project.gid}")
        webhook.quiet, webhook.last_success_at = True, webhook.created_at
        self.webhooks[webhook.gid] = webhook
        return webhook

    def delete_webhook(self, webhook: WebhookRecord) -> None:
        """Delete a webhook, unless it is deleted already. A delivery in flight still arrives."""
        webhook.active = False
        self.webhooks.pop(webhook.gid, None)

    def add(
        self,
        resource_type: str,
        gid: str | None = None,
        *,
        parents: Iterable[str] = (),
        name: str | None = None,
        resource_subtype: str | None = None,
        accessible: bool = True,
        archived: bool = False,
    ) -> Resource:
        """Add a new resource below *parents*."""
        if not re.fullmatch(r"[a-z][a-z_]*", resource_type):
            raise ConfigurationError(f"resource_type must be a type such as 'task', not {resource_type!r:.80}")
        gid = self.new_gid() if gid is None else gid
        if gid in self.resources:
            raise ConfigurationError(f"the fake already has a resource {gid}: {self.resources[gid].resource_type}")
        if not (gid.isascii() and gid.isdigit()):
            raise ConfigurationError(f"a gid must be a string of digits, not {gid!r:.80}")
        for parent in parents:
            self.get(parent)
        self.resources[gid] = Resource(
            gid=gid,
            resource_type=resource_type,
            resource_subtype=resource_subtype or _SUBTYPES.get(resource_type),
            name=name if name is not None else f"{resource_type} {gid}",
            parents=tuple(parents),
            accessible=accessible,
            archived=archived,
        )
        return self.resources[gid]

    def get(self, gid: str) -> Resource:
        """Return the resource with this gid.

        Raises:
            ConfigurationError: no resource has this gid.
        """
        if gid not in self.resources:
            raise ConfigurationError(f"the fake has no resource {gid!r:.80}: add it first, or pass its parent")
        return self.resources[gid]

    def lineage(self, gid: str) -> list[Resource]:
        """Return the resource and all its ancestors."""
        found: dict[str, Resource] = {}
        open_gids = [gid]
        while open_gids:
            resource = self.get(open_gids.pop())
            if resource.gid not in found:
                found[resource.gid] = resource
                open_gids.extend(resource.parents)
        return list(found.values())

    def apply(self, change: WorldChange) -> dict[str, Any]:
        """Apply *change*, queue its event for the webhooks it reaches, and return the event.

        Raises:
            ConfigurationError: the change is impossible; nothing was changed.
        """
        if change.action not in ACTIONS:
            raise ConfigurationError(f"action must be one of {', '.join(ACTIONS)}, not {change.action!r:.80}")
        try:
            wire.encode(attrs.asdict(change))
        except (TypeError, ValueError):
            raise ConfigurationError("this change cannot be encoded as JSON") from None
        details = self._details(change)
        parent = None if change.parent is None else self.get(change.parent)
        resource = self._place(change, parent)
        if change.action in ("added", "removed") and parent is None and resource.parents:
            parent = self.get(resource.parents[0])
        lineage = self.lineage(resource.gid)
        if change.action == "removed" and parent is not None:
            lineage += [one for one in self.lineage(parent.gid) if one not in lineage]
            remaining = tuple(one for one in resource.parents if one != parent.gid)
            self.resources[resource.gid] = attrs.evolve(resource, parents=remaining)
        event = self._event(change, resource, parent, details)
        typed = wire.structure(event, Event)
        # Asana does not always send the events of a delivery in the order of their times.
        overtakes = self._order.random() < _OVERTAKING
        for webhook in self.webhooks.values():
            passes = not webhook.filters or any(one.matches(typed) for one in webhook.filters)
            sends = webhook.active and not webhook.quiet
            if sends and passes and _reaches(webhook.resource, lineage, resource):
                place = len(webhook.waiting) - (1 if overtakes and webhook.waiting else 0)
                webhook.waiting.insert(place, dict(event))
        return event

    def _place(self, change: WorldChange, parent: Resource | None) -> Resource:
        """Return the changed resource: added to *parent* too, or created there if it is unknown."""
        if change.resource not in self.resources and parent is not None:
            return self.add(
                change.resource_type or "task",
                change.resource,
                parents=[parent.gid],
                resource_subtype=change.resource_subtype,
            )
        resource = self.get(change.resource)
        if parent is not None and change.action != "removed" and parent.gid not in resource.parents:
            self.resources[resource.gid] = attrs.evolve(resource, parents=(*resource.parents, parent.gid))
        if change.action in ("deleted", "undeleted"):
            self.resources[resource.gid] = attrs.evolve(self.get(resource.gid), deleted=change.action == "deleted")
        return self.get(change.resource)

    def _details(self, change: WorldChange) -> dict[str, Any] | None:
        """Return the member ``change`` of the event."""
        values = {
            "new_value": (change.new_value, "changed"),
            "added_value": (change.added_value, "added"),
            "removed_value": (change.removed_value, "removed"),
        }
        given = [(name, value, action) for name, (value, action) in values.items() if value is not None]
        if change.field is None:
            if given or change.change_action is not None:
                raise ConfigurationError(f"{given[0][0] if given else 'change_action'} needs a field")
            return None
        if change.action != "changed":
            raise ConfigurationError(f"field needs action='changed', not {change.action!r}")
        if len(given) > 1:
            raise ConfigurationError(f"a change can have one value, not {' and '.join(name for name, *_ in given)}")
        allowed = (given[0][2],) if given else ("changed", "added", "removed")
        action = change.change_action or allowed[0]
        if action not in allowed:
            raise ConfigurationError(f"change_action must be {' or '.join(allowed)}, not {action!r:.80}")
        return {"field": change.field, "action": action} | {name: self._value(value) for name, value, _ in given}

    def _value(self, value: Value) -> dict[str, Any]:
        if isinstance(value, str):
            resource = self.get(value)
            # In webhooks a value has only a gid and a type.
            return {"gid": resource.gid, "resource_type": resource.resource_type}
        if not isinstance(value.get("gid"), str) or not isinstance(value.get("resource_type"), str):
            raise ConfigurationError("a value must be the gid of a known resource, or have a gid and a resource_type")
        return dict(value)

    def _event(
        self, change: WorldChange, resource: Resource, parent: Resource | None, details: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the event with the members of real deliveries; its resource has a subtype and no name."""
        moved = change.action in ("added", "removed")
        event: dict[str, Any] = {
            "user": None if change.user is None else {"gid": change.user, "resource_type": "user"},
            "created_at": format_time(self.clock.tick()),
            "action": change.action,
            "resource": resource.compact(),
            "parent": parent.compact() if moved and parent is not None else None,
        }
        if details is not None:
            event["change"] = details
        # In real deliveries the order of an event's members varies.
        return dict(self.rng.sample(list(event.items()), k=len(event)))


def _reaches(watched: Resource, lineage: Iterable[Resource], changed: Resource) -> bool:
    """Return whether a change of *changed*, with this *lineage*, reaches webhooks on *watched*."""
    if watched.gid == changed.gid:
        return True
    if watched.resource_type in ("workspace", "team") and changed.resource_type not in _REACHING_HIGH:
        return False
    return any(watched.gid == resource.gid for resource in lineage)
