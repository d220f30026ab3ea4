"""``asana-webhooks listen``: what it prints and forwards, how it ends, and what it leaves behind.

Signals, streams and kill -9 are tested with real processes, the rest in this one, where it is cheap.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from attrs import define, evolve, field
from yarl import URL

from asana_webhooks import ConfigurationError, ForbiddenError, NotAuthorizedError, verify_signature
from asana_webhooks.cli.listen import Listening
from asana_webhooks.testing import FakeAsana, Fault
from asana_webhooks.testing.serving import LoopbackServer
from tests.cli.cli_process import MODULE, Ended, call, ended, on_terminal, started
from tests.cli.test_cli_fake import fake_process
from tests.helpers.ports import free_port
from tests.helpers.raw import later
from tests.helpers.tcp_proxy import Loss, tcp_proxy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_POSIX = ("-m", "tests.helpers.without_posix", "asana_webhooks")
PROJECT = "8675309"
TOKEN = "t0ken-of-the-tests-8642"


@define
class Process:
    """``listen`` as a process."""

    process: asyncio.subprocess.Process
    said: str = ""

    async def says(self, text: str) -> None:
        """Read its standard error until a line has *text*."""
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while text not in self.said:
                line = await self.process.stderr.readline()
                assert line, f"it ended without {text!r}: {self.said}"
                self.said += line.decode()

    async def prints(self) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode()

    async def end(self, number: int = signal.SIGTERM) -> Ended:
        self.process.send_signal(number)
        return await ended(self.process)


@define
class Run:
    """``listen`` in this process."""

    task: "asyncio.Task[int]"
    capsys: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    def read(self) -> str:
        """Return all that it has said, on standard error."""
        more = self.capsys.readouterr()
        self.out, self.err = self.out + more.out, self.err + more.err
        return self.err

    async def says(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.read():
                assert not self.task.done(), (text, self.err, self.task)
                await later(0.01)

    async def prints(self, number: int) -> list[str]:
        """Wait until it has printed so many lines."""
        async with asyncio.timeout(20):
            while len(self.out.splitlines()) < number:
                await later(0.01)
                self.read()
        return self.out.splitlines()

    async def end(self) -> int:
        assert not self.task.done(), self.task
        signal.raise_signal(signal.SIGTERM)
        status = await self.task
        self.read()
        return status


@define
class Place:
    """Where ``listen`` runs, again and again: an Asana, a state directory, a port."""

    asana: str
    state: Path
    port: int = field(factory=free_port)

    @property
    def public_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/asana"

    @property
    def environment(self) -> dict[str, str]:
        environment = {"XDG_STATE_HOME": str(self.state), "PYTHONPATH": str(ROOT), "ASANA_ACCESS_TOKEN": TOKEN}
        return {**environment, "ASANA_BASE_URL": self.asana}

    def arguments(self, *more: str) -> tuple[str, ...]:
        return ("listen", "--public-url", self.public_url, "--port", str(self.port), "--resource", PROJECT, *more)

    @asynccontextmanager
    async def process(self, *more: str, until: str = "ready", python: Sequence[str] = MODULE) -> AsyncIterator[Process]:
        async with started(*self.arguments(*more), python=python, **self.environment) as process:
            listener = Process(process)
            await listener.says(until)
            yield listener

    def listening(self, **options: Any) -> Listening:
        usual: dict[str, Any] = {
            "resource": (PROJECT,),
            "public_url": self.public_url,
            "port": self.port,
            "base_url": self.asana,
        }
        return Listening(**(usual | options))

    @asynccontextmanager
    async def run(self, capsys: pytest.CaptureFixture[str], **options: Any) -> AsyncIterator[Run]:
        running = Run(asyncio.create_task(self.listening(**options).run()), capsys)
        try:
            await running.says("ready")
            yield running
        finally:
            running.task.cancel()
            await asyncio.wait([running.task])


@define
class Target:
    """A service that deliveries are forwarded to."""

    statuses: list[int]
    """Of its answers; the last one stays."""
    echoes: bool = True
    secrets: list[str] = field(factory=list)
    deliveries: list[tuple[bytes, str]] = field(factory=list)
    """Bodies with their signatures."""

    async def answer(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if (secret := request.headers.get("X-Hook-Secret")) is None:
            self.deliveries.append((await request.read(), request.headers["X-Hook-Signature"]))
            return web.Response(status=status)
        self.secrets.append(secret)
        return web.Response(status=status, headers={"X-Hook-Secret": secret} if self.echoes else {})


@asynccontextmanager
async def serving(handler: Any, port: int = 0) -> AsyncIterator[str]:
    server = LoopbackServer(handler, port=port)
    try:
        yield await server.start()
    finally:
        await server.aclose()


@pytest.fixture
async def fake() -> AsyncIterator[FakeAsana]:
    async with FakeAsana(token=TOKEN, projects=(PROJECT, "7")) as one:
        yield one


@pytest.fixture
def place(fake: FakeAsana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    one = Place(fake.url, tmp_path)
    monkeypatch.setenv("ASANA_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_STATE_HOME", str(one.state))
    return one


def runs(place: Place) -> list[str]:
    """Return the names of the directories that are left."""
    return [one.name.partition("-")[0] for one in place.state.glob("asana-webhooks/*/*")]


async def test_readable(tmp_path: Path) -> None:
    """Against the fake as a process: events are readable lines, a filter holds, and SIGTERM deletes the webhook."""
    async with fake_process("--token", TOKEN) as asana:
        place = Place(asana.url, tmp_path)
        async with place.process("--filter", "task:changed:due_on", "--filter", "task:added") as listener:
            (webhook,) = (await asana.control("GET", "/webhooks"))[1]["data"]
            for change in (
                {"resource": "99", "action": "added", "parent": PROJECT},
                {"resource": "99", "action": "changed", "field": "name"},
                {"resource": "99", "action": "changed", "field": "due_on"},
            ):
                assert (await asana.control("POST", "/changes", change))[0] == 202
            lines = [await listener.prints(), await listener.prints()]
            end = await listener.end()
        left = (await asana.control("GET", "/webhooks"))[1]["data"]

    assert [line.split(maxsplit=2)[2] for line in lines] == [
        f"added     task 99 to project {PROJECT}\n",
        "changed   task 99 due_on\n",
    ]
    assert (end.status, end.out, left, runs(place)) == (0, "", [], [])
    said = listener.said + end.err
    assert f"created webhook {webhook['gid']} on {PROJECT}" in said
    secrets = (TOKEN, webhook["secret"], webhook["target"].rpartition("/")[2])
    assert not any(secret in said for secret in secrets)


async def test_terminal(fake: FakeAsana, place: Place) -> None:
    """On a terminal actions have colours, no line is longer than 80 columns, and nothing from outside steers it."""
    gid, user = "1200000000000099", "1200000000000098"
    async with on_terminal(*place.arguments(), **place.environment) as terminal:
        await terminal.until("ready")
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /stranger\x1b[31m HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()
        fake.change(gid, action="added", parent=PROJECT, user=user)
        fake.change(gid, field="due\x1b[31m\x9b5m\r_on", user=user)
        await terminal.until("_on")
        terminal.type("\x03")
        assert await terminal.ended() == 130
    added, changed = (line for line in terminal.shown.splitlines() if gid in line)
    assert f"\x1b[32madded     \x1b[0mtask {gid} to project {PROJECT}" in added
    assert rf"task {gid} due\u001b[31m\u009b5m_on" in changed
    assert added.startswith("\x1b[2m")
    assert "stranger" not in terminal.shown
    assert len(added) - len("\x1b[2m\x1b[0m\x1b[32m\x1b[0m") <= 80


async def test_without_posix(fake: FakeAsana, place: Place) -> None:
    """With --json an event is an object on a line, printed once though it came twice; Ctrl-C works without POSIX."""
    fake.script(Fault(at="delivery", do="duplicate"))
    async with place.process("--json", python=WITHOUT_POSIX) as listener:
        (webhook,) = fake.webhooks
        task = fake.add_task(parent=PROJECT)
        for name in ("due_on", "name"):
            fake.change(task, field=name)
            await fake.settle()
        lines = [json.loads(await listener.prints()) for _ in range(2)]
        end = await listener.end(signal.SIGINT)
    assert [one["change"]["field"] for one in lines] == ["due_on", "name"]
    assert lines[0]["webhook_gid"] == webhook
    assert (end.status, end.out, fake.webhooks) == (130, "", {})


async def test_killed(fake: FakeAsana, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A start deletes what killed processes left below any URL; also what one left while Asana created it."""
    creating = fake.hold("createWebhook", when="before_answer")
    async with place.process(until="listening") as first:
        await creating.reached()
        first.process.kill()
        await first.process.wait()
    creating.release()
    (left,) = fake.webhooks
    place.port = free_port()
    async with place.process("--resource", "7") as second:
        assert left not in fake.webhooks
        assert len(fake.webhooks) == 2
        second.process.kill()
        await second.process.wait()
    place.port = free_port()
    async with FakeAsana(token=TOKEN, projects=(PROJECT,)) as other:
        async with evolve(place, asana=other.url).run(capsys) as elsewhere:
            assert "that an earlier run left" not in elsewhere.err
            await elsewhere.end()
    async with place.process() as third:
        assert third.said.count("that an earlier run left") == 2
        (kept,) = fake.webhooks
        deleting = fake.hold("deleteWebhook")
        third.process.send_signal(signal.SIGINT)
        await deleting.reached()
        end = await third.end(signal.SIGINT)
    assert (end.status, "Traceback" in end.err) == (130, False)
    assert "another Ctrl-C leaves that to the next start" in end.err
    place.port = free_port()
    fake.script(Fault(at="deleteWebhook", status=403))
    async with place.run(capsys) as fourth:
        assert "webhooks of an earlier run are left: " in fourth.err
        assert await fourth.end() == 0
    assert list(fake.webhooks) == [kept]
    async with place.run(capsys) as fifth:
        assert kept not in fake.webhooks
        await fifth.end()
    assert (fake.webhooks, runs(place)) == ({}, [])


async def test_kept(fake: FakeAsana, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """With --keep a start goes on with the webhooks; without it, it deletes them. Two at once do no harm."""
    async with place.process("--keep", "--resource", "7") as first:
        other = evolve(place, port=free_port())
        with pytest.raises(ConfigurationError, match="another `listen --keep` with this public URL"):
            await other.listening(public_url=place.public_url, keep=True).run()
        async with other.run(capsys) as beside:
            assert len(fake.webhooks) == 3
            await beside.end()
        assert (await first.end()).status == 0
    (kept,) = (gid for gid, one in fake.webhooks.items() if one.resource.gid == PROJECT)
    async with place.run(capsys, keep=True) as second:
        assert f"unchanged webhook {kept} on {PROJECT}\n" in second.err
        assert "deleted the webhook on 7" in second.err
        fake.change(fake.add_task(parent=PROJECT), field="due_on")
        await fake.settle()
        assert await second.end() == 0
    assert "due_on" in second.out  # it came just before the end
    assert (list(fake.webhooks), runs(place)) == ([kept], ["kept"])
    async with place.run(capsys) as third:
        assert kept not in fake.webhooks
        await third.end()
    assert (fake.webhooks, runs(place)) == ({}, [])


async def test_forwarding(fake: FakeAsana, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Deliveries are forwarded as they came, in order, with a lasting secret; what waits is printed all the same."""
    target, port, task = Target([503, 200, 503, 200]), free_port(), fake.add_task(parent=PROJECT)
    url = f"http://127.0.0.1:{port}/hooks/key?k=3"
    async with place.run(capsys, forward_to=url) as run:
        await run.says("-> handshake: cannot connect")
        for name in ("due_on", "name"):
            fake.change(task, field=name)
            await fake.settle()
        await run.prints(2)
        async with serving(target.answer, port):
            await run.says("-> delivery 2: 200")
        assert await run.end() == 0
    assert "-> delivery 1: 503; again in 1 s" in run.err
    first, again, second = target.deliveries
    sent = [one.body for one in fake.deliveries if not one.heartbeat]
    assert (first, [again[0], second[0]]) == (again, sent)
    secret, _ = target.secrets
    assert all(verify_signature(body, signature, secret=secret) for body, signature in target.deliveries)
    assert not any(one in run.err for one in (secret, "key", "k=3", "Traceback", "not all"))

    target.echoes, target.statuses = False, [404, 400]
    async with serving(target.answer, port), place.run(capsys, forward_to=url, reveal=True) as run:
        await run.says("the target did not echo X-Hook-Secret")
        fake.change(task, field="notes")
        await run.says("-> delivery 1: 400")
        assert await run.end() == 0
    assert f"signed with the secret {secret}\n" in run.err
    assert target.secrets == [secret] * 3
    assert "not all deliveries were forwarded" in run.err
    assert len(target.deliveries) > 4  # it was tried again before the end


async def test_probe(
    fake: FakeAsana, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the public URL leads elsewhere, it says so, though a 200 comes from there; in the end it gives up."""
    monkeypatch.setattr(Listening, "probe_every", 0.05)
    monkeypatch.setattr(Listening, "give_up_after", 1)

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    async with tcp_proxy(place.public_url) as proxy, serving(answer) as stranger:
        async with place.run(capsys, public_url=f"{proxy.url}?key=k3y") as run:
            proxy.lose(requests=Loss(), times=2)
            await run.says(f"{proxy.url} does not reach this process")
            await run.says("reaches this process again")
            proxy.upstream = URL(stranger)
            await run.says("does not reach this process: something else answered 200")
            status = await run.task
    assert (status, fake.webhooks) == (1, {})
    assert "giving up" in run.read()
    assert "k3y" not in run.err


async def test_closed_streams(fake: FakeAsana, place: Place) -> None:
    """It goes on when nobody reads what it says. When nobody reads the events, it deletes its webhooks and ends."""
    async with place.process() as listener:
        for number in (2, 1):
            pipe: Any = listener.process._transport.get_pipe_transport(number)  # type: ignore[attr-defined]
            pipe.close()
            fake.change(fake.add_task(parent=PROJECT), field="due_on")
            await fake.settle()
            if number == 2:
                assert "due_on" in await listener.prints()
        assert await asyncio.wait_for(listener.process.wait(), 20) == 0
    assert (fake.webhooks, runs(place)) == ({}, [])


async def test_refused(
    fake: FakeAsana, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resource or token that Asana refuses, or a port that is taken, is an error; no webhook is left."""
    fake.add_resource("project", "13", accessible=False)
    with pytest.raises(ForbiddenError):
        await place.listening(resource=(PROJECT, "13")).run()
    assert [one.status for one in fake.requests if one.operation == "createWebhook"].count(201) == 1
    assert "deleting the webhooks" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        await place.listening(port=int(fake.url.removesuffix("/api/1.0").rpartition(":")[2])).run()
    monkeypatch.setenv("ASANA_ACCESS_TOKEN", "wrong")
    with pytest.raises(NotAuthorizedError):
        await place.listening().run()
    assert not fake.webhooks
    assert "deleting" not in capsys.readouterr().err


def test_mistaken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A missing token or home, or a wrong URL, filter or directory, is a sentence and a status; nothing is sent."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # nobody has a home
    (tmp_path / "file").touch()
    for status, name, value, more, text in [
        (4, "ASANA_ACCESS_TOKEN", "", (), "ASANA_ACCESS_TOKEN"),
        (2, "ASANA_WEBHOOKS_PUBLIC_URL", "x", (), "public_url must be"),
        (2, "XDG_STATE_HOME", str(tmp_path / "file"), (), "set XDG_STATE_HOME"),
        (2, "XDG_STATE_HOME", "", (), "set XDG_STATE_HOME"),
        (2, "XDG_STATE_HOME", str(tmp_path), ("--forward-to", "ftp://x"), "--forward-to must be"),
        (2, "XDG_STATE_HOME", str(tmp_path), ("--filter", "task:"), "the filter 'task:' must look like"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv("ASANA_ACCESS_TOKEN", TOKEN)
            patch.setenv("ASANA_WEBHOOKS_PUBLIC_URL", "https://example.com/asana")
            patch.setenv(name, value)
            assert call(patch, "listen", "--resource", PROJECT, *more) == status
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert text in printed.err
