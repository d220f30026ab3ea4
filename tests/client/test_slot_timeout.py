"""Two times of a call: *timeout* from when it gets its slot, and *slot_timeout* for all waiting for its turn."""

import asyncio
import math
from contextlib import nullcontext
from typing import Any

import pytest
from aiohttp import web
from aiolimiter import AsyncLimiter

from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.errors import DeadlineExceededError, RateLimitedError
from tests.helpers.raw import CREATE, GET, PUT
from tests.helpers.virtual import Answer, asking, good, in_turn, jumping_clock, kinds, refusal


class TestManyAtOnce:
    """A thousand creates in one `asyncio.gather`, and a clock that nobody waits for."""

    async def all_answered(self, answer: Answer, **options: Any) -> list[float]:
        """Return the seconds at which the requests arrived, from the first one on."""
        arrivals: list[float] = []
        with jumping_clock(patience=1e-3) as clock:

            def note(request: web.BaseRequest) -> Any:
                arrivals.append(clock())
                return answer(request)

            async with asking(note, retry=RetryPolicy(clock=clock), **options) as (asana, server):
                created = await asyncio.gather(*(asana.send(CREATE.request) for _ in range(1000)))
        assert len(created) == 1000
        assert server.most["write"] <= 15
        return [one - arrivals[0] for one in arrivals]

    async def test_slow_answers(self) -> None:
        """Each takes four seconds, and 15 are in flight: the last one waits more than four minutes for its slot."""

        async def slow(request: web.BaseRequest) -> web.Response:
            await asyncio.sleep(4)
            return good(request)

        arrivals = await self.all_answered(slow)

        assert len(arrivals) == 1000
        assert arrivals[-1] == pytest.approx(1000 // 15 * 4, rel=0.05)

    async def test_a_limiter_of_150_a_minute(self) -> None:
        """The last one waits almost six minutes for the limiter."""
        arrivals = await self.all_answered(good, limiter=AsyncLimiter(150, 60))

        assert len(arrivals) == 1000
        assert arrivals[-1] == pytest.approx(850 / 150 * 60, rel=0.05)

    @pytest.mark.long
    async def test_a_server_that_allows_150_a_minute(self) -> None:
        """Whoever comes too often is told to wait for the next minute, up to six times."""
        minute: list[float] = []

        def allow(request: web.BaseRequest) -> Any:
            now = asyncio.get_running_loop().time()
            if minute and now >= minute[0] + 60:
                minute.clear()
            if len(minute) < 150:
                minute.append(now)
                return good(request)
            return refusal(429, ("Retry-After", str(math.ceil(minute[0] + 60 - now))))(request)

        arrivals = await self.all_answered(allow)

        assert 1000 < len(arrivals) <= 1000 + 6 * 15
        assert arrivals[-1] < 6 * 67


class TestTwoTimes:
    """What counts against *timeout*, and what against *slot_timeout*."""

    async def test_waiting_for_a_slot_takes_nothing_from_the_timeout(self) -> None:
        """Nor does the limiter, before any attempt; answers, tokens and backoff do."""
        with jumping_clock() as clock:

            async def slow(request: web.BaseRequest) -> web.Response:
                await asyncio.sleep(8)
                return good(request)

            options: dict[str, Any] = {"max_reads": 1, "timeout": 10.0, "slot_timeout": 30.0}
            async with asking(slow, retry=RetryPolicy(clock=clock), **options) as (asana, _):
                results = await asyncio.gather(*(asana.send(GET.request) for _ in range(5)), return_exceptions=True)

        assert kinds(results) == {"Webhook": 4, "DeadlineExceededError": 1}
        assert "waited 30.0 seconds for a slot of max_reads" in str(results[-1])

    async def test_429s_use_up_no_attempt(self) -> None:
        """Twenty in a row, each with a pause, are waited out within slot_timeout, and the one try succeeds."""
        answer = in_turn(*[refusal(429, ("Retry-After", "10"))] * 20, good)
        async with asking(answer, attempts=1, create_attempts=1, timeout=5.0) as (asana, server):
            [created] = await server.time.run(asana.send(CREATE.request))

            assert created.webhook.gid == "43214"
            assert server.time.now == 200.0

        async with asking(in_turn(refusal(429), refusal(503), good), attempts=2) as (asana, server):
            assert kinds(await server.time.run(asana.send(GET.request))) == {"Webhook": 1}

    async def test_all_waits_for_a_turn_are_one_sum(self) -> None:
        """A third pause that would pass slot_timeout, 600 seconds unless given, is not begun, though each is short."""
        given: list[tuple[dict[str, Any], float]] = [({"slot_timeout": 25.0}, 10.0), ({}, 299.0)]
        for options, pause in given:
            async with asking(refusal(429, ("Retry-After", f"{pause}")), **options) as (asana, server):
                [error] = await server.time.run(asana.send(GET.request))

                assert isinstance(error, RateLimitedError)
                assert (error.attempts, server.time.slept) == (3, [pause, pause])

    async def test_slots_and_the_limiter_are_part_of_the_sum(self) -> None:
        """What a call waited for one of them is not there for a pause, and the other way round."""

        class Limiter(nullcontext[None]):
            async def __aenter__(self) -> None:
                if server.arrivals:
                    await asyncio.Event().wait()

        no = refusal(429, ("Retry-After", "10"))

        async def slow(request: web.BaseRequest) -> Any:
            await asyncio.sleep(8)
            return no(request)

        with jumping_clock() as clock:
            options: dict[str, Any] = {"retry": RetryPolicy(clock=clock, random=lambda: 0.0), "slot_timeout": 15.0}
            async with asking(slow, max_reads=1, **options) as (asana, server):
                results = await asyncio.gather(*(asana.send(GET.request) for _ in range(2)), return_exceptions=True)
            assert [getattr(one, "attempts", None) for one in results] == [2, 0]

            async with asking(no, limiter=Limiter(), **options) as (asana, server):
                started = clock()
                with pytest.raises(DeadlineExceededError, match=r"waited 5.0 .* limiter, after earlier waits of 10.0"):
                    await asana.send(GET.request)
                assert clock() - started == pytest.approx(15, abs=0.5)

    async def test_a_429_without_a_time(self) -> None:
        """The pauses grow with the number of 429s of this call."""
        async with asking(refusal(429), random=lambda: 1.0, slot_timeout=20.0) as (asana, server):
            [error] = await server.time.run(asana.send(GET.request))

            assert isinstance(error, RateLimitedError)
            assert server.time.slept == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0])

    async def test_a_pause_that_another_call_met(self) -> None:
        """It counts against slot_timeout also for one that backs off, which itself counts against timeout."""
        paused = asyncio.Event()

        async def answer(request: web.BaseRequest) -> Any:
            if server.time.now:
                return good(request)
            if request.method == "GET":
                return refusal(429, ("Retry-After", "100"))(request)
            await paused.wait()
            return refusal(503)(request)

        async def open_up() -> None:
            await server.arrived(2)
            await server.time.asleep(1)
            paused.set()

        async with asking(answer, timeout=5.0) as (asana, server):
            results = await server.time.run(asana.send(GET.request), asana.send(PUT.request), open_up())

            assert kinds(results) == {"Webhook": 2, "NoneType": 1}
            assert [one.at for one in server.arrivals] == [0, 0, 100, 100]
