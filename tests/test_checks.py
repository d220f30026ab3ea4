"""The checks of numbers."""

import math
from typing import Any

import pytest

from asana_webhooks.checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, 0.5, 60])
def test_seconds_pass(value: float) -> None:
    """Numbers of seconds come back as they are."""
    assert check_seconds("lease", value) == value


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, "5", None, True], ids=repr)
@pytest.mark.parametrize("zero", [True, False])
def test_other_seconds_are_refused(value: Any, zero: bool) -> None:
    """Nobody keeps a time that never comes; the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^lease must be a finite number of seconds, "):
        check_seconds("lease", value, zero=zero)


def test_no_seconds_at_all_are_refused_where_they_make_no_sense() -> None:
    """A time limit of nothing would let nothing happen."""
    with pytest.raises(ConfigurationError, match="above 0, not 0"):
        check_seconds("timeout", 0, zero=False)


def test_counts_pass() -> None:
    """Whole numbers from 1 come back as they are."""
    assert (check_count("attempts", 1), check_count("attempts", 10)) == (1, 10)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, "1", None, True], ids=repr)
def test_other_counts_are_refused(value: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^attempts must be a whole number of at least 1, not "):
        check_count("attempts", value)
