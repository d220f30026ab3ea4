"""get_projects: which projects come, over pages, and what ends the walk. The pages themselves are those of webhooks.

get_workspaces is the same walk over another list.
"""

import asyncio
from typing import Any

import pytest

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    ForbiddenError,
    NotAuthorizedError,
    NotFoundError,
    PaginationError,
    ResourceRef,
    UnexpectedResponseError,
    get_projects,
    get_workspaces,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.testing import FakeAsana, Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.pages import offset_server, page
from tests.helpers.servers import answer, scripted_server

TOKEN = "2/1331/7654:0123456789abcdef"


def session(url: str, token: str = TOKEN) -> AsanaSession:
    return AsanaSession(token, base_url=url, retry=RetryPolicy(attempts=3, first_wait=0.0))


async def names_of(asana: AsanaSession, **arguments: Any) -> list[str | None]:
    return [project.name async for project in get_projects(asana, **arguments)]


async def test_which_projects_come() -> None:
    """Those of the workspace, or of one team, archived or not as asked; by default those not archived."""
    async with FakeAsana(projects=[]) as fake, session(fake.url, fake.token) as asana:
        team = fake.add_resource("team")
        gid = fake.add_project(name="plain")
        fake.add_project(name="old", archived=True)
        fake.add_project(name="team", team=team)
        everything: dict[str, Any] = {"workspace": fake.workspace}
        assert await anext(get_projects(asana, workspace=fake.workspace)) == ResourceRef(
            gid=gid, resource_type="project", name="plain"
        )
        for arguments, names in (
            (everything, ["plain", "team"]),
            (everything | {"archived": True}, ["old"]),
            (everything | {"archived": None}, ["plain", "old", "team"]),
            (everything | {"team": team}, ["team"]),
        ):
            assert await names_of(asana, **arguments) == names
        assert {request.query["limit"] for request in fake.requests} == {"100"}


async def test_pages() -> None:
    """Hundreds come in order, a hundred for each request; a page that fails once is asked for again, and only it."""
    projects = tuple(str(gid) for gid in range(1, 251))
    async with FakeAsana(projects=projects) as fake, session(fake.url, fake.token) as asana:
        fake.script(Fault(at="getProjects", after=1, status=503))
        assert tuple([one.gid async for one in get_projects(asana, workspace=fake.workspace)]) == projects
        assert [request.status for request in fake.requests] == [200, 503, 200, 200]


async def test_workspaces() -> None:
    """All that the user may see come, each with its name, over pages; an app needs the scope for it."""
    async with FakeAsana(workspace="1") as fake, session(fake.url, fake.token) as asana:
        fake.add_resource("workspace", "2", name="Hidden", accessible=False)
        assert [one async for one in get_workspaces(asana)] == [
            ResourceRef(gid="1", resource_type="workspace", name="Workspace")
        ]
        for gid in range(3, 103):
            fake.add_resource("workspace", str(gid))
        assert [one.gid async for one in get_workspaces(asana)] == ["1", *map(str, range(3, 103))]
        assert [(one.operation, one.status) for one in fake.requests] == [("getWorkspaces", 200)] * 3
        tokens = [fake.register_app(one, scopes=[one]).access_token for one in ("workspaces:read", "projects:read")]
        async with session(fake.url, tokens[0]) as allowed, session(fake.url, tokens[1]) as refused:
            assert (await anext(get_workspaces(allowed))).gid == "1"
            with pytest.raises(NotAuthorizedError, match=r"^getWorkspaces"):
                await anext(get_workspaces(refused))


async def test_empty_and_repeated_pages() -> None:
    """An empty page does not end the walk, no project comes twice, and a workspace may have none."""
    async with scripted_server(page(then="a"), page("1", "2", then="b"), page("2", "3")) as server:
        async with session(server.url) as asana:
            assert [one.gid async for one in get_projects(asana, workspace="1")] == ["1", "2", "3"]
    async with FakeAsana(projects=[]) as fake, session(fake.url, fake.token) as asana:
        assert await names_of(asana, workspace=fake.workspace) == []


async def test_a_walk_that_would_never_end() -> None:
    """The same offset twice is an error after what came, and the error names the operation."""
    async with scripted_server(page("1", then="a"), page("2", then="a")) as server, session(server.url) as asana:
        came = []
        with pytest.raises(PaginationError, match=r"^getProjects: .*items so far: 2") as caught:
            async for project in get_projects(asana, workspace="1"):
                came.append(project.gid)  # noqa: PERF401 - what came before the error counts
    assert (came, caught.value.reason, len(server.requests)) == (["1", "2"], "repeated", 2)


async def test_an_offset_that_expired() -> None:
    """A page worked on for more than fifteen minutes ends the walk at its end."""
    async with FakeAsana(projects=[str(gid) for gid in range(1, 102)]) as fake:
        async with session(fake.url, fake.token) as asana:
            came = 0
            with pytest.raises(PaginationError, match=r"^getProjects: the offset of the next page has expired"):
                async for _ in get_projects(asana, workspace=fake.workspace):
                    came += 1
                    await fake.advance(10)
    assert came == 100


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(at="getProjects", status=403, message="You do not have access to this team."), ForbiddenError),
        (Fault(at="getProjects", status=404), NotFoundError),
        (Fault(at="getProjects", status=200, body='{"data":[{"gid":7}]}', times=None), UnexpectedResponseError),
        (Fault(at="getProjects", status=200, body='{"next_page":null}', times=None), UnexpectedResponseError),
    ],
)
async def test_refusals(fault: Fault, kind: type[Exception]) -> None:
    """What Asana refuses, and what is no list of projects, are the errors of every call."""
    async with FakeAsana() as fake, session(fake.url, fake.token) as asana:
        fake.script(fault)
        with pytest.raises(kind, match=r"^getProjects"):
            await names_of(asana, workspace=fake.workspace)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workspace": "x"}, "workspace must be a gid"),
        ({"workspace": None}, "workspace must be a gid"),
        ({"team": 5}, "team must be a gid"),
        ({"archived": "false"}, "archived must be True, False, or None for both, not 'false'"),
        ({"archived": 0}, "archived must be True, False, or None"),
    ],
)
async def test_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    """They fail at the call, not at the first iteration far away."""
    async with session("http://127.0.0.1:1") as asana:
        with pytest.raises(ConfigurationError, match=message):
            get_projects(asana, **({"workspace": "1"} | wrong))


async def test_cancelled_anywhere() -> None:
    """A walk that is cancelled leaves no task behind, and the next one has every project."""
    answers = {None: page("1", "2", then="a"), "a": page("3", then="b"), "b": page("4")}
    async with offset_server(answers.__getitem__) as url, session(url) as asana:
        seen: list[str] = []

        async def consume() -> None:
            seen.clear()
            async for project in get_projects(asana, workspace="1"):
                seen.append(project.gid)
                await asyncio.sleep(0)

        async def check() -> None:
            assert seen == ["1", "2", "3", "4"][: len(seen)]

        assert await cancel_at_every_step(consume, check) > 10
        assert seen == ["1", "2", "3", "4"]


async def test_a_cancelled_step_can_be_taken_again() -> None:
    """Nothing is lost, and nothing comes twice, if a step was cancelled while its page was under way."""
    async with scripted_server(page("1", then="a"), "hang", answer(200, {"data": [{"gid": "2"}]})) as server:
        async with session(server.url) as asana:
            walk = get_projects(asana, workspace="1")
            assert (await anext(walk)).gid == "1"
            server.got_request.clear()
            step = asyncio.ensure_future(anext(walk))
            await server.got_request.wait()
            step.cancel()
            await asyncio.wait({step})
            assert step.cancelled()
            assert [one.gid async for one in walk] == ["2"]
    assert [seen.query.get("offset") for seen in server.requests] == [None, "a", "a"]
