"""Which changes the demo makes, and which of them its webhooks must hear of. Decisions only."""

from itertools import cycle
from typing import Final

from attrs import frozen

from asana_webhooks.models import WebhookFilter

__all__ = ["FILTER", "FILTERED_PROJECT", "PROJECTS", "PlannedChange", "plan_changes"]

PROJECTS: Final = ("8675309", "8675310", "8675311")
"""The projects of the demo; each gets a webhook."""

FILTERED_PROJECT: Final = PROJECTS[-1]
"""The project whose webhook gets `FILTER`; the others send everything."""

FILTER: Final = WebhookFilter(resource_type="task", action="changed", fields=("due_on",))


@frozen(kw_only=True)
class PlannedChange:
    """One change to come."""

    project: str
    """The gid of the project it happens in."""
    on: str
    """``task``, ``new task`` or ``project``."""
    action: str
    field: str | None
    arrives: bool
    """Whether the project's webhook lets it pass."""


_KINDS: Final = (
    ("task", "changed", "due_on"),
    ("task", "changed", "name"),
    ("new task", "added", None),
    ("task", "changed", "due_on"),
    ("task", "changed", "completed"),
    ("project", "changed", "name"),
)


def plan_changes(count: int) -> tuple[PlannedChange, ...]:
    """Plan *count* changes that arrive, and between them those the filter holds back.

    The projects take turns, and in each of them the kinds of changes do.
    """
    plan: list[PlannedChange] = []
    turns = ((project, kind) for kind in cycle(_KINDS) for project in PROJECTS)
    while count > 0:
        project, (on, action, field) = next(turns)
        arrives = project != FILTERED_PROJECT or (on, action, field) == ("task", "changed", "due_on")
        plan.append(PlannedChange(project=project, on=on, action=action, field=field, arrives=arrives))
        count -= arrives
    return tuple(plan)
