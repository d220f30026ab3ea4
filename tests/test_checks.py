"""The checks of numbers."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, 0.5, 60])
def test_seconds_pass(value: float) -> None:
    """Numbers of seconds come back as they are."""
    assert check_seconds("lease", value) == value


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, 10**400, "5", None, True], ids=repr)
@pytest.mark.parametrize("zero", [True, False])
def test_other_seconds_are_refused(value: Any, zero: bool) -> None:
    """Nobody keeps a time that never comes; the message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^lease must be a finite number of seconds, "):
        check_seconds("lease", value, zero=zero)


def test_no_seconds_at_all_are_refused_where_they_make_no_sense() -> None:
    """A time limit of nothing would let nothing happen."""
    with pytest.raises(ConfigurationError, match="above 0, not 0"):
        check_seconds("timeout", 0, zero=False)


def test_seconds_come_back_as_floats() -> None:
    """Whoever gives a whole number gets on with the same as everybody."""
    assert type(check_seconds("lease", 60)) is float


@given(st.floats())
def test_any_seconds(value: float) -> None:
    """Of all floats, those from 0 up pass as they are, if they have an end."""
    if math.isfinite(value) and value >= 0:
        assert check_seconds("lease", value) == value
    else:
        with pytest.raises(ConfigurationError, match="0 or more"):
            check_seconds("lease", value)


def test_counts_pass() -> None:
    """Whole numbers from 1 come back as they are."""
    assert (check_count("attempts", 1), check_count("attempts", 10)) == (1, 10)


def test_none_at_all_is_a_count_where_it_makes_sense() -> None:
    """A budget may be 0, but not less."""
    assert check_count("budget", 0, zero=True) == 0
    with pytest.raises(ConfigurationError, match=r"^budget must be a whole number of at least 0, not -1$"):
        check_count("budget", -1, zero=True)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("value", [False, True, 0.0, "0", None, math.nan], ids=repr)
def test_what_only_looks_like_a_count(value: Any, zero: bool) -> None:
    """Truth values, floats and texts are no counts, whether or not 0 is one."""
    with pytest.raises(ConfigurationError, match=r"^budget must be a whole number of at least [01], not "):
        check_count("budget", value, zero=zero)


def test_long_values_are_cut() -> None:
    """A message does not show thousands of letters of what was given."""
    for check in (check_seconds, check_count):
        with pytest.raises(ConfigurationError) as caught:
            check("lease", "x" * 5000)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, "1", None, True], ids=repr)
def test_other_counts_are_refused(value: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^attempts must be a whole number of at least 1, not "):
        check_count("attempts", value)
