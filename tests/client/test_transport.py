"""What was sent and what was not: hidden repeats, connections that never were, refusals of aiohttp, and closing."""

import asyncio
import socket
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import pytest
from attrs import frozen
from yarl import URL

from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    Request,
    UpdateWebhookRequest,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    ConfigurationError,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    ForbiddenError,
    NotFoundError,
    UnexpectedResponseError,
)
from tests.helpers.raw import CALLS, LIST, Call, framed, raw_server, saying
from tests.helpers.servers import Step, answer, errors, full_backlog, scripted_server
from tests.helpers.virtual import jumping_clock

TOKEN = "2/1331/7654:0123456789abcdef"
OK = answer(200, {"data": {"gid": "43214"}})
EMPTY = answer(200, {"data": {}})
GET = GetWebhookRequest(webhook_gid="43214")
PUT = UpdateWebhookRequest(webhook_gid="43214", filters=())
DELETE = DeleteWebhookRequest(webhook_gid="43214")
CREATE = CreateWebhookRequest(resource="8675309", target="https://example.com/asana/S3cretEndpoint_0123456789")
GONE = errors(404, "webhook: Unknown object: 43214")


@frozen(kw_only=True)
class GetTagRequest(Request[bytes]):
    """One that the package does not have."""

    operation = "getTag"
    method = "GET"
    path_template = "/tags/{name}/tasks"

    name: str

    def answer(self, body: bytes) -> bytes:
        return body


def quick(**changes: Any) -> RetryPolicy:
    return RetryPolicy(**({"first_wait": 0, "create_attempts": 1} | changes))


def session(url: str, **options: Any) -> AsanaSession:
    return AsanaSession(TOKEN, base_url=url, **({"retry": quick()} | options))


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Take connections and never say a word; yields the port."""
    over = asyncio.Event()

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        over.set()


class TestHiddenRepeats:
    async def test_that_finds_no_server_was_sent_once_all_the_same(self) -> None:
        """A DELETE whose hidden repeat is refused a connection may have worked: the next 404 is a success."""
        servers: list[asyncio.Server] = []
        seen: list[bytes] = []

        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            servers[0].close()
            writer.close()

        async def say_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(GONE)
            writer.close()

        async def come_back(_: float) -> None:
            servers.append(await asyncio.start_server(say_gone, "127.0.0.1", port))

        servers.append(await asyncio.start_server(vanish, "127.0.0.1", 0))
        port = servers[0].sockets[0].getsockname()[1]
        async with session(f"http://127.0.0.1:{port}/api/1.0", retry=quick(sleep=come_back)) as asana:
            await asana.send(DELETE)
        for server in servers:
            server.close()
            await server.wait_closed()

        assert [head[:6] for head in seen] == [b"DELETE", b"DELETE"]

    @pytest.mark.parametrize("lent", [False, True])
    async def test_are_not_seen_where_there_were_none(self, lent: bool) -> None:
        """One DELETE and one 404 is no success, on a connection that was kept either."""
        async with scripted_server(OK, GONE) as server, aiohttp.ClientSession() as http:
            async with session(server.url, http=http if lent else None) as asana:
                await asana.send(GET)
                with pytest.raises(NotFoundError):
                    await asana.send(DELETE)

    async def test_a_refused_connection_does_not_count(self) -> None:
        """After a connection that could not be made, the first DELETE that is sent is the first."""
        async with scripted_server(GONE) as server:
            ports = iter([1, server.port])

            async def redirect(request: Any, handler: Any) -> Any:
                request.url = request.url.with_port(next(ports))
                return await handler(request)

            async with aiohttp.ClientSession(middlewares=(redirect,)) as http, session(server.url, http=http) as asana:
                with pytest.raises(NotFoundError) as caught:
                    await asana.send(DELETE)

            assert caught.value.attempts == 2
            assert len(server.requests) == 1

    async def test_a_delete_carries_nothing(self) -> None:
        """Its body is empty and has no type."""
        async with scripted_server(EMPTY) as server, session(server.url) as asana:
            await asana.send(DELETE)

            assert server.requests[0].headers["content-length"] == "0"
            assert "content-type" not in server.requests[0].headers


class TestAddress:
    @pytest.mark.parametrize("path", ["", "/", "/api/1.0", "/api/1.0/", "/a b", "/a%20b/%2F", "/ü"])
    @pytest.mark.parametrize("call", CALLS, ids=str)
    async def test_below_the_base_url(self, path: str, call: Call) -> None:
        """What is asked for is the base URL's path, the request's, and its query, the second time as the first."""
        async with raw_server(saying(framed(call.good)), keep=True) as server:
            url = server.url.removesuffix("/api/1.0") + quote(path, safe="/%")
            async with session(url) as asana:
                await asana.send(call.request)
                await asana.send(call.request)

        expected = URL(url.rstrip("/") + call.request.path).with_query(call.request.query())
        line = f"{call.request.method} {expected.raw_path_qs} HTTP/1.1".encode()
        assert [asked.head.partition(b"\r\n")[0] for asked in server.requests] == [line, line]

    @pytest.mark.parametrize("path", ["", "/", "/api/1.0", "/a b", "/a%20b/%2F"])
    @pytest.mark.parametrize(
        "name", ["7", "a-b_c", "a b", "ü", "a%20b", "a%2Fb", "50%", "{x}", "a.b", "../a", "a?b", ""]
    )
    async def test_a_request_of_somebodys_own(self, path: str, name: str) -> None:
        """Its template is filled in with what it holds, and becomes what a URL can hold."""
        async with raw_server(saying(framed(b"{}"))) as server:
            url = server.url.removesuffix("/api/1.0") + quote(path, safe="/%")
            async with session(url) as asana:
                assert await asana.send(GetTagRequest(name=name)) == b"{}"

        expected = URL(f"{url.rstrip('/')}/tags/{name}/tasks").with_query({})
        assert server.requests[0].head.partition(b"\r\n")[0] == f"GET {expected.raw_path_qs} HTTP/1.1".encode()

    async def test_each_has_its_own(self) -> None:
        """One gid, offset or choice of fields is not taken for another, nor one session's address for another's."""
        requests: list[Request[Any]] = [
            GetWebhookRequest(webhook_gid=gid, opt_fields=fields) for gid in "12" for fields in ((), ("target",))
        ]
        requests += [GetWebhooksRequest(workspace="1", offset=offset, opt_fields=()) for offset in (None, "a", "b/ü&")]
        async with raw_server(saying(framed(LIST.good)), keep=True) as server:
            for path in ("/1", "/2"):
                async with session(server.url.removesuffix("/api/1.0") + path) as asana:
                    for request in requests:
                        with suppress(UnexpectedResponseError):  # it answers all of them with a list
                            await asana.send(request)

        asked = [one.head.split()[1].decode() for one in server.requests]
        listing = "/webhooks?workspace=1&limit=100"
        assert asked == [
            base + below
            for base in ("/1", "/2")
            for below in (
                "/webhooks/1",
                "/webhooks/1?opt_fields=target",
                "/webhooks/2",
                "/webhooks/2?opt_fields=target",
                listing,
                f"{listing}&offset=a",
                f"{listing}&offset=b/%C3%BC%26",
            )
        ]


class TestNotSent:
    """A create that never had a connection is repeated like anything else, and its error is no riddle."""

    async def test_connection_that_is_never_taken(self) -> None:
        """A full backlog."""
        async with full_backlog() as port:
            url = f"http://127.0.0.1:{port}/api/1.0"
            async with session(url, retry=quick(create_attempt_timeout=0.1)) as asana:
                with pytest.raises(ConnectionFailedError, match="waiting for an answer after"):
                    await asana.send(CREATE)

    @pytest.mark.parametrize("limit", ["connect_timeout", "create_attempt_timeout"])
    async def test_tls_that_never_begins(self, limit: str) -> None:
        """A server that takes the connection and says nothing; either limit ends it."""
        async with silent_server() as port:
            async with session(f"https://127.0.0.1:{port}", retry=quick(**{limit: 0.05})) as asana:
                with pytest.raises(ConnectionFailedError):
                    await asana.send(CREATE)

    async def test_exhausted_pool(self) -> None:
        """A lent session with no connection to spare."""
        async with scripted_server("hang") as server:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
                async with session(server.url, http=http, retry=quick(create_attempt_timeout=0.05)) as asana:
                    busy = asyncio.create_task(asana.send(GET))
                    await server.got_request.wait()
                    with pytest.raises(ConnectionFailedError):
                        await asana.send(CREATE)
                    busy.cancel()
                    await asyncio.wait({busy})

            assert len(server.requests) == 1

    @pytest.mark.parametrize("step", [answer(502, b""), "close"], ids=["refused", "closed"])
    async def test_proxy_that_fails(self, step: Step) -> None:
        """The CONNECT of a proxy is not the request."""
        async with scripted_server(step) as proxy:
            async with session("https://asana.invalid", proxy=f"http://127.0.0.1:{proxy.port}") as asana:
                with pytest.raises(ConnectionFailedError):
                    await asana.send(CREATE)

            assert proxy.requests[0].method == "CONNECT"


class TestLimits:
    async def test_attempts_and_creates_have_their_own(self) -> None:
        """One attempt may take attempt_timeout, a create create_attempt_timeout."""
        async with scripted_server("hang") as server:
            async with session(server.url, retry=quick(attempts=2, attempt_timeout=0.05)) as asana:
                with pytest.raises(ConnectionFailedError, match=r"after 0\.\d seconds \(2 attempts\)"):
                    await asana.send(GET)
            async with session(server.url, retry=quick(create_attempt_timeout=0.05)) as asana:
                with pytest.raises((CreateOutcomeUnknownError, ConnectionFailedError)):
                    await asana.send(CREATE)

    async def test_a_slow_limiter_takes_nothing_from_the_attempt(self) -> None:
        """Waiting one's turn may take longer than one attempt."""

        class Slow:
            async def __aenter__(self) -> Self:
                turn = asyncio.Event()
                asyncio.get_running_loop().call_later(0.6, turn.set)
                await turn.wait()
                return self

            async def __aexit__(self, *_: object) -> None: ...

        with jumping_clock() as clock:
            async with scripted_server(OK) as server:
                retry = quick(attempts=1, attempt_timeout=0.5, clock=clock)
                async with session(server.url, limiter=Slow(), retry=retry) as asana:
                    assert (await asana.send(GET)).gid == "43214"

    async def test_sent_at_is_when_the_last_one_went_out(self) -> None:
        """Not when the call began: an attempt may have been refused before."""
        waited_at = []

        async def wait(_: float) -> None:
            waited_at.append(datetime.now(UTC))

        async with scripted_server(errors(429, "Slow down"), "close") as server:
            async with session(server.url, retry=quick(create_attempts=2, sleep=wait)) as asana:
                with pytest.raises(CreateOutcomeUnknownError) as caught:
                    await asana.send(CREATE)

        assert waited_at[0] <= caught.value.sent_at <= datetime.now(UTC)


class TestRefusals:
    """What aiohttp refuses to send is the caller's to mend, said without the token and without aiohttp's error."""

    async def check_refused(self, asana: AsanaSession, match: str, request: Request[Any] = CREATE) -> None:
        with pytest.raises(ConfigurationError, match=match) as caught:
            await asana.send(request)

        shown = "".join(traceback.format_exception(caught.value))
        assert TOKEN not in shown
        assert "canary" not in shown
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    async def test_netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """trust_env is for proxies; a login for the same host cannot go with a token."""
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login user password canary\n")
        monkeypatch.setenv("NETRC", str(netrc))
        async with scripted_server(OK) as server, session(server.url, trust_env=True) as asana:
            await self.check_refused(asana, "netrc")

            assert server.requests == []

    async def test_session_closed_by_its_owner(self) -> None:
        """The session passed as http= may be closed while the token provider is asked; the error says so."""
        http = aiohttp.ClientSession()

        async def provide() -> str:
            await http.close()
            return TOKEN

        async with AsanaSession(provide, base_url="http://127.0.0.1:1", http=http) as asana:
            await self.check_refused(asana, "the session passed as http= is closed")

    async def test_a_middleware_that_fails(self) -> None:
        """The error names the type and the place. Of a create, nobody knows whether the middleware had sent it."""

        async def fail(request: aiohttp.ClientRequest, handler: Any) -> Any:
            await handler(request)
            raise LookupError(request.headers)

        async with scripted_server(OK) as server, aiohttp.ClientSession(middlewares=(fail,)) as http:
            async with session(server.url, http=http) as asana:
                failed = r"LookupError, raised in [a-z.]*test_transport\.fail; the session passed as http="
                with pytest.raises(CreateOutcomeUnknownError, match=failed):
                    await asana.send(CREATE)
                await self.check_refused(asana, failed, GET)

            assert len(server.requests) == 2

    @pytest.mark.parametrize("kind", [TypeError, RuntimeError, LookupError])
    async def test_what_stands_in_for_the_network(self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        """Tools that block or replace connections in tests: the error names theirs, and no session that is not lent."""

        class SocketBlockedError(kind):  # type: ignore[misc, valid-type]
            """As pytest-socket raises it."""

        def block(*_: object, **__: object) -> None:
            raise SocketBlockedError("canary")

        async def replace(*_: object, **__: object) -> None:
            block()

        blocked = r"SocketBlockedError, raised in [a-z.]*test_transport\.block$"
        monkeypatch.setattr(socket, "socket", block)
        async with session("http://127.0.0.1:1") as asana:
            await self.check_refused(asana, blocked)  # while connecting, so it was not sent
            await self.check_refused(asana, blocked, GET)
        monkeypatch.undo()
        monkeypatch.setattr(aiohttp.ClientSession, "_request", replace)
        async with session("http://127.0.0.1:1") as asana:
            await self.check_refused(asana, blocked, GET)
            with pytest.raises(CreateOutcomeUnknownError, match="SocketBlockedError, raised in"):
                await asana.send(CREATE)


def test_a_lent_session_of_another_loop_is_a_clear_error() -> None:
    """It cannot be used here; no RuntimeError of asyncio comes through."""

    async def lend() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(http: aiohttp.ClientSession) -> None:
        async with session("http://127.0.0.1:1", http=http) as asana:
            requests: list[Request[Any]] = [GET, CREATE]
            for request in requests:
                with pytest.raises(
                    ConfigurationError, match=r"RuntimeError.*must be open, and created in the event loop"
                ):
                    await asana.send(request)

    with asyncio.Runner() as first:
        http = first.run(lend())
        with asyncio.Runner() as second:
            second.run(use(http))
        first.run(http.close())


class TestWhatAiohttpIsGiven:
    @pytest.mark.parametrize("trusting", [False, True])
    async def test_proxy_of_the_environment(self, trusting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is used only by those who trust the environment."""
        async with scripted_server(OK) as proxy:
            for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("NETRC", "/dev/null")
            async with session("http://127.0.0.1:1/api", trust_env=trusting) as asana:
                if trusting:
                    await asana.send(GET)
                else:
                    with pytest.raises(ConnectionFailedError):
                        await asana.send(GET)

            assert len(proxy.requests) == trusting

    async def test_ssl(self) -> None:
        """The context that was given greets the server."""
        greetings: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            greetings.append(await reader.read(4096))
            writer.close()

        context = ssl.create_default_context()
        context.set_alpn_protocols(["our-own-context"])
        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, session(f"https://127.0.0.1:{port}", ssl=context) as asana:
            with pytest.raises(ConnectionFailedError):
                await asana.send(CREATE)

        assert b"our-own-context" in greetings[0]

    async def test_no_cookies(self) -> None:
        """What one answer sets does not come back with the next request."""
        setting = answer(200, {"data": {"gid": "43214"}}, headers={"Set-Cookie": "a=b"})
        async with scripted_server(setting) as server:
            url = server.url.replace("127.0.0.1", "localhost")  # jars refuse cookies of bare addresses
            async with session(url) as asana:
                await asana.send(GET)
                await asana.send(GET)

            assert len(server.requests) == 2
            assert "cookie" not in server.requests[1].headers

    @pytest.mark.parametrize("secret", [CREATE.target, CREATE.target.rpartition("/")[2], TOKEN])
    async def test_words_that_echo_a_secret(self, secret: str) -> None:
        """Target, endpoint and token are cut out of what Asana says."""
        async with scripted_server(errors(403, f"cannot use {secret} here")) as server, session(server.url) as asana:
            with pytest.raises(ForbiddenError) as caught:
                await asana.send(CREATE)

        assert caught.value.messages == ("cannot use *** here",)

    async def test_a_short_target_is_cut_out_too(self) -> None:
        """Its endpoint is too short to be cut out alone, but not the whole."""
        create = CreateWebhookRequest(resource="21", target="https://example.com/hook")
        async with scripted_server(errors(403, f"no hook at {create.target}")) as server:
            async with session(server.url) as asana:
                with pytest.raises(ForbiddenError) as caught:
                    await asana.send(create)

        assert caught.value.messages == ("no hook at ***",)

    async def test_an_answer_that_is_far_too_long_ends_its_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody reads on, so the connection cannot be used again."""
        monkeypatch.setattr("asana_webhooks.client.transport._MAX_ANSWER", 1000)
        async with scripted_server(answer(200, b"x" * 30_000_000), OK) as server:
            async with session(server.url, retry=quick(attempts=1)) as asana:
                with pytest.raises(UnexpectedResponseError, match="cut off or too long"):
                    await asana.send(GET)
                await asana.send(GET)

            assert server.connections == 2


class TestAnnouncedChanges:
    async def test_are_logged_once_each(self, caplog: pytest.LogCaptureFixture) -> None:
        """Of all answers, good and bad, and only what affects the requests; no more than anybody would read."""
        first = {"Asana-Change": "name=string_ids;info=https://asa.na/x;affected=true,name=other;affected=false"}
        many = {"Asana-Change": ",".join(f"name=change-{number};affected=true" for number in range(150))}
        good = answer(200, {"data": {"gid": "43214"}}, headers=many)
        bad = errors(404, "no", headers=first)
        async with scripted_server(bad, bad, good) as server, session(server.url) as asana:
            for _ in range(2):
                with pytest.raises(NotFoundError):
                    await asana.send(GET)
            await asana.send(GET)
            await asana.send(GET)

        warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert len(warnings) == len(set(warnings)) == 100
        assert "'string_ids'" in warnings[0]
        assert "'https://asa.na/x'" in warnings[0]

    async def test_can_be_chosen(self, caplog: pytest.LogCaptureFixture) -> None:
        """The session's headers say which side of a change they want; of such a change there is no warning."""
        chosen = {"Asana-Enable": "string_ids", "Asana-Disable": "new_sections"}
        announced = {"Asana-Change": ",".join(f"name={name};affected=true" for name in chosen.values())}
        good = answer(200, {"data": {"gid": "43214"}}, headers=announced)
        async with scripted_server(good) as server, session(server.url, headers=chosen) as asana:
            await asana.send(GET)

        assert server.requests[0].headers["asana-enable"] == "string_ids"
        assert server.requests[0].headers["asana-disable"] == "new_sections"
        assert "announces" not in caplog.text
