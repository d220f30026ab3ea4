"""Offsets of pages: they look like Asana's, and only true and fresh ones are good."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.testing.answers import ApiError
from asana_webhooks.testing.offsets import OFFSET_LIFETIME, read_offset, write_offset

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = b"k" * 32


def _write(after: int = 7, *, now: datetime = NOW, key: bytes = KEY) -> str:
    return write_offset(after=after, list_of=["1331", ""], now=now, key=key)


def _read(token: str, *, now: datetime = NOW) -> int:
    return read_offset(token, list_of=["1331", ""], now=now, key=KEY)


def _refusal(token: str, *, now: datetime = NOW) -> str:
    with pytest.raises(ApiError) as caught:
        _read(token, now=now)
    assert caught.value.status == 400
    return caught.value.message


@given(st.integers(0, 2**62), st.integers(0, 899))
def test_round_trip(after: int, age: int) -> None:
    """A token says where its page begins until it expires."""
    assert _read(_write(after), now=NOW + timedelta(seconds=age)) == after


def test_looks_like_asanas() -> None:
    """It is a JSON Web Token that lives for 900 seconds."""
    header, claims, _ = _write().split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"typ": "JWT", "alg": "HS256"}
    read = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert read["exp"] - read["iat"] == OFFSET_LIFETIME.total_seconds() == 900


def test_expires() -> None:
    """At the 900th second it is too old: the claim names the moment from which it is not good any more."""
    assert _refusal(_write(), now=NOW + timedelta(seconds=900)) == "offset: Your pagination token has expired."


@given(st.text(max_size=80))
def test_any_text_is_invalid(text: str) -> None:
    """Whatever text comes as an offset is refused in Asana's words."""
    assert _refusal(text) == "offset: Your pagination token is invalid."


@given(st.integers(0, 10**6), st.characters(codec="ascii"))
def test_altered_is_invalid(position: int, character: str) -> None:
    """A token with one character changed is not ours."""
    token = _write()
    position %= len(token)
    altered = token[:position] + character + token[position + 1 :]
    if altered != token:
        assert _refusal(altered) == "offset: Your pagination token is invalid."


def test_of_another_fake() -> None:
    """A token signed with another key is not ours, even when it has expired."""
    assert _refusal(_write(key=b"x" * 32, now=NOW - timedelta(hours=1))) == "offset: Your pagination token is invalid."
