"""WebhookPager against a raw server: walking, resuming, fetching ahead, and leaving early."""

import asyncio
import gc
from typing import Any

import pytest

from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    BadRequestError,
    ConfigurationError,
    PaginationExpiredError,
    PaginationRepeatedError,
    ServerError,
    UnexpectedResponseError,
)
from tests.helpers.pages import EXPIRED, INVALID, offset_server, page
from tests.helpers.raw import raw_server
from tests.helpers.servers import ScriptedServer, errors, scripted_server

TOKEN = "2/1331/7654:0123456789abcdef"
ONCE = RetryPolicy(attempts=1)


def session(server: ScriptedServer, **options: Any) -> AsanaSession:
    return AsanaSession(TOKEN, base_url=server.url, **({"retry": ONCE} | options))


async def test_webhooks_come_in_order_over_all_pages() -> None:
    """The walk asks with the limit and each page's offset, and yields every webhook once."""
    async with scripted_server(page("1", "2", then="a"), page("3", then="b"), page("4")) as server:
        async with session(server) as asana:
            pager = get_webhooks(asana, workspace="1331", resource="8", page_size=2)
            assert [webhook.gid async for webhook in pager] == ["1", "2", "3", "4"]

        assert [(seen.query["limit"], seen.query.get("offset")) for seen in server.requests] == [
            ("2", None),
            ("2", "a"),
            ("2", "b"),
        ]
        assert {(seen.query["workspace"], seen.query["resource"]) for seen in server.requests} == {("1331", "8")}


async def test_short_and_empty_pages_do_not_end_the_walk() -> None:
    """Only next_page tells whether more follow, not the length of a page (Speakeasy's mistake)."""
    async with scripted_server(page("1", then="a"), page(then="b"), page("2")) as server, session(server) as asana:
        assert [webhook.gid async for webhook in get_webhooks(asana, workspace="1")] == ["1", "2"]


async def test_the_address_of_the_next_page_is_never_followed() -> None:
    """Only the offset is used, so a hostile next_page.uri gets no token."""
    async with scripted_server(page("9")) as evil:
        async with scripted_server(page("1", then="a", uri=evil.url), page("2")) as server, session(server) as asana:
            assert [webhook.gid async for webhook in get_webhooks(asana, workspace="1")] == ["1", "2"]

        assert evil.requests == []


async def test_no_webhook_comes_twice() -> None:
    """What moves to a later page while the walk goes on is yielded once, in pages too."""
    async with scripted_server(page("1", "2", then="a"), page("2", "3")) as server, session(server) as asana:
        pages = [page async for page in get_webhooks(asana, workspace="1").pages()]

        assert [[webhook.gid for webhook in page.items] for page in pages] == [["1", "2"], ["3"]]
        assert [page.next_offset for page in pages] == ["a", None]


async def test_a_walk_resumes_at_an_offset() -> None:
    """The next_offset of a page starts a later walk there."""
    async with scripted_server(page("3")) as server, session(server) as asana:
        assert [webhook.gid async for webhook in get_webhooks(asana, workspace="1", offset="a")] == ["3"]
        assert server.requests[0].query["offset"] == "a"


async def test_each_loop_is_a_new_walk() -> None:
    """A pager may be walked again; nothing of the first walk is left in it."""
    steps = [page("1", then="a"), page("2")] * 2
    async with scripted_server(*steps) as server, session(server) as asana:
        pager = get_webhooks(asana, workspace="1")
        for _ in range(2):
            assert [webhook.gid async for webhook in pager] == ["1", "2"]


@pytest.mark.parametrize("prefetch", [False, True])
async def test_a_repeated_offset_is_an_error_after_the_page_that_brought_it(prefetch: bool) -> None:
    """An endless walk is stopped, with everything yielded that had come."""
    async with scripted_server(page("1", then="a"), page("2", then="a")) as server, session(server) as asana:
        seen = []
        async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
            with pytest.raises(PaginationRepeatedError, match="after 2 items"):
                async for webhook in pager:
                    seen.append(webhook.gid)  # noqa: PERF401 - what came before the error counts

        assert seen == ["1", "2"]
        assert len(server.requests) == 2


async def test_an_expired_offset_says_what_is_needed_to_go_on() -> None:
    """The error names the offset and how far the walk came."""
    async with scripted_server(page("1", "2", then="a"), EXPIRED) as server, session(server) as asana:
        with pytest.raises(PaginationExpiredError) as caught:
            async for _ in get_webhooks(asana, workspace="1"):
                continue

        assert (caught.value.offset, caught.value.items_so_far) == ("a", 2)


async def test_other_bad_requests_stay_what_they_are() -> None:
    """An offset that never was one is the caller's bad request, and no reason to start over."""
    async with scripted_server(INVALID) as server, session(server) as asana:
        with pytest.raises(BadRequestError, match="invalid"):
            async for _ in get_webhooks(asana, workspace="1", offset="junk", restart=True):
                continue

        assert len(server.requests) == 1


@pytest.mark.parametrize("prefetch", [False, True])
async def test_a_page_that_failed_can_be_asked_for_again(prefetch: bool) -> None:
    """After an error the same iterator goes on where it stood."""
    steps = [page("1", then="a"), errors(500, "Server Error"), page("2")]
    async with scripted_server(*steps) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
            pages = pager.pages()
            await anext(pages)
            with pytest.raises(ServerError):
                await anext(pages)
            assert [webhook.gid for webhook in (await anext(pages)).items] == ["2"]
            with pytest.raises(StopAsyncIteration):
                await anext(pages)


async def test_prefetch_asks_while_the_page_is_worked_on() -> None:
    """The next page is on the wire before the loop's body asks for it, even if the body never awaits."""
    async with scripted_server(page("1", then="a"), page("2", then="b"), page("3")) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            pages = pager.pages()
            await anext(pages)
            server.got_request.clear()
            await server.got_request.wait()
            assert server.requests[1].query["offset"] == "a"
            assert [[webhook.gid for webhook in page.items] async for page in pages] == [["2"], ["3"]]


async def test_prefetch_wants_an_owner() -> None:
    """Without async with there would be nobody to end the task."""
    async with scripted_server(page("1")) as server, session(server) as asana:
        pager = get_webhooks(asana, workspace="1", prefetch=True)
        with pytest.raises(ConfigurationError, match="async with"):
            pager.pages()


async def test_leaving_a_prefetching_loop_ends_its_task() -> None:
    """Break inside async with cancels what is still being fetched."""
    async with scripted_server(page("1", then="a"), "hang") as server, session(server) as asana:
        before = asyncio.all_tasks()
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            async for _ in pager:
                break
            await server.got_request.wait()
        await server.gone.wait()

        assert {task for task in asyncio.all_tasks() - before if "WebhookPager" in repr(task)} == set()


async def test_an_error_of_a_page_nobody_asked_for_is_not_reported_as_lost() -> None:
    """A prefetched page that failed after the loop was left makes no noise."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with scripted_server(page("1", then="a"), errors(500, "Server Error")) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            async for _ in pager:
                break
            await asyncio.wait(set(pager._tasks))
        gc.collect()

    assert reports == []


async def test_leaving_a_plain_loop_leaves_no_generator_behind() -> None:
    """Break needs no clean-up: there is no suspended frame for the garbage collector to finish."""
    async with scripted_server(page("1", "2", then="a")) as server, session(server) as asana:
        pager = get_webhooks(asana, workspace="1")
        async for _ in pager:
            break

        assert len(server.requests) == 1
        walk = aiter(pager)
        assert aiter(walk) is walk
        assert not hasattr(walk, "aclose")


async def test_cancelling_a_walk_leaves_the_session_usable() -> None:
    """A walk cancelled while it waits for a page closes that connection only."""
    async with scripted_server("hang", page("1")) as server, session(server) as asana:

        async def walk() -> list[str]:
            return [webhook.gid async for webhook in get_webhooks(asana, workspace="1")]

        walking = asyncio.create_task(walk())
        await server.got_request.wait()
        walking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walking

        assert await walk() == ["1"]


async def test_arguments_are_checked_before_the_loop() -> None:
    """Bad arguments fail at the call, not at the first iteration far away."""
    async with AsanaSession(TOKEN, base_url="http://127.0.0.1:1") as asana:
        for bad in ({"page_size": 0}, {"page_size": 101}, {"workspace": "x"}, {"offset": ""}):
            with pytest.raises(ConfigurationError):
                get_webhooks(asana, **({"workspace": "1"} | bad))


async def test_a_page_that_holds_a_webhook_twice_yields_it_once() -> None:
    """No webhook comes twice, not even within a page."""
    async with scripted_server(page("1", "1", "2", "1")) as server, session(server) as asana:
        assert [webhook.gid async for webhook in get_webhooks(asana, workspace="1")] == ["1", "2"]


@pytest.mark.parametrize("prefetch", [False, True])
async def test_two_tasks_on_one_iterator_are_told_so(prefetch: bool) -> None:
    """The second gets a clear error, and the first loses nothing."""
    async with scripted_server(page("1", then="a"), page("2")) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
            walk = aiter(pager)
            first = asyncio.ensure_future(anext(walk))
            await server.got_request.wait()
            with pytest.raises(ConfigurationError, match="two tasks"):
                await anext(walk)
            assert [(await first).gid] + [webhook.gid async for webhook in walk] == ["1", "2"]


@pytest.mark.parametrize("prefetch", [False, True])
async def test_a_step_that_was_cancelled_anywhere_can_be_taken_again(prefetch: bool) -> None:
    """Wherever a step is cancelled, the walk goes on with no page lost and none twice."""
    wanted = ["1", "2", "3"]
    # It begins with an offset that has expired, so that starting over is cancelled too.
    pages = {"old": EXPIRED, None: page("1", then="a"), "a": page("2", then="b"), "b": page("3")}
    for turns in range(1000):
        async with offset_server(pages.__getitem__) as url, AsanaSession(TOKEN, base_url=url, retry=ONCE) as asana:
            async with get_webhooks(asana, workspace="1", offset="old", prefetch=prefetch, restart=True) as pager:
                walk = aiter(pager)
                seen = []
                for _ in range(3):
                    step = asyncio.ensure_future(anext(walk))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    step.cancel()
                    await asyncio.wait({step})
                    if not step.cancelled():
                        seen.append(step.result().gid)
                in_time = len(seen)
                assert seen + [webhook.gid async for webhook in walk] == wanted
        if in_time == len(wanted):
            return
    raise AssertionError("no step was ever in time")


@pytest.mark.parametrize("again", [False, True])
async def test_an_iterator_ends_with_its_async_with(again: bool) -> None:
    """After it nobody would end its task, and a later block is not its own."""
    async with scripted_server(page("1", then="a"), page("2", then="b"), page("3")) as server, session(server) as asana:
        pager = get_webhooks(asana, workspace="1", prefetch=True)
        async with pager:
            walk = aiter(pager)
            await anext(walk)
        before = asyncio.all_tasks()
        if again:
            await pager.__aenter__()
        with pytest.raises(ConfigurationError, match="async with"):
            await anext(walk)
        assert asyncio.all_tasks() <= before


async def test_a_walk_with_nothing_ahead_ends_with_its_async_with() -> None:
    """Though no task of it is left to be cancelled, it does not go on in a later block."""
    async with scripted_server(page("1", then="a"), errors(400, "no"), page("2")) as server, session(server) as asana:
        pager = get_webhooks(asana, workspace="1", prefetch=True)
        async with pager:
            walk = aiter(pager)
            await anext(walk)
            with pytest.raises(BadRequestError):
                await anext(walk)
        async with pager:
            with pytest.raises(ConfigurationError, match="async with"):
                await anext(walk)

        assert len(server.requests) == 2


async def test_a_cancelled_wait_for_the_page_ahead_leaves_it_alone() -> None:
    """It comes with the next step, and is asked for once."""
    let_go = asyncio.Event()
    pages = [page("1", then="a"), page("2")]

    async def talk(writer: asyncio.StreamWriter) -> None:
        if len(pages) == 1:
            await let_go.wait()
        writer.write(pages.pop(0))

    async with raw_server(talk, keep=True) as server, AsanaSession(TOKEN, base_url=server.url, retry=ONCE) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            walk = aiter(pager)
            assert (await anext(walk)).gid == "1"
            step = asyncio.ensure_future(anext(walk))
            await server.got(2)
            await asyncio.sleep(0)
            step.cancel()
            await asyncio.wait({step})
            assert step.cancelled()
            let_go.set()

            assert (await anext(walk)).gid == "2"
            assert len(server.requests) == 2


async def test_an_iterator_that_was_not_begun_ends_with_its_async_with_too() -> None:
    """Nothing is asked for any more."""
    async with scripted_server(page("1", then="a"), page("2")) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            walk = aiter(pager)
        with pytest.raises(ConfigurationError, match="async with"):
            await anext(walk)

        assert server.requests == []


async def test_a_page_that_comes_after_the_block_fetches_no_other() -> None:
    """A task would have no owner any more."""
    async with scripted_server(page("1", then="a"), page("2")) as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            first = asyncio.ensure_future(anext(aiter(pager)))
            await server.got_request.wait()
            assert not first.done()
        assert (await first).gid == "1"
        assert pager._tasks == set()


async def test_who_waits_for_a_page_when_the_block_ends_is_told_so() -> None:
    """The cancelled task is not taken for the waiter's own cancellation, and it has ended when the block is left."""
    async with scripted_server(page("1", then="a"), "hang") as server, session(server) as asana:
        async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
            walk = aiter(pager)
            await anext(walk)
            server.got_request.clear()
            waiting = asyncio.ensure_future(anext(walk))
            await server.got_request.wait()
            ahead = set(pager._tasks)
        assert len(ahead) == 1
        assert all(task.done() for task in ahead)
        with pytest.raises(ConfigurationError, match="async with"):
            await waiting


async def test_an_empty_offset_is_the_servers_fault() -> None:
    """Nobody can ask with it."""
    async with scripted_server(page("1", then="")) as server, session(server) as asana:
        with pytest.raises(UnexpectedResponseError, match=r"\$\.next_page\.offset"):
            async for _ in get_webhooks(asana, workspace="1"):
                continue


@pytest.mark.parametrize("prefetch", [False, True])
async def test_ever_new_offsets_with_nothing_new_end(prefetch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hands out offsets for ever is stopped; a few empty pages are not."""
    monkeypatch.setattr("asana_webhooks.client.walk._MOST_STALE_PAGES", 3)
    steps = [page("1", then="a"), page(then="b"), page(then="c"), page("2", then="d")]
    steps += [page("1", "2", then=offset) for offset in "efghij"]
    async with scripted_server(*steps) as server, session(server) as asana:
        seen = []
        async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
            with pytest.raises(PaginationRepeatedError, match="3 pages in a row with nothing new after 2 items"):
                async for webhook in pager:
                    seen.append(webhook.gid)  # noqa: PERF401 - what came before the error counts

        assert seen == ["1", "2"]
        assert len(server.requests) == 7
