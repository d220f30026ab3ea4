"""A receiver on a port of its own: where it listens, what it says if it cannot, and the order in which it ends."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from asana_webhooks import AsanaSession, ConfigurationError, MemoryStore, Receiver, establish_webhook
from asana_webhooks.receiver.web import serve, webhook_routes
from asana_webhooks.testing import FakeAsana
from tests.helpers.hostile import TIMEOUT, connected, delivery, furnish, say
from tests.helpers.ports import free_port


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver with a confirmed registration."""
    async with MemoryStore() as store:
        await furnish(store)
        yield Receiver(store)


async def test_a_webhook_can_be_established_inside_the_block() -> None:
    """The port is open then, and the URL is the public one of a loopback service."""
    port = free_port()
    async with (
        MemoryStore() as store,
        FakeAsana() as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        serve(Receiver(store), port=port, path="/hooks/asana") as url,
    ):
        assert url == f"http://127.0.0.1:{port}/hooks/asana"
        await establish_webhook(asana, store, public_url=url, resource=fake.projects[0])
        assert len(fake.webhooks) == 1


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]
)
async def test_where_it_listens(host: str, local: str) -> None:
    """The URL leads to the loopback address for all addresses, too, and health is there unless it is left out."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    for path, health, status in (("/asana", True, 200), ("/asana/", False, 405), ("", True, 200)):
        async with serve(Receiver(MemoryStore()), host=host, port=0, path=path, health=health) as url:
            assert (URL(url).host, URL(url).path) == (local, path.rstrip("/") or "/")
            async with aiohttp.ClientSession() as http, http.get(f"{url}/health") as answer:
                assert answer.status == status


async def test_where_it_cannot_listen(receiver: Receiver) -> None:
    """The error names host and port and the reason, and the receiver can be served elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        impossible: list[tuple[dict[str, Any], str]] = [
            ({"port": port}, f"cannot listen on host '127.0.0.1', port {port}: .*address already in use"),
            ({"host": "192.0.2.1", "port": 0}, "host '192.0.2.1', port 0: .*(cannot assign|could not bind)"),
            ({"host": "nowhere.invalid", "port": 0}, "host 'nowhere.invalid', port 0: "),
            ({"host": "x" * 70, "port": 0}, "port 0: "),
            ({"port": 65_536}, "host '127.0.0.1', port 65536: host must be text, and port a number from 0 to 65535"),
            ({"port": -1}, "port -1: host must be text, and port a"),
            ({"port": "8080"}, "port '8080': host must be text, and port a"),
            ({"host": None, "port": 0}, "host None, port 0: host must be text"),
        ]
        for options, text in impossible:
            with pytest.raises(ConfigurationError) as caught:
                async with serve(receiver, **options):
                    pytest.fail("it listens")
            assert re.search(text, str(caught.value))
    async with serve(receiver, port=0) as url:
        assert (await say(url, delivery())).status == 200


async def test_paths_that_are_none(receiver: Receiver) -> None:
    """Both serve and webhook_routes refuse them, and show a path that is right."""
    paths: list[Any] = [
        "asana",
        "/asana?a=1",
        "/asana#a",
        "/{asana}",
        "/a sana",
        "//asana",
        "http://a/asana",
        None,
        "/ä",
    ]
    for path in paths:
        with pytest.raises(ConfigurationError, match='path must look like "/asana"'):
            async with serve(receiver, port=0, path=path):
                pytest.fail("it listens")
        with pytest.raises(ConfigurationError, match='path must look like "/asana"'):
            webhook_routes(receiver, path)
    assert webhook_routes(receiver, "/a/b-1.~%20:@") != []


async def stay(receiver: Receiver, started: "asyncio.Future[str]", end: asyncio.Event) -> None:
    async with serve(receiver, port=0) as url:
        started.set_result(url)
        await end.wait()
        raise RuntimeError("ended")


@pytest.mark.parametrize("how", ["raises", "is cancelled"])
async def test_requests_in_flight_finish_before_the_server_closes(how: str, receiver: Receiver) -> None:
    """However the block ends: what has begun is answered 200, what comes meanwhile 503, and then nobody listens."""
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    end = asyncio.Event()
    serving = asyncio.create_task(stay(receiver, started, end))
    url = await started
    head, _, content = delivery(b"Expect: 100-continue").partition(b"\r\n\r\n")
    async with connected(url) as ear, asyncio.timeout(TIMEOUT):
        ear.mouth.write(head + b"\r\n\r\n")
        await ear.answered.wait()  # 100: it has begun
        end.set() if how == "raises" else serving.cancel()
        while (answer := await say(url, delivery())).status == 200:
            pass
        assert (answer.status, answer.body) == (503, b"stopping")
        assert not serving.done()
        ear.mouth.write(content)
        await ear.over.wait()
        assert b"HTTP/1.1 200 " in ear.heard
        with pytest.raises(RuntimeError if how == "raises" else asyncio.CancelledError):
            await serving
    with pytest.raises(OSError, match="onnect"):
        await say(url, delivery())
