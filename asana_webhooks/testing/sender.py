"""Asana the sender: signed deliveries, one under way per webhook, and everything that can go wrong with them."""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from attrs import evolve

from asana_webhooks.models import Secret
from asana_webhooks.testing import schedule
from asana_webhooks.testing.activity import Activity
from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.records import Batch, DeliveryRecord, WebhookRecord
from asana_webhooks.testing.script import FaultScript
from asana_webhooks.testing.signing import secret_of, sign_with
from asana_webhooks.testing.target_client import Postman, Reply

__all__ = ["Sender"]


class Sender:
    """Sends what the webhooks have to send.

    Args:
        webhooks: all webhooks by gid; those whose deliveries fail for too long are taken out.
        postman: the way to the targets.
        clock: when something falls due.
        faults: what is to go wrong.
        activity: where work under way is counted.
        rng: where forged secrets come from.
        records: where deliveries are noted.
        retries_grow: whether new events join a delivery that is sent again.
    """

    def __init__(
        self,
        *,
        webhooks: dict[str, WebhookRecord],
        postman: Postman,
        clock: FakeClock,
        faults: FaultScript,
        activity: Activity,
        rng: random.Random,
        records: list[DeliveryRecord],
        retries_grow: bool,
    ) -> None:
        self._webhooks = webhooks
        self._postman = postman
        self._clock = clock
        self._faults = faults
        self._activity = activity
        self._rng = rng
        self._records = records
        self._retries_grow = retries_grow
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._rested = asyncio.Event()
        self._open = False

    def start_sending(self) -> None:
        """Allow sending; needs a running event loop."""
        self._postman.start()
        self._open = True

    def start_due(self) -> None:
        """Begin everything that is due now and not under way."""
        now = self._clock.now()
        for webhook in list(self._webhooks.values()):
            due = schedule.due_at(webhook)
            if due is not None and due <= now:
                self.start(webhook)

    def start(self, webhook: WebhookRecord) -> None:
        """Begin sending what this webhook has to send, unless that is under way."""
        if self._open and webhook.gid not in self._tasks:
            self._activity.begin()
            self._tasks[webhook.gid] = asyncio.create_task(
                self._run_counted(webhook), name=f"FakeAsana sends for webhook {webhook.gid}"
            )

    def next_due(self) -> tuple[datetime, WebhookRecord] | None:
        """What falls due next, and for which webhook, apart from those under way; nothing once sending has stopped."""
        due = [
            (moment, int(webhook.gid), webhook)
            for webhook in self._webhooks.values()
            if self._open and webhook.gid not in self._tasks and (moment := schedule.due_at(webhook)) is not None
        ]
        if not due:
            return None
        moment, _, webhook = min(due, key=lambda one: one[:2])
        return moment, webhook

    async def follow_clock(self) -> None:
        """Begin everything when it falls due on a running clock, for ever."""
        while True:
            self._rested.clear()
            self.start_due()
            due = self.next_due()
            seconds = None if due is None else (due[0] - self._clock.now()).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._rested.wait()

    def wake(self) -> None:
        """Say that something else may fall due next."""
        self._rested.set()

    async def heartbeat(self, webhook: WebhookRecord) -> None:
        """Send the heartbeat of a new webhook, and whatever else it has, and wait for that."""
        webhook.ready.append(schedule.make_batch())
        await self.drain(webhook)

    async def drain(self, webhook: WebhookRecord) -> None:
        """Send what the webhook has to send now, and wait for that.

        The caller is counted as under way itself, so this is not counted once more.
        """
        if webhook.gid in self._tasks:
            await asyncio.wait([self._tasks[webhook.gid]])
            return
        self._tasks[webhook.gid] = cast("asyncio.Task[Any]", asyncio.current_task())
        await self._run(webhook)

    async def forge(
        self,
        webhook: WebhookRecord,
        body: bytes,
        *,
        secret: Secret,
        signature: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int | None:
        """Send a delivery that is not Asana's, and return the status it was answered with."""
        if signature is None:
            signature = sign_with(secret, body)
        reply = await self._post(webhook, Batch(body=body), signature=signature, forged=True, headers=headers)
        return reply.status

    async def aclose(self) -> None:
        """Stop sending, for good."""
        self._open = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._postman.aclose()

    async def _run_counted(self, webhook: WebhookRecord) -> None:
        try:
            await self._run(webhook)
        finally:
            self._activity.end()

    async def _run(self, webhook: WebhookRecord) -> None:
        try:
            while (batch := self._next(webhook)) is not None:
                await self._deliver_or_keep(webhook, batch)
        finally:
            del self._tasks[webhook.gid]
            self.wake()

    def _next(self, webhook: WebhookRecord) -> Batch | None:
        now = self._clock.now()
        if schedule.is_over(webhook, now):
            webhook.active = False
            self._webhooks.pop(webhook.gid, None)
        return schedule.take(webhook, now, retries_grow=self._retries_grow)

    async def _deliver_or_keep(self, webhook: WebhookRecord, batch: Batch) -> None:
        try:
            await self._deliver(webhook, batch)
        except Exception as problem:
            # A mistake of the fake's own: it shows, and what was to be delivered still comes, as a retry.
            schedule.note_failure(webhook, batch, self._clock.now(), f"The fake failed: {type(problem).__name__}")
            raise

    async def _deliver(self, webhook: WebhookRecord, batch: Batch) -> None:
        plan = self._faults.take("delivery" if batch.events else "heartbeat", webhook=webhook.gid)
        await plan.wait("before")
        do = plan.fault.do if plan.fault else None
        # A retry holds back everything behind it, so nothing could go before it.
        if do == "reorder" and not (batch.late or batch.retry):
            webhook.overtaken.append(evolve(batch, late=True))
            return
        if do == "lose":
            self._note(webhook, batch, batch.body, sign_with(webhook.secret, batch.body)).failure = "lost on the way"
            schedule.note_success(webhook, None)
            return
        reply = await self._post_altered(webhook, batch, plan.fault)
        if not reply.accepted:
            schedule.note_failure(webhook, batch, self._clock.now(), reply.content)
            return
        schedule.note_success(webhook, self._clock.now())
        if do == "duplicate":
            await self._post(webhook, batch, duplicate=True)

    async def _post_altered(self, webhook: WebhookRecord, batch: Batch, fault: Fault | None) -> Reply:
        if fault is not None and fault.do == "tamper":
            tampered = batch.body[:-1] + b',"tampered":true}' if fault.body is None else _bytes(fault.body)
            return await self._post(webhook, batch, body=tampered, forged=True)
        if fault is not None and fault.do == "forge":
            signature = sign_with(secret_of(fault.secret, self._rng), batch.body)
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
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        body = batch.body if body is None else body
        signature = sign_with(webhook.secret, batch.body) if signature is None else signature
        record = self._note(webhook, batch, body, signature, forged=forged)
        record.duplicate = duplicate
        signatures = {"X-Hook-Signature": signature, "X-Asana-Request-Signature": signature} if signature else {}
        reply = await self._postman.post(webhook.target, {**signatures, **(headers or {})}, body)
        record.status, record.failure, record.seconds = reply.status, reply.failure, reply.seconds
        return reply

    def _note(
        self, webhook: WebhookRecord, batch: Batch, body: bytes, signature: str, *, forged: bool = False
    ) -> DeliveryRecord:
        record = DeliveryRecord(
            webhook_gid=webhook.gid,
            body=body,
            events=len(batch.events),
            signature=signature,
            sent_at=self._clock.now(),
            heartbeat=not (batch.events or forged),
            retry=batch.retry,
            forged=forged,
        )
        self._records.append(record)
        return record


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body
