"""``list``, ``get``, ``create``, ``update``, ``delete``, ``workspaces`` and ``projects``, beside a running service."""

import asyncio
import json
import re
import signal
import sys
from io import BytesIO, TextIOWrapper
from typing import Any

import pytest
from cryptography.fernet import Fernet

from asana_webhooks import Receiver, Secret, SQLiteStore, ensure_webhook
from asana_webhooks.store.secret_box import FernetBox
from asana_webhooks.testing import Fault, serve_receiver
from tests.cli.cli_process import call, on_terminal, run_unread, started
from tests.cli.service import Fixtures, Service, service

BUGS, SITE, HIRING = "8675309", "8675310", "8675311"


async def json_of(made: Service, *arguments: str) -> list[dict[str, Any]]:
    ended = await made.run(*arguments, "--json")
    assert (ended.status, ended.err) == (0, "")
    return [json.loads(line) for line in ended.out.splitlines()]


def stranger(made: Service, public_url: str) -> str:
    """Add a webhook that no store has; return its gid."""
    gid = made.fake.add_quiet_webhook()
    made.fake.webhook(gid).target = f"{public_url}/an-endpoint-of-another-store"
    return gid


async def test_workspaces_and_projects(fixtures: Fixtures) -> None:
    """Both are lines of gid and name; JSON has the type, too."""
    async with service(*fixtures, BUGS) as made:
        assert (await made.run("workspaces")).out == f"{made.fake.workspace}\tWorkspace\n"
        assert (await made.run("projects")).out == f"{BUGS}\tproject {BUGS}\n"
        bugs = {"gid": BUGS, "name": f"project {BUGS}", "resource_type": "project", "resource_subtype": None}
        assert await json_of(made, "projects") == [bugs]


async def test_odd_names(fixtures: Fixtures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name can neither steer a terminal nor end a line nor break JSON; what the encoding lacks is escaped."""
    name = "[red] é \x1b[31m\t\x9b31m\n\u202e\u2028"
    harmless = r"[red] é \u001b[31m\t\u009b31m\n\u202e\u2028"
    async with service(*fixtures, BUGS) as made:
        made.fake.add_project(SITE, name=name)
        assert (await made.run("projects")).out.splitlines()[1:] == [f"{SITE}\t{harmless}"]
        assert harmless in (await made.run("projects", "--json")).out
        in_ascii = []
        for arguments in ((), ("--json",)):
            stdout = TextIOWrapper(BytesIO(), encoding="ascii")
            monkeypatch.setattr(sys, "stdout", stdout)
            assert await asyncio.to_thread(call, monkeypatch, "projects", *arguments) == 0
            stdout.seek(0)
            in_ascii.append(stdout.readlines()[1])
        assert in_ascii[0] == f"{SITE}\t{harmless}\n".replace("é", r"\xe9")
        assert json.loads(in_ascii[1])["name"] == name


async def test_list(fixtures: Fixtures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each webhook is a line: its resource with the name, its target masked, its filters; narrowed by resource."""
    async with service(*fixtures, BUGS, SITE) as made:
        bugs = await made.ensure(BUGS, "task:changed:due_on,due_at", "story/comment_added")
        site = await made.ensure(SITE)
        made.fake.webhook(site.webhook_gid).active = False
        monkeypatch.delenv("ASANA_WEBHOOKS_STORE")
        target = f"{made.public_url}/***"
        filters = "task:changed:due_on,due_at story/comment_added"
        first = f"{bugs.webhook_gid}\t{BUGS} project {BUGS}\t{target}\t{filters}\tyes\n"
        second = f"{site.webhook_gid}\t{SITE} project {SITE}\t{target}\tall events\tno\n"
        assert (await made.run("list")).out == first + second
        assert (await made.run("list", "--resource", SITE)).out == second
        with monkeypatch.context() as narrow:  # no table fits this
            narrow.setenv("FORCE_COLOR", "1")
            narrow.setenv("COLUMNS", "40")
            assert (await made.run("list", "--resource", SITE)).out == second
        (shown,) = await json_of(made, "list", "--resource", BUGS)
        assert shown == bugs.webhook.to_dict() | {"target": target}
        assert await asyncio.to_thread(call, monkeypatch, "list", "--reveal") == 0
        assert f"\t{site.webhook.target}\tall events" in made.capsys.readouterr().out


async def test_list_says_whose(fixtures: Fixtures) -> None:
    """With a store: ours; those whose deliveries it cannot verify; and foreign ones."""
    async with service(*fixtures, BUGS, SITE) as made:
        ours = (await made.ensure(BUGS)).webhook_gid
        tenants = (await made.ensure(BUGS, label="tenant-a")).webhook_gid
        closed = await made.ensure(SITE)
        await made.store.close_registration(closed.registration)
        made.fake.webhook(closed.webhook_gid).target = "https://another.example/spelling-of/the-target"
        for number in map(str, range(1000, 1100)):  # a page of them, before the others
            known: dict[str, Any] = {"resource": number, "public_url": made.public_url, "webhook_gid": number}
            assert await made.store.adopt_registration(number.zfill(64), secret=Secret("s"), **known)
        foreign = stranger(made, "https://example.com/asana")
        unknown = stranger(made, made.public_url)
        missing = "secret missing"
        expected = {
            ours: ("ours", ""),
            tenants: ("ours", "tenant-a"),
            closed.webhook_gid: (missing, ""),
            foreign: ("foreign", None),
            unknown: (missing, None),
        }
        assert {one["gid"]: (one["whose"], one["label"]) for one in await json_of(made, "list")} == expected
        shown = [line.split("\t")[-1] for line in (await made.run("list")).out.splitlines()]
        assert shown == ["ours", "ours (tenant-a)", missing, "foreign", missing]


async def test_a_key_that_is_missing(fixtures: Fixtures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key of its store, a webhook's secret is missing; with it, the webhook is ours. No error shows it."""
    folder, *_ = fixtures
    key = Fernet.generate_key().decode()
    async with (
        service(*fixtures, BUGS) as made,
        SQLiteStore(folder / "sealed.db", secret_box=FernetBox({"new": key})) as sealed,
        serve_receiver(Receiver(sealed)) as public_url,
    ):
        gid = (await ensure_webhook(made.asana, sealed, resource=BUGS, public_url=public_url)).webhook_gid
        monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(folder / "sealed.db"))
        assert (await made.run("list")).out.endswith("\tsecret missing\n")
        (got,) = await json_of(made, "get", gid)
        assert (got["whose"], got["secret"], got["state"]) == ("secret missing", None, "confirmed")
        assert "'new'" in got["problem"]
        for wrong in (key, f"{key}=new", f"new={key},{key}", "new="):
            monkeypatch.setenv("ASANA_WEBHOOKS_STORE_KEYS", wrong)
            refused = await made.run("list")
            assert (refused.status, key.rstrip("=") in refused.err) == (2, False)
            assert "ASANA_WEBHOOKS_STORE_KEYS must hold Fernet keys by their ids" in refused.err
        monkeypatch.setenv("ASANA_WEBHOOKS_STORE_KEYS", f"new={key}")
        assert (await made.run("list")).out.endswith("\tours\n")


async def test_get(fixtures: Fixtures, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows every field, and what the store knows; secrets and the endpoint only with --reveal."""
    async with service(*fixtures, BUGS) as made:
        ensured = await made.ensure(BUGS, "task:added", label="tenant-a")
        gid, target = ensured.webhook_gid, str(ensured.webhook.target)
        made.fake.webhook(gid).last_failure_content = f"Cannot POST {target}"
        (shown,) = await json_of(made, "get", gid)
        masked = f"{made.public_url}/***"
        assert shown.keys() == ensured.webhook.to_dict().keys() | {*("whose", "label", "state", "secret")}
        assert (shown["target"], shown["last_failure_content"]) == (masked, f"Cannot POST {masked}")
        assert (shown["label"], shown["state"], shown["secret"]) == ("tenant-a", "confirmed", "***")
        lines = (await made.run("get", gid)).out.splitlines()
        assert {f"gid\t{gid}", f"resource\t{BUGS} project {BUGS}", "filters\ttask:added", "active\tyes"} < set(lines)
        assert {"delivery_retry_count\t0", "next_attempt_after\t", "secret\t***"} < set(lines)
        assert await asyncio.to_thread(call, monkeypatch, "get", gid, "--reveal", "--json") == 0
        revealed = json.loads(made.capsys.readouterr().out)
        assert (revealed["target"], revealed["secret"]) == (target, made.fake.secret(gid).reveal())
        foreign = stranger(made, "https://example.com/asana")
        assert (await json_of(made, "get", foreign))[0]["whose"] == "foreign"
        assert (await made.run("get", "77")).status == 1


async def test_create_and_update(fixtures: Fixtures) -> None:
    """Creating ensures, and says what it did; updating shows the filters before and after."""
    async with service(*fixtures, BUGS) as made:
        options = ("create", BUGS, "--filter", "task:added", "--filter", "task:changed:due_on", "--label", "a")
        (created,) = await json_of(made, *options)
        gid = created["webhook_gid"]
        (known,) = await made.store.list_registrations(webhook_gid=gid)
        of_resource = {"resource": BUGS, "label": "a"}
        ensured = {"action": "created", "webhook_gid": gid, "registration": known.id, "orphans": 0}
        assert created == ensured | of_resource
        assert (await made.run(*options)).out == f"{gid}: unchanged\n"
        before, after = "task:added task:changed:due_on", "story:added"
        assert (await made.run("update", gid, "--filter", after)).out == f"{gid}: {before} -> {after}\n"
        (updated,) = await json_of(made, "update", gid, "--all-events")
        assert ([one["resource_type"] for one in updated["filters_before"]], updated["filters"]) == (["story"], [])
        assert made.fake.webhook(gid).filters == ()


async def test_no_receiver(fixtures: Fixtures) -> None:
    """Without a receiver, creating fails, says what is needed, and leaves nothing."""
    async with service(*fixtures, BUGS) as made:
        await made.receiving.aclose()
        ended = await made.run("create", BUGS)
        assert (ended.status, ended.out, made.fake.webhooks) == (1, "", {})
        assert "The receiver must answer the handshake" in ended.err
        assert [one.state.value for one in await made.store.list_registrations()] == ["closed"]


async def test_delete(fixtures: Fixtures) -> None:
    """Registrations are closed, too; one that fails does not stop the others; one that is gone is no failure."""
    async with service(*fixtures, BUGS, SITE, HIRING) as made:
        gids = [(await made.ensure(one, label=one)).webhook_gid for one in (BUGS, SITE, HIRING)]
        foreign = stranger(made, "https://example.com/asana")
        made.fake.script(Fault(at="deleteWebhook", webhook=gids[0], status=403, message="Not yours"))
        ended = await made.run("delete", *gids, foreign, "77", "--yes")
        assert (ended.status, list(made.fake.webhooks)) == (1, gids[:1])
        assert ended.out == f"{gids[1]}: deleted\n{gids[2]}: deleted\n{foreign}: deleted\n77: already gone\n"
        assert re.fullmatch(rf"{gids[0]}: .*Not yours.*\n", ended.err)
        states = {one.webhook_gid: one.state.value for one in await made.store.list_registrations()}
        assert states == dict(zip(gids, ("confirmed", "closed", "closed"), strict=True))
        assert (await made.run("delete", "77", "-y", "--base-url", made.fake.url.removesuffix("/api/1.0"))).status == 1
        del made.fake.webhooks[gids[0]]
        assert await json_of(made, "delete", gids[0], "-y") == [{"gid": gids[0], "deleted": True}]
        assert {one.state.value for one in await made.store.list_registrations()} == {"closed"}


async def test_delete_a_label(fixtures: Fixtures) -> None:
    """All webhooks with the label go, whichever resource they watch; the others stay."""
    async with service(*fixtures, BUGS, SITE) as made:
        kept = (await made.ensure(BUGS)).webhook_gid
        for one in (BUGS, SITE):
            await made.ensure(one, label="tenant-a")
        assert await json_of(made, "delete", "--label", "tenant-a", "--yes") == [{"label": "tenant-a", "deleted": 2}]
        assert list(made.fake.webhooks) == [kept]
        assert (await made.run("delete", "--label", "tenant-a", "--yes")).out == "deleted 0 webhook(s)\n"


MISTAKES: list[tuple[int, tuple[str, ...], str]] = [
    (2, ("list",), "--workspace"),
    (2, ("list", "--workspace", "x"), "workspace must be a gid"),
    (2, ("list", "--workspace", "1", "--store", "nowhere.db"), "there is no store at nowhere.db"),
    (2, ("get", "x"), "webhook_gid must be a gid"),
    (2, ("create", "1", "--public-url", "https://example.com/a"), "--store"),
    (2, ("update", "1"), "pass either --filter"),
    (2, ("update", "1", "--filter", "task", "--all-events"), "pass either --filter"),
    (2, ("update", "1", "--filter", "task:"), "the filter 'task:' must look like"),
    (2, ("delete",), "pass either the gids"),
    (2, ("delete", "1", "--label", "a"), "pass either the gids"),
    (2, ("delete", "--label", "a"), "--label needs --store"),
    (2, ("delete", "1", "x", "--yes"), "webhook_gid must be a gid"),
    (2, ("delete", "1", "2"), "Delete 2 webhook(s)? There is no terminal to ask on: pass --yes"),
]


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command has an example that begins with its name."""
    for command in ("list", "get", "create", "update", "delete", "workspaces", "projects"):
        assert call(monkeypatch, command, "--help") == 0
        assert re.search(rf"For example:\s+asana-webhooks {command}\b", capsys.readouterr().out)


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot work is one sentence on standard error and status 2, before Asana is asked."""
    monkeypatch.setenv("ASANA_ACCESS_TOKEN", "a-token")
    monkeypatch.setenv("ASANA_BASE_URL", "http://127.0.0.1:1")
    for name in ("ASANA_WORKSPACE", "ASANA_WEBHOOKS_STORE", "ASANA_WEBHOOKS_PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    for status, arguments, expected in MISTAKES:
        assert call(monkeypatch, *arguments) == status, arguments
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert expected in printed.err


async def test_tokens(fixtures: Fixtures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token, or with one that Asana refuses, the status is 4; nothing more is tried after that."""
    async with service(*fixtures, BUGS) as made:
        for token, asked in (("", 0), ("refused", 1)):
            monkeypatch.setenv("ASANA_ACCESS_TOKEN", token)
            for arguments in (("workspaces",), ("delete", "1", "2", "--yes"), ("create", BUGS)):
                made.fake.requests.clear()
                ended = await made.run(*arguments)
                assert (ended.status, ended.out, len(made.fake.requests)) == (4, "", asked)
                assert "token" in ended.err


async def test_screen(fixtures: Fixtures) -> None:
    """On a terminal a list is a table that fits its width and cuts nothing; deleting asks."""
    async with service(*fixtures, BUGS) as made:
        made.fake.add_project(SITE, name="[red]Website\x1b[35m-relaunch-in-2027")
        gid = (await made.ensure(SITE, "task:changed:due_on,due_at,assignee", label="a-long-label")).webhook_gid
        async with on_terminal("list", **made.environment) as terminal:
            assert await terminal.ended() == 0
        assert re.search(r"asking Asana .*\x1b\[3[0-9]m", terminal.shown)
        assert "\x1b[35m" not in terminal.shown
        table = terminal.shown.rpartition("\x1b[2K")[2]  # after the progress bar was removed
        lines = re.sub(r"\x1b\[[0-9;]*m", "", table).splitlines()
        assert lines[0].split() == ["gid", "resource", "target", "filters", "active", "whose"]
        assert lines[1].startswith(gid)
        assert max(map(len, lines)) <= 80
        start, end = lines[0].index("filters"), lines[0].index("active")
        assert "".join(line[start:end].strip() for line in lines[1:]) == "task:changed:due_on,due_at,assignee"
        async with on_terminal("delete", gid, **made.environment) as terminal:
            await terminal.until("Delete 1 webhook(s)? [y/N]")
            assert gid in made.fake.webhooks
            terminal.type("y\n")
            assert await terminal.ended() == 0
        assert made.fake.webhooks == {}


async def test_standard_output_closed_early(fixtures: Fixtures) -> None:
    """``list | head`` ends with status 0; ``delete | head`` deletes all the same."""
    async with service(*fixtures, BUGS) as made:
        gids = [made.fake.add_quiet_webhook() for _ in range(3)]
        for arguments, left in (("list",), 3), (("delete", *gids, "--yes"), 0):
            ended = await run_unread(*arguments, **made.environment)
            assert (ended.status, ended.err, len(made.fake.webhooks)) == (0, "", left)


async def test_interrupted(fixtures: Fixtures) -> None:
    """Ctrl-C while a webhook is created: status 130, and its registration is closed; the next call clears up."""
    async with service(*fixtures, BUGS) as made:
        held = made.fake.hold("createWebhook", when="after_handshake")
        async with started("create", BUGS, **made.environment) as process:
            await held.reached()
            process.send_signal(signal.SIGINT)
            held.release()
            assert await process.wait() == 130
        assert [one.state.value for one in await made.store.list_registrations()] == ["closed"]
        await made.fake.settle()
        orphans = list(made.fake.webhooks)
        (created,) = await json_of(made, "create", BUGS)
        assert (created["action"], list(made.fake.webhooks)) == ("created", [created["webhook_gid"]])
        assert created["webhook_gid"] not in orphans
