"""What every store decides in the same way."""

import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import Registration, RegistrationState, candidate_id
from asana_webhooks.store.rules import (
    DeliveryState,
    as_found,
    check_integer,
    check_texts,
    effective_state,
    initial_state,
    readable,
    runs,
)

SECRET = Secret("a" * 32)
NAME = candidate_id(SECRET)
OTHER = candidate_id(Secret("b" * 32))
PENDING, CONFIRMED, CLOSED = RegistrationState


@pytest.mark.parametrize(
    ("state", "candidate", "expected"),
    [
        (PENDING, None, None),
        (PENDING, NAME, DeliveryState.QUARANTINED),
        (PENDING, OTHER, None),
        (CONFIRMED, None, DeliveryState.WAITING),
        (CONFIRMED, NAME, DeliveryState.WAITING),
        (CONFIRMED, OTHER, None),
        (CLOSED, None, None),
        (CLOSED, NAME, None),
        (CLOSED, OTHER, None),
    ],
)
def test_initial_state(state: RegistrationState, candidate: str | None, expected: DeliveryState | None) -> None:
    """A delivery starts in the state that its registration's state and secrets allow."""
    confirmed = NAME if state is CONFIRMED else None
    assert expected is initial_state(state, confirmed=confirmed, candidates={NAME}, candidate=candidate)


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        (PENDING, 99, PENDING),
        (PENDING, 100, CLOSED),
        (CONFIRMED, 99, CONFIRMED),
        (CONFIRMED, 101, CONFIRMED),
        (CLOSED, 99, CLOSED),
        (CLOSED, 101, CLOSED),
    ],
)
def test_effective_state(state: RegistrationState, now: float, expected: RegistrationState) -> None:
    """Only a pending registration has a deadline; at that it is closed, and keeps no candidate."""
    assert effective_state(state, deadline=100, now=now) is expected
    registration = Registration(id="r", resource="1", state=state, deadline=100, candidates=(SECRET,))
    found = as_found(registration, now=now)
    assert found.state is expected
    assert found.candidates == ((SECRET,) if expected is state else ())


@pytest.mark.parametrize(
    ("now", "expected"), [(39, False), (40, True), (100, True), (109, True), (110, False), (1000, False)]
)
def test_runs(now: float, expected: bool) -> None:
    """A lease or delay lasts from a minute before its beginning, for clocks differ, to its end."""
    assert runs(since=100, until=110, now=now) is expected


def test_integers() -> None:
    """Integers of 64 bits come back as they are; the error about others names the argument."""
    for value in (-(2**63), 0, 2**63 - 1):
        assert check_integer("limit", value) == value
    for value in (-(2**63) - 1, 2**63):
        with pytest.raises(ConfigurationError, match=r"^limit must be an integer of at most 64 bits"):
            check_integer("limit", value)


def test_texts() -> None:
    """Every text can be kept but one with a lone surrogate, and the error does not show it."""
    check_texts("", "\0", "\ud7ff\ue000\U0001f600")
    for bad in ("hunter2\ud800", "\udfffhunter2"):
        with pytest.raises(ConfigurationError) as caught:
            check_texts("a", bad)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None


def test_readable() -> None:
    """Every text becomes one that can be stored, and ordinary ones stay."""
    assert readable("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n") == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"
    assert readable("a\udcffb\0c") == "a\\udcffb\\x00c"
