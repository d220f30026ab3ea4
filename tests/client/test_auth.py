"""Where tokens come from, and which of them can be sent."""

import asyncio
import logging
import pickle
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import attrs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.client import auth
from asana_webhooks.client.auth import FixedToken, OAuthToken, RenewingTokenProvider, check_token, token_provider
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.client.oauth import TokenSet
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    NotAuthorizedError,
    RateLimitedError,
    ResponseError,
    ServerError,
    TokenRefreshError,
    UnexpectedResponseError,
)
from asana_webhooks.models import Secret
from asana_webhooks.testing import FakeAsana, Fault
from asana_webhooks.testing.oauth import AppRecord
from tests.helpers.cancelling import (
    Way,
    cancel_at_every_step,
    cancel_once,
    cancel_thrice,
    fail_a_sibling,
    let_timeout_expire,
)
from tests.helpers.raw import until
from tests.helpers.servers import ScriptedServer, Step, answer, errors, scripted_server

# Shaped like real ones: https://developers.asana.com/docs/personal-access-token
GOOD = ["2/11/22:0123456789abcdef0123456789abcdef", "1/11:0123456789abcdef0123456789abcdef", "0/abc", "eyJ.a-b_c~d+e/="]

GRANTED: dict[str, Any] = {"access_token": "2/11/22:granted", "token_type": "bearer", "expires_in": 3600}

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


def oauth_token(fake: FakeAsana, app: AppRecord, **changes: Any) -> OAuthToken:
    """Return the provider a program would make, on the fake's clock."""
    arguments: dict[str, Any] = {
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "refresh_token": app.refresh_token,
        "token_url": fake.token_url,
        "clock": fake.clock.time,
    }
    return OAuthToken(**(arguments | changes))


def canary_token(url: str, **changes: Any) -> OAuthToken:
    """Return a provider whose every text is easy to find."""
    arguments: dict[str, Any] = {
        "client_id": "12345",
        "client_secret": "canary-client-secret",
        "refresh_token": "canary-refresh-token",
        "token_url": url,
    }
    return OAuthToken(**(arguments | changes))


def shown(error: BaseException) -> str:
    """Return all that logs and error trackers show of *error*: its texts, its chain, and the locals of our frames."""
    texts: list[str] = []
    chain: BaseException | None = error
    while chain is not None:
        texts += [str(chain), repr(chain), repr(vars(chain))]
        for frame, _ in traceback.walk_tb(chain.__traceback__):
            if frame.f_globals["__name__"].startswith("asana_webhooks"):
                texts += [repr(frame.f_locals), *(repr(vars(one)) for one in frame.f_locals.values() if has_vars(one))]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(texts)


def has_vars(value: object) -> bool:
    return hasattr(value, "__dict__")


def client_tasks() -> list["asyncio.Task[Any]"]:
    """Return the tasks that run code of our client."""
    return [task for task in asyncio.all_tasks() if "asana_webhooks/client/" in repr(task.get_coro())]


class Saved(list[TokenSet]):
    """An `on_refresh` that keeps what it gets."""

    async def __call__(self, tokens: TokenSet) -> None:
        self.append(tokens)


class TestOAuthRequest:
    async def test_what_is_sent(self) -> None:
        """One form, as RFC 6749 asks for it, with our name and no credentials in a header."""
        async with scripted_server(answer(200, GRANTED)) as server:
            assert await canary_token(server.url)() == GRANTED["access_token"]

        (seen,) = server.requests
        assert (seen.method, seen.path, seen.query) == ("POST", "/api/1.0", {})
        assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
        assert dict(parse_qsl(seen.body.decode(), strict_parsing=True)) == {
            "grant_type": "refresh_token",
            "client_id": "12345",
            "client_secret": "canary-client-secret",
            "refresh_token": "canary-refresh-token",
        }
        assert seen.headers["user-agent"].startswith("asana-webhooks/")
        assert seen.headers["accept"] == "application/json"
        assert "authorization" not in seen.headers

    async def test_a_token_asana_takes(self) -> None:
        """What the endpoint issues opens the API."""
        async with FakeAsana() as fake:
            token = oauth_token(fake, fake.register_app())
            async with AsanaSession(token, base_url=fake.url) as asana:
                assert [webhook async for webhook in get_webhooks(asana, workspace=fake.workspace)] == []

    async def test_a_lent_session(self) -> None:
        """It is used, and stays open."""
        async with FakeAsana() as fake, aiohttp.ClientSession(headers={"X-Mine": "1"}) as http:
            await oauth_token(fake, fake.register_app(), http=http)()
            assert not http.closed

        assert fake.requests[0].headers["x-mine"] == "1"

    async def test_a_lent_session_that_is_closed(self) -> None:
        """That is the program's mistake."""
        async with FakeAsana() as fake:
            async with aiohttp.ClientSession() as http:
                token = oauth_token(fake, fake.register_app(), http=http)
            with pytest.raises(ConfigurationError, match="a lent http session must be open"):
                await token()

    async def test_through_a_proxy(self) -> None:
        """The request goes where the proxy is."""
        async with scripted_server(answer(200, GRANTED)) as server:
            token = canary_token("http://127.0.0.1:1/-/oauth_token", proxy=f"http://127.0.0.1:{server.port}")
            assert await token() == GRANTED["access_token"]

        assert server.requests[0].path == "/-/oauth_token"

    async def test_tls(self) -> None:
        """A certificate is trusted if the program's context trusts it, and not otherwise."""
        authority = trustme.CA()
        serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(serving)
        authority.configure_trust(trusting)
        scripted = ScriptedServer([answer(200, GRANTED)])
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=serving)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/-/oauth_token"
        async with server:
            with pytest.raises(ConnectionFailedError, match="refreshToken") as caught:
                await canary_token(url)()
            assert scripted.requests == []
            assert await canary_token(url, ssl=trusting)() == GRANTED["access_token"]
            await scripted.stop()

        assert "canary" not in shown(caught.value)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"client_id": 12345}, "client_id must be a text, not int"),
            ({"client_secret": ""}, "client_secret is empty"),
            ({"client_secret": "canary\n"}, "client_secret holds a space, a line break"),
            ({"refresh_token": Secret("canary")}, "refresh_token must be a text, not Secret"),
            ({"access_token": "canary ä"}, "access_token holds a space"),
            ({"expires_at": datetime(2026, 1, 2)}, "expires_at must be a datetime with a time zone"),  # noqa: DTZ001
            ({"expires_at": 1_800_000_000}, "expires_at must be a datetime with a time zone"),
            ({"on_refresh": "save"}, "on_refresh must be an async callable, not str"),
            ({"token_url": "http://app.asana.com/-/oauth_token"}, "token_url must be https"),
            ({"token_url": "https://app.asana.com/-/oauth_token?a=canary"}, "token_url must look like https://app"),
            ({"token_url": "https://me:canary@app.asana.com/"}, "token_url must look like https://app"),
            ({"token_url": 7}, "token_url must look like https://app.asana.com/-/oauth_token"),
            ({"timeout": 0}, "timeout must be a finite number of seconds, above 0"),
            ({"http": "canary"}, r"http must be an aiohttp\.ClientSession, not str"),
            ({"ssl": False}, r"ssl must be an ssl\.SSLContext"),
            ({"proxy": "canary"}, "proxy must be the URL of an HTTP proxy"),
        ],
        ids=repr,
    )
    def test_what_cannot_work(self, changes: dict[str, Any], problem: str) -> None:
        """A mistake shows where it is made, and no secret in it."""
        with pytest.raises(ConfigurationError, match=f"^{problem}") as caught:
            canary_token("https://app.asana.com/-/oauth_token", **changes)

        assert "canary" not in str(caught.value)

    async def test_a_lent_session_with_credentials(self) -> None:
        """Its own login would stand against the client's."""
        with pytest.warns(DeprecationWarning, match="auth"):
            http = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "canary"))
        async with http:
            with pytest.raises(ConfigurationError, match="auth=") as caught:
                canary_token("https://app.asana.com/-/oauth_token", http=http)

        assert "canary" not in str(caught.value)

    async def test_a_lent_session_that_leaves_answers_packed(self) -> None:
        """Its answers could not be read."""
        async with aiohttp.ClientSession(auto_decompress=False) as http:
            with pytest.raises(ConfigurationError, match="auto_decompress=False"):
                canary_token("https://app.asana.com/-/oauth_token", http=http)

    def test_one_loop(self) -> None:
        """A second event loop is told to make its own, with and without a token to refresh."""
        token = canary_token("https://app.asana.com/-/oauth_token", access_token="2/11/22:good")
        assert asyncio.run(token()) == "2/11/22:good"
        for use in (token(), token.renew("2/11/22:good"), token.renew("another")):
            with pytest.raises(ConfigurationError, match="belongs to another event loop; make one in each loop"):
                asyncio.run(use)


class TestOAuthTime:
    async def test_once_for_all_who_wait(self) -> None:
        """Fifty calls that need a token cost one request."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            hold = fake.hold("oauth_token", when="before_answer")
            asking = [asyncio.create_task(token()) for _ in range(50)]
            await hold.reached()
            hold.release()

            assert len(set(await asyncio.gather(*asking))) == 1
            assert (app.refreshes, len(fake.requests)) == (1, 1)

    async def test_again_a_minute_before_it_ends(self) -> None:
        """Until then the same token is given without a request; from then on another one."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            first = await token()
            await fake.advance(3539.9)
            assert (await token(), app.refreshes) == (first, 1)
            await fake.advance(0.1)
            assert await token() != first
            assert app.refreshes == 2
            await fake.advance(3539.9)
            await token()
            assert app.refreshes == 2

    @pytest.mark.parametrize(("left", "refreshes"), [(3600, 0), (60.1, 0), (60, 1), (0, 1), (-1e6, 1)])
    async def test_a_token_of_an_earlier_run(self, left: float, refreshes: int) -> None:
        """It is used as long as it lasts, in whatever time zone its end was saved."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            end = (fake.clock.now() + timedelta(seconds=left)).astimezone(timezone(timedelta(hours=-7)))
            token = oauth_token(fake, app, access_token="2/11/22:old", expires_at=end)

            assert (await token() == "2/11/22:old") is (refreshes == 0)
            assert app.refreshes == refreshes

    async def test_a_token_that_ends_nobody_knows_when(self) -> None:
        """It is used until Asana refuses it."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app, access_token="2/11/22:old")
            await fake.advance(10_000_000)
            assert (await token(), app.refreshes) == ("2/11/22:old", 0)
            await token.renew("2/11/22:old")
            assert await token() != "2/11/22:old"

    async def test_an_end_without_a_token(self) -> None:
        """It is not mistaken for the end of a token there is."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            assert await oauth_token(fake, app, expires_at=datetime.max.replace(tzinfo=UTC))()
            assert app.refreshes == 1

    @pytest.mark.parametrize("status", [503, 429, 400, 404])
    async def test_the_last_minute(self, status: int) -> None:
        """While a token is good, trouble at the endpoint stops nobody; after that it does."""
        async with FakeAsana() as fake:
            token = oauth_token(fake, fake.register_app())
            first = await token()
            fake.script(Fault(at="oauth_token", status=status, times=None))
            await fake.advance(3599.9)
            assert await token() == first
            await fake.advance(0.1)
            with pytest.raises(ResponseError) as caught:
                await token()
            assert caught.value.status == status


class TestOAuthRenew:
    async def test_only_the_first_has_something_to_do(self) -> None:
        """Fifty calls that were refused the same token cause one refresh, together or one after another."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            first = await token()
            hold = fake.hold("oauth_token")
            renewing = [asyncio.create_task(token.renew(first)) for _ in range(50)]
            await hold.reached()
            hold.release()
            await asyncio.gather(*renewing)
            await token.renew(first)

            assert await token() != first
            assert app.refreshes == 2

    async def test_of_something_else(self) -> None:
        """A token that is not in use needs no renewal, nor does one before there is any."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            await token.renew("2/11/22:older")
            assert app.refreshes == 0
            await token()
            await token.renew("2/11/22:older")
            assert app.refreshes == 1

    async def test_its_failure(self) -> None:
        """A refusal is raised although the token has time left: Asana does not take it any more."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            first = await token()
            app.refresh_token = "withdrawn"
            with pytest.raises(TokenRefreshError, match="invalid_grant") as caught:
                await token.renew(first)

        for secret in (first, app.client_secret):
            assert secret not in shown(caught.value)

    def test_is_the_documented_protocol(self) -> None:
        """Type checkers take it where a renewing provider is wanted."""
        provider: RenewingTokenProvider = canary_token("https://app.asana.com/-/oauth_token")

        assert token_provider(provider) is provider


class TestOnRefresh:
    async def test_gets_what_a_restart_needs(self) -> None:
        """With the tokens that were saved, the next run of the program goes on without a refresh."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            saved = Saved()
            first = await oauth_token(fake, app, on_refresh=saved)()
            (tokens,) = saved
            assert tokens.expires_at == fake.clock.now() + timedelta(hours=1)
            assert tokens.refresh_token.reveal() == app.refresh_token
            again = oauth_token(
                fake,
                app,
                refresh_token=tokens.refresh_token.reveal(),
                access_token=tokens.access_token.reveal(),
                expires_at=tokens.expires_at,
            )

            assert (await again(), app.refreshes) == (first, 1)

    async def test_a_rotated_refresh_token(self) -> None:
        """The new one is saved, and used for the next refresh."""
        async with FakeAsana() as fake:
            app = fake.register_app(rotate=True)
            saved = Saved()
            token = oauth_token(fake, app, on_refresh=saved)
            for _ in range(3):
                await token.renew(await token())

            assert app.refreshes == len({one.refresh_token for one in saved}) == 4
            assert saved[-1].refresh_token.reveal() == app.refresh_token

    async def test_before_the_token_is_used(self) -> None:
        """No call has the token before it is saved."""
        async with FakeAsana() as fake:
            entered, go = asyncio.Event(), asyncio.Event()

            async def save(_: TokenSet) -> None:
                entered.set()
                await go.wait()

            asking = asyncio.create_task(oauth_token(fake, fake.register_app(), on_refresh=save)())
            await entered.wait()
            assert not asking.done()
            go.set()
            assert await asking

    async def test_before_the_token_is_used_by_anybody(self) -> None:
        """A call that comes while the new tokens are being saved waits for that too."""
        async with FakeAsana() as fake:
            entered, go = asyncio.Event(), asyncio.Event()

            async def save(_: TokenSet) -> None:
                entered.set()
                await go.wait()

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            first = asyncio.create_task(token())
            await entered.wait()
            second = asyncio.create_task(token())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not second.done()
            go.set()
            assert await first == await second

    async def test_may_use_the_token(self) -> None:
        """A hook that asks Asana who the user is does not wait for itself."""
        async with FakeAsana() as fake:
            used: list[str] = []

            async def save(_: TokenSet) -> None:
                used.append(await token())

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            assert [await token()] == used

    async def test_what_a_hook_leaves_behind_is_a_caller_like_any_other(self) -> None:
        """A task that outlives the hook gets a good token, too, when the one that was saved has ended."""
        async with FakeAsana() as fake:
            late: list[asyncio.Task[str]] = []
            go = asyncio.Event()

            async def ask() -> str:
                await go.wait()
                return await token()

            async def save(_: TokenSet) -> None:
                late.append(asyncio.create_task(ask()))

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            first = await token()
            await fake.advance(3600)
            go.set()

            assert await late[0] != first
            await asyncio.gather(*late)

    async def test_everybody_who_renews_gets_an_error_of_his_own(self) -> None:
        """One object in many tasks would gather all their frames."""
        async with FakeAsana() as fake:
            token = oauth_token(fake, fake.register_app())
            rejected = await token()
            fake.script(Fault(at="oauth_token", status=503))
            renewing = [asyncio.create_task(token.renew(rejected)) for _ in range(3)]
            failed = await asyncio.gather(*renewing, return_exceptions=True)

            assert [type(one) for one in failed] == [ServerError] * 3
            assert len({id(one) for one in failed}) == 3

    @pytest.mark.parametrize("times", [0, 1])
    async def test_may_call_asana(self, times: int) -> None:
        """Also in tasks of its own, and though Asana refuses the new token: nothing waits for itself."""
        async with FakeAsana(webhooks=1) as fake:
            came: list[int | type[AsanaError]] = []

            async def call() -> None:
                try:
                    came.append(await count_webhooks(asana))
                except AsanaError as error:
                    came.append(type(error))

            async def save(_: TokenSet) -> None:
                if came:
                    return
                await call()
                await asyncio.wait_for(call(), 3)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(call())

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            async with AsanaSession(token, base_url=fake.url) as asana:
                fake.script(*[Fault(at="getWebhooks", status=401, times=3)] * times)
                assert await count_webhooks(asana) == 1

            assert came == ([1, 1, 1] if not times else [NotAuthorizedError] * 3)

    async def test_failing(self, caplog: pytest.LogCaptureFixture) -> None:
        """The call goes on with the new token; the log says that it was not saved, and not why: that may be secret."""
        async with FakeAsana() as fake:

            async def save(tokens: TokenSet) -> None:
                raise OSError(tokens.access_token.reveal())

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            first = await token()
            assert await token() == first

        assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
            ("WARNING", "on_refresh failed with OSError: the new tokens are not saved")
        ]
        assert first not in caplog.text

    async def test_hanging(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has its time, and no more; then it is cancelled."""
        monkeypatch.setattr(auth, "_HOOK_TIMEOUT", 0.05)
        ended: list[str] = []

        async def save(_: TokenSet) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        async with FakeAsana() as fake:
            assert await oauth_token(fake, fake.register_app(), on_refresh=save)()

        assert ended == ["cancelled"]
        assert "on_refresh failed with TimeoutError" in caplog.text


class TestOldTokens:
    @pytest.mark.parametrize("trouble", ["hang", errors(503, "no")])
    async def test_a_good_one_is_given_out_while_the_endpoint_is_in_trouble(self, trouble: Step) -> None:
        """In its last minute one call in ten seconds tries; the others, and those behind it, get the old token."""
        now = [1_000_000.0]
        async with scripted_server(trouble) as server:
            token = OAuthToken(
                client_id="7",
                client_secret="secret",
                refresh_token="refresh",
                access_token="still-good",
                expires_at=datetime.fromtimestamp(now[0] + 50, UTC),
                token_url=server.url,
                clock=lambda: now[0],
            )
            first = asyncio.create_task(token())
            await server.got_request.wait()
            assert [await token() for _ in range(5)] == ["still-good"] * 5
            if trouble == "hang":
                first.cancel()
                await asyncio.wait({first})
            else:
                assert await first == "still-good"
            assert await token() == "still-good"
            assert len(server.requests) == 1
            now[0] += 11
            again = asyncio.create_task(token())
            await until(lambda: len(server.requests) == 2)
            again.cancel()
            await asyncio.wait({again})

    async def test_an_endpoint_that_hangs_holds_one_call_at_a_time(self) -> None:
        """While the old token is good the first call waits until the refresh fails, and those after it not at all."""
        now = [1_000_000.0]
        async with scripted_server("hang") as server:
            token = OAuthToken(
                client_id="7",
                client_secret="secret",
                refresh_token="refresh",
                access_token="still-good",
                expires_at=datetime.fromtimestamp(now[0] + 50, UTC),
                token_url=server.url,
                timeout=0.05,
                clock=lambda: now[0],
            )
            first = asyncio.create_task(token())
            await server.got_request.wait()
            now[0] += 11  # it fails so much later than it began
            assert await first == "still-good"
            assert [await token() for _ in range(3)] == ["still-good"] * 3
            assert len(server.requests) == 1

    async def test_unsaved_ones_are_saved_though_they_are_about_to_end(self) -> None:
        """The refresh token is what matters; the endpoint is in trouble, and is not asked with every call."""
        now = [1_000_000.0]
        entered, saved = asyncio.Event(), Saved()
        grant = answer(200, GRANTED | {"expires_in": 100, "refresh_token": "rotated"})
        async with scripted_server(grant, errors(503, "no")) as server:

            async def save(tokens: TokenSet) -> None:
                if not entered.is_set():
                    entered.set()
                    await asyncio.Event().wait()
                await saved(tokens)

            token = OAuthToken(
                client_id="7",
                client_secret="secret",
                refresh_token="refresh",
                token_url=server.url,
                on_refresh=save,
                clock=lambda: now[0],
            )
            first = asyncio.create_task(token())
            await entered.wait()
            first.cancel()
            await asyncio.wait({first})
            now[0] += 60
            assert {await token() for _ in range(5)} == {GRANTED["access_token"]}

            assert [one.refresh_token.reveal() for one in saved] == ["rotated"]
            assert len(server.requests) == 2

    async def test_short_lived_ones_are_not_refreshed_at_every_turn(self) -> None:
        """A lifetime below the margin leaves half of it to use."""
        now = [1_000_000.0]
        async with scripted_server(answer(200, GRANTED | {"expires_in": 40})) as server:
            token = OAuthToken(
                client_id="7",
                client_secret="secret",
                refresh_token="refresh",
                token_url=server.url,
                clock=lambda: now[0],
            )
            for _ in range(2):
                await token()
                now[0] += 15
            assert len(server.requests) == 1
            now[0] += 1
            await token()
            assert len(server.requests) == 2


class TestOAuthCancelled:
    @pytest.mark.parametrize("rotate", [False, True])
    async def test_the_first_leaves_it_to_the_others(self, rotate: bool) -> None:
        """One request is enough for all, even if who began it is cancelled."""
        async with FakeAsana() as fake:
            app = fake.register_app(rotate=rotate)
            token = oauth_token(fake, app)
            hold = fake.hold("oauth_token", when="before_answer")
            first, *others = [asyncio.create_task(token()) for _ in range(3)]
            await hold.reached()
            first.cancel()
            await asyncio.wait({first})
            hold.release()

            assert first.cancelled()
            assert len(set(await asyncio.gather(*others))) == 1
            assert (app.refreshes, len(fake.requests)) == (1, 1)

    async def test_the_last_drops_it(self) -> None:
        """Nobody waits: the connection is closed at once and nothing runs on."""
        async with scripted_server("hang", answer(200, GRANTED)) as server:
            token = canary_token(server.url)
            asking = asyncio.create_task(token())
            await server.got_request.wait()
            asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled()
            await server.gone.wait()
            assert client_tasks() == []
            assert await token() == GRANTED["access_token"]

    async def test_what_was_answered_is_kept(self) -> None:
        """A hook ends at once with the only caller who waits, and gets the same tokens again before they are used."""
        async with FakeAsana() as fake:
            app = fake.register_app(rotate=True)
            entered, go = asyncio.Event(), asyncio.Event()
            saved: list[TokenSet] = []

            async def save(tokens: TokenSet) -> None:
                entered.set()
                await go.wait()
                saved.append(tokens)

            token = oauth_token(fake, app, on_refresh=save)
            asking = asyncio.create_task(token())
            await entered.wait()
            asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled()
            assert (saved, client_tasks()) == ([], [])
            go.set()
            await token()

            assert [one.refresh_token.reveal() for one in saved] == [app.refresh_token]
            assert await token() == saved[0].access_token.reveal()
            assert app.refreshes == 1

    async def test_a_hook_that_hangs_holds_nobody_beyond_the_deadline(self) -> None:
        """A call ends in its time although the new tokens cannot be saved; the next one tries to save them again."""
        async with FakeAsana() as fake:
            entered: list[TokenSet] = []

            async def save(tokens: TokenSet) -> None:
                entered.append(tokens)
                await asyncio.Event().wait()

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            async with AsanaSession(token, base_url=fake.url, timeout=0.2) as asana:
                began = asyncio.get_running_loop().time()
                for _ in range(2):
                    with pytest.raises(DeadlineExceededError, match="token provider"):
                        await count_webhooks(asana)
                assert asyncio.get_running_loop().time() - began < 3
                assert entered[0] is entered[1]
                token._save_until = 0.0  # as if its five seconds were over
                assert await count_webhooks(asana) == 0

            assert client_tasks() == []

    async def test_a_hook_that_cancels_itself(self, caplog: pytest.LogCaptureFixture) -> None:
        """It has failed like any other, and nobody is cancelled."""
        async with FakeAsana() as fake:
            entered: list[TokenSet] = []

            async def save(tokens: TokenSet) -> None:
                entered.append(tokens)
                raise asyncio.CancelledError

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            assert await token() == await token()

        assert len(entered) == 1
        assert "on_refresh failed with CancelledError" in caplog.text

    async def test_renewal_of_a_token_that_was_never_saved(self) -> None:
        """A token that Asana refuses is replaced and not just saved."""
        async with FakeAsana() as fake:
            app, entered = fake.register_app(), asyncio.Event()
            saved = Saved()

            async def save(tokens: TokenSet) -> None:
                if not entered.is_set():
                    entered.set()
                    await asyncio.Event().wait()
                await saved(tokens)

            token = oauth_token(fake, app, on_refresh=save)
            asking = asyncio.create_task(token())
            await entered.wait()
            asking.cancel()
            await asyncio.wait({asking})
            first = token._access_token.reveal()
            await token.renew(first)

            assert await token() != first
            assert [one.access_token.reveal() for one in saved] == [first, await token()]
            assert app.refreshes == 2

    async def test_while_the_connection_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tokens are kept and saved before the connection is closed, so nothing can come between."""
        closing = asyncio.Event()
        close = aiohttp.ClientSession.close

        async def close_slowly(http: aiohttp.ClientSession) -> None:
            await close(http)
            closing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(aiohttp.ClientSession, "close", close_slowly)
        async with FakeAsana() as fake:
            app = fake.register_app(rotate=True)
            saved = Saved()
            token = oauth_token(fake, app, on_refresh=saved)
            asking = asyncio.create_task(token())
            await closing.wait()
            asking.cancel()
            await asyncio.wait({asking})

            assert asking.cancelled()
            monkeypatch.undo()
            assert [one.access_token.reveal() for one in saved] == [await token()]

    @pytest.mark.parametrize("way", [cancel_once, cancel_thrice, let_timeout_expire, fail_a_sibling])
    async def test_at_every_step(self, way: Way) -> None:
        """Wherever it is interrupted, the tokens in use are the saved ones, no task is left, and it goes on."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            saved = Saved()
            tokens: list[OAuthToken] = []

            async def play() -> None:
                saved.clear()
                tokens.append(oauth_token(fake, app, on_refresh=saved))
                await tokens[-1]()

            async def check() -> None:
                assert client_tasks() == []
                if tokens:
                    kept = len(saved)
                    assert await tokens[-1]() == saved[-1].access_token.reveal()
                    assert len(saved) == (kept or 1)

            assert await cancel_at_every_step(play, check, way=way) >= 10


TROUBLE: dict[str, tuple[Step, type[AsanaError], str]] = {
    "hang": ("hang", ConnectionFailedError, "the token endpoint did not answer within 0.5 seconds"),
    "reset": ("reset", ConnectionFailedError, "the connection was reset"),
    "close": ("close", ConnectionFailedError, "the connection was closed before an answer came"),
    "no HTTP": (b"canary-secret\r\n\r\n", ConnectionFailedError, "refreshToken"),
    "429": (answer(429, {}, headers={"Retry-After": "30"}), RateLimitedError, "Asana asked to wait 30 seconds"),
    "500": (errors(500, "Server Error"), ServerError, "Asana answered 500"),
    "503": (answer(503, b"<html>", headers={"Retry-After": "5"}), ServerError, "Asana asked to wait 5 seconds"),
    "redirect": (answer(307, b"", headers={"Location": "/elsewhere"}), UnexpectedResponseError, "it is a redirect"),
    "HTML": (answer(200, b"<html>canary</html>", content_type="text/html"), UnexpectedResponseError, "not JSON"),
    "empty": (answer(200, b""), UnexpectedResponseError, "not JSON, or cut off"),
    "wrong type": (answer(200, {"access_token": 5}), UnexpectedResponseError, r"\$\.access_token"),
    "cut off": (answer(200, {"access_token": "canary"}, length=500), UnexpectedResponseError, "not JSON, or cut off"),
    "too long": (answer(200, {"a": "b" * 70_000}), UnexpectedResponseError, "not JSON, or cut off"),
    "lifetime as text": (answer(200, GRANTED | {"expires_in": "3600"}), UnexpectedResponseError, r"\$\.expires_in"),
    "no lifetime left": (answer(200, GRANTED | {"expires_in": -1}), UnexpectedResponseError, r"\$\.expires_in"),
    "other envelope": (errors(400, "Bad request"), UnexpectedResponseError, "error"),
    "refusal": (answer(400, {"error": "invalid_grant"}), TokenRefreshError, "invalid_grant"),
    "echo": (answer(401, {"error": "canary-refresh-token"}), TokenRefreshError, r"\*\*\*"),
}


class TestOAuthTrouble:
    @pytest.mark.parametrize("case", TROUBLE)
    async def test_kind(self, case: str, caplog: pytest.LogCaptureFixture) -> None:
        """Each trouble is one of our errors, says what was wrong, and shows no secret anywhere; it is sent once."""
        step, kind, problem = TROUBLE[case]
        caplog.set_level(logging.DEBUG)
        async with scripted_server(step) as server:
            token = canary_token(server.url, timeout=0.5 if step == "hang" else 50.0)
            with pytest.raises(kind, match=problem) as caught:
                await token()
            assert len(server.requests) == 1
            assert client_tasks() == []

        assert type(caught.value) is kind
        assert vars(caught.value)["operation"] == "refreshToken"
        assert "canary" not in shown(caught.value)
        assert "canary" not in caplog.text

    async def test_then_it_works(self) -> None:
        """Trouble is not remembered."""
        async with scripted_server("reset", answer(400, {"error": "invalid_grant"}), answer(200, GRANTED)) as server:
            token = canary_token(server.url)
            for kind in (ConnectionFailedError, TokenRefreshError):
                with pytest.raises(kind):
                    await token()
            assert await token() == GRANTED["access_token"]

    async def test_nobody_listens(self) -> None:
        """A refused connection names host and port."""
        async with scripted_server("close") as server:
            token = canary_token(server.url)
        with pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{server.port}") as caught:
            await token()

        assert "canary" not in shown(caught.value)

    async def test_everyone_gets_an_error_of_their_own(self) -> None:
        """One request for all who wait; what each raises is not changed by the others' tracebacks."""
        async with scripted_server("hang") as server:
            token = canary_token(server.url, timeout=0.5)
            failures = await asyncio.gather(*(token() for _ in range(3)), return_exceptions=True)
            assert len(server.requests) == 1

        assert [type(one) for one in failures] == [ConnectionFailedError] * 3
        assert len({id(one) for one in failures}) == 3

    def test_hides_its_secrets(self) -> None:
        """Neither repr nor attributes show them, and there is no way to pickle them."""
        token = canary_token("https://app.asana.com/-/oauth_token", access_token="canary-access-token")
        for text in (repr(token), repr(vars(token))):
            assert "canary" not in text
        with pytest.raises(TypeError):
            pickle.dumps(token)

    def test_token_sets_hide_theirs(self) -> None:
        """What a hook gets can be logged by mistake."""
        tokens = TokenSet(access_token=Secret("canary"), refresh_token=Secret("canary"), expires_at=datetime.now(UTC))
        for text in (repr(tokens), str(tokens), repr(attrs.asdict(tokens))):
            assert "canary" not in text
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(tokens)


@asynccontextmanager
async def oauth_session(**changes: Any) -> AsyncIterator[tuple[FakeAsana, AppRecord, AsanaSession]]:
    """Open a session that refreshes its token at the fake; waits between attempts take no time."""

    async def no_wait(_: float) -> None:
        await asyncio.sleep(0)

    async with FakeAsana(webhooks=1) as fake:
        app = fake.register_app()
        arguments: dict[str, Any] = {"retry": RetryPolicy(sleep=no_wait)}
        async with AsanaSession(oauth_token(fake, app), base_url=fake.url, **(arguments | changes)) as asana:
            yield fake, app, asana


async def count_webhooks(asana: AsanaSession) -> int:
    return len([webhook async for webhook in get_webhooks(asana, workspace="1331")])


class TestOAuthSession:
    async def test_refused_once(self) -> None:
        """After a 401 the call is sent again with a new token; many calls at once cause one refresh."""
        async with oauth_session() as (fake, app, asana):
            assert await count_webhooks(asana) == 1
            fake.revoke_token(await current(asana))
            assert await asyncio.gather(*(count_webhooks(asana) for _ in range(20))) == [1] * 20
            assert app.refreshes == 2

    async def test_refused_for_good(self) -> None:
        """If Asana refuses the new token too, the 401 stands: one refresh, and no circle."""
        async with oauth_session() as (fake, app, asana):
            fake.script(Fault(at="getWebhooks", status=401, times=None))
            with pytest.raises(NotAuthorizedError, match="Not Authorized") as caught:
                await count_webhooks(asana)
            assert caught.value.operation == "getWebhooks"
            assert app.refreshes == 2
            assert [one.operation for one in fake.requests] == ["oauth_token", "getWebhooks"] * 2

    async def test_before_it_ends(self) -> None:
        """A session never sends a token that has ended."""
        async with oauth_session() as (fake, app, asana):
            for _ in range(3):
                assert await count_webhooks(asana) == 1
                await fake.advance(3600)
            assert app.refreshes == 3
            assert {one.status for one in fake.requests} == {200}

    async def test_authorization_withdrawn(self) -> None:
        """The user's withdrawal ends the call at once, with what to do about it."""
        async with oauth_session() as (fake, app, asana):
            app.refresh_token = "withdrawn"
            with pytest.raises(TokenRefreshError, match="Let the user authorize the app again"):
                await count_webhooks(asana)
            assert len(fake.requests) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(at="oauth_token", do="reset"),
            Fault(at="oauth_token", do="lose_answer"),
            Fault(at="oauth_token", status=503),
            Fault(at="oauth_token", status=429),
        ],
        ids=lambda fault: f"{fault.do} {fault.status}",
    )
    async def test_trouble_that_passes(self, fault: Fault) -> None:
        """The session asks again by its policy."""
        async with oauth_session() as (fake, _, asana):
            fake.script(fault)
            assert await count_webhooks(asana) == 1
            assert [one.operation for one in fake.requests] == ["oauth_token", "oauth_token", "getWebhooks"]

    async def test_trouble_that_stays(self) -> None:
        """The error is that of the endpoint."""
        async with oauth_session() as (fake, _, asana):
            fake.script(Fault(at="oauth_token", status=503, times=None))
            with pytest.raises(ServerError, match="refreshToken: Asana answered 503"):
                await count_webhooks(asana)

    async def test_deadline(self) -> None:
        """An endpoint that hangs holds no call longer than its own time, and nothing is left of it."""
        async with oauth_session(timeout=0.2) as (fake, _, asana):
            hold = fake.hold("oauth_token")
            with pytest.raises(DeadlineExceededError, match="no token"):
                await count_webhooks(asana)
            assert client_tasks() == []
            hold.release()


async def current(asana: AsanaSession) -> str:
    """Return the access token a session uses now."""
    return await asana._token()
