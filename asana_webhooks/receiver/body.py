"""Request bodies: read and verified at most once. Limits on time and size apply before verification too.

Some servers and proxies drop the whole connection if a request is answered before its body has been read. So the rest
of a short body is read and dropped before any answer.
"""

import asyncio
import types
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self, cast

from attrs import evolve

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.receiver.protocol import (
    HookHeaders,
    InvalidDelivery,
    ReceiveResult,
    RefusedError,
    Signed,
    check_length,
    verify_delivery,
)
from asana_webhooks.store.base import NewDelivery, Registration

__all__ = ["SHORT_BODY", "Body", "BodyReader", "Chunks", "Content", "IteratedChunks"]

SHORT_BODY: Final = 64 * 1024
"""Bytes. A body up to this size is read to its end before any answer, and kept to explain an invalid signature."""

Content = bytes | bytearray | memoryview | AsyncIterable[bytes]
"""A complete body, or its chunks."""


class Chunks(ABC):
    """The chunks of a body, counted as they are read."""

    def __init__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self.read = 0
        """The bytes read so far."""
        self.is_over = False
        """Whether all have been read."""
        self.misuse: ConfigurationError | None = None
        """The error for a chunk that is not bytes."""
        self._ready: list[bytes] = []
        """Chunks that have been read before they were asked for."""
        self._begun: Awaitable[bytes] | None = None
        """The rest of a read that has begun."""

    @abstractmethod
    async def _next(self) -> bytes:
        """Read a chunk, and count it. At the end, note that it is over, or raise `StopAsyncIteration`."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ready:
            return self._ready.pop(0)
        begun, self._begun = self._begun, None
        return await (begun or self._next())

    def read_ready(self) -> bytes | None:
        """Read the chunks that are here without waiting; return the body if it is short, and that was all of it.

        A body that is read this way needs no timers, which take a third of an ASGI request's time.
        """
        while self.read <= SHORT_BODY:
            if self.is_over:
                return b"".join(self._ready)
            reading = self._next()
            try:
                waits_for = reading.send(None)
            except StopIteration as end:
                self._ready.append(end.value)
            except StopAsyncIteration:
                self.is_over = True
            else:
                self._begun = _resume(reading, waits_for)
                break
        return None

    async def drop_rest(self, headers: HookHeaders, *, seconds: float = 5.0) -> None:
        """Read and drop the rest if the body is short. Nothing is kept, and no error of the body is raised.

        It stops after 64 KiB of the body in all; if the Content-Length says more, it does not begin.

        Args:
            headers: those of the request.
            seconds: when to stop, counted from the creation of this object.
        """
        if self.is_over or self.read > SHORT_BODY or headers.length > SHORT_BODY:
            return
        with suppress(Exception):  # the reply is decided, whatever ends the body
            async with asyncio.timeout_at(self._began + seconds):
                while self.read <= SHORT_BODY:
                    await anext(self)  # no chunk is kept while the next is awaited


class IteratedChunks(Chunks):
    """The chunks of any async iterable.

    Args:
        content: yields the chunks.

    Raises:
        ConfigurationError: *content* is not an async iterable, or, while it is read, yields anything but bytes.
    """

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        try:
            self._chunks = aiter(content)
        except TypeError:
            raise _misuse("body must be bytes or an async iterable of bytes", content) from None
        super().__init__()

    async def _next(self) -> bytes:
        try:
            chunk: object = await anext(self._chunks)
        except StopAsyncIteration:
            self.is_over = True
            raise
        if not isinstance(chunk, bytes):
            if not isinstance(chunk, bytearray | memoryview):
                self.misuse = _misuse("the chunks of a body must be bytes", chunk)
                raise self.misuse
            chunk = bytes(chunk)
        self.read += len(chunk)
        return chunk


@types.coroutine
def _resume(begun: Coroutine[Any, Any, bytes], waits_for: Any) -> Generator[Any, None, bytes]:
    """Go on with a coroutine that has run up to where it waits for something."""
    while True:
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - a cancellation, for the coroutine to handle
            go_on = partial(begun.throw, error)
        else:
            go_on = partial(begun.send, None)
        try:
            waits_for = go_on()
        except StopIteration as end:
            return cast("bytes", end.value)


def _misuse(wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"{wanted}, not {type(value).__name__}")


class _Unfinished:
    """A body that is being read."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self.read = bytearray()
        self.timeout: Final = timeout
        self.is_dropped = False

    def drop(self) -> None:
        """Free the bytes, and end the reading."""
        self.read.clear()
        self.is_dropped = True
        if not self.timeout.expired():
            self.timeout.reschedule(asyncio.get_running_loop().time())


class BodyReader:
    """Reads bodies chunk by chunk, within limits.

    Args:
        max_body: largest body in bytes.
        max_unproven: bytes that all bodies being read may have together. Above that the largest is dropped, so that
            long bodies cannot keep a short one out. A body that arrived complete with its headers is not counted (the
            aiohttp adapter: up to 64 KiB).
        timeout: seconds a peer may take to send a body.
    """

    def __init__(self, *, max_body: int, max_unproven: int, timeout: float) -> None:
        self.max_body: Final = max_body
        self.timeout: Final = timeout
        self._max_unproven = max_unproven
        self._unproven = 0
        self._unfinished: set[_Unfinished] = set()

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """Return a body, joined from its chunks. Raises as `Body.read` does."""
        one = _Unfinished(asyncio.timeout(self.timeout))
        try:
            async with one.timeout:
                self._unfinished.add(one)
                async for chunk in chunks:
                    if one.is_dropped:
                        break
                    self._add(one, chunk)
                    del chunk  # or it is kept, uncounted, while the next is awaited
        except TimeoutError:
            if not one.is_dropped:
                raise RefusedError(ReceiveResult.TOO_SLOW) from None
        except OSError:
            raise RefusedError(ReceiveResult.CUT_OFF) from None
        finally:
            self._unproven -= len(one.read)
            self._unfinished.discard(one)
        if one.is_dropped:
            raise RefusedError(ReceiveResult.OVERLOADED)
        return bytes(one.read)

    def has_room(self, size: int) -> bool:
        """Return whether a body of *size* bytes needs no other one to be dropped."""
        return self._unproven + size <= self._max_unproven

    def _add(self, one: _Unfinished, chunk: bytes) -> None:
        one.read += chunk
        self._unproven += len(chunk)
        check_length(len(one.read), max_body=self.max_body)
        while self._unproven > self._max_unproven:
            largest = max(self._unfinished, key=lambda other: len(other.read))
            self._unfinished.discard(largest)
            self._unproven -= len(largest.read)
            largest.drop()


class Body:
    """The body of one request. It is read once; later calls get the same result. Its repr shows no content.

    Args:
        content: the complete body, or its chunks.
        reader: reads the chunks.

    Raises:
        ConfigurationError: *content* is neither bytes nor an async iterable.
    """

    def __init__(self, content: Content, reader: BodyReader) -> None:
        self.chunks: Chunks | None = None
        """The chunks, until all have been read; ``None`` if the complete body was given."""
        self._content = b""
        if isinstance(content, bytes):
            self._content = content
        elif isinstance(content, bytearray | memoryview):
            self._content = bytes(content)
        else:
            self.chunks = content if isinstance(content, Chunks) else IteratedChunks(content)
        self._reader = reader
        self._refused: ReceiveResult | None = None
        self._verified: NewDelivery | None = None
        """The delivery, if its signature matches the confirmed secret."""
        self._invalid: InvalidDelivery | None = None
        """The delivery, if it does not."""

    def is_here(self) -> bool:
        """Return whether the body can be verified without waiting for more of it. Raises a chunk's misuse."""
        if self.chunks is not None:
            try:
                content = self.chunks.read_ready()
            except OSError:
                self._refused = ReceiveResult.CUT_OFF
                return False
            if content is None or not self._reader.has_room(len(content)):
                return False
            self._content, self.chunks = content, None
        return True

    async def read(self) -> None:
        """Await the remaining chunks; if that is cancelled, the body can no longer be read.

        Raises:
            RefusedError: 413 too large, 408 timed out, 400 cut off, 503 dropped, since too many bytes are being read.
            ConfigurationError: a chunk is not bytes.
        """
        if self._refused is not None:
            raise RefusedError(self._refused)
        if self.chunks is not None:
            try:
                self._content = await self._reader.read(self.chunks)
            except RefusedError as error:
                self._refused = error.result
                raise
            self.chunks = None

    def verify(self, registration: Registration, signed: Signed) -> NewDelivery:
        """Verify the signature of a body that has been read.

        A confirmed secret, which never changes, is tried only once, because hashing a long body blocks the event loop.
        If it does not match, a body over 64 KiB is freed, so that it takes no memory while the store is asked.

        Raises:
            RefusedError: 413 too large; or 401, the signature matches none of the registration's secrets.
        """
        if self._invalid is not None:
            raise RefusedError(ReceiveResult.INVALID_SIGNATURE, self._invalid)
        check_length(len(self._content), max_body=self._reader.max_body)
        if registration.secret is None:
            return verify_delivery(registration, signed, self._content)
        if self._verified is None:
            try:
                self._verified = verify_delivery(registration, signed, self._content)
            except RefusedError as error:
                self._invalid = error.delivery
                if error.delivery is not None and len(self._content) > SHORT_BODY:  # nobody counts it meanwhile
                    self._content, self._invalid = b"", evolve(error.delivery, body=b"")
                raise
        return self._verified
