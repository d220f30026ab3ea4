"""The fake's workspace: the resources in it, what changes there, and which webhooks hear of it. Decisions only."""

import itertools
import random
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import attrs
from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import WebhookFilter
from asana_webhooks.testing.clock import format_time

__all__ = ["ACTIONS", "FILTERED_TYPES", "Resource", "World", "make_event", "passes", "reaches"]

ACTIONS: Final = ("changed", "added", "removed", "deleted", "undeleted")
"""What can happen to a resource. Source: https://developers.asana.com/reference/events"""

FILTERED_TYPES: Final = ("workspace", "team", "portfolio")
"""Types of resources whose webhooks must have filters, without fields."""

# https://developers.asana.com/docs/webhooks-guide: tasks, subtasks and stories do not reach webhooks this high up.
_REACHING_HIGH: Final = ("project", "team_membership", "workspace_membership")
_SUBTYPES: Final[Mapping[str, str]] = {"task": "default_task", "story": "comment_added"}


@frozen(kw_only=True)
class Resource:
    """Something in Asana: a project, a task, a story, a team …"""

    gid: str
    resource_type: str
    resource_subtype: str | None = None
    name: str = ""
    parents: tuple[str, ...] = ()
    """Gids of what it is in; its changes are heard there too."""
    accessible: bool = True
    """False: creating a webhook on it is refused with 403."""

    def compact(self) -> dict[str, str]:
        """As it stands in an event: with its subtype and without its name."""
        subtype = {} if self.resource_subtype is None else {"resource_subtype": self.resource_subtype}
        return {"gid": self.gid, "resource_type": self.resource_type, **subtype}


@attrs.define
class World:
    """All resources by gid, and the numbers not yet given."""

    resources: dict[str, Resource] = field(factory=dict)
    _numbers: "itertools.count[int]" = field(factory=lambda: itertools.count(1_200_000_000_000_001))

    def new_gid(self) -> str:
        """A gid nothing has yet; later ones are larger."""
        return next(gid for gid in map(str, self._numbers) if gid not in self.resources)

    def add(
        self,
        resource_type: str,
        gid: str | None = None,
        *,
        parents: Iterable[str] = (),
        name: str | None = None,
        resource_subtype: str | None = None,
        accessible: bool = True,
    ) -> Resource:
        """Put a new resource below *parents*."""
        gid = self.new_gid() if gid is None else gid
        if gid in self.resources:
            raise ConfigurationError(f"there is a resource {gid} already: {self.resources[gid].resource_type}")
        if not (gid.isascii() and gid.isdigit()):
            raise ConfigurationError(f"a gid is a text of digits, not {gid!r:.80}")
        for parent in parents:
            self.get(parent)
        self.resources[gid] = Resource(
            gid=gid,
            resource_type=resource_type,
            resource_subtype=resource_subtype or _SUBTYPES.get(resource_type),
            name=name if name is not None else f"{resource_type} {gid}",
            parents=tuple(parents),
            accessible=accessible,
        )
        return self.resources[gid]

    def get(self, gid: str) -> Resource:
        """The resource with this gid.

        Raises:
            ConfigurationError: there is none.
        """
        if gid not in self.resources:
            raise ConfigurationError(f"there is no resource {gid!r:.80} in the fake: add it first, or name its parent")
        return self.resources[gid]

    def lineage(self, gid: str) -> list[Resource]:
        """The resource and everything it is in, directly or not."""
        found: dict[str, Resource] = {}
        open_gids = [gid]
        while open_gids:
            resource = self.get(open_gids.pop())
            if resource.gid not in found:
                found[resource.gid] = resource
                open_gids.extend(resource.parents)
        return list(found.values())

    def put_under(self, gid: str, parent: str) -> None:
        """Add *parent* to what the resource is in."""
        resource = self.get(gid)
        if parent not in resource.parents:
            self.resources[gid] = attrs.evolve(resource, parents=(*resource.parents, self.get(parent).gid))

    def take_out(self, gid: str, parent: str) -> None:
        """Take *parent* from what the resource is in."""
        resource = self.get(gid)
        self.resources[gid] = attrs.evolve(resource, parents=tuple(one for one in resource.parents if one != parent))


def make_event(
    *,
    resource: Resource,
    action: str,
    created_at: datetime,
    user: str | None,
    parent: Resource | None,
    change: dict[str, Any] | None,
    rng: random.Random,
) -> dict[str, Any]:
    """One event with the members real deliveries have.

    Source: https://developers.asana.com/reference/events; in webhooks the resource has a subtype and no name.
    """
    event: dict[str, Any] = {
        "user": None if user is None else {"gid": user, "resource_type": "user"},
        "created_at": format_time(created_at),
        "action": action,
        "resource": resource.compact(),
        "parent": None if parent is None else parent.compact(),
    }
    if change is not None:
        event["change"] = change
    # Real deliveries have the members of their events in varying order.
    return dict(rng.sample(list(event.items()), k=len(event)))


def reaches(watched: Resource, lineage: Iterable[Resource], changed: Resource) -> bool:
    """Tell whether a change of *changed*, with this *lineage*, is heard by webhooks on *watched*."""
    if watched.gid == changed.gid:
        return True
    if watched.resource_type in ("workspace", "team") and changed.resource_type not in _REACHING_HIGH:
        return False
    return any(watched.gid == resource.gid for resource in lineage)


def passes(filters: Iterable[WebhookFilter], event: Mapping[str, Any]) -> bool:
    """Tell whether *event* goes through: any filter lets it pass, or there are none."""
    filters = tuple(filters)
    return not filters or any(_matches(one, event) for one in filters)


def _matches(one: WebhookFilter, event: Mapping[str, Any]) -> bool:
    """Every given member of a filter must fit. Source: https://developers.asana.com/reference/createwebhook"""
    resource = event["resource"]
    return (
        one.resource_type in (None, resource["resource_type"])
        and one.resource_subtype in (None, resource.get("resource_subtype"))
        and one.action in (None, event["action"])
        and (not one.fields or event.get("change", {}).get("field") in one.fields)
    )
