"""Where tokens come from, which of them can be sent, and what a session does with those a provider gives."""

import asyncio
import functools
import pickle
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from itertools import cycle
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.client.auth import FixedToken, check_token, token_provider
from asana_webhooks.client.oauth import OAuthToken
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    NotAuthorizedError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    TokenRefreshError,
)
from asana_webhooks.models import Secret
from tests.helpers import virtual
from tests.helpers.raw import CALLS, CREATE, DELETE, GET, TOKEN
from tests.helpers.virtual import Answer, TimedServer, good, in_turn, refusal

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

    def test_unusable(self) -> None:
        """What cannot stand in a header is refused at once, and the error does not show it (trap 5)."""
        for what, token in BAD.items():
            with pytest.raises(ConfigurationError, match="a space, a line break or a character outside") as caught:
                token_provider(token)
            assert "canary" not in f"{caught.value!r} {caught.value}", what

    def test_empty(self) -> None:
        """An empty token is a mistake of its own."""
        with pytest.raises(ConfigurationError, match=r"^the access token is empty; copy it again"):
            token_provider("")

    @pytest.mark.parametrize(
        ("token", "kind"), [(b"canary", "bytes"), (5, "int"), (Secret("canary"), "Secret"), (["canary"], "list")]
    )
    def test_no_text(self, token: Any, kind: str) -> None:
        """Something else is refused by the name of its class."""
        with pytest.raises(ConfigurationError, match=f"^the access token must be a string, not {kind}$"):
            token_provider(token)

    @given(st.text())
    def test_any_text(self, token: str) -> None:
        """A text is returned as it is if HTTP can carry it in a header; any other is refused."""
        if token and all("!" <= letter <= "~" for letter in token):
            assert check_token(token) == token
        else:
            with pytest.raises(ConfigurationError, match="copy it again"):
                check_token(token)

    @pytest.mark.parametrize("token", ["Bearer canary-token", "bearer  canary", " Bearer\tcanary", "BEARER canary\n"])
    def test_bearer(self, token: str) -> None:
        """A whole header is told from other spaces: the word has to go."""
        with pytest.raises(ConfigurationError, match=r"^the access token begins with the word Bearer") as caught:
            token_provider(token)

        assert "canary" not in str(caught.value)


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


class Vault:
    """A token's source with methods of all kinds."""

    def read(self) -> str:
        return TOKEN

    async def ask(self, name: str = "asana") -> str:
        return f"{name}-token"

    async def __call__(self) -> str:
        return await self.ask()


class TestMistakes:
    def test_what_cannot_be_a_provider(self) -> None:
        """It is told when the session is made, with what to do instead."""

        async def endless() -> AsyncIterator[str]:
            yield TOKEN

        wrong: list[tuple[Any, str]] = [
            (lambda name: name, "token must take 0 positional arguments, async def token"),
            (Vault().read, r"token is not async: make it async def token\(\); .* pass lambda: f\(\)"),
            (functools.partial(Vault().read), "token is not async"),
            (Vault, r"token is the class Vault: pass an instance of it with async def __call__\(\)"),
            (OAuthToken, "token is the class OAuthToken: pass an instance of it"),
            (FixedToken, "token is the class FixedToken: pass an instance of it"),
            (endless, "token contains yield"),
        ]
        for token, problem in wrong:
            with pytest.raises(ConfigurationError, match=f"^{problem}"):
                AsanaSession(token)

    async def test_what_can(self) -> None:
        """Objects, methods, partials, mocks, and what only looks sync, because it returns an awaitable."""
        vault = Vault()
        for token in (
            vault,
            vault.ask,
            functools.partial(vault.ask, "my"),
            lambda: vault.ask("my"),
            AsyncMock(spec=vault),
        ):
            AsanaSession(token)
            assert token_provider(token) is token


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


REQUESTS = [call.request for call in CALLS]
OPERATIONS = [call.request.operation for call in CALLS]
WORDS = "hvs.CAESIJ-vault-token"


class Provider:
    """Returns one token after another, the last one again and again, and counts how often it is asked."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]


class Renewing:
    """Keeps its token until it is told to renew it."""

    def __init__(self, token: str = "old", fresh: Iterable[str] = ("new",)) -> None:
        self.token = token
        self.fresh = cycle(fresh)
        self.renewed: list[str] = []

    async def __call__(self) -> str:
        return self.token

    async def renew(self, rejected: str) -> None:
        self.renewed.append(rejected)
        self.token = next(self.fresh)


class Failing(Provider):
    """Raises one error after another before it returns its token."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(TOKEN)
        self.errors = list(errors)

    async def __call__(self) -> str:
        token = await super().__call__()
        if self.errors:
            raise self.errors.pop(0)
        return token


def asking(
    provider: Callable[[], Awaitable[str]] | str, answer: Answer = good, **options: Any
) -> AbstractAsyncContextManager[tuple[AsanaSession, TimedServer]]:
    """Open a session with a server that accepts any token but ``old``."""

    def check(request: web.BaseRequest) -> Any:
        known = request.headers["Authorization"] != "Bearer old"
        return answer(request) if known else refusal(401)(request)

    return virtual.asking(check, token=provider, **options)


def tokens(server: TimedServer) -> list[str]:
    """Return the tokens that came, in order."""
    return [one.token for one in server.arrivals]


class TestAfter401:
    @pytest.mark.parametrize("request_", REQUESTS, ids=OPERATIONS)
    async def test_a_provider_that_renews(self, request_: Any) -> None:
        """It is told the rejected token once, and the request goes out again at once with the new one."""
        provider = Renewing()
        async with asking(provider) as (asana, server):
            await asana.send(request_)

            assert tokens(server) == ["old", "new"]
            assert provider.renewed == ["old"]
            assert server.time.slept == []

    @pytest.mark.parametrize("request_", REQUESTS, ids=OPERATIONS)
    async def test_a_plain_function(self, request_: Any) -> None:
        """It is asked again, and if it returns another token, the request is sent once more."""
        provider = Provider("old", "new")
        async with asking(provider) as (asana, server):
            await asana.send(request_)

            assert tokens(server) == ["old", "new"]
            assert provider.asked == 2

    @pytest.mark.parametrize("provider", [Provider("old"), Renewing(fresh=["old"])], ids=["plain", "renewing"])
    async def test_the_same_token_again(self, provider: Any) -> None:
        """The 401 is raised as it came: one request, one attempt, and no third question."""
        async with asking(provider) as (asana, server):
            with pytest.raises(NotAuthorizedError, match="after 1 attempt: No, 401") as caught:
                await asana.send(GET.request)

            assert caught.value.attempts == len(server.arrivals) == 1
            assert getattr(provider, "asked", 2) == 2
            assert getattr(provider, "renewed", ["old"]) == ["old"]

    async def test_a_second_401(self) -> None:
        """If the new token is not accepted either, that is the error: nothing is renewed in circles."""
        provider = Renewing()
        async with asking(provider, refusal(401)) as (asana, server):
            with pytest.raises(NotAuthorizedError, match="after 2 attempts"):
                await asana.send(GET.request)

            assert tokens(server) == ["old", "new"]
            assert provider.renewed == ["old"]

    async def test_each_call_anew(self) -> None:
        """What one call could not renew, the next may."""
        provider = Renewing(fresh=["old", "new"])
        async with asking(provider) as (asana, server):
            with pytest.raises(NotAuthorizedError):
                await asana.send(GET.request)
            await asana.send(GET.request)

            assert tokens(server) == ["old", "old", "new"]

    async def test_renewed_once_however_often_it_is_sent(self) -> None:
        """Later attempts of the same call ask for the token, but renew it no more."""
        provider = Renewing()
        async with asking(provider, in_turn(refusal(503), refusal(429, ("Retry-After", "2")), good)) as (asana, server):
            await server.time.run(asana.send(GET.request))

            assert tokens(server) == ["old", "new", "new", "new"]
            assert provider.renewed == ["old"]

    async def test_neither_budget_nor_attempts_are_needed(self) -> None:
        """Another token is no repetition of what failed."""
        async with asking(Renewing(), budget=0, attempts=1, create_attempts=1) as (asana, server):
            await asana.send(CREATE.request)

            assert tokens(server) == ["old", "new"]

    @pytest.mark.parametrize("fixed", ["old", FixedToken("old")], ids=["text", "provider"])
    async def test_a_fixed_token(self, fixed: Any) -> None:
        """There is no other one to ask for."""
        async with asking(fixed) as (asana, server):
            with pytest.raises(NotAuthorizedError, match="after 1 attempt"):
                await asana.send(GET.request)

            assert tokens(server) == ["old"]

    async def test_a_fixed_token_is_asked_once(self) -> None:
        """Nobody asks it again for what it cannot have."""
        asked = []

        class Watched(FixedToken):
            async def __call__(self) -> str:
                asked.append(1)
                return await super().__call__()

        async with asking(Watched("old")) as (asana, _):
            with pytest.raises(NotAuthorizedError):
                await asana.send(GET.request)

        assert asked == [1]

    async def test_a_403_renews_nothing(self) -> None:
        """Only 401 speaks of the token."""
        provider = Renewing("good")
        async with asking(provider, refusal(403)) as (asana, _):
            with pytest.raises(ForbiddenError):
                await asana.send(GET.request)

        assert provider.renewed == []

    async def test_a_delete_that_was_rejected_first(self) -> None:
        """A 401 executed nothing, so the 404 that follows it says that there was no such webhook."""
        async with asking(Renewing(), refusal(404)) as (asana, _):
            with pytest.raises(NotFoundError):
                await asana.send(DELETE.request)

    async def test_a_delete_whose_token_expired_meanwhile(self) -> None:
        """A 401 between a 500 and a 404 does not undo what the first may have done."""
        provider = Renewing("good")
        async with asking(provider, in_turn(refusal(500), refusal(401), refusal(404))) as (asana, server):
            assert await server.time.run(asana.send(DELETE.request)) == [None]

        assert provider.renewed == ["good"]

    @pytest.mark.parametrize("request_", REQUESTS, ids=OPERATIONS)
    async def test_a_renewal_that_fails_for_now(self, request_: Any) -> None:
        """It is tried again by the policy, with the same rejected token; the 401 used up no attempt."""
        troubles: list[Exception] = [ServerError(operation="oauth", status=503)]

        class Flaky(Renewing):
            async def renew(self, rejected: str) -> None:
                if troubles:
                    raise troubles.pop()
                await super().renew(rejected)

        provider = Flaky()
        async with asking(provider) as (asana, server):
            await server.time.run(asana.send(request_))

            assert tokens(server) == ["old", "new"]
            assert provider.renewed == ["old"]


class TestFailing:
    @pytest.mark.parametrize(
        "error",
        [
            ConnectionFailedError(operation="oauth", attempts=1, problem="refused"),
            ServerError(operation="oauth", status=503),
            RateLimitedError(operation="oauth", status=429),
        ],
        ids=lambda one: type(one).__name__,
    )
    async def test_what_may_pass(self, error: Exception) -> None:
        """A provider that cannot reach its server is asked again by the policy, even for a create."""
        provider = Failing(error)
        async with asking(provider) as (asana, server):
            await server.time.run(asana.send(CREATE.request))

            assert (provider.asked, len(server.arrivals), len(server.time.slept)) == (2, 1, 1)

    async def test_what_its_server_asked_for(self) -> None:
        """A provider that was told to wait is not asked before, and nobody else is held up."""
        provider = Failing(RateLimitedError(operation="oauth", status=429, retry_after=7.0))
        async with asking(provider) as (asana, server):
            await server.time.run(asana.send(GET.request), server.time.at(1.0, asana.send(GET.request)))

            assert server.time.slept == [7.0]
            assert [one.at for one in server.arrivals] == [1.0, 7.0]

    async def test_what_does_not_pass(self) -> None:
        """After the last attempt its own error comes out, for it says best what is wrong."""
        provider = Failing(*[ServerError(operation="oauth", status=503)] * 9)
        async with asking(provider) as (asana, server):
            [error] = await server.time.run(asana.send(GET.request))

            assert isinstance(error, ServerError)
            assert error.operation == "oauth"
            assert (provider.asked, server.arrivals) == (4, [])

    async def test_one_error_for_many(self) -> None:
        """A provider that keeps its error does not gather the frames of every call that met it."""
        error = ServerError(operation="oauth", status=503)

        async def provider() -> str:
            raise error

        async with asking(provider, attempts=1) as (asana, server):
            results = await server.time.run(*(asana.send(GET.request) for _ in range(3)))

            assert len({id(one) for one in results}) == 3
            assert all(isinstance(one, ServerError) and one is not error for one in results)

    async def test_a_cancellation_of_its_own(self) -> None:
        """What it awaits was cancelled elsewhere: the call fails, and does not end as if it had been cancelled."""

        async def provider() -> str:
            elsewhere: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            elsewhere.cancel()
            return await elsewhere

        async with asking(provider) as (asana, server):
            [error] = await server.time.run(asana.send(GET.request))

            assert isinstance(error, ConfigurationError)
            assert "the token provider failed with CancelledError" in str(error)

    async def test_what_asks_for_too_much_time(self) -> None:
        """The wait its server asks for would pass the deadline: the error comes at once, and says how long it was."""
        provider = Failing(RateLimitedError(operation="oauth", status=429, retry_after=1000.0))
        async with asking(provider) as (asana, server):
            [error] = await server.time.run(asana.send(GET.request))

            assert isinstance(error, RateLimitedError)
            assert (error.operation, error.retry_after, server.time.slept) == ("oauth", 1000.0, [])

    @pytest.mark.parametrize("error", [LookupError, TimeoutError, OSError, RuntimeError, web.HTTPFound])
    @pytest.mark.parametrize("where", ["asked", "renewing"])
    async def test_anything_else(self, error: type[Exception], where: str) -> None:
        """It fails at once without the provider's words, which may hold the token."""
        provider: Any = Failing(error(WORDS))
        if where == "renewing":
            provider = Renewing()

            async def renew(_: str) -> None:
                raise error(WORDS)

            provider.renew = renew
        async with asking(provider) as (asana, server):
            with pytest.raises(
                ConfigurationError, match=f"^the token provider failed with {error.__name__}$"
            ) as caught:
                await asana.send(GET.request)

            assert len(server.arrivals) == (where == "renewing")
            assert server.time.slept == []
        assert WORDS not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "error",
        [
            ConfigurationError("log in first"),
            TokenRefreshError(operation="oauth", status=400, code="invalid_grant"),
            NotAuthorizedError(operation="oauth", status=401),
        ],
        ids=lambda one: type(one).__name__,
    )
    async def test_our_own_errors(self, error: Exception) -> None:
        """What a provider says in the package's own words comes through as it is, at once."""
        async with asking(Failing(error)) as (asana, server):
            with pytest.raises(type(error)) as caught:
                await asana.send(GET.request)

            assert caught.value is error
            assert server.arrivals == []

    @pytest.mark.parametrize("token", ["", "a b", "a\n", "\u00fc", None, 5, b"bytes"], ids=repr)
    async def test_what_is_no_token(self, token: Any) -> None:
        """What cannot be sent in a header is refused, and does not show."""
        async with asking(Provider(token)) as (asana, server):
            with pytest.raises(ConfigurationError, match=r"^the access token "):
                await asana.send(GET.request)

            assert server.arrivals == []

    async def test_hanging(self) -> None:
        """The deadline bounds the provider too; the error names it, and does not send anyone to look at DNS."""

        async def hang() -> str:
            server.time.now = 0.1
            await asyncio.Event().wait()
            raise AssertionError

        async with asking(hang, timeout=0.1) as (asana, server):
            with pytest.raises(DeadlineExceededError, match="timed out waiting for the token provider after") as caught:
                await asana.send(CREATE.request)

            assert "DNS" not in str(caught.value)
            assert server.arrivals == []

    async def test_hanging_while_it_renews(self) -> None:
        """Asana refused the create, so running out of time then leaves nothing unknown."""

        async def renew(_: str) -> None:
            server.time.now = 60.0
            await asyncio.Event().wait()

        def answer(request: web.BaseRequest) -> Any:
            server.time.now = 59.9
            return refusal(401)(request)

        provider: Any = Renewing("good")
        provider.renew = renew
        async with asking(provider, answer, timeout=60.0) as (asana, server):
            with pytest.raises(DeadlineExceededError, match="timed out waiting for the token provider after"):
                await asana.send(CREATE.request)

            assert len(server.arrivals) == 1
