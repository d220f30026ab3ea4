"""What the demo writes down while it runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from asana_webhooks.models import Delivery, Event
from asana_webhooks.testing import DeliveryRecord

__all__ = ["Occurrence", "Refusal", "Samples"]


@frozen(kw_only=True)
class Occurrence:
    """One change, told apart from all others: as the fake made it, or as the worker got it."""

    project: str
    """The gid of the project it was, or must be, heard in."""
    resource: str
    action: str
    field: str | None
    created_at: datetime

    @classmethod
    def made(cls, project: str, event: Mapping[str, Any]) -> "Occurrence":
        """The change that `FakeAsana.change` returned as *event*."""
        return cls(
            project=project,
            resource=event["resource"]["gid"],
            action=event["action"],
            field=event["change"]["field"] if "change" in event else None,
            created_at=datetime.fromisoformat(event["created_at"]),
        )

    @classmethod
    def received(cls, delivery: Delivery, event: Event) -> "Occurrence":
        """The change that *event* of a *delivery* tells of."""
        return cls(
            project=delivery.resource,
            resource=event.resource.gid,
            action=event.action,
            field=None if event.change is None else event.change.field,
            created_at=event.created_at,
        )


@frozen(kw_only=True)
class Refusal:
    """Something that must not get in, and what it was answered."""

    what: str
    why: str
    status: int | None
    """``None`` if there was no answer."""
    expected: int

    @property
    def ok(self) -> bool:
        """Whether it was refused as it must be."""
        return self.status == self.expected


@define(kw_only=True)
class Samples:
    """What the demo observes, filled in as it goes on."""

    # Webhooks
    echoed: int = 0
    """Handshakes that were answered as Asana wants it."""
    established: int = 0
    existing: list[str] = field(factory=list)
    """The gids of all webhooks the fake has."""
    listed: list[str] = field(factory=list)
    """The gids that the walk over the pages gave."""
    pages: int = 0
    filter_kept: bool = False
    """Whether Asana has the filter that was set."""

    # Changes
    wanted: list[Occurrence] = field(factory=list)
    """Those that must arrive."""
    filtered: list[Occurrence] = field(factory=list)
    """Those that must not."""
    arrived: list[Occurrence] = field(factory=list)
    fingerprints: Counter[str] = field(factory=Counter)
    handled: int = 0
    """Deliveries the worker handled."""
    began_at: float = 0.0
    """When the first change was made, in seconds of a clock that only goes forward."""
    last_handled_at: float = 0.0
    """When the worker handled the last delivery."""
    deliveries: Sequence[DeliveryRecord] = ()
    """Every attempt of the fake to deliver."""

    # Attacks
    forgeries: list[Refusal] = field(factory=list)
    strangers: list[Refusal] = field(factory=list)
    late: list[Refusal] = field(factory=list)
    """Deliveries after the webhook was deleted."""
    stranger_echoed: bool = False
    secret_kept: bool = False
    """Whether the secret was the same before and after the stranger came, and Asana's."""
    deliveries_before_attack: int = 0
    """How many attempts to deliver came before the forgery and the stranger."""

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """All that must not get in."""
        return (*self.forgeries, *self.strangers, *self.late)
