"""``inbox`` with its commands, beside a service that uses the store."""

import asyncio
import base64
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import asdict, define, field
from cryptography.fernet import Fernet

from asana_webhooks import (
    Delivery,
    PermanentFailure,
    Secret,
    SQLiteStore,
    Store,
    StoredDelivery,
    Worker,
    sign_body,
    verify_signature,
)
from asana_webhooks.cli.common import named_store
from asana_webhooks.store.base import DeliveryState, NewDelivery
from asana_webhooks.store.secret_box import FernetBox
from tests.cli.cli_process import Ended, call, on_terminal, run_unread
from tests.helpers.raw import until
from tests.helpers.stores import SECRET, Clock, body, deliver, event, register

OTHER = "Another_endpoint_0123456789_abcdefghijklmnop"
UNKNOWN = "there is no such delivery; it may be done"
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "list": (),
    "show": ("1",),
    "requeue": ("--all",),
    "discard": ("1", "--yes"),
    "replay": ("1", "--to", "http://127.0.0.1:1/hooks"),
    "export": (),
    "purge": ("--older-than", "3d", "--yes"),
}


@define
class Inbox:
    """A store in use, and the command line beside it."""

    store: Store
    clock: Clock
    file: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    ids: list[str] = field(factory=list)
    """The registrations: one without a label, and one with the label tenant-a."""

    async def run(self, *arguments: str) -> Ended:
        status = await asyncio.to_thread(call, self.monkeypatch, "inbox", *arguments)
        printed = self.capsys.readouterr()
        assert SECRET.reveal() not in printed.out + printed.err
        return Ended(status=int(status or 0), out=printed.out, err=printed.err)

    async def json_of(self, *arguments: str) -> list[dict[str, Any]]:
        ended = await self.run(*arguments, "--json")
        assert ended.err == ""
        return [json.loads(line) for line in ended.out.splitlines()]

    async def add(self, *contents: bytes, to: int = 0) -> None:
        for content in contents:
            await deliver(self.store, self.ids[to], content)

    async def bury(
        self, count: int, *, error: str = "OSError: no route", to: int = 0, done: tuple[int, ...] = ()
    ) -> None:
        """Add dead letters of two events each."""
        await asyncio.gather(*(self.add(body(event(), event()), to=to) for _ in range(count)))
        for lease in await self.store.claim(count, lease=60):
            assert await self.store.fail(lease, error=error, retry_in=None, done=done)

    async def states(self) -> dict[int, str]:
        pages = [await self.store.deliveries(state=state, limit=1000) for state in DeliveryState]
        return {one.id: one.state.value for page in pages for one in page}


async def filled(store: Store, clock: Clock, file: Path, *fixtures: Any) -> Inbox:
    made = Inbox(store, clock, file, *fixtures)
    made.ids += [await register(store), await register(store, OTHER, gid="43215", label="tenant-a")]
    return made


@pytest.fixture(name="inbox")
async def _inbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Inbox]:
    """A SQLite store with two webhooks and no delivery."""
    clock, file = Clock(now=time.time()), tmp_path / "asana.db"
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(file))
    async with SQLiteStore(file, clock=clock) as store:
        yield await filled(store, clock, file, monkeypatch, capsys)


async def one_of(inbox: Inbox, id: int) -> StoredDelivery:
    found = await inbox.store.delivery(id)
    assert found is not None
    return found


# status


async def test_status(inbox: Inbox) -> None:
    """A store at work is healthy: the counts, the oldest age and the rest are lines; as JSON they are the health's."""
    inbox.clock.advance(-(3 * 3600 + 12 * 60 + 5))
    await inbox.add(body(event()), body(event()))
    inbox.clock.now = time.time()
    await inbox.store.claim(1, lease=60)
    ended = await inbox.run("status")
    assert (ended.status, ended.err) == (0, "")
    lines = dict(line.split("\t") for line in ended.out.splitlines())
    log = lines.pop("log_bytes").replace(",", "")
    assert lines == {
        "healthy": "yes",
        "waiting": "1",
        "leased": "1",
        "quarantined": "0",
        "dead": "0",
        "oldest_age": "3 h 12 min",
        "writable": "yes",
        "secrets_readable": "yes",
        "webhooks": "2",
        "silent": "",
        "problems": "",
    }
    (data,) = await inbox.json_of("status")
    health = asdict(await inbox.store.health())
    ages = data.pop("oldest_age"), health.pop("oldest_age")
    assert abs(ages[0] - ages[1]) < 60
    data.pop("log_bytes"), health.pop("log_bytes")
    assert int(log) > 0
    assert data == {"healthy": True} | health | {"silent": [], "problems": []}


async def test_status_of_many(inbox: Inbox) -> None:
    """A count at the limit of the health says that there may be more."""
    inbox.monkeypatch.setattr("asana_webhooks.cli.inbox.MAX_COUNT", 2)
    await inbox.add(body(event()), body(event()))
    assert "waiting\t2 or more\n" in (await inbox.run("status")).out


async def test_unhealthy(inbox: Inbox) -> None:
    """A dead letter, a silent webhook and a store that takes nothing are each a reason for status 1."""
    inbox.clock.advance(-11 * 3600)
    await register(inbox.store, "A_third_endpoint_0123456789_abcdefghijklmno", gid="43216")
    inbox.clock.now = time.time()
    ended = await inbox.run("status")
    assert (ended.status, "silent\t43216\n" in ended.out) == (1, True)
    for one in await inbox.store.list_registrations(webhook_gid="43216"):
        await inbox.store.record_heartbeat(one.id)
    assert (await inbox.run("status")).status == 0
    await inbox.bury(1)
    ended = await inbox.run("status")
    assert (ended.status, "dead\t1\n" in ended.out) == (1, True)
    assert (await inbox.run("discard", "1", "-y")).status == 0
    assert (await inbox.run("status")).status == 0


async def test_sealed_secrets(inbox: Inbox, tmp_path: Path) -> None:
    """Without the keys, status says so, and replaying fails; other commands need none, and print no warnings."""
    key = Fernet.generate_key().decode()
    inbox.monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(tmp_path / "sealed.db"))
    async with SQLiteStore(tmp_path / "sealed.db", secret_box=FernetBox({"new": key})) as inbox.store:
        await register(inbox.store)
        await inbox.bury(1)
        ended = await inbox.run("status")
        assert (ended.status, ended.err, "secrets_readable\tno\n" in ended.out) == (1, "", True)
        ended = await run_unread("inbox", "list")  # standard output closed early is no error
        assert (ended.status, ended.err) == (0, "")
        ended = await inbox.run("replay", "1", "--to", "http://127.0.0.1:1/hooks")
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (1, "", 1)
        assert ended.err.startswith("1: ")
        assert "secret" in ended.err
        inbox.monkeypatch.setenv("ASANA_WEBHOOKS_STORE_KEYS", f"new={key}")
        assert "secrets_readable\tyes\n" in (await inbox.run("status")).out
        assert "cannot connect" in (await inbox.run("replay", "1", "--to", "http://127.0.0.1:1/hooks")).err


# list, show


async def test_list(inbox: Inbox) -> None:
    """Dead letters, oldest first and over several pages; other states, and one label, by options."""
    await inbox.bury(130, error="OSError: no\n  route")
    await inbox.bury(121, to=1)
    await inbox.add(body(event()))
    ended = await inbox.run("list")
    rows = [line.split("\t") for line in ended.out.splitlines()]
    assert (ended.status, ended.err, [int(row[0]) for row in rows]) == (0, "", list(range(1, 252)))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime((await one_of(inbox, 1)).received_at))
    assert rows[0] == ["1", "dead", when, "1", "", "43214", "", "OSError: no route"]
    assert len(await inbox.json_of("list", "--label", "tenant-a")) == 121
    assert len(await inbox.json_of("list", "--label", "")) == 130
    (waiting,) = await inbox.json_of("list", "--state", "waiting")
    expected = asdict(await one_of(inbox, 252)) | {"state": "waiting", "done": []}
    assert waiting.keys() == expected.keys() - {"body"}
    at = waiting.pop("received_at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", at)
    assert waiting.items() <= expected.items()
    await inbox.store.claim(1, lease=60)
    (leased,) = await inbox.json_of("list", "--state", "leased")
    assert leased["due_at"] > at
    ended = await inbox.run("list", "--state", "delayed", "--label", "tenant-b")
    assert (ended.status, ended.out, ended.err) == (0, "", "no delivery is delayed with the label 'tenant-b'\n")


async def test_list_on_a_terminal(inbox: Inbox) -> None:
    """There it is a table that fits, and long errors are cut."""
    await inbox.bury(1, error=f"OSError: {'far away ' * 20}")
    async with on_terminal("inbox", "list", "--store", str(inbox.file), NO_COLOR="1", COLUMNS="120") as terminal:
        assert await terminal.ended() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown).splitlines()
    assert lines[0].split() == ["id", "state", "received", "attempts", "due", "webhook", "label", "error"]
    assert max(map(len, lines)) <= 120
    start = lines[0].index("error")
    error = " ".join(line[start:].strip() for line in lines[1:])
    assert (error[:17], error[-3:], len(error) <= 60) == ("OSError: far away", "...", True)


async def test_show(inbox: Inbox) -> None:
    """Each event is a line that says whether it is done; what cannot be read has the reason; the error is in full."""
    added = event(action="added", change=None, parent={"gid": "5", "resource_type": "project"}, user=None)
    content = body(event(), {"action": "changed"}, added)
    await inbox.add(content, b"no JSON")
    for lease in await inbox.store.claim(2, lease=60):
        assert await inbox.store.fail(lease, error="OSError: no\nroute", retry_in=None, done=[1, 2])
    ended = await inbox.run("show", "1")
    assert (ended.status, ended.err) == (0, "")
    assert "state\tdead\n" in ended.out
    assert "webhook_gid\t43214\n" in ended.out
    assert re.search(r"\nevent 0\t2026-01-02 03:04:05 changed   task \d+ due_on by 11\n", ended.out)
    assert re.search(r"\nevent 1\tunreadable: .*resource.* \(done\)\n", ended.out)
    assert re.search(r"\nevent 2\t2026-01-02 03:04:05 added     task \d+ to project 5 \(done\)\n", ended.out)
    assert ended.out.endswith("\nerror\tOSError: no\nroute\n")
    (shown,) = await inbox.json_of("show", "1")
    assert [one["action"] for one in shown["events"]] == ["changed", "added"]
    assert [(one["index"], one["raw"]) for one in shown["unreadable"]] == [(1, {"action": "changed"})]
    assert (shown["done"], shown["error"]) == ([1, 2], "OSError: no\nroute")
    assert re.search(r"\nevent 0\tunreadable: ", (await inbox.run("show", "2")).out)
    ended = await inbox.run("show", "3")
    assert (ended.status, ended.out, ended.err) == (1, "", f"3: {UNKNOWN}\n")


# requeue, discard


async def test_requeue_and_discard(inbox: Inbox) -> None:
    """What can be changed is; what cannot be is named, each with the reason, and makes the status 1."""
    await inbox.bury(3)
    await inbox.add(body(event()))
    ended = await inbox.run("requeue", "1", "4", "77", "3", "1")
    assert (ended.status, ended.out) == (1, "requeued 2\n")
    assert ended.err == f"4: not requeued: it is waiting\n77: not requeued: {UNKNOWN}\n"
    assert await inbox.states() == {1: "waiting", 2: "dead", 3: "waiting", 4: "waiting"}
    (lease,) = await inbox.store.claim(1, lease=60)
    ended = await inbox.run("discard", "2", "3")
    assert (ended.status, ended.out) == (2, "")
    assert "Discard 2 deliveries? All events in them are lost. There is no terminal to ask on: pass --yes" in ended.err
    assert len(await inbox.states()) == 4
    ended = await inbox.run("discard", "2", "3", str(lease.id), "--yes")
    assert (ended.status, ended.out) == (1, "discarded 2\n")
    assert ended.err == f"{lease.id}: not discarded: it is leased\n"
    assert await inbox.states() == {1: "leased", 4: "waiting"}


async def test_requeue_all(inbox: Inbox) -> None:
    """All dead letters, or those with a label, go back; nothing else changes."""
    await inbox.bury(3)
    await inbox.bury(2, to=1)
    assert await inbox.json_of("requeue", "--all", "--label", "tenant-a") == [{"requeued": 2}]
    assert list((await inbox.states()).values()).count("dead") == 3
    assert (await inbox.run("requeue", "--all")).out == "requeued 3\n"
    assert set((await inbox.states()).values()) == {"waiting"}
    ended = await inbox.run("requeue", "--all")
    assert (ended.status, ended.out, ended.err) == (0, "requeued 0\n", "")


@pytest.fixture(name="name", params=["sqlite", "postgres"])
def _name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of an empty store of each kind."""
    url: str = request.getfixturevalue("postgres_url") if request.param == "postgres" else f"{tmp_path}/asana.db"
    return url


async def test_beside_a_worker(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An incident: a worker buries all; it is mended, and one requeue later it has handled all, each once."""
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", name)
    handled, broken = list[int](), True

    async def handle(delivery: Delivery) -> None:
        if broken:
            raise PermanentFailure("the CRM is away")
        handled.append(delivery.id)

    async with named_store(name, create=True) as store, Worker(store, handle, poll=0.05) as worker:
        inbox = await filled(store, Clock(), tmp_path, monkeypatch, capsys)
        running = asyncio.create_task(worker.run())
        await asyncio.gather(*(inbox.add(body(event())) for _ in range(150)))
        await until(lambda: worker.counts["dead letter"] == 150)
        status = await inbox.run("status")
        assert (status.status, "dead\t150\n" in status.out) == (1, True)
        assert "PermanentFailure: the CRM is away" in (await inbox.run("show", "7")).out
        assert len(await inbox.json_of("export", "--state", "dead")) == 150
        broken = False
        assert (await inbox.run("requeue", "--all")).out == "requeued 150\n"
        await until(lambda: worker.counts["done"] == 150)
        worker.stop()
        await running
        assert sorted(handled) == list(range(1, 151))
        assert (await inbox.run("purge", "--older-than", "26h", "--dead", "-y")).out.startswith("purged 0 ")
        assert (await inbox.run("status")).status == 0


# replay


@asynccontextmanager
async def served(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve all paths; yield the URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


@define
class Target:
    """Somebody's server."""

    url: str = ""
    status: int = 200
    got: list[tuple[str, str | None, bytes]] = field(factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((request.path_qs, request.headers.get("X-Hook-Signature"), await request.read()))
        return web.Response(status=self.status, headers={"Location": "/elsewhere"} if self.status == 302 else {})


@pytest.fixture(name="target")
async def _target() -> AsyncIterator[Target]:
    target = Target()
    async with served(target.handle) as target.url:
        yield target


async def test_replay(inbox: Inbox, target: Target) -> None:
    """The stored bytes arrive unchanged and signed; each status is told; the store stays as it is."""
    odd = b'{ "events" :[ ] ,"x":"\xc3\xa9\\u00e9"}\r\n'
    await inbox.add(odd, body(event()))
    await inbox.bury(1)
    before = [await one_of(inbox, id) for id in (1, 2, 3)]
    to = f"{target.url}/hooks/7654?key=of-ours"
    ended = await inbox.run("replay", "1", "77", "3", "--to", to)
    masked = f"{target.url}/hooks/***?***"
    assert (ended.status, ended.err) == (1, f"77: {UNKNOWN}\n")
    assert ended.out == f"1: {masked} answered 200\n3: {masked} answered 200\n"
    assert [one.body for one in before][::2] == [content for _, _, content in target.got]
    for path, signature, content in target.got:
        assert path == "/hooks/7654?key=of-ours"
        assert verify_signature(content, signature, secret=SECRET)
    assert target.got[0][2] == odd
    assert [await one_of(inbox, id) for id in (1, 2, 3)] == before


async def test_replay_refused(inbox: Inbox, target: Target) -> None:
    """Every answer but 2xx makes the status 1; a redirect is not followed; so do no answer, and one that is late."""
    await inbox.add(body(event()))
    for target.status in (302, 401, 503):
        ended = await inbox.run("replay", "1", "--to", target.url, "--json")
        assert (ended.status, json.loads(ended.out)["status"]) == (1, target.status)
    assert [path for path, _, _ in target.got] == ["/", "/", "/"]
    for target.status in (200, 204):
        assert (await inbox.run("replay", "1", "--to", target.url)).status == 0
    ended = await inbox.run("replay", "1", "--to", "http://127.0.0.1:1/hooks/7654")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("1: cannot connect to 127.0.0.1:1")
    inbox.monkeypatch.setattr("asana_webhooks.cli.inbox._TIMEOUT", 0.2)
    never = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with served(hang) as url:
        ended = await inbox.run("replay", "1", "--to", url)
        never.set()
    assert (ended.status, ended.out, ended.err) == (1, "", "1: no answer within 0.2 seconds\n")


async def test_replay_with_another_secret(inbox: Inbox, target: Target) -> None:
    """For another target, and where the webhook's own secret is gone, the secret comes from a variable."""
    await inbox.add(body(event()))
    await inbox.store.close_registration(inbox.ids[0])
    ended = await inbox.run("replay", "1", "--to", target.url)
    assert (ended.status, ended.err) == (1, "1: the store has no secret for it: pass --secret-env\n")
    options = ("replay", "1", "--to", target.url, "--secret-env", "STAGING_SECRET")
    ended = await inbox.run(*options)
    assert (ended.status, target.got) == (2, [])
    assert "the variable STAGING_SECRET of --secret-env is not set" in ended.err
    other = Secret("fedcba9876543210fedcba9876543210")
    inbox.monkeypatch.setenv("STAGING_SECRET", other.reveal())
    assert (await inbox.run(*options)).status == 0
    ((_, signature, content),) = target.got
    assert verify_signature(content, signature, secret=other)


# export, purge


async def test_export(inbox: Inbox, tmp_path: Path) -> None:
    """Deliveries in all states, each a line with its whole body: text, or base64 if it is none; also in ASCII."""
    await inbox.bury(2)
    content, broken = '{"events":[],"note":"é ☃"}'.encode(), b'{"events":[]}\xff'
    await inbox.add(content, broken)
    await inbox.store.claim(1, lease=60)
    ended = await inbox.run("export")
    found = {line["id"]: line for line in map(json.loads, ended.out.splitlines())}
    assert (ended.status, ended.err, {id: one["state"] for id, one in found.items()}) == (0, "", await inbox.states())
    assert found[3]["body"].encode() == content
    assert base64.b64decode(found[4]["body_base64"]) == broken
    assert "body" not in found[4]
    assert found[1]["body"].encode() == (await one_of(inbox, 1)).body
    assert (found[1]["error"], found[1]["registration"]) == ("OSError: no route", inbox.ids[0])
    assert [one["id"] for one in await inbox.json_of("export", "--state", "dead")] == [1, 2]
    with os.fdopen(os.open(tmp_path / "ascii", os.O_RDWR | os.O_CREAT), "w+", encoding="ascii") as archive:
        inbox.monkeypatch.setattr(sys, "stdout", archive)
        assert (await inbox.run("export")).status == 0
        archive.seek(0)
        assert {line["id"]: line for line in map(json.loads, archive)} == found


async def test_purge(inbox: Inbox) -> None:
    """Old duplicate keys go, and old dead letters only with --dead; nothing younger than 26 hours ever goes."""
    content = body(event(created_at=None))
    for ago, bury in ((26 * 3600 + 60, True), (0, True), (26 * 3600 + 60, False)):
        inbox.clock.now = time.time() - ago
        await (inbox.bury(1) if bury else inbox.add(content))
    for age in ("25h59m", "0s", "-3d"):
        ended = await inbox.run("purge", f"--older-than={age}", "--yes", "--dead")
        assert (ended.status, ended.out) == (2, "")
        assert "--older-than must be at least 26h: Asana sends a delivery again for 24 hours" in ended.err
    ended = await inbox.run("purge", "--older-than", "26h", "--dead")
    assert (ended.status, ended.out) == (2, "")
    assert "Forget duplicate keys and dead letters that are more than 26 h old? The events of" in ended.err
    assert len(await inbox.states()) == 3
    assert (await inbox.run("purge", "--older-than", "2d", "--dead", "--yes")).out.startswith("purged 0 duplicate keys")
    assert (await inbox.run("purge", "--older-than", "26h", "--yes")).out == "purged 2 duplicate keys\n"
    assert len(await inbox.states()) == 3
    assert await inbox.json_of("purge", "--older-than", "26h", "--dead", "--yes") == [{"purged": 1}]
    assert await inbox.states() == {2: "dead", 3: "waiting"}
    again = NewDelivery(registration=inbox.ids[0], signature=sign_body(content, secret=SECRET), body=content)
    assert await inbox.store.put(again) == "stored"


# What cannot work


async def test_stores_that_cannot_be_used(inbox: Inbox, tmp_path: Path) -> None:
    """A wrong path, another program's file and that of a later release are one sentence each."""
    await inbox.store.aclose()
    newer, other = tmp_path / "newer.db", tmp_path / "other.db"
    newer.write_bytes(inbox.file.read_bytes())
    for file, statement in ((newer, "PRAGMA user_version = 1000"), (other, "CREATE TABLE theirs (x)")):
        connection = sqlite3.connect(file)
        connection.execute(statement)
        connection.close()
    cases = {
        tmp_path / "nowhere.db": "there is no store at ",
        newer: "the database file has version 1000, but this release reads",
        other: "the database file belongs to another program",
    }
    for file, expected in cases.items():
        for command, arguments in COMMANDS.items():
            ended = await inbox.run(command, *arguments, "--store", str(file))
            assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1), (file, command)
            assert expected in ended.err
    assert not (tmp_path / "nowhere.db").exists()


async def test_a_locked_store(inbox: Inbox) -> None:
    """While another process locks the database, changing is one sentence and status 1; looking still works."""
    await inbox.bury(1)
    quick = partial(SQLiteStore, inbox.file, busy_timeout=0.1)
    make: Callable[..., Store] = lambda _, *, secret_box: quick(secret_box=secret_box)  # noqa: E731
    inbox.monkeypatch.setattr("asana_webhooks.cli.common.open_store", make)
    lock = sqlite3.connect(inbox.file, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    for command, arguments in COMMANDS.items():
        ended = await inbox.run(command, *arguments)
        if command in ("requeue", "discard", "purge"):
            assert (ended.status, ended.out, len(ended.err.splitlines())) == (1, "", 1), command
            assert "another connection locks the database" in ended.err
        elif command == "status":
            assert (ended.status, ended.err) == (1, "")
            assert "writable\tno\n" in ended.out
            assert "problems\tanother connection locks the database" in ended.out
        elif command != "replay":
            assert (ended.status, ended.err, ended.out[:1] != "") == (0, "", True), command
    lock.close()
    assert await inbox.states() == {1: "dead"}


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("status", "--store", ""), "store"),
    (("list", "--state", "lost"), '"lost"'),
    (("show", "x"), '"x"'),
    (("requeue",), "pass either the ids of dead letters, or --all"),
    (("requeue", "1", "--all"), "pass either the ids of dead letters, or --all"),
    (("requeue", "1", "--label", "a"), "pass either the ids of dead letters, or --all"),
    (("discard", "--yes"), "IDS"),
    (("replay", "1"), "--to"),
    (("replay", "1", "--to", "example.com"), "--to must be an http(s) URL"),
    (("replay", "1", "--to", "https://me:hunter2@example.com/"), "--to must be an http(s) URL"),
    (("purge", "--older-than", "3"), "--older-than"),
]


async def test_mistakes(inbox: Inbox) -> None:
    """What cannot work is one line on standard error and status 2."""
    for arguments, expected in MISTAKES:
        ended = await inbox.run(*arguments)
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1), arguments
        assert expected in ended.err
        assert "hunter2" not in ended.err


async def test_an_archive_that_cannot_be_written(inbox: Inbox) -> None:
    """It is one sentence and status 1, such as on a full disk."""
    await inbox.bury(1)
    with os.fdopen(os.open(inbox.file, os.O_RDONLY), "w") as unwritable:
        inbox.monkeypatch.setattr(sys, "stdout", unwritable)
        ended = await inbox.run("export")
    expected = "asana-webhooks: standard output cannot be written: Bad file descriptor\n"
    assert (ended.status, ended.err) == (1, expected)


async def test_help(inbox: Inbox) -> None:
    """The help of each command has an example that begins with its name."""
    for command in COMMANDS:
        shown = (await inbox.run(command, "--help")).out
        assert re.search(rf"For example:\s+asana-webhooks inbox {command}\b", shown)
