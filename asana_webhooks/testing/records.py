"""What the fake remembers: resources and webhooks, the requests it got, the handshakes and deliveries it sent."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from attrs import asdict, define, field, frozen

from asana_webhooks.models import Secret, WebhookFilter
from asana_webhooks.testing.clock import format_time

__all__ = [
    "Batch",
    "DeliveryRecord",
    "HandshakeRecord",
    "RecentRecords",
    "RequestRecord",
    "Resource",
    "WebhookRecord",
]

_Record = TypeVar("_Record")
_REMEMBERED = 10_000


class RecentRecords(list[_Record]):
    """A list that forgets all but its last 10,000 records, so that a fake may run for months."""

    def append(self, record: _Record) -> None:
        """Remember one more."""
        super().append(record)
        del self[:-_REMEMBERED]


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


@frozen(kw_only=True, eq=False)
class Batch:
    """What one delivery carries: the same bytes however often it is sent."""

    events: tuple[dict[str, Any], ...] = ()
    """Empty for a heartbeat."""
    body: bytes = field(repr=False)
    retry: bool = False
    """Sent before, without success."""


@define(kw_only=True, eq=False)
class WebhookRecord:
    """Everything the fake knows of one webhook. Times are those of the fake's clock."""

    gid: str
    resource: Resource
    target: str
    filters: tuple[WebhookFilter, ...]
    secret: Secret
    created_at: datetime
    active: bool = True
    """False once it has been deleted: it sends nothing any more."""
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str = ""
    delivery_retry_count: int = 0
    """How often the delivery that fails has been sent again."""
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    """When it is deleted, unless a delivery succeeds before."""

    next_heartbeat: datetime
    quiet: bool = False
    """True for webhooks made beforehand: their targets are never contacted."""
    waiting: list[dict[str, Any]] = field(factory=list, repr=False)
    """Events that are in no delivery yet."""
    failed: Batch | None = field(default=None, repr=False)
    """The delivery to be sent again."""

    def to_json(self, *, full: bool = True) -> dict[str, Any]:
        """The record as Asana answers it: compact in lists, full for one webhook.

        Source: https://developers.asana.com/reference/webhooks
        """
        compact = {
            "gid": self.gid,
            "resource_type": "webhook",
            "active": self.active,
            "resource": {
                "gid": self.resource.gid,
                "resource_type": self.resource.resource_type,
                "name": self.resource.name,
            },
            "target": self.target,
        }
        return compact | self._full_members() if full else compact

    def _full_members(self) -> dict[str, Any]:
        return {
            "created_at": format_time(self.created_at),
            "last_success_at": _time_or_null(self.last_success_at),
            "last_failure_at": _time_or_null(self.last_failure_at),
            "last_failure_content": self.last_failure_content,
            "delivery_retry_count": self.delivery_retry_count,
            "next_attempt_after": _time_or_null(self.next_attempt_after),
            "failure_deletion_timestamp": _time_or_null(self.failure_deletion_timestamp),
            # Asana echoes stored filters with the members nobody gave as null.
            "filters": [asdict(one) for one in self.filters],
            "is_workspace_webhook": self.resource.resource_type == "workspace",
        }


def _time_or_null(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


@define(kw_only=True, eq=False)
class RequestRecord:
    """One request to the REST side, from the moment it came in. It never holds the access token."""

    operation: str | None
    """Asana's operation id; ``None`` for a route that does not exist."""
    method: str
    path: str
    """Below the base URL: ``/webhooks/43214``."""
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    """As they came, in lower case, without Authorization."""
    webhook_gid: str = ""
    """The gid in the path; empty if there is none."""
    body: Any = None
    """The body read as JSON (or as a form); ``None`` if there was none or it made no sense."""
    status: int | None = None
    """What was answered; ``None`` while it is under way, and if the connection was cut instead."""


@define(kw_only=True, eq=False)
class HandshakeRecord:
    """One POST with an ``X-Hook-Secret``."""

    target: str
    secret: Secret
    stranger: bool
    """True if it was not the fake's Asana who sent it."""
    status: int | None = None
    """What the target answered, if it did."""
    echoed: bool = False
    """Whether the answer held the same secret."""
    failure: str | None = None
    """Why there was no answer."""
    seconds: float = 0.0
    """How long the answer took, in seconds of real time."""


@define(kw_only=True, eq=False)
class DeliveryRecord:
    """One attempt to deliver, from the moment it was sent."""

    webhook_gid: str
    body: bytes
    """The bytes that were sent."""
    events: int
    """How many events they hold."""
    signature: str = field(repr=False)
    """What ``X-Hook-Signature`` said."""
    sent_at: datetime
    """On the fake's clock."""
    heartbeat: bool = False
    retry: bool = False
    duplicate: bool = False
    """Sent again although it had been accepted."""
    forged: bool = False
    """The signature does not prove the bytes."""
    status: int | None = None
    """What the target answered, if it did."""
    failure: str | None = None
    """Why there was no answer; ``None`` while the attempt is under way."""
    seconds: float = 0.0
    """How long the answer took, in seconds of real time."""
