"""The situations a call can be in when it is cancelled, and a look at whether everything was given back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
from attrs import define, field, frozen

from asana_webhooks.client.operations import (
    create_webhook,
    delete_webhook,
    get_webhook,
    get_webhooks,
    update_webhook,
)
from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import CreateOutcomeUnknownError
from asana_webhooks.models import WebhookFilter
from tests.helpers.cancelling import pass_turns
from tests.helpers.raw import TARGET, TOKEN, Asked, RawServer, framed, raw_server
from tests.helpers.servers import closing_resets

Operation = Callable[[AsanaSession], Coroutine[Any, Any, Any]]
Trick = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
"""Answers one request in its own way; gets the good answer."""


async def create(asana: AsanaSession) -> None:
    # Where the answer is lost, that is what an undisturbed call says; one that is cancelled says that it was.
    with suppress(CreateOutcomeUnknownError):
        await create_webhook(asana, resource="8675309", target=TARGET)


async def get(asana: AsanaSession) -> None:
    assert (await get_webhook(asana, "43214")).gid == "43214"


async def list_page(asana: AsanaSession) -> None:
    assert (await asana.send(GetWebhooksRequest(workspace="21"))).next_page is not None


async def walk(asana: AsanaSession) -> None:
    assert [webhook.gid async for webhook in get_webhooks(asana, workspace="21")] == ["1", "2"]


async def walk_with_prefetch(asana: AsanaSession) -> None:
    async with get_webhooks(asana, workspace="21", prefetch=True) as pager:
        assert [webhook.gid async for webhook in pager] == ["1", "2"]


async def update(asana: AsanaSession) -> None:
    await update_webhook(asana, "43214", filters=[WebhookFilter(action="deleted")])


async def delete(asana: AsanaSession) -> None:
    await delete_webhook(asana, "43214")


OPERATIONS: list[Operation] = [create, get, list_page, walk, walk_with_prefetch, update, delete]


def good_answer(asked: Asked, *, keep: bool) -> bytes:
    content: Any = {"data": {"gid": "43214"}}
    if asked.method == "POST":
        content |= {"X-Hook-Secret": "0123456789abcdef"}
    elif asked.method == "DELETE":
        content = {"data": {}}
    elif b"/webhooks?" in asked.head:
        last = b"offset=a" in asked.head
        following = None if last else {"offset": "a", "path": "/webhooks", "uri": "https://app.asana.com/api/1.0"}
        content = {"data": [{"gid": "2" if last else "1"}], "next_page": following}
    headers = () if keep else ("Connection: close",)
    return framed(json.dumps(content).encode(), *headers, status=201 if asked.method == "POST" else 200)


async def answer_well(writer: asyncio.StreamWriter, good: bytes) -> None:
    writer.write(good)


async def trickle(writer: asyncio.StreamWriter, good: bytes) -> None:
    """Send a few bytes at a time."""
    size = len(good) // 8
    for start in range(0, len(good), size):
        writer.write(good[start : start + size])
        await pass_turns(2)


async def hesitate(writer: asyncio.StreamWriter, good: bytes) -> None:
    """Say nothing for a while."""
    await pass_turns(10)
    writer.write(good)


async def reset(writer: asyncio.StreamWriter, good: bytes) -> None:
    """Reset the connection after half of the answer."""
    writer.write(good[: len(good) // 2])
    await pass_turns(2)
    closing_resets(writer)
    writer.transport.abort()


def refuse(status: int, *headers: str) -> Trick:
    async def talk(writer: asyncio.StreamWriter, good: bytes) -> None:
        writer.write(framed(b'{"errors":[{"message":"No"}]}', *headers, status=status))

    return talk


class Time:
    """Stands still but for sleeping, which takes a few turns of the loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.sleeping = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        await pass_turns(3)
        self.slept.append(seconds)
        self.now += seconds


class SlowLimiter:
    """Takes its time, on the way in and on the way out."""

    def __init__(self) -> None:
        self.inside = 0

    async def __aenter__(self) -> Self:
        await pass_turns(3)
        self.inside += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inside -= 1
        await pass_turns(3)


class SlowToken:
    """Takes its time, to be asked and to be told of a refusal; then it is another one."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> str:
        await pass_turns(3)
        return f"{TOKEN}{self.count}"

    async def renew(self, rejected: str) -> None:
        await pass_turns(3)
        assert rejected == f"{TOKEN}{self.count}"
        self.count += 1


@define
class Scene:
    """A session and its server, while one call after another is cancelled."""

    asana: AsanaSession
    server: RawServer
    time: Time
    limiter: SlowLimiter
    tricks: list[Trick]
    beside: set["asyncio.Task[Any]"] = field(factory=set)
    """Calls that go on beside the one that is cancelled."""

    async def at_rest(self) -> None:
        """Wait until nothing goes on; see that everything was given back."""
        for call in self.beside:
            await call
        self.beside.clear()
        await settle(self.asana, self.server)
        assert self.limiter.inside == 0


@frozen(kw_only=True)
class Situation:
    """What a call meets."""

    name: str
    tricks: tuple[Trick, ...] = ()
    """How the first requests are answered; the rest get good answers."""
    undone: int = 0
    """How many of these say that Asana did nothing, so that a create request may be sent again."""
    keep: bool = True
    """Whether connections are kept for the next call."""
    limited: bool = False
    token: Callable[[], Any] = lambda: TOKEN
    before: Callable[[Scene, Operation], Awaitable[None]] | None = None
    """What happens before the call begins."""

    def __str__(self) -> str:
        return self.name


async def occupy(here: Scene, operation: Operation) -> None:
    """Let a call of the same kind take the only turn there is."""
    here.tricks.insert(0, hesitate)
    before = len(here.server.requests)
    here.beside.add(asyncio.create_task(operation(here.asana)))
    await here.server.got(before + 1)


async def shut_the_gate(here: Scene, operation: Operation) -> None:
    """Let another call be answered 429, and be cancelled then."""
    here.tricks.insert(0, refuse(429, "Retry-After: 2"))
    here.time.sleeping.clear()
    other = asyncio.create_task(operation(here.asana))
    await here.time.sleeping.wait()
    other.cancel()
    await asyncio.wait({other})


SITUATIONS = [
    Situation(name="new connection", keep=False),
    Situation(name="kept connection"),
    Situation(name="trickling answer", tricks=(trickle,)),
    Situation(name="no answer for a while", tricks=(hesitate,)),
    Situation(name="reset", tricks=(reset,)),
    Situation(name="wait between attempts", tricks=(refuse(503),)),
    Situation(name="429", tricks=(refuse(429, "Retry-After: 2"),), undone=1),
    Situation(name="pause of the session", before=shut_the_gate),
    Situation(name="waiting for a turn", before=occupy),
    Situation(name="limiter", limited=True),
    Situation(name="slow token", token=SlowToken),
    Situation(name="renewal", tricks=(refuse(401),), undone=1, token=SlowToken),
]


@asynccontextmanager
async def scene(situation: Situation = SITUATIONS[1], **options: Any) -> AsyncIterator[Scene]:
    """Open a session with room for one call of each kind at a time: a place that is lost is missed at once."""
    tricks: list[Trick] = []

    async def talk(writer: asyncio.StreamWriter) -> None:
        trick = tricks.pop(0) if tricks else answer_well
        await trick(writer, good_answer(server.requests[-1], keep=situation.keep))

    time, limiter = Time(), SlowLimiter()
    policy = {"sleep": time.sleep, "clock": time.clock, "budget": 1_000_000, "first_wait": 1.0}
    async with raw_server(talk, keep=True) as server:
        settings: dict[str, Any] = {
            "token": situation.token(),
            "base_url": server.url,
            "timeout": 10,
            "max_reads": 1,
            "max_writes": 1,
            "limiter": limiter if situation.limited else None,
            "retry": RetryPolicy(**(policy | options.pop("policy", {}))),
        }
        async with AsanaSession(**(settings | options)) as asana:
            yield Scene(asana, server, time, limiter, tricks)


async def settle(asana: AsanaSession, server: RawServer) -> None:
    """Wait until the server has only the connections that are idle in the session's pool, and nothing else runs."""
    current, give_up_at = asyncio.current_task(), time.monotonic() + 20
    while time.monotonic() < give_up_at:
        others = asyncio.all_tasks() - server._tasks - {current}
        if not others and len(server._tasks) == idle_connections(asana):
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{len(server._tasks)} connections, {idle_connections(asana)} idle, other tasks: {others}")


def idle_connections(asana: AsanaSession) -> int:
    """Return how many connections are kept for the next call."""
    if asana._http is None or not isinstance(asana._http.connector, aiohttp.TCPConnector):
        return 0
    return sum(map(len, asana._http.connector._conns.values()))


def open_files() -> int:
    """Return how many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
