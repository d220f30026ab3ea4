"""The demo: uses every part of this package once, against a fake Asana on this machine."""

import asyncio
import json as json_module
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from attrs import asdict, define, field, frozen
from rich.console import Console
from rich.text import Text
from yarl import URL

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    Delivery,
    Receiver,
    Store,
    WebhookFilter,
    Worker,
    ensure_webhook,
    get_webhooks,
    open_store,
    remove_webhooks,
)
from asana_webhooks.cli.common import store_url
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver

__all__ = ["Check", "Summary", "choose_store", "run_demo", "show_demo"]

PROJECTS: Final = ("8675309", "8675310", "8675311")
FILTERED_PROJECT: Final = PROJECTS[-1]
FILTER: Final = WebhookFilter(resource_type="task", action="changed", fields=("due_on",))
"""The filter of the webhook on `FILTERED_PROJECT`; the other webhooks have none."""
LABEL: Final = "demo"  # the demo leaves webhooks with other labels alone
KINDS: Final = (("changed", "due_on"), ("changed", "name"), ("added", None), ("changed", "completed"))
"""The changes made to tasks, in turn: an action and a field."""
EARLIER_WEBHOOKS: Final = 250
CHANGES: Final = 1_000
AT_ONCE: Final = 10
"""Changes made before waiting for their deliveries; Asana batches simultaneous changes."""
DUPLICATED: Final = range(2, 32, 3)
"""The deliveries sent twice, by number, counted from the first."""


@frozen(kw_only=True)
class Check:
    """One check of the demo, passed or failed."""

    id: str
    text: str
    ok: bool
    detail: str


@define(kw_only=True)
class Summary:
    """The figures and checks of one run of the demo, filled in as it runs."""

    webhooks: int = 0  # listed
    pages: int = 0
    changes: int = 0
    """The number of changes made, including those that the filter blocks."""
    deliveries: int = 0
    """The number of delivery attempts for them."""
    per_second: float = 0.0
    """Changes handled per second, from making the first to handling the last."""
    median_ms: float = 0.0
    """The median time in milliseconds from sending a delivery to its 200."""
    seconds: float = 0.0
    """The duration of the whole run in seconds."""
    store: str = ""
    checks: list[Check] = field(factory=list)

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    def render(self, *, ascii_only: bool = False) -> Text:
        """Return the summary as text. With *ascii_only* it uses only ASCII characters."""
        passed, failed = ("ok", "FAILED") if ascii_only else ("✓", "✗")
        bad = sum(not check.ok for check in self.checks)
        figures = (
            (f"{self.webhooks:,}", f"webhooks listed in {self.pages} pages"),
            (f"{self.changes:,}", "task changes in three projects"),
            (f"{self.deliveries:,}", "deliveries, including duplicates"),
            (f"{self.per_second:,.0f}", "changes a second delivered, stored and handled"),
            (f"{self.median_ms:.1f} ms", "median time to store and acknowledge a delivery"),
        )
        lines = [
            Text("\nWhat happened", style="bold"),
            *(Text.assemble((f"{figure:>9}", "bold cyan"), f"  {text}") for figure, text in figures),
            Text("\nChecks", style="bold"),
        ]
        for check in self.checks:
            mark = (passed, "green") if check.ok else (failed, "bold red")
            detail = (check.detail, "dim" if check.ok else "red")
            lines.append(Text.assemble("  ", mark, f" {check.text:<47} ", detail))
        conclusion = f"{bad} of {len(self.checks)} checks failed." if bad else f"All {len(self.checks)} checks passed."
        lines.append(Text(f"\n{conclusion} It took {self.seconds:.1f} s.", "bold red" if bad else "bold green"))
        lines.append(Text(f"Store: {self.store}", "dim"))
        return Text("\n").join(lines)


async def show_demo(store: str | None, *, json: bool) -> int:
    """Run the demo, show its progress and results, and return the exit status.

    Args:
        store: the path or URL of the store, passed to `choose_store`.
        json: print only the summary, as one JSON object.

    Raises:
        AsanaError: as `run_demo` does.
    """
    console = Console(stderr=json)
    with choose_store(store) as url, _progress(console, quiet=json) as say:
        async with open_store(url) as opened:
            summary = await run_demo(opened, say)
    summary.store = _described(url) if store else "SQLite, in a temporary folder (now deleted)"
    if json:
        sys.stdout.write(json_module.dumps({"ok": summary.ok, **asdict(summary)}, indent=2) + "\n")
    else:
        console.print(summary.render(ascii_only=console.options.ascii_only), soft_wrap=True)
    return 0 if summary.ok else 1


@contextmanager
def choose_store(named: str | None) -> Iterator[str]:
    """Yield the URL of the store *named* by a URL or path, or of one in a temporary folder that is deleted on exit."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="asana-webhooks-") as folder:
            yield f"sqlite:///{Path(folder, 'demo.db')}"
    else:
        yield store_url(named)


def _described(url: str) -> str:
    """Return what the summary says of a store: not PostgreSQL's URL, which may contain a password."""
    is_postgres = url.startswith(("postgresql://", "postgres://"))
    return "PostgreSQL, in the schema asana_webhooks (still there)" if is_postgres else url


@contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the progress: on one line of a terminal; elsewhere on a line for each part, unless *quiet*."""
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("starting", spinner="line") as status:
            yield status.update
    else:
        yield lambda part: None if quiet else console.print(f"{part} ...", markup=False, highlight=False)


async def run_demo(store: Store, say: Callable[[str], None], *, changes: int = CHANGES) -> Summary:
    """Run the whole demo on *store*, and return its summary.

    Args:
        store: the store for registrations and deliveries; nothing else may use it.
        say: called with the name of each part as it starts.
        changes: the number of changes to make.

    Raises:
        ConfigurationError: the store is in use.
        AsanaError: a step of the demo failed.
    """
    began_at = time.monotonic()
    health = await store.health()
    if health.webhooks or health.waiting or health.leased:
        # The demo's worker would handle deliveries meant for another worker.
        raise ConfigurationError("this store is in use: it has webhooks or deliveries; give the demo another one")
    say("starting a fake Asana and a receiver")
    async with (
        FakeAsana(projects=PROJECTS, webhooks=EARLIER_WEBHOOKS) as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
    ):
        run = _Run(fake=fake, asana=asana, store=store, say=say, summary=Summary())
        async with run.working():
            async with serve_receiver(Receiver(store)) as run.public_url:
                await run.create_webhooks()
                await run.receive(range(changes // 2))
            say("restarting the receiver")
            async with serve_receiver(Receiver(store), port=URL(run.public_url).port or 0):
                await run.receive_after_restart(range(changes // 2, changes))
                await run.remove()
        run.compare()
    run.summary.seconds = round(time.monotonic() - began_at, 3)
    return run.summary


@define(kw_only=True)
class _Run:
    """The state of one run. A change is identified by its project and its task."""

    fake: FakeAsana
    asana: AsanaSession
    store: Store
    say: Callable[[str], None]
    summary: Summary
    public_url: str = ""
    expected: set[tuple[str, str]] = field(factory=set)
    filtered_out: set[tuple[str, str]] = field(factory=set)
    arrived: Counter[tuple[str, str]] = field(factory=Counter)
    handled: int = 0  # deliveries
    first_made_at: float = 0.0
    last_handled_at: float = 0.0

    def check(self, id: str, ok: bool, text: str, detail: str) -> None:
        self.summary.checks.append(Check(id=id, text=text, ok=ok, detail=detail))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker inside the block. On exit remove the webhooks and handle the remaining deliveries."""
        worker = Worker(self.store, self.handle, poll=0.02)
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await remove_webhooks(self.asana, self.store, label=LABEL)
            worker.stop()
            await running
            await Worker(self.store, self.handle).drain()

    async def handle(self, delivery: Delivery) -> None:
        """Record the events of a delivery: the worker's handler."""
        self.handled += 1
        self.arrived.update((delivery.resource, event.resource.gid) for event in delivery.events)
        self.last_handled_at = time.monotonic()

    async def ensure(self, *filters: WebhookFilter) -> list[str]:
        """Ensure the webhooks, as a service does at each start; return what was done. *filters* are one project's."""
        ensure = partial(ensure_webhook, self.asana, self.store, public_url=self.public_url, label=LABEL)
        wanted = [(project, filters if project == FILTERED_PROJECT else ()) for project in PROJECTS]
        return [(await ensure(resource=project, filters=its)).action for project, its in wanted]

    async def create_webhooks(self) -> None:
        """Create webhooks (the receiver answers their handshakes), list all webhooks, and set a filter."""
        self.say(f"creating {len(PROJECTS)} webhooks")
        await self.ensure()
        echoed = sum(one.echoed for one in self.fake.handshakes)
        detail = f"{echoed} of {len(PROJECTS)}"
        self.check("created", echoed == len(PROJECTS), "every webhook completed its handshake", detail)

        existing, listed = list(self.fake.webhooks), list[str]()
        self.say(f"listing {len(existing)} webhooks")
        async for page in get_webhooks(self.asana, workspace=self.fake.workspace).pages():
            self.summary.pages += 1
            listed.extend(webhook.gid for webhook in page.items)
        self.summary.webhooks = len(listed)
        detail = f"{len(listed)} of {len(existing)}"
        self.check("listed", sorted(listed) == sorted(existing), "every webhook was listed, none twice", detail)

        self.say("setting a filter")
        await self.ensure(FILTER)

    async def receive(self, numbers: range) -> None:
        """Make the changes. Then try a forgery, an attacker's handshake and a tampered delivery."""
        self.fake.script(*(Fault(at="delivery", do="duplicate", after=number) for number in DUPLICATED))
        self.first_made_at = time.monotonic()
        self.say(f"delivering the first {len(numbers):,} changes")
        await self.change(numbers[:-AT_ONCE])
        self.say("sending a forgery and an attacker's handshake")
        await self.attack(numbers[-AT_ONCE:])

    async def receive_after_restart(self, numbers: range) -> None:
        """Ensure the webhooks after the restart, and make the other changes: nothing may be doubled."""
        existing, unchanged = set(self.fake.webhooks), (await self.ensure(FILTER)).count("unchanged")
        kept = unchanged == len(PROJECTS) and set(self.fake.webhooks) == existing
        detail = f"{unchanged} unchanged, {len(self.fake.webhooks)} in all"
        self.check("restarted", kept, "a restart kept every webhook and added none", detail)
        self.say(f"delivering the other {len(numbers):,} changes")
        before, made = len(self.fake.deliveries), len(self.expected)
        await self.change(numbers)
        made = len(self.expected) - made
        arrived = sum(one.events for one in self.fake.deliveries[before:] if one.status == 200)
        self.check("after", arrived == made, "each change after the restart arrived once", f"{arrived} of {made}")

    async def change(self, numbers: range) -> None:
        """Create a task and change it, once for each number, in each project in turn."""
        for number in numbers:
            project = PROJECTS[number % len(PROJECTS)]
            action, changed = KINDS[number // len(PROJECTS) % len(KINDS)]
            task = self.fake.add_task(parent=project)
            self.fake.change(task, action=action, field=changed)
            passes = project != FILTERED_PROJECT or changed in (FILTER.fields or ())
            (self.expected if passes else self.filtered_out).add((project, task))
            if number % AT_ONCE == AT_ONCE - 1:
                await self.fake.settle()
        await self.fake.settle()

    async def attack(self, numbers: range) -> None:
        """Forge a delivery, send a handshake with another secret, and tamper with a delivery."""
        gid = list(self.fake.webhooks)[-1]
        forged = await self.fake.forge_delivery(gid)
        self.check("forged", forged == 401, "a forged delivery was refused", _answers(forged))

        stranger = await self.fake.stranger_handshake(self.fake.webhook(gid).target)
        refused = stranger == 401 and not self.fake.handshakes[-1].echoed
        self.check("stranger", refused, "an attacker could not replace the secret", _answers(stranger))

        before = len(self.fake.deliveries)
        self.fake.script(Fault(at="delivery", do="tamper"))
        await self.change(numbers)
        await self.fake.advance(60)  # until Asana resends the refused delivery
        answers = [one.status for one in self.fake.deliveries[before:] if one.forged or one.retry]
        self.check("spoiled", answers == [401, 200], "a tampered delivery was refused and resent", _answers(*answers))

    async def remove(self) -> None:
        """Remove the webhooks while each has a delivery in flight, which then arrives too late."""
        self.say("removing the webhooks")
        before = len(self.fake.deliveries)
        in_flight = self.fake.hold("delivery", times=None)
        for project in PROJECTS:
            self.fake.change(self.fake.add_task(parent=project), field="due_on")
        await self.fake.settle()  # all other deliveries
        await remove_webhooks(self.asana, self.store, label=LABEL)
        in_flight.release()
        await self.fake.settle()
        answers = [one.status for one in self.fake.deliveries[before:]]
        self.check("late", set(answers) == {404}, "deliveries of removed webhooks were refused", _answers(*answers))

    def compare(self) -> None:
        """Compare the changes received with those made."""
        arrived, others = self.expected & self.arrived.keys(), self.arrived.keys() - self.expected
        sent = [one for one in self.fake.deliveries if not (one.forged or one.heartbeat)]
        accepted = [one.seconds * 1000 for one in sent if one.status == 200]
        self.summary.changes, self.summary.deliveries = len(self.expected) + len(self.filtered_out), len(sent)
        self.summary.per_second = round(len(arrived) / (self.last_handled_at - self.first_made_at), 1)
        self.summary.median_ms = round(median(accepted or [0.0]), 2)

        detail = f"{len(arrived):,} of {len(self.expected):,}"
        self.check("arrived", arrived == self.expected, "every expected change arrived", detail)
        detail = f"{len(others):,} of {len(self.filtered_out):,} passed"
        self.check("filter", not others, "the filter blocked the other changes", detail)
        twice = self.arrived.total() - len(self.arrived)
        self.check("once", not twice, "no change was handled twice", f"{twice:,} twice")
        duplicates = sum(one.duplicate for one in sent)
        once = 0 < duplicates == len(accepted) - self.handled
        detail = f"{duplicates:,} duplicates, {self.handled:,} deliveries handled"
        self.check("duplicates", once, "duplicate deliveries were stored once", detail)


def _answers(*statuses: int | None) -> str:
    return ", ".join("no answer" if status is None else str(status) for status in statuses) or "not tried"
