"""AsanaSession against raw sockets: what it sends, what it repeats, how it fails, what it leaves behind."""

import asyncio
import logging
import math
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
    NotAuthorizedError,
    NotFoundError,
    ServerError,
    UnexpectedResponseError,
)
from asana_webhooks.models import WebhookFilter
from tests.helpers.servers import ScriptedServer, Step, answer, errors, scripted_server
from tests.helpers.virtual import jumping_clock

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
        assert seen.query == {}  # Asana answers with a full record
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


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequestError), (401, NotAuthorizedError), (404, NotFoundError)], ids=str
)
async def test_a_clear_no_is_final(status: int, kind: type[AsanaError]) -> None:
    """4xx answers are raised at once with Asana's words."""
    async with asking(errors(status, "No, thank you")) as (asana, server, _):
        with pytest.raises(kind, match="No, thank you"):
            await asana.send(GET)

        assert len(server.requests) == 1


async def test_wrong_types_name_their_place() -> None:
    """An answer of the wrong shape is UnexpectedResponseError with the path in the JSON, and is not asked for again."""
    async with asking(answer(200, {"data": {"gid": 43214}})) as (asana, server, _):
        with pytest.raises(UnexpectedResponseError, match=r"\$\.data\.gid"):
            await asana.send(GET)

        assert len(server.requests) == 1


async def test_a_create_at_its_deadline_is_of_unknown_outcome() -> None:
    """The request was sent, so running out of time says nothing about the webhook."""
    with jumping_clock() as clock:
        async with asking("hang", timeout=0.5, retry=RetryPolicy(clock=clock)) as (asana, _, _):
            with pytest.raises(CreateOutcomeUnknownError, match=r"waiting for an answer after 0\.5 seconds"):
                await asana.send(CREATE)


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


def test_the_base_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASANA_BASE_URL is read when nothing else is given, and Asana's own is the default."""
    monkeypatch.delenv("ASANA_BASE_URL", raising=False)
    assert AsanaSession(TOKEN).base_url == "https://app.asana.com/api/1.0"
    monkeypatch.setenv("ASANA_BASE_URL", "http://127.0.0.1:8080/api/1.0")
    assert AsanaSession(TOKEN).base_url == "http://127.0.0.1:8080/api/1.0"
    assert AsanaSession(TOKEN, base_url="https://other.example").base_url == "https://other.example"


def test_bad_arguments_are_refused_at_once() -> None:
    """Nothing is sent with arguments that cannot work."""
    wrong: list[tuple[str, Any, str]] = [
        ("token", "", "empty"),
        ("token", "a\nb", "line break"),
        ("base_url", "", "base_url must look like"),
        ("base_url", "http://app.asana.com/api/1.0", "base_url must be https"),
        *(("timeout", value, "timeout must be") for value in ("60", None, True, 0, -1, math.inf, math.nan)),
        *(("slot_timeout", value, "slot_timeout must be") for value in ("600", None, 0, -1, math.inf, math.nan)),
        ("retry", object(), "retry must be a RetryPolicy, not object"),
        ("limiter", object(), "limiter must be an async context manager, not object"),
        *(("max_reads", value, "max_reads must be a whole number") for value in (0, -1, 1.5, True, None, "5")),
        ("max_writes", 0, "max_writes must be a whole number"),
        ("http", object(), r"http must be an aiohttp\.ClientSession"),
        ("ssl", False, "cannot be switched off"),
        ("proxy", "socks5://h:1", "proxy must be the URL"),
        ("headers", {"Authorization": "Bearer x"}, "the session sets the header Authorization itself"),
    ]
    for name, value, match in wrong:
        with pytest.raises(ConfigurationError, match=match):
            AsanaSession(**({"token": TOKEN} | {name: value}))


async def test_lent_sessions_that_cannot_be_used() -> None:
    """Answers that stay packed, a login that stands against the token, and somebody else's trust_env."""
    with pytest.warns(DeprecationWarning, match="auth"):
        with_login = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "canary"))
    async with with_login, aiohttp.ClientSession(auto_decompress=False) as packed, aiohttp.ClientSession() as http:
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("auth=", {"http": with_login}),
            ("auto_decompress", {"http": packed}),
            ("trust_env", {"http": http, "trust_env": True}),
        ]
        for match, options in wrong:
            with pytest.raises(ConfigurationError, match=match) as caught:
                AsanaSession(TOKEN, **options)
            assert "canary" not in str(caught.value)


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
