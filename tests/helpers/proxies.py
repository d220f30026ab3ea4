"""A forward proxy on a real loopback port: CONNECT tunnels, absolute URLs, and passwords."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from attrs import define, field

from tests.helpers.raw import Asked, read_request


@define
class Proxy:
    """Passes on what it is asked, to those who know the password if there is one."""

    password: str | None = None
    """``user:password``."""
    port: int = 0
    requests: list[Asked] = field(factory=list)
    refused: int = 0
    _tasks: set["asyncio.Task[None]"] = field(factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve_one(reader, writer)
        except asyncio.CancelledError:  # by stop()
            writer.transport.abort()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await read_request(reader)
        self.requests.append(asked)
        if self.password and b64encode(self.password.encode()) not in asked.head:
            self.refused += 1
            writer.write(b'HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n')
            return
        if asked.method == "CONNECT":
            host, _, port = asked.head.split(b" ")[1].decode().rpartition(":")
            first = b""
        else:
            url = urlsplit(asked.head.split(b" ")[1].decode())
            host, port = url.hostname or "", str(url.port)
            path = f"{url.path}?{url.query}" if url.query else url.path
            first = asked.head.replace(url.geturl().encode(), path.encode(), 1) + asked.body
        await self._join(reader, writer, host, int(port), first)

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, first: bytes
    ) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        try:
            if first:
                there_writer.write(first)
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            there_writer.close()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def running_proxy(password: str | None = None) -> AsyncIterator[Proxy]:
    """Run a `Proxy` while the block runs."""
    proxy = Proxy(password)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
        await server.wait_closed()
