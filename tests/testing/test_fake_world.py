"""What a change is, whom it reaches, and which filters it passes."""

import random
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import WebhookFilter
from asana_webhooks.testing.changes import ChangeRequest, record_change
from asana_webhooks.testing.world import ACTIONS, World, passes, reaches
from tests.testing.fake_play import EVENT_SCHEMA

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


def _world() -> World:
    world = World()
    world.add("workspace", "1")
    world.add("team", "2", parents=["1"])
    world.add("portfolio", "3", parents=["1"])
    world.add("project", "4", parents=["2", "3"])
    world.add("section", "41", parents=["4"])
    world.add("task", "21", parents=["4"])
    world.add("task", "22", parents=["21"])
    world.add("story", "31", parents=["22"])
    world.add("project", "5", parents=["1"])
    return world


def _change(world: World | None = None, **members: Any) -> dict[str, Any]:
    event, _, _ = record_change(world or _world(), ChangeRequest(**members), now=NOW, rng=random.Random(1))
    jsonschema.validate(event, EVENT_SCHEMA)
    assert wire.decode_events(wire.encode({"events": [event]}))
    return event


def _hearing(world: World, **members: Any) -> set[str]:
    _, changed, lineage = record_change(world, ChangeRequest(**members), now=NOW, rng=random.Random(1))
    return {one.gid for one in world.resources.values() if reaches(one, lineage, changed)}


@pytest.mark.parametrize(
    ("members", "event"),
    [
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
    ],
)
def test_events(members: dict[str, Any], event: dict[str, Any]) -> None:
    """Events have the members and shapes of real ones."""
    made = _change(**members)
    assert {name: made[name] for name in event} == event
    assert ("change" in made) is ("field" in members)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"resource": "99"}, "there is no resource '99'"),
        ({"resource": "99", "parent": "98"}, "there is no resource '98'"),
        ({"resource": "21", "action": "eaten"}, "action must be one of"),
        ({"resource": "21", "new_value": "4"}, "new_value needs the field"),
        ({"resource": "21", "change_action": "added"}, "change_action needs the field"),
        ({"resource": "21", "action": "added", "field": "name"}, "field goes with action='changed' only"),
        (
            {"resource": "21", "field": "x", "new_value": "4", "added_value": "4"},
            "one value, not new_value and added_value",
        ),
        (
            {"resource": "21", "field": "x", "new_value": "4", "change_action": "added"},
            "change_action must fit the value",
        ),
        ({"resource": "21", "field": "x", "change_action": "eaten"}, "change_action must fit"),
        ({"resource": "21", "field": "x", "new_value": "99"}, "there is no resource '99'"),
        ({"resource": "21", "field": "x", "new_value": {"gid": "1"}}, "a value is the gid"),
    ],
)
def test_changes_that_cannot_be(members: dict[str, Any], message: str) -> None:
    """A change that cannot happen is refused, and nothing happens."""
    world = _world()
    before = dict(world.resources)
    with pytest.raises(ConfigurationError, match=message):
        _change(world, **members)
    assert world.resources == before


def test_unknown_resource_is_created() -> None:
    """A gid nobody knows becomes a task below its parent, or what it is said to be."""
    world = _world()
    assert _change(world, resource="77", parent="4", field="name")["resource"]["resource_type"] == "task"
    made = _change(world, resource="78", parent="21", action="added", resource_type="story", resource_subtype="liked")
    assert made["resource"] == {"gid": "78", "resource_type": "story", "resource_subtype": "liked"}
    assert made["parent"]["gid"] == "21"
    assert _hearing(world, resource="77", parent="4") == {"77", "4", "3"}


@pytest.mark.parametrize(
    ("resource", "hearing"),
    [
        ("31", {"31", "22", "21", "4", "3"}),
        ("22", {"22", "21", "4", "3"}),
        ("21", {"21", "4", "3"}),
        ("41", {"41", "4", "3"}),
        ("4", {"4", "3", "2", "1"}),
        ("5", {"5", "1"}),
        ("2", {"2"}),
        ("1", {"1"}),
    ],
)
def test_bubbling(resource: str, hearing: set[str]) -> None:
    """Changes rise from children to parents; tasks and stories do not reach teams and workspaces."""
    assert _hearing(_world(), resource=resource) == hearing


def test_memberships_reach_high() -> None:
    """Memberships reach the team and the workspace."""
    world = _world()
    world.add("team_membership", "61", parents=["2"])
    assert _hearing(world, resource="61", action="added") == {"61", "2", "1"}


def test_adding_moves_and_removing_takes_out() -> None:
    """Adding puts a task under a parent, whose webhooks hear of it; removing tells the old one for the last time."""
    world = _world()
    assert _hearing(world, resource="21", action="added", parent="5") == {"21", "4", "3", "5"}
    assert _hearing(world, resource="21") == {"21", "4", "3", "5"}
    assert _hearing(world, resource="21", action="removed", parent="4") == {"21", "4", "3", "5"}
    assert _hearing(world, resource="21") == {"21", "5"}
    assert "1" not in _hearing(world, resource="21", action="removed", parent="4")


def test_removed_from_where_it_never_was() -> None:
    """A removal from a parent nobody knew of reaches that parent all the same."""
    assert "5" in _hearing(_world(), resource="21", action="removed", parent="5")


def test_removed_without_parent() -> None:
    """What is in nothing is removed from nothing."""
    assert _change(resource="1", action="removed")["parent"] is None


def test_loops_end() -> None:
    """Resources that are in each other do not make the fake run in circles."""
    world = _world()
    world.put_under("21", "22")
    assert _hearing(world, resource="22") == {"22", "21", "4", "3"}


def test_adding_resources() -> None:
    """Gids are fresh digits unless given, and given ones must be new and digits, below parents that exist."""
    world = _world()
    gids = [world.add("task", parents=["4"]).gid for _ in range(3)]
    assert len(set(gids)) == 3
    assert all(gid.isdecimal() for gid in gids)
    assert gids == sorted(gids, key=int)
    taken = str(int(gids[-1]) + 1)
    world.add("task", taken)
    assert world.new_gid() != taken
    for arguments, message in (
        ({"gid": "4"}, "there is a resource 4 already: project"),
        ({"gid": "x4"}, "a gid is a text of digits"),
        ({"gid": "٤"}, "a gid is a text of digits"),
        ({"parents": ["99"]}, "there is no resource '99'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            world.add("task", **arguments)


EVENT = {
    "action": "changed",
    "resource": {"gid": "21", "resource_type": "task", "resource_subtype": "milestone"},
    "change": {"field": "due_on", "action": "changed"},
}


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (WebhookFilter(), True),
        (WebhookFilter(resource_type="task"), True),
        (WebhookFilter(resource_type="story"), False),
        (WebhookFilter(resource_subtype="milestone"), True),
        (WebhookFilter(resource_subtype="default_task"), False),
        (WebhookFilter(action="changed"), True),
        (WebhookFilter(action="added"), False),
        (WebhookFilter(action="changed", fields=("due_at", "due_on")), True),
        (WebhookFilter(action="changed", fields=("name",)), False),
        (WebhookFilter(action="changed", fields=()), True),
        (WebhookFilter(resource_type="task", action="deleted"), False),
    ],
)
def test_filters(one: WebhookFilter, expected: bool) -> None:
    """Inside one filter every given member must fit."""
    assert passes([one], EVENT) is expected


def test_fields_need_a_change() -> None:
    """A filter with fields lets nothing pass that names no field."""
    assert not passes([WebhookFilter(fields=("due_on",))], {**EVENT, "change": {}})
    assert not passes([WebhookFilter(fields=("due_on",))], {"action": "changed", "resource": EVENT["resource"]})


filters = st.builds(
    WebhookFilter,
    resource_type=st.sampled_from([None, "task", "story"]),
    resource_subtype=st.sampled_from([None, "default_task", "milestone"]),
    action=st.sampled_from([None, *ACTIONS]),
    fields=st.sampled_from([None, (), ("due_on",), ("name", "notes")]),
)
events = st.fixed_dictionaries(
    {
        "action": st.sampled_from(ACTIONS),
        "resource": st.fixed_dictionaries(
            {"gid": st.just("1"), "resource_type": st.sampled_from(["task", "story"])},
            optional={"resource_subtype": st.sampled_from(["default_task", "milestone"])},
        ),
    },
    optional={"change": st.fixed_dictionaries({"field": st.sampled_from(["due_on", "name"])})},
)


@given(st.lists(filters, max_size=4), events)
def test_filters_are_alternatives(several: list[WebhookFilter], event: dict[str, Any]) -> None:
    """Any filter lets an event pass; no filters let everything pass."""
    assert passes(several, event) is (not several or any(passes([one], event) for one in several))


@given(filters, events)
def test_members_are_conditions(one: WebhookFilter, event: dict[str, Any]) -> None:
    """A filter is as strict as all its members one by one."""
    single = [
        WebhookFilter(resource_type=one.resource_type),
        WebhookFilter(resource_subtype=one.resource_subtype),
        WebhookFilter(action=one.action),
        WebhookFilter(fields=one.fields),
    ]
    assert passes([one], event) is all(passes([part], event) for part in single)
