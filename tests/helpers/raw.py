"""A server whose every byte a test writes itself, the five calls to make against it, and a look at what they leave."""

import asyncio
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from attrs import define, field, frozen

from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    Request,
    UpdateWebhookRequest,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.models import WebhookFilter

TOKEN = "2/1331/7654:0123456789abcdef"
TARGET = "https://example.com/asana/S3cretEndpoint_0123456789"


@frozen
class Call:
    """One of the five operations: what is asked, and the status and JSON of a good answer."""

    request: Request[Any]
    status: int
    good: bytes

    def __str__(self) -> str:
        return self.request.operation


GET = Call(GetWebhookRequest(webhook_gid="43214"), 200, b'{"data":{"gid":"43214"}}')
LIST = Call(GetWebhooksRequest(workspace="21"), 200, b'{"data":[{"gid":"43214"}],"next_page":null}')
PUT = Call(UpdateWebhookRequest(webhook_gid="43214", filters=(WebhookFilter(action="deleted"),)), 200, GET.good)
DELETE = Call(DeleteWebhookRequest(webhook_gid="43214"), 200, b'{"data":{}}')
CREATE = Call(
    CreateWebhookRequest(resource="8675309", target=TARGET),
    201,
    b'{"data":{"gid":"43214"},"X-Hook-Secret":"0123456789abcdef"}',
)
CALLS = [GET, LIST, PUT, DELETE, CREATE]


async def no_wait(_: float) -> None:
    """Stand in for the pause between attempts."""


def session(url: str, **options: Any) -> AsanaSession:
    """Return a session that does not wait between attempts; *options* may be the session's or the policy's."""
    names = {one.name for one in RetryPolicy.__attrs_attrs__}
    policy: dict[str, Any] = {name: options.pop(name) for name in list(options) if name in names}
    at_once: dict[str, Any] = {"sleep": no_wait, "first_wait": 0.0}
    retry = RetryPolicy(**(at_once | policy))
    given: dict[str, Any] = {"token": TOKEN, "base_url": url, "retry": retry}
    return AsanaSession(**(given | options))


@frozen(kw_only=True)
class Asked:
    """The head of a request as it came, and its body."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.partition(b" ")[0].decode()


Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


@define
class RawServer:
    """Reads one request after another and lets `talk` answer each; whatever it has written is followed by a FIN,
    unless `keep` says that the connection goes on.
    """

    talk: Talk
    keep: bool = False
    scheme: str = "http"
    port: int = 0
    connections: int = 0
    heard: bytearray = field(factory=bytearray)
    """Everything that ever arrived."""
    requests: list[Asked] = field(factory=list)
    _asked: asyncio.Event = field(factory=asyncio.Event)
    _tasks: set["asyncio.Task[Any]"] = field(factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/api/1.0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer) and self.keep:
                    """The next request on the same connection."""
            writer.close()
            with suppress(ConnectionError, ssl_module.SSLError):
                await writer.wait_closed()
        except asyncio.CancelledError:  # by stop()
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked = await read_request(reader)
        self.heard += asked.head + asked.body
        self.requests.append(asked)
        self._asked.set()
        await self.talk(writer)
        await writer.drain()
        return True

    async def got(self, number: int) -> None:
        """Wait until *number* requests have come."""
        while len(self.requests) < number:
            self._asked.clear()
            await self._asked.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def read_request(reader: asyncio.StreamReader) -> Asked:
    """Read a head, and as much body as it announces."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    length = int(rest.partition(b"\r\n")[0]) if found else 0
    return Asked(head=head, body=await reader.readexactly(length))


@asynccontextmanager
async def raw_server(
    talk: Talk, *, keep: bool = False, tls: ssl_module.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """Run a `RawServer` on a free loopback port while the block runs."""
    raw = RawServer(talk, keep=keep, scheme="https" if tls else "http")
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()
        await raw.stop()
        await server.wait_closed()


def saying(*answers: bytes) -> Talk:
    """Write one of *answers* for each request, the last one again and again."""
    left = list(answers)

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return talk


def writing_for_ever(head: bytes, unit: bytes) -> Talk:
    """Write *head*, and *unit* after *unit* until the peer has gone."""

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(unit)
            await writer.drain()
            await asyncio.sleep(0)  # drain() alone does not let others run

    return talk


def dripping(head: bytes, unit: bytes, *, every: float = 0.01) -> Talk:
    """Write *head*, then *unit* again and again with a pause of *every* seconds, until the peer has gone."""

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(unit)
            await writer.drain()
            await later(every)

    return talk


async def later(seconds: float) -> None:
    """Wait for the loop's own clock to go on."""
    turn = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, turn.set)
    await turn.wait()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until *condition* holds."""
    while not condition():
        await later(0)


def framed(body: bytes, *headers: str, status: int = 200, framing: str = "length") -> bytes:
    """Return an answer whose body ends as *framing* says: ``length``, ``chunked`` (two of them), or ``close``."""
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
    header, content = {
        "length": ((f"Content-Length: {len(body)}",), body),
        "chunked": (("Transfer-Encoding: chunked",), chunks + b"0\r\n\r\n"),
        "close": ((), body),
    }[framing]
    return "\r\n".join([f"HTTP/1.1 {status} So", *header, *headers, "", ""]).encode("latin-1") + content


def head_length(answer: bytes) -> int:
    """Return how many bytes of *answer* come before its body."""
    return answer.index(b"\r\n\r\n") + 4


def assert_nothing_left() -> None:
    """No task is left in this loop besides the one that asks."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
