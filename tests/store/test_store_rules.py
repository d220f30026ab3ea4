"""What every store decides in the same way."""

import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store import RegistrationState, candidate_id
from asana_webhooks.store.rules import DeliveryState, check_seconds, landing, readable

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
def test_landing(state: RegistrationState, candidate: str | None, expected: DeliveryState | None) -> None:
    """A delivery goes where its registration's state and secrets allow."""
    secret = SECRET if state is CONFIRMED else None
    assert expected is landing(state, secret=secret, candidates={NAME}, candidate=candidate)


@pytest.mark.parametrize("value", [0, 0.5, 60])
def test_seconds_pass(value: float) -> None:
    """Numbers of seconds come back as they are."""
    assert value == check_seconds("lease", value)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), float("-inf")])
def test_other_seconds_are_refused(value: float) -> None:
    """No store keeps a time that never comes; the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^lease must be a finite number of seconds"):
        check_seconds("lease", value)


def test_readable() -> None:
    """Every text becomes one that can be stored, and ordinary ones stay."""
    assert readable("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n") == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"
    assert readable("a\udcffb\0c") == "a\\udcffb\\x00c"
