"""Slots: how many requests may be in flight at once, and the limiter people bring."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web
from aiolimiter import AsyncLimiter

from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
)
from tests.helpers.raw import (
    CALLS,
    CREATE,
    DELETE,
    GET,
    LIST,
    PUT,
    TOKEN,
    framed,
    later,
    raw_server,
    saying,
    session,
)
from tests.helpers.virtual import (
    Answer,
    TimedServer,
    asking,
    good,
    in_turn,
    jumping_clock,
    refusal,
)

REQUESTS = [call.request for call in CALLS]


class Counting:
    """A limiter that counts who is inside."""

    def __init__(self) -> None:
        self.entered = 0
        self.inside = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        self.inside += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inside -= 1


class TestLimiter:
    async def test_aiolimiter(self) -> None:
        """AsyncLimiter fits as it is, and is entered once for each attempt."""
        limiter = AsyncLimiter(10, 3600)
        async with asking(in_turn(refusal(503), refusal(503), good), limiter=limiter) as (asana, server):
            await server.time.run(asana.send(GET.request))

        assert limiter.has_capacity(7)
        assert not limiter.has_capacity(8)

    async def test_it_makes_calls_wait(self) -> None:
        """An empty bucket is waited for: no longer than slot_timeout, and the error says for what and how long."""
        limiter = AsyncLimiter(1, 3600)
        with jumping_clock() as clock:
            async with asking(limiter=limiter, retry=RetryPolicy(clock=clock), slot_timeout=0.2) as (asana, server):
                await limiter.acquire()
                with pytest.raises(
                    DeadlineExceededError, match=r"waited 0\.2 seconds for the limiter .*slot_timeout"
                ) as caught:
                    await asana.send(CREATE.request)

            assert server.arrivals == []
            assert (caught.value.timeout, caught.value.attempts) == (0.2, 0)

    async def test_a_cancelled_wait(self) -> None:
        """Who is cancelled while the bucket is empty takes nothing out of it, and frees its place among the reads."""
        asked = asyncio.Event()

        class Telling(AsyncLimiter):
            async def acquire(self, amount: float = 1) -> None:
                asked.set()
                await super().acquire(amount)

        limiter = Telling(1, 0.05)
        async with asking(limiter=limiter, max_reads=1) as (asana, server):
            await limiter.acquire()
            asked.clear()
            waiting = asyncio.create_task(asana.send(GET.request))
            await asked.wait()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()

            await asana.send(GET.request)
            assert len(server.arrivals) == 1

    @pytest.mark.parametrize("trouble", [refusal(404), refusal(500)], ids=["404", "500"])
    async def test_it_is_left_after_errors(self, trouble: Answer) -> None:
        """However an attempt ends, the limiter is left."""
        limiter = Counting()
        async with asking(trouble, limiter=limiter) as (asana, server):
            await server.time.run(*(asana.send(request) for request in REQUESTS))

            assert (limiter.entered, limiter.inside) == (len(server.arrivals), 0)

    async def test_it_is_left_when_a_call_is_cancelled(self) -> None:
        """And when its call is cancelled in flight, or closed with the session."""
        limiter = Counting()
        held = asyncio.Event()

        async def hold(_: web.BaseRequest) -> web.Response:
            await held.wait()
            raise AssertionError

        async with asking(hold, limiter=limiter) as (asana, server):
            calls = [asyncio.create_task(asana.send(GET.request)) for _ in range(2)]
            await server.arrived(2)
            assert limiter.inside == 2
            calls[0].cancel()
            await asyncio.wait(calls[:1])
            assert limiter.inside == 1
            await asana.aclose()
            await asyncio.wait(calls)
            assert limiter.inside == 0
            assert isinstance(calls[1].exception(), ConfigurationError)

    async def test_a_pause_costs_nothing(self) -> None:
        """A call that comes while a 429 pauses the session does not enter until it may be sent."""
        limiter = Counting()
        answer = in_turn(refusal(429, ("Retry-After", "5")), good)
        async with asking(answer, limiter=limiter) as (asana, server):
            await server.time.run(asana.send(GET.request), server.time.at(1.0, asana.send(LIST.request)))

            assert limiter.entered == len(server.arrivals) == 3

    async def test_a_queue_that_a_pause_meets(self) -> None:
        """Calls that wait for their turn when a 429 comes do not enter either until they may be sent."""
        limiter = Counting()
        answer = in_turn(refusal(429, ("Retry-After", "5")), good)
        async with asking(answer, limiter=limiter, max_reads=1) as (asana, server):
            await server.time.run(*(asana.send(GET.request) for _ in range(10)))

            assert limiter.entered == len(server.arrivals) == 11

    async def test_one_that_is_false(self) -> None:
        """A limiter counts though it says of itself that it is empty."""

        class Empty(Counting):
            def __bool__(self) -> bool:
                return False

        limiter = Empty()
        async with asking(limiter=limiter) as (asana, _):
            await asana.send(GET.request)

        assert limiter.entered == 1

    async def test_one_that_fails(self) -> None:
        """Its error is the caller's own and comes through; the session works on."""

        class Failing(Counting):
            async def __aenter__(self) -> Self:
                await super().__aenter__()
                if self.entered == 1:
                    self.inside -= 1
                    raise LookupError("no such bucket")
                return self

        limiter = Failing()
        async with asking(limiter=limiter, max_writes=1) as (asana, server):
            with pytest.raises(LookupError, match="no such bucket"):
                await asana.send(CREATE.request)
            assert server.arrivals == []

            await asana.send(CREATE.request)
            assert (limiter.entered, limiter.inside) == (2, 0)


async def stubborn(*_: object) -> str:
    """Return although it is cancelled."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "a-token-that-comes-too-late"


class Stubborn:
    __aenter__ = stubborn

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("where", ["__aenter__", "__aexit__"])
async def test_a_limiter_with_a_cancellation_of_its_own(where: str) -> None:
    """What it awaits was cancelled elsewhere: the call fails, and does not end as if it had been cancelled."""

    class Broken(Counting):
        async def __aenter__(self) -> Self:
            return await self.fail("__aenter__")

        async def __aexit__(self, *_: object) -> None:
            await self.fail("__aexit__")

        async def fail(self, here: str) -> Self:
            elsewhere: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            elsewhere.cancel()
            if here == where:
                await elsewhere
            return self

    async with asking(limiter=Broken()) as (asana, _):
        with pytest.raises(ConfigurationError, match="the limiter failed with CancelledError"):
            await asana.send(GET.request)


@pytest.mark.parametrize("lent", [False, True])
async def test_a_connection_has_its_time(lent: bool) -> None:
    """A server that never answers the TLS handshake is given up in the time there is for one connection."""
    async with raw_server(saying(b"")) as server, aiohttp.ClientSession() as http:
        url = server.url.replace("http:", "https:")
        async with session(url, connect_timeout=0.05, attempts=1, http=http if lent else None) as asana:
            with pytest.raises(ConnectionFailedError, match="connecting timed out"):
                await asana.send(GET.request)


@pytest.mark.parametrize("lent", [False, True])
async def test_waiting_for_a_connection_is_no_failure_to_connect(lent: bool) -> None:
    """More calls than connections wait for each other, however short the time to make one is."""
    held = asyncio.Event()
    waiting = 105  # aiohttp's own limit is 100

    async def hold(writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.write(framed(GET.good))

    async with raw_server(hold, keep=True) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as http:
            lending: dict[str, Any] = {"http": http, "connect_timeout": 0.5}
            async with session(server.url, **(lending if lent else {"max_reads": waiting})) as asana:
                calls = [asyncio.create_task(asana.send(GET.request)) for _ in range(waiting)]
                await server.got(2 if lent else waiting)
                await later(0.6 if lent else 0)
                held.set()

                assert len(await asyncio.gather(*calls)) == waiting


@pytest.mark.parametrize("options", [{"limiter": Stubborn()}, {"token": stubborn}], ids=["limiter", "provider"])
async def test_who_lets_no_cancellation_through(options: dict[str, Any]) -> None:
    """The deadline holds, nothing is sent after it, and the task counts as cancelled by nobody."""
    with jumping_clock() as clock:
        limits = {"timeout": 0.05, "slot_timeout": 0.05, "clock": clock}
        async with raw_server(saying(framed(GET.good))) as server, session(server.url, **limits, **options) as asana:
            with pytest.raises(DeadlineExceededError, match=r"0\.\d seconds"):
                await asana.send(GET.request)

            assert server.requests == []
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0


@pytest.mark.parametrize("closing", [False, True])
async def test_a_limiter_that_makes_a_timeout_of_a_cancellation(closing: bool) -> None:
    """The call says what ended it, its deadline or the end of the session, and not what the limiter made of that."""
    entered = asyncio.Event()

    class Limited(Counting):
        async def __aenter__(self) -> Self:
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise TimeoutError("the bucket stays empty") from None
            return self

    async with asking(limiter=Limited(), retry=RetryPolicy(), slot_timeout=60 if closing else 0.05) as (asana, server):
        call = asyncio.create_task(asana.send(CREATE.request))
        if closing:
            await entered.wait()
            await asana.aclose()
        with pytest.raises(ConfigurationError if closing else DeadlineExceededError):
            await call
        assert server.arrivals == []
        assert call.cancelling() == 0


async def test_closing_ends_a_call_whose_provider_let_its_deadline_pass() -> None:
    """Whoever has ignored one cancellation and goes on waiting is cancelled again."""
    ignored = asyncio.Event()

    async def ignore_once() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ignored.set()
        await asyncio.Event().wait()
        return TOKEN

    async with asking(token=ignore_once, retry=RetryPolicy(), timeout=0.01) as (asana, server):
        call = asyncio.create_task(asana.send(GET.request))
        await ignored.wait()
        await asana.aclose()
        with pytest.raises(ConfigurationError, match="is closed"):
            await asyncio.wait_for(call, 5)
        assert server.arrivals == []
        assert call.cancelling() == 0


class TestCaps:
    @asynccontextmanager
    async def holding(self, **options: Any) -> AsyncIterator[tuple[AsanaSession, TimedServer, asyncio.Semaphore]]:
        """A server that answers no sooner than it is let, one request for each release."""
        leave = asyncio.Semaphore(0)

        async def hold(request: web.BaseRequest) -> web.Response:
            await leave.acquire()
            return good(request)

        async with asking(hold, **options) as (asana, server):
            yield asana, server, leave

    @pytest.mark.parametrize(("reads", "writes"), [(3, 2), (1, 1), (2, 5)])
    async def test_no_more_than_that(self, reads: int, writes: int) -> None:
        """Reads and writes wait for their own kind; whenever one ends, the next is sent."""
        async with self.holding(max_reads=reads, max_writes=writes) as (asana, server, leave):
            calls = [asyncio.create_task(asana.send(request)) for request in REQUESTS * 4]
            for answered in range(len(calls)):
                open_reads = min(reads, sum(not call.done() for call in calls[0::5] + calls[1::5]))
                open_writes = min(writes, sum(not c.done() for c in calls[2::5] + calls[3::5] + calls[4::5]))
                await server.arrived(answered + open_reads + open_writes)
                leave.release()
                await asyncio.wait([call for call in calls if not call.done()], return_when=asyncio.FIRST_COMPLETED)
            assert not [call for call in calls if call.exception()]

            assert server.most == {"read": reads, "write": writes}

    async def test_defaults(self) -> None:
        """As many as Asana allows a token: 50 reads and 15 writes."""
        async with self.holding() as (asana, server, leave):
            calls = [asyncio.create_task(asana.send(GET.request)) for _ in range(60)]
            calls += [asyncio.create_task(asana.send(PUT.request)) for _ in range(20)]
            await server.arrived(65)
            for _ in calls:
                leave.release()
            await asyncio.wait(calls)
            assert not [call for call in calls if call.exception()]

            assert server.most == {"read": 50, "write": 15}

    async def test_one_kind_does_not_hold_up_the_other(self) -> None:
        """While all reads are taken, writes go out."""

        async def hold_reads(request: web.BaseRequest) -> web.Response:
            if request.method == "GET":
                await done.wait()
            return good(request)

        done = asyncio.Event()
        async with asking(hold_reads, max_reads=1, max_writes=1) as (asana, server):
            reads = [asyncio.create_task(asana.send(GET.request)) for _ in range(3)]
            await server.arrived(1)
            for call in (PUT, DELETE, CREATE):
                await asana.send(call.request)
            assert [one.method for one in server.arrivals] == ["GET", "PUT", "DELETE", "POST"]
            done.set()
            await asyncio.gather(*reads)

    async def test_cancelled_calls_free_their_place(self) -> None:
        """Whether it waits for its turn or has it: a call that is cancelled is in nobody's way."""
        async with self.holding(max_reads=1) as (asana, server, leave):
            in_flight, waiting, last = [asyncio.create_task(asana.send(GET.request)) for _ in range(3)]
            await server.arrived(1)
            waiting.cancel()
            await asyncio.wait([waiting])
            in_flight.cancel()
            await server.arrived(2)
            leave.release()
            await last
            assert in_flight.cancelled()
            leave.release()
            await asana.send(GET.request)

            assert len(server.arrivals) == 3

    async def test_nobody_keeps_a_turn_while_it_waits(self) -> None:
        """A call that sleeps before its next attempt lets another go ahead."""
        async with asking(in_turn(refusal(500), good), max_reads=1, random=lambda: 1.0) as (asana, server):
            results = await server.time.run(asana.send(GET.request), asana.send(LIST.request))

            assert not [one for one in results if isinstance(one, BaseException)]
            assert [one.at for one in server.arrivals] == [0, 0, 0.5]

    async def test_a_turn_that_does_not_come(self) -> None:
        """slot_timeout bounds the wait for a turn, and the error says what was waited for, how long, and what helps."""
        said = r"waited 0\.1 seconds for a slot of max_writes \(0 attempts\)\. .*longer slot_timeout, more max_reads"
        with jumping_clock() as clock:
            policy = RetryPolicy(clock=clock)
            async with self.holding(retry=policy, slot_timeout=0.1, max_writes=1) as (asana, server, leave):
                first = asyncio.create_task(asana.send(PUT.request))
                await server.arrived(1)
                with pytest.raises(DeadlineExceededError, match=said):
                    await asana.send(CREATE.request)
                leave.release()
                await asyncio.wait({first})

                assert len(server.arrivals) == 1
