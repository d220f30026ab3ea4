"""Pages of webhooks as a server sends them, and a server that answers by the offset it is asked with."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.helpers.servers import answer, errors, scripted_server

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
    async with scripted_server(lambda seen: answer_to(seen.query.get("offset"))) as server:
        yield server.url
