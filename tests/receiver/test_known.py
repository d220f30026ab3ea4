"""What a receiver remembers of registrations: only what can prove a delivery, and only so much of it."""

import pytest
from attrs import evolve

from asana_webhooks.receiver.known import KnownRegistrations
from asana_webhooks.store.base import Registration, RegistrationState
from tests.helpers.stores import SECRET


def confirmed(id: str) -> Registration:
    return Registration(id=id, resource="1", state=RegistrationState.CONFIRMED, deadline=0.0, secret=SECRET)


def test_what_was_not_asked_for_longest_goes_first() -> None:
    """There is room for so many; asking for one, or seeing it again, keeps it."""
    known = KnownRegistrations(size=3)
    for id in "abc":
        known.note(confirmed(id))
    assert known.get("a") == confirmed("a")
    known.note(confirmed("b"))
    known.note(confirmed("d"))

    assert [id for id in "abcd" if known.get(id) is not None] == ["a", "b", "d"]
    known.note(confirmed("e"))
    assert [id for id in "abcde" if known.get(id) is not None] == ["b", "d", "e"]


@pytest.mark.parametrize("state", [RegistrationState.PENDING, RegistrationState.CLOSED])
def test_only_the_confirmed_are_known(state: RegistrationState) -> None:
    """What may still change its secret is not remembered, and what has ended is forgotten."""
    known = KnownRegistrations()
    known.note(evolve(confirmed("a"), state=state))
    assert known.get("a") is None

    known.note(confirmed("a"))
    known.note(evolve(confirmed("a"), state=state, secret=None))
    assert known.get("a") is None


def test_forgetting() -> None:
    """What is forgotten, and what never was known, is asked for again."""
    known = KnownRegistrations()
    known.note(confirmed("a"))
    known.forget("a")
    known.forget("b")

    assert known.get("a") is None


def test_it_says_how_many() -> None:
    """Its repr shows neither ids nor secrets."""
    known = KnownRegistrations(size=3)
    known.note(confirmed("a"))

    assert repr(known) == "<KnownRegistrations 1 of 3>"
