"""Proxies: real ones that pass calls on, and all the ways in which one fails, without its password showing."""

import asyncio
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import trustme

from asana_webhooks.client.oauth import OAuthToken
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError, ConnectionFailedError, DeadlineExceededError, NetworkError
from tests.helpers.proxies import running_proxy
from tests.helpers.raw import (
    CALLS,
    CREATE,
    GET,
    TARGET,
    TOKEN,
    Call,
    assert_nothing_left,
    dripping,
    framed,
    raw_server,
    saying,
    session,
)

PASSWORD = "pAsswOrd-0123456789"
ENCODED = "dXNlcjpwQXNzd09yZC0wMTIzNDU2Nzg5"  # of "user:" and it
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """Return the authority that is trusted here."""
    return trustme.CA()


@pytest.fixture
def tls(ca: trustme.CA) -> ssl.SSLContext:
    """Return what a server needs to be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST).configure_cert(context)
    return context


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    """Return what a client needs to trust it."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave no proxy in the environment but those the test puts there."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    return monkeypatch


@pytest.fixture(autouse=True)
async def nothing_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Fail a test that leaves a task behind, or a password in the log."""
    caplog.set_level(logging.DEBUG, logger="asana_webhooks")
    yield
    assert_nothing_left()
    assert_silent(caplog.text)


def assert_silent(text: str) -> None:
    for secret in (PASSWORD, ENCODED, TOKEN, TARGET):
        assert secret not in text


async def fail(asana: AsanaSession, call: Call) -> NetworkError:
    """Make a call that cannot be made, and return its error, which shows nothing."""
    with pytest.raises(NetworkError) as caught:
        await asana.send(call.request)
    shown = "".join(traceback.format_exception(caught.value))
    assert_silent(f"{shown}{caught.value!r}{asana!r}")
    assert "[None]" not in shown
    assert "object at 0x" not in str(caught.value)
    return caught.value


def with_password(url: str) -> str:
    return url.replace("http://", f"http://user:{PASSWORD}@")


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("password", [None, f"user:{PASSWORD}"], ids=["open", "password"])
async def test_tunnels(call: Call, password: str | None, tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """The proxy carries what it cannot read: not the token, not the target."""
    answer = saying(framed(call.good, status=call.status))
    async with raw_server(answer, tls=tls) as server, running_proxy(password) as proxy:
        url = with_password(proxy.url) if password else proxy.url
        async with session(server.url, proxy=url, ssl=trusting) as asana:
            await asana.send(call.request)

        assert [one.method for one in proxy.requests] == ["CONNECT"]
        assert [one.method for one in server.requests] == [call.request.method]
        assert TOKEN.encode() not in proxy.requests[0].head
        assert ENCODED.encode() not in server.heard


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_plain_requests(call: Call) -> None:
    """Without TLS the proxy gets the whole URL."""
    async with raw_server(saying(framed(call.good, status=call.status))) as server:
        async with running_proxy() as proxy, session(server.url, proxy=proxy.url) as asana:
            await asana.send(call.request)

        assert f"{call.request.method} {server.url}/webhooks".encode() in proxy.requests[0].head
        assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_environments_proxy(
    scheme: str, tls: ssl.SSLContext, trusting: ssl.SSLContext, environment: pytest.MonkeyPatch
) -> None:
    """trust_env takes it, with its password, for the scheme it is named for, and not for hosts in no_proxy."""
    async with raw_server(saying(framed(GET.good)), tls=tls if scheme == "https" else None) as server:
        async with running_proxy(f"user:{PASSWORD}") as proxy:
            environment.setenv(f"{scheme}_proxy", with_password(proxy.url))
            async with session(server.url, ssl=trusting, trust_env=True) as asana:
                await asana.send(GET.request)
                environment.setenv("no_proxy", HOST)
                await asana.send(GET.request)

            assert [one.method for one in proxy.requests] == ["CONNECT" if scheme == "https" else "GET"]
            assert len(server.requests) == 2


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("given", ["", f"user:not-{PASSWORD}@"], ids=["no password", "wrong password"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_password_the_proxy_wants(call: Call, given: str, scheme: str, trusting: ssl.SSLContext) -> None:
    """A 407 is not repeated, because that locks accounts; the error says what to set, and shows no password."""
    async with running_proxy(f"user:{PASSWORD}") as proxy:
        url = proxy.url.replace("//", f"//{given}")
        async with session(f"{scheme}://localhost:1/api/1.0", proxy=url, ssl=trusting) as asana:
            with pytest.raises(ConfigurationError, match=r"407.*set them in the proxy's URL") as caught:
                await asana.send(call.request)

        assert proxy.refused == 1
        assert_silent("".join(traceback.format_exception(caught.value)))


CONNECTIONS_REFUSED = {
    "forbidden": framed(b"<html>forbidden</html>", "Content-Type: text/html", status=403),
    "bad gateway": framed(b"<html>bad gateway</html>", "Content-Type: text/html", status=502),
    "redirect": framed(b"", "Location: http://127.0.0.1:1/", status=302),
    "closed": b"",
    "half a head": b"HTTP/1.1 200 Connection est",
    "closed after": b"HTTP/1.1 200 Connection established\r\n\r\n",
    "no tls after": b"HTTP/1.1 200 Connection established\r\n\r\n<html>",
    "no http": b"\x05\x00\r\n\r\n",
    "no tunnel": framed(b"Welcome"),
}


@pytest.mark.parametrize("call", [GET, CREATE], ids=str)
@pytest.mark.parametrize("how", CONNECTIONS_REFUSED)
async def test_proxies_that_make_no_connection(call: Call, how: str, trusting: ssl.SSLContext) -> None:
    """Nothing was sent, so the failure is a plain one for a create as well."""
    async with raw_server(saying(CONNECTIONS_REFUSED[how])) as proxy:
        url = f"http://user:{PASSWORD}@{HOST}:{proxy.port}"
        async with session("https://asana.invalid/api/1.0", proxy=url, ssl=trusting) as asana:
            error = await fail(asana, call)

        assert isinstance(error, ConnectionFailedError)
        assert error.attempts == (2 if call is CREATE else 4)
        assert "ClientResponseError" not in str(error)
        assert {one.method for one in proxy.requests} == {"CONNECT"}
        assert TOKEN.encode() not in proxy.heard


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxies_that_are_not_there(call: Call, scheme: str) -> None:
    """The error names the proxy's host and port, which are to be looked at, and not its password."""
    async with session(f"{scheme}://localhost:1", proxy=f"http://user:{PASSWORD}@{HOST}:9") as asana:
        error = await fail(asana, call)

    assert isinstance(error, ConnectionFailedError)
    assert f"proxy {HOST}:9" in str(error)


@pytest.mark.parametrize("limits", [{"connect_timeout": 0.1}, {"timeout": 0.1}])
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 Connection established\r\n", b"HTTP/1.1 200 C\r\n\r\n"])
async def test_proxies_that_hang(limits: dict[str, float], head: bytes, trusting: ssl.SSLContext) -> None:
    """Before they answer, halfway, and when the tunnel should stand: each limit ends it."""
    async with raw_server(dripping(head, b"", every=10)) as proxy:
        url = f"http://user:{PASSWORD}@{HOST}:{proxy.port}"
        async with session("https://asana.invalid/api/1.0", proxy=url, ssl=trusting, **limits) as asana:
            error = await fail(asana, CREATE)

    assert isinstance(error, DeadlineExceededError if "timeout" in limits else ConnectionFailedError)


async def test_a_tunnel_that_breaks(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """What was sent through it is lost as anywhere: a read is repeated through a new one."""
    first = asyncio.Event()

    async def talk(writer: asyncio.StreamWriter) -> None:
        if first.is_set():
            writer.write(framed(GET.good))
        else:
            first.set()
            writer.transport.abort()

    async with raw_server(talk, tls=tls) as server, running_proxy() as proxy:
        async with session(server.url, proxy=proxy.url, ssl=trusting) as asana:
            assert (await asana.send(GET.request)).gid == "43214"

        assert [one.method for one in proxy.requests] == ["CONNECT", "CONNECT"]


async def test_a_certificate_behind_a_proxy(tls: ssl.SSLContext) -> None:
    """It is verified through the tunnel as without one."""
    async with raw_server(saying(framed(GET.good)), tls=tls) as server, running_proxy() as proxy:
        async with session(server.url, proxy=proxy.url) as asana:
            error = await fail(asana, CREATE)

        assert "certificate" in str(error)
        assert server.heard == b""


@pytest.mark.parametrize("login", ["user:€", "us%3Aer:x"])
async def test_passwords_that_cannot_be_sent(login: str) -> None:
    """HTTP's basic login knows no such letters; the error shows nothing of it."""
    with pytest.raises(ConfigurationError) as caught:
        async with session("http://127.0.0.1:1", proxy=f"http://{login}-{PASSWORD}@127.0.0.1:9") as asana:
            await asana.send(GET.request)

    assert "proxy" in str(caught.value)
    assert_silent("".join(traceback.format_exception(caught.value)))


GRANTED = framed(b'{"access_token":"2/11/22:granted","expires_in":3600}')


def oauth_token(token_url: str, **changes: Any) -> OAuthToken:
    return OAuthToken(client_id="1", client_secret="2", refresh_token="3", token_url=token_url, **changes)


@pytest.mark.parametrize("way", ["environment", "argument", "lent", "wrapped", "its own environment", "its own"])
async def test_a_refresh_goes_the_way_of_the_calls(
    way: str, tls: ssl.SSLContext, trusting: ssl.SSLContext, environment: pytest.MonkeyPatch
) -> None:
    """The session's proxy with its password, and whom it trusts, hold for the token endpoint; its own go first."""
    answers = saying(GRANTED, framed(GET.good))
    async with (
        raw_server(answers, tls=tls) as server,
        running_proxy(f"user:{PASSWORD}") as proxy,
        AsyncExitStack() as stack,
    ):
        url = with_password(proxy.url)
        environment.setenv("HTTPS_PROXY", url)
        given: dict[str, Any] = {"ssl": trusting, "trust_env": True}
        own: dict[str, Any] = {}
        if way in {"argument", "wrapped"}:
            given = {"ssl": trusting, "proxy": url}
        elif way == "lent":  # a base URL of another server has no part in it
            http = aiohttp.ClientSession("http://127.0.0.1:1/", proxy=url)
            given = {"ssl": trusting, "http": await stack.enter_async_context(http)}
        elif way == "its own environment":
            given, own = {"ssl": trusting, "proxy": "http://127.0.0.1:9"}, given
        elif way == "its own":
            given, own = {"ssl": trusting, "proxy": "http://127.0.0.1:9"}, {"ssl": trusting, "proxy": url}
        token = oauth_token(f"{server.url}/token", **own)

        async def wrapped() -> str:
            return await token()

        async with session(server.url, token=wrapped if way == "wrapped" else token, **given) as asana:
            if own:
                await fail(asana, GET)
            else:
                await asana.send(GET.request)

        paths = [one.head.split()[1].partition(b"?")[0] for one in server.requests]
        assert paths == [b"/api/1.0/token"] + [b"/api/1.0/webhooks/43214"] * (not own)
        assert [one.method for one in proxy.requests] == ["CONNECT"] * len(paths)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_refresh_whose_password_the_proxy_refuses(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is sent once: after a few wrong passwords, some proxies lock the account."""
    async with running_proxy(f"user:{PASSWORD}") as proxy:
        url = proxy.url.replace("//", "//user:wrong-password@")
        token = oauth_token(f"{scheme}://127.0.0.1:1/token")
        async with session("https://asana.invalid/api/1.0", token=token, proxy=url) as asana:
            with pytest.raises(ConfigurationError, match="the proxy answered 407") as caught:
                await asana.send(GET.request)

        assert proxy.refused == len(proxy.requests) == 1
    assert "wrong-password" not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_a_token_that_two_sessions_share(environment: pytest.MonkeyPatch) -> None:
    """A refresh goes the way of the session whose call starts it; asked for by no session, it goes directly."""
    environment.setenv("http_proxy", "http://127.0.0.1:9")
    now = 0
    answers = saying(GRANTED, framed(GET.good), GRANTED, framed(GET.good), GRANTED)
    async with raw_server(answers) as server, running_proxy() as one, running_proxy() as other:
        token = oauth_token(f"{server.url}/token", clock=lambda: now)
        for proxy in (one, other):
            async with session(server.url, token=token, proxy=proxy.url) as asana:
                await asana.send(GET.request)
            assert [asked.method for asked in proxy.requests] == ["POST", "GET"]
            now += 3600
        await token()

        assert [asked.method for asked in server.requests] == ["POST", "GET", "POST", "GET", "POST"]
        assert len(one.requests) == len(other.requests) == 2
