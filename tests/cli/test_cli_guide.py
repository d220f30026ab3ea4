"""The screens in the guide of the command line are what its commands print."""

import asyncio
import re
from pathlib import Path
from typing import Final

import attrs
import pytest
from aiohttp import web

from asana_webhooks import Secret, SQLiteStore, WebhookFilter
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import NewDelivery, registration_id
from asana_webhooks.testing import FakeAsana
from asana_webhooks.testing.serving import LoopbackServer
from tests.cli.cli_process import call, on_terminal
from tests.cli.service import Fixtures, service
from tests.cli.test_cli_health import AGO, fail, lose
from tests.cli.test_cli_health import PROJECTS as WATCHED
from tests.cli.test_cli_plans import PROJECTS, prepare
from tests.helpers.guides import GUIDES, program
from tests.helpers.ports import free_port
from tests.helpers.stores import SECRET, Clock, body, event, register
from tests.subscriptions.test_check_public_url import behind, rewrites_json

pytestmark = pytest.mark.slow

PUBLIC_URL: Final = "https://example.com/asana"
_SCREENS: Final = re.compile(r"^\$ asana-webhooks (.+)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)
SCREENS: Final = dict(_SCREENS.findall(GUIDES["cli"].read_text()))
"""What the guide shows, by the command."""


async def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Return what a command prints in this process."""
    await asyncio.to_thread(call, monkeypatch, *command.split())
    shown = capsys.readouterr()
    return shown.err + shown.out


def plain(shown: str) -> str:
    """Return what a terminal shows, without escape sequences, and without the progress bar that came first."""
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.rpartition("\x1b[2K")[2]).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


async def test_list(tmp_path: Path) -> None:
    """The table of `list` has a webhook of each kind; `update` and `delete` print what they did."""
    gids, commands = ["1200000000000002", "1200000000000008"], [one for one in SCREENS if one.split()[0] in LISTING]
    names = ("Bugs", "Website relaunch", "Hiring", "Sales")
    async with FakeAsana(projects=[]) as fake, SQLiteStore(tmp_path / "asana.db") as store:
        for number, name in enumerate(names):
            record, project = fake.webhook(fake.add_quiet_webhook()), str(8675309 + number)
            fake.add_project(project, name=name)
            record.resource = attrs.evolve(record.resource, gid=project, name=name)
            record.target = "https://crm.example/hooks/7" if number == 3 else f"{PUBLIC_URL}/endpoint-{number}"
            if number < 2:
                record.filters = (WebhookFilter(resource_type="task", action="changed", fields=("due_on",)),)
                await store.adopt_registration(
                    registration_id(f"endpoint-{number}"),
                    resource=project,
                    public_url=PUBLIC_URL,
                    label="tenant-a" if number else "",
                    webhook_gid=record.gid,
                    secret=Secret("0123456789abcdef"),
                )
        assert all(any(gid in command for command in commands) for gid in gids)
        environment = {
            "ASANA_ACCESS_TOKEN": fake.token,
            "ASANA_BASE_URL": fake.url,
            "ASANA_WORKSPACE": fake.workspace,
            "ASANA_WEBHOOKS_STORE": str(tmp_path / "asana.db"),
            "COLUMNS": "120",
        }
        for command in commands:
            async with on_terminal(*command.split(), **environment) as terminal:
                await terminal.ended()
            assert plain(terminal.shown) == SCREENS[command]


LISTING: Final = ("list", "update", "delete")


async def test_plan(fixtures: Fixtures) -> None:
    """The plan for the file in the guide has a step of each kind."""
    async with service(*fixtures, *PROJECTS) as here:
        await prepare(here)
        here.write(program("cli", "Plan and apply: the webhooks of a file", language="toml"))
        await here.store.open_registration("a" * 64, resource="105", public_url=here.public_url, ttl=60)
        assert (await here.run("plan", "--prune")).out == SCREENS["plan --prune"]


async def test_health(fixtures: Fixtures) -> None:
    """One webhook is gone, and one is failing."""
    async with service(*fixtures, *WATCHED, ago=AGO) as here:
        await here.ensure("103")
        await here.ensure("104")
        await here.fake.settle()
        await lose(here, "102")
        await fail(here, "101")
        assert (await here.run("health")).out == SCREENS["health"]


async def test_doctor_url(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A proxy parses JSON, and writes it anew. That it runs on this machine is left out of the guide."""
    (command,) = (one for one in SCREENS if one.startswith("doctor url"))
    port = free_port()
    async with behind(f"http://127.0.0.1:{port}/asana", rewrites_json) as (url, _):
        await asyncio.to_thread(call, monkeypatch, *command.replace(PUBLIC_URL, url).replace("8080", str(port)).split())
    warning, *lines = capsys.readouterr().out.splitlines(keepends=True)
    assert warning.startswith("warning: address:")
    seconds = re.compile(r"\d+\.\d\d s")
    assert seconds.sub("", "".join(lines)) == seconds.sub("", SCREENS[command])


async def test_doctor_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An editor has added a newline to a delivery that was saved."""
    (command,) = (one for one in SCREENS if one.startswith("doctor signature"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", "asana.db")
    (tmp_path / "body.json").write_bytes(b'{"events":[]}\n')
    secret = Secret("0123456789abcdef" * 2)
    async with SQLiteStore("asana.db") as store:
        await store.adopt_registration(
            "43" * 32, resource="8675309", public_url=PUBLIC_URL, webhook_gid="43214", secret=secret
        )
    assert await printed(monkeypatch, capsys, command) == SCREENS[command]


async def test_listen(tmp_path: Path) -> None:
    """Two events come, and are forwarded; Ctrl-C ends it."""
    (command,) = (one for one in SCREENS if one.startswith("listen"))

    async def target(request: web.Request) -> web.Response:
        secret = request.headers.get("X-Hook-Secret")
        return web.Response(headers={"X-Hook-Secret": secret} if secret else {})

    port, server = free_port(), LoopbackServer(target, port=0)
    forwarding = await server.start()
    arguments = [*command.replace("http://127.0.0.1:3000", forwarding).split(), "--port", str(port)]
    arguments += ["--public-url", f"http://127.0.0.1:{port}/asana"]
    async with FakeAsana() as fake:
        environment = {
            "ASANA_ACCESS_TOKEN": fake.token,
            "ASANA_BASE_URL": fake.url,
            "XDG_STATE_HOME": str(tmp_path),
            "COLUMNS": "120",
        }
        async with on_terminal(*arguments, **environment) as terminal:
            await terminal.until("ready")
            fake.change("99", action="added", parent="8675309")
            await terminal.until("delivery 1")
            fake.change("99", field="due_on")
            await terminal.until("delivery 2")
            terminal.type("\x03")
            await terminal.ended()
    await server.aclose()

    def sorted_lines(text: str) -> list[str]:  # the handshake and the creation run side by side
        text = text.replace(f":{port}", ":8080").replace("^C", "")
        return sorted(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "", text).splitlines())

    assert sorted_lines(plain(terminal.shown)) == sorted_lines(SCREENS[command])


async def test_inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three dead letters, of which one was half done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", "asana.db")
    clock = Clock(now=1796007600.0)
    project = {"gid": "8675309", "resource_type": "project"}
    added = event(action="added", change=None, parent=project, resource={"gid": "12", "resource_type": "task"})
    changed = event(resource={"gid": "11", "resource_type": "task"})
    async with SQLiteStore("asana.db", clock=clock) as store:
        first = await register(store, gid="1200000000000002")
        second = await register(store, "Another_endpoint_0123456789_abcdefg", gid="1200000000000004", label="tenant-a")
        for id, content in ((first, body(changed, added)), (second, body(added)), (first, body(changed))):
            await store.put(NewDelivery(registration=id, signature=sign_body(content, secret=SECRET), body=content))
            clock.advance(61)
        for lease in await store.claim(3, lease=60):
            done, why = ([0], "1 of 2 events not done (1): ") if lease.id == 1 else ([], "")
            await store.fail(lease, error=f"{why}ClientResponseError: the CRM answered 503", retry_in=None, done=done)
    for command in (one for one in SCREENS if one.startswith("inbox")):
        assert await printed(monkeypatch, capsys, command) == SCREENS[command]


def test_every_screen_is_made() -> None:
    """Each screen of the guide is one of those above."""
    made = {"list", "update", "delete", "plan", "health", "doctor", "listen", "inbox"}
    assert {one.split()[0] for one in SCREENS} == made
