"""FaultProxy between two bare sockets, byte for byte, and between an AsanaSession and the fake, as users have it."""

import ast
import asyncio
import inspect
import os
import resource
import socket
import ssl
import struct
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme
from aiohttp import web
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

import asana_webhooks
from asana_webhooks import AsanaSession, RetryPolicy, create_webhook, get_webhook
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    UnexpectedResponseError,
)
from asana_webhooks.testing import FakeAsana, FaultProxy, StreamFault
from tests.helpers.cancelling import cancel_at_every_step
from tests.testing.fake_play import PROJECT, Target, serving

RESET = StreamFault(reset_after=0)
SWALLOW = StreamFault(swallow=True)
AT_ONCE = RetryPolicy(first_wait=0.0, longest_wait=0.0)
Way = Literal["requests", "replies"]
End = Literal["reset", "closed"]
WAYS = pytest.mark.parametrize("way", ["requests", "replies"])
ENDS = pytest.mark.parametrize("end", ["reset", "closed"])


@define
class Peer:
    """One end of a connection: a bare socket."""

    sock: socket.socket

    async def send(self, content: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, content)

    async def receive(self, size: int = 1 << 16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def receive_all(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            more = await self.receive(size - len(got))
            assert more, f"the end came after {got!r}"
            got += more
        return got

    async def rest(self) -> tuple[bytes, str]:
        """Return everything that still comes, and how it ends."""
        got = b""
        try:
            while more := await self.receive():
                got += more
        except ConnectionResetError:
            return got, "reset"
        return got, "closed"

    def has_nothing(self) -> bool:
        """Tell whether neither a byte nor an end has come."""
        try:
            self.sock.recv(1)
        except BlockingIOError:
            return True
        return False

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@define
class Wire:
    """A proxy, and a bare socket that listens upstream of it."""

    proxy: FaultProxy
    listening: socket.socket
    sockets: list[socket.socket] = field(factory=list)

    def _peer(self, sock: socket.socket) -> Peer:
        sock.setblocking(False)
        self.sockets.append(sock)
        return Peer(sock)

    def script(self, way: Way, fault: StreamFault) -> None:
        """Script a fault for the next connection."""
        if way == "requests":
            self.proxy.script(requests=fault)
        else:
            self.proxy.script(replies=fault)

    def call(self, *, receive_buffer: int = 1 << 16) -> Peer:
        """Connect a client, whose side of the line takes about so many bytes unread."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer = self._peer(sock)
        sock.setblocking(True)
        sock.connect((self.proxy.host, self.proxy.port))
        sock.setblocking(False)
        return peer

    async def answer(self) -> Peer:
        """Accept a connection upstream."""
        return self._peer((await asyncio.get_running_loop().sock_accept(self.listening))[0])

    async def connect(self) -> tuple[Peer, Peer]:
        """Return both ends of a new connection."""
        client = self.call()
        return client, await self.answer()

    async def connect_for(self, way: Way) -> tuple[Peer, Peer]:
        """Return the end that sends and the end that receives what goes this way."""
        client, server = await self.connect()
        return (client, server) if way == "requests" else (server, client)


def listen(port: int = 0) -> socket.socket:
    listening = socket.create_server(("127.0.0.1", port))
    listening.setblocking(False)
    return listening


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def wired(**options: Any) -> AsyncIterator[Wire]:
    """Open a proxy between bare sockets; afterwards no task and no descriptor of it is left."""
    before = descriptors()
    with listen() as listening:
        proxy = FaultProxy(listening.getsockname(), **options)
        wire = Wire(proxy, listening)
        try:
            async with proxy:
                yield wire
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert proxy.ended == proxy.connections
        finally:
            for sock in wire.sockets:
                sock.close()
    assert descriptors() == before


def cut_after(size: int, end: End) -> StreamFault:
    return StreamFault(reset_after=size) if end == "reset" else StreamFault(close_after=size)


@asynccontextmanager
async def asking(**options: Any) -> AsyncIterator[tuple[AsanaSession, FaultProxy, FakeAsana]]:
    """Open a session that reaches the fake through a proxy and does not wait between attempts."""
    async with (
        FakeAsana(webhooks=1) as fake,
        FaultProxy(fake.url) as proxy,
        AsanaSession(fake.token, base_url=proxy.url, **({"retry": AT_ONCE} | options)) as asana,
    ):
        yield asana, proxy, fake


class Sleep:
    """Stands in for time: writes down what is slept, and waits until it is let go on."""

    def __init__(self, *, held: bool = False) -> None:
        self.slept: list[float] = []
        self.came = asyncio.Event()
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.came.set()
        await self.go.wait()


async def turns(number: int = 50) -> None:
    """Let everything happen that can happen by itself."""
    for _ in range(number):
        await asyncio.sleep(0)


class TestHealthy:
    async def test_bytes_pass_both_ways(self) -> None:
        """What one end sends the other gets, and it is counted."""
        async with wired() as wire:
            client, server = await wire.connect()
            await client.send(b"ask")
            assert await server.receive_all(3) == b"ask"
            await server.send(b"answer")
            assert await client.receive_all(6) == b"answer"

            await wire.proxy.reached(request_bytes=3, reply_bytes=6)
            assert (wire.proxy.request_bytes, wire.proxy.reply_bytes, wire.proxy.swallowed_bytes) == (3, 6, 0)
            assert (wire.proxy.connections, wire.proxy.ended, wire.proxy.cut) == (1, 0, 0)

    @WAYS
    async def test_half_closes_pass(self, way: Way) -> None:
        """An end that has said all it has to say still hears the other one out."""
        async with wired() as wire:
            first, second = await wire.connect_for(way)
            await first.send(b"all")
            first.end()
            assert await second.rest() == (b"all", "closed")
            await second.send(b"then this")
            second.end()
            assert await first.rest() == (b"then this", "closed")

            await wire.proxy.reached(ended=1)
            assert wire.proxy.cut == 0

    async def test_the_end_cuts_nothing_off(self) -> None:
        """When both ends have said all, what a slow reader has not taken yet still comes to it."""
        async with wired() as wire:
            client = wire.call(receive_buffer=4096)
            server = await wire.answer()
            client.end()
            await server.send(bytes(20_000))
            server.end()
            await wire.proxy.reached(ended=1)

            assert await client.rest() == (bytes(20_000), "closed")

    @WAYS
    async def test_resets_pass(self, way: Way) -> None:
        """A reset by one end is one for the other, and not counted as the proxy's."""
        async with wired() as wire:
            first, second = await wire.connect_for(way)
            first.reset()
            assert await second.rest() == (b"", "reset")

            await wire.proxy.reached(ended=1)
            assert wire.proxy.cut == 0

    async def test_slow_readers_are_waited_for(self) -> None:
        """What nobody reads is not read either: the sender has to wait, and the proxy holds next to nothing."""
        async with wired() as wire:
            client, server = await wire.connect()
            content = os.urandom(1 << 20) * 64
            sending = asyncio.create_task(server.send(content))
            passed = -1
            while passed < wire.proxy.reply_bytes:
                passed = wire.proxy.reply_bytes
                await turns(200)
            assert not sending.done()

            hashed = 0
            while hashed < len(content):
                more = await client.receive(1 << 20)
                assert more == content[hashed : hashed + len(more)]
                hashed += len(more)
            await sending

    async def test_tls(self) -> None:
        """TLS passes as bytes: certificates are checked, and an answer that is cut off is asked for again."""
        authority = trustme.CA()
        serving_tls, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("localhost").configure_cert(serving_tls)
        authority.configure_trust(trusting)
        app = web.Application()
        app.router.add_get("/api/1.0/webhooks/7", _answer_seven)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving_tls).start()
            upstream = f"https://localhost:{runner.addresses[0][1]}/api/1.0"
            async with (
                FaultProxy(upstream) as proxy,
                AsanaSession("0/1", base_url=proxy.url, ssl=trusting, retry=AT_ONCE) as asana,
            ):
                assert (await get_webhook(asana, "7")).gid == "7"
                proxy.script(replies=StreamFault(reset_after=10))
                assert (await get_webhook(asana, "7")).gid == "7"
                assert (proxy.connections, proxy.cut) == (2, 1)
        finally:
            await runner.cleanup()


async def _answer_seven(_: web.Request) -> web.Response:
    return web.json_response({"data": {"gid": "7"}})


class TestFaults:
    @WAYS
    @pytest.mark.parametrize("size", [0, 1, 4])
    @ENDS
    async def test_cut_off(self, way: Way, size: int, end: End) -> None:
        """So many bytes arrive and no more, and both ends see the same end of it."""
        async with wired() as wire:
            wire.script(way, cut_after(size, end))
            first, second = await wire.connect_for(way)
            await first.send(b"first"[:size])
            assert await second.receive_all(size) == b"first"[:size]
            assert wire.proxy.cut == 0  # not before there is more

            await first.send(b"too much")
            assert await second.rest() == (b"", end)
            assert await first.rest() == (b"", end)
            await wire.proxy.reached(cut=1)
            assert (wire.proxy.cut, wire.proxy.ended) == (1, 1)
            assert wire.proxy.request_bytes + wire.proxy.reply_bytes == size

    @WAYS
    async def test_cut_off_within_a_chunk(self, way: Way) -> None:
        """Bytes are counted one by one, not as they were sent, and the other way goes on until then."""
        async with wired() as wire:
            wire.script(way, StreamFault(close_after=6))
            first, second = await wire.connect_for(way)
            await second.send(b"the other way")
            assert await first.receive_all(13) == b"the other way"
            await first.send(b"0123")
            await first.send(b"456789")

            assert await second.rest() == (b"012345", "closed")

    async def test_a_close_is_no_reset_whatever_is_unread(self) -> None:
        """A slow client that is still sending sees all of its bytes and the end, not a reset: that came to it after
        all.
        """
        sleep = Sleep(held=True)
        async with wired(sleep=sleep) as wire:
            wire.proxy.script(requests=StreamFault(latency=1.0), replies=StreamFault(close_after=20_000))
            client = wire.call(receive_buffer=4096)
            server = await wire.answer()
            await client.send(b"one")
            await sleep.came.wait()
            await client.send(b"two")
            await server.send(bytes(20_001))
            await wire.proxy.reached(ended=1)

            assert await client.rest() == (bytes(20_000), "closed")

    @WAYS
    async def test_swallow(self, way: Way) -> None:
        """Nothing arrives, not even the end; the other way all is well."""
        async with wired() as wire:
            wire.script(way, SWALLOW)
            first, second = await wire.connect_for(way)
            await first.send(b"lost")
            await wire.proxy.reached(swallowed_bytes=4)
            first.end()
            await second.send(b"not lost")
            assert await first.receive_all(8) == b"not lost"
            await turns()
            assert second.has_nothing()

            second.end()
            await wire.proxy.reached(ended=1)
            assert wire.proxy.request_bytes + wire.proxy.reply_bytes == 8

    @WAYS
    async def test_latency(self, way: Way) -> None:
        """Each chunk waits its seconds, and nothing passes before."""
        sleep = Sleep(held=True)
        async with wired(sleep=sleep) as wire:
            wire.script(way, StreamFault(latency=2.5))
            first, second = await wire.connect_for(way)
            await second.send(b"the other way")
            assert await first.receive_all(13) == b"the other way"
            assert sleep.slept == []
            await first.send(b"one")
            await sleep.came.wait()
            await turns()
            assert second.has_nothing()
            sleep.go.set()
            assert await second.receive_all(3) == b"one"
            await first.send(b"two")
            assert await second.receive_all(3) == b"two"

            assert sleep.slept == [2.5, 2.5]

    @WAYS
    async def test_slices(self, way: Way) -> None:
        """A chunk goes in slices, each of which waits."""
        sleep = Sleep()
        async with wired(sleep=sleep) as wire:
            wire.script(way, StreamFault(slice_size=3, latency=0.5, close_after=8))
            first, second = await wire.connect_for(way)
            await first.send(b"0123456789")

            assert await second.rest() == (b"01234567", "closed")
            assert sleep.slept == [0.5] * 4  # 3, 3, 2, and what came too much

    async def test_slices_arrive_apart(self) -> None:
        """They are not put together again on the way, and cost no real time."""
        async with wired() as wire:
            wire.proxy.script(replies=StreamFault(slice_size=1))
            client, server = await wire.connect()
            await server.send(bytes(1000))
            pieces: list[int] = []
            while sum(pieces) < 1000:
                pieces.append(len(await client.receive()))

            assert len(pieces) > 400
            [connection] = wire.proxy._open.values()  # a busy machine alone does not show this:
            assert connection._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection._upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @pytest.mark.parametrize(
        ("members", "match"),
        [
            ({"latency": -1}, "latency must be a finite number of seconds"),
            ({"latency": None}, "latency must be"),
            ({"slice_size": 0}, "slice_size must be a whole number of at least 1"),
            ({"slice_size": 1.5}, "slice_size"),
            ({"reset_after": -1}, "reset_after must be a whole number"),
            ({"close_after": True}, "close_after must be a whole number"),
            ({"swallow": 1}, "swallow must be True or False"),
            ({"reset_after": 0, "close_after": 0}, "only one of"),
            ({"reset_after": 0, "swallow": True}, "only one of"),
            ({"close_after": 0, "swallow": True}, "only one of"),
        ],
    )
    def test_nonsense(self, members: dict[str, Any], match: str) -> None:
        """What cannot be meant is refused where it is said."""
        with pytest.raises(ConfigurationError, match=match):
            StreamFault(**members)

    @given(
        chunks=st.lists(st.integers(1, 100), max_size=10),
        slice_size=st.none() | st.integers(1, 50),
        end=st.none() | st.integers(0, 300),
        how=st.sampled_from(["reset_after", "close_after"]),
    )
    def test_next_slice(self, chunks: list[int], slice_size: int | None, end: int | None, how: str) -> None:
        """However bytes come, as many pass as may, in no slice that is too long, and the end comes with the next."""
        members: dict[str, Any] = {"slice_size": slice_size, how: end}
        fault = StreamFault(**members)
        passed = 0
        for waiting in chunks:
            left = waiting
            while left:
                size = fault.next_slice(passed=passed, waiting=left)
                if not size:
                    assert passed == end
                    return
                assert 0 < size <= min(left, slice_size or left)
                passed, left = passed + size, left - size

        assert passed == sum(chunks) <= (sum(chunks) if end is None else end)


class TestScript:
    async def test_the_next_connections_in_order(self) -> None:
        """Each script has its connections, one after the other; those after them are healthy."""
        async with wired() as wire:
            wire.proxy.script(replies=StreamFault(close_after=1), connections=2)
            wire.proxy.script()
            wire.proxy.script(replies=StreamFault(close_after=2))
            got = []
            for _ in range(5):
                client, server = await wire.connect()
                await server.send(b"abc")
                server.end()
                got.append((await client.rest())[0])

            assert got == [b"a", b"a", b"abc", b"ab", b"abc"]

    async def test_all_until_healed(self) -> None:
        """With None there is no end to it, but for heal, which also forgets what was to come."""
        async with wired() as wire:
            wire.proxy.script(replies=StreamFault(close_after=1), connections=None)
            wire.proxy.script(replies=RESET)
            for _ in range(3):
                client, server = await wire.connect()
                await server.send(b"abc")
                assert await client.rest() == (b"a", "closed")
            wire.proxy.heal()
            client, server = await wire.connect()
            await server.send(b"abc")
            server.end()
            assert await client.rest() == (b"abc", "closed")

    async def test_open_connections_too(self) -> None:
        """A connection that is kept open takes a fault with its next request; one that is idle leaves it to others."""
        async with wired() as wire:
            (idle, idle_server), (client, server) = await wire.connect(), await wire.connect()
            await client.send(b"before")
            await server.receive_all(6)
            wire.proxy.script(replies=StreamFault(close_after=2))
            await server.send(b"an old answer")
            await client.receive_all(13)
            await client.send(b"ask")
            await server.receive_all(3)
            await server.send(b"abc")
            assert await client.rest() == (b"ab", "closed")

            await idle.send(b"ask")
            await idle_server.receive_all(3)
            await idle_server.send(b"abc")
            assert await idle.receive_all(3) == b"abc"

    async def test_one_at_a_time(self) -> None:
        """A request in pieces does not take one fault with each, but a later script comes to it."""
        async with wired() as wire:
            client, server = await wire.connect()
            wire.proxy.script(requests=StreamFault(slice_size=1))
            wire.proxy.script(requests=RESET)
            for piece in (b"one", b"two", b"three"):
                await client.send(piece)
                assert await server.receive_all(len(piece)) == piece
            wire.proxy.script(requests=StreamFault(reset_after=4))
            await client.send(b"fourth")
            assert await server.rest() == (b"four", "reset")

            other, _ = await wire.connect()  # the second script is still there for another one
            await other.send(b"x")
            assert await other.rest() == (b"", "reset")

    async def test_heal_while_slices_wait(self) -> None:
        """What still waits passes as soon as its sleep is over, whole."""
        sleep = Sleep(held=True)
        async with wired(sleep=sleep) as wire:
            wire.proxy.script(replies=StreamFault(slice_size=1, latency=9.0, reset_after=0))
            client, server = await wire.connect()
            await server.send(b"abcdef")
            await sleep.came.wait()
            wire.proxy.heal()
            sleep.go.set()

            assert await client.receive_all(6) == b"abcdef"
            assert sleep.slept == [9.0]

    async def test_heal_after_swallowing(self) -> None:
        """What was swallowed is lost, what comes later passes."""
        async with wired() as wire:
            wire.proxy.script(replies=SWALLOW)
            client, server = await wire.connect()
            await server.send(b"lost")
            await wire.proxy.reached(swallowed_bytes=4)
            wire.proxy.heal()
            await server.send(b"not lost")

            assert await client.receive_all(8) == b"not lost"

    async def test_refuse(self) -> None:
        """Connections are refused, not made and reset; open ones go on; healed, it has the same port."""
        async with wired() as wire:
            client, server = await wire.connect()
            port = wire.proxy.port
            wire.proxy.refuse()
            wire.proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                wire.call()
            await client.send(b"still")
            assert await server.receive_all(5) == b"still"
            assert wire.proxy.connections == 1

            wire.proxy.heal()
            again, _ = await wire.connect()
            assert again.sock.getpeername() == ("127.0.0.1", port)
            wire.proxy.refuse()  # the port is given back even so

    async def test_reset_all(self) -> None:
        """Every open connection is reset on both sides when it returns; new ones are not concerned."""
        async with wired() as wire:
            pairs = [await wire.connect() for _ in range(3)]
            await wire.proxy.reset_all()
            assert (wire.proxy.connections, wire.proxy.ended, wire.proxy.cut) == (3, 3, 3)
            for pair in pairs:
                for peer in pair:
                    with pytest.raises(ConnectionResetError):
                        peer.sock.recv(1)

            client, server = await wire.connect()
            await client.send(b"new")
            assert await server.receive_all(3) == b"new"

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"requests": "reset"}, "requests must be a StreamFault or None, not 'reset'"),
            ({"replies": 1}, "replies must be a StreamFault"),
            ({"connections": 0}, "connections must be a whole number of at least 1"),
        ],
    )
    async def test_nonsense(self, arguments: dict[str, Any], match: str) -> None:
        """What cannot be meant is refused, and nothing of it is kept."""
        async with wired() as wire:
            with pytest.raises(ConfigurationError, match=match):
                wire.proxy.script(**{"replies": RESET} | arguments)
            client, server = await wire.connect()
            await server.send(b"abc")
            assert await client.receive_all(3) == b"abc"


class TestUpstream:
    @pytest.mark.parametrize(
        ("upstream", "url"),
        [
            ("http://127.0.0.1:1234/api/1.0", "http://127.0.0.1:{}/api/1.0"),
            ("https://localhost:1234/api/1.0", "https://localhost:{}/api/1.0"),
            (URL("http://[::1]:1234"), "http://127.0.0.1:{}"),
            ("http://db.example/a%2Fb?c=d", "http://127.0.0.1:{}/a%2Fb?c=d"),
            ("postgresql://me:pa%40ss@db.example:5432/asana", "postgresql://me:pa%40ss@127.0.0.1:{}/asana"),
        ],
    )
    async def test_url(self, upstream: str | URL, url: str) -> None:
        """The proxy's URL is the one it was given, but for the port and, unless it is localhost, the host."""
        async with FaultProxy(upstream) as proxy:
            assert proxy.url == url.format(proxy.port)
            assert "pa" not in repr(proxy)

    async def test_host_and_port(self) -> None:
        """A pair makes no URL."""
        async with FaultProxy(("127.0.0.1", 1)) as proxy:
            with pytest.raises(ConfigurationError, match="use the proxy's host and port"):
                _ = proxy.url

    @pytest.mark.parametrize(
        "upstream",
        [
            *("", "me:S3cret@/", "postgresql://me:S3cret@db.example/", "http://h:0", "http://h:S3cret", None, 1),
            *(("h",), ("h", "1"), ("h", 0), ("h", 65536), ("", 1), (b"h", 1)),
        ],
    )
    def test_no_upstream(self, upstream: Any) -> None:
        """Without host and port there is nothing to pass on to; what was given is not shown, it may be a secret."""
        with pytest.raises(ConfigurationError, match="names a host and a port") as caught:
            FaultProxy(upstream)

        assert "S3cret" not in str(caught.value)

    async def test_unreachable(self, caplog: pytest.LogCaptureFixture) -> None:
        """A client is reset while nothing listens there, the log says why, and later ones are tried again."""
        with listen() as listening:
            address = listening.getsockname()
        async with FaultProxy(address) as proxy:
            wire = Wire(proxy, listening)
            client = wire.call()
            assert await client.rest() == (b"", "reset")
            await proxy.reached(cut=1)
            assert f"cannot reach 127.0.0.1 port {address[1]}" in caplog.text

            with listen(address[1]) as wire.listening:
                again, server = await wire.connect()
                await server.send(b"here again")
                assert await again.receive_all(10) == b"here again"
            for sock in wire.sockets:
                sock.close()

    @pytest.mark.parametrize("host", ["no..name", "::1"])
    async def test_no_such_host(self, host: str, caplog: pytest.LogCaptureFixture) -> None:
        """A name that cannot be one is unreachable like an address where nothing listens."""
        async with FaultProxy((host, 1)) as proxy:
            with socket.create_connection((proxy.host, proxy.port)) as sock:
                sock.setblocking(False)
                assert await Peer(sock).rest() == (b"", "reset")
            await proxy.reached(cut=1)
        assert f"cannot reach {host} port 1" in caplog.text

    async def test_ipv6(self) -> None:
        """An upstream on IPv6 is reached."""
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
            listening.setblocking(False)
            async with FaultProxy(f"http://[::1]:{listening.getsockname()[1]}") as proxy:
                wire = Wire(proxy, listening)
                client, server = await wire.connect()
                await server.send(b"six")
                assert await client.receive_all(3) == b"six"
                for sock in wire.sockets:
                    sock.close()

    @pytest.mark.parametrize("free", [0, 1])
    async def test_too_many_files_open(self, free: int, caplog: pytest.LogCaptureFixture) -> None:
        """Without a descriptor a client waits, with only one it is reset; the proxy lives on."""
        async with wired() as wire:
            client = wire.call()
            with files_left(free):
                await turns()
                assert wire.proxy.connections == 0
            if free:
                assert await client.rest() == (b"", "reset")
                client = wire.call()
            server = await wire.answer()
            await server.send(b"x")
            assert await client.receive_all(1) == b"x"
        assert caplog.records == []


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """Let the process open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestLife:
    USES: tuple[Callable[[FaultProxy], Any], ...] = (
        lambda proxy: proxy.script(),
        lambda proxy: proxy.refuse(),
        lambda proxy: proxy.heal(),
        lambda proxy: proxy.reset_all(),
        lambda proxy: proxy.reached(connections=1),
    )

    @pytest.mark.parametrize("use", USES)
    async def test_not_before_the_start_nor_after_the_end(self, use: Callable[[FaultProxy], Any]) -> None:
        """A proxy that does not run says so whatever is asked of it."""

        async def used(proxy: FaultProxy) -> None:
            found = use(proxy)
            if found is not None:
                await found

        proxy = FaultProxy(("127.0.0.1", 1))
        with pytest.raises(ConfigurationError, match="not running: use async with"):
            await used(proxy)
        async with proxy:
            assert "running" in repr(proxy)
        with pytest.raises(ConfigurationError, match="closed"):
            await used(proxy)

    def test_no_port_before_the_start(self) -> None:
        """Nobody knows its port yet."""
        for name in ("port", "url"):
            with pytest.raises(ConfigurationError, match="not running"):
                getattr(FaultProxy("http://h"), name)

    async def test_once(self) -> None:
        """It can be started once and closed again and again, even before the start; its port is known to the end."""
        proxy = FaultProxy("http://h")
        await proxy.aclose()
        with pytest.raises(ConfigurationError, match="started once"):
            await proxy.start()
        async with FaultProxy("http://h") as proxy:
            with pytest.raises(ConfigurationError, match="started once"):
                await proxy.start()
            url = proxy.url
        await proxy.aclose()
        assert proxy.url == url

    async def test_port_taken(self) -> None:
        """While it refuses, others could take its port only on purpose; the error says so, and it can try again."""
        async with wired() as wire:
            wire.proxy.refuse()
            with socket.socket() as ordinary, pytest.raises(OSError, match="in use"):
                ordinary.bind(("127.0.0.1", wire.proxy.port))
            with listen(wire.proxy.port), pytest.raises(ConfigurationError, match="in use"):
                wire.proxy.heal()
            wire.proxy.heal()
            client, server = await wire.connect()
            await client.send(b"x")
            assert await server.receive_all(1) == b"x"

    async def test_no_port_free(self) -> None:
        """Where no port can be had, the error says so, and what was opened until then is closed."""
        before = descriptors()
        for free in (0, 1):
            with files_left(free), pytest.raises(ConfigurationError, match=r"listen on 127\.0\.0\.1: Too many open"):
                await FaultProxy("http://h").start()
            assert descriptors() == before

    async def test_reached_ends_with_the_proxy(self) -> None:
        """Nobody waits for what cannot come any more."""
        async with FaultProxy("http://h") as proxy:
            waiting = asyncio.create_task(proxy.reached(cut=1))
            await turns()
        with pytest.raises(ConfigurationError, match="closed"):
            await waiting
        await proxy.reached(cut=0)

    async def test_reached_by_all_who_wait(self) -> None:
        """Several can wait for different figures; numbers that are none are refused."""
        async with wired() as wire:
            waiting = [asyncio.create_task(wire.proxy.reached(reply_bytes=size)) for size in (1, 2, 3)]
            client, server = await wire.connect()
            await server.send(b"ab")
            await asyncio.wait_for(asyncio.gather(*waiting[:2]), 10)
            assert not waiting[2].done()
            await server.send(b"c")
            await waiting[2]
            assert await client.receive_all(3) == b"abc"
            with pytest.raises(ConfigurationError, match="connections must be"):
                await wire.proxy.reached(connections=-1)

    async def test_whatever_is_under_way_ends_with_it(self) -> None:
        """Idle, sleeping, swallowing, half closed, just accepted, stuck in a write: all are reset."""
        sleep = Sleep(held=True)
        async with wired(sleep=sleep) as wire:
            idle, _ = await wire.connect()
            wire.proxy.script(replies=StreamFault(latency=60.0))
            sleeping, server = await wire.connect()
            await server.send(b"x")
            await sleep.came.wait()
            wire.proxy.script(replies=SWALLOW)
            swallowing, server = await wire.connect()
            await server.send(b"x")
            await wire.proxy.reached(swallowed_bytes=1)
            half, _ = await wire.connect()
            half.end()
            stuck, server = await wire.connect()
            sending = asyncio.create_task(server.send(bytes(1 << 26)))
            await turns(1000)
            fresh = wire.call()
            await wire.proxy.reached(connections=6)

            await wire.proxy.aclose()
            with pytest.raises(ConnectionError):
                await sending
            for peer in (idle, sleeping, swallowing, half, stuck, fresh):
                assert (await peer.rest())[1] == "reset"

    async def test_cancelled_anywhere(self) -> None:
        """Wherever its user is cancelled, no task and no descriptor is left."""
        listening = listen()
        before = descriptors()

        async def use() -> None:
            with socket.socket() as client:
                client.setblocking(False)
                async with FaultProxy(listening.getsockname()) as proxy:
                    proxy.script(replies=SWALLOW)
                    await asyncio.get_running_loop().sock_connect(client, (proxy.host, proxy.port))
                    server, _ = await asyncio.get_running_loop().sock_accept(listening)
                    with server:
                        await Peer(server).send(b"x")
                        await proxy.reached(swallowed_bytes=1)
                        await proxy.reset_all()
                        proxy.refuse()

        async def check() -> None:
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert descriptors() == before
            with listening.dup() as left:  # connections that were made and never accepted
                left.setblocking(False)
                while True:
                    try:
                        left.accept()[0].close()
                    except BlockingIOError:
                        break

        with listening:
            assert await cancel_at_every_step(use, check) > 5


def example(documented: type) -> str:
    """Return the program in a class's docstring."""
    lines = (inspect.getdoc(documented) or "").partition("::\n")[2].splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith("    "))
    return textwrap.dedent("\n".join(lines[:end]))


class TestAsanaSession:
    async def test_the_example(self) -> None:
        """The program in the docstring does what it says."""
        names = {"asyncio": asyncio, "FakeAsana": FakeAsana, "FaultProxy": FaultProxy, "StreamFault": StreamFault}
        program = compile(example(FaultProxy), "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        scope = {**vars(asana_webhooks), **names}
        await eval(program, scope)

        assert [request.status for request in scope["fake"].requests] == [200, 404]
        assert scope["proxy"].swallowed_bytes > 0

    async def test_connections_are_kept(self) -> None:
        """Through a healthy proxy calls share a connection, as they do without."""
        async with asking() as (asana, proxy, fake):
            [gid] = fake.webhooks
            for _ in range(3):
                assert (await get_webhook(asana, gid)).gid == gid
            assert proxy.connections == 1

    async def test_many_at_once(self) -> None:
        """Fifty connections pass side by side, slow ones too."""
        async with asking() as (asana, proxy, fake):
            [gid] = fake.webhooks
            proxy.script(replies=StreamFault(slice_size=100), connections=25)
            answers = await asyncio.gather(*(get_webhook(asana, gid) for _ in range(50)))

            assert [one.gid for one in answers] == [gid] * 50
            assert proxy.connections == 50

    @ENDS
    async def test_an_answer_cut_off_anywhere(self, end: End) -> None:
        """Wherever an answer is cut off, the next attempt brings the right one."""
        async with asking() as (asana, proxy, fake):
            [gid] = fake.webhooks
            whole = await get_webhook(asana, gid, opt_fields=())
            for size in range(proxy.reply_bytes):
                proxy.script(replies=cut_after(size, end))
                async with AsanaSession(fake.token, base_url=proxy.url, retry=AT_ONCE) as another:
                    assert await get_webhook(another, gid, opt_fields=()) == whole
                assert proxy.cut == size + 1

    @ENDS
    async def test_every_answer_cut_off_anywhere(self, end: End) -> None:
        """When it is cut off each time, the call ends in one of our own errors."""
        async with asking(retry=RetryPolicy(attempts=1)) as (asana, proxy, fake):
            [gid] = fake.webhooks
            await get_webhook(asana, gid, opt_fields=())
            for size in range(proxy.reply_bytes):
                proxy.heal()
                proxy.script(replies=cut_after(size, end), connections=None)
                with pytest.raises(AsanaError) as caught:
                    await get_webhook(asana, gid, opt_fields=())
                assert isinstance(caught.value, ConnectionFailedError | UnexpectedResponseError)

    async def test_a_lost_answer_to_create(self) -> None:
        """When the answer to a create request is swallowed, nobody knows; the webhook is there and not made twice."""
        async with asking() as (asana, proxy, fake), serving(Target()) as target:
            before = set(fake.webhooks)
            proxy.script(replies=SWALLOW)
            creating = asyncio.create_task(create_webhook(asana, resource=PROJECT, target=target.url))
            await proxy.reached(swallowed_bytes=1)
            await proxy.reset_all()
            with pytest.raises(CreateOutcomeUnknownError):
                await creating

            assert len(set(fake.webhooks) - before) == 1
            assert len(fake.requests) == 1

    async def test_a_lost_request_to_create(self) -> None:
        """For the session it is the same when the request was swallowed; here nothing was created."""
        async with asking() as (asana, proxy, fake):
            before = set(fake.webhooks)
            proxy.script(requests=SWALLOW)
            creating = asyncio.create_task(create_webhook(asana, resource=PROJECT, target="http://127.0.0.1:1/x"))
            await proxy.reached(swallowed_bytes=1)
            await proxy.reset_all()
            with pytest.raises(CreateOutcomeUnknownError):
                await creating

            assert (set(fake.webhooks), fake.requests) == (before, [])

    async def test_refused(self) -> None:
        """A refused connection was not used: even create is tried again, and works once the proxy is healed."""
        proxy: FaultProxy

        async def heal(_: float) -> None:
            proxy.heal()

        async with asking(retry=RetryPolicy(sleep=heal)) as (asana, proxy, fake), serving(Target()) as target:
            proxy.refuse()
            created = await create_webhook(asana, resource=PROJECT, target=target.url)

            assert created.webhook.gid in fake.webhooks

    async def test_a_trickle(self) -> None:
        """An answer that comes byte by byte is the same answer."""
        async with asking() as (asana, proxy, fake):
            [gid] = fake.webhooks
            whole = await get_webhook(asana, gid)
            size = proxy.reply_bytes
            proxy.script(requests=StreamFault(slice_size=1), replies=StreamFault(slice_size=1))

            assert await get_webhook(asana, gid) == whole
            assert proxy.reply_bytes == 2 * size

    @pytest.mark.slow
    async def test_a_long_trickle(self) -> None:
        """So is one of a hundred thousand bytes, in seconds."""
        async with wired() as wire:
            wire.proxy.script(replies=StreamFault(slice_size=1))
            client, server = await wire.connect()
            content = os.urandom(100_000)
            sending = asyncio.create_task(server.send(content))
            assert await client.receive_all(len(content)) == content
            await sending
