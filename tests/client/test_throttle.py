"""What many calls of one session share: pauses after a 429, the retry budget, and how they end together.

Sockets are real; time is not: see `VirtualTime`.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import Any

import pytest
from aiohttp import web
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.retry import Decision, Outcome, RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.client.throttle import Throttle
from asana_webhooks.errors import (
    AsanaError,
    CreateOutcomeUnknownError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitedError,
    ServerError,
)
from asana_webhooks.testing import FakeAsana, Fault
from asana_webhooks.wire import ErrorDetail
from tests.helpers.raw import CALLS, CREATE, DELETE, GET, LIST, PUT, TOKEN, no_wait, until
from tests.helpers.servers import errors, scripted_server
from tests.helpers.virtual import Answer, VirtualTime, asking, good, in_turn, kinds, refusal, timed_server

REQUESTS = [call.request for call in CALLS]
DATE = ("Date", "Fri, 02 Jan 2026 03:04:05 GMT")
TWO_SECONDS_LATER = ("Retry-After", "Fri, 02 Jan 2026 03:04:07 GMT")
SECONDS = st.floats(0, 100) | st.integers(0, 20).map(float)


class TestPause:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ([("Retry-After", "2")], 2.0),
            ([("Retry-After", "2.5")], 2.5),
            ([("Retry-After", "1000000000")], 3600.0),
            ([DATE, TWO_SECONDS_LATER], 2.0),
            ([("Date", "Tue, 02 Jan 2035 03:04:05 GMT"), ("Retry-After", "Tue, 02 Jan 2035 03:04:07 GMT")], 2.0),
            # What makes no sense is as good as nothing: the pause is as long as the first call backs off.
            ([], 0.5),
            ([("Retry-After", "-1")], 0.5),
            ([("Retry-After", "NaN")], 0.5),
            ([("Retry-After", "1e9")], 0.5),
            ([("Retry-After", "2"), ("Retry-After", "2")], 0.5),
            ([("Date", "today"), TWO_SECONDS_LATER], 0.5),
        ],
        ids=["2", "2.5", "1e9", "date", "skewed date", "none", "-1", "nan", "1e9 as such", "two headers", "no Date"],
    )
    async def test_one_pause_for_all(self, headers: list[tuple[str, str]], seconds: float) -> None:
        """No call of any kind reaches Asana before the pause is over; all of them succeed afterwards."""

        def answer(request: web.BaseRequest) -> web.Response:
            return refusal(429, *headers)(request) if server.time.now < seconds else good(request)

        jitter = iter([1.0, *islice(cycle([0.999, 1.0]), 1000)])
        async with asking(answer, slot_timeout=4000.0, random=lambda: next(jitter)) as (asana, server):
            early = [asana.send(request) for request in islice(cycle(REQUESTS), 50)]
            late = [server.time.at(seconds * share, asana.send(GET.request)) for share in (0.25, 0.5, 0.999)]
            results = await server.time.run(*early, *late)

            assert not [one for one in results if isinstance(one, BaseException)]
            first_wave = [one for one in server.arrivals if one.at == 0]
            assert 0 < len(first_wave) <= 50
            assert all(seconds <= one.at <= seconds * 1.101 for one in server.arrivals[len(first_wave) :])
            assert len(server.arrivals) - len(first_wave) == 53
            assert sum(one.method == "POST" and one.at > 0 for one in server.arrivals) == 10

    async def test_the_pause_with_any_jitter(self) -> None:
        """Never a request before Asana said, and not all of them in the same moment."""

        def answer(request: web.BaseRequest) -> web.Response:
            return refusal(429, ("Retry-After", "7"))(request) if server.time.now < 7 else good(request)

        async with asking(answer, random=random.Random(1).random) as (asana, server):
            results = await server.time.run(*(asana.send(request) for request in REQUESTS * 10))

            assert not [one for one in results if isinstance(one, BaseException)]
            after = {one.at for one in server.arrivals if one.at > 0}
            assert 7 <= min(after) < max(after) <= 7.7
            assert len(after) > 25

    async def test_zero_seconds_pause_nobody(self) -> None:
        """A Retry-After of 0 shuts nothing, but whoever got it backs off and pays for it."""
        answer = in_turn(refusal(429, ("Retry-After", "0")), good)
        async with asking(answer, random=lambda: 1.0) as (asana, server):
            other = server.time.at(0.25, asana.send(LIST.request))
            results = await server.time.run(asana.send(GET.request), other)

            assert not [one for one in results if isinstance(one, BaseException)]
            assert [one.at for one in server.arrivals] == [0, 0.25, 0.5]

    async def test_many_that_are_told_zero_seconds(self) -> None:
        """With no pause to share, each pays for itself, and the budget bounds them all."""
        answer = refusal(429, ("Retry-After", "0"))
        async with asking(answer, random=random.Random(3).random) as (asana, server):
            results = await server.time.run(*(asana.send(GET.request) for _ in range(50)))

            assert kinds(results) == {"RateLimitedError": 50}
            assert {one.retry_after for one in results} == {0.0}
            assert len(server.arrivals) == 50 + 20

    async def test_a_pause_longer_than_a_call_may_take(self) -> None:
        """Who would have to wait past slot_timeout fails at once and says that nothing was sent; others wait."""
        answer = in_turn(refusal(429, ("Retry-After", "100")), good)
        async with asking(answer, slot_timeout=60.0) as (asana, server):
            time = server.time
            moments = [0.0, 10.0, 39.0, 40.0, 41.0, 99.0]
            first, *others = await time.run(*(time.at(moment, asana.send(CREATE.request)) for moment in moments))

            assert isinstance(first, RateLimitedError)
            assert (first.attempts, first.retry_after) == (1, 100.0)
            for error, left in zip(others, [90.0, 61.0, 60.0], strict=False):
                assert isinstance(error, RateLimitedError)
                assert (error.attempts, error.retry_after, error.status) == (0, left, 429)
                assert "Asana answered 429 to another call, so this was not sent: No, 429." in str(error)
                assert f"wait {left:g} seconds" in str(error)
            assert kinds(others) == {"RateLimitedError": 3, "CreatedWebhook": 2}
            assert [one.at for one in server.arrivals] == [0.0, 100.0, 100.0]

    async def test_a_huge_retry_after_does_not_end_the_session(self) -> None:
        """A pause ends after longest_pause, whatever Asana asked for."""
        answer = in_turn(refusal(429, ("Retry-After", "1000000000")), good)
        async with asking(answer, longest_pause=90.0, slot_timeout=60.0) as (asana, server):
            time = server.time
            calls = [time.at(moment, asana.send(GET.request)) for moment in (0.0, 20.0, 31.0)]
            results = await time.run(*calls)

            assert kinds(results) == {"RateLimitedError": 2, "Webhook": 1}
            assert [one.at for one in server.arrivals] == [0.0, 90.0]

    @pytest.mark.parametrize(
        "trouble",
        [refusal(500), refusal(429, ("Retry-After", "1")), refusal(429, ("Retry-After", "0")), refusal(429)],
        ids=["500", "429 for less", "429 for nothing", "429 without time"],
    )
    async def test_a_call_that_waits_less_goes_through_no_pause(self, trouble: Answer) -> None:
        """What was in flight when the pause began, and backs off for less, is held when it comes back."""
        paused = asyncio.Event()

        async def late(request: web.BaseRequest) -> Any:
            await paused.wait()
            return trouble(request)

        def answer(request: web.BaseRequest) -> Any:
            if server.time.now >= 10:
                return good(request)
            return late(request) if request.method == "PUT" else refusal(429, ("Retry-After", "10"))(request)

        async def open_up() -> None:
            await server.arrived(2)
            await server.time.asleep(1)
            paused.set()

        async with asking(answer) as (asana, server):
            results = await server.time.run(asana.send(GET.request), asana.send(PUT.request), open_up())

            assert not [one for one in results if isinstance(one, BaseException)]
            assert [one.at for one in server.arrivals] == [0, 0, 10, 10]

    @pytest.mark.parametrize(("pause", "slept"), [("1000", []), ("10", [10.0, 10.0])])
    async def test_a_call_that_must_wait_waits_for_the_pause_at_once(self, pause: str, slept: list[float]) -> None:
        """It does not come back to be held; and if that is longer than it may take, its own error comes at once."""
        paused = asyncio.Event()

        async def late(request: web.BaseRequest) -> Any:
            await paused.wait()
            return refusal(503)(request)

        def answer(request: web.BaseRequest) -> Any:
            if server.time.now >= 10:
                return good(request)
            return late(request) if request.method == "PUT" else refusal(429, ("Retry-After", pause))(request)

        async def call_and_open_up() -> Any:
            try:
                return await asana.send(GET.request)
            finally:
                paused.set()

        async def open_up() -> None:
            await server.arrived(2)
            await until(lambda: server.time.slept or paused.is_set())
            paused.set()

        async with asking(answer, first_wait=4.0) as (asana, server):
            _, called, _ = await server.time.run(call_and_open_up(), asana.send(PUT.request), open_up())

            assert server.time.slept == slept
            assert isinstance(called, ServerError) is (pause == "1000")

    async def test_a_longer_pause_holds_who_sat_out_the_first(self) -> None:
        """While calls wait, one that was in flight is told to wait longer: all wait longer."""
        paused = asyncio.Event()

        async def late(request: web.BaseRequest) -> Any:
            await paused.wait()
            return refusal(429, ("Retry-After", "20"))(request)

        def answer(request: web.BaseRequest) -> Any:
            if server.time.now >= 20:
                return good(request)
            return late(request) if request.method == "PUT" else refusal(429, ("Retry-After", "5"))(request)

        async def open_up() -> None:
            await server.arrived(2)
            await server.time.asleep(1)
            paused.set()

        async with asking(answer) as (asana, server):
            other = server.time.at(3.0, asana.send(LIST.request))
            results = await server.time.run(asana.send(GET.request), asana.send(PUT.request), other, open_up())

            assert not [one for one in results if isinstance(one, BaseException)]
            assert [one.at for one in server.arrivals] == [0, 0, 20, 20, 20]

    async def test_a_call_that_gives_up_pauses_the_others(self) -> None:
        """Its 429 is told to all, though nobody who got it waits."""
        answer = in_turn(refusal(429, ("Retry-After", "5")), good)
        async with asking(answer, slot_timeout=4.5) as (asana, server):
            refused, created = await server.time.run(
                asana.send(GET.request), server.time.at(1.0, asana.send(CREATE.request))
            )

            assert isinstance(refused, RateLimitedError)
            assert kinds([created]) == {"CreatedWebhook": 1}
            assert [one.at for one in server.arrivals] == [0, 5]

    async def test_a_sleep_that_ends_early(self) -> None:
        """Clocks differ by a little: who has sat a pause out is not held by it again for the rest."""
        time = VirtualTime()

        async def sleep(seconds: float) -> None:
            time.slept.append(seconds)
            await time.until(time.now + seconds * 0.999)

        answer = in_turn(refusal(429, ("Retry-After", "5")), good)
        async with asking(answer, clock=lambda: time.now, sleep=sleep) as (asana, _):
            await time.run(asana.send(GET.request), time.at(1.0, asana.send(LIST.request)))

        assert time.slept == [5.0, 4.0]

    async def test_a_pause_that_begins_while_the_token_is_asked_for(self) -> None:
        """A call that was on its way is held at the last moment, and asks for its token again."""
        asked: list[float] = []
        paused = asyncio.Event()

        async def provide() -> str:
            asked.append(time.now)
            if len(asked) == 2:
                await paused.wait()
            return TOKEN

        async def open_up() -> None:
            await time.asleep(1)
            paused.set()

        time = VirtualTime()
        async with timed_server(time, in_turn(refusal(429, ("Retry-After", "5")), good)) as server:
            async with AsanaSession(provide, base_url=server.url, retry=time.policy()) as asana:
                results = await time.run(asana.send(GET.request), asana.send(PUT.request), open_up())

        assert not [one for one in results if isinstance(one, BaseException)]
        assert [one.at for one in server.arrivals] == [0, 5, 5]
        assert asked == [0, 0, 5, 5]

    async def test_against_the_fake(self) -> None:
        """The fake's one 429 costs all calls one pause and one of them one more request."""
        time = VirtualTime()
        request = GetWebhooksRequest(workspace="1331")
        async with FakeAsana(webhooks=1) as fake:
            fake.script(Fault(at="*", status=429, retry_after=3))
            async with AsanaSession(fake.token, base_url=fake.url, retry=time.policy()) as asana:
                pages = await time.run(*(asana.send(request) for _ in range(10)))
            assert len(fake.requests) == 11

        assert [len(page.data) for page in pages] == [1] * 10
        assert time.now == 3.0


class TestBudget:
    @pytest.mark.parametrize("callers", [50, 100])
    async def test_an_outage_is_not_made_worse(self, callers: int) -> None:
        """However many calls fail for ever: no more than ten are sent again, 1.2 requests for each of 50 calls."""
        async with asking(refusal(500), random=random.Random(2).random) as (asana, server):
            results = await server.time.run(*(asana.send(GET.request) for _ in range(callers)))

            assert kinds(results) == {"ServerError": callers}
            assert len(server.arrivals) == sum(one.attempts for one in results) == callers + 10

    async def test_after_the_outage(self, caplog: pytest.LogCaptureFixture) -> None:
        """Each success gives one back; ten of them pay for one more repetition, and the log says why there was none."""
        caplog.set_level("INFO", "asana_webhooks")
        broken = refusal(500)
        answers = in_turn(*[broken] * 3, *[good] * 9, broken, good, broken, broken, good)
        async with asking(answers, budget=20, attempts=9) as (asana, server):

            async def told(result: str, *, requests: int) -> None:
                server.arrivals.clear()
                assert kinds(await server.time.run(asana.send(GET.request))) == {result: 1}
                assert len(server.arrivals) == requests

            await told("ServerError", requests=3)  # 20 are spent
            assert caplog.messages[-1].endswith("not retrying: the session's retry budget is exhausted")
            for _ in range(9):
                await told("Webhook", requests=1)
            await told("ServerError", requests=1)  # 9 are not enough
            await told("Webhook", requests=1)
            await told("ServerError", requests=2)  # 10 are
            await told("Webhook", requests=1)

    async def test_it_never_holds_more_than_when_it_was_full(self) -> None:
        """A thousand quiet calls save nothing up."""
        answers = in_turn(*[good] * 20, refusal(500))
        async with asking(answers, budget=10, attempts=9) as (asana, server):
            results = await server.time.run(*(asana.send(GET.request) for _ in range(20)))
            assert kinds(results) == {"Webhook": 20}
            await server.time.run(asana.send(GET.request))

            assert len(server.arrivals) == 20 + 2

    async def test_nor_when_waits_are_cancelled(self) -> None:
        """What comes back from calls that gave up waiting does not make it more than full."""
        answers = in_turn(*[refusal(500)] * 10, *[good] * 30, refusal(500))
        async with asking(answers, attempts=2) as (asana, server):
            waiting = [asyncio.create_task(asana.send(GET.request)) for _ in range(10)]
            await server.time.asleep(10)
            for _ in range(30):
                await asana.send(GET.request)
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)
            server.arrivals.clear()
            await server.time.run(*(asana.send(GET.request) for _ in range(20)))

            assert len(server.arrivals) == 20 + 10

    @pytest.mark.parametrize(
        "trouble", [refusal(503), refusal(429), refusal(429, ("Retry-After", "1"))], ids=["503", "429", "429 in 1 s"]
    )
    async def test_none(self, trouble: Answer) -> None:
        """With a budget of 0 nothing is sent again."""
        async with asking(in_turn(trouble, good), budget=0) as (asana, server):
            with pytest.raises((ServerError, RateLimitedError)) as caught:
                await asana.send(GET.request)

            assert caught.value.attempts == len(server.arrivals) == 1
            assert server.time.slept == []

    async def test_a_429_costs_half(self) -> None:
        """Asana is well, so twice as many are sent again."""
        answer = refusal(429, ("Retry-After", "0"))
        async with asking(answer, budget=15, attempts=9) as (asana, server):
            assert kinds(await server.time.run(asana.send(GET.request))) == {"RateLimitedError": 1}

            assert len(server.arrivals) == 1 + 3

    async def test_all_in_flight_pay_once_for_a_pause(self) -> None:
        """That many calls hear of the same trouble makes it no worse: a pause that one can pay, all sit out."""

        def answer(request: web.BaseRequest) -> web.Response:
            return refusal(429, ("Retry-After", "2"))(request) if server.time.now < 2 else good(request)

        async with asking(answer, budget=5) as (asana, server):
            results = await server.time.run(*(asana.send(GET.request) for _ in range(50)))

            assert kinds(results) == {"Webhook": 50}


class TestDeadline:
    async def test_a_wait_that_would_pass_it(self) -> None:
        """The last error comes at once instead of a wait that is for nothing."""
        async with asking(refusal(500), timeout=3.0, random=lambda: 1.0) as (asana, server):
            [error] = await server.time.run(asana.send(GET.request))

            assert isinstance(error, ServerError)
            assert (error.attempts, server.time.now, server.time.slept) == (3, 1.5, [0.5, 1.0])

    @pytest.mark.parametrize(("status", "kind"), [(429, RateLimitedError), (503, ServerError)])
    async def test_what_asana_asked_for_is_told(self, status: int, kind: type[AsanaError]) -> None:
        """The error carries the seconds that were too many."""
        answer = refusal(status, ("Retry-After", "7"))
        async with asking(answer, timeout=5.0, slot_timeout=5.0) as (asana, server):
            with pytest.raises(kind, match="Asana asked to wait 7 seconds") as caught:
                await asana.send(GET.request)

            assert getattr(caught.value, "retry_after", None) == 7.0
            assert server.time.slept == []

    async def test_full_jitter(self) -> None:
        """Each wait is a random part of its bound, and the bounds double."""
        chances = iter([0.1, 0.9, 0.5])
        async with asking(refusal(500), random=lambda: next(chances, 0.0)) as (asana, server):
            await server.time.run(asana.send(GET.request))

            assert server.time.slept == pytest.approx([0.05, 0.9, 1.0])

    @pytest.mark.parametrize("part", [b"", b'{"data":'], ids=["head", "body"])
    async def test_an_answer_that_does_not_end(self, part: bytes) -> None:
        """Reading counts too; when the time is over, that is the error."""

        async def hang(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(part)
            await asyncio.Event().wait()
            raise AssertionError

        async with asking(hang, retry=RetryPolicy(), timeout=0.1) as (asana, _):
            with pytest.raises(DeadlineExceededError, match="no answer within"):
                await asana.send(GET.request)

    async def test_an_attempt_has_its_own_limit(self) -> None:
        """A hanging attempt is given up in time for another."""

        async def hang(_: web.BaseRequest) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        async with asking(in_turn(hang, good), attempt_timeout=0.4) as (asana, server):
            [found] = await server.time.run(asana.send(GET.request))

            assert found.gid == "43214"
            assert len(server.arrivals) >= 2  # a busy machine may need more


class TestDelete:
    @pytest.mark.parametrize("first", [400, 403, 401, 429], ids=str)
    async def test_a_404_after_a_clear_no(self, first: int) -> None:
        """A 429 was not executed, so the 404 after it says that there was no such webhook; a clear no is final."""
        async with asking(in_turn(refusal(first), refusal(404))) as (asana, server):
            [error] = await server.time.run(asana.send(DELETE.request))

            assert isinstance(error, NotFoundError if first == 429 else AsanaError)
            assert len(server.arrivals) == (2 if first == 429 else 1)

    @pytest.mark.parametrize(
        "course", [[500], [503, 429], [429, 500], [429, 502, 429]], ids=lambda one: "-".join(map(str, one))
    )
    async def test_a_404_after_what_may_have_worked(self, course: list[int]) -> None:
        """Once a copy may have been executed, the 404 says that it was."""
        async with asking(in_turn(*map(refusal, course), refusal(404))) as (asana, server):
            assert await server.time.run(asana.send(DELETE.request)) == [None]

            assert len(server.arrivals) == len(course) + 1

    @pytest.mark.parametrize("course", [[], [errors(429, "Slow down")]], ids=["404", "429, 404"])
    async def test_a_404_after_a_copy_nobody_asked_for(self, course: list[bytes]) -> None:
        """What aiohttp silently sends twice may have worked once: the second answer says nothing about the first."""
        time = VirtualTime()
        async with scripted_server("close", *course, errors(404, "Unknown object")) as server:
            async with AsanaSession(TOKEN, base_url=server.url, retry=time.policy()) as asana:
                assert await time.run(asana.send(DELETE.request)) == [None]

        assert len(server.requests) == len(course) + 2


class TestClosing:
    async def ended(self, asana: AsanaSession, *calls: "asyncio.Task[Any]") -> list[Any]:
        """Close the session; return what came of its calls, which must end."""
        await asana.aclose()
        return await asyncio.gather(*calls, return_exceptions=True)

    async def test_in_a_pause(self) -> None:
        """Calls that a 429 holds end at once; even a create that got one, because Asana refused it."""
        async with asking(refusal(429, ("Retry-After", "5"))) as (asana, server):
            calls = [asyncio.create_task(asana.send(CREATE.request))]
            await server.time.asleep(1)
            calls += [asyncio.create_task(asana.send(request)) for request in REQUESTS]
            await server.time.asleep(6)
            results = await self.ended(asana, *calls)

            assert kinds(results) == {"ConfigurationError": 6}
            assert {str(one) for one in results} == {"this AsanaSession is closed; create a new one"}
            assert len(server.arrivals) == 1

    async def test_between_attempts(self) -> None:
        """Calls that wait before the next attempt end at once."""
        async with asking(refusal(500)) as (asana, server):
            calls = [asyncio.create_task(asana.send(call.request)) for call in (GET, PUT, DELETE)]
            await server.time.asleep(3)

            assert kinds(await self.ended(asana, *calls)) == {"ConfigurationError": 3}

    async def test_in_flight_and_before_their_turn(self) -> None:
        """What is sent already is lost; what waits behind it is never sent."""

        async def hang(_: web.BaseRequest) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        async with asking(hang, max_reads=1, max_writes=1) as (asana, server):
            calls = [asyncio.create_task(asana.send(call.request)) for call in (CREATE, CREATE, GET, GET, PUT)]
            await server.arrived(2)
            results = await self.ended(asana, *calls)

            assert isinstance(results[0], CreateOutcomeUnknownError)
            assert "the session was closed" in str(results[0])
            assert kinds(results[1:]) == {"ConfigurationError": 4}
            assert len(server.arrivals) == 2

    @pytest.mark.parametrize("where", ["token", "limiter"])
    async def test_before_anything_is_sent(self, where: str) -> None:
        """Calls that wait for a token or the limiter end at once, and nothing was sent."""
        reached = asyncio.Event()

        async def provide() -> str:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

        @asynccontextmanager
        async def full() -> AsyncIterator[str]:
            yield await provide()

        options: dict[str, Any] = {"limiter": full()} if where == "limiter" else {}
        time = VirtualTime()
        async with timed_server(time) as server:
            asana = AsanaSession(provide, base_url=server.url, retry=time.policy(), **options)
            call = asyncio.create_task(asana.send(CREATE.request))
            await reached.wait()

            assert kinds(await self.ended(asana, call)) == {"ConfigurationError": 1}
            assert server.arrivals == []


class ThrottleMachine(RuleBasedStateMachine):
    """Calls come, wait and go while 429s of any length come in; the model is the latest end of all pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ends = [0.0]
        self.throttle = Throttle(
            RetryPolicy(clock=lambda: self.now, sleep=no_wait), limiter=None, max_reads=1, max_writes=1
        )

    def left(self) -> float:
        return max(self.ends) - self.now

    @rule(seconds=SECONDS)
    def a_429_comes(self, seconds: float) -> None:
        """It asks for a pause that may be shorter than the one that goes on."""
        self.ends.append(self.now + seconds)
        words = ErrorDetail(message=str(self.ends[-1]))
        self.throttle.record(Decision("raise", pause=seconds), Outcome(kind="refused", status=429, details=(words,)))

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(share=st.floats(0, 2))
    def somebody_waits(self, share: float) -> None:
        """Who waits at least what is left is not stopped by this pause again, however floats round; others are."""
        left = self.left()
        if left > 0:
            waited_out = asyncio.run(self.throttle.wait(Decision("again", wait=left * share)))
            assert (self.throttle.paused(waited_out) is None) == (left * share >= left)
            assert self.throttle.paused() is not None

    @invariant()
    def never_open_early_never_paused_too_long(self) -> None:
        paused = self.throttle.paused()
        assert self.throttle.pause_left() == max(self.left(), 0)
        assert (paused is not None) == (self.left() > 0)
        if paused is not None:
            assert (paused.kind, paused.status, paused.retry_after) == ("paused", 429, self.left())
            assert [one.message for one in paused.details] == [str(max(self.ends))]


TestThrottleMachine = ThrottleMachine.TestCase
TestThrottleMachine.settings = settings(max_examples=40, stateful_step_count=25)
TestThrottleMachine.__doc__ = ThrottleMachine.__doc__
