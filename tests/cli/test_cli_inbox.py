"""``inbox`` with its commands, beside a service that uses the store."""

import asyncio
import base64
import json
import os
import re
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import asdict, define, field
from cryptography.fernet import Fernet

from asana_webhooks import Delivery, PermanentFailure, Secret, SQLiteStore, Store, Worker, sign_body, verify_signature
from asana_webhooks.store import open_store
from asana_webhooks.store.base import DeliveryState, NewDelivery
from asana_webhooks.store.secret_box import FernetBox
from tests.cli.cli_process import Ended, call, on_terminal, run_cli
from tests.helpers.raw import until
from tests.helpers.stores import SECRET, Clock, body, deliver, event, register

OTHER = "Another_endpoint_0123456789_abcdefghijklmnop"
UNKNOWN = "there is no such delivery; it may be done"
NOWHERE = "http://127.0.0.1:1/hooks/7654"
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "list": (),
    "show": ("1",),
    "requeue": ("--all",),
    "discard": ("1", "--yes"),
    "replay": ("1", "--to", NOWHERE),
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

    async def bury(self, count: int, *, error: str = "OSError: no\n  route", to: int = 0) -> None:
        """Add dead letters."""
        await asyncio.gather(*(self.add(body(event()), to=to) for _ in range(count)))
        for lease in await self.store.claim(count, lease=60):
            assert await self.store.fail(lease, error=error, retry_in=None)

    async def states(self) -> dict[int, str]:
        pages = [await self.store.deliveries(state=state, limit=1000) for state in DeliveryState]
        return {one.id: one.state.value for page in pages for one in page}


@pytest.fixture(name="inbox")
async def _inbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Inbox]:
    """A SQLite store with two webhooks and no delivery."""
    clock, file = Clock(now=time.time()), tmp_path / "asana.db"
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(file))
    async with SQLiteStore(file, clock=clock) as store:
        ids = [await register(store), await register(store, OTHER, gid="43215", label="tenant-a")]
        yield Inbox(store, clock, file, monkeypatch, capsys, ids)


# status


async def test_status(inbox: Inbox) -> None:
    """A store at work is healthy. People read the oldest age as hours; JSON has all of the health."""
    inbox.clock.advance(-(3 * 3600 + 12 * 60 + 5))
    await inbox.add(body(event()), body(event()))
    inbox.clock.now = time.time()
    await inbox.store.claim(1, lease=60)
    ended = await inbox.run("status")
    assert (ended.status, ended.err, ended.out[:19]) == (0, "", "healthy\nwaiting: 1\n")
    assert "\noldest_age: 3 h 12 min\nwritable: true\n" in ended.out
    (data,) = await inbox.json_of("status")
    health = asdict(await inbox.store.health())
    assert abs(data["oldest_age"] - health["oldest_age"]) < 60
    assert data == {**data, "healthy": True, "waiting": 1, "leased": 1, "webhooks": 2, "silent": [], "problems": []}
    assert data.keys() == health.keys() | {"healthy"}


async def test_silent(inbox: Inbox) -> None:
    """A silent webhook is a reason for status 1."""
    inbox.clock.advance(-11 * 3600)
    silent = await register(inbox.store, "A_third_endpoint_0123456789_abcdefghijklmno", gid="43216")
    inbox.clock.now = time.time()
    ended = await inbox.run("status")
    assert (ended.status, ended.out[:12], "silent: 43216\n" in ended.out) == (1, "not healthy\n", True)
    await inbox.store.record_heartbeat(silent)
    assert (await inbox.run("status")).status == 0


async def test_sealed_secrets(inbox: Inbox, tmp_path: Path) -> None:
    """Without the keys, status says so, and replaying fails; other commands need none, and print no warnings."""
    key = Fernet.generate_key().decode()
    inbox.monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(tmp_path / "sealed.db"))
    async with SQLiteStore(tmp_path / "sealed.db", secret_box=FernetBox({"new": key})) as inbox.store:
        await register(inbox.store)
        await inbox.add(body(event()))
        ended = await inbox.run("status")
        assert (ended.status, ended.err, "secrets_readable: false\n" in ended.out) == (1, "", True)
        ended = await run_cli("inbox", "list", "--state", "waiting")
        assert (ended.status, ended.err, len(ended.out.splitlines())) == (0, "", 1)
        ended = await inbox.run("replay", "1", "--to", NOWHERE)
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (1, "", 1)
        assert re.match("1: .*secret", ended.err)
        inbox.monkeypatch.setenv("ASANA_WEBHOOKS_STORE_KEYS", f"new={key}")
        assert "secrets_readable: true\n" in (await inbox.run("status")).out
        assert "cannot connect" in (await inbox.run("replay", "1", "--to", NOWHERE)).err


async def test_postgresql(inbox: Inbox, postgres_url: str) -> None:
    """A database without the tables of a store is refused, and gets none; with them it is a store like any other."""
    inbox.monkeypatch.setenv("ASANA_WEBHOOKS_STORE", postgres_url)
    for _ in range(2):
        ended = await inbox.run("status")
        assert (ended.status, "the tables in the schema asana_webhooks are missing" in ended.err) == (2, True)
    async with open_store(postgres_url) as inbox.store:
        inbox.ids = [await register(inbox.store)]
        await inbox.bury(1)
        assert (await inbox.run("requeue", "--all")).out == "requeued 1\n"
        assert (await inbox.run("status")).status == 0


# list, show


async def test_list(inbox: Inbox) -> None:
    """Dead letters are listed, oldest first and over several pages, each in a line; others with --state."""
    await inbox.bury(101)
    await inbox.bury(1, to=1)
    await inbox.add(body(event()))
    ended = await inbox.run("list")
    lines = ended.out.splitlines()
    assert (ended.status, ended.err, [int(line.split()[0]) for line in lines]) == (0, "", list(range(1, 103)))
    when = datetime.fromtimestamp(inbox.clock.now, UTC)
    assert lines[0] == f"1  {when:%F %T}  dead  webhook 43214  attempts 1  OSError: no route"
    assert lines[-1].endswith("  dead  webhook 43215 (label 'tenant-a')  attempts 1  OSError: no route")
    (waiting,) = await inbox.json_of("list", "--state", "waiting")
    (one,) = await inbox.store.deliveries(state=DeliveryState.WAITING)
    assert waiting == asdict(one) | {"done": [], "received_at": when.isoformat(), "body": one.body.decode()}
    await inbox.store.claim(1, lease=60)
    assert re.search(r"leased .* due \d{4}-", (await inbox.run("list", "--state", "leased")).out)
    ended = await inbox.run("list", "--state", "delayed")
    assert (ended.status, ended.out, ended.err) == (0, "", "no delivery is delayed\n")


async def test_show(inbox: Inbox) -> None:
    """Each event is a line that says whether it is done; what cannot be read has the reason."""
    added = event(action="added", change=None, parent={"gid": "5", "resource_type": "project"}, user=None)
    await inbox.add(body(event(), {"action": "changed"}, added), b"no JSON")
    for lease in await inbox.store.claim(2, lease=60):
        assert await inbox.store.fail(lease, error="OSError: no\nroute", retry_in=None, done=[1, 2])
    ended = await inbox.run("show", "1")
    first, *lines = ended.out.splitlines()
    assert (ended.status, ended.err, len(lines)) == (0, "", 3)
    assert first == (await inbox.run("list")).out.splitlines()[0]
    assert re.fullmatch(r"event 0: 2026-01-02 03:04:05 changed   task \d+ due_on", lines[0])
    assert re.fullmatch(r"event 1: unreadable: .*resource.* \(done\)", lines[1])
    assert re.fullmatch(r"event 2: 2026-01-02 03:04:05 added     task \d+ to project 5 \(done\)", lines[2])
    (shown,) = await inbox.json_of("show", "1")
    assert (shown["done"], shown["error"]) == ([1, 2], "OSError: no\nroute")
    assert "\nevent 0: unreadable: " in (await inbox.run("show", "2")).out
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
    assert "Discard 2 of the deliveries? All events in them are lost. There is no terminal" in ended.err
    assert len(await inbox.states()) == 4
    ended = await inbox.run("discard", "2", "3", str(lease.id), "--yes")
    assert (ended.status, ended.out) == (1, "discarded 2\n")
    assert ended.err == f"{lease.id}: not discarded: it is leased\n"
    assert await inbox.states() == {1: "leased", 4: "waiting"}
    assert await inbox.json_of("requeue", "--all") == [{"requeued": 0}]


async def test_ctrl_c(inbox: Inbox) -> None:
    """Interrupted, requeue says how many it knows of, and that there may be more."""
    await inbox.bury(3)
    lock = sqlite3.connect(inbox.file, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with on_terminal("inbox", "requeue", "--all", "--store", str(inbox.file)) as terminal:
        await terminal.until("0/3")
        terminal.type("\x03")
        await terminal.until("interrupted: up to 100 more may be requeued; run it again")
        await terminal.until("requeued 0")
        lock.close()
        assert await terminal.ended() == 130
    assert (await inbox.run("requeue", "--all")).status == 0
    assert set((await inbox.states()).values()) == {"waiting"}


async def test_beside_a_worker(inbox: Inbox) -> None:
    """An incident: a worker buries all; it is mended, and one requeue later it has handled all, each once."""
    handled, broken = list[int](), True

    async def handle(delivery: Delivery) -> None:
        if broken:
            raise PermanentFailure("the CRM is away")
        handled.append(delivery.id)

    async with SQLiteStore(inbox.file) as store, Worker(store, handle, poll=0.05) as worker:
        running = asyncio.create_task(worker.run())
        await asyncio.gather(*(inbox.add(body(event())) for _ in range(120)))
        await until(lambda: worker.counts["dead letter"] == 120)
        ended = await inbox.run("status")
        assert (ended.status, "dead: 120\n" in ended.out) == (1, True)
        assert "PermanentFailure: the CRM is away" in (await inbox.run("show", "7")).out
        broken = False
        assert (await inbox.run("requeue", "--all")).out == "requeued 120\n"
        await until(lambda: worker.counts["done"] == 120)
        worker.stop()
        await running
    assert sorted(handled) == list(range(1, 121))


# replay


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
    target, app = Target(), web.Application()
    app.router.add_route("*", "/{path:.*}", target.handle)
    async with TestServer(app) as server:
        target.url = str(server.make_url("/hooks/7654?key=of-ours"))
        yield target


async def test_replay(inbox: Inbox, target: Target) -> None:
    """The stored bytes arrive unchanged and signed; each status is told; the store stays as it is."""
    odd = b'{ "events" :[ ] ,"x":"\xc3\xa9\\u00e9"}\r\n'
    await inbox.bury(1)
    await inbox.add(odd)
    before = await inbox.store.deliveries(state=DeliveryState.DEAD)
    ended = await inbox.run("replay", "2", "77", "1", "--to", target.url)
    assert (ended.status, ended.out, ended.err) == (1, "2: answered 200\n1: answered 200\n", f"77: {UNKNOWN}\n")
    assert [content for _, _, content in target.got] == [odd, before[0].body]
    for path, signature, content in target.got:
        assert path == "/hooks/7654?key=of-ours"
        assert verify_signature(content, signature, secret=SECRET)
    assert await inbox.store.deliveries(state=DeliveryState.DEAD) == before


async def test_replay_refused(inbox: Inbox, target: Target) -> None:
    """Every answer but 2xx makes the status 1; a redirect is not followed; so do no answer, and one that is late."""
    await inbox.add(body(event()))
    for target.status, expected in ((302, 1), (503, 1), (204, 0)):
        ended = await inbox.run("replay", "1", "--to", target.url, "--json")
        assert (ended.status, json.loads(ended.out)) == (expected, {"id": 1, "status": target.status})
    assert len(target.got) == 3
    ended = await inbox.run("replay", "1", "--to", NOWHERE)
    assert (ended.status, ended.out, ended.err[:34]) == (1, "", "1: cannot connect to 127.0.0.1:1: ")
    inbox.monkeypatch.setattr("asana_webhooks.cli.inbox._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = await inbox.run("replay", "1", "--to", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (ended.status, ended.out, ended.err) == (1, "", "1: no answer within 0.2 seconds\n")


async def test_replay_with_another_secret(inbox: Inbox, target: Target) -> None:
    """For another target, and where the webhook's own secret is gone, the secret comes from a variable."""
    await inbox.add(body(event()))
    await inbox.store.close_registration(inbox.ids[0])
    options = ("replay", "1", "--to", target.url)
    ended = await inbox.run(*options)
    assert (ended.status, ended.err) == (1, "1: the store has no secret for it: pass --secret-env\n")
    other = Secret("fedcba9876543210fedcba9876543210")
    inbox.monkeypatch.setenv("STAGING_SECRET", other.reveal())
    assert (await inbox.run(*options, "--secret-env", "STAGING_SECRET")).status == 0
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
    assert [one["id"] for one in await inbox.json_of("export", "--state", "dead")] == [1, 2]
    with os.fdopen(os.open(tmp_path / "ascii", os.O_RDWR | os.O_CREAT), "w+", encoding="ascii") as archive:
        inbox.monkeypatch.setattr(sys, "stdout", archive)
        assert (await inbox.run("export")).status == 0
        archive.seek(0)
        assert {line["id"]: line for line in map(json.loads, archive)} == found


async def test_an_archive_that_cannot_be_written(inbox: Inbox) -> None:
    """It is one sentence and status 1, such as on a full disk."""
    await inbox.bury(1)
    with os.fdopen(os.open(inbox.file, os.O_RDONLY), "w") as unwritable:
        inbox.monkeypatch.setattr(sys, "stdout", unwritable)
        ended = await inbox.run("export")
    expected = "asana-webhooks: the output cannot be written: Bad file descriptor\n"
    assert (ended.status, ended.err) == (1, expected)


async def test_purge(inbox: Inbox) -> None:
    """Old duplicate keys go, and old dead letters only with --dead, which asks; nothing younger than 26 hours goes."""
    content = body(event(created_at=None))
    for ago, bury in ((26 * 3600 + 60, True), (0, True), (26 * 3600 + 60, False)):
        inbox.clock.now = time.time() - ago
        await (inbox.bury(1) if bury else inbox.add(content))
    ended = await inbox.run("purge", "--older-than", "26h", "--dead")
    assert (ended.status, ended.out) == (2, "")
    assert re.search(r"Delete the dead letters from before \d{4}-.* UTC\? All events in them are lost", ended.err)
    assert (await inbox.run("purge", "--older-than", "2d", "--dead", "--yes")).out == "purged 0\n"
    assert (await inbox.run("purge", "--older-than", "26h")).out == "purged 2\n"
    assert len(await inbox.states()) == 3
    assert await inbox.json_of("purge", "--older-than", "26h", "--dead", "--yes") == [{"purged": 1}]
    assert await inbox.states() == {2: "dead", 3: "waiting"}
    again = NewDelivery(registration=inbox.ids[0], signature=sign_body(content, secret=SECRET), body=content)
    assert await inbox.store.put(again) == "stored"


# What cannot work


async def test_a_locked_store(inbox: Inbox) -> None:
    """While another process locks the database, changing is one sentence and status 1; looking still works."""
    await inbox.bury(1)
    quick = partial(SQLiteStore, inbox.file, busy_timeout=0.1)
    make: Callable[..., Store] = lambda _, secret_box=None: quick(secret_box=secret_box)  # noqa: E731
    inbox.monkeypatch.setattr("asana_webhooks.cli.common.open_store", make)
    lock = sqlite3.connect(inbox.file, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    problem = "another connection locks the database"
    for command, arguments in COMMANDS.items():
        ended = await inbox.run(command, *arguments)
        if command in ("requeue", "discard", "purge"):
            assert (ended.status, len(ended.err.splitlines()), problem in ended.err) == (1, 1, True), command
        elif command == "status":
            assert (ended.status, ended.err, "writable: false\n" in ended.out) == (1, "", True)
            assert f"problems: {problem}" in ended.out
        elif command != "replay":
            assert (ended.status, ended.err, ended.out[:1] != "") == (0, "", True), command
    lock.close()
    assert await inbox.states() == {1: "dead"}


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("status", "--store", "/nowhere/asana.db"), "there is no store at /nowhere/asana.db"),
    (("list", "--state", "lost"), '"lost"'),
    (("show", "x"), '"x"'),
    (("requeue",), "pass either the ids of dead letters, or --all"),
    (("requeue", "1", "--all"), "pass either the ids of dead letters, or --all"),
    (("discard", "--yes"), "IDS"),
    (("replay", "1"), "--to"),
    (("replay", "1", "--to", "example.com"), "--to must be an http(s) URL"),
    (("replay", "1", "--to", NOWHERE, "--secret-env", "UNSET"), "the variable UNSET of --secret-env is not set"),
    (("purge", "--older-than", "3"), "--older-than"),
    (("purge", "--older-than=25h59m"), "--older-than must be at least 26h: Asana sends a delivery again for 24 hours"),
    (("purge", "--older-than=-3d"), "--older-than must be at least 26h"),
]


async def test_mistakes(inbox: Inbox) -> None:
    """What cannot work is one line on standard error and status 2."""
    for arguments, expected in MISTAKES:
        ended = await inbox.run(*arguments)
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1), arguments
        assert expected in ended.err


async def test_help(inbox: Inbox) -> None:
    """The help of each command has an example that begins with its name."""
    for command in COMMANDS:
        shown = (await inbox.run(command, "--help")).out
        assert re.search(rf"For example:\s+asana-webhooks inbox\s+{command}\b", shown)
