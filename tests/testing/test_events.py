"""Events and deliveries made for the tests of one handler."""

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from asana_webhooks import Change, ConfigurationError, Delivery, ResourceRef, UnreadableEvent, wire
from asana_webhooks.testing import make_delivery, make_event


async def test_a_handler() -> None:
    """A handler is tested with one line for the delivery."""
    completed: list[str] = []

    async def handle(delivery: Delivery) -> None:
        completed.extend(event.resource.gid for event in delivery.events if event.field == "completed")

    await handle(make_delivery(make_event(field="completed", gid="21"), make_event("story", "added", gid="31")))
    assert completed == ["21"]


def test_events() -> None:
    """By default an event is a change of a task; values are references or Asana's JSON."""
    event = make_event()
    assert (event.action, event.change) == ("changed", None)
    assert event.resource == ResourceRef(gid="21", resource_type="task", resource_subtype="default_task")
    assert event.user == ResourceRef(gid="11", resource_type="user")
    assert make_event().fingerprint == event.fingerprint

    ref, parent = ResourceRef(gid="12", resource_type="user"), ResourceRef(gid="22", resource_type="task")
    comment = make_event("story", "added", parent=parent, user=None)
    assert (comment.resource.resource_subtype, comment.parent, comment.user) == ("comment_added", parent, None)
    moment = datetime(2026, 5, 6, tzinfo=UTC)
    assert make_event("goal", "deleted", resource_subtype="x", created_at=moment).created_at == moment

    assert make_event(resource_subtype="milestone").resource.resource_subtype == "milestone"
    naive = make_event(created_at=moment.replace(tzinfo=None))
    assert naive == make_event(created_at=moment)
    assert not make_delivery(event, naive).stale

    kinds: Any = [("new_value", "changed"), ("added_value", "added"), ("removed_value", "removed")]
    for name, action in kinds:
        for written, value in [(ref, ref), ({"gid": "12", "resource_type": "user"}, ref), ("High", "High")]:
            given: dict[str, Any] = {name: written}
            expected: dict[str, Any] = {name: value}
            assert make_event(field="x", **given).change == Change(field="x", action=action, **expected)
    assert make_event(field="x", change_action="added").change == Change(field="x", action="added")


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"new_value": "High"}, "new_value needs a field"),
    ({"change_action": "added"}, "change_action needs a field"),
    ({"action": "added", "field": "name"}, "field needs action='changed', not 'added'"),
    ({"gid": 21}, r"Asana sends no such event: Expected `str`, got `int` @ \$.events\[0\].resource.gid"),
    ({"field": "name", "new_value": object()}, "this event cannot be encoded as JSON"),
    ({"gid": "\ud800"}, "this event cannot be encoded as JSON"),
    ({"field": "name", "new_value": ENDLESS}, "this event cannot be encoded as JSON"),
]


def test_events_that_cannot_be() -> None:
    """An event that Asana could not send is refused, and the error says why."""
    for arguments, message in IMPOSSIBLE:
        with pytest.raises(ConfigurationError, match=message):
            make_event(**arguments)


def test_deliveries() -> None:
    """A delivery has its events and a body with the same events in their places; each attribute can be given."""
    events = make_event(field="name"), make_event(created_at=datetime(2026, 5, 6, tzinfo=UTC))
    odd = [UnreadableEvent(raw=number, index=number, problem="odd") for number in (0, 2, 3)]
    delivery = make_delivery(*events, unreadable=tuple(odd))

    parsed = wire.decode_delivery(delivery.body)
    assert (delivery.events, delivery.unreadable) == (parsed.events, tuple(odd)) == (events, tuple(odd))
    assert [(one.index, one.raw) for one in parsed.unreadable] == [(0, 0), (2, 2), (3, 3)]
    assert delivery.received_at - events[1].created_at == timedelta(seconds=1)
    assert (delivery.attempt, delivery.stale) == (1, False)
    assert make_delivery().body == b'{"events":[]}'
    assert {one.name for one in attrs.fields(Delivery)} == set(inspect.signature(make_delivery).parameters)
    given: dict[str, Any] = {"id": 7, "registration": "r", "webhook_gid": None, "resource": "1", "attempt": 3}
    given |= {"label": "tenant-a", "done": (1,), "received_at": datetime(2026, 5, 8, tzinfo=UTC), "body": b"x"}
    made = make_delivery(*events, **given)
    assert {name: getattr(made, name) for name in given} == given
    assert made.stale
    for wrong in ([odd[0], odd[0]], [odd[1]]):
        with pytest.raises(ConfigurationError, match="an index of its own"):
            make_delivery(make_event(), unreadable=tuple(wrong))
