"""``plan`` and ``apply``: what they show, ask and do, and the file they read."""

import json
import signal

from asana_webhooks import RegistrationState
from asana_webhooks.testing import Fault
from tests.cli.cli_process import ended, on_terminal, started
from tests.cli.service import Fixtures, Service, service

FILE = """
[[webhook]]
resource = ["101", "102"]
filters = ["task:changed:due_at,due_on"]

[[webhook]]
resource = ["103"]

[[webhook]]
every = "project"
filters = ["task:added"]
"""
PROJECTS = ("101", "102", "103", "104", "105")


async def prepare(here: Service) -> str:
    """Make webhooks of which FILE changes some; return the gid of one that is not wanted."""
    here.write(FILE)
    here.fake.add_resource("goal", gid="900")
    await here.ensure("101", "task:changed:due_on")
    await here.ensure("103", "task:added")
    await here.ensure("104", "task:added")
    return (await here.ensure("900")).webhook_gid


PLAN = """\
- delete 900 (it is not wanted)
~ update 101 task:changed:due_on -> +due_at
+ create 102 (there is none)
± replace 103 (it has filters, and none are wanted)
… in progress elsewhere 105
1 to create, 1 to change, 1 to replace, 1 to delete, 1 in progress elsewhere, 1 as wanted
"""


async def test_plan_and_apply(fixtures: Fixtures) -> None:
    """The plan shows each step and the counts, apply does it, and then there is nothing to do."""
    async with service(*fixtures, *PROJECTS) as here:
        await prepare(here)
        await here.store.open_registration("a" * 64, resource="105", public_url=here.public_url, ttl=60)
        shown = await here.run("plan", "--prune")
        assert (shown.status, shown.out, shown.err) == (0, PLAN, "")
        for command in ("plan", "apply"):
            checked = await here.run(command, "--prune", "--check")
            assert (checked.status, checked.out, checked.err) == (3, PLAN, "")
        refused = await here.run("apply", "--prune")  # no terminal to ask on
        assert (refused.status, refused.out) == (2, PLAN)
        assert "pass --yes" in refused.err
        assert (await here.run("plan", "--prune")).out == PLAN

        await here.store.close_registration("a" * 64)
        done = await here.run("apply", "webhooks.toml", "--prune", "--at-once", "1", "--yes")
        assert (done.status, done.out.splitlines()[-1]) == (0, "1 deleted, 1 updated, 2 created, 1 replaced")
        assert {one.resource.gid: len(one.filters) for one in here.fake.webhooks.values()} == {
            **dict.fromkeys(("101", "102", "104", "105"), 1),
            "103": 0,
        }
        again = await here.run("apply", "--prune")
        assert (again.status, again.out, again.err) == (0, "5 as wanted\n", "")
        assert (await here.run("plan", "--prune", "--check")).status == 0


async def test_json(fixtures: Fixtures) -> None:
    """With --json each step, and then each result, is an object on a line; the last line has the counts."""
    async with service(*fixtures, *PROJECTS) as here:
        unwanted = await prepare(here)
        (kept,) = [gid for gid, one in here.fake.webhooks.items() if one.resource.gid == "104"]
        shown = await here.run("plan", "--prune", "--json", "--check")
        *steps, last = map(json.loads, shown.out.splitlines())
        assert (shown.status, shown.err) == (3, "")
        assert [one["action"] for one in steps] == ["delete", "update", "create", "replace", "create"]
        assert (steps[0]["webhook_gid"], steps[0]["reason"]) == (unwanted, "it is not wanted")
        assert steps[1]["added"][0]["fields"] == ["due_at", "due_on"]
        counts = {"create": 2, "update": 1, "replace": 1, "delete": 1, "in progress": 0, "unchanged": 1, "problem": 0}
        assert last == {"counts": counts}

        done = await here.run("apply", "--prune", "--json", "--yes")
        *results, last = map(json.loads, done.out.removeprefix(shown.out).splitlines())
        assert (done.status, last) == (0, {"done": {"deleted": 1, "updated": 1, "created": 2, "replaced": 1}})
        assert {one["resource"]: one["action"] for one in results}["102"] == "created"
        existing = set(here.fake.webhooks)
        assert {one["webhook_gid"] for one in results if one["action"] != "deleted"} == existing - {kept}


async def test_differences_in_filters(fixtures: Fixtures) -> None:
    """An update shows fields that come and go, or the whole filters if it is not about fields."""
    cases = {
        ("task:changed:due_on,name", "task:changed:due_at,due_on"): "task:changed:due_on,name -> +due_at,-name",
        ("task:changed:due_on", "task:changed"): "-task:changed:due_on, +task:changed",
        ("task:added story:added", "task:added task:deleted"): "-story:added, +task:deleted",
        ("story/comment_added:added", "story:added"): "-story/comment_added:added, +story:added",
    }
    projects = [str(number) for number in range(101, 101 + len(cases))]
    async with service(*fixtures, *projects) as here:
        for resource, (before, _) in zip(projects, cases, strict=True):
            await here.ensure(resource, *before.split())
        texts = [
            f'[[webhook]]\nresource = ["{resource}"]\nfilters = {json.dumps(after.split())}\n'
            for resource, (_, after) in zip(projects, cases, strict=True)
        ]
        here.write("".join(texts))
        shown = (await here.run("plan")).out.splitlines()
        assert shown[:-1] == [
            f"~ update {resource} {text}" for resource, text in zip(projects, cases.values(), strict=True)
        ]


async def test_failures(fixtures: Fixtures) -> None:
    """A step that fails is a line on standard error, the others are done, and the status is 1.

    A webhook that cannot be planned is shown, and the status is 1, too.
    """
    async with service(*fixtures, "101", "102", "103") as here:
        here.write('[[webhook]]\nevery = "project"\n')
        here.fake.script(Fault(at="createWebhook", status=403))
        done = await here.run("apply", "--yes", "--at-once", "1")
        assert (done.status, done.out.splitlines()[-1]) == (1, "1 failed, 2 created")
        [line] = done.err.splitlines()
        assert line.startswith("to create 101 failed: ")

        here.fake.script(Fault(at="createWebhook", status=401))
        denied = await here.run("apply", "--yes")
        assert denied.status == 4

        await here.run("apply", "--yes")
        (hidden,) = [one for one in here.fake.webhooks.values() if one.resource.gid == "102"]
        del here.fake.webhooks[hidden.gid]
        here.fake.script(Fault(at="getWebhook", status=403, times=None))
        shown = await here.run("apply")
        assert (shown.status, shown.err) == (1, "")
        assert shown.out.startswith("! 102 ")
        assert shown.out.endswith("1 with a problem, 2 as wanted\n")
        here.fake.add_project(gid="104")
        assert (await here.run("plan", "--check")).status == 1
        shown = await here.run("apply", "--yes")
        assert (shown.status, shown.out.splitlines()[-1]) == (1, "1 created")


async def test_options_win_over_the_file(fixtures: Fixtures) -> None:
    """What the file says holds unless an option or the environment says something else."""
    async with service(*fixtures, "101") as here:
        for name in ("ASANA_WORKSPACE", "ASANA_WEBHOOKS_PUBLIC_URL"):
            here.monkeypatch.delenv(name)
        webhook = '[[webhook]]\nresource = ["101"]\n'
        here.write(
            f'public_url = "{here.public_url}"\nworkspace = "{here.fake.workspace}"\nlabel = "of-file"\n{webhook}'
        )
        assert (await here.run("apply", "--yes")).status == 0
        assert [one.label for one in await here.store.list_registrations()] == ["of-file"]
        assert (await here.run("plan", "--label", "")).out == "+ create 101 (there is none)\n1 to create, 0 as wanted\n"
        moved = await here.run("plan", "--public-url", "https://other.example.com/asana")
        assert moved.out.startswith("± replace 101 (it has another public URL)")
        here.monkeypatch.setenv("ASANA_WORKSPACE", "7")
        assert (await here.run("plan")).status == 1
        here.monkeypatch.delenv("ASANA_WORKSPACE")
        here.write(webhook)
        missing = await here.run("plan")
        assert (missing.status, missing.err) == (
            2,
            "asana-webhooks: there is no public_url: pass --public-url, or write it into webhooks.toml\n",
        )


async def test_every_project_of_none(fixtures: Fixtures) -> None:
    """A token that sees no project deletes nothing, not even with --prune and --yes."""
    async with service(*fixtures, "101") as here:
        here.write('[[webhook]]\nevery = "project"\n')
        await here.ensure("101")
        here.fake.script(Fault(at="getProjects", body='{"data": []}', status=200))
        refused = await here.run("apply", "--prune", "--yes")
        assert (refused.status, len(here.fake.webhooks)) == (2, 1)
        assert "no project that this token may see" in refused.err


WRONG = {
    "label = ": "webhooks.toml: Invalid value (at end of document)",
    "": "webhooks.toml names no webhook; each stands below a line [[webhook]]",
    'lable = "x"\n[[webhook]]\nresource = ["1"]': "webhooks.toml: Object contains unknown field `lable`",
    "label = true": "webhooks.toml: Expected `str`, got `bool` - at `$.label`",
    '[webhook]\nresource = ["1"]': "Expected `array`, got `object` - at `$.webhook`",
    '[[webhook]]\nresource = ["1"]\n[[webhook]]\nresorce = "2"': "unknown field `resorce` - at `$.webhook[1]`",
    "[[webhook]]\nfilters = []": 'give either resource = ["8675309"] or every = "project" - at `$.webhook[0]`',
    "[[webhook]]\nresource = []": "give either",
    '[[webhook]]\nevery = "project"\nresource = ["1"]': "give either",
    '[[webhook]]\nevery = "task"': "Invalid enum value 'task' - at `$.webhook[0].every`",
    "[[webhook]]\nresource = [1]": "Expected `str`, got `int` - at `$.webhook[0].resource[0]`",
    '[[webhook]]\nresource = ["1"]\nfilters = "task"': "Expected `array`, got `str` - at `$.webhook[0].filters`",
    '[[webhook]]\nresource = ["1"]\nfilters = ["task:"]': "such as task:changed:due_on - at `$.webhook[0]`",
    '[[webhook]]\nresource = ["x1"]': "resource must be a gid",
    '[[webhook]]\nresource = ["1", "2", "1"]': "resource 1 is wanted twice",
    '[[webhook]]\nevery = "project"\n[[webhook]]\nevery = "project"': "resource 1 is wanted twice",
}


async def test_mistakes_in_the_file(fixtures: Fixtures) -> None:
    """Each is one sentence that names the file and the place, with status 2, before Asana is asked for webhooks."""
    async with service(*fixtures, "1") as here:
        for text, expected in WRONG.items():
            here.write(text)
            refused = await here.run("apply", "--prune", "--yes")
            assert (refused.status, refused.out, len(refused.err.splitlines())) == (2, "", 1)
            assert expected in refused.err
        absent = await here.run("plan", "other.toml")
        assert (absent.status, absent.err) == (
            2,
            "asana-webhooks: other.toml cannot be read: No such file or directory\n",
        )
        assert {one.operation for one in here.fake.requests} <= {"getProjects"}
        here.write(FILE)
        here.monkeypatch.delenv("ASANA_ACCESS_TOKEN")
        assert (await here.run("plan")).status == 4


async def test_help(fixtures: Fixtures) -> None:
    """The help of each command has an example, and says with which status it ends."""
    async with service(*fixtures) as here:
        for command in ("plan", "apply", "health", "move", "rotate"):
            shown = await here.run(command, "--help")
            assert shown.status == 0
            assert f" asana-webhooks {command} " in shown.out
            assert "Status: 0" in shown.out


async def test_on_a_terminal(fixtures: Fixtures) -> None:
    """It shows colours and asks once; no or Ctrl-C changes nothing, yes applies with a bar."""
    async with service(*fixtures, "101", "102") as here:
        here.write('[[webhook]]\nevery = "project"\n')
        for answer, status in {"\x03": 130, "n\n": 1, "y\n": 0}.items():
            assert here.fake.webhooks.keys() == set()
            async with on_terminal("apply", COLUMNS="40", **here.environment) as terminal:
                await terminal.until("2 to create, 0 as wanted\r\nApply this plan? [y/N] ")
                terminal.type(answer)
                assert await terminal.ended() == status
        assert "\x1b[32m+ create 101 (there is none)\x1b[0m\r\n" in terminal.shown
        assert "applying" in terminal.shown
        assert terminal.shown.rstrip().endswith("2 created")
        assert len(here.fake.webhooks) == 2


async def test_as_processes(fixtures: Fixtures) -> None:
    """A standard output may take ASCII only, and Ctrl-C cleans up."""
    async with service(*fixtures, "101", "103") as here:
        await here.ensure("103", "task:added")
        here.write('[[webhook]]\nresource = ["103", "101"]\n')
        held = here.fake.hold("createWebhook")
        async with started("apply", here.file, "--yes", PYTHONIOENCODING="ascii", **here.environment) as process:
            await held.reached()
            process.send_signal(signal.SIGINT)
            held.release()
            end = await ended(process)
        assert (end.status, end.err) == (130, "")
        assert end.out.startswith("\\xb1 replace 103 (it has filters, and none are wanted)\n+ create 101")
        await here.fake.settle()
        live = await here.store.list_registrations(state=RegistrationState.CONFIRMED)
        assert set(here.fake.webhooks) == {one.webhook_gid for one in live}  # Ctrl-C may come just after the 201
