"""What every store decides in the same way."""

import pytest
from attrs import evolve

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import DeliveryState, Registration, RegistrationState, candidate_id
from asana_webhooks.store.rules import (
    add_done,
    as_found,
    check_integer,
    check_label,
    check_state,
    check_texts,
    effective_state,
    event_time,
    initial_state,
    is_alone,
    last_sign,
    may_open,
    minute_of,
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
    assert expected is initial_state(state, secrets={NAME}, candidate=candidate)


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


@pytest.mark.parametrize(
    ("live", "replaces", "expected"),
    [
        ([], None, True),
        (["a"], None, False),
        (["a"], "a", True),
        (["a"], "b", False),
        ([], "a", False),
        (["a", "b"], "a", False),
    ],
)
def test_may_open(live: list[str], replaces: str | None, expected: bool) -> None:
    """One is opened beside none, or beside exactly the one it replaces."""
    assert may_open(live, replaces=replaces) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"events":[{"created_at":"2026-01-02T03:04:05.678Z"}]}', 1_767_323_045_678),
        (
            b'{"events":[{"created_at" : "2026-01-02T05:04:05.678+02:00"}, {"created_at":"2001-01-01"}]}',
            1_767_323_045_678,
        ),
        (b'{"created_at":"2026-01-02T03:04:05"}', 1_767_323_045_000),
        (b'{"created_at":"1969-01-01T00:00:00Z"}', 0),
        (b'{"created_at":"2026-13-01T00:00:00Z"}', 0),
        (b'{"created_at":"0001-01-01T00:00:00+23:59"}', 0),
        (b'{"created_at":17}', 0),
        (b'\xff{"events":[]}', 0),
    ],
)
def test_event_time(body: bytes, expected: int) -> None:
    """It is that of the first event, in milliseconds; what has none, or an odd one, has 0."""
    assert event_time(body) == expected


def test_small_rules() -> None:
    """Minutes are rounded down, two without an answer run alone, and the last sign is the latest of three."""
    assert [minute_of(at) for at in (0.0, 59.9, 60.0, 119.0)] == [0.0, 0.0, 60.0, 60.0]
    assert [is_alone(count) for count in range(4)] == [False, False, True, True]
    opened = Registration(id="r", resource="1", state=CONFIRMED, deadline=0, opened_at=5.0)
    assert last_sign(opened) == 5
    assert last_sign(evolve(opened, last_heartbeat_at=7.0, last_delivery_at=None)) == 7
    assert last_sign(evolve(opened, last_heartbeat_at=7.0, last_delivery_at=9.0)) == 9


def test_what_is_done_is_added() -> None:
    """Indices come together in ascending order, each once; what is no index is a mistake."""
    assert add_done((4, 1), iter([2, 1])) == (1, 2, 4)
    assert add_done((), ()) == ()
    for bad in ([-1], [1, -5], ["0"], [1.0], [2**63]):
        with pytest.raises(ConfigurationError, match=r"^done must"):
            add_done((), bad)  # type: ignore[arg-type]


def test_labels_and_states() -> None:
    """A label is a text of at most 200 characters, and a state is one of the five."""
    assert check_label("x" * 200) == "x" * 200
    for bad in ("x" * 201, None, b"x", "\ud800"):
        with pytest.raises(ConfigurationError):
            check_label(bad)  # type: ignore[arg-type]
    assert [check_state(name) for name in ("dead", DeliveryState.DEAD)] == [DeliveryState.DEAD] * 2
    with pytest.raises(ConfigurationError, match=r"state must be one of quarantined, waiting, .* not 'done'"):
        check_state("done")


def test_readable() -> None:
    """Every text becomes one that can be stored, and ordinary ones stay."""
    assert readable("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n") == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"
    assert readable("a\udcffb\0c") == "a\\udcffb\\x00c"
