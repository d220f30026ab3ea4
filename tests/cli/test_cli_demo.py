"""The demo in this process: it holds when all is well, and each of its checks fails when something is broken."""

import io
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console

from asana_webhooks import (
    ConfigurationError,
    MemoryStore,
    Receiver,
    RegistrationState,
    Reply,
    ensure_webhook,
    get_webhooks,
)
from asana_webhooks.cli import demo
from asana_webhooks.cli.demo import LABEL, PROJECTS, Check, Summary, choose_store, run_demo
from asana_webhooks.store.base import NewDelivery, PutResult
from asana_webhooks.testing import FakeAsana
from tests.cli.cli_process import call
from tests.helpers.stores import ENDPOINT, SECRET, body, deliver, event, register

FEW = 240


class Forgetful(MemoryStore):
    """Says "stored" and keeps nothing, once."""

    forgotten = False

    async def put(self, delivery: NewDelivery) -> PutResult:
        if not self.forgotten:
            self.forgotten = True
            return "stored"
        return await super().put(delivery)


class Trusting(MemoryStore):
    """Takes every delivery for a new one."""

    count = 0

    async def put(self, delivery: NewDelivery) -> PutResult:
        self.count += 1
        return await super().put(evolve(delivery, signature=f"{self.count:064x}"))


class Agreeable(Receiver):
    """Says 200 to what it refuses."""

    async def receive(self, endpoint: str, headers: Any, body: Any) -> Reply:
        return evolve(await super().receive(endpoint, headers, body), status=200)


class Polite(Receiver):
    """Echoes any handshake at any time."""

    async def receive(self, endpoint: str, headers: Any, body: Any) -> Reply:
        headers = list(headers)
        reply = await super().receive(endpoint, headers, body)
        secrets = [value for name, value in headers if name.lower() == b"x-hook-secret"]
        return Reply(status=200, headers=((b"X-Hook-Secret", secrets[0]),)) if secrets else reply


async def play(store: MemoryStore | None = None) -> Summary:
    async with store or MemoryStore() as opened:
        return await run_demo(opened, lambda _: None, changes=FEW)


def failed(summary: Summary) -> set[str]:
    return {check.id for check in summary.checks if not check.ok}


async def nothing(*_: Any, **__: Any) -> None:
    pass


async def ensure_without_filters(*args: Any, filters: Any, **options: Any) -> Any:
    return await ensure_webhook(*args, **options)


def one_more_after_the_restart() -> Callable[..., Any]:
    """Have one more live webhook made for each project when the receiver has restarted."""
    calls = itertools.count()

    async def ensure(*args: Any, label: str, **options: Any) -> Any:
        started_again = next(calls) >= 2 * len(PROJECTS)  # each has been created, and then got its filters
        return await ensure_webhook(*args, label="another" if started_again else label, **options)

    return ensure


async def test_everything_holds() -> None:
    """With nothing broken every check passes, and the store can be used for it again."""
    async with MemoryStore() as store:
        for _ in range(2):
            said = list[str]()
            summary = await run_demo(store, said.append, changes=FEW)
            assert failed(summary) == set()
            assert len(summary.checks) == 12
            assert (summary.webhooks, summary.pages, summary.changes) == (253, 3, FEW)
            assert said[1:3] == ["creating 3 webhooks", "listing 253 webhooks"]
            health = await store.health()
            assert (health.waiting, health.leased, health.dead, health.webhooks) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("store", "expected"), [(Forgetful, {"arrived", "duplicates"}), (Trusting, {"once", "duplicates"})]
)
async def test_broken_stores(store: type[MemoryStore], expected: set[str]) -> None:
    """A store that loses a delivery is found out, and one that does not know duplicates."""
    assert failed(await play(store())) == expected


@pytest.mark.parametrize(
    ("receiver", "expected"),
    [(Agreeable, {"forged", "stranger", "spoiled", "arrived", "late", "duplicates"}), (Polite, {"stranger"})],
)
async def test_broken_receivers(monkeypatch: pytest.MonkeyPatch, receiver: type[Receiver], expected: set[str]) -> None:
    """A receiver that accepts what it must refuse is found out, and one that answers strangers."""
    monkeypatch.setattr(demo, "Receiver", receiver)
    assert failed(await play()) == expected


@pytest.mark.parametrize(
    ("of", "name", "instead", "expected"),
    [
        (demo, "get_webhooks", partial(get_webhooks, resource=PROJECTS[0]), {"listed"}),
        (demo, "ensure_webhook", ensure_without_filters, {"filter", "after"}),
        (demo, "ensure_webhook", one_more_after_the_restart(), {"restarted", "after", "once", "late", "filter"}),
        (FakeAsana, "advance", nothing, {"spoiled", "after", "arrived"}),
        (FakeAsana, "script", lambda *_: None, {"spoiled", "duplicates"}),
    ],
)
async def test_what_does_not_happen(
    monkeypatch: pytest.MonkeyPatch, of: object, name: str, instead: Callable[..., Any], expected: set[str]
) -> None:
    """The demo finds out a list with holes, a filter that is not set, one more webhook after the restart, a delivery
    that never comes again, and duplicates that are not sent.
    """
    monkeypatch.setattr(of, name, instead)
    assert failed(await play()) == expected


async def test_a_store_in_use() -> None:
    """A store with somebody's webhooks or deliveries in it is left alone."""
    async with MemoryStore() as store:
        id = await register(store, ENDPOINT, SECRET)
        await deliver(store, id, body(event()))
        with pytest.raises(ConfigurationError, match="in use"):
            await run_demo(store, lambda _: None)
        await store.close_registration(id)
        with pytest.raises(ConfigurationError, match="in use"):
            await run_demo(store, lambda _: None)
        assert (await store.health()).waiting == 1


async def test_a_store_in_which_webhooks_are_being_created() -> None:
    """The demo waits until an earlier one that was killed no longer creates its webhook, and leaves those of others."""
    async with MemoryStore() as store:
        for id, label, ttl in (("a" * 64, LABEL, 1), ("b" * 64, "", 60)):
            url = "https://example.com"
            assert await store.open_registration(id, resource=PROJECTS[1], public_url=url, label=label, ttl=ttl)
        began = time.monotonic()
        assert (await run_demo(store, lambda _: None, changes=FEW)).ok
        assert time.monotonic() - began >= 1
        found = [await store.find_registration(id) for id in ("a" * 64, "b" * 64)]
        states = [one.state for one in found if one]
        assert states == [RegistrationState.CLOSED, RegistrationState.PENDING]


async def test_an_interrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off leaves its store as clean as one that ends."""

    async def fall(*_: Any) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(FakeAsana, "settle", fall)
    async with MemoryStore() as store:
        with pytest.raises(ConnectionAbortedError):
            await run_demo(store, lambda _: None, changes=FEW)
        health = await store.health()
        assert (health.waiting, health.webhooks) == (0, 0)


def test_the_store_that_is_chosen() -> None:
    """A store is named by a URL or by a path; without a name it is a file in a folder that is gone afterwards."""
    named = {
        "memory:": "memory:",
        "sqlite:////data/demo.db": "sqlite:////data/demo.db",
        "demo.db": "sqlite:///demo.db",
        "/data/12:30.db": "sqlite:////data/12:30.db",
    }
    for name, url in named.items():
        with choose_store(name) as chosen:
            assert chosen == url
    with choose_store(None) as chosen:
        folder = Path(chosen.removeprefix("sqlite:///")).parent
        assert folder.is_dir()
    assert not folder.exists()


def test_exit_status_of_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If a check fails, the exit status is 1, and the summary is printed all the same."""
    monkeypatch.setattr(demo, "DUPLICATED", range(0))
    assert call(monkeypatch, "demo", "--store", "memory:", "--json") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert call(monkeypatch, "demo", "--store", "memory:") == 1
    printed = capsys.readouterr().out
    assert "✗ duplicate deliveries were stored once" in printed
    assert "1 of 12 checks failed" in printed


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the progress is one line that is gone at the end."""
    written = io.StringIO()
    shown = Console(file=written, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    monkeypatch.setattr(demo, "Console", lambda **_: shown)
    assert call(monkeypatch, "demo", "--store", "memory:") == 0
    before, found, after = written.getvalue().partition("What happened")
    assert found
    assert "removing the webhooks" in before
    assert before.count("\n") <= 2
    assert "\x1b[2K" in before  # the line is erased
    assert "removing the webhooks" not in after


def test_summary_for_people() -> None:
    """Each check has a mark, or a word where only ASCII can be written, and no line is wider than a terminal."""
    checks = [
        Check(id=str(ok), text="an attacker could not replace the secret", ok=ok, detail="401") for ok in (True, False)
    ]
    summary = Summary(
        webhooks=253, pages=3, changes=1_000, per_second=1234.5, seconds=0.94, store="memory:", checks=checks
    )
    text = summary.render().plain
    assert ("✓ an attacker" in text, "✗ an attacker" in text) == (True, True)
    assert "1,234  changes a second" in text
    assert text.endswith("\n1 of 2 checks failed. It took 0.9 s.\nStore: memory:")
    assert max(map(len, text.splitlines())) <= 80
    plain = summary.render(ascii_only=True).plain
    assert plain.isascii()
    assert ("ok an attacker" in plain, "FAILED an attacker" in plain) == (True, True)
    del checks[1]
    assert "All 1 checks passed." in summary.render().plain
