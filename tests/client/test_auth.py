"""Where tokens come from, and which of them can be sent."""

import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.client.auth import FixedToken, check_token, token_provider
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

# Shaped like real ones: https://developers.asana.com/docs/personal-access-token
GOOD = ["2/11/22:0123456789abcdef0123456789abcdef", "1/11:0123456789abcdef0123456789abcdef", "0/abc", "eyJ.a-b_c~d+e/="]

BAD: dict[str, str] = {
    "newline at the end": "canary-token\n",
    "carriage return": "canary\r\nX-Evil: token",
    "space": "canary token",
    "space before": " canary-token",
    "space after": "canary-token ",
    "tab": "canary\ttoken",
    "NUL": "canary\x00token",
    "delete": "canary\x7ftoken",
    "Latin-1": "canary-tökén",
    "other digits": "canary-٣",
    "typographic dash": "canary–token",  # noqa: RUF001 - what word processors make of a dash
    "no-break space": "canary\xa0token",
    "byte order mark": "\ufeffcanary-token",
    "lone surrogate": "canary\udcff",
}


class TestFixed:
    @pytest.mark.parametrize("token", GOOD)
    async def test_gives_the_token(self, token: str) -> None:
        """A text becomes a provider that always returns it."""
        provider = token_provider(token)

        assert [await provider(), await provider()] == [token, token]
        assert check_token(token) == token

    def test_hides_the_token(self) -> None:
        """Neither repr nor attributes of the provider show the token, and it cannot be pickled."""
        provider = FixedToken("canary-token")

        assert "canary" not in repr(provider)
        assert "canary" not in repr(vars(provider))
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(provider)

    @pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
    def test_unusable(self, token: str) -> None:
        """What cannot stand in a header is refused at once, and the error does not show it (trap 5)."""
        with pytest.raises(ConfigurationError, match="holds a space, a line break or a character outside") as caught:
            token_provider(token)

        for shown in (repr(caught.value), "".join(traceback.format_exception_only(caught.value))):
            assert "canary" not in shown

    def test_empty(self) -> None:
        """An empty token is a mistake of its own."""
        with pytest.raises(ConfigurationError, match=r"^the access token is empty; copy it again"):
            token_provider("")

    @pytest.mark.parametrize(
        ("token", "kind"), [(b"canary", "bytes"), (5, "int"), (Secret("canary"), "Secret"), (["canary"], "list")]
    )
    def test_no_text(self, token: Any, kind: str) -> None:
        """Something else is refused by the name of its class."""
        with pytest.raises(ConfigurationError, match=f"^the access token must be a text, not {kind}$"):
            token_provider(token)

    @given(st.text())
    def test_any_text(self, token: str) -> None:
        """A text is returned as it is if HTTP can carry it in a header; any other is refused."""
        if token and all("!" <= letter <= "~" for letter in token):
            assert check_token(token) == token
        else:
            with pytest.raises(ConfigurationError, match="copy it again"):
                check_token(token)


class TestEnvironment:
    async def test_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a token the environment's is taken."""
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", GOOD[0])

        assert await token_provider(None)() == GOOD[0]

    async def test_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A provider keeps the token it was made with."""
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", GOOD[0])
        provider = token_provider(None)
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", GOOD[1])

        assert await provider() == GOOD[0]

    async def test_does_not_override(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A token that was passed wins."""
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", GOOD[0])

        assert await token_provider(GOOD[1])() == GOOD[1]

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without any token the error names both ways to give one."""
        monkeypatch.delenv("ASANA_ACCESS_TOKEN", raising=False)
        with pytest.raises(ConfigurationError, match="pass token= to AsanaSession, or set ASANA_ACCESS_TOKEN"):
            token_provider(None)

    def test_empty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable that is set to nothing is not the same as one that is not set."""
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", "")
        with pytest.raises(ConfigurationError, match="is empty"):
            token_provider(None)

    def test_unusable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The newline of a file read by a shell is found before anything is sent."""
        monkeypatch.setenv("ASANA_ACCESS_TOKEN", "canary-token\n")
        with pytest.raises(ConfigurationError, match="line break") as caught:
            token_provider(None)

        assert "canary" not in str(caught.value)


class TestProvider:
    async def test_is_used_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A user's async callable is returned unchanged and not called before it is needed."""
        monkeypatch.delenv("ASANA_ACCESS_TOKEN", raising=False)
        calls: list[int] = []

        async def provider() -> str:
            calls.append(1)
            return GOOD[0]

        assert token_provider(provider) is provider
        assert calls == []
        assert await provider() == GOOD[0]
