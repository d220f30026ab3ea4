"""The proxy that loses what tests tell it to lose, between two bare streams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from yarl import URL

from tests.helpers.tcp_proxy import NO_LOSS, Loss, tcp_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def ends(*, requests: Loss = NO_LOSS, replies: Loss = NO_LOSS) -> AsyncIterator[tuple[Streams, Streams]]:
    """The two ends of one connection through a proxy."""
    accepted: asyncio.Queue[Streams] = asyncio.Queue()
    upstream = await asyncio.start_server(lambda *streams: accepted.put_nowait(streams), "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    async with upstream, tcp_proxy(f"http://127.0.0.1:{port}/path") as proxy:
        assert proxy.url.endswith("/path")
        proxy.lose(requests=requests, replies=replies)
        client = await asyncio.open_connection("127.0.0.1", URL(proxy.url).port)
        server = await accepted.get()
        yield client, server
        for _, writer in (client, server):
            writer.close()


async def test_bytes_and_ends_pass_both_ways() -> None:
    """Without a loss what one end sends the other gets, and an end that has said all still hears the other out."""
    async with ends() as ((reader, writer), (up_reader, up_writer)):
        writer.write(b"ask")
        writer.write_eof()
        assert await up_reader.read() == b"ask"
        up_writer.write(b"answer")
        up_writer.write_eof()
        assert await reader.read() == b"answer"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_cuts(how: Literal["close", "reset"]) -> None:
    """So many bytes arrive and no more; then both ends see a close or a reset."""
    async with ends(replies=Loss(4, how)) as ((reader, _), (up_reader, up_writer)):
        up_writer.write(b"answ")
        assert await reader.readexactly(4) == b"answ"
        up_writer.write(b"er")
        for one in (reader, up_reader):
            if how == "reset":
                with pytest.raises(ConnectionResetError):
                    await one.read()
            else:
                assert await one.read() == b""


async def test_swallows() -> None:
    """What is swallowed never arrives, nor does its end; the other way all is well."""
    async with ends(requests=Loss(1, "swallow")) as ((reader, writer), (up_reader, up_writer)):
        writer.write(b"lost")
        writer.write_eof()
        assert await up_reader.read(10) == b"l"
        up_writer.write(b"not lost")
        assert await reader.readexactly(8) == b"not lost"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(up_reader.read(1), 0.02)
