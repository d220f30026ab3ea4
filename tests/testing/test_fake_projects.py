"""The fake lists its projects: by workspace, team and archived, in pages; and a webhook hears of a new one."""

from typing import Any

import pytest

from asana_webhooks.testing import FakeAsana
from tests.testing.fake_play import PROJECT, WORKSPACE, Caller, playing

ALL = f"/projects?workspace={WORKSPACE}"


async def listed(api: Caller, path: str) -> list[str]:
    """Return the names of the projects in an answer."""
    answered = await api.call("GET", path)
    assert answered.status == 200, answered.text
    return [one["name"] for one in answered.tree["data"]]


def add_projects(fake: FakeAsana) -> str:
    """Add one project of each kind, some of them in a team, and return the team's gid."""
    fake.add_resource("workspace", "42")
    fake.add_resource("project", name="elsewhere", parents=["42"])
    team = fake.add_resource("team")
    fake.add_project(name="plain")
    fake.add_project(name="archived", archived=True)
    fake.add_project(name="team", team=team)
    fake.add_project(name="team, archived", team=team, archived=True)
    fake.add_project(name="hidden", accessible=False)
    fake.change(fake.add_project(name="deleted"), action="deleted")
    fake.add_task(parent=PROJECT)
    return team


async def test_filters() -> None:
    """A list has what is in all scopes and archived as asked; nothing deleted, hidden, or of another type."""
    async with playing(projects=[]) as (fake, api, _):
        fake.add_project(PROJECT, name="first")
        team = add_projects(fake)
        for query, names in (
            (f"workspace={WORKSPACE}", ["first", "plain", "archived", "team", "team, archived"]),
            (f"workspace={WORKSPACE}&archived=false", ["first", "plain", "team"]),
            (f"workspace={WORKSPACE}&archived=true", ["archived", "team, archived"]),
            (f"workspace={WORKSPACE}&team={team}", ["team", "team, archived"]),
            (f"team={team}&archived=false", ["team"]),
            ("workspace=42", ["elsewhere"]),
            (f"workspace=42&team={team}", []),
        ):
            assert await listed(api, f"/projects?{query}") == names, query


async def test_records() -> None:
    """A project has a gid, a type and a name; with opt_fields what they name, and its own record says the same."""
    async with playing(projects=[]) as (fake, api, _):
        fake.add_project(PROJECT, name="Bugs", archived=True)
        one: dict[str, Any] = {"gid": PROJECT, "resource_type": "project", "name": "Bugs"}
        assert (await api.call("GET", ALL)).tree == {"data": [one]}
        assert (await api.call("GET", f"{ALL}&opt_fields=archived")).tree == {
            "data": [{"gid": PROJECT, "archived": True}]
        }
        assert (await api.call("GET", f"/projects/{PROJECT}")).tree == {"data": one | {"archived": True}}


async def test_pages() -> None:
    """A limit makes pages, whose links repeat the query; an offset is for one list, and for fifteen minutes."""
    async with playing() as (fake, api, _):
        names = [f"project {PROJECT}", *"abcd"]
        for name in names[1:]:
            fake.add_project(name=name)
        assert await listed(api, ALL) == names
        path, seen, links = f"{ALL}&archived=false&limit=2", list[str](), list[str]()
        while path:
            answered = await api.call("GET", path)
            seen += [one["name"] for one in answered.tree["data"]]
            following = answered.tree["next_page"]
            path = following["path"] if following else ""
            links.append(path)
        assert seen == names
        offset = links[0].rpartition("=")[2]
        assert links[0] == f"{ALL}&archived=false&limit=2&offset={offset}"
        assert [bool(link) for link in links] == [True, True, False]
        for other in (f"{ALL}&offset={offset}", f"/webhooks?workspace={WORKSPACE}&offset={offset}"):
            assert (await api.call("GET", other)).message == "offset: Your pagination token is invalid."
        await fake.advance(900)
        answered = await api.call("GET", links[0])
        assert (answered.status, answered.message) == (400, "offset: Your pagination token has expired.")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        (f"workspace={PROJECT}", 400, f"workspace: Unknown object: {PROJECT}"),
        ("workspace=77", 400, "workspace: Unknown object: 77"),
        ("workspace=x", 400, "workspace: Not a recognized ID: x"),
        (f"workspace={WORKSPACE}&team={WORKSPACE}", 400, f"team: Unknown object: {WORKSPACE}"),
        (f"workspace={WORKSPACE}&team=5", 403, "You do not have access to this team."),
        (f"workspace={WORKSPACE}&archived=no", 400, "archived: Not a valid boolean: no"),
        (f"workspace={WORKSPACE}&limit=101", 400, "limit: Must be between 1 and 100"),
    ],
)
async def test_refusals(query: str, status: int, message: str) -> None:
    """What the list cannot be filtered by is refused in Asana's words."""
    async with playing() as (fake, api, _):
        fake.add_resource("team", "5", accessible=False)
        answered = await api.call("GET", f"/projects?{query}")
        assert (answered.status, answered.message) == (status, message)


async def test_long_lists_need_a_limit() -> None:
    """A thousand projects come without a limit, one more does not."""
    async with playing(projects=[str(gid) for gid in range(1, 1001)]) as (fake, api, _):
        assert len(await listed(api, ALL)) == 1000
        fake.add_project()
        assert (await api.call("GET", ALL)).message.startswith("The result is too large.")
        assert len(await listed(api, f"{ALL}&limit=100")) == 100


async def test_a_webhook_on_the_workspace_hears_of_a_new_project() -> None:
    """From Python and through the control routes, of a project in a team too; and the project is in the list."""
    async with playing(heartbeat=None) as (fake, api, target):
        await api.create_gid(target.url, WORKSPACE, filters=[{"resource_type": "project", "action": "added"}])
        team = fake.add_resource("team")
        gids = [fake.add_project(name="a"), fake.add_project(name="b", team=team)]
        for gid in gids:
            fake.change(gid, action="added")
            fake.change(gid, field="name")  # the filter leaves this out
        new = {"resource_type": "project", "name": "c", "archived": True}
        gids.append((await api.call("POST", "//_fake/resources", json=new)).tree["gid"])
        await api.call("POST", "//_fake/changes", json={"resource": gids[-1], "action": "added"})
        await fake.settle()
        events = [event for one in target.deliveries for event in one.events]
        assert {(event["action"], event["resource"]["gid"]) for event in events} == {("added", gid) for gid in gids}
        assert {event["parent"]["gid"] for event in events} == {WORKSPACE, team}
        assert len(events) == 3
        assert await listed(api, f"{ALL}&archived=true") == ["c"]
        assert fake.projects == (PROJECT, *gids)
