"""``asana-webhooks listen`` as a real process: what it prints and forwards, how it ends, and what it leaves behind."""

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

from asana_webhooks import verify_signature
from asana_webhooks.testing import FakeAsana, Fault
from asana_webhooks.testing.serving import LoopbackServer
from tests.cli.cli_process import MODULE, Ended, call, ended, run_cli, started
from tests.cli.test_cli_fake import fake_process
from tests.helpers.ports import free_port
from tests.helpers.tcp_proxy import Loss, tcp_proxy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_POSIX = ("-m", "tests.helpers.without_posix", "asana_webhooks")
PROJECT = "8675309"
TOKEN = "t0ken-of-the-tests-8642"
IMPATIENT = f"""
import asyncio, sys
from asana_webhooks.cli.listen import Listening
url, port = sys.argv[1:]
one = Listening(resource=("{PROJECT}",), public_url=url, port=int(port), probe_every=0.2, give_up_after=3)
sys.exit(asyncio.run(one.run()))
"""


@define
class Listener:
    """A running ``listen``."""

    process: asyncio.subprocess.Process
    said: list[str] = field(factory=list)

    async def says(self, text: str) -> None:
        """Read its standard error until a line has *text*."""
        await self._read(self.process.stderr, text)

    async def prints(self, text: str = "") -> str:
        """Read its standard output until a line has *text*, and return that line."""
        return await self._read(self.process.stdout, text)

    async def _read(self, stream: asyncio.StreamReader | None, text: str) -> str:
        assert stream is not None
        async with asyncio.timeout(20):
            while line := (await stream.readline()).decode():
                self.said.append(line)
                if text in line:
                    return line
        raise AssertionError(f"it ended without {text!r}: {self.said}")

    async def end(self, number: int = signal.SIGTERM) -> Ended:
        self.process.send_signal(number)
        return await ended(self.process)


@define
class Place:
    """Where listeners run, one after another: an Asana, a public URL, a state directory."""

    asana: str
    state: Path
    token: str = TOKEN
    port: int = field(factory=free_port)

    @property
    def public_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/asana"

    @property
    def environment(self) -> dict[str, str]:
        state = {"XDG_STATE_HOME": str(self.state), "PYTHONPATH": str(ROOT)}
        return {"ASANA_ACCESS_TOKEN": self.token, "ASANA_BASE_URL": self.asana, **state}

    def arguments(self, *more: str, port: int | None = None) -> tuple[str, ...]:
        where = ("--public-url", self.public_url, "--port", str(port or self.port))
        return ("listen", *where, "--resource", PROJECT, *more)

    @asynccontextmanager
    async def listening(self, *more: str, python: Sequence[str] = MODULE) -> AsyncIterator[Listener]:
        async with self.running(*self.arguments(*more), python=python) as listener:
            await listener.says("ready")
            yield listener

    @asynccontextmanager
    async def running(self, *arguments: str, python: Sequence[str] = MODULE) -> AsyncIterator[Listener]:
        async with started(*arguments, python=python, **self.environment) as process:
            yield Listener(process)


@define
class Target:
    """A service that deliveries are forwarded to."""

    statuses: list[int]
    """Of its answers to deliveries; the last one stays."""
    greetings: list[int] = field(factory=lambda: [200])
    """The same for handshakes."""
    echoes: bool = True
    port: int = field(factory=free_port)
    secrets: list[str] = field(factory=list)
    deliveries: list[tuple[bytes, str]] = field(factory=list)
    """Bodies with their signatures."""
    changed: asyncio.Condition = field(factory=asyncio.Condition)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = LoopbackServer(self._answer, port=self.port)
        await server.start()
        try:
            yield
        finally:
            await server.aclose()

    async def _answer(self, request: web.Request) -> web.Response:
        body, secret = await request.read(), request.headers.get("X-Hook-Secret")
        async with self.changed:
            self.changed.notify_all()
            if secret is not None:
                self.secrets.append(secret)
                headers = {"X-Hook-Secret": secret} if self.echoes else {}
                return web.Response(status=self._next(self.greetings), headers=headers)
            self.deliveries.append((body, request.headers["X-Hook-Signature"]))
            return web.Response(status=self._next(self.statuses))

    @staticmethod
    def _next(statuses: list[int]) -> int:
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]

    async def got(self, number: int) -> None:
        """Wait for so many deliveries."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.deliveries) >= number)


@pytest.fixture
async def fake() -> AsyncIterator[FakeAsana]:
    async with FakeAsana(token=TOKEN, projects=(PROJECT, "7")) as one:
        yield one


@pytest.fixture
def place(fake: FakeAsana, tmp_path: Path) -> Place:
    return Place(fake.url, tmp_path)


def fields(texts: Sequence[str]) -> list[str]:
    return [json.loads(text)["change"]["field"] for text in texts]


async def test_readable(tmp_path: Path) -> None:
    """Against the fake as a process: events are readable lines, a filter holds, and SIGTERM deletes the webhook."""
    async with fake_process("--token", TOKEN, "--workspace", "1331") as asana:
        place = Place(asana.url, tmp_path)
        filters = ("--filter", "task:changed:due_on", "--filter", "task:added", "--workspace", "1331")
        async with place.listening(*filters) as listener:
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
        f"added     task 99 to project {PROJECT} by 11\n",
        "changed   task 99 due_on by 11\n",
    ]
    assert (end.status, end.out, left) == (0, "", [])
    said = "".join(listener.said) + end.err
    assert f"created webhook {webhook['gid']} on {PROJECT}" in said
    secrets = (TOKEN, webhook["secret"], webhook["target"].rpartition("/")[2])
    assert not any(secret in said for secret in secrets)


@pytest.mark.parametrize("python", [MODULE, WITHOUT_POSIX], ids=["posix", "without posix"])
async def test_json(fake: FakeAsana, place: Place, python: Sequence[str]) -> None:
    """With --json an event is an object on a line, printed once though it came twice; Ctrl-C ends with 130."""
    fake.script(Fault(at="delivery", do="duplicate"))
    async with place.listening("--json", python=python) as listener:
        (webhook,) = fake.webhooks
        task = fake.add_task(parent=PROJECT)
        for name in ("due_on", "name"):
            fake.change(task, field=name)
            await fake.settle()
        lines = [await listener.prints(), await listener.prints()]
        end = await listener.end(signal.SIGINT)
    assert fields(lines) == ["due_on", "name"]
    assert json.loads(lines[0])["webhook_gid"] == webhook
    assert (end.status, end.out, fake.webhooks) == (130, "", {})


async def test_what_is_left(fake: FakeAsana, place: Place) -> None:
    """A start deletes what a killed process left; with --keep it goes on with it. Two at once are refused."""
    async with place.listening("--resource", "7") as first:
        left = set(fake.webhooks)
        other = await run_cli(*place.arguments(port=free_port()), **place.environment)
        assert (other.status, "another `listen` with this public URL" in other.err) == (2, True)
        assert set(fake.webhooks) == left
        first.process.kill()
        await ended(first.process)
    async with place.listening("--resource", "7") as second:
        assert len(fake.webhooks) == 2
        assert not left & set(fake.webhooks)
        fake.script(
            Fault(at="deleteWebhook", status=503, times=None)
        )  # what is held is not executed when it is released
        held = fake.hold("deleteWebhook", times=None)
        second.process.send_signal(signal.SIGINT)
        await held.reached(2)
        end = await second.end(signal.SIGINT)
    assert end.status == 130
    assert "the next start deletes the webhooks that are left" in end.err
    held.release()
    fake.faults.clear()
    (kept,) = (gid for gid, one in fake.webhooks.items() if one.resource.gid == PROJECT)
    async with place.listening("--keep") as third:
        assert f"unchanged webhook {kept} on {PROJECT}\n" in third.said
        end = await third.end()
    assert (end.status, list(fake.webhooks)) == (0, [kept])
    async with place.listening() as fourth:
        assert kept not in fake.webhooks
        await fourth.end()
    assert not fake.webhooks


async def test_forwarding(fake: FakeAsana, place: Place) -> None:
    """Deliveries are forwarded as they came, in order, with a lasting secret; what waits is printed all the same."""
    target = Target(statuses=[503, 200])
    forward = ("--json", "--forward-to", f"http://127.0.0.1:{target.port}/hooks/key?k=3")
    task = fake.add_task(parent=PROJECT)
    async with place.listening(*forward) as listener:
        assert "cannot connect" in "".join(listener.said)
        fake.change(task, field="due_on")
        await fake.settle()
        await listener.says("(handshake)")
        fake.change(task, field="name")
        await fake.settle()
        assert fields([await listener.prints(), await listener.prints()]) == ["due_on", "name"]
        async with target.serving():
            await target.got(3)
            await listener.says(f"-> 200 POST http://127.0.0.1:{target.port}/*** (delivery 2)")
        end = await listener.end()
    assert (end.status, end.out, fake.webhooks) == (0, "", {})
    first, again, second = target.deliveries
    sent = [one.body for one in fake.deliveries if not one.heartbeat]
    assert (first, [again[0], second[0]]) == (again, sent)
    (secret,) = target.secrets
    assert all(verify_signature(body, signature, secret=secret) for body, signature in target.deliveries)
    said = "".join(listener.said) + end.err
    assert f"-> 503 POST http://127.0.0.1:{target.port}/*** (delivery 1)" in said
    assert not any(one in said for one in (secret, "key", "k=3", "Traceback"))

    target.echoes, target.greetings, target.statuses = False, [503, 200], [503]
    async with target.serving(), place.listening(*forward, "--reveal") as listener:
        said = "".join(listener.said)
        assert f"signed with the secret {secret}\n" in said
        assert f"-> 503 POST {forward[-1]} (handshake)" in said
        fake.change(task, field="notes")
        await fake.settle()
        await target.got(4)
        end = await listener.end()
    assert target.secrets == [secret] * 3
    assert "did not echo X-Hook-Secret" in "".join(listener.said) + end.err
    assert "deliveries left for the next start: 1" in end.err
    assert len(target.deliveries) > 4  # it was tried again before the end
    files = [path for path in place.state.rglob("*") if path.is_file()]
    assert [oct(path.stat().st_mode & 0o777) for path in files if path.suffix != ".lock"].count("0o600") >= 2
    assert (place.state / "asana-webhooks").stat().st_mode & 0o777 == 0o700


async def test_probe(fake: FakeAsana, place: Place) -> None:
    """If the public URL leads elsewhere, it says so, though a 200 comes from there; in the end it gives up."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    stranger = LoopbackServer(answer, port=0)
    async with tcp_proxy(place.public_url) as proxy:
        async with place.running(f"{proxy.url}?key=k3y", str(place.port), python=("-c", IMPATIENT)) as listener:
            await listener.says("ready")
            proxy.lose(requests=Loss(), times=2)
            await listener.says(f"{proxy.url} does not reach this process")
            await listener.says("reaches this process again")
            proxy.upstream = URL(await stranger.start())
            await listener.says("does not reach this process: something else answered 200")
            end = await ended(listener.process)
    await stranger.aclose()
    assert (end.status, end.out, fake.webhooks) == (1, "", {})
    assert "giving up" in end.err
    assert "k3y" not in "".join(listener.said) + end.err


async def test_closed_output(fake: FakeAsana, place: Place) -> None:
    """When nobody reads on, as after ``2>&1 | head``, it deletes its webhooks and ends well."""
    async with place.listening() as listener:
        for number in (1, 2):
            pipe: Any = listener.process._transport.get_pipe_transport(number)  # type: ignore[attr-defined]
            pipe.close()
        fake.change(fake.add_task(parent=PROJECT), field="due_on")
        await fake.settle()
        assert await asyncio.wait_for(listener.process.wait(), 20) == 0
    assert not fake.webhooks


async def test_refused(fake: FakeAsana, place: Place, tmp_path: Path) -> None:
    """A token or resource that Asana refuses, or a port that is taken, is a sentence and a status; nothing is left."""
    fake.add_resource("project", "13", accessible=False)
    taken = int(fake.url.removesuffix("/api/1.0").rpartition(":")[2])
    places = [evolve(place, state=tmp_path / name, port=free_port()) for name in "abc"]
    cases = [
        (4, evolve(places[0], token="wrong").environment, places[0].arguments(), "401"),
        (2, places[1].environment, places[1].arguments(port=taken), "cannot listen on"),
        (1, places[2].environment, places[2].arguments("--resource", "13"), "403"),
    ]
    ends = await asyncio.gather(*(run_cli(*arguments, **environment) for _, environment, arguments, _ in cases))
    for (status, _, _, text), end in zip(cases, ends, strict=True):
        assert (end.status, end.out) == (status, "")
        assert text in end.err.splitlines()[-1]
        assert "Traceback" not in end.err
    assert not fake.webhooks
    assert [one.status for one in fake.requests if one.operation == "createWebhook"].count(201) == 1


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help has an example, and no option that only tests need."""
    assert call(monkeypatch, "listen", "--help") == 0
    text = capsys.readouterr().out
    assert "asana-webhooks listen --resource 8675309" in text
    assert "--probe-every" not in text


def test_mistaken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A missing token, a wrong URL or state directory is a sentence and a status, before anything is sent."""
    (tmp_path / "file").touch()
    for status, name, value, more, text in [
        (4, "ASANA_ACCESS_TOKEN", "", (), "ASANA_ACCESS_TOKEN"),
        (2, "ASANA_WEBHOOKS_PUBLIC_URL", "x", (), "public_url must be"),
        (2, "XDG_STATE_HOME", str(tmp_path / "file"), (), "set XDG_STATE_HOME"),
        (2, "XDG_STATE_HOME", str(tmp_path), ("--forward-to", "ftp://x"), "--forward-to must be"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv("ASANA_ACCESS_TOKEN", TOKEN)
            patch.setenv("ASANA_WEBHOOKS_PUBLIC_URL", "https://example.com/asana")
            patch.setenv(name, value)
            assert call(patch, "listen", "--resource", PROJECT, *more) == status
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert text in printed.err
