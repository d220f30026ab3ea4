"""The demo in this process: it holds when all is well, and each of its checks fails when something is broken."""

import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console

from asana_webhooks import cli
from asana_webhooks.cli import demo
from asana_webhooks.cli.demo import choose_store, run_demo
from asana_webhooks.cli.plan import PROJECTS
from asana_webhooks.cli.report import StoreUsed, Summary, summarize
from asana_webhooks.cli.show import watch_on
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver import protocol
from asana_webhooks.receiver.receiver import Receiver, Reply
from asana_webhooks.store.base import NewDelivery, PutResult, registration_id
from asana_webhooks.store.memory import MemoryStore
from asana_webhooks.testing import FakeAsana
from tests.helpers.stores import ENDPOINT, SECRET, body, deliver, event, register

FEW = 120


class Silent:
    def stage(self, text: str) -> None:
        pass

    def arrived(self, count: int, of: int) -> None:
        pass


async def play(store: MemoryStore | None = None, *, changes: int = FEW) -> Summary:
    async with store or MemoryStore() as opened:
        samples = await run_demo(opened, Silent(), changes=changes)
    return summarize(samples, store=StoreUsed(url="memory:", kept=False), seconds=1.0)


def failed(summary: Summary) -> set[str]:
    return {check.id for check in summary.checks if not check.ok}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run the command line in this process; return the status it exits with."""
    monkeypatch.setattr(sys, "argv", ["asana-webhooks", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code


async def test_everything_holds() -> None:
    """With nothing broken every check passes, and the counts add up."""
    summary = await play()
    assert failed(summary) == set()
    assert summary.changes.wanted == FEW
    assert summary.changes.wanted + summary.changes.filtered == summary.changes.made
    assert summary.webhooks.listed == 253
    assert summary.webhooks.pages == 3
    assert summary.deliveries.heartbeats == 3
    assert sorted(one.status or 0 for one in summary.refused) == [401, 401, 401, 404, 404, 404]


async def test_the_store_is_left_clean() -> None:
    """Afterwards the store has no webhook and nothing to handle, so that the demo can run on it again."""
    async with MemoryStore() as store:
        for _ in range(2):
            samples = await run_demo(store, Silent(), changes=FEW)
            health = await store.health()
            assert (health.waiting, health.leased, health.dead, health.heartbeats) == (0, 0, 0, {})
            assert set(samples.wanted) == set(samples.arrived)


async def test_a_delivery_the_store_loses() -> None:
    """A store that says "stored" and keeps nothing is found out."""

    class Forgetful(MemoryStore):
        forgotten = False

        async def put(self, delivery: NewDelivery) -> PutResult:
            if not self.forgotten:
                self.forgotten = True
                return "stored"
            return await super().put(delivery)

    assert {"arrived", "duplicates"} <= failed(await play(Forgetful()))


def keep_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store in memory take every delivery for a new one."""
    put, numbers = MemoryStore.put, itertools.count()
    monkeypatch.setattr(MemoryStore, "put", lambda self, new: put(self, evolve(new, signature=f"{next(numbers):064x}")))


async def test_a_store_that_keeps_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not know duplicates is found out."""
    keep_duplicates(monkeypatch)
    assert failed(await play()) == {"once", "duplicates"}


async def test_a_receiver_that_believes_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every signature is accepted, forgeries get in, and what was spoiled is not sent again."""
    monkeypatch.setattr(protocol, "verify_signature", lambda *_, **__: True)
    assert {"forgeries", "unexpected", "retried"} <= failed(await play())


async def test_a_receiver_that_answers_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that echoes any handshake at any time is found out."""

    class Polite(Receiver):
        async def receive(self, endpoint: str, headers: Any, body: Any) -> Reply:
            headers = list(headers)
            reply = await super().receive(endpoint, headers, body)
            secrets = [value for name, value in headers if name.lower() == b"x-hook-secret"]
            return Reply(status=200, headers=((b"X-Hook-Secret", secrets[0]),)) if secrets else reply

    monkeypatch.setattr(demo, "Receiver", Polite)
    assert failed(await play()) == {"secret"}


async def test_a_store_that_changes_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the stranger's handshake ends the registration, the secret is gone and true deliveries fail."""
    stranger_handshake = FakeAsana.stranger_handshake
    store = MemoryStore()

    async def succeed(fake: FakeAsana, target: str) -> int | None:
        await store.close(registration_id(target.rpartition("/")[2]))
        return await stranger_handshake(fake, target)

    monkeypatch.setattr(FakeAsana, "stranger_handshake", succeed)
    assert {"secret", "arrived"} <= failed(await play(store))


async def test_a_list_with_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that does not hold every webhook is found out."""

    def some(*arguments: Any, **keywords: Any) -> Any:
        return get_webhooks(*arguments, resource=PROJECTS[0], **keywords)

    monkeypatch.setattr(demo, "get_webhooks", some)
    assert failed(await play()) == {"pages"}


async def test_a_filter_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """If updating the filters does nothing, what they had to hold back arrives."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(demo, "update_webhook", nothing)
    assert failed(await play()) == {"filter", "unexpected"}


async def test_a_delivery_that_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """If what was spoiled never comes again, it is missed."""

    async def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(FakeAsana, "advance", nothing)
    assert {"retried", "arrived"} <= failed(await play())


async def test_no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a duplicate the demo does not claim to have folded any."""
    monkeypatch.setattr(demo, "DUPLICATED", ())
    assert failed(await play()) == {"duplicates"}


async def test_registrations_that_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """If closing a registration does nothing, deliveries after the end are accepted, and that is found out."""

    async def nothing(*_: Any) -> bool:
        return True

    monkeypatch.setattr(MemoryStore, "close", nothing)
    assert {"late", "unexpected"} <= failed(await play())


async def test_a_store_in_use() -> None:
    """A store with somebody's webhooks or deliveries in it is left alone."""
    async with MemoryStore() as store:
        id = await register(store, ENDPOINT, SECRET)
        await deliver(store, id, body(event()))
        with pytest.raises(ConfigurationError, match=r"in use \(1 webhooks, 1 deliveries"):
            await run_demo(store, Silent(), changes=FEW)
        await store.close(id)
        with pytest.raises(ConfigurationError, match=r"in use \(0 webhooks, 1 deliveries"):
            await run_demo(store, Silent(), changes=FEW)
        assert (await store.health()).waiting == 1


async def test_an_interrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off leaves its store as clean as one that ends."""

    async def fall(*_: Any) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(FakeAsana, "settle", fall)
    async with MemoryStore() as store:
        with pytest.raises(ConnectionAbortedError):
            await run_demo(store, Silent(), changes=FEW)
        health = await store.health()
        assert (health.waiting, health.heartbeats) == (0, {})


def test_store_in_a_temporary_folder() -> None:
    """Without a name the store is a file in a folder that is gone afterwards."""
    with choose_store(None) as used:
        folder = Path(used.url.removeprefix("sqlite:///")).parent
        assert folder.is_dir()
        assert not used.kept
    assert not folder.exists()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("memory:", StoreUsed(url="memory:", kept=False)),
        ("sqlite:////data/demo.db", StoreUsed(url="sqlite:////data/demo.db", kept=True)),
        ("demo.db", StoreUsed(url="sqlite:///demo.db", kept=True)),
        ("/data/12:30.db", StoreUsed(url="sqlite:////data/12:30.db", kept=True)),
    ],
)
def test_named_store(named: str, expected: StoreUsed) -> None:
    """A store is named by a URL, or by the path of a SQLite file."""
    with choose_store(named) as used:
        assert used == expected


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the summary is all there is, and its numbers are those of a whole run."""
    assert call(monkeypatch, "demo", "--store", "memory:", "--json") == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert printed.err == ""
    assert summary["ok"] is True
    assert summary["changes"] | {"seconds": 0, "per_second": 0} == {
        "made": 1285,
        "wanted": 1000,
        "arrived": 1000,
        "missing": 0,
        "twice": 0,
        "filtered": 285,
        "unexpected": 0,
        "seconds": 0,
        "per_second": 0,
    }
    assert summary["deliveries"]["duplicates"] == 20
    assert summary["webhooks"] == {"established": 3, "listed": 253, "pages": 3}
    assert 0 < summary["acknowledgement_ms"]["p50"] <= summary["acknowledgement_ms"]["p99"]
    assert [one["status"] for one in summary["refused"]] == [401, 401, 401, 404, 404, 404]
    assert len(summary["checks"]) == 12
    assert all(check["ok"] for check in summary["checks"])
    assert summary["store"] == {"url": "memory:", "kept": False}


@pytest.mark.slow
def test_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without --json there are lines about the progress, then the checks; a kept store can be used again."""
    for _ in range(2):
        assert call(monkeypatch, "demo", "--store", str(tmp_path / "demo.db")) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert "establishing 3 webhooks ...\n" in printed.out
        assert "1,000 of 1,000" in printed.out
        assert "All 12 checks hold." in printed.out
        assert "demo.db (kept)" in printed.out


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["for people", "json"])
def test_exit_status_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """If a check fails, the exit status is 1, and the summary is printed all the same."""
    keep_duplicates(monkeypatch)
    assert call(monkeypatch, "demo", "--store", "memory:", *option) == 1
    printed = capsys.readouterr().out
    if option:
        assert json.loads(printed)["ok"] is False
    else:
        assert "✗ none arrived twice" in printed
        assert "2 of 12 checks failed" in printed


def console(**settings: Any) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=80, _environ={"TERM": "xterm"}, **settings), written


def progress(shown: Console, *, quiet: bool = False) -> None:
    with watch_on(shown, quiet=quiet) as watch:
        watch.stage("establishing")
        watch.arrived(5, 778)
        watch.stage("delivering")


@pytest.mark.parametrize(
    ("settings", "quiet", "expected"),
    [
        ({"force_terminal": True}, True, ""),
        ({"force_terminal": False}, True, ""),
        ({"force_terminal": False}, False, "establishing ...\ndelivering ...\n"),
    ],
)
def test_progress_in_lines(settings: dict[str, Any], quiet: bool, expected: str) -> None:
    """Where no terminal is, progress is a line for each stage, or nothing if it is not wanted."""
    shown, written = console(**settings)
    progress(shown, quiet=quiet)
    assert written.getvalue() == expected


def test_progress_on_a_terminal() -> None:
    """On a terminal a bar moves, in one line of the terminal, and is gone at the end."""
    shown, written = console(force_terminal=True)
    progress(shown)
    last = written.getvalue().rpartition("delivering")[2]
    assert "5/778" in last
    assert "\x1b[2K" in last  # the line is erased
    assert "establishing" not in last
