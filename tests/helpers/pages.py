"""Pages of webhooks as a server sends them, and a server that answers by the offset it is asked with."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from tests.helpers.servers import answer, errors

__all__ = ["EXPIRED", "INVALID", "offset_server", "page"]

EXPIRED = errors(400, "offset: Your pagination token has expired.")
INVALID = errors(400, "offset: Your pagination token is invalid.")


def page(*gids: str, then: str | None = None, uri: str = "https://evil.example/steal") -> bytes:
    """Return a page of webhooks, with the offset of the next one."""
    following = None if then is None else {"offset": then, "path": "/elsewhere", "uri": uri}
    return answer(200, {"data": [{"gid": gid} for gid in gids], "next_page": following})


@asynccontextmanager
async def offset_server(answer_to: Callable[[str | None], bytes]) -> AsyncIterator[str]:
    """Answer each request with what *answer_to* says to its offset; yields the base URL."""
    writers: set[asyncio.StreamWriter] = set()
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
                writer.write(answer_to(parse_qs(urlsplit(target).query).get("offset", [None])[0]))
                await writer.drain()
        writer.close()
        writers.discard(writer)
        served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            for writer in writers:
                writer.transport.abort()
            while writers:
                served.clear()
                await served.wait()
