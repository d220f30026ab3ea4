"""OAuth 2: what is sent and answered, when a token is replaced, and what becomes of a refresh under way."""

import asyncio
import gc
import json
import logging
import pickle
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import attrs
import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from asana_webhooks.client import oauth
from asana_webhooks.client.auth import RenewingTokenProvider, token_provider
from asana_webhooks.client.oauth import OAuthToken
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.client.token_endpoint import RefreshRequest, TokenSet
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
from tests.helpers.cancelling import Way, cancel_at_every_step, cancel_once, let_timeout_expire, pass_turns
from tests.helpers.raw import until
from tests.helpers.servers import ScriptedServer, Step, answer, errors, scripted_server
from tests.helpers.tokens import oauth_token
from tests.helpers.virtual import jumping_clock
from tests.subscriptions.scenes import LoopClock

TOKEN_URL = "https://app.asana.com/-/oauth_token"
GRANTED: dict[str, Any] = {"access_token": "2/11/22:granted", "token_type": "bearer", "expires_in": 3600}


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
    """Return the texts and attributes of *error* and of all errors behind it."""
    texts: list[str] = []
    chain: BaseException | None = error
    while chain is not None:
        texts += [str(chain), repr(chain), repr(vars(chain))]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(texts)


def refreshing() -> list["asyncio.Task[Any]"]:
    """Return the tasks that refresh a token."""
    return [task for task in asyncio.all_tasks() if "_refresh_once" in repr(task.get_coro())]


class Saved(list[TokenSet]):
    """An `on_refresh` that keeps what it gets."""

    async def __call__(self, tokens: TokenSet) -> None:
        self.append(tokens)


class SlowlySaved(Saved):
    """One that waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, tokens: TokenSet) -> None:
        self.entered.set()
        await self.go.wait()
        self.append(tokens)


class TestRequest:
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

    async def test_a_lent_session(self) -> None:
        """It is used, and stays open; once it is closed, that is the program's mistake."""
        async with FakeAsana() as fake:
            async with aiohttp.ClientSession(headers={"X-Mine": "1"}) as http:
                token = oauth_token(fake, fake.register_app(), http=http)
                first = await token()
                assert not http.closed
            with pytest.raises(ConfigurationError, match="the session passed as http= must be open"):
                await token.renew(first)

        assert fake.requests[0].headers["x-mine"] == "1"

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

    async def test_what_cannot_work(self) -> None:
        """A mistake shows where it is made, and no secret in it."""
        with pytest.warns(DeprecationWarning, match="auth"):
            with_login = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "canary"))
        async with with_login, aiohttp.ClientSession(auto_decompress=False) as packed:
            wrong: list[tuple[dict[str, Any], str]] = [
                ({"client_id": 12345}, "client_id must be a string, not int"),
                ({"client_secret": ""}, "client_secret is empty"),
                ({"client_secret": "canary\n"}, "client_secret has a space, a line break"),
                ({"refresh_token": Secret("canary")}, "refresh_token must be a string, not Secret"),
                ({"access_token": "canary ä"}, "access_token has a space"),
                ({"expires_at": datetime(2026, 1, 2)}, "expires_at must be a datetime with a time zone"),  # noqa: DTZ001
                ({"expires_at": 1_800_000_000}, "expires_at must be a datetime with a time zone"),
                ({"on_refresh": "save"}, "on_refresh must be a coroutine function, async def"),
                ({"on_refresh": lambda: None}, "on_refresh must take 1 positional argument"),
                ({"load": {}}, r"load must be a coroutine function, async def load\(\), not dict"),
                ({"load": shown}, "load is not async"),
                ({"token_url": "http://app.asana.com/-/oauth_token"}, "token_url must be https"),
                ({"token_url": "https://app.asana.com/-/oauth_token?a=canary"}, "token_url must look like https://app"),
                ({"token_url": "https://me:canary@app.asana.com/"}, "token_url must look like https://app"),
                ({"token_url": 7}, "token_url must look like https://app.asana.com/-/oauth_token"),
                ({"timeout": 0}, "timeout must be a finite number of seconds, above 0"),
                ({"http": "canary"}, r"http must be an aiohttp\.ClientSession, not str"),
                ({"http": with_login}, "the session passed as http= has auth="),
                ({"http": packed}, "the session passed as http= has auto_decompress=False"),
                ({"ssl": False}, r"ssl must be an ssl\.SSLContext"),
                ({"proxy": "canary"}, "proxy must be the URL of an HTTP proxy"),
            ]
            for changes, problem in wrong:
                with pytest.raises(ConfigurationError, match=f"^{problem}") as caught:
                    canary_token(TOKEN_URL, **changes)
                assert "canary" not in str(caught.value)

    def test_secrets_do_not_show(self) -> None:
        """Neither repr, attributes nor a dump show them, and there is no way to pickle them."""
        token = canary_token(TOKEN_URL, access_token="canary-access-token")
        tokens = TokenSet(access_token=Secret("canary"), refresh_token=Secret("canary"), expires_at=datetime.now(UTC))
        for text in (repr(token), repr(vars(token)), repr(tokens), str(tokens), repr(attrs.asdict(tokens))):
            assert "canary" not in text
        for one in (token, tokens):
            with pytest.raises(TypeError):
                pickle.dumps(one)


SENT_AT = 1_800_000_000.0
SENT = datetime.fromtimestamp(SENT_AT, UTC)
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


def error_of(status: int, body: bytes | None, *, retry_after: float | None = None) -> Any:
    outcome = REQUEST.answer(status, body, retry_after=retry_after)
    assert isinstance(outcome, ResponseError)
    assert (outcome.operation, outcome.status, outcome.attempts) == ("refreshToken", status, 1)
    assert "canary" not in f"{outcome} {outcome!r} {REQUEST!r}"
    return outcome


class TestAnswer:
    def test_refresh_token(self) -> None:
        """Asana sends none with a refresh, and the one that was used is kept; a rotated one takes its place."""
        assert tokens_of(GRANTED) == TokenSet(
            access_token=Secret("2/11/22:granted"),
            refresh_token=REQUEST.refresh_token,
            expires_at=SENT + timedelta(seconds=3600),
        )
        assert tokens_of(GRANTED | {"refresh_token": "2/11/23:next"}).refresh_token == Secret("2/11/23:next")

    def test_lifetime(self) -> None:
        """It counts from the sending; unsaid it is Asana's hour, and none is longer than a year."""
        year = 365 * 86400
        for said, lasts in (({}, 3600), (None, 3600), (7200, 7200), (0.5, 0.5), (year + 1, year), (1e300, year)):
            members = said if isinstance(said, dict) else {"expires_in": said}
            expires_at = tokens_of({"access_token": "2/11/22:new"} | members).expires_at
            assert (expires_at - SENT, expires_at.utcoffset()) == (timedelta(seconds=lasts), timedelta(0))

    def test_what_is_of_no_use(self) -> None:
        """A token that ended before it came, or that no header takes, is found here."""
        for seconds in (0, -1, -0.5, -(10**30)):
            error = error_of(200, json.dumps(GRANTED | {"expires_in": seconds}).encode())
            assert error.problem == "the access token has expired already @ $.expires_in"
        for name, token in (("access_token", "canary\n"), ("refresh_token", "canary x"), ("access_token", "")):
            error = error_of(200, json.dumps(GRANTED | {name: token}).encode())
            assert error.problem == "a token is empty or has a character that cannot be sent @ $"

    def test_refused(self) -> None:
        """OAuth's code and sentence are in the error, with what to do; without them the text stays readable."""
        body = b'{"error":"invalid_grant","error_description":"The `refresh_token` provided was invalid."}'
        for status in (400, 401, 403):
            error = error_of(status, body)
            assert type(error) is TokenRefreshError
            assert (error.code, error.messages) == ("invalid_grant", ("The `refresh_token` provided was invalid.",))
            assert "Let the user authorize the app again" in str(error)
        assert (error_of(400, b'{"error":""}').code, error_of(400, b'{"error":"x"}').messages) == ("no code", ())

    def test_echoes_are_cut_out(self) -> None:
        """An endpoint that repeats what it got, or sends line breaks, does not get it into our logs."""
        echo = "got canary-client-secret\nand canary-refresh-token" + "x" * 1000
        error = error_of(400, json.dumps({"error": echo, "error_description": echo}).encode())

        for text in (str(error), repr(error)):
            assert "\n" not in text
            assert len(text) < 1500

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
            (200, b'{"access_token":"a","expires_in":"3600"}'),
            (204, b""),
            (400, b"<html>"),
            (401, b'{"errors":[{"message":"Not Authorized"}]}'),
            (307, b'{"access_token":"a"}'),
            (600, b'{"error":"invalid_grant"}'),
        ],
        ids=str,
    )
    def test_unusable(self, status: int, body: bytes | None) -> None:
        """Whatever is neither tokens nor a refusal names its status and what is wrong."""
        error = error_of(status, body)

        assert type(error) is UnexpectedResponseError
        assert error.problem
        assert ("redirect" in error.problem) is (status == 307)  # it could carry the client's secret away

    def test_trouble_that_passes(self) -> None:
        """429 and 5xx are told by their status, whatever stands in them; Retry-After is kept."""
        for body in (None, b"", b"<html>", b'{"errors":[]}', b'{"error":"temporarily_unavailable"}'):
            for status in (429, 500, 502, 503, 599):
                error = error_of(status, body, retry_after=1.5)
                kind = RateLimitedError if status == 429 else ServerError
                assert (type(error), error.retry_after) == (kind, 1.5)

    @example(200, b'{"access_token":"1/2:3","expires_in":1e9}')
    @example(400, b'{"error":"invalid_grant"}')
    @given(
        st.sampled_from([200, 400]) | st.integers(100, 999),
        st.binary(max_size=100)
        | st.fixed_dictionaries(
            {},
            optional={
                name: st.none() | st.booleans() | st.text(max_size=5) | st.integers() | st.floats(allow_nan=False)
                for name in ("access_token", "refresh_token", "expires_in", "error", "error_description")
            },
        ).map(lambda tree: json.dumps(tree).encode()),
    )
    def test_anything(self, status: int, body: bytes) -> None:
        """Whatever comes, it is one of our errors, or tokens that can be sent and end in the future."""
        outcome = REQUEST.answer(status, body)

        if isinstance(outcome, TokenSet):
            assert outcome.access_token.reveal().isascii()
            assert SENT < outcome.expires_at <= SENT + timedelta(days=365)
        else:
            assert isinstance(outcome, ResponseError)


class TestTime:
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

    @pytest.mark.parametrize(("left", "refreshes"), [(3600, 0), (60.1, 0), (60, 1), (0, 1), (-1e6, 1)])
    async def test_a_token_of_an_earlier_run(self, left: float, refreshes: int) -> None:
        """It is used as long as it lasts, in whatever time zone its end was saved."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            end = (fake.clock.now() + timedelta(seconds=left)).astimezone(timezone(timedelta(hours=-7)))
            token = oauth_token(fake, app, access_token="2/11/22:old", expires_at=end)

            assert (await token() == "2/11/22:old") is (refreshes == 0)
            assert app.refreshes == refreshes

    async def test_one_without_the_other(self) -> None:
        """A token that ends nobody knows when is used until Asana refuses it; an end without a token is none."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app, access_token="2/11/22:old")
            await fake.advance(10_000_000)
            assert (await token(), app.refreshes) == ("2/11/22:old", 0)
            await token.renew("2/11/22:old")
            assert await token() != "2/11/22:old"
            assert await oauth_token(fake, app, expires_at=datetime.max.replace(tzinfo=UTC))()
            assert app.refreshes == 2

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

    @pytest.mark.parametrize("trouble", ["hang", errors(503, "no")])
    async def test_an_endpoint_in_trouble_is_asked_once_in_ten_seconds(self, trouble: Step) -> None:
        """While the old token is good one call waits for the refresh, and those beside it and after it do not."""
        now, loop_clock = [1_000_000.0], LoopClock()
        async with scripted_server(trouble) as server:
            token = canary_token(
                server.url,
                access_token="still-good",
                expires_at=datetime.fromtimestamp(now[0] + 50, UTC),
                timeout=50,
                clock=lambda: now[0],
            )
            first = asyncio.create_task(token())
            await server.got_request.wait()
            assert [await token() for _ in range(3)] == ["still-good"] * 3
            now[0] += 11  # it fails so much later than it began
            loop_clock.turn(50)
            assert await first == "still-good"
            assert [await token() for _ in range(3)] == ["still-good"] * 3
            assert len(server.requests) == 1
            now[0] += 11
            second = asyncio.create_task(token())
            await until(lambda: len(server.requests) == 2)
            loop_clock.turn(50)
            assert await second == "still-good"
            assert len(server.requests) == 2

    async def test_short_lived_ones_are_not_refreshed_at_every_turn(self) -> None:
        """A lifetime below the margin leaves half of it to use."""
        now = [1_000_000.0]
        async with scripted_server(answer(200, GRANTED | {"expires_in": 40})) as server:
            token = canary_token(server.url, clock=lambda: now[0])
            for seconds, requests in ((0, 1), (15, 1), (16, 2), (15, 2)):
                now[0] += seconds
                await token()
                assert len(server.requests) == requests


class TestShared:
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

    async def test_renewed_once(self) -> None:
        """Fifty calls that were refused the same token cause one refresh, together or one after another."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            await token.renew("2/11/22:older")  # not in use, and so no reason
            assert app.refreshes == 0
            first = await token()
            hold = fake.hold("oauth_token")
            renewing = [asyncio.create_task(token.renew(first)) for _ in range(50)]
            await hold.reached()
            hold.release()
            await asyncio.gather(*renewing)
            await token.renew(first)

            assert await token() != first
            assert app.refreshes == 2

    async def test_a_renewal_that_is_refused(self) -> None:
        """It is raised although the token has time left: Asana does not take it any more."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            first = await token()
            app.refresh_token = "withdrawn"
            with pytest.raises(TokenRefreshError, match="invalid_grant") as caught:
                await token.renew(first)

        for secret in (first, app.client_secret):
            assert secret not in shown(caught.value)

    async def test_everyone_gets_an_error_of_their_own(self) -> None:
        """One request for all who wait; what each raises is not changed by the others' tracebacks."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            rejected = await token()
            fake.script(Fault(at="oauth_token", status=503))
            failed = await asyncio.gather(*(token.renew(rejected) for _ in range(3)), return_exceptions=True)

        assert [type(one) for one in failed] == [ServerError] * 3
        assert len({id(one) for one in failed}) == 3
        assert len(fake.requests) == 2

    def test_is_the_documented_protocol(self) -> None:
        """Type checkers take it where a renewing provider is wanted."""
        provider: RenewingTokenProvider = canary_token(TOKEN_URL)

        assert token_provider(provider) is provider


class TestOnRefresh:
    async def test_gets_what_a_restart_needs(self) -> None:
        """With the tokens that were saved, the next run of the program goes on without a refresh."""
        async with FakeAsana() as fake:
            app, saved = fake.register_app(), Saved()
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
            app, saved = fake.register_app(rotate=True), Saved()
            token = oauth_token(fake, app, on_refresh=saved)
            for _ in range(3):
                await token.renew(await token())

            assert app.refreshes == len({one.refresh_token for one in saved}) == 4
            assert saved[-1].refresh_token.reveal() == app.refresh_token

    async def test_before_the_token_is_used(self) -> None:
        """No call has the token before it is saved, nor does one that comes meanwhile."""
        async with FakeAsana() as fake:
            saved = SlowlySaved()
            token = oauth_token(fake, fake.register_app(), on_refresh=saved)
            first = asyncio.create_task(token())
            await saved.entered.wait()
            second = asyncio.create_task(token())
            await asyncio.wait({first, second}, timeout=0.01)
            assert not first.done()
            assert not second.done()
            saved.go.set()
            assert await first == await second == saved[0].access_token.reveal()

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

    @pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
    async def test_failing(self, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
        """The call goes on with the new token; the log says that it was not saved, and not why: that may be secret."""
        async with FakeAsana() as fake:

            async def save(tokens: TokenSet) -> None:
                raise error(tokens.access_token.reveal())

            token = oauth_token(fake, fake.register_app(), on_refresh=save)
            first = await token()
            assert await token() == first

        assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
            ("WARNING", f"on_refresh failed with {error.__name__}; the new tokens may not be saved")
        ]
        assert first not in caplog.text

    async def test_failing_while_it_is_cancelled(self, caplog: pytest.LogCaptureFixture) -> None:
        """What it makes of its cancellation, at the end of the program, is logged without its text."""
        async with FakeAsana() as fake:
            saving = asyncio.Event()

            async def save(tokens: TokenSet) -> None:
                saving.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise OSError(tokens.access_token.reveal())

            asking = asyncio.create_task(oauth_token(fake, fake.register_app(), on_refresh=save)())
            await saving.wait()
            (refresh,) = refreshing()
            refresh.cancel()
            token = await asking

        assert "on_refresh failed with OSError; the new tokens may not be saved" in caplog.text
        assert token not in caplog.text

    async def test_hanging(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has its time, and no more; then it is cancelled, and calls have a token."""
        monkeypatch.setattr(oauth, "_HOOK_TIMEOUT", 0.05)
        async with FakeAsana() as fake:
            saved = SlowlySaved()
            assert await oauth_token(fake, fake.register_app(), on_refresh=saved)()

        assert saved == []
        assert "on_refresh failed with TimeoutError" in caplog.text


class TestCancelled:
    @pytest.mark.parametrize("rotate", [False, True])
    async def test_a_call_that_leaves(self, rotate: bool) -> None:
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

    async def test_a_refresh_that_nobody_waits_for(self) -> None:
        """It goes on: its tokens are saved, kept, and used by the next call."""
        async with FakeAsana() as fake:
            app, saved = fake.register_app(rotate=True), SlowlySaved()
            token = oauth_token(fake, app, on_refresh=saved)
            asking = asyncio.create_task(token())
            await saved.entered.wait()
            asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled()
            saved.go.set()
            await asyncio.wait(refreshing())

            assert [one.refresh_token.reveal() for one in saved] == [app.refresh_token]
            assert await token() == saved[0].access_token.reveal()
            assert (app.refreshes, refreshing()) == (1, [])

    async def test_an_error_that_nobody_waits_for(self) -> None:
        """It is no complaint of the loop's, and the next call tries anew."""
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        clock = LoopClock()
        async with scripted_server("hang", answer(200, GRANTED)) as server:
            token = canary_token(server.url, timeout=50)
            asking = asyncio.create_task(token())
            await server.got_request.wait()
            asking.cancel()
            clock.turn(50)
            await asyncio.wait(refreshing())

            assert await token() == GRANTED["access_token"]
        assert complaints == []

    def test_a_program_that_ends_meanwhile(self, caplog: pytest.LogCaptureFixture) -> None:
        """A refresh that nobody waits for ends with the event loop, and without a complaint of it."""

        async def program(port: int) -> None:
            asking = asyncio.create_task(canary_token(f"http://127.0.0.1:{port}/")())
            await pass_turns(20)
            asking.cancel()
            await asyncio.wait({asking})
            assert len(refreshing()) == 1

        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            asyncio.run(program(silent.getsockname()[1]))
        gc.collect()

        assert caplog.records == []

    async def test_a_refresh_cancelled_by_a_stranger(self) -> None:
        """A program that cancels every task it finds does not leave a call without an answer."""
        async with scripted_server("hang", answer(200, GRANTED)) as server:
            token = canary_token(server.url)
            asking = asyncio.create_task(token())
            await server.got_request.wait()
            for task in refreshing():
                task.cancel()
            with pytest.raises(ConnectionFailedError, match="the refresh task was cancelled"):
                await asking
            assert await token() == GRANTED["access_token"]

    async def test_a_hook_that_hangs_holds_nobody_beyond_the_deadline(self) -> None:
        """A call ends in its time although the new tokens are not saved yet; a later one gets them."""
        async with FakeAsana() as fake:
            saved = SlowlySaved()
            token = oauth_token(fake, fake.register_app(), on_refresh=saved)
            with jumping_clock() as clock:
                retry = RetryPolicy(clock=clock)
                async with AsanaSession(token, base_url=fake.url, timeout=0.1, retry=retry) as asana:
                    for _ in range(2):
                        with pytest.raises(DeadlineExceededError, match="token provider"):
                            await count_webhooks(asana)
                    saved.go.set()
                    assert await count_webhooks(asana) == 0

            assert len(saved) == 1

    @pytest.mark.parametrize("way", [cancel_once, let_timeout_expire])
    async def test_at_every_step(self, way: Way) -> None:
        """Wherever a call is interrupted, the tokens in use are the saved ones, and there was one refresh."""
        async with FakeAsana() as fake:
            app, saved = fake.register_app(), Saved()
            tokens: list[OAuthToken] = []

            async def play() -> None:
                saved.clear()
                tokens.append(oauth_token(fake, app, on_refresh=saved))
                await tokens[-1]()

            async def check() -> None:
                if tokens:
                    assert await tokens[-1]() == saved[-1].access_token.reveal()
                    assert len(saved) == 1

            assert await cancel_at_every_step(play, check, way=way) >= 10


TROUBLE: dict[str, tuple[Step, type[AsanaError], str]] = {
    "hang": ("hang", ConnectionFailedError, "the token endpoint did not answer within 50 seconds"),
    "reset": ("reset", ConnectionFailedError, "the connection was reset"),
    "close": ("close", ConnectionFailedError, "the connection was closed before an answer arrived"),
    "no HTTP": (b"canary-secret\r\n\r\n", ConnectionFailedError, "refreshToken"),
    "429": (answer(429, {}, headers={"Retry-After": "30"}), RateLimitedError, "Asana asked to wait 30 seconds"),
    "503": (answer(503, b"<html>", headers={"Retry-After": "5"}), ServerError, "Asana asked to wait 5 seconds"),
    "redirect": (answer(307, b"", headers={"Location": "/elsewhere"}), UnexpectedResponseError, "it is a redirect"),
    "HTML": (answer(200, b"<html>canary</html>", content_type="text/html"), UnexpectedResponseError, "not JSON"),
    "cut off": (answer(200, {"access_token": "canary"}, length=500), UnexpectedResponseError, "not JSON, or cut off"),
    "too long": (answer(200, {"a": "b" * 70_000}), UnexpectedResponseError, "not JSON, or cut off"),
    "echo": (answer(401, {"error": "canary-refresh-token"}), TokenRefreshError, r"\*\*\*"),
}


class TestTrouble:
    @pytest.mark.parametrize("case", TROUBLE)
    async def test_kind(self, case: str, caplog: pytest.LogCaptureFixture) -> None:
        """Each trouble is one of our errors, says what was wrong, and shows no secret; then it is forgotten."""
        step, kind, problem = TROUBLE[case]
        caplog.set_level(logging.DEBUG)
        clock = LoopClock()
        async with scripted_server(step, answer(200, GRANTED)) as server:
            token = canary_token(server.url, timeout=50)
            asking = asyncio.create_task(token())
            await server.got_request.wait()
            clock.turn(50 if step == "hang" else 0)
            with pytest.raises(kind, match=problem) as caught:
                await asking
            assert len(server.requests) == 1
            assert await token() == GRANTED["access_token"]

        assert type(caught.value) is kind
        assert vars(caught.value)["operation"] == "refreshToken"
        assert "canary" not in shown(caught.value)
        assert "canary" not in caplog.text

    async def test_nobody_listens(self) -> None:
        """A refused connection names host and port."""
        async with scripted_server("close") as server:
            token = canary_token(server.url)
        with pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{server.port}") as caught:
            await token()

        assert "canary" not in shown(caught.value)


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


class TestSession:
    async def test_refused_once(self) -> None:
        """After a 401 the call is sent again with a new token; many calls at once cause one refresh."""
        async with FakeAsana(webhooks=1) as fake:
            app = fake.register_app()
            token = oauth_token(fake, app)
            async with AsanaSession(token, base_url=fake.url) as asana:
                assert await count_webhooks(asana) == 1
                fake.revoke_token(await token())
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
        """An endpoint that hangs holds no call longer than its own time."""
        async with oauth_session(timeout=0.2) as (fake, _, asana):
            hold = fake.hold("oauth_token")
            with pytest.raises(DeadlineExceededError, match="waiting for the token provider"):
                await count_webhooks(asana)
            hold.release()
