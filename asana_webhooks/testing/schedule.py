"""When a webhook sends what: batches, heartbeats, retries with back-off, deletion. Decisions only.

One delivery is under way per webhook, and a failed one holds back those behind it until it succeeds or the webhook is
deleted. Asana publishes neither its schedule of retries nor the size of its batches; these numbers are the fake's own.
Source: https://developers.asana.com/docs/webhooks-guide
"""

from datetime import datetime, timedelta
from typing import Final

from attrs import evolve

from asana_webhooks import wire
from asana_webhooks.testing.records import Batch, WebhookRecord

__all__ = [
    "DELETED_AFTER",
    "HEARTBEAT_EVERY",
    "MAX_EVENTS",
    "backoff",
    "due_at",
    "is_over",
    "make_batch",
    "note_failure",
    "note_success",
    "take",
]

HEARTBEAT_EVERY: Final = timedelta(hours=8)
DELETED_AFTER: Final = timedelta(hours=24)
"""How long deliveries may fail before the webhook is deleted."""
MAX_EVENTS: Final = 100
"""Events in one delivery at most."""
FIRST_RETRY: Final = timedelta(seconds=10)
LONGEST_WAIT: Final = timedelta(hours=1)


def make_batch(events: tuple[dict[str, object], ...] = ()) -> Batch:
    """A delivery of *events*; of none, a heartbeat."""
    return Batch(events=events, body=wire.encode({"events": list(events)}))


def backoff(retries: int) -> timedelta:
    """How long to wait after a failure, when the delivery has been sent again *retries* times already."""
    # 10 s x 2^9 is over an hour; the bound on the exponent keeps the product in range.
    return min(FIRST_RETRY * (1 << min(retries, 9)), LONGEST_WAIT)


def due_at(webhook: WebhookRecord) -> datetime | None:
    """When the webhook has something to do next; in the past if it has now, ``None`` for never."""
    if not webhook.active or webhook.quiet:
        return None
    if webhook.next_attempt_after and webhook.failure_deletion_timestamp:
        return min(webhook.next_attempt_after, webhook.failure_deletion_timestamp)
    if webhook.ready or webhook.waiting:
        return webhook.created_at
    return webhook.next_heartbeat


def take(webhook: WebhookRecord, now: datetime, *, retries_grow: bool = False) -> Batch | None:
    """Take what the webhook has to send now, if anything: a retry, what was overtaken, new events, a heartbeat.

    A webhook whose deliveries have failed for too long has nothing to send: see `is_over`.
    """
    due = due_at(webhook)
    if due is None or due > now:
        return None
    if webhook.failed is not None:
        return _take_retry(webhook, grow=retries_grow)
    if webhook.ready:
        return webhook.ready.popleft()
    if webhook.waiting:
        events = tuple(webhook.waiting[:MAX_EVENTS])
        del webhook.waiting[:MAX_EVENTS]
        return make_batch(events)
    webhook.next_heartbeat = now + HEARTBEAT_EVERY
    return make_batch()


def _take_retry(webhook: WebhookRecord, *, grow: bool) -> Batch | None:
    batch = webhook.failed
    if batch is None or not grow:
        return batch
    room = MAX_EVENTS - len(batch.events)
    grown = make_batch((*batch.events, *webhook.waiting[:room]))
    del webhook.waiting[:room]
    return evolve(grown, retry=True)


def is_over(webhook: WebhookRecord, now: datetime) -> bool:
    """Tell whether deliveries have failed for so long that the webhook is deleted."""
    return webhook.failure_deletion_timestamp is not None and webhook.failure_deletion_timestamp <= now


def note_success(webhook: WebhookRecord, now: datetime | None) -> None:
    """A delivery was accepted at *now*; ``None`` if it was lost, which Asana takes for accepted."""
    if now is not None:
        webhook.last_success_at = now
        if webhook.failed is not None and webhook.next_heartbeat <= now:
            # It fell due while deliveries failed; the one that has just succeeded showed that the target lives.
            webhook.next_heartbeat = now + HEARTBEAT_EVERY
    webhook.failed = None
    webhook.delivery_retry_count = 0
    webhook.next_attempt_after = None
    webhook.failure_deletion_timestamp = None
    webhook.ready.extend(webhook.overtaken)
    webhook.overtaken.clear()


def note_failure(webhook: WebhookRecord, batch: Batch, now: datetime, content: str) -> None:
    """A delivery was not accepted at *now*: keep it, and say when it is sent again."""
    webhook.delivery_retry_count += batch.retry
    webhook.failed = evolve(batch, retry=True)
    webhook.last_failure_at = now
    webhook.last_failure_content = content
    webhook.next_attempt_after = now + backoff(webhook.delivery_retry_count)
    webhook.failure_deletion_timestamp = webhook.failure_deletion_timestamp or now + DELETED_AFTER
