"""What a change is, whom it reaches, and which filters it passes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import FakeAsana
from tests.testing.fake_play import EVENT_SCHEMA, PROJECT, fixed_clock, playing

Hearing = Callable[..., Awaitable[set[str]]]


def _world(fake: FakeAsana | None = None) -> FakeAsana:
    fake = fake or FakeAsana(workspace="1", projects=(), clock=fixed_clock())
    for resource_type, gid, *parents in (
        ("team", "2", "1"),
        ("portfolio", "3", "1"),
        ("project", "4", "2", "3"),
        ("section", "41", "4"),
        ("task", "21", "4"),
        ("task", "22", "21"),
        ("story", "31", "22"),
        ("project", "5", "1"),
        ("team_membership", "61", "2"),
    ):
        fake.add_resource(resource_type, gid, parents=parents)
    return fake


# What webhooks on workspaces and teams may be told.
ALLOWED_HIGH = [
    *({"resource_type": "project", "action": action} for action in ("changed", "added", "removed")),
    {"resource_type": "team_membership", "action": "added"},
]


@asynccontextmanager
async def _listening() -> AsyncIterator[Hearing]:
    """Put a webhook on everything, and yield a function that lets something change and tells who heard of it."""
    async with playing(workspace="1", projects=(), heartbeat=None) as (fake, api, target):
        _world(fake)
        for gid in ("1", "2", "3", "4", "41", "21", "22", "31", "5", "61"):
            await api.create_gid(f"{target.root}/{gid}", gid, filters=ALLOWED_HIGH if gid in "12" else [{}])

        async def hearing(**members: Any) -> set[str]:
            before = len(target.deliveries)
            fake.change(**members)
            await fake.settle()
            return {got.path[1:] for got in target.deliveries[before:]}

        yield hearing


EVENTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"resource": "21", "field": "completed"},
        {
            "user": {"gid": "11", "resource_type": "user"},
            "created_at": "2026-01-02T03:04:05.678Z",
            "action": "changed",
            "resource": {"gid": "21", "resource_type": "task", "resource_subtype": "default_task"},
            "parent": None,
            "change": {"field": "completed", "action": "changed"},
        },
    ),
    (
        {"resource": "21", "field": "assignee", "new_value": {"gid": "12", "resource_type": "user"}},
        {"change": {"field": "assignee", "action": "changed", "new_value": {"gid": "12", "resource_type": "user"}}},
    ),
    (
        {"resource": "21", "field": "followers", "added_value": {"gid": "12", "resource_type": "user"}},
        {
            "change": {
                "field": "followers",
                "action": "added",
                "added_value": {"gid": "12", "resource_type": "user"},
            }
        },
    ),
    (
        {"resource": "21", "field": "projects", "removed_value": "4", "change_action": "removed"},
        {
            "change": {
                "field": "projects",
                "action": "removed",
                "removed_value": {"gid": "4", "resource_type": "project"},
            }
        },
    ),
    (
        {"resource": "31", "action": "added"},
        {
            "resource": {"gid": "31", "resource_type": "story", "resource_subtype": "comment_added"},
            "parent": {"gid": "22", "resource_type": "task", "resource_subtype": "default_task"},
        },
    ),
    (
        {"resource": "21", "action": "added", "parent": "41"},
        {"action": "added", "parent": {"gid": "41", "resource_type": "section"}},
    ),
    ({"resource": "21", "action": "deleted", "user": None}, {"user": None, "action": "deleted", "parent": None}),
    ({"resource": "21", "action": "undeleted"}, {"action": "undeleted", "parent": None}),
    ({"resource": "1", "action": "added"}, {"parent": None}),
]


def test_events() -> None:
    """Events have the members and shapes of real ones."""
    for members, event in EVENTS:
        made = _world().change(**members)
        jsonschema.validate(made, EVENT_SCHEMA)
        assert wire.decode_delivery(wire.encode({"events": [made]})).events
        assert {name: made[name] for name in event} == event
        assert ("change" in made) is ("field" in members)


CHANGES_THAT_CANNOT_BE: list[tuple[dict[str, Any], str]] = [
    ({"resource": "99"}, "the fake has no resource '99'"),
    ({"resource": "99", "parent": "98"}, "the fake has no resource '98'"),
    ({"resource": "21", "action": "eaten"}, "action must be one of"),
    ({"resource": "21", "new_value": "4"}, "new_value needs a field"),
    ({"resource": "21", "change_action": "added"}, "change_action needs a field"),
    ({"resource": "21", "action": "added", "field": "name"}, "field needs action='changed', not 'added'"),
    (
        {"resource": "21", "field": "x", "new_value": "4", "added_value": "4"},
        "a change can have one value, not new_value and added_value",
    ),
    (
        {"resource": "21", "field": "x", "new_value": "4", "change_action": "added"},
        "change_action must be changed, not 'added'",
    ),
    (
        {"resource": "21", "field": "x", "change_action": "eaten"},
        "change_action must be changed or added or removed, not 'eaten'",
    ),
    ({"resource": "21", "field": "x", "new_value": "99"}, "the fake has no resource '99'"),
    ({"resource": "21", "field": "x", "new_value": {"gid": "1"}}, "a value must be the gid"),
]


def test_changes_that_cannot_be() -> None:
    """A change that cannot happen is refused, and nothing happens: what was to be created can still be added."""
    for members, message in CHANGES_THAT_CANNOT_BE:
        fake = _world()
        with pytest.raises(ConfigurationError, match=message):
            fake.change(**members)
        assert fake.add_resource("task", "99")


def test_unknown_resource_is_created() -> None:
    """A gid nobody knows becomes a task below its parent, or what it is said to be."""
    fake = _world()
    assert fake.change("77", parent="4", field="name")["resource"]["resource_type"] == "task"
    made = fake.change("78", parent="21", action="added", resource_type="story", resource_subtype="liked")
    assert made["resource"] == {"gid": "78", "resource_type": "story", "resource_subtype": "liked"}
    assert made["parent"]["gid"] == "21"


async def test_bubbling() -> None:
    """Changes rise from children to parents; tasks and stories do not reach teams and workspaces, memberships do."""
    async with _listening() as hearing:
        for resource, heard in (
            ("31", {"31", "22", "21", "4", "3"}),
            ("22", {"22", "21", "4", "3"}),
            ("21", {"21", "4", "3"}),
            ("41", {"41", "4", "3"}),
            ("4", {"4", "3", "2", "1"}),
            ("5", {"5", "1"}),
            ("2", set()),
            ("1", set()),
        ):
            assert await hearing(resource=resource) == heard, resource
        assert await hearing(resource="61", action="added") == {"61", "2", "1"}
        assert await hearing(resource="77", parent="4") == {"4", "3"}


async def test_adding_moves_and_removing_takes_out() -> None:
    """Adding puts a task under a parent, whose webhooks hear of it; removing tells the old one for the last time."""
    async with _listening() as hearing:
        assert await hearing(resource="21", action="added", parent="5") == {"21", "4", "3", "5"}
        assert await hearing(resource="21") == {"21", "4", "3", "5"}
        assert await hearing(resource="21", action="removed", parent="4") == {"21", "4", "3", "5"}
        assert await hearing(resource="21") == {"21", "5"}
        assert await hearing(resource="21", action="removed", parent="4") == {"21", "4", "3", "5"}, "it never was there"


async def test_loops_end() -> None:
    """Resources that are in each other do not make the fake run in circles."""
    async with _listening() as hearing:
        await hearing(resource="21", action="added", parent="22")
        assert await hearing(resource="22") == {"22", "21", "4", "3"}


def test_types_of_resources() -> None:
    """A project added as any other resource is one of the projects; what cannot be a type is refused."""
    fake = FakeAsana()
    added = fake.add_resource("project")
    assert fake.projects == (PROJECT, added)
    for wrong in ("", "My task", "tasks/1"):
        with pytest.raises(ConfigurationError, match="resource_type must be a type such as 'task'"):
            fake.add_resource(wrong)


async def test_another_workspace() -> None:
    """It is in no workspace: what happens in it is heard there alone, and its webhooks are in its own list."""
    async with playing(heartbeat=None) as (fake, api, target):
        other = fake.add_resource("workspace")
        project = fake.add_resource("project", parents=[other])
        created = [{"resource_type": "project", "action": "changed"}]
        gids = [await api.create_gid(target.url, workspace, filters=created) for workspace in (fake.workspace, other)]
        fake.change(project, field="name")
        await fake.settle()
        assert [one.webhook_gid for one in fake.deliveries] == gids[1:]
        for workspace, gid in zip((fake.workspace, other), gids, strict=True):
            listed = (await api.call("GET", f"/webhooks?workspace={workspace}")).tree["data"]
            assert [one["gid"] for one in listed] == [gid]


def test_removed_without_parent() -> None:
    """What is in nothing is removed from nothing."""
    assert _world().change("1", action="removed")["parent"] is None


def test_adding_resources() -> None:
    """Gids are fresh digits unless given, and given ones must be new and digits, below parents that exist."""
    fake = _world()
    gids = [fake.add_task(parent="4") for _ in range(3)]
    assert all(gid.isdecimal() for gid in gids)
    assert gids == sorted(set(gids), key=int)
    taken = str(int(gids[-1]) + 1)
    fake.add_task(taken, parent="4")
    assert fake.add_task(parent="4") != taken
    for arguments, message in (
        ({"gid": "4"}, "the fake already has a resource 4: project"),
        ({"gid": "x4"}, "a gid must be a string of digits"),
        ({"gid": "٤"}, "a gid must be a string of digits"),
        ({"parent": "99"}, "the fake has no resource '99'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            fake.add_task(**{"parent": "4"} | arguments)


async def test_filters() -> None:
    """Inside one filter every given member must fit; of several filters any lets an event pass."""
    changed = {"action": "changed"}
    filters: list[tuple[bool, list[dict[str, Any]]]] = [
        (True, []),
        (True, [{}]),
        (True, [{"resource_type": "task"}]),
        (False, [{"resource_type": "story"}]),
        (True, [{"resource_subtype": "milestone"}]),
        (False, [{"resource_subtype": "default_task"}]),
        (True, [changed]),
        (False, [{"action": "added"}]),
        (True, [changed | {"fields": ["due_at", "due_on"]}]),
        (False, [changed | {"fields": ["name"]}]),
        (True, [changed | {"fields": []}]),
        (False, [{"resource_type": "task", "action": "deleted"}]),
        (True, [{"action": "added"}, {"resource_type": "task"}]),
        (False, [{"action": "added"}, {"resource_type": "story"}]),
    ]
    async with playing(heartbeat=None) as (fake, api, target):
        task = fake.add_resource("task", parents=[PROJECT], resource_subtype="milestone")
        for number, (_, given) in enumerate(filters):
            await api.create_gid(f"{target.root}/{number}", filters=given)
        fake.change(task, field="due_on")
        await fake.settle()
        assert {int(got.path[1:]) for got in target.deliveries} == {
            number for number, (passes, _) in enumerate(filters) if passes
        }


async def test_fields_need_a_change() -> None:
    """A filter with fields lets nothing pass that names no field."""
    async with playing(heartbeat=None) as (fake, api, target):
        await api.create_gid(target.url, filters=[{"action": "changed", "fields": ["due_on"]}])
        fake.change(PROJECT)
        await fake.settle()
        assert target.deliveries == []
