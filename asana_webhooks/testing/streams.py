"""One connection through `FaultProxy`: two streams of bytes, and the word for what goes wrong with one: `StreamFault`.

Sockets are used as they are, without asyncio's transports, so that what is passed on is counted to the byte, nothing
is buffered here beyond one chunk, and a reset is a reset.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from attrs import Attribute, define, field, frozen

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError

__all__ = ["Connection", "Scripts", "StreamFault", "reset"]

_CHUNK: Final = 64 * 1024
_UNREAD: Final = 8 * 1024 * 1024

_log = logging.getLogger(__name__)


def _is_seconds(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    check_seconds(attribute.name, value)


def _is_bytes(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None:
        check_count(attribute.name, value, zero=attribute.name != "slice_size")


@frozen(kw_only=True)
class StreamFault:
    """What goes wrong with the bytes that go one way over a connection; by default nothing does.

    `latency` and `slice_size` go with each other (a trickle of one byte a second is ``slice_size=1, latency=1.0``) and
    with one of `reset_after`, `close_after` and `swallow`. Bytes are counted for each connection, from 0 when it
    takes the fault; with TLS they are those of TLS.

    Raises:
        ConfigurationError: a member makes no sense, or two do not go with each other.
    """

    latency: float = field(default=0.0, validator=_is_seconds)
    """Seconds that each slice waits before it is passed on, one after another."""
    slice_size: int | None = field(default=None, validator=_is_bytes)
    """Bytes that are passed on at once, at most."""
    reset_after: int | None = field(default=None, validator=_is_bytes)
    """Pass on that many bytes; when there are more, reset the connection on both sides instead. As with any reset,
    bytes that a peer was too slow to take before it may be lost."""
    close_after: int | None = field(default=None, validator=_is_bytes)
    """Pass on that many bytes; when there are more, close the connection on both sides instead."""
    swallow: bool = False
    """Take everything and pass nothing on, not even the end; the connection stays open."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.swallow, bool):
            raise ConfigurationError(f"swallow must be True or False, not {self.swallow!r:.80}")
        if (self.reset_after is not None) + (self.close_after is not None) + self.swallow > 1:
            raise ConfigurationError("only one of reset_after, close_after and swallow can happen to the same bytes")

    def next_slice(self, *, passed: int, waiting: int) -> int:
        """Say how many of the bytes *waiting* are passed on at once after those *passed*; 0 if it is time to end."""
        size = waiting if self.slice_size is None else min(waiting, self.slice_size)
        end = self.close_after if self.reset_after is None else self.reset_after
        return size if end is None else min(size, end - passed)


@define
class _Script:
    number: int
    requests: StreamFault
    replies: StreamFault
    left: float
    """How many connections are still to take it."""


class Scripts:
    """The faults still to come, and whose they are."""

    def __init__(self) -> None:
        self._scripts: list[_Script] = []
        self._added = 0

    def add(self, requests: StreamFault, replies: StreamFault, connections: float) -> None:
        """Let so many connections take these faults, after those added before."""
        self._added += 1
        self._scripts.append(_Script(self._added, requests, replies, connections))

    def take(self, seen: int) -> tuple[int, _Script | None]:
        """Return what a connection takes that has taken its part of the first *seen* scripts, and how many it has seen
        now: a connection that sends in pieces must not take one script with each.
        """
        script = next((one for one in self._scripts if one.number > seen), None)
        if script is not None:
            script.left -= 1
            if not script.left:
                self._scripts.remove(script)
        return self._added, script

    def clear(self) -> None:
        """Forget them."""
        self._scripts.clear()


class _Closed(Exception):  # noqa: N818 (no error: a connection ends as it was told to)
    """A fault closes the connection."""


@define(eq=False)
class _Stream:
    source: socket.socket
    sink: socket.socket
    figure: str
    """Where bytes passed on are counted."""
    fault: StreamFault = field(factory=StreamFault)
    passed: int = 0
    """Bytes passed on since it took the fault."""


class Connection:
    """A client's connection and the one to upstream that goes with it.

    Args:
        client: the client's, just accepted.
        address: host and port to connect to.
        scripts: where it takes its faults from.
        sleep: waits out latencies.
        count: adds to one of the proxy's figures.

    Raises:
        OSError: there is no free socket; *client* is still open then.
    """

    def __init__(
        self,
        client: socket.socket,
        address: tuple[str, int],
        *,
        scripts: Scripts,
        sleep: Callable[[float], Awaitable[object]],
        count: Callable[[str, int], None],
    ) -> None:
        self.cut = False
        """Whether it is the proxy that ends it."""
        self._closes = False
        self._address = address
        self._sleep = sleep
        self._count = count
        self._client = client
        self._upstream = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self._requests = _Stream(self._client, self._upstream, "request_bytes")
        self._replies = _Stream(self._upstream, self._client, "reply_bytes")
        self._scripts = scripts
        self._scripts_seen = 0
        self._take_script()

    def heal(self) -> None:
        """Let everything pass from now on."""
        self._spoil(StreamFault(), StreamFault())

    async def serve(self) -> None:
        """Pass bytes on until both sides have ended, one has broken off, or a fault ends it.

        Call `end` afterwards, whatever happens.
        """
        try:
            await self._connect()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(self._requests))
                both.create_task(self._carry(self._replies))
            self._closes = True
        except* _Closed:
            self._closes = True
        except* OSError as broken:
            _log.debug("a connection breaks off: %s", broken.exceptions[0])

    def end(self) -> None:
        """Close both sides, or reset them if one was broken off."""
        for one in (self._client, self._upstream):
            if self._closes:
                _close(one)
            else:
                reset(one)

    def _take_script(self) -> None:
        self._scripts_seen, script = self._scripts.take(self._scripts_seen)
        if script is not None:
            self._spoil(script.requests, script.replies)

    def _spoil(self, requests: StreamFault, replies: StreamFault) -> None:
        self._requests.fault, self._requests.passed = requests, 0
        self._replies.fault, self._replies.passed = replies, 0

    async def _connect(self) -> None:
        for one in (self._client, self._upstream):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # slices must not be put together again
        try:
            await asyncio.get_running_loop().sock_connect(self._upstream, self._address)
        except (OSError, UnicodeError) as problem:  # the latter for a name that cannot be one
            self.cut = True
            _log.warning("FaultProxy cannot reach %s port %d: %s", *self._address, problem)
            raise ConnectionRefusedError from None

    async def _carry(self, stream: _Stream) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await loop.sock_recv(stream.source, _CHUNK):
            if stream is self._requests:
                self._take_script()
            await self._pass_on(stream, memoryview(chunk))
        if not stream.fault.swallow:
            stream.sink.shutdown(socket.SHUT_WR)

    async def _pass_on(self, stream: _Stream, chunk: memoryview) -> None:
        while chunk:
            # Without a latency too the loop takes a turn, so that slices arrive apart and others get theirs.
            fault = stream.fault
            await (self._sleep(fault.latency) if fault.latency else asyncio.sleep(0))
            if stream.fault is not fault:  # for example, healed meanwhile
                continue
            if fault.swallow:
                self._count("swallowed_bytes", len(chunk))
                return
            size = fault.next_slice(passed=stream.passed, waiting=len(chunk))
            if not size:
                self.cut = True
                raise ConnectionResetError if fault.close_after is None else _Closed
            stream.passed += size
            await asyncio.get_running_loop().sock_sendall(stream.sink, chunk[:size])
            self._count(stream.figure, size)
            chunk = chunk[size:]


def reset(one: socket.socket) -> None:
    """Close a socket with an RST."""
    with suppress(OSError):  # where it was reset already
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def _close(one: socket.socket) -> None:
    # What is left unread would turn the close into a reset.
    with suppress(OSError):
        one.shutdown(socket.SHUT_WR)
        one.recv(_UNREAD)
    one.close()
