"""AsanaSession against raw sockets: what it sends, what it repeats, how it fails, what it leaves behind."""

import asyncio
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import pytest

from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    UpdateWebhookRequest,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    DeadlineExceededError,
    NotAuthorizedError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    UnexpectedResponseError,
)
from asana_webhooks.models import WebhookFilter
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.servers import ScriptedServer, Step, answer, errors, scripted_server

TOKEN = "2/1331/7654:0123456789abcdef"
WEBHOOK = {"data": {"gid": "43214", "active": True, "target": "https://example.com/asana/7654"}}
CREATED = WEBHOOK | {"X-Hook-Secret": "0123456789abcdef0123456789abcdef"}
OK = answer(200, WEBHOOK)
EMPTY = answer(200, {"data": {}})
GET = GetWebhookRequest(webhook_gid="43214")
PUT = UpdateWebhookRequest(webhook_gid="43214", filters=(WebhookFilter(action="deleted"),))
DELETE = DeleteWebhookRequest(webhook_gid="43214")
CREATE = CreateWebhookRequest(resource="8675309", target="https://example.com/asana/S3cretEndpoint_0123456789")


class Waits:
    """A stand-in for time: sleeping moves the clock and is written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def policy(self, **changes: Any) -> RetryPolicy:
        options: dict[str, Any] = {"clock": lambda: self.now, "sleep": self.sleep, "random": lambda: 1.0}
        return RetryPolicy(**(options | changes))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@asynccontextmanager
async def asking(*steps: Step, **options: Any) -> AsyncIterator[tuple[AsanaSession, ScriptedServer, Waits]]:
    """Open a session with a scripted server; nothing really waits."""
    waits = Waits()
    async with scripted_server(*steps) as server:
        options.setdefault("retry", waits.policy())
        async with AsanaSession(TOKEN, base_url=server.url, **options) as asana:
            yield asana, server, waits


async def test_a_request_says_who_asks_and_what() -> None:
    """Method, path, query, body, token and our name arrive as Asana wants them."""
    async with asking(answer(201, CREATED), headers={"Asana-Enable": "string_ids"}) as (asana, server, _):
        created = await asana.send(CREATE)

        seen = server.requests[0]
        assert (seen.method, seen.path) == ("POST", "/api/1.0/webhooks")
        assert seen.json == {"data": {"resource": "8675309", "target": CREATE.target}}
        assert "last_success_at" in seen.query["opt_fields"].split(",")
        assert seen.headers["authorization"] == f"Bearer {TOKEN}"
        assert seen.headers["content-type"] == "application/json"
        assert seen.headers["user-agent"].startswith("asana-webhooks/")
        assert seen.headers["asana-enable"] == "string_ids"
        assert created.webhook.gid == "43214"
        assert created.secret is not None
        assert created.secret.reveal() == CREATED["X-Hook-Secret"]


async def test_connections_are_kept_for_the_next_call() -> None:
    """Calls after one another share a connection."""
    async with asking(OK) as (asana, server, _):
        for _ in range(3):
            await asana.send(GET)

        assert server.connections == 1


@pytest.mark.parametrize("request_", [GET, PUT, DELETE], ids=lambda one: one.operation)
@pytest.mark.parametrize(
    "trouble",
    [errors(500, "Server Error"), errors(503, "Busy"), "close", "reset"],
    ids=["500", "503", "close", "reset"],
)
async def test_what_is_safe_is_sent_again(request_: Any, trouble: Step) -> None:
    """GET, PUT and DELETE survive 5xx answers and broken connections."""
    good = EMPTY if request_ is DELETE else OK
    async with asking(trouble, trouble, good) as (asana, server, _):
        await asana.send(request_)

        assert len(server.requests) == 3


async def test_attempts_end() -> None:
    """A server that stays broken is asked as often as the policy says, and the error says how often."""
    async with asking(errors(500, "Server Error", phrase="6 sad squid snuggle softly")) as (asana, server, waits):
        with pytest.raises(ServerError, match="6 sad squid") as caught:
            await asana.send(GET)

        assert caught.value.attempts == len(server.requests) == 4
        assert waits.slept == [0.5, 1.0, 2.0]


async def test_refused_connections_are_tried_again_even_for_create() -> None:
    """Where nothing was sent, create is repeated too, and the error names host and port."""
    async with scripted_server(OK) as server:
        url = server.url
    waits = Waits()
    async with AsanaSession(TOKEN, base_url=url, retry=waits.policy()) as asana:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1") as caught:
            await asana.send(CREATE)

    assert caught.value.attempts == 2
    assert len(waits.slept) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        "close",
        "reset",
        errors(500, "Server Error"),
        errors(502, "Bad Gateway"),
        answer(201, b'{"data": {"gid": "4', length=500),
        answer(201, b"<html>", content_type="text/html"),
        answer(201, {"data": {"gid": 43214}}),
    ],
    ids=["close", "reset", "500", "502", "cut off", "html", "wrong type"],
)
async def test_a_create_that_may_have_landed_is_not_repeated(trouble: Step) -> None:
    """After a lost or broken answer the outcome of create is unknown, and the error says what to look for."""
    async with asking(trouble, answer(201, CREATED)) as (asana, server, _):
        with pytest.raises(CreateOutcomeUnknownError) as caught:
            await asana.send(CREATE)

        assert len(server.requests) == 1
        assert caught.value.target == CREATE.target
        assert "S3cretEndpoint" not in f"{caught.value!s} {caught.value!r}"


async def test_rate_limits_are_waited_out_even_by_create() -> None:
    """After a 429 even create is repeated, no sooner than Asana asked."""
    limited = errors(429, "You've made too many requests", headers={"Retry-After": "7"})
    async with asking(limited, answer(201, CREATED)) as (asana, server, waits):
        await asana.send(CREATE)

        assert len(server.requests) == 2
        assert waits.slept == [pytest.approx(7.7)]


async def test_an_hour_of_retry_after_is_not_obeyed_but_reported() -> None:
    """A wait past the deadline is not begun: the error comes at once and carries the seconds (Speakeasy's mistake)."""
    async with asking(errors(429, "Slow down", headers={"Retry-After": "3600"})) as (asana, server, waits):
        with pytest.raises(RateLimitedError, match="3600 seconds") as caught:
            await asana.send(GET)

        assert caught.value.retry_after == 3600
        assert (len(server.requests), waits.slept) == (1, [])


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequestError), (401, NotAuthorizedError), (404, NotFoundError)], ids=str
)
async def test_a_clear_no_is_final(status: int, kind: type[AsanaError]) -> None:
    """4xx answers are raised at once with Asana's words."""
    async with asking(errors(status, "No, thank you")) as (asana, server, _):
        with pytest.raises(kind, match="No, thank you"):
            await asana.send(GET)

        assert len(server.requests) == 1


async def test_a_delete_whose_answer_was_lost_succeeds_by_404() -> None:
    """If the first DELETE may have worked, the 404 of the second says that it did."""
    async with asking(errors(500, "Server Error"), errors(404, "Unknown object")) as (asana, server, _):
        await asana.send(DELETE)

        assert len(server.requests) == 2


async def test_the_hidden_second_delete_of_aiohttp_is_noticed() -> None:
    """Aiohttp repeats a DELETE by itself when its connection breaks; a visible 404 after that is a success."""
    async with asking("close", errors(404, "Unknown object")) as (asana, server, waits):
        await asana.send(DELETE)

        assert len(server.requests) == 2
        assert waits.slept == []


async def test_a_first_404_on_delete_is_an_error() -> None:
    """Deleting what never was is no success."""
    async with asking(errors(404, "webhook: Unknown object: 43214")) as (asana, _, _):
        with pytest.raises(NotFoundError, match="43214"):
            await asana.send(DELETE)


async def test_wrong_types_name_their_place() -> None:
    """An answer of the wrong shape is UnexpectedResponseError with the path in the JSON, and is not asked for again."""
    async with asking(answer(200, {"data": {"gid": 43214}})) as (asana, server, _):
        with pytest.raises(UnexpectedResponseError, match=r"\$\.data\.gid"):
            await asana.send(GET)

        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        answer(200, b"<html>hello</html>", content_type="text/html"),
        answer(200, b""),
        answer(200, b'{"data": {"gid": "43', length=99),
        b'HTTP/1.1 200 OK\r\n\r\n{"data": {"gid": "43',
    ],
    ids=["html", "empty", "cut off", "cut off without a length"],
)
async def test_broken_bodies_are_asked_for_again(broken: bytes) -> None:
    """A 200 with half a body, none, or a proxy's page is tried again."""
    async with asking(broken, OK) as (asana, _, _):
        assert (await asana.send(GET)).gid == "43214"


async def test_a_redirect_is_an_error_and_nobody_follows_it() -> None:
    """The token is never carried to another place."""
    async with scripted_server(OK) as elsewhere:
        redirect = answer(302, b"", headers={"Location": elsewhere.url})
        async with asking(redirect) as (asana, _, _):
            with pytest.raises(UnexpectedResponseError, match="redirect"):
                await asana.send(GET)

        assert elsewhere.requests == []


async def test_huge_answers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer past the limit is dropped instead of filling the memory."""
    monkeypatch.setattr("asana_webhooks.client.exchange._MAX_ANSWER", 1000)
    async with asking(answer(200, b"x" * 5000)) as (asana, _, _):
        with pytest.raises(UnexpectedResponseError, match="far too long"):
            await asana.send(GET)


async def test_the_deadline_bounds_the_whole_call() -> None:
    """A server that never answers costs the session's timeout and no more, and the connection is closed."""
    async with asking("hang", timeout=0.05, retry=RetryPolicy()) as (asana, server, _):
        with pytest.raises(DeadlineExceededError, match=r"0\.05 seconds"):
            await asana.send(GET)

        if server.got_request.is_set():  # a busy machine may not have come so far
            await server.gone.wait()


async def test_a_create_at_its_deadline_is_of_unknown_outcome() -> None:
    """The request was sent, so running out of time says nothing about the webhook."""
    async with asking("hang", timeout=0.5, retry=RetryPolicy()) as (asana, _, _):
        with pytest.raises(CreateOutcomeUnknownError, match="no answer within"):
            await asana.send(CREATE)


async def test_a_provider_that_hangs_is_bounded_and_nothing_was_sent() -> None:
    """The deadline covers asking for the token too."""

    async def hang() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async with scripted_server(OK) as server, AsanaSession(hang, base_url=server.url, timeout=0.05) as asana:
        with pytest.raises(DeadlineExceededError):
            await asana.send(CREATE)

        assert server.requests == []


async def test_the_provider_is_asked_for_every_attempt() -> None:
    """A token that was refreshed meanwhile is used by the next attempt."""
    tokens = iter(["first", "second"])

    async def provide() -> str:
        return next(tokens)

    waits = Waits()
    async with (
        scripted_server(errors(503, "Busy"), OK) as server,
        AsanaSession(provide, base_url=server.url, retry=waits.policy()) as asana,
    ):
        await asana.send(GET)

        assert [seen.headers["authorization"] for seen in server.requests] == ["Bearer first", "Bearer second"]


async def test_a_failing_provider_is_a_clear_error() -> None:
    """What the provider raises comes wrapped; a bad token it returns is refused before it is sent."""

    async def fail() -> str:
        raise LookupError("vault is sealed")

    async def newline() -> str:
        return "abc\r\nX-Evil: 1"

    async def explain() -> str:
        raise ConfigurationError("log in first")

    async with scripted_server(OK) as server:
        async with AsanaSession(fail, base_url=server.url) as asana:
            with pytest.raises(ConfigurationError, match="LookupError"):
                await asana.send(GET)
        async with AsanaSession(explain, base_url=server.url) as asana:
            with pytest.raises(ConfigurationError, match=r"^log in first$"):
                await asana.send(GET)
        async with AsanaSession(newline, base_url=server.url) as asana:
            with pytest.raises(ConfigurationError, match="line break"):
                await asana.send(GET)

        assert server.requests == []


async def test_a_callers_own_timeout_stays_the_callers() -> None:
    """asyncio.timeout around a call raises TimeoutError, and the session works on."""
    async with asking("hang", OK) as (asana, server, _):

        async def give_up() -> None:
            await server.got_request.wait()
            limit.reschedule(0)

        giving_up = asyncio.create_task(give_up())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await asana.send(GET)
        await giving_up

        await server.gone.wait()
        assert (await asana.send(GET)).gid == "43214"


async def test_cancelling_leaves_nothing_behind() -> None:
    """A cancelled call closes its connection, and the session works on."""
    async with asking("hang", OK) as (asana, server, _):
        call = asyncio.create_task(asana.send(GET))
        await server.got_request.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        await server.gone.wait()
        assert (await asana.send(GET)).gid == "43214"


async def test_a_limiters_own_timeout_comes_through() -> None:
    """A TimeoutError that is not ours is not taken for ours."""

    class Full:
        async def __aenter__(self) -> Self:
            raise TimeoutError("the bucket stays empty")

        async def __aexit__(self, *_: object) -> None: ...

    async with asking(OK, limiter=Full()) as (asana, _, _):
        with pytest.raises(TimeoutError, match="bucket"):
            await asana.send(GET)


async def test_a_lent_http_session_is_used_and_left_open() -> None:
    """What we are lent we do not close, and its raise_for_status cannot leak the token."""
    async with (
        scripted_server(errors(404, "Unknown object"), OK) as server,
        aiohttp.ClientSession(raise_for_status=True) as http,
    ):
        async with AsanaSession(TOKEN, base_url=server.url, http=http) as asana:
            with pytest.raises(NotFoundError):
                await asana.send(GET)
            await asana.send(GET)

        assert not http.closed


async def test_a_lent_session_that_is_closed_is_a_clear_error() -> None:
    """Nobody needs to guess from aiohttp's own words."""
    http = aiohttp.ClientSession()
    await http.close()
    async with scripted_server(OK) as server:
        asana = AsanaSession(TOKEN, base_url=server.url, http=http)
        with pytest.raises(ConfigurationError, match="lent http session is closed"):
            await asana.send(GET)


async def test_closing_is_idempotent_and_final() -> None:
    """Aclose may be called twice; calls after it are a clear error."""
    async with asking(OK) as (asana, _, _):
        await asana.send(GET)
        await asana.aclose()
        await asana.aclose()
        with pytest.raises(ConfigurationError, match="closed"):
            await asana.send(GET)


def test_a_session_belongs_to_one_loop() -> None:
    """Using it from a second loop is a clear error."""
    asana = AsanaSession(TOKEN, base_url="http://127.0.0.1:1/api/1.0", retry=RetryPolicy(attempts=1))

    async def once() -> None:
        with pytest.raises(ConnectionFailedError):
            await asana.send(GET)
        await asana._http.close()  # type: ignore[union-attr]

    asyncio.run(once())
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(asana.send(GET))


@pytest.mark.parametrize(
    "base_url",
    [
        "http://app.asana.com/api/1.0",
        "ftp://app.asana.com",
        "app.asana.com/api",
        "https://",
        "https://app.asana.com/?x=1",
        "https://user:pass@app.asana.com/api",
        "http://10.0.0.1/api",
        "http://[::1",
    ],
)
def test_only_https_or_loopback(base_url: str) -> None:
    """A base URL over which the token could be read on the way is refused."""
    with pytest.raises(ConfigurationError, match="base_url"):
        AsanaSession(TOKEN, base_url=base_url)


@pytest.mark.parametrize("base_url", ["http://localhost:8080/api/1.0/", "http://[::1]:1", "https://proxy.example/x"])
def test_loopback_and_https_are_fine(base_url: str) -> None:
    """Http is for loopback only; a slash at the end is dropped."""
    assert AsanaSession(TOKEN, base_url=base_url).base_url == base_url.rstrip("/")


def test_the_base_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASANA_BASE_URL is read when nothing else is given, and Asana's own is the default."""
    monkeypatch.delenv("ASANA_BASE_URL", raising=False)
    assert AsanaSession(TOKEN).base_url == "https://app.asana.com/api/1.0"
    monkeypatch.setenv("ASANA_BASE_URL", "http://127.0.0.1:8080/api/1.0")
    assert AsanaSession(TOKEN).base_url == "http://127.0.0.1:8080/api/1.0"
    assert AsanaSession(TOKEN, base_url="https://other.example").base_url == "https://other.example"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"token": ""}, "empty"),
        ({"token": "a\nb"}, "line break"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"ssl": False}, "cannot be switched off"),
    ],
)
def test_bad_arguments_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    """Nothing is sent with arguments that cannot work."""
    with pytest.raises(ConfigurationError, match=match):
        AsanaSession(**({"token": TOKEN} | options))


async def test_trust_env_belongs_to_a_lent_session() -> None:
    """It cannot be switched on for somebody else's session."""
    async with aiohttp.ClientSession() as http:
        with pytest.raises(ConfigurationError, match="trust_env"):
            AsanaSession(TOKEN, http=http, trust_env=True)


async def test_bad_tls_is_refused_with_a_clear_error() -> None:
    """A server that speaks no TLS is a failed connection, named by host and port."""

    async def speak_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/1.0"
    retry = Waits().policy(attempts=1)
    async with server, AsanaSession(TOKEN, base_url=url, ssl=ssl.create_default_context(), retry=retry) as asana:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1"):
            await asana.send(GET)


@pytest.mark.parametrize(
    "trouble",
    [errors(401, f"Not Authorized {TOKEN}"), "reset", b"HTTP/1.1 banana\r\n\r\n", answer(302, b"")],
    ids=["echoed", "reset", "bad status line", "redirect"],
)
async def test_the_token_shows_up_nowhere(trouble: Step, caplog: pytest.LogCaptureFixture) -> None:
    """Logs at DEBUG, errors, their chains and tracebacks hold no token (aiohttp's own repr would)."""
    caplog.set_level(logging.DEBUG)
    async with asking(trouble) as (asana, _, _):
        with pytest.raises(AsanaError) as caught:
            await asana.send(GET)

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(caught.value))
    assert TOKEN not in shown
    assert TOKEN not in caplog.text
    assert not isinstance(caught.value.__cause__ or caught.value.__context__, aiohttp.ClientError)


async def test_a_session_installs_no_log_handlers() -> None:
    """Logging is the application's: no handler, no level of ours."""
    async with asking(OK) as (asana, _, _):
        await asana.send(GET)

    names = [name for name in logging.root.manager.loggerDict if name.startswith("asana_webhooks")]
    assert all(not logging.getLogger(name).handlers for name in names)
    assert all(logging.getLogger(name).level == logging.NOTSET for name in names)


@pytest.mark.parametrize("request_", [GET, PUT, DELETE, CREATE], ids=lambda one: one.operation)
async def test_a_call_may_be_cancelled_at_every_step(request_: Any) -> None:
    """Wherever a call is cancelled, no connection or task is left, and the session works on."""
    good = {GET: OK, PUT: OK, DELETE: EMPTY, CREATE: answer(201, CREATED)}[request_]
    async with asking(good) as (asana, _, _):
        tasks = len(asyncio.all_tasks())

        async def check() -> None:
            assert asana._http is not None
            assert asana._http.connector is not None
            assert not asana._http.connector._acquired
            assert len(asyncio.all_tasks()) <= tasks + 3  # the server's own, one for each connection that is kept

        assert await cancel_at_every_step(lambda: asana.send(request_), check) > 3
        await asana.send(request_)
