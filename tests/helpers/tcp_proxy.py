"""A TCP proxy on 127.0.0.1 between a client and its server, which loses what it is told to lose."""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

from attrs import frozen
from yarl import URL

from tests.helpers.servers import closing_resets

__all__ = ["NO_LOSS", "Loss", "TcpProxy", "tcp_proxy"]


@frozen
class Loss:
    """What becomes of one way of one connection: *after* so many bytes it is closed, reset, or says nothing more."""

    after: int = 0
    how: Literal["close", "reset", "swallow"] = "reset"


NO_LOSS = Loss(sys.maxsize, "close")


class TcpProxy:
    """Passes bytes, ends and resets both ways, but for what `lose` says."""

    def __init__(self, upstream: str) -> None:
        self.upstream = URL(upstream)
        self.url = ""
        """The URL of *upstream* with the proxy in its place."""
        self.reply_bytes = 0
        self.swallowed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.losses: deque[tuple[Loss, Loss]] = deque()
        """What becomes of the next new connections: of their requests and of their replies."""

    def lose(self, *, requests: Loss = NO_LOSS, replies: Loss = NO_LOSS, times: int = 1) -> None:
        """Let this happen to so many new connections."""
        self.losses.extend([(requests, replies)] * times)

    async def close_all(self) -> None:
        """Close all connections there are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        requests, replies = self.losses.popleft() if self.losses else (NO_LOSS, NO_LOSS)
        up_reader, up_writer = await asyncio.open_connection(self.upstream.host, self.upstream.port)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pass(reader, up_writer, writer, requests), self._pass(up_reader, writer, up_writer, replies, 1)
            )
        self._tasks.discard(task)
        _end("close", writer, up_writer)
        await asyncio.gather(writer.wait_closed(), up_writer.wait_closed(), return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        loss: Loss,
        counted: int = 0,
    ) -> None:
        left = loss.after
        try:
            while data := await reader.read(1 << 16):
                writer.write(data[:left])
                await writer.drain()
                self.reply_bytes += len(data[:left]) * counted
                if len(data) > left:
                    self.swallowed.set()
                    _end(loss.how, writer, back)
                left = max(0, left - len(data))
            if loss.how != "swallow":
                writer.write_eof()
        except ConnectionError:
            _end("reset", writer, back)


def _end(how: str, *writers: asyncio.StreamWriter) -> None:
    for writer in writers if how != "swallow" else ():
        if how == "reset" and not writer.is_closing():
            closing_resets(writer)
            writer.transport.abort()
        writer.close()


@asynccontextmanager
async def tcp_proxy(upstream: str) -> AsyncIterator[TcpProxy]:
    """Put a proxy before the server at the URL *upstream*."""
    proxy = TcpProxy(upstream)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = str(proxy.upstream.with_host("127.0.0.1").with_port(server.sockets[0].getsockname()[1]))
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close_all()
