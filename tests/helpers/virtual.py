"""Many calls on one line of time that nobody waits for, and a server on a real socket that notes when it is asked."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

from aiohttp import web
from attrs import define, field, frozen

from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from tests.helpers.raw import TOKEN

__all__ = [
    "Answer",
    "Arrival",
    "TimedServer",
    "VirtualTime",
    "asking",
    "good",
    "in_turn",
    "jumping_clock",
    "kinds",
    "refusal",
    "timed_server",
]

Answer = Callable[[web.BaseRequest], Any]
"""Takes a request and returns a response of its own, or what is awaited for one."""


@define
class VirtualTime:
    """Stands still while anybody works, and moves on to the next sleeper when all are asleep or done.

    So what happens at which second depends on nothing but the seconds themselves.
    """

    now: float = 0.0
    slept: list[float] = field(factory=list)
    """How long each sleep was meant to be, in the order in which they began."""
    _sleepers: list[tuple[float, int, "asyncio.Future[None]"]] = field(factory=list)
    _numbers: "count[int]" = field(factory=count)
    _changed: asyncio.Event = field(factory=asyncio.Event)

    def policy(self, **changes: Any) -> RetryPolicy:
        """Return a retry policy that lives in this time, with jitter only where *changes* say so."""
        options: dict[str, Any] = {"clock": lambda: self.now, "sleep": self.sleep, "random": lambda: 0.0}
        return RetryPolicy(**(options | changes))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.until(self.now + seconds)

    async def until(self, moment: float) -> None:
        sleeper = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (moment, next(self._numbers), sleeper))
        self._changed.set()
        await sleeper

    async def at(self, moment: float, call: Coroutine[Any, Any, Any]) -> Any:
        """Begin *call* at that moment."""
        try:
            await self.until(moment)
        except BaseException:
            call.close()
            raise
        return await call

    async def asleep(self, number: int) -> None:
        """Return when that many are asleep."""
        while sum(not sleeper.done() for _, _, sleeper in self._sleepers) < number:
            self._changed.clear()
            await self._changed.wait()

    async def run(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run *calls* side by side to their ends; return what they returned or raised."""
        tasks = [asyncio.create_task(call) for call in calls]
        for task in tasks:
            task.add_done_callback(lambda _: self._changed.set())
        while awake := [task for task in tasks if not task.done()]:
            sleepers = [one for one in self._sleepers if not one[2].done()]
            if len(sleepers) >= len(awake):
                self._wake_next()
            else:
                self._changed.clear()
                await self._changed.wait()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def _wake_next(self) -> None:
        self._sleepers = sorted(one for one in self._sleepers if not one[2].done())
        self.now = max(self.now, self._sleepers[0][0])
        while self._sleepers and self._sleepers[0][0] <= self.now:
            heappop(self._sleepers)[2].set_result(None)


@contextmanager
def jumping_clock(patience: float = 0.02) -> Iterator[Callable[[], float]]:
    """Let the running loop's clock jump to its next timer when nothing else goes on; yields the clock.

    Each turn of the loop takes a microsecond of it, however long it really takes. Sockets of this process are real:
    what is sent through them arrives before the clock jumps, unless it is on its way for longer than *patience*, in
    seconds.
    """
    loop: Any = asyncio.get_running_loop()
    clock, select, now = loop.time, loop._selector.select, loop.time()

    def jump(timeout: float | None) -> Any:
        nonlocal now
        now += 1e-6
        if timeout is None or timeout <= 0:
            return select(timeout)
        events = select(patience)
        if not events:
            now += timeout
        return events

    loop.time, loop._selector.select = lambda: now, jump
    try:
        yield loop.time
    finally:
        loop.time, loop._selector.select = clock, select


@frozen
class Arrival:
    """A request the server got, and when."""

    at: float
    method: str
    token: str


@define
class TimedServer:
    """Answers as it is told, and notes the virtual second of each request."""

    time: VirtualTime
    answer: Answer
    url: str = ""
    arrivals: list[Arrival] = field(factory=list)
    most: dict[Literal["read", "write"], int] = field(factory=lambda: {"read": 0, "write": 0})
    """How many of each kind were in flight at once."""
    _in_flight: dict[Literal["read", "write"], int] = field(factory=lambda: {"read": 0, "write": 0})
    _arrived: asyncio.Event = field(factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.arrivals.append(Arrival(self.time.now, request.method, token))
        kind: Literal["read", "write"] = "read" if request.method == "GET" else "write"
        self._in_flight[kind] += 1
        self.most[kind] = max(self.most[kind], self._in_flight[kind])
        self._arrived.set()
        try:
            answer = self.answer(request)
            response: web.StreamResponse = answer if isinstance(answer, web.StreamResponse) else await answer
        finally:
            self._in_flight[kind] -= 1
        return response

    async def arrived(self, number: int) -> None:
        """Return when that many requests have come."""
        while len(self.arrivals) < number:
            self._arrived.clear()
            await self._arrived.wait()


@asynccontextmanager
async def timed_server(time: VirtualTime, answer: Answer | None = None) -> AsyncIterator[TimedServer]:
    """Serve *answer*, or nothing but `good` ones, on a free loopback port while the block runs."""
    server = TimedServer(time, good if answer is None else answer)
    # A handler whose client has gone is cancelled, or one that holds its answer back would stay.
    runner = web.ServerRunner(web.Server(server.handle, access_log=None, handler_cancellation=True), shutdown_timeout=5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/1.0"
        yield server
    finally:
        await runner.cleanup()


def good(request: web.BaseRequest) -> web.Response:
    """Answer any of the five operations well."""
    webhook = {"gid": "43214"}
    if request.method == "POST":
        return web.json_response({"data": webhook, "X-Hook-Secret": "0123456789abcdef"}, status=201)
    if request.method == "DELETE":
        return web.json_response({"data": {}})
    if request.path.endswith("/webhooks"):
        return web.json_response({"data": [webhook], "next_page": None})
    return web.json_response({"data": webhook})


def refusal(status: int, *headers: tuple[str, str]) -> Answer:
    """Return what answers each request with Asana's error envelope."""

    def refuse(_: web.BaseRequest) -> web.Response:
        response = web.json_response({"errors": [{"message": f"No, {status}"}]}, status=status)
        for name, value in headers:
            response.headers.add(name, value)
        return response

    return refuse


def in_turn(*answers: Answer) -> Answer:
    """Give one answer after another, the last one again and again."""
    left = list(answers)

    def answer(request: web.BaseRequest) -> Any:
        now = left.pop(0) if len(left) > 1 else left[0]
        return now(request)

    return answer


@asynccontextmanager
async def asking(answer: Answer | None = None, **options: Any) -> AsyncIterator[tuple[AsanaSession, TimedServer]]:
    """Open a session with a server, both in the time of ``server.time``; *options* may be the policy's too."""
    time = VirtualTime()
    names = {one.name for one in RetryPolicy.__attrs_attrs__}
    policy = {name: options.pop(name) for name in list(options) if name in names}
    async with timed_server(time, answer) as server:
        given: dict[str, Any] = {"token": TOKEN, "base_url": server.url, "retry": time.policy(**policy)} | options
        async with AsanaSession(**given) as asana:
            yield asana, server


def kinds(results: Iterable[Any]) -> Counter[str]:
    """Count what came of calls, by the name of its class."""
    return Counter(type(one).__name__ for one in results)
