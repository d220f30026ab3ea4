"""The doors on real ports: aiohttp, plain ASGI, and mounted in FastAPI and Starlette on uvicorn."""

import asyncio
import io
import socket
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from asana_webhooks import (
    AsanaSession,
    MemoryStore,
    Receiver,
    TargetRejectedError,
    establish_webhook,
    sign_body,
)
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.protocol import Headers
from asana_webhooks.receiver.reply import Reply
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import registration_id
from asana_webhooks.testing import FakeAsana
from tests.helpers.doors import DOORS, serve_app
from tests.helpers.raw import until
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    """A store."""
    async with MemoryStore() as opened:
        yield opened


def signature(content: bytes) -> dict[str, str]:
    return {"X-Hook-Signature": sign_body(content, secret=SECRET)}


@pytest.mark.parametrize("door", DOORS)
async def test_a_webhook_is_established_and_delivers(door: str, store: MemoryStore) -> None:
    """Handshake, heartbeat and deliveries of the fake get through every door."""
    async with (
        FakeAsana() as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        DOORS[door](Receiver(store)) as public_url,
    ):
        [project] = fake.projects
        established = await establish_webhook(asana, store, public_url=public_url, resource=project)
        fake.change(project, field="due_on")
        await fake.settle()

        assert [delivery.status for delivery in fake.deliveries] == [200, 200]
        [lease] = await store.claim(9, lease=60)
        assert lease.webhook_gid == established.webhook_gid


@pytest.mark.parametrize("door", DOORS)
async def test_refusals_have_their_status_and_an_empty_body(
    door: str, store: MemoryStore, http: aiohttp.ClientSession
) -> None:
    """401, 404, 405 with Allow, 413 and 415 look the same from outside whichever door it is."""
    await register(store)
    content = body(event())
    async with DOORS[door](Receiver(store, max_body=1000)) as public_url:
        target = f"{public_url}/{ENDPOINT}"
        requests = [
            (target, content, {"X-Hook-Signature": "0" * 64}, 401),
            (target, content, {"X-Hook-Secret": "f" * 32}, 401),
            (f"{public_url}/{'x' * 43}", content, signature(content), 404),
            (target, b"x" * 1001, signature(content), 413),
            (target, content, signature(content) | {"Content-Encoding": "br"}, 415),
        ]
        for url, data, headers, status in requests:
            async with http.post(url, data=data, headers=headers) as response:
                assert (response.status, await response.read()) == (status, b"")
        async with http.get(target) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
        assert not await store.claim(9, lease=60)


@pytest.mark.parametrize("door", DOORS)
async def test_a_body_in_many_chunks_is_put_together(
    door: str, store: MemoryStore, http: aiohttp.ClientSession
) -> None:
    """Transfer chunks mean nothing; the signature is checked over all of it, query string or not."""
    await register(store)
    content = body(*(event() for _ in range(3)))

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    async with DOORS[door](Receiver(store)) as public_url:
        url = f"{public_url}/{ENDPOINT}?app_specific=1"
        async with http.post(url, data=chunks(), headers=signature(content)) as response:
            assert response.status == 200

    [lease] = await store.claim(9, lease=60)
    assert lease.body == content


@pytest.mark.parametrize("door", DOORS)
async def test_a_peer_that_goes_away_in_the_middle_leaves_nothing(door: str, store: MemoryStore) -> None:
    """Half a body is not stored, and the server goes on."""
    await register(store)
    content = body(event())
    async with DOORS[door](Receiver(store)) as public_url:
        host, _, port = public_url.removeprefix("http://").partition("/")[0].partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        path = f"/{public_url.partition('//')[2].partition('/')[2]}/{ENDPOINT}"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Hook-Signature: {sign_body(content, secret=SECRET)}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:50])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

        async with aiohttp.ClientSession() as http:
            async with http.post(f"{public_url}/{ENDPOINT}", data=content, headers=signature(content)) as response:
                assert response.status == 200

    assert len(await store.claim(9, lease=60)) == 1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "headers", ["X-Hook-Signature: 0", "X-Hook-Secret: " + "f" * 32], ids=["delivery", "handshake"]
)
async def test_a_refused_peer_cannot_keep_the_connection(door: str, store: MemoryStore, headers: str) -> None:
    """Whoever announces ten gigabytes is answered, and cut off without anybody reading them."""
    await register(store)
    async with DOORS[door](Receiver(store)) as public_url:
        host, _, port = public_url.removeprefix("http://").partition("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/{public_url.partition('//')[2].partition('/')[2]}/{ENDPOINT}"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\nContent-Length: {10**10}\r\n\r\nx".encode())
        answer = await reader.read()  # to the end: the server closes
        writer.close()
        await writer.wait_closed()

        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("door", DOORS)
async def test_a_body_that_breaks_off_inside_a_chunk_is_refused(door: str, store: MemoryStore) -> None:
    """Chunks that make no sense are a 400, whatever was signed, and nothing is kept."""
    await register(store)
    content = body(event())
    async with DOORS[door](Receiver(store)) as public_url:
        host, _, port = public_url.removeprefix("http://").partition("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/{public_url.partition('//')[2].partition('/')[2]}/{ENDPOINT}"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Hook-Signature: {sign_body(content, secret=SECRET)}\r\n"
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        await writer.drain()
        writer.write(b"5\r\n{'eve\r\nno hex\r\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()

        assert b" 400 " in answer
    assert not await store.claim(9, lease=60)


async def test_a_small_client_max_size_of_the_users_app_does_not_cut_deliveries(
    store: MemoryStore, http: aiohttp.ClientSession
) -> None:
    """The door reads the body itself, so aiohttp's limit of 1 MiB in the user's own app does not apply."""
    await register(store)
    content = body(*(event(note="x" * 1000) for _ in range(3000)))
    assert len(content) > 2 * 1024**2
    sub = web.Application()
    sub.add_routes(webhook_routes(Receiver(store), "/"))
    app = web.Application(client_max_size=1024)
    app.add_subapp("/hooks", sub)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/{ENDPOINT}"
        async with http.post(url, data=io.BytesIO(content), headers=signature(content)) as response:
            assert response.status == 200
    finally:
        await runner.cleanup()


async def test_establishing_before_the_port_is_open_cannot_work(store: MemoryStore) -> None:
    """From on_startup nobody can answer the handshake: Asana refuses. Once the site has started, it works."""
    not_listening = socket.socket()
    not_listening.bind(("127.0.0.1", 0))
    async with FakeAsana() as fake, AsanaSession(fake.token, base_url=fake.url) as asana:
        public_url = f"http://127.0.0.1:{not_listening.getsockname()[1]}/asana"
        failures = []

        async def too_early(_: web.Application) -> None:
            with pytest.raises(TargetRejectedError) as caught:
                await establish_webhook(asana, store, public_url=public_url, resource=fake.projects[0])
            failures.append(caught.value.status)

        app = web.Application()
        app.add_routes(webhook_routes(Receiver(store)))
        app.on_startup.append(too_early)
        runner = web.AppRunner(app)
        await runner.setup()
        assert failures == [400]
        assert not fake.webhooks
        await web.SockSite(runner, not_listening).start()
        await establish_webhook(asana, store, public_url=public_url, resource=fake.projects[0])
        await runner.cleanup()

        assert len(fake.webhooks) == 1


async def nothing() -> dict[str, object]:
    raise AssertionError


async def call(app: ReceiverApp, scope: dict[str, object]) -> list[object]:
    """Call an ASGI application as a server does; return what it sends."""
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    await app(scope, nothing, send)
    return sent


async def test_websockets_are_not_accepted(store: MemoryStore) -> None:
    """Anybody can ask for one where the application is mounted; the server answers 403, and nothing is raised."""
    assert await call(ReceiverApp(Receiver(store)), {"type": "websocket"}) == [{"type": "websocket.close"}]


async def test_the_asgi_app_speaks_http_only(store: MemoryStore) -> None:
    """Whatever else a server may speak one day is a clear error."""
    with pytest.raises(ValueError, match="HTTP only"):
        await call(ReceiverApp(Receiver(store)), {"type": "webtransport"})


async def test_a_peer_that_has_gone_is_no_error_of_the_asgi_app(store: MemoryStore) -> None:
    """Servers raise an OSError when they cannot send; nobody is left to hear of it."""

    async def send(_: object) -> None:
        raise BrokenPipeError

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await ReceiverApp(Receiver(store))(scope, nothing, send)


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
async def test_a_body_that_nobody_reads_ends_the_connection(door: str, framing: str, store: MemoryStore) -> None:
    """A handshake is answered without its body, and what goes on sending cannot keep the connection."""
    endpoint = "pending_0123456789"
    await store.open(registration_id(endpoint), resource="1", ttl=60)
    async with DOORS[door](Receiver(store)) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST {parts.path}/{endpoint} HTTP/1.1\r\nHost: x\r\nX-Hook-Secret: {'s' * 32}\r\n{framing}\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"s" * 32 in answer
    assert b"connection: close" in answer.lower()


class Noting(Receiver):
    """Notes whether each body was here or was to come."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.were_here: list[bool] = []

    async def receive(self, endpoint: str, headers: Headers, body: bytes | AsyncIterable[bytes]) -> Reply:
        self.were_here.append(isinstance(body, bytes))
        return await super().receive(endpoint, headers, body)


@pytest.mark.parametrize(
    ("size", "parts", "is_here"),
    [(0, 1, True), (60_000, 1, True), (70_000, 1, False), (0, 2, False)],
    ids=["short", "as long as may be", "too long for that", "late"],
)
async def test_a_short_body_that_is_here_is_taken_at_once(
    store: MemoryStore, size: int, parts: int, is_here: bool
) -> None:
    """Whatever is longer, or comes later than its head, is read piece by piece; all of it is stored either way."""
    await register(store)
    content = body(event(note="x" * size))
    receiver = Noting(store)
    async with DOORS["aiohttp"](receiver) as url:
        parts_ = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts_.hostname, parts_.port)
        signature = sign_body(content, secret=SECRET)
        head = f"POST {parts_.path}/{ENDPOINT} HTTP/1.1\r\nHost: x\r\nX-Hook-Signature: {signature}\r\n"
        message = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        if parts == 2:
            writer.write(message[:-1])
            await until(lambda: receiver.were_here != [])
            writer.write(message[-1:])
        else:
            writer.write(message)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

    assert receiver.were_here == [is_here]
    [lease] = await store.claim(9, lease=60)
    assert lease.body == content


async def test_a_peer_that_has_gone_before_it_is_its_turn(store: MemoryStore, http: aiohttp.ClientSession) -> None:
    """A server takes the body back from a request whose peer is gone, even if it is here; that is a body cut off."""

    @web.middleware
    async def gone(request: web.Request, handler: Any) -> web.StreamResponse:
        await request.read()
        request.content.set_exception(ConnectionResetError("gone"))
        response: web.StreamResponse = await handler(request)
        return response

    await register(store)
    content = body(event())
    app = web.Application(middlewares=[gone])
    app.add_routes(webhook_routes(Receiver(store)))
    async with serve_app(app) as url:
        async with http.post(f"{url}/asana/{ENDPOINT}", data=content, headers=signature(content)) as response:
            assert response.status == 400
    assert not await store.claim(9, lease=60)
