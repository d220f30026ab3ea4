"""The sending side of the fake: handshakes, signed deliveries, heartbeats, and their scripted faults.

Each webhook has at most one delivery in flight. A failed one blocks later ones until it succeeds or the webhook is
deleted. Asana publishes neither its backoff nor the size of its batches; the fake's numbers are arbitrary.
Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import contextlib
import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Any, Final, cast

from attrs import evolve

from asana_webhooks import wire
from asana_webhooks.models import Secret
from asana_webhooks.testing.clock import format_time
from asana_webhooks.testing.faults import Fault, FaultScript
from asana_webhooks.testing.records import Batch, DeliveryRecord, HandshakeRecord, WebhookRecord
from asana_webhooks.testing.serving import TargetClient, TargetResponse
from asana_webhooks.testing.validation import ApiError
from asana_webhooks.testing.world import HEARTBEAT_EVERY, World

__all__ = ["Sender"]

_SERVER: Final = "The remote server which is intended to receive the webhook"
_DELETED_AFTER: Final = timedelta(hours=24)
"""How long deliveries may fail before the webhook is deleted."""
_MAX_EVENTS: Final = 100
"""The most events in one delivery."""
_FIRST_WAIT: Final = timedelta(seconds=10)
_LONGEST_WAIT: Final = timedelta(hours=1)


class Sender:
    """Sends handshakes and deliveries to targets.

    Args:
        world: the webhooks; the sender deletes those whose deliveries fail for 24 hours.
        faults: the scripted faults.
        answer_timeout: seconds of real time a target has to answer.
        retries_grow: whether to add new events to a delivery that is resent.
        gone_deletes: whether a delivery answered with 410 deletes its webhook at once.
    """

    def __init__(
        self, world: World, faults: FaultScript, *, answer_timeout: float, retries_grow: bool, gone_deletes: bool
    ) -> None:
        self._world = world
        self._faults = faults
        self._targets = TargetClient(timeout=answer_timeout)
        self._retries_grow = retries_grow
        self._gone_deletes = gone_deletes
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._schedule_changed = asyncio.Event()
        self._open = False

    def start_sending(self) -> None:
        """Allow sending; needs a running event loop."""
        self._targets.start()
        self._open = True

    async def shake_hands(self, target: str, secret: Secret) -> None:
        """Send the handshake of a create call to *target*, and check that the answer repeats the secret.

        Raises:
            ApiError: 400, the target did not confirm the handshake.
        """
        plan = self._faults.take("handshake")
        if (stranger := plan.find("stranger", "before")) is not None:
            await self.post_handshake(target, self._world.secret(stranger.secret), stranger=True)
        await plan.wait("before")
        if plan.find("drop"):
            raise ApiError(400, f"{_SERVER} could not be reached")
        record, response = await self.post_handshake(target, secret)
        if plan.find("duplicate"):
            await self.post_handshake(target, secret)
        if (stranger := plan.find("stranger", "after")) is not None:
            await self.post_handshake(target, self._world.secret(stranger.secret), stranger=True)
        await plan.wait("after")
        if response.late:
            raise ApiError(400, f"{_SERVER} did not respond in time")
        if response.status is None:
            raise ApiError(400, f"{_SERVER} could not be reached")
        if not response.accepted:
            raise ApiError(400, f"{_SERVER} responded with an incorrect status code: {response.status}")
        if not record.echoed:
            raise ApiError(400, f"{_SERVER} did not respond with the handshake secret")

    async def post_handshake(
        self, target: str, secret: Secret, *, stranger: bool = False
    ) -> tuple[HandshakeRecord, TargetResponse]:
        """Post a handshake and record its outcome."""
        record = HandshakeRecord(target=target, secret=secret, stranger=stranger)
        self._world.handshakes.append(record)
        # Asana documents no body; receivers have seen these two bytes.
        response = await self._targets.post(target, {"X-Hook-Secret": secret.reveal()}, b"{}")
        record.status, record.failure, record.seconds = response.status, response.failure, response.seconds
        record.echoed = response.headers.get("X-Hook-Secret") == secret.reveal()
        return record, response

    def start_due(self) -> None:
        """Start sending for every webhook that has something due and nothing in flight."""
        now = self._world.clock.now()
        for webhook in list(self._world.webhooks.values()):
            due = _due_at(webhook)
            if due is not None and due <= now:
                self.start(webhook)

    def start(self, webhook: WebhookRecord) -> None:
        """Start sending everything this webhook has due, unless it is sending already."""
        if self._open and webhook.gid not in self._tasks:
            self._faults.activity.begin()
            task = asyncio.create_task(self._run(webhook), name=f"FakeAsana sends for webhook {webhook.gid}")
            task.add_done_callback(lambda _: self._faults.activity.end())
            self._tasks[webhook.gid] = task

    def next_due(self) -> tuple[datetime, WebhookRecord] | None:
        """Return when the next idle webhook falls due, and which; ``None`` for none, and while sending is stopped."""
        due = [
            (moment, webhook)
            for webhook in self._world.webhooks.values()
            if self._open and webhook.gid not in self._tasks and (moment := _due_at(webhook)) is not None
        ]
        return min(due, key=lambda one: (one[0], int(one[1].gid)), default=None)

    async def follow_clock(self) -> None:
        """Start everything when it falls due on a running clock, until cancelled."""
        while True:
            self._schedule_changed.clear()
            self.start_due()
            due = self.next_due()
            seconds = None if due is None else (due[0] - self._world.clock.now()).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._schedule_changed.wait()

    def wake(self) -> None:
        """Let `follow_clock` look again for what falls due next."""
        self._schedule_changed.set()

    def add_heartbeat(self, webhook: WebhookRecord) -> None:
        """Make the first heartbeat of a new webhook due now, before its events."""
        webhook.next_heartbeat = webhook.created_at

    async def drain(self, webhook: WebhookRecord) -> None:
        """Send everything the webhook has due, and wait for it.

        This does not count as further activity, because the caller's request is counted already.
        """
        if webhook.gid in self._tasks:
            await asyncio.wait([self._tasks[webhook.gid]])
            return
        self._tasks[webhook.gid] = cast("asyncio.Task[Any]", asyncio.current_task())
        await self._run(webhook)

    async def forge(self, webhook: WebhookRecord, *, body: bytes | None, secret: Secret) -> int | None:
        """Send a forged delivery, and return the status of the answer."""
        if body is None:
            circumstances = {"created_at": format_time(self._world.clock.tick()), "user": None, "parent": None}
            event = {"action": "deleted", "resource": webhook.resource.compact(), **circumstances}
            body = wire.encode({"events": [event]})
        response = await self._post(webhook, Batch(body=body), signature=_sign(secret, body), forged=True)
        return response.status

    async def aclose(self) -> None:
        """Stop sending, and cancel the deliveries in flight."""
        self._open = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._targets.aclose()

    async def _run(self, webhook: WebhookRecord) -> None:
        try:
            while (batch := self._next(webhook)) is not None:
                await self._deliver(webhook, batch)
        finally:
            del self._tasks[webhook.gid]
            self.wake()

    def _next(self, webhook: WebhookRecord) -> Batch | None:
        now = self._world.clock.now()
        if webhook.failure_deletion_timestamp is not None and webhook.failure_deletion_timestamp <= now:
            self._world.delete_webhook(webhook)
        return _take(webhook, now, retries_grow=self._retries_grow)

    async def _deliver(self, webhook: WebhookRecord, batch: Batch) -> None:
        plan = self._faults.take("delivery" if batch.events else "heartbeat", webhook=webhook.gid)
        await plan.wait("before")
        do = plan.fault.do if plan.fault else None
        if do == "lose":
            self._note(webhook, batch, batch.body, _sign(webhook.secret, batch.body)).failure = "lost on the way"
            _note_success(webhook, None)
            return
        response = await self._post_altered(webhook, batch, plan.fault)
        if response.status == 410 and self._gone_deletes:
            self._world.delete_webhook(webhook)
        if not response.accepted:
            _note_failure(webhook, batch, self._world.clock.now(), response.content)
            return
        _note_success(webhook, self._world.clock.now())
        if do == "duplicate":
            await self._post(webhook, batch, duplicate=True)

    async def _post_altered(self, webhook: WebhookRecord, batch: Batch, fault: Fault | None) -> TargetResponse:
        if fault is not None and fault.do == "tamper":
            body = batch.body[:-1] + b',"tampered":true}' if fault.body is None else fault.body
            return await self._post(webhook, batch, body=body.encode() if isinstance(body, str) else body, forged=True)
        if fault is not None and fault.do == "forge":
            signature = _sign(self._world.secret(fault.secret), batch.body)
            return await self._post(webhook, batch, signature=signature, forged=True)
        return await self._post(webhook, batch)

    async def _post(
        self,
        webhook: WebhookRecord,
        batch: Batch,
        *,
        body: bytes | None = None,
        signature: str | None = None,
        duplicate: bool = False,
        forged: bool = False,
    ) -> TargetResponse:
        body = batch.body if body is None else body
        signature = _sign(webhook.secret, batch.body) if signature is None else signature
        record = self._note(webhook, batch, body, signature, forged=forged)
        record.duplicate = duplicate
        headers = {"X-Hook-Signature": signature, "X-Asana-Request-Signature": signature}
        response = await self._targets.post(webhook.target, headers, body)
        record.status, record.failure, record.seconds = response.status, response.failure, response.seconds
        return response

    def _note(
        self, webhook: WebhookRecord, batch: Batch, body: bytes, signature: str, *, forged: bool = False
    ) -> DeliveryRecord:
        record = DeliveryRecord(
            webhook_gid=webhook.gid,
            body=body,
            events=len(batch.events),
            signature=signature,
            sent_at=self._world.clock.now(),
            heartbeat=not (batch.events or forged),
            retry=batch.retry,
            forged=forged,
        )
        self._world.deliveries.append(record)
        return record


def _sign(secret: Secret, body: bytes) -> str:
    """Sign as `asana_webhooks.sign_body` does, but accept an empty secret: an attacker would try it."""
    return hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()


def _make_batch(events: tuple[dict[str, object], ...] = ()) -> Batch:
    """Return a delivery of *events*; without events, a heartbeat."""
    return Batch(events=events, body=wire.encode({"events": list(events)}))


def _due_at(webhook: WebhookRecord) -> datetime | None:
    """Return when the webhook falls due next: a past time if it is due now, ``None`` for never."""
    if not webhook.active or webhook.quiet:
        return None
    if webhook.next_attempt_after and webhook.failure_deletion_timestamp:
        return min(webhook.next_attempt_after, webhook.failure_deletion_timestamp)
    if webhook.waiting:
        return webhook.created_at
    return webhook.next_heartbeat


def _is_first_heartbeat_due(webhook: WebhookRecord) -> bool:
    return webhook.next_heartbeat <= webhook.created_at


def _take(webhook: WebhookRecord, now: datetime, *, retries_grow: bool = False) -> Batch | None:
    """Take the webhook's next due delivery, if any: a resend, the first heartbeat, new events, or a heartbeat."""
    due = _due_at(webhook)
    if due is None or due > now:
        return None
    if webhook.failed is not None and retries_grow:
        room = _MAX_EVENTS - len(webhook.failed.events)
        grown = _make_batch((*webhook.failed.events, *webhook.waiting[:room]))
        del webhook.waiting[:room]
        return evolve(grown, retry=True)
    if webhook.failed is not None:
        return webhook.failed
    if webhook.waiting and not _is_first_heartbeat_due(webhook):
        events = tuple(webhook.waiting[:_MAX_EVENTS])
        del webhook.waiting[:_MAX_EVENTS]
        return _make_batch(events)
    webhook.next_heartbeat = now + HEARTBEAT_EVERY
    return _make_batch()


def _note_success(webhook: WebhookRecord, now: datetime | None) -> None:
    """Record that a delivery was accepted at *now*; ``None`` if it was lost, which counts as accepted."""
    if now is not None:
        webhook.last_success_at = now
        if webhook.failed is not None and webhook.next_heartbeat <= now and not _is_first_heartbeat_due(webhook):
            # The heartbeat fell due while deliveries failed. This success replaces it.
            webhook.next_heartbeat = now + HEARTBEAT_EVERY
    webhook.failed = None
    webhook.delivery_retry_count = 0
    webhook.next_attempt_after = None
    webhook.failure_deletion_timestamp = None


def _note_failure(webhook: WebhookRecord, batch: Batch, now: datetime, content: str) -> None:
    """Record that a delivery failed at *now*: keep it, and schedule the next attempt."""
    webhook.delivery_retry_count += batch.retry
    webhook.failed = evolve(batch, retry=True)
    webhook.last_failure_at = now
    webhook.last_failure_content = content
    # 10 s x 2^9 is over an hour; the bound on the exponent keeps the product in range.
    wait = min(_FIRST_WAIT * (1 << min(webhook.delivery_retry_count, 9)), _LONGEST_WAIT)
    webhook.next_attempt_after = now + wait
    webhook.failure_deletion_timestamp = webhook.failure_deletion_timestamp or now + _DELETED_AFTER
