"""What travels: secrets that do not show, events that can be told apart, values that do not change."""

import copy
import inspect
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import models
from asana_webhooks.models import (
    Change,
    CreatedWebhook,
    Delivery,
    Event,
    ParsedDelivery,
    ResourceRef,
    Secret,
    UnreadableEvent,
    Webhook,
    WebhookFilter,
)
from asana_webhooks.wire import decode_delivery, encode

TEXT = "0123456789abcdef-canary"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class TestSecret:
    def test_reveal(self) -> None:
        """Only reveal() gives the text."""
        assert Secret(TEXT).reveal() == TEXT

    def test_is_never_shown(self) -> None:
        """Three stars stand for it, and a width in an f-string is refused. (More of that in test_secrecy.)"""
        assert f"{Secret(TEXT)} {[Secret(TEXT)]}" == "Secret('***') [Secret('***')]"
        with pytest.raises(TypeError) as caught:
            f"{Secret(TEXT):>40}"
        assert TEXT not in str(caught.value)

    @given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
    def test_equality(self, one: str, two: str) -> None:
        """Secrets are equal exactly when their texts are, non-ASCII included, and then hash the same."""
        assert (Secret(one) == Secret(two)) is (one == two)
        assert (Secret(one) != Secret(two)) is (one != two)
        assert Secret(one) == Secret(one)
        assert hash(Secret(one)) == hash(Secret(one))

    def test_is_not_its_text(self) -> None:
        """A secret equals no text and does not hash like one, so no dict of texts can be asked for it."""
        assert Secret(TEXT) != TEXT
        assert Secret(TEXT).__eq__(TEXT) is NotImplemented
        assert hash(Secret(TEXT)) != hash(TEXT)
        assert {Secret(TEXT), Secret(TEXT)} == {Secret(TEXT)}

    def test_cannot_be_pickled(self) -> None:
        """A pickle would carry the text to wherever it goes, so there is none, bare or inside a model."""
        for value in (Secret(TEXT), CreatedWebhook(webhook=Webhook(gid="1"), secret=Secret(TEXT))):
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(value)

    def test_copies_are_the_same_secret(self) -> None:
        """Objects that hold a secret can be copied; the secret itself is never doubled."""
        secret = Secret(TEXT)

        assert copy.copy(secret) is secret
        assert copy.deepcopy({"a": [secret]})["a"][0] is secret

    def test_has_no_dict(self) -> None:
        """Tools that dump the attributes of objects (Sentry, for one) find none."""
        with pytest.raises(TypeError):
            vars(Secret(TEXT))
        assert not attrs.has(Secret)


def full_event(**changes: Any) -> Event:
    event = Event(
        action="changed",
        resource=ResourceRef(gid="21", resource_type="task", resource_subtype="default_task"),
        created_at=NOON,
        user=ResourceRef(gid="11", resource_type="user"),
        parent=ResourceRef(gid="41", resource_type="section"),
        change=Change(
            field="custom_fields",
            action="changed",
            new_value=ResourceRef(gid="51", other_members={"enum_value": {"gid": "61"}}),
            added_value=ResourceRef(gid="52"),
            removed_value=ResourceRef(gid="53"),
        ),
    )
    return evolve(event, **changes)


def changed(**changes: Any) -> Event:
    change = full_event().change
    assert change is not None
    return full_event(change=evolve(change, **changes))


def read(event: object) -> Event:
    parsed = decode_delivery(json.dumps({"events": [event]}).encode())
    assert parsed.unreadable == ()
    return parsed.events[0]


def shuffled(draw: st.DrawFn, tree: Any) -> Any:
    """Give the members of every object another order, and leave out nulls or put some in."""
    if isinstance(tree, list):
        return [shuffled(draw, one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    members = {key: shuffled(draw, value) for key, value in tree.items()}
    if draw(st.booleans()):
        members = {key: value for key, value in members.items() if value is not None}
    if "gid" in tree and draw(st.booleans()):
        members |= {"name": draw(st.sampled_from(["Ada", None])), "new": None}
    return {key: members[key] for key in draw(st.permutations(list(members)))}


BODY_EVENT = {
    "user": {"gid": "11", "resource_type": "user"},
    "created_at": "2026-01-02T03:04:05.678Z",
    "action": "changed",
    "resource": {"gid": "21", "resource_type": "task", "resource_subtype": "default_task"},
    "parent": None,
    "change": {
        "field": "custom_fields",
        "action": "changed",
        "new_value": {"gid": "51", "resource_type": "custom_field", "enum_value": {"gid": "61"}},
    },
}

REFS = [{"gid": "11", "resource_type": "user"}, {"gid": "11"}, {"gid": "21", "resource_type": "task"}]
REFS += [REFS[2] | {"resource_subtype": "default_task"}]
OPTION = {"gid": "61", "resource_type": "enum_option"}
FIELD = {"gid": "51", "resource_type": "custom_field"}
# Values seen in public code, and other possible ones.
VALUES_OF_CHANGES = [
    *REFS,
    *(FIELD | {"enum_value": value} for value in (None, OPTION, OPTION | {"color": "red"}, [OPTION])),
    *(FIELD | {"multi_enum_values": value} for value in ([], [OPTION], [OPTION, OPTION | {"gid": "62"}])),
    *(FIELD | {"number_value": value} for value in (5, 5.2, 2**53, 2**53 + 1, 0, False)),
    *(FIELD | {"text_value": value} for value in ("", "é🎉", "5")),
    *(
        FIELD | {"date_value": value}
        for value in ({"date": "2026-12-01"}, {"date": None}, {"name": "a"}, {"name": "b"})
    ),
    FIELD | {"people_value": [REFS[0]]},
    *("High", 3, 3.5, True, 0, "", [OPTION], [], [None], {}, {"date_value": {"date": "2026-12-01"}}, {"name": "a"}),
]
INSTANTS = {
    "2026-11-01T03:04:05.678Z": 1,
    "2026-11-01T03:04:05.678000+00:00": 1,
    "2026-11-01T05:04:05.678+02:00": 1,
    "2026-11-01T03:04:05.678901Z": 2,
    "2026-11-01T03:04:05Z": 3,
    "2026-11-01T03:04:05+00:00": 3,
}
events_of_shapes = st.fixed_dictionaries(
    {
        "resource": st.sampled_from(REFS),
        "action": st.sampled_from(["changed", "added"]),
        "created_at": st.sampled_from(list(INSTANTS)),
    },
    optional={
        "user": st.sampled_from([None, *REFS]),
        "parent": st.sampled_from([None, *REFS]),
        "type": st.sampled_from([None, "task"]),
        "change": st.none()
        | st.fixed_dictionaries(
            {"field": st.sampled_from(["custom_fields", "name"])},
            optional={"action": st.sampled_from([None, "changed", "added"])}
            | dict.fromkeys(("new_value", "added_value", "removed_value"), st.sampled_from([None, *VALUES_OF_CHANGES])),
        ),
    },
)


def essence(tree: Any) -> Any:
    """Return an event's identity, computed in another way than the package does: nested sets of members."""
    if isinstance(tree, list):
        return ("list", *map(essence, tree))
    if not isinstance(tree, dict):
        return type(tree).__name__, tree
    left_out = {"user", "type"} if "created_at" in tree else {"name"} if "gid" in tree else set()
    instant = {"created_at": INSTANTS[tree["created_at"]]} if "created_at" in tree else {}
    members = {key: value for key, value in (tree | instant).items() if value is not None and key not in left_out}
    return frozenset((key, essence(value)) for key, value in members.items())


class TestFingerprint:
    @given(events_of_shapes, events_of_shapes, st.data())
    def test_alike_exactly_when_the_events_are(self, one: Any, other: Any, data: st.DataObject) -> None:
        """Two events that differ in anything but user, names, type, nulls and the order of members never share one; two
        alike in all of that do. Often only one member differs.
        """
        part = data.draw(st.sampled_from([*one, "all", "value"]))
        if part == "value":
            one = one | {"change": {"field": "f", "new_value": data.draw(st.sampled_from(VALUES_OF_CHANGES))}}
            other = one | {"change": {"field": "f", "new_value": data.draw(st.sampled_from(VALUES_OF_CHANGES))}}
        elif part != "all":
            other = one | {part: other.get(part, one[part])}
        other = data.draw(st.composite(shuffled)(other))

        assert (read(one).fingerprint == read(other).fingerprint) is (essence(one) == essence(other))

    @given(events_of_shapes)
    def test_survives(self, tree: Any) -> None:
        """Pickled, written and read again, or with another user, an event keeps its fingerprint."""
        event = read(tree)

        assert pickle.loads(pickle.dumps(event)).fingerprint == event.fingerprint
        assert evolve(event, user=ResourceRef(gid="99", name="Ada")).fingerprint == event.fingerprint
        assert read(event.to_dict()).fingerprint == event.fingerprint
        assert decode_delivery(encode({"events": [event]})).events == (event,)

    def test_values_are_told_apart(self) -> None:
        """Different values have different fingerprints, to the last bit of a number; 5 and 5.0 are equal."""
        values = [{"field": "f", "new_value": value} for value in VALUES_OF_CHANGES]
        fingerprints = {read(BODY_EVENT | {"change": value}).fingerprint for value in values}
        five, also_five = (FIELD | {"number_value": value} for value in (5, 5.0))

        assert len(fingerprints) == len(set(map(essence, values)))
        assert changed(new_value=five).fingerprint == changed(new_value=also_five).fingerprint

    def test_of_events_made_by_hand(self) -> None:
        """It is computed from the attributes: changing one changes the fingerprint."""
        event = full_event()
        different = [
            full_event(resource=ResourceRef(gid="22")),
            full_event(parent=None),
            full_event(created_at=NOON + timedelta(microseconds=1)),
            full_event(change=None),
            changed(field="assignee"),
            changed(action=None),
            changed(new_value=ResourceRef(gid="51", other_members={"enum_value": {"gid": "62"}})),
            changed(new_value=ResourceRef(gid="51")),
            changed(added_value=ResourceRef(gid="53"), removed_value=ResourceRef(gid="52")),
        ]
        same = [full_event(user=None, type="task"), changed(added_value=ResourceRef(gid="52", name="Grace"))]

        assert len({one.fingerprint for one in [event, *different]}) == 1 + len(different)
        assert {one.fingerprint for one in same} == {event.fingerprint}
        assert full_event(created_at=NOON.replace(tzinfo=None)).fingerprint == event.fingerprint

    @given(st.datetimes(timezones=st.none() | st.timezones()))
    def test_any_time(self, created_at: datetime) -> None:
        """No time is too early or too late for a fingerprint."""
        assert len(full_event(created_at=created_at).fingerprint) == 64

    def test_stays_the_same_over_releases(self) -> None:
        """Users keep fingerprints in their databases, so this very text must never change."""
        assert read(BODY_EVENT).fingerprint == "72f066799b5ddafda153e90d803d0382e5ffde811483156d0f9b3d137bcbcf07"


class TestFieldAndValue:
    def test_field(self) -> None:
        """It is the changed field, or None without a change."""
        assert (changed(field="due_on").field, full_event(change=None).field) == ("due_on", None)

    def test_value(self) -> None:
        """It is the new, added or removed value, if that is a resource."""
        ref = ResourceRef(gid="12")
        names = ("new_value", "added_value", "removed_value")
        for name in names:
            assert changed(**dict.fromkeys(names) | {name: ref}).value == ref
            assert changed(**dict.fromkeys(names) | {name: "High"}).value is None
        assert full_event(change=Change(field="x")).value is None
        assert full_event(change=None).value is None

    def test_values_of_custom_fields(self) -> None:
        """A reference has the value of each kind of custom field, and None for other kinds and for strange values."""
        option = ResourceRef(gid="61", resource_type="enum_option")
        for name, written, expected in [
            ("enum_value", OPTION, option),
            ("multi_enum_values", [OPTION, {"gid": "62"}], (option, ResourceRef(gid="62"))),
            ("people_value", [{"gid": "11"}], (ResourceRef(gid="11"),)),
            ("number_value", 5.2, 5.2),
            ("text_value", "é🎉", "é🎉"),
            ("date_value", {"date": "2026-12-01", "date_time": None}, {"date": "2026-12-01", "date_time": None}),
        ]:
            value = read(
                BODY_EVENT | {"change": {"field": "custom_fields", "new_value": FIELD | {name: written}}}
            ).value
            assert value is not None
            kinds = ("enum_value", "multi_enum_values", "people_value", "number_value", "text_value", "date_value")
            assert {kind: getattr(value, kind) for kind in kinds} == dict.fromkeys(kinds) | {name: expected}
            strange: Any
            for strange in (None, True, {}, [5], [{"gid": 5}], [OPTION, 5]):
                odd = ResourceRef(gid="51", other_members={name: strange})
                assert getattr(odd, name) == ({} if (name, strange) == ("date_value", {}) else None)


FILTERS: dict[str, tuple[Any, Any]] = {
    "resource_type": ("task", "story"),
    "resource_subtype": ("default_task", "milestone"),
    "action": ("changed", "added"),
    "fields": (("name", "custom_fields"), ("name",)),
}


class TestMatches:
    def test_every_member_that_is_set_must_fit(self) -> None:
        """A filter matches if all its members do; an empty filter matches every event."""
        assert WebhookFilter().matches(full_event())
        assert WebhookFilter(**{name: fits for name, (fits, _) in FILTERS.items()}).matches(full_event())
        for name, (fits, misses) in FILTERS.items():
            assert WebhookFilter(**{name: fits}).matches(full_event())
            assert not WebhookFilter(**{name: misses}).matches(full_event())
        assert WebhookFilter(fields=()).matches(full_event(change=None))
        assert not WebhookFilter(fields=("name",)).matches(full_event(change=None))


def delivery(events: tuple[Event, ...], body: bytes = b"") -> Delivery:
    return Delivery(
        id=1,
        registration="r",
        webhook_gid="43214",
        resource="1",
        received_at=NOON,
        attempt=1,
        events=events,
        body=body,
    )


VALUES: list[Any] = [
    ResourceRef(gid="1", other_members={"number_value": 5.2}),
    WebhookFilter(action="changed", fields=("due_on",)),
    Webhook(gid="1", filters=(WebhookFilter(),)),
    CreatedWebhook(webhook=Webhook(gid="1"), secret=None),
    Change(field="name", new_value=[], added_value={}, removed_value=[{}]),
    full_event(),
    UnreadableEvent(raw={"canary": [1]}, index=0, problem="odd"),
    ParsedDelivery(events=(full_event(),), unreadable=(UnreadableEvent(raw=None, index=1, problem="odd"),)),
    delivery((full_event(), changed(new_value=["High"])), b"canary"),
]


class TestStale:
    def test_the_newest_event_decides(self) -> None:
        """A delivery is stale when even its newest event is more than 25 hours older than its arrival."""
        for ages, stale in [
            ([25.0], False),
            ([25.001], True),
            ([100.0, 25.0], False),
            ([26.0, 100.0], True),
            ([-1.0], False),
            ([], False),
        ]:
            events = tuple(full_event(created_at=NOON - timedelta(hours=age)) for age in ages)
            assert delivery(events).stale is stale

    def test_times_without_a_zone(self) -> None:
        """They are taken for UTC, beside others and alone."""
        old = (NOON - timedelta(hours=26)).replace(tzinfo=None)

        assert delivery((full_event(created_at=old),)).stale
        assert not delivery((full_event(created_at=old), full_event(created_at=NOON))).stale

    @given(st.datetimes(timezones=st.none() | st.timezones()))
    def test_any_time(self, created_at: datetime) -> None:
        """No time Asana could write is too much, at either end of the calendar."""
        delivery((full_event(created_at=created_at),)).stale  # noqa: B018 - that it raises nothing


class TestValues:
    def test_every_model_is_tried(self) -> None:
        """`__all__` is the secret and the models of the list above."""
        assert {type(value).__name__ for value in VALUES} | {"Secret"} == set(models.__all__)

    def test_frozen(self) -> None:
        """What travels cannot be changed, has no room for stray attributes, and can be put into a set."""
        for value in VALUES:
            for name in [one.name for one in attrs.fields(type(value))]:
                with pytest.raises(attrs.exceptions.FrozenInstanceError):
                    setattr(value, name, None)
            with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
                value.stray = 1
            assert not hasattr(value, "__dict__")
            assert hash(value) == hash(copy.deepcopy(value))
            assert value == copy.deepcopy(value)

    def test_made_by_name_and_pickled(self) -> None:
        """Models are made by name, so that Asana may add members, and those without a secret cross processes."""
        for value in VALUES:
            kinds = {one.kind for one in inspect.signature(type(value)).parameters.values()}
            assert kinds == {inspect.Parameter.KEYWORD_ONLY}
            assert pickle.loads(pickle.dumps(value)) == value

    def test_reprs_keep_bodies_out(self) -> None:
        """A delivery's repr shows no body, and none shows an event that cannot be read."""
        assert "canary" not in repr(VALUES)

    def test_as_json(self) -> None:
        """Webhooks, events and deliveries become dicts for JSON answers, a delivery without its body."""
        event = {
            "action": "changed",
            "resource": {"gid": "21", "resource_type": "task", "resource_subtype": "default_task", "name": None},
            "created_at": "2026-01-02T12:00:00+00:00",
            "user": {"gid": "11", "resource_type": "user", "resource_subtype": None, "name": None},
            "parent": None,
            "change": {
                "field": "custom_fields",
                "action": None,
                "new_value": {
                    "gid": "51",
                    "resource_type": None,
                    "resource_subtype": None,
                    "name": None,
                    "text_value": "x",
                },
                "added_value": None,
                "removed_value": [1, {"a": None}],
            },
            "type": None,
        }
        value = ResourceRef(gid="51", other_members={"text_value": "x"})
        change = Change(field="custom_fields", new_value=value, removed_value=[1, {"a": None}])
        made = full_event(parent=None, change=change)
        odd = UnreadableEvent(raw={"a": None}, index=1, problem="odd")
        full = evolve(delivery((made,), b"canary"), label="tenant-a", unreadable=(odd,), done=(0,))
        webhook = Webhook(
            gid="1", target="https://e.com/a", created_at=NOON, filters=(WebhookFilter(fields=("name",)),)
        )

        assert json.loads(json.dumps(made.to_dict())) == event
        assert json.loads(json.dumps(full.to_dict())) == {
            "id": 1,
            "registration": "r",
            "label": "tenant-a",
            "webhook_gid": "43214",
            "resource": "1",
            "received_at": "2026-01-02T12:00:00+00:00",
            "attempt": 1,
            "events": [event],
            "unreadable": [{"raw": {"a": None}, "index": 1, "problem": "odd"}],
            "done": [0],
        }
        assert json.loads(json.dumps(webhook.to_dict())) == json.loads(encode(webhook)) | {
            "created_at": "2026-01-02T12:00:00+00:00"
        }

    def test_wire_models_have_no_converters_and_no_aliases(self) -> None:
        """Bytes become models by name and type alone; a converter would be skipped silently."""
        for value in VALUES:
            for one in attrs.fields(type(value)):
                assert one.converter is None
                assert one.alias == one.name
