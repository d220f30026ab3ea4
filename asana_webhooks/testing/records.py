"""The fake's records: resources, webhooks, requests received, handshakes and deliveries sent."""

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
    """A list of the last 10,000 records, so that the memory of a long-running fake is bounded."""

    def append(self, record: _Record) -> None:
        """Add a record, and drop the oldest above the limit."""
        super().append(record)
        del self[:-_REMEMBERED]


@frozen(kw_only=True)
class Resource:
    """A resource in Asana: a project, a task, a story, a team …"""

    gid: str
    resource_type: str
    resource_subtype: str | None = None
    name: str = ""
    parents: tuple[str, ...] = ()
    """Gids of its parents, whose webhooks also report its changes."""
    accessible: bool = True
    """False to refuse reading it and webhooks on it with 403."""
    deleted: bool = False
    """True after a change with ``action="deleted"``: reading it is answered 404."""
    archived: bool = False
    """Of a project: whether it is archived."""

    def compact(self) -> dict[str, str]:
        """Return its form in an event: with its subtype, without its name."""
        subtype = {} if self.resource_subtype is None else {"resource_subtype": self.resource_subtype}
        return {"gid": self.gid, "resource_type": self.resource_type, **subtype}

    def full(self) -> dict[str, Any]:
        """Return its record in the API, as far as the fake knows it."""
        archived = {"archived": self.archived} if self.resource_type == "project" else {}
        return {**self.compact(), "name": self.name, **archived}


@frozen(kw_only=True, eq=False)
class Batch:
    """The content of one delivery: the same bytes in every attempt."""

    events: tuple[dict[str, Any], ...] = ()
    """Empty for a heartbeat."""
    body: bytes = field(repr=False)
    retry: bool = False
    """True after a failed attempt."""


@define(kw_only=True, eq=False)
class WebhookRecord:
    """The state of one webhook. All times are on the fake's clock."""

    gid: str
    resource: Resource
    target: str
    filters: tuple[WebhookFilter, ...]
    secret: Secret
    created_at: datetime
    user: str
    """Gid of the user whose access token created it."""
    app: str | None = None
    """Client id of the app whose access token created it; ``None`` for the user's own token."""
    active: bool = True
    """False after deletion; then nothing more is sent. Set it to False for a webhook that exists and is inactive: it
    sends nothing either, and what changes meanwhile is lost. Why a webhook is inactive, Asana does not say."""
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str = ""
    delivery_retry_count: int = 0
    """How often the failing delivery was resent."""
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    """When the webhook is deleted, unless a delivery succeeds before then."""

    next_heartbeat: datetime
    quiet: bool = False
    """True for webhooks of `FakeAsana.add_quiet_webhook`, whose targets are never contacted."""
    waiting: list[dict[str, Any]] = field(factory=list, repr=False)
    """Events not yet in a delivery."""
    failed: Batch | None = field(default=None, repr=False)
    """The failed delivery to resend."""

    def to_json(self, *, full: bool = True) -> dict[str, Any]:
        """Return the record as Asana's JSON: compact in lists, full for one webhook.

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
            # Asana returns stored filters with null for the members that were not given.
            "filters": [asdict(one) for one in self.filters],
            "is_workspace_webhook": self.resource.resource_type == "workspace",
        }


def _time_or_null(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


@define(kw_only=True, eq=False)
class RequestRecord:
    """One request to the API or the token endpoint, recorded on arrival. It never contains the access token."""

    operation: str | None
    """Asana's operation id; ``readResource`` for getTask and so on, ``oauth_token`` for the token endpoint, ``None``
    for an unknown route."""
    method: str
    path: str
    """The path below the base URL: ``/webhooks/43214``."""
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    """The headers as received, with names in lower case, without Authorization."""
    webhook_gid: str = ""
    """The webhook's gid from the path; empty if the path has none."""
    body: Any = None
    """The body parsed as JSON or as a form; ``None`` if it was empty or invalid, and for the token endpoint."""
    status: int | None = None
    """The status of the answer; ``None`` while in flight, and if the connection was cut instead."""


@define(kw_only=True, eq=False)
class HandshakeRecord:
    """One POST with an ``X-Hook-Secret``."""

    target: str
    secret: Secret
    stranger: bool
    """True if it is forged, and not part of a create call."""
    status: int | None = None
    """The status of the target's answer; ``None`` if there was none."""
    echoed: bool = False
    """Whether the answer repeated the secret."""
    failure: str | None = None
    """Why there was no answer."""
    seconds: float = 0.0
    """How long the answer took, in seconds of real time."""


@define(kw_only=True, eq=False)
class DeliveryRecord:
    """One delivery attempt, recorded when it is sent."""

    webhook_gid: str
    body: bytes
    """The bytes sent."""
    events: int
    """How many events the delivery has; 0 for one sent by `FakeAsana.forge_delivery`."""
    signature: str = field(repr=False)
    """The value of ``X-Hook-Signature``."""
    sent_at: datetime
    """When it was sent, on the fake's clock."""
    heartbeat: bool = False
    retry: bool = False
    duplicate: bool = False
    """True if it was sent a second time although the first was accepted."""
    forged: bool = False
    """True for a forged or tampered delivery."""
    status: int | None = None
    """The status of the target's answer; ``None`` if there was none."""
    failure: str | None = None
    """Why there was no answer; ``None`` while in flight."""
    seconds: float = 0.0
    """How long the answer took, in seconds of real time."""
