"""Stores with something in them, and a clock that tests turn."""

import itertools
import json
from typing import Any

from attrs import define

from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import NewDelivery, Store, registration_id

SECRET = Secret("0123456789abcdef0123456789abcdef")
ENDPOINT = "Endpoint_0123456789_abcdefghijklmnopqrstuvw"
_numbers = itertools.count(1)


@define
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass; with a negative number the clock is set back."""
        self.now += seconds


def event(**changes: Any) -> dict[str, Any]:
    """Return an event as Asana sends it, with a resource of its own."""
    return {
        "user": {"gid": "11", "resource_type": "user"},
        "created_at": "2026-01-02T03:04:05.678Z",
        "action": "changed",
        "resource": {"gid": str(next(_numbers)), "resource_type": "task", "resource_subtype": "default_task"},
        "parent": None,
        "change": {"field": "due_on", "action": "changed"},
    } | changes


def body(*events: dict[str, Any]) -> bytes:
    """Return the body of a delivery."""
    return json.dumps({"events": list(events)}, separators=(",", ":")).encode()


async def register(
    store: Store, endpoint: str = ENDPOINT, secret: Secret = SECRET, *, gid: str = "43214", label: str | None = None
) -> str:
    """Open and confirm a registration; return its id.

    All watch one resource. So each needs a label of its own, which is a part of its id; only the usual one has none.
    """
    id = registration_id(endpoint)
    if label is None:
        label = "" if endpoint == ENDPOINT else id[:8]
    url = "https://example.com/asana"
    assert await store.open_registration(id, resource="8675309", public_url=url, label=label, ttl=60)
    assert await store.add_candidate(id, secret)
    assert await store.confirm_registration(id, webhook_gid=gid, secret=secret)
    return id


async def deliver(store: Store, registration: str, content: bytes) -> None:
    """Store a delivery as the receiver does."""
    delivery = NewDelivery(registration=registration, signature=sign_body(content, secret=SECRET), body=content)
    assert await store.put(delivery) == "stored"
