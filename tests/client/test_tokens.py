"""Answers of the token endpoint: from status and bytes to tokens or to an error."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.client.oauth import RefreshRequest, TokenSet
from asana_webhooks.errors import (
    RateLimitedError,
    ResponseError,
    ServerError,
    TokenRefreshError,
    UnexpectedResponseError,
)
from asana_webhooks.models import Secret

SENT_AT = 1_800_000_000.0
SENT = datetime.fromtimestamp(SENT_AT, UTC)
GOOD: dict[str, Any] = {"access_token": "2/11/22:new", "token_type": "bearer", "expires_in": 3600}
REQUEST = RefreshRequest(
    client_id="12345",
    client_secret=Secret("canary-client-secret"),
    refresh_token=Secret("canary-refresh-token"),
    sent_at=SENT_AT,
)


def tokens_of(tree: Any) -> TokenSet:
    outcome = REQUEST.answer(200, json.dumps(tree).encode())
    assert isinstance(outcome, TokenSet)
    return outcome


def error_of(status: int, body: bytes | None, *, retry_after: float | None = None) -> ResponseError:
    outcome = REQUEST.answer(status, body, retry_after=retry_after)
    assert isinstance(outcome, ResponseError)
    assert (outcome.operation, outcome.status, outcome.attempts) == ("refreshToken", status, 1)
    return outcome


class TestRequest:
    def test_form(self) -> None:
        """What RFC 6749 asks for, and nothing else."""
        assert REQUEST.form() == {
            "grant_type": "refresh_token",
            "client_id": "12345",
            "client_secret": "canary-client-secret",
            "refresh_token": "canary-refresh-token",
        }

    def test_hides_its_secrets(self) -> None:
        """Neither repr nor a dump shows them."""
        for text in (repr(REQUEST), repr(attrs.asdict(REQUEST))):
            assert "canary" not in text


class TestGranted:
    def test_old_refresh_token_stays(self) -> None:
        """Asana sends none with a refresh; the one that was used is kept."""
        assert tokens_of(GOOD) == TokenSet(
            access_token=Secret("2/11/22:new"),
            refresh_token=REQUEST.refresh_token,
            expires_at=SENT + timedelta(seconds=3600),
        )

    def test_new_refresh_token_counts(self) -> None:
        """A rotated one takes the old one's place."""
        assert tokens_of(GOOD | {"refresh_token": "2/11/23:next"}).refresh_token == Secret("2/11/23:next")

    @pytest.mark.parametrize(
        ("members", "lasts"),
        [
            ({}, 3600),
            ({"expires_in": None}, 3600),
            ({"expires_in": 7200}, 7200),
            ({"expires_in": 0.5}, 0.5),
            ({"expires_in": 365 * 86400 + 1}, 365 * 86400),
            ({"expires_in": 10**30}, 365 * 86400),
            ({"expires_in": 1e300}, 365 * 86400),
        ],
    )
    def test_lifetime(self, members: dict[str, Any], lasts: float) -> None:
        """It counts from the sending; unsaid it is Asana's hour, and none is longer than a year."""
        tokens = tokens_of({"access_token": "2/11/22:new"} | members)

        assert tokens.expires_at - SENT == timedelta(seconds=lasts)
        assert tokens.expires_at.utcoffset() == timedelta(0)

    @pytest.mark.parametrize("seconds", [0, -1, -0.5, -(10**30)])
    def test_expired_already(self, seconds: float) -> None:
        """A token that ended before it came is of no use."""
        error = error_of(200, json.dumps(GOOD | {"expires_in": seconds}).encode())
        assert isinstance(error, UnexpectedResponseError)
        assert error.problem == "the access token has expired already @ $.expires_in"

    @pytest.mark.parametrize("name", ["access_token", "refresh_token"])
    @pytest.mark.parametrize("token", ["canary\n", "canary x", "canary-ä"])
    def test_tokens_that_cannot_be_sent(self, name: str, token: str) -> None:
        """A token that no header takes is found here, and not shown."""
        error = error_of(200, json.dumps(GOOD | {name: token}).encode())
        assert isinstance(error, UnexpectedResponseError)
        assert error.problem == "a token in it is empty, or holds what cannot be sent @ $"

    def test_empty_access_token(self) -> None:
        """An empty token is none."""
        assert isinstance(error_of(200, json.dumps(GOOD | {"access_token": ""}).encode()), UnexpectedResponseError)


class TestRefused:
    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_says_why(self, status: int) -> None:
        """OAuth's code and sentence are in the error, with what to do."""
        body = b'{"error":"invalid_grant","error_description":"The `refresh_token` provided was invalid."}'
        error = error_of(status, body)

        assert isinstance(error, TokenRefreshError)
        assert error.code == "invalid_grant"
        assert error.messages == ("The `refresh_token` provided was invalid.",)
        assert "Let the user authorize the app again" in str(error)

    @pytest.mark.parametrize("members", [{}, {"error_description": None}, {"error_description": ""}])
    def test_without_a_sentence(self, members: dict[str, Any]) -> None:
        """A code alone is an error too."""
        error = error_of(400, json.dumps({"error": "invalid_client"} | members).encode())

        assert isinstance(error, TokenRefreshError)
        assert (error.code, error.messages) == ("invalid_client", ())

    def test_an_empty_code(self) -> None:
        """The text stays readable if the endpoint says nothing."""
        error = error_of(400, b'{"error":""}')

        assert isinstance(error, TokenRefreshError)
        assert error.code == "no code"

    def test_echoes_are_cut_out(self) -> None:
        """An endpoint that repeats what it got, or sends line breaks, does not get it into our logs."""
        echo = "got canary-client-secret\nand canary-refresh-token" + "x" * 1000
        error = error_of(400, json.dumps({"error": echo, "error_description": echo}).encode())

        for text in (str(error), repr(error)):
            assert "canary" not in text
            assert "\n" not in text
            assert len(text) < 1500


class TestUnusable:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (200, None),
            (200, b""),
            (200, b"<html>"),
            (200, b'{"access_token":"canary"'),
            (200, b"[]"),
            (200, b'{"access_token":5}'),
            (200, b'{"error":"invalid_grant"}'),
            (204, b""),
            (400, None),
            (400, b"<html>"),
            (401, b'{"errors":[{"message":"Not Authorized"}]}'),
            (404, b'{"errors":[{"message":"No matching route for request"}]}'),
            (301, b""),
            (308, b'{"access_token":"a"}'),
            (600, b""),
            (600, b'{"error":"invalid_grant"}'),
        ],
        ids=str,
    )
    def test_is_an_error_of_its_own(self, status: int, body: bytes | None) -> None:
        """Whatever is neither tokens nor a refusal names its status and what is wrong."""
        error = error_of(status, body)

        assert type(error) is UnexpectedResponseError
        assert error.problem
        assert "canary" not in repr(error)

    def test_redirects_are_named(self) -> None:
        """A redirect is never followed: it could carry the client's secret away."""
        error = error_of(307, b"")
        assert isinstance(error, UnexpectedResponseError)
        assert "redirect" in error.problem

    @pytest.mark.parametrize("body", [None, b"", b"<html>", b'{"errors":[]}', b'{"error":"temporarily_unavailable"}'])
    def test_trouble_that_passes(self, body: bytes | None) -> None:
        """429 and 5xx are told by their status, whatever stands in them; Retry-After is kept."""
        limited = error_of(429, body, retry_after=30.0)
        assert (type(limited), limited.retry_after) == (RateLimitedError, 30.0)
        for status in (500, 502, 503, 599):
            failed = error_of(status, body, retry_after=1.5)
            assert (type(failed), failed.retry_after) == (ServerError, 1.5)

    @given(st.integers(100, 999), st.binary(max_size=100) | st.none())
    def test_any_answer(self, status: int, body: bytes | None) -> None:
        """Whatever comes, the outcome is tokens or one of our errors."""
        outcome = REQUEST.answer(status, body)

        assert isinstance(outcome, TokenSet | ResponseError)

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.none() | st.booleans() | st.text(max_size=5) | st.integers() | st.floats(allow_nan=False)
                for name in ("access_token", "refresh_token", "expires_in", "error", "error_description")
            },
        )
    )
    def test_any_members(self, tree: dict[str, Any]) -> None:
        """Tokens that come out can be sent, and end in the future."""
        outcome = REQUEST.answer(200, json.dumps(tree).encode())

        if isinstance(outcome, TokenSet):
            assert outcome.access_token.reveal().isascii()
            assert SENT < outcome.expires_at <= SENT + timedelta(days=365)
