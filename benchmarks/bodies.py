"""JSON as Asana writes it, the same bytes in every run.

Sources: https://developers.asana.com/reference/webhooks and https://developers.asana.com/docs/webhooks-guide
"""

import hashlib
import hmac
import json
from typing import Any, Final

SECRET: Final = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
"""The secret of the webhook whose deliveries these are."""

ENDPOINT: Final = "An-endpoint-of-43-characters-0123456789ABCD"
"""The last segment of its target."""

_KEY: Final = SECRET.encode()
_GID: Final = 1_200_000_000_000_000


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def webhook(number: int, *, own_filters: bool = False) -> dict[str, Any]:
    """Return the full record of a webhook, with the filters all have or with some of its own."""
    first_field = f"custom_field_{number}" if own_filters else "due_on"
    return {
        "gid": str(_GID + number),
        "resource_type": "webhook",
        "active": True,
        "resource": {"gid": str(_GID * 2 + number), "resource_type": "project", "name": f"Project {number}"},
        "target": f"https://example.com/asana/{number:043d}",
        "created_at": "2026-01-05T09:12:31.482Z",
        "last_failure_at": None,
        "last_failure_content": "",
        "last_success_at": "2026-02-11T16:40:02.117Z",
        "delivery_retry_count": 0,
        "failure_deletion_timestamp": None,
        "next_attempt_after": None,
        "filters": [
            {
                "resource_type": "task",
                "resource_subtype": "milestone",
                "action": "changed",
                "fields": [first_field, "name"],
            },
            {"resource_type": "task", "resource_subtype": None, "action": "added", "fields": None},
        ],
        "is_workspace_webhook": False,
    }


def webhook_answer(number: int = 0) -> bytes:
    """Return what getWebhook answers."""
    return _encode({"data": webhook(number)})


def page(first: int, count: int, next_offset: str | None, *, own_filters: bool = False) -> bytes:
    """Return what getWebhooks answers: a page of webhooks, and where the next one is.

    The webhooks have the same filters, as those of an app mostly do, or each its own.
    """
    following = None
    if next_offset is not None:
        path = f"/webhooks?workspace=1331&limit={count}&offset={next_offset}"
        following = {"offset": next_offset, "path": path, "uri": f"https://app.asana.com/api/1.0{path}"}
    return _encode(
        {"data": [webhook(first + number, own_filters=own_filters) for number in range(count)], "next_page": following}
    )


def event(number: int) -> dict[str, Any]:
    """Return one event: of three in turn, a changed field, a task added to a section, and a deleted comment."""
    base = {
        "user": {"gid": str(_GID * 3 + number % 7), "resource_type": "user"},
        "created_at": f"2026-02-11T16:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}Z",
    }
    gid = str(_GID * 4 + number)
    task = {"gid": gid, "resource_type": "task", "resource_subtype": "default_task"}
    story = {"gid": gid, "resource_type": "story", "resource_subtype": "comment_added"}
    due_on = {"field": "due_on", "action": "changed"}
    assignee = {"field": "assignee", "action": "changed", "new_value": {"gid": str(_GID * 3), "resource_type": "user"}}
    section = {"gid": str(_GID * 5), "resource_type": "section"}
    kinds: list[dict[str, Any]] = [
        {"action": "changed", "resource": task, "parent": None, "change": due_on if number % 2 else assignee},
        {"action": "added", "resource": task, "parent": section},
        {"action": "deleted", "resource": story, "parent": None},
    ]
    return base | kinds[number % 3]


def delivery(events: int, number: int = 0) -> bytes:
    """Return the body of a delivery; another *number* makes another body of about the same length."""
    return _encode({"events": [event(number * events + one) for one in range(events)]})


def signature(body: bytes) -> str:
    """Return the ``X-Hook-Signature`` of a body."""
    return hmac.new(_KEY, body, hashlib.sha256).hexdigest()


def is_signed(body: bytes, header: str) -> bool:
    """Do what every receiver does with a delivery first: say whether its signature is the one of its body."""
    return hmac.compare_digest(signature(body), header)
