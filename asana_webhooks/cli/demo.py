"""The demo: everything this package does, once, against a fake Asana on this machine."""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Final

import aiohttp
from attrs import field, frozen
from yarl import URL

from asana_webhooks import wire
from asana_webhooks.cli.plan import FILTER, FILTERED_PROJECT, PROJECTS, PlannedChange, plan_changes
from asana_webhooks.cli.report import StoreUsed
from asana_webhooks.cli.samples import Occurrence, Refusal, Samples
from asana_webhooks.cli.show import Watch
from asana_webhooks.client.operations import delete_webhook, get_webhook, get_webhooks, update_webhook
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Delivery, Secret
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import Store
from asana_webhooks.subscriptions.establish import EstablishedWebhook, establish_webhook
from asana_webhooks.testing import FakeAsana, Fault
from asana_webhooks.testing.serving import serve_receiver
from asana_webhooks.worker.worker import Handler, Worker

__all__ = ["choose_store", "run_demo"]

CHANGES: Final = 1_000
"""So many must arrive."""
EARLIER_WEBHOOKS: Final = 250
TASKS: Final = 20
"""Tasks in each project at the beginning."""
AT_ONCE: Final = 10
"""So many changes are made before everybody has heard of them; Asana batches what happens together."""
DUPLICATED: Final = range(2, 60, 3)
"""Which deliveries come twice, counted from the first."""
_BETWEEN_CHANGES: Final = timedelta(milliseconds=1)

_Turns = Mapping[str, Iterator[str]]
"""For each project its tasks, again and again."""


@contextmanager
def choose_store(named: str | None) -> Iterator[StoreUsed]:
    """Choose the store: the one *named* by a URL or a path, or one in a temporary folder that lasts as long as this."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="asana-webhooks-") as folder:
            yield StoreUsed(url=f"sqlite:///{Path(folder, 'demo.db')}", kept=False)
    elif ":" in named.partition("/")[0]:
        yield StoreUsed(url=named, kept=named != "memory:")
    else:
        yield StoreUsed(url=f"sqlite:///{named}", kept=True)


async def run_demo(store: Store, watch: Watch, *, changes: int = CHANGES) -> Samples:
    """Run the whole demo on *store*, and return what was observed.

    Args:
        store: where to keep registrations and deliveries; nobody else may be using it.
        watch: who is told how far it is.
        changes: how many changes to make that must arrive; between them come those that a filter holds back.

    Raises:
        ConfigurationError: the store is in use.
        AsanaError: something failed that must not.
    """
    await _check_unused(store)
    plan = plan_changes(changes)
    watch.arrived(0, changes)
    watch.stage("starting a fake Asana and a receiver")
    async with (
        _quiet_log(),
        FakeAsana(projects=PROJECTS, webhooks=EARLIER_WEBHOOKS) as fake,
        serve_receiver(Receiver(store)) as public_url,
        AsanaSession(fake.token, base_url=fake.url) as asana,
    ):
        play = _Play(fake=fake, asana=asana, store=store, watch=watch, plan=plan, wanted=changes)
        async with _working(store, play.handle):
            try:
                await play.ask(public_url)
                await play.be_called()
                await play.end()
            finally:
                await play.close()
        play.samples.deliveries = tuple(fake.deliveries)
        return play.samples


async def _check_unused(store: Store) -> None:
    health = await store.health()
    open_deliveries = health.waiting + health.leased
    if health.heartbeats or open_deliveries:
        # The demo's worker would handle deliveries that somebody else waits for.
        raise ConfigurationError(
            f"this store is in use ({len(health.heartbeats)} webhooks, {open_deliveries} deliveries to handle); "
            "give the demo one of its own"
        )


@asynccontextmanager
async def _quiet_log() -> AsyncIterator[None]:
    """Keep the receiver's warnings about our own attacks off the screen, unless logging was set up."""
    log, handler = logging.getLogger("asana_webhooks"), logging.NullHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@asynccontextmanager
async def _working(store: Store, handle: Handler) -> AsyncIterator[None]:
    """Have a worker running inside; on the way out everything that still waits is handled."""
    worker = Worker(store, handle, poll=0.02)
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running
        await Worker(store, handle).drain()


@frozen(kw_only=True)
class _Play:
    """One run: who takes part, and what was observed so far."""

    fake: FakeAsana
    asana: AsanaSession
    store: Store
    watch: Watch
    plan: tuple[PlannedChange, ...]
    wanted: int
    """How many of these must arrive."""
    samples: Samples = field(factory=Samples)
    webhooks: dict[str, EstablishedWebhook] = field(factory=dict)
    """By project."""

    async def handle(self, delivery: Delivery) -> None:
        """The worker's handler: take note of what arrived."""
        self.samples.handled += 1
        for event in delivery.events:
            self.samples.arrived.append(Occurrence.received(delivery, event))
            self.samples.fingerprints[event.fingerprint] += 1
        self.samples.last_handled_at = time.monotonic()
        self.watch.arrived(len(self.samples.arrived), self.wanted)

    # We ask

    async def ask(self, public_url: str) -> None:
        """Establish the webhooks, list all there are, and set a filter."""
        self.watch.stage(f"establishing {len(PROJECTS)} webhooks")
        for project in PROJECTS:
            self.webhooks[project] = await establish_webhook(
                self.asana, self.store, public_url=public_url, resource=project, workspace=self.fake.workspace
            )
        self.samples.established = len(self.webhooks)
        self.samples.echoed = sum(one.echoed for one in self.fake.handshakes)
        await self._list()
        self.watch.stage("setting a filter")
        filtered = self.webhooks[FILTERED_PROJECT].webhook_gid
        await update_webhook(self.asana, filtered, filters=[FILTER])
        self.samples.filter_kept = (await get_webhook(self.asana, filtered)).filters == (FILTER,)

    async def _list(self) -> None:
        self.samples.existing = list(self.fake.webhooks)
        self.watch.stage(f"listing {len(self.samples.existing)} webhooks")
        async for page in get_webhooks(self.asana, workspace=self.fake.workspace).pages():
            self.samples.pages += 1
            self.samples.listed.extend(webhook.gid for webhook in page.items)

    # We are called

    async def be_called(self) -> None:
        """Make the changes; half-way a forger, a stranger and a spoiled delivery come between them."""
        tasks = {project: [self.fake.add_task(parent=project) for _ in range(TASKS)] for project in PROJECTS}
        turns = {project: cycle(gids) for project, gids in tasks.items()}
        self.fake.script(*(Fault(at="delivery", do="duplicate", after=number) for number in DUPLICATED))
        half = len(self.plan) // 2
        self.samples.began_at = time.monotonic()
        self.watch.stage(f"delivering the first {half:,} changes")
        await self._make(self.plan[:half], turns)
        self.watch.stage("letting a forger and a stranger try")
        await self._attack()
        self.watch.stage(f"delivering the other {len(self.plan) - half:,} changes")
        await self._spoil(self.plan[half : half + AT_ONCE], turns)
        await self._make(self.plan[half + AT_ONCE :], turns)

    async def _make(self, plan: tuple[PlannedChange, ...], turns: _Turns) -> None:
        for start in range(0, len(plan), AT_ONCE):
            for planned in plan[start : start + AT_ONCE]:
                self._make_one(planned, next(turns[planned.project]))
            await self.fake.settle()

    def _make_one(self, planned: PlannedChange, task: str) -> None:
        # No two changes at the same time: that is what tells them apart.
        self.fake.clock.move_to(self.fake.clock.now() + _BETWEEN_CHANGES)
        if planned.on == "new task":
            task = self.fake.add_task(parent=planned.project)
        resource = planned.project if planned.on == "project" else task
        event = self.fake.change(resource, action=planned.action, field=planned.field)
        noted = self.samples.wanted if planned.arrives else self.samples.filtered
        noted.append(Occurrence.made(planned.project, event))

    async def _attack(self) -> None:
        victim = self.webhooks[PROJECTS[0]]
        gid = victim.webhook_gid
        self.samples.deliveries_before_attack = len(self.fake.deliveries)
        before = await self._secret(victim)
        forged = await self.fake.forge_delivery(gid)
        self.samples.forgeries.append(
            Refusal(what="a forged delivery", why="signed with another secret", status=forged, expected=401)
        )
        stranger = await self.fake.stranger_handshake(self.fake.webhook(gid).target)
        self.samples.strangers.append(
            Refusal(what="a stranger's handshake", why="the webhook has its secret", status=stranger, expected=401)
        )
        self.samples.stranger_echoed = self.fake.handshakes[-1].echoed
        self.samples.secret_kept = before == await self._secret(victim) == self.fake.secret(gid)

    async def _secret(self, webhook: EstablishedWebhook) -> Secret | None:
        registration = await self.store.find(webhook.registration)
        return None if registration is None else registration.secret

    async def _spoil(self, plan: tuple[PlannedChange, ...], turns: _Turns) -> None:
        """Let a delivery be changed on its way, and turn the clock to when Asana sends the true one again."""
        before = len(self.fake.deliveries)
        self.fake.script(Fault(at="delivery", do="tamper", webhook=self.webhooks[PROJECTS[0]].webhook_gid))
        await self._make(plan, turns)
        status = next((one.status for one in self.fake.deliveries[before:] if one.forged), None)
        self.samples.forgeries.append(
            Refusal(what="a delivery changed on its way", why="not what Asana signed", status=status, expected=401)
        )
        await self.fake.advance(60)

    # It ends

    async def end(self) -> None:
        """Delete the webhooks, and see what becomes of deliveries that come all the same."""
        self.watch.stage("deleting the webhooks")
        targets = [(self.fake.webhook(one.webhook_gid).target, one) for one in self.webhooks.values()]
        secrets = {one.webhook_gid: self.fake.secret(one.webhook_gid) for one in self.webhooks.values()}
        for _, webhook in targets:
            await delete_webhook(self.asana, webhook.webhook_gid)
        await self.close()
        for target, webhook in targets:
            status = await _deliver_late(target, secrets[webhook.webhook_gid])
            self.samples.late.append(
                Refusal(
                    what="a delivery for a deleted webhook", why="signed, but too late", status=status, expected=404
                )
            )

    async def close(self) -> None:
        """Close the registrations. May be called again."""
        for webhook in self.webhooks.values():
            await self.store.close(webhook.registration)


async def _deliver_late(target: str, secret: Secret) -> int:
    event = {"action": "deleted", "resource": {"gid": "1"}, "created_at": "2026-01-02T03:04:05.678Z"}
    body = wire.encode({"events": [event]})
    headers = {"X-Hook-Signature": sign_body(body, secret=secret), "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(URL(target, encoded=True), data=body, headers=headers) as answer,
    ):
        return answer.status
