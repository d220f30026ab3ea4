"""A create counts as not sent only if its error proves that no connection was made."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
import trustme

from asana_webhooks.errors import AsanaError, ConfigurationError, ConnectionFailedError, CreateOutcomeUnknownError
from tests.helpers.raw import CREATE, session
from tests.helpers.servers import Step, answer, closing_resets, full_backlog, scripted_server

Place = tuple[str, dict[str, Any]]
"""A base URL, and arguments of the session."""
Situation = Callable[[], AbstractAsyncContextManager[Place]]

HOST = "127.0.0.1"
NOBODY = "http://127.0.0.1:1"
CREATED = answer(CREATE.status, CREATE.good)


def at(url: str, **options: Any) -> Situation:
    """Return a situation without a server."""

    @asynccontextmanager
    async def situation() -> AsyncIterator[Place]:
        yield url, options

    return situation


@asynccontextmanager
async def never_taken() -> AsyncIterator[Place]:
    async with full_backlog() as port:
        yield f"http://{HOST}:{port}", {"connect_timeout": 0.05}


@asynccontextmanager
async def untrusted() -> AsyncIterator[Place]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST).configure_cert(context)
    server = await asyncio.start_server(lambda _, writer: writer.close(), HOST, 0, ssl=context)
    async with server:
        yield f"https://{HOST}:{server.sockets[0].getsockname()[1]}", {}


@asynccontextmanager
async def without_tls() -> AsyncIterator[Place]:
    def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, HOST, 0)
    async with server:
        yield f"https://{HOST}:{server.sockets[0].getsockname()[1]}", {}


def serving(step: Step, *, proxy: bool = False) -> Situation:
    """Return a situation with a server, or a proxy, that answers as *step* says."""

    @asynccontextmanager
    async def situation() -> AsyncIterator[Place]:
        async with scripted_server(step) as server:
            yield ("https://asana.invalid", {"proxy": f"http://{HOST}:{server.port}"}) if proxy else (server.url, {})

    return situation


@asynccontextmanager
async def resetting_at_once() -> AsyncIterator[Place]:
    def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closing_resets(writer)
        writer.transport.abort()

    server = await asyncio.start_server(reset, HOST, 0)
    async with server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}", {}


@asynccontextmanager
async def closed_session() -> AsyncIterator[Place]:
    http = aiohttp.ClientSession()
    await http.close()
    yield NOBODY, {"http": http}


SITUATIONS: dict[str, tuple[Situation, type[AsanaError]]] = {
    "closed port": (at(NOBODY), ConnectionFailedError),
    "unknown host": (at("https://asana.invalid"), ConnectionFailedError),
    "connect timeout": (never_taken, ConnectionFailedError),
    "bad certificate": (untrusted, ConnectionFailedError),
    "TLS to a plain port": (without_tls, ConnectionFailedError),
    "proxy not there": (at("https://asana.invalid", proxy=NOBODY), ConnectionFailedError),
    "proxy not there, no TLS": (at(NOBODY, proxy="http://127.0.0.1:9"), ConnectionFailedError),
    "proxy closes": (serving("close", proxy=True), ConnectionFailedError),
    "proxy resets": (serving("reset", proxy=True), ConnectionFailedError),
    "proxy answers 502": (serving(answer(502, b""), proxy=True), ConnectionFailedError),
    "proxy answers 407": (serving(answer(407, b""), proxy=True), ConfigurationError),
    "closed session": (closed_session, ConfigurationError),
    "reset before the request": (resetting_at_once, CreateOutcomeUnknownError),
    "reset after the request": (serving("reset"), CreateOutcomeUnknownError),
    "closed without an answer": (serving("close"), CreateOutcomeUnknownError),
    "half a head": (serving(b"HTTP/1.1 201 Cre"), CreateOutcomeUnknownError),
    "no HTTP": (serving(b"\x05\x00\r\n\r\n"), CreateOutcomeUnknownError),
}


@pytest.mark.parametrize("name", SITUATIONS)
async def test_what_proves_that_nothing_was_sent(name: str) -> None:
    """Only failures to connect, to look up, to agree on TLS, or to get through a proxy; all else is unknown."""
    situation, kind = SITUATIONS[name]
    async with situation() as (url, options):
        with pytest.raises(AsanaError) as caught:
            async with session(url, create_attempts=1, **options) as asana:
                await asana.send(CREATE.request)

    assert type(caught.value) is kind, caught.value


async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Read the body and set it again, as middlewares do that sign or log it."""
    assert isinstance(request.body, aiohttp.Payload)
    await request.update_body(await request.body.as_bytes())
    return await handler(request)


async def repeat(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send again where nobody listens, after the first answer was lost."""
    with suppress(aiohttp.ServerDisconnectedError):
        await handler(request)
    request.url = request.url.with_port(1)
    return await handler(request)


@pytest.mark.parametrize("middleware", [sign, repeat])
async def test_middlewares_of_a_lent_session(middleware: aiohttp.ClientMiddlewareType) -> None:
    """What they do to the request proves nothing: a create whose answer is lost stays one."""
    async with scripted_server("close") as server, aiohttp.ClientSession(middlewares=(middleware,)) as http:
        async with session(server.url, http=http) as asana:
            with pytest.raises(CreateOutcomeUnknownError):
                await asana.send(CREATE.request)

        assert len(server.requests) == 1


async def test_tracers_of_a_lent_session() -> None:
    """One that fails to connect elsewhere, after Asana's answer, does not make the create one that was not sent."""
    async with scripted_server(CREATED) as server, aiohttp.ClientSession() as metrics:
        tracing = aiohttp.TraceConfig()

        async def report(*_: object) -> None:
            await metrics.post(NOBODY)

        tracing.on_request_end.append(report)
        async with aiohttp.ClientSession(trace_configs=[tracing]) as http, session(server.url, http=http) as asana:
            with pytest.raises(CreateOutcomeUnknownError):
                await asana.send(CREATE.request)

        assert len(server.requests) == 1
