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
    ResourceRef,
    Secret,
    Webhook,
    WebhookFilter,
)
from asana_webhooks.wire import decode_events

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
            new_value=ResourceRef(gid="51", enum_value=ResourceRef(gid="61")),
            added_value=ResourceRef(gid="52"),
            removed_value=ResourceRef(gid="53"),
        ),
        registration="r",
    )
    return evolve(event, **changes)


def changed(**changes: Any) -> Event:
    change = full_event().change
    assert change is not None
    return full_event(change=evolve(change, **changes))


DIFFERENT = [
    full_event(registration="s"),
    full_event(user=ResourceRef(gid="12")),
    full_event(user=None),
    full_event(resource=ResourceRef(gid="22")),
    full_event(parent=ResourceRef(gid="42")),
    full_event(parent=None),
    full_event(action="added"),
    full_event(created_at=NOON + timedelta(milliseconds=1)),
    full_event(change=None),
    changed(field="assignee"),
    changed(action="added"),
    changed(action=None),
    changed(new_value=ResourceRef(gid="54", enum_value=ResourceRef(gid="61"))),
    changed(new_value=ResourceRef(gid="51", enum_value=ResourceRef(gid="62"))),
    changed(new_value=ResourceRef(gid="51")),
    changed(new_value=None),
    changed(added_value=ResourceRef(gid="54")),
    changed(added_value=None),
    changed(removed_value=ResourceRef(gid="54")),
    changed(removed_value=None),
    changed(added_value=ResourceRef(gid="53"), removed_value=ResourceRef(gid="52")),
]


def shuffled(draw: st.DrawFn, tree: Any) -> Any:
    """Give the members of every object another order, and put unknown ones among them."""
    if not isinstance(tree, dict):
        return tree
    members = [(key, shuffled(draw, value)) for key, value in tree.items()]
    members += draw(st.sampled_from([[], [("zz_new", 1)], [("a_new", {"gid": "9"}), ("zz_new", None)]]))
    return dict(draw(st.permutations(members)))


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


class TestFingerprint:
    def test_differs(self) -> None:
        """Two events that differ in any of this are two events."""
        events = [full_event(), *DIFFERENT]
        assert len({event.fingerprint for event in events}) == len(events)

    def test_names_do_not_matter(self) -> None:
        """What Asana only adds for display, or has deprecated, is not part of an event's identity."""
        for same in (
            full_event(resource=ResourceRef(gid="21", name="Buy milk")),
            full_event(user=ResourceRef(gid="11", name="Ada")),
            full_event(parent=ResourceRef(gid="41", name="Doing", resource_type="other")),
            changed(added_value=ResourceRef(gid="52", name="Grace")),
            full_event(type="task"),
        ):
            assert same.fingerprint == full_event().fingerprint

    @given(st.data())
    def test_order_of_members_does_not_matter(self, data: st.DataObject) -> None:
        """Asana shuffles the members of an event and adds new ones; a redelivery keeps its fingerprint."""

        @st.composite
        def bodies(draw: st.DrawFn) -> bytes:
            return json.dumps({"events": [shuffled(draw, BODY_EVENT)]}).encode()

        (event,) = decode_events(data.draw(bodies()), "r")
        (plain,) = decode_events(json.dumps({"events": [BODY_EVENT]}).encode(), "r")

        assert event.fingerprint == plain.fingerprint

    def test_position_in_the_delivery_does_not_matter(self) -> None:
        """A retry whose batch has grown keeps the fingerprints of the old events."""
        other = {**BODY_EVENT, "action": "deleted"}
        (alone,) = decode_events(json.dumps({"events": [BODY_EVENT]}).encode(), "r")
        first, second = decode_events(json.dumps({"events": [other, BODY_EVENT]}).encode(), "r")

        assert second.fingerprint == alone.fingerprint
        assert first.fingerprint != alone.fingerprint

    def test_stays_the_same_over_releases(self) -> None:
        """Users keep fingerprints in their databases, so this very text must never change."""
        (event,) = decode_events(json.dumps({"events": [BODY_EVENT]}).encode(), "r")

        assert event.fingerprint == "43d76dd944935b9cb21d7f9bb39967be055f44f6df3a7449f8da636497007625"

    def test_no_separator_can_be_forged(self) -> None:
        """Texts with quotes, commas or brackets cannot slide from one part into the next."""
        one = full_event(registration='r","11', user=None)
        two = full_event(registration="r", user=ResourceRef(gid="11"))

        assert one.fingerprint != two.fingerprint


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
    ResourceRef(gid="1"),
    WebhookFilter(action="changed", fields=("due_on",)),
    Webhook(gid="1", filters=(WebhookFilter(),)),
    CreatedWebhook(webhook=Webhook(gid="1"), secret=None),
    Change(field="name"),
    full_event(),
    delivery((full_event(),), b"canary"),
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

    def test_reprs_keep_bodies_and_registrations_out(self) -> None:
        """A delivery's repr shows no body, and an event's no registration."""
        assert "canary" not in repr(VALUES[-1])
        assert "registration" not in repr(full_event(registration="canary"))

    def test_wire_models_have_no_converters_and_no_aliases(self) -> None:
        """Bytes become models by name and type alone; a converter would be skipped silently."""
        for value in VALUES:
            for one in attrs.fields(type(value)):
                assert one.converter is None
                assert one.alias == one.name
