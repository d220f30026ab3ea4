"""The doors on real ports: aiohttp, plain ASGI, and mounted in FastAPI and Starlette on uvicorn."""

import io
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from asana_webhooks import (
    AsanaSession,
    MemoryStore,
    Receiver,
    Secret,
    TargetRejectedError,
    establish_webhook,
    sign_body,
)
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.body import Content
from asana_webhooks.receiver.protocol import Headers, Reply
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import registration_id
from asana_webhooks.testing import FakeAsana
from tests.helpers.doors import DOORS, serve_app
from tests.helpers.hostile import connected, raw_request, say
from tests.helpers.hostile import signature as signature_line
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


def posted(url: str, *lines: bytes, endpoint: str = ENDPOINT, keep_alive: bool = False) -> bytes:
    """Return the head of a POST to an endpoint below *url*."""
    return raw_request(*lines, target=f"{urlsplit(url).path}/{endpoint}", length=False, keep_alive=keep_alive)


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
async def test_one_slash_may_follow(door: str, store: MemoryStore, http: aiohttp.ClientSession) -> None:
    """Some tools add a slash to every URL: after an endpoint or health it changes nothing; a second one is a 404."""
    await register(store)
    async with DOORS[door](Receiver(store)) as url:
        for end, status in (("", 200), ("/", 200), ("/?a=1", 200), ("//", 404), ("/x", 404)):
            content = body(event())
            target = f"{url}/{ENDPOINT}{end}"
            async with http.post(target, data=content, headers=signature(content)) as response:
                assert response.status == status, end
        for end in ("/health", "/health/"):
            async with http.get(url + end) as response:
                assert (response.status, (await response.json())["status"]) == (200, "ok")
        async with http.get(f"{url}/health//") as response:
            assert response.status in {404, 405}


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_what_proxies_and_tunnels_add(door: str, store: MemoryStore) -> None:
    """Expect: 100-continue is answered; case, blanks, a query, another type, Asana's second signature do not matter."""
    await register(store)
    content = body(event())
    lines = [
        b"x-HOOK-signature:   " + sign_body(content, secret=SECRET).upper().encode() + b"  ",
        b"X-Asana-Request-Signature: " + sign_body(content, secret=SECRET).encode(),
        b"Content-Type: text/plain",
        b"Content-Length: %d" % len(content),
        b"Expect: 100-continue",
    ]
    async with DOORS[door](Receiver(store)) as url, connected(url) as ear:
        target = f"{urlsplit(url).path}/{ENDPOINT}?utm=1&a=%2F"
        ear.mouth.write(raw_request(*lines, target=target, length=False))
        await ear.answered.wait()
        assert ear.heard.startswith(b"HTTP/1.1 100 ")
        ear.mouth.write(content)
        await ear.over.wait()
        assert b"HTTP/1.1 200 " in ear.heard
    [lease] = await store.claim(9, lease=60)
    assert lease.body == content


@pytest.mark.parametrize("root", ["", "/prod", "/prod/asana"])
async def test_behind_aws_gateways(root: str, store: MemoryStore) -> None:
    """Frameworks that mount the app, and AWS Lambda, pass paths with and without root_path; the endpoint is last."""
    await register(store)
    content = body(event())
    headers = [(name.lower().encode(), value.encode()) for name, value in signature(content).items()]
    messages = iter([{"type": "http.request", "body": content}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"{root}/{ENDPOINT}", "root_path": "/prod", "headers": headers}
    await ReceiverApp(Receiver(store))(scope, receive, send)
    assert sent[0]["status"] == 200


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
    async with serve_app(app) as url:
        target = f"{url}/hooks/{ENDPOINT}"
        async with http.post(target, data=io.BytesIO(content), headers=signature(content)) as response:
            assert response.status == 200


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
    """Anybody can ask for one where the application is mounted; the server answers 403, and its route has a name."""
    scope: dict[str, Any] = {"type": "websocket", "path": f"/asana/{ENDPOINT}", "root_path": "/asana"}

    assert await call(ReceiverApp(Receiver(store)), scope) == [{"type": "websocket.close"}]
    assert scope["route"].path == "/asana/{endpoint}"


async def test_other_protocols_are_refused(store: MemoryStore) -> None:
    """What ASGI may bring besides is an error that says so, as its specification wants."""
    with pytest.raises(ValueError, match="handles HTTP only, not 'telnet'"):
        await call(ReceiverApp(Receiver(store)), {"type": "telnet"})


async def test_only_http_1_has_a_connection_header(store: MemoryStore) -> None:
    """The connection of a refused request is closed, but HTTP/2 forbids the header that says so."""
    for version, names in (("1.1", {b"content-length", b"connection"}), ("2", {b"content-length"})):
        scope: dict[str, object] = {"type": "http", "http_version": version, "headers": []}
        scope |= {"method": "POST", "path": "/asana/x"}
        [start, _] = await call(ReceiverApp(Receiver(store)), scope)
        assert isinstance(start, dict)
        assert start["status"] == 404
        assert {name for name, _ in start["headers"]} == names


async def test_a_peer_that_has_gone_is_no_error_of_the_asgi_app(store: MemoryStore) -> None:
    """Servers raise an OSError when they cannot send; nobody is left to hear of it."""

    async def send(_: object) -> None:
        raise BrokenPipeError

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await ReceiverApp(Receiver(store))(scope, nothing, send)


@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_nobody_reads_ends_the_connection(door: str, framing: bytes, store: MemoryStore) -> None:
    """A handshake is answered without a body that does not end, and what goes on sending cannot keep the connection."""
    endpoint = "pending_0123456789"
    assert await store.open_registration(
        registration_id(endpoint), resource="1", public_url="https://example.com/asana", ttl=60
    )
    async with DOORS[door](Receiver(store, body_timeout=0.1)) as url:
        secret = b"X-Hook-Secret: " + b"s" * 32
        answer = await say(url, posted(url, secret, framing, endpoint=endpoint, keep_alive=True))

    assert answer.status == 200
    assert answer.echoes(Secret("s" * 32))
    assert b"connection: close" in answer.raw.lower()


class Noting(Receiver):
    """Notes whether each body was here or was to come."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.were_here: list[bool] = []

    async def receive(self, endpoint: str, headers: Headers, body: Content) -> Reply:
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
    async with DOORS["aiohttp"](receiver) as url, connected(url) as ear:
        length = b"Content-Length: %d" % len(content)
        message = posted(url, signature_line(content), length) + content
        if parts == 2:
            ear.mouth.write(message[:-1])
            await until(lambda: receiver.were_here != [])
            ear.mouth.write(message[-1:])
        else:
            ear.mouth.write(message)
        await ear.over.wait()
        assert ear.heard.startswith(b"HTTP/1.1 200")

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
