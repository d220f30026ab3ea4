"""Cancelling calls: wherever it happens and however, everything is given back and nothing is sent any more."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import aiohttp
import pytest

from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.requests import Request, UpdateWebhookRequest
from asana_webhooks.errors import ConfigurationError, CreateOutcomeUnknownError, NotFoundError
from asana_webhooks.models import WebhookFilter
from tests.helpers.cancelling import WAYS, Start, Way, cancel_at_every_step, cancel_once, pass_turns
from tests.helpers.raw import CREATE, GET, raw_server, session
from tests.helpers.situations import (
    OPERATIONS,
    SITUATIONS,
    Operation,
    Situation,
    answer_well,
    create,
    get,
    hesitate,
    open_files,
    refuse,
    scene,
    settle,
    update,
    walk_with_prefetch,
)
from tests.helpers.virtual import jumping_clock


@pytest.fixture(autouse=True)
async def everything_given_back() -> AsyncIterator[None]:
    """Look for open files and for what the loop complains about after every test."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    files = open_files()
    yield
    await pass_turns(5)
    gc.collect(1)  # the youngest are those of this test
    assert complaints == []
    assert open_files() == files


@pytest.fixture
async def idle_time() -> AsyncIterator[None]:
    """Let time pass, and limits run out, only while nothing else goes on."""
    with jumping_clock():
        yield


def by_name(one: Operation | Way) -> str:
    return one.__name__


async def sweep(situation: Situation, operation: Operation, way: Way = cancel_once) -> int:
    """Interrupt *operation* at every step; after each, look for what is left and make the call again."""
    async with scene(situation) as here:
        sent_before = 0
        await operation(here.asana)
        pages = len(here.server.requests)

        async def interrupt(start: Start, turns: int) -> bool:
            nonlocal sent_before
            here.tricks[:] = situation.tricks
            if situation.before is not None:
                await situation.before(here, operation)
            sent_before = len(here.server.requests)
            return await way(start, turns)

        async def check() -> None:
            await here.at_rest()
            here.tricks.clear()
            sent = len(here.server.requests)
            if operation is create:
                assert sent - sent_before <= 1 + situation.undone
            await operation(here.asana)
            sent_again = len(here.server.requests) - sent
            assert sent_again == pages

        return await cancel_at_every_step(lambda: operation(here.asana), check, way=interrupt)


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=by_name)
async def test_every_operation_may_be_cancelled_at_every_step(situation: Situation, operation: Operation) -> None:
    """No task, connection or turn is lost, nothing more is sent, and the same call works afterwards."""
    assert await sweep(situation, operation) > 3


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
@pytest.mark.parametrize("way", WAYS[1:], ids=by_name)
async def test_every_way_of_cancelling_works(situation: Situation, way: Way) -> None:
    """A timeout of the caller's, a failing sibling, cancelling again and again: what comes out is the caller's."""
    assert await sweep(situation, create, way) > 3


async def test_a_walk_that_fetches_ahead_may_be_cancelled_in_its_body() -> None:
    """What is being fetched then ends with the block, however often that is cancelled."""
    async with scene() as here:

        async def start() -> None:
            async with get_webhooks(here.asana, workspace="21", prefetch=True) as pager:
                async for _ in pager:
                    await pass_turns(5)

        for way in WAYS[:2]:
            assert await cancel_at_every_step(start, here.at_rest, way=way) > 10
        await walk_with_prefetch(here.asana)


@pytest.mark.parametrize("error", [None, LookupError("in the body")], ids=["break", "error"])
async def test_leaving_a_walk_ends_what_it_was_fetching(error: LookupError | None) -> None:
    """The request for the next page is dropped at once, though no answer to it comes, and its turn is free."""
    enough = asyncio.Event()

    async def keep_waiting(_: asyncio.StreamWriter, __: bytes) -> None:
        await enough.wait()

    async with scene(Situation(name="limiter", limited=True)) as here:  # which takes a while to leave
        here.tricks[:] = [answer_well, keep_waiting]
        with pytest.raises(LookupError) if error else nullcontext():
            async with asyncio.timeout(5), get_webhooks(here.asana, workspace="21", prefetch=True) as pager:
                async for _ in pager:
                    await here.server.got(2)
                    if error is not None:
                        raise error
                    break
        assert len(asyncio.all_tasks() - here.server._tasks) == 1
        enough.set()
        await here.at_rest()
        await get(here.asana)


@pytest.mark.parametrize("operation", [get, create], ids=by_name)
@pytest.mark.parametrize("closing_first", [False, True])
async def test_cancelling_while_the_session_is_being_closed(operation: Operation, closing_first: bool) -> None:
    """Cancelled in the same turn, a call says that it was; the session is closed all the same."""
    for turns in range(25):
        async with scene() as here:
            await operation(here.asana)
            here.tricks[:] = [hesitate]
            call = asyncio.create_task(operation(here.asana))
            await pass_turns(turns)
            if closing_first:
                closing = asyncio.create_task(here.asana.aclose())
                await pass_turns(turns % 3)
                interrupted = call.cancel()
            else:
                interrupted = call.cancel()
                closing = asyncio.create_task(here.asana.aclose())
            await asyncio.wait({call, closing})

            if not call.cancelled():
                assert not interrupted
                assert isinstance(call.exception(), ConfigurationError | None)
            await settle(here.asana, here.server)


async def never(*_: object) -> str:
    await asyncio.Event().wait()
    return "never"


class Never:
    """A limiter that lets nobody in."""

    __aenter__ = __aexit__ = never


@pytest.mark.parametrize(
    "options",
    [{"token": never}, {"limiter": Never()}, {"policy": {"sleep": never}}],
    ids=["token", "limiter", "wait between attempts"],
)
async def test_closing_ends_a_call_wherever_it_waits(options: dict[str, Any]) -> None:
    """What it waits for need not come, nor need the call have a connection."""
    async with scene(**options) as here:
        here.tricks[:] = [refuse(503), refuse(503)]
        calls = [asyncio.create_task(get(here.asana)) for _ in range(2)]  # the second waits for its turn, or sleeps
        await pass_turns(30)
        async with asyncio.timeout(5):
            await here.asana.aclose()
            for call in calls:
                with pytest.raises(ConfigurationError, match="is closed"):
                    await call


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("request_", [GET.request, CREATE.request], ids=["get", "create"])
async def test_closing_ends_a_call_at_every_step_of_connecting(request_: Request[Any], host: str) -> None:
    """It says that the session is closed and not that it could not connect, also where nothing is sent again."""

    async def hold(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    steps, is_connected = 0, False
    while not is_connected:
        async with raw_server(hold) as server:
            base_url = server.url.replace("127.0.0.1", host)
            async with session(base_url, attempts=1, create_attempts=1) as asana:
                call = asyncio.create_task(asana.send(request_))
                await pass_turns(steps)
                is_connected = bool(server.requests)
                await asana.aclose()
                await asyncio.wait({call})
        assert isinstance(call.exception(), ConfigurationError | CreateOutcomeUnknownError)
        steps += 1
    assert steps > 3


@pytest.mark.parametrize("operation", [get, update], ids=by_name)
async def test_closing_may_be_cancelled(operation: Operation) -> None:
    """The connections are closed at once, calls end, and closing again ends well."""
    for turns in range(5):
        async with scene() as here:
            await operation(here.asana)
            here.tricks[:] = [hesitate]
            call = asyncio.create_task(operation(here.asana))
            await pass_turns(3)
            closing = asyncio.create_task(here.asana.aclose())
            await pass_turns(turns)
            closing.cancel()
            await asyncio.wait({closing, call})
            if turns == 0:  # it never ran
                call.exception()
                continue
            with pytest.raises(ConfigurationError, match="is closed"):
                await call
            await settle(here.asana, here.server)


async def test_a_call_ended_by_closing_is_no_cancelled_task() -> None:
    """A task that was never cancelled does not count as such, and an outer timeout still works in it."""
    async with scene() as here:
        here.tricks[:] = [hesitate]

        async def call_and_go_on() -> int:
            with pytest.raises(CreateOutcomeUnknownError):
                await here.asana.send(CREATE.request)
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            return task.cancelling()

        call = asyncio.create_task(call_and_go_on())
        await here.server.got(1)
        await here.asana.aclose()
        assert await call == 0


@pytest.mark.usefixtures("idle_time")
@pytest.mark.parametrize("operation", OPERATIONS, ids=by_name)
async def test_a_task_that_was_cancelled_can_clean_up_with_calls(operation: Operation) -> None:
    """In ``except CancelledError`` a call works as ever, also its own time limits and the caller's."""
    async with scene(policy={"attempt_timeout": 0.02, "create_attempt_timeout": 0.02}) as here:
        enough = asyncio.Event()

        async def keep_waiting(_: asyncio.StreamWriter, __: bytes) -> None:
            await enough.wait()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                here.tricks[:] = [keep_waiting]
                await operation(here.asana)  # the first attempt takes too long
                here.tricks[:] = [hesitate]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await operation(here.asana)
                raise

        working = asyncio.create_task(work())
        await pass_turns(1)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert working.cancelling() == 1
        enough.set()
        await here.at_rest()


async def test_a_shielded_call_goes_on() -> None:
    """Whoever waits may be cancelled; the call has its answer."""
    async with scene() as here:
        here.tricks[:] = [hesitate]
        call = asyncio.create_task(get(here.asana))

        async def wait() -> None:
            await asyncio.shield(call)

        assert await cancel_once(wait, 5)
        await call
        await here.at_rest()


async def test_gathered_calls_end_together_when_cancelled_and_not_when_one_fails() -> None:
    """`asyncio.gather` leaves the others alone when one fails, and cancels all when it is cancelled."""
    async with scene(max_reads=3) as here:
        here.tricks[:] = [refuse(404), hesitate, hesitate]
        calls = [asyncio.create_task(get(here.asana)) for _ in range(3)]
        with pytest.raises(NotFoundError):
            await asyncio.gather(*calls)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [result for result in results if result is not None] == [next(filter(None, results))]

        async def all_together() -> None:
            await asyncio.gather(*(get(here.asana) for _ in range(3)))

        assert await cancel_at_every_step(all_together, here.at_rest) > 5


async def test_waiting_for_a_connection_may_be_cancelled() -> None:
    """Where a lent pool has one connection, the place in its queue is given up as well."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
        async with scene(http=http, max_reads=2) as here:

            async def check() -> None:
                await here.at_rest()
                await asyncio.gather(get(here.asana), get(here.asana))

            async def two() -> None:
                here.tricks[:] = [hesitate]
                async with asyncio.TaskGroup() as group:
                    group.create_task(get(here.asana))
                    group.create_task(get(here.asana))

            assert await cancel_at_every_step(two, check) > 5


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp's, beyond 1 MiB
async def test_a_request_that_does_not_go_out_may_be_cancelled() -> None:
    """A body the server does not read is dropped with its connection, and so is the task that writes it."""
    come, leave = asyncio.Event(), asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        come.set()
        await leave.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    request = UpdateWebhookRequest(
        webhook_gid="43214", filters=(WebhookFilter(action="changed", fields=("a" * 12_000_000,)),)
    )
    async with session(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/1.0") as asana:
        call = asyncio.create_task(asana.send(request))
        await come.wait()
        await pass_turns(20)
        assert call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
        await pass_turns(2)
        assert len(asyncio.all_tasks()) == 2  # this one, and the server's
        leave.set()
    server.close()
    await server.wait_closed()


async def test_a_cancelled_wait_gives_back_what_it_took_from_the_budget() -> None:
    """What is not sent again costs nothing."""
    async with scene(policy={"budget": 10}) as here:
        for _ in range(3):
            here.tricks[:] = [refuse(503)]
            here.time.sleeping.clear()
            call = asyncio.create_task(get(here.asana))
            sleeping = asyncio.create_task(here.time.sleeping.wait())
            await asyncio.wait({call, sleeping}, return_when=asyncio.FIRST_COMPLETED)
            assert call.cancel()
            await asyncio.wait({call, sleeping})
        here.tricks[:] = [refuse(503)]
        await get(here.asana)


async def test_a_pause_of_the_session_outlives_the_call_that_met_it() -> None:
    """A 429 holds the next call as long as Asana said, also when the call that got it was cancelled."""
    async with scene() as here:
        here.tricks[:] = [refuse(429, "Retry-After: 7")]
        call = asyncio.create_task(get(here.asana))
        await here.time.sleeping.wait()
        call.cancel()
        await asyncio.wait({call})
        await pass_turns(5)
        assert here.time.slept == []
        await get(here.asana)
        assert [7 <= seconds <= 7.7 for seconds in here.time.slept] == [True]
