"""The demo: everything this package does, once, against a fake Asana on this machine."""

import asyncio
import json as json_module
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from attrs import asdict, define, field
from rich.console import Console

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    Delivery,
    EstablishedWebhook,
    Receiver,
    Store,
    WebhookFilter,
    Worker,
    delete_webhook,
    establish_webhook,
    get_webhook,
    get_webhooks,
    open_store,
    update_webhook,
)
from asana_webhooks.cli.demo_summary import Check, Summary
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver

__all__ = ["choose_store", "run_demo", "show_demo"]

PROJECTS: Final = ("8675309", "8675310", "8675311")
"""Each of them gets a webhook."""
FILTERED_PROJECT: Final = PROJECTS[-1]
FILTER: Final = WebhookFilter(resource_type="task", action="changed", fields=("due_on",))
"""What the webhook of `FILTERED_PROJECT` sends; the others send everything."""
KINDS: Final = (("changed", "due_on"), ("changed", "name"), ("added", None), ("changed", "completed"))
"""What happens to tasks in turn: an action, and a field."""
EARLIER_WEBHOOKS: Final = 250
CHANGES: Final = 1_000
AT_ONCE: Final = 10
"""So many changes are made before everybody has heard of them; Asana batches what happens together."""
DUPLICATED: Final = range(2, 32, 3)
"""Which deliveries come twice, counted from the first."""


async def show_demo(store: str | None, *, json: bool) -> int:
    """Run the demo, show how far it is and what it proved, and return the exit status.

    Args:
        store: where to keep things, as `choose_store` takes it.
        json: print nothing but the summary, as one JSON object.

    Raises:
        AsanaError: as `run_demo` does.
    """
    console = Console(stderr=json)
    with choose_store(store) as url, _progress(console, quiet=json) as say:
        async with open_store(url) as opened:
            summary = await run_demo(opened, say)
    summary.store = url if store else "SQLite, in a temporary folder that is gone now"
    if json:
        sys.stdout.write(json_module.dumps({"ok": summary.ok, **asdict(summary)}, indent=2) + "\n")
    else:
        console.print(summary.render(ascii_only=console.options.ascii_only), soft_wrap=True)
    return 0 if summary.ok else 1


@contextmanager
def choose_store(named: str | None) -> Iterator[str]:
    """Yield the URL of the store: the one *named* by a URL or a path, or one in a temporary folder that goes again."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="asana-webhooks-") as folder:
            yield f"sqlite:///{Path(folder, 'demo.db')}"
    else:
        yield named if ":" in named.partition("/")[0] else f"sqlite:///{named}"


@contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show how far it is: on one line of a terminal, on a line for each part elsewhere unless *quiet*."""
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("starting", spinner="line") as status:
            yield status.update
    else:
        yield lambda part: None if quiet else console.print(f"{part} ...", markup=False, highlight=False)


async def run_demo(store: Store, say: Callable[[str], None], *, changes: int = CHANGES) -> Summary:
    """Run the whole demo on *store*, and return what it proved.

    Args:
        store: where to keep registrations and deliveries; nobody else may be using it.
        say: is told of each part when it begins.
        changes: how many changes to make.

    Raises:
        ConfigurationError: the store is in use.
        AsanaError: something failed that must not.
    """
    began_at = time.monotonic()
    health = await store.health()
    if health.heartbeats or health.waiting or health.leased:
        # The demo's worker would handle deliveries that somebody else waits for.
        raise ConfigurationError("this store is in use; give the demo one of its own")
    say("starting a fake Asana and a receiver")
    async with (
        FakeAsana(projects=PROJECTS, webhooks=EARLIER_WEBHOOKS) as fake,
        serve_receiver(Receiver(store)) as public_url,
        AsanaSession(fake.token, base_url=fake.url) as asana,
    ):
        run = _Run(fake=fake, asana=asana, store=store, say=say, summary=Summary())
        async with run.working():
            await run.ask(public_url)
            await run.be_called(changes)
            await run.delete()
        run.compare()
    run.summary.seconds = round(time.monotonic() - began_at, 3)
    return run.summary


@define(kw_only=True)
class _Run:
    """One run: who takes part, and what was observed so far. A change is told by its project and its task."""

    fake: FakeAsana
    asana: AsanaSession
    store: Store
    say: Callable[[str], None]
    summary: Summary
    webhooks: list[EstablishedWebhook] = field(factory=list)
    """One for each of `PROJECTS`."""
    filter_kept: bool = False
    wanted: set[tuple[str, str]] = field(factory=set)
    held_back: set[tuple[str, str]] = field(factory=set)
    arrived: Counter[tuple[str, str]] = field(factory=Counter)
    handled: int = 0
    """Deliveries that the worker handled."""
    first_made_at: float = 0.0
    last_handled_at: float = 0.0

    def check(self, id: str, ok: bool, text: str, detail: str) -> None:
        self.summary.checks.append(Check(id=id, text=text, ok=ok, detail=detail))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have a worker running inside; on the way out everything is closed, and what still waits is handled."""
        worker = Worker(self.store, self.handle, poll=0.02)
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await self.close()
            worker.stop()
            await running
            await Worker(self.store, self.handle).drain()

    async def handle(self, delivery: Delivery) -> None:
        """The worker's handler: take note of what arrived."""
        self.handled += 1
        self.arrived.update((delivery.resource, event.resource.gid) for event in delivery.events)
        self.last_handled_at = time.monotonic()

    async def close(self) -> None:
        """Close the registrations: their deliveries are refused from now on. May be called again."""
        for webhook in self.webhooks:
            await self.store.close(webhook.registration)

    async def ask(self, public_url: str) -> None:
        """Create webhooks (the receiver answers their handshakes), walk through all there are, and set a filter."""
        self.say(f"establishing {len(PROJECTS)} webhooks")
        for project in PROJECTS:
            established = await establish_webhook(self.asana, self.store, public_url=public_url, resource=project)
            self.webhooks.append(established)
        echoed = sum(one.echoed for one in self.fake.handshakes)
        detail = f"{echoed} of {len(PROJECTS)}"
        self.check("established", echoed == len(PROJECTS), "every webhook was established with a handshake", detail)

        existing, listed = list(self.fake.webhooks), list[str]()
        self.say(f"listing {len(existing)} webhooks")
        async for page in get_webhooks(self.asana, workspace=self.fake.workspace).pages():
            self.summary.pages += 1
            listed.extend(webhook.gid for webhook in page.items)
        self.summary.webhooks = len(listed)
        detail = f"{len(listed)} of {len(existing)}"
        self.check("listed", sorted(listed) == sorted(existing), "every webhook was listed, none twice", detail)

        self.say("setting a filter")
        gid = self.webhooks[PROJECTS.index(FILTERED_PROJECT)].webhook_gid
        await update_webhook(self.asana, gid, filters=[FILTER])
        self.filter_kept = (await get_webhook(self.asana, gid)).filters == (FILTER,)

    async def be_called(self, changes: int) -> None:
        """Make the changes; half-way a forger, a stranger and a spoiled delivery come between them."""
        half = changes // 2
        self.fake.script(*(Fault(at="delivery", do="duplicate", after=number) for number in DUPLICATED))
        self.first_made_at = time.monotonic()
        self.say(f"delivering the first {half:,} changes")
        await self.change(range(half))
        self.say("letting a forger and a stranger try")
        await self.attack(range(half, half + AT_ONCE))
        self.say(f"delivering the other {changes - half:,} changes")
        await self.change(range(half + AT_ONCE, changes))

    async def change(self, numbers: range) -> None:
        """Let something happen to a new task each time, in one project after the other."""
        for number in numbers:
            project = PROJECTS[number % len(PROJECTS)]
            action, changed = KINDS[number // len(PROJECTS) % len(KINDS)]
            task = self.fake.add_task(parent=project)
            self.fake.change(task, action=action, field=changed)
            passes = project != FILTERED_PROJECT or changed in (FILTER.fields or ())
            (self.wanted if passes else self.held_back).add((project, task))
            if number % AT_ONCE == AT_ONCE - 1:
                await self.fake.settle()
        await self.fake.settle()

    async def attack(self, numbers: range) -> None:
        """Forge a delivery, offer a secret to a webhook that has one, and change what is delivered on its way."""
        gid = self.webhooks[0].webhook_gid
        forged = await self.fake.forge_delivery(gid)
        self.check("forged", forged == 401, "a forged delivery was refused", _answers(forged))

        stranger = await self.fake.stranger_handshake(self.fake.webhook(gid).target)
        refused = stranger == 401 and not self.fake.handshakes[-1].echoed
        self.check("stranger", refused, "a stranger could not replace the secret", _answers(stranger))

        before = len(self.fake.deliveries)
        self.fake.script(Fault(at="delivery", do="tamper"))
        await self.change(numbers)
        await self.fake.advance(60)  # until Asana sends again what was refused
        answers = [one.status for one in self.fake.deliveries[before:] if one.forged or one.retry]
        self.check("spoiled", answers == [401, 200], "a delivery changed on its way came again", _answers(*answers))

    async def delete(self) -> None:
        """Delete the webhooks while some have a delivery under way, which comes too late."""
        self.say("deleting the webhooks")
        before = len(self.fake.deliveries)
        under_way = self.fake.hold("delivery", times=None)
        for project in PROJECTS:
            self.fake.change(self.fake.add_task(parent=project), field="due_on")
        await self.fake.settle()  # all but these
        for webhook in self.webhooks:
            await delete_webhook(self.asana, webhook.webhook_gid)
        await self.close()
        under_way.release()
        await self.fake.settle()
        answers = [one.status for one in self.fake.deliveries[before:]]
        self.check("late", set(answers) == {404}, "deleted webhooks deliver no more", _answers(*answers))

    def compare(self) -> None:
        """Compare what arrived with what was made."""
        arrived, others = self.wanted & self.arrived.keys(), self.arrived.keys() - self.wanted
        sent = [one for one in self.fake.deliveries if not (one.forged or one.heartbeat)]
        accepted = [one.seconds * 1000 for one in sent if one.status == 200]
        self.summary.changes, self.summary.deliveries = len(self.wanted) + len(self.held_back), len(sent)
        self.summary.per_second = round(len(arrived) / (self.last_handled_at - self.first_made_at), 1)
        self.summary.median_ms = round(median(accepted or [0.0]), 2)

        detail = f"{len(arrived):,} of {len(self.wanted):,}"
        self.check("arrived", arrived == self.wanted, "every change that must arrive arrived", detail)
        detail = f"{len(self.held_back):,} held back, {len(others):,} too many"
        self.check("filter", self.filter_kept and not others, "the filter held the others back", detail)
        twice = self.arrived.total() - len(self.arrived)
        self.check("once", not twice, "none arrived twice", f"{twice:,} twice")
        duplicates = sum(one.duplicate for one in sent)
        once = 0 < duplicates == len(accepted) - self.handled
        detail = f"{duplicates:,} came, {self.handled:,} handled"
        self.check("duplicates", once, "deliveries that came twice were kept once", detail)


def _answers(*statuses: int | None) -> str:
    return ", ".join("no answer" if status is None else str(status) for status in statuses) or "not tried"
