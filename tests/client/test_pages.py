"""WebhookPager against real servers: walking, resuming, lists that change, fetching ahead, and leaving early."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from asana_webhooks.client import pages
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.pages import WebhookPager
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    BadRequestError,
    ConfigurationError,
    PaginationError,
    ServerError,
    UnexpectedResponseError,
)
from asana_webhooks.testing import FakeAsana, Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.pages import EXPIRED, INVALID, offset_server, page
from tests.helpers.raw import raw_server
from tests.helpers.servers import ScriptedServer, answer, errors, scripted_server

TOKEN = "2/1331/7654:0123456789abcdef"
ONCE = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(attempts=3, first_wait=0.0)
TOO_LONG = 901
"""Seconds; an offset lives for 900."""

EITHER_WAY = pytest.mark.parametrize("prefetch", [False, True])


def session(url: str, *, retry: RetryPolicy = ONCE) -> AsanaSession:
    return AsanaSession(TOKEN, base_url=url, retry=retry)


def session_with(fake: FakeAsana, *, retry: RetryPolicy = ONCE) -> AsanaSession:
    return AsanaSession(fake.token, base_url=fake.url, retry=retry)


def offsets_asked(server: ScriptedServer | FakeAsana) -> list[str | None]:
    return [seen.query.get("offset") for seen in server.requests]


async def gids_of(pager: WebhookPager) -> list[str]:
    """Walk to the end."""
    async with pager:
        return [webhook.gid async for webhook in pager]


async def walk_until(kind: type[Exception], pager: WebhookPager) -> tuple[list[str], Any]:
    """Return what came, and the error that ended the walk."""
    came: list[str] = []
    async with pager:
        with pytest.raises(kind) as caught:
            async for webhook in pager:
                came.append(webhook.gid)  # noqa: PERF401 - what came before the error counts
    return came, caught.value


def fetching() -> set["asyncio.Task[Any]"]:
    """Return the tasks that fetch pages ahead."""
    return {task for task in asyncio.all_tasks() if "_Pages._fetch" in repr(task)}


async def fetched_ahead() -> None:
    """Return when nothing is on its way."""
    if tasks := fetching():
        await asyncio.wait(tasks)


class TestWalk:
    async def test_webhooks_come_in_order_over_all_pages(self) -> None:
        """The walk asks with the limit and each page's offset; short and empty pages do not end it."""
        steps = [page("1", "2", then="a"), page("3", then="b"), page(then="c"), page("4")]
        async with scripted_server(*steps) as server, session(server.url) as asana:
            pager = get_webhooks(asana, workspace="1331", resource="8", page_size=2)
            assert await gids_of(pager) == ["1", "2", "3", "4"]

        assert offsets_asked(server) == [None, "a", "b", "c"]
        queries = {(seen.query["workspace"], seen.query["resource"], seen.query["limit"]) for seen in server.requests}
        assert queries == {("1331", "8", "2")}

    async def test_no_webhook_comes_twice(self) -> None:
        """Not from a later page, nor within one; pages show that too."""
        steps = [page("1", "1", "2", then="a"), page("2", "3")]
        async with scripted_server(*steps) as server, session(server.url) as asana:
            walked = [one async for one in get_webhooks(asana, workspace="1").pages()]

        assert [[webhook.gid for webhook in one.items] for one in walked] == [["1", "2"], ["3"]]
        assert [one.next_offset for one in walked] == ["a", None]

    async def test_each_loop_is_a_new_walk(self) -> None:
        """A pager may be walked again, also from an offset; nothing of the first walk is left in it."""
        async with scripted_server(*[page("1", then="b"), page("2")] * 2) as server, session(server.url) as asana:
            pager = get_webhooks(asana, workspace="1", offset="a")
            for _ in range(2):
                assert await gids_of(pager) == ["1", "2"]

        assert offsets_asked(server) == ["a", "b"] * 2

    @EITHER_WAY
    async def test_a_page_that_failed_can_be_asked_for_again(self, prefetch: bool) -> None:
        """All of the page before it come first; after the error the same iterator goes on where it stood."""
        steps = [page("1", "2", then="a"), errors(500, "Server Error"), page("3")]
        async with scripted_server(*steps) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
                walk = aiter(pager)
                seen = [(await anext(walk)).gid]
                await fetched_ahead()
                seen.append((await anext(walk)).gid)
                with pytest.raises(ServerError):
                    await anext(walk)
                assert seen + [webhook.gid async for webhook in walk] == ["1", "2", "3"]
                with pytest.raises(StopAsyncIteration):
                    await anext(walk)

    @EITHER_WAY
    async def test_one_page_is_sent_again_and_not_the_walk(self, prefetch: bool) -> None:
        """When the third page fails, it alone is asked for once more, and no webhook comes twice."""
        for fault in (
            Fault(at="getWebhooks", after=2, status=500),
            Fault(at="getWebhooks", after=2, status=429, retry_after=0),
            Fault(at="getWebhooks", after=2, do="lose_answer"),
            Fault(at="getWebhooks", after=2, do="truncate", size=30),
        ):
            async with FakeAsana(webhooks=9) as fake, session_with(fake, retry=PATIENT) as asana:
                fake.script(fault)
                pager = get_webhooks(asana, workspace=fake.workspace, page_size=2, prefetch=prefetch)

                assert await gids_of(pager) == list(fake.webhooks)
                asked = offsets_asked(fake)
                assert (len(asked), len(set(asked))) == (6, 5)
                assert asked[2] == asked[3]

    async def test_arguments_are_checked_before_the_loop(self) -> None:
        """Bad arguments fail at the call, not at the first iteration far away."""
        async with session("http://127.0.0.1:1") as asana:
            for bad in ({"page_size": 0}, {"page_size": 101}, {"workspace": "x"}, {"offset": ""}):
                with pytest.raises(ConfigurationError):
                    get_webhooks(asana, **({"workspace": "1"} | bad))

    async def test_leaving_a_loop_leaves_no_generator_behind(self) -> None:
        """Break needs no clean-up: there is no suspended frame for the garbage collector to finish."""
        async with scripted_server(page("1", "2", then="a")) as server, session(server.url) as asana:
            pager = get_webhooks(asana, workspace="1")
            async for _ in pager:
                break
            walk = aiter(pager)
            assert aiter(walk) is walk
            assert not hasattr(walk, "aclose")

        assert len(server.requests) == 1

    @EITHER_WAY
    async def test_two_tasks_on_one_iterator_are_told_so(self, prefetch: bool) -> None:
        """The second gets a clear error, and the first loses nothing."""
        async with scripted_server(page("1", then="a"), page("2")) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
                walk = aiter(pager)
                first = asyncio.ensure_future(anext(walk))
                await server.got_request.wait()
                with pytest.raises(ConfigurationError, match="two tasks"):
                    await anext(walk)
                assert [(await first).gid] + [webhook.gid async for webhook in walk] == ["1", "2"]

    @EITHER_WAY
    async def test_a_step_that_was_cancelled_anywhere_can_be_taken_again(self, prefetch: bool) -> None:
        """Wherever a step is cancelled, the walk goes on with no page lost and none twice."""
        wanted = ["1", "2", "3"]
        answers = {None: page("1", then="a"), "a": page("2", then="b"), "b": page("3")}
        for turns in range(1000):
            async with offset_server(answers.__getitem__) as url, session(url) as asana:
                async with get_webhooks(asana, workspace="1", prefetch=prefetch) as pager:
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

    @EITHER_WAY
    async def test_a_consumer_cancelled_anywhere_leaves_nothing_behind(self, prefetch: bool) -> None:
        """No task stays, and the session is good for the next walk."""
        answers = {None: page("1", "2", then="a"), "a": page("3", then="b"), "b": page("4")}
        async with offset_server(answers.__getitem__) as url, session(url) as asana:
            pager = get_webhooks(asana, workspace="1331", prefetch=prefetch)
            seen: list[str] = []

            async def consume() -> None:
                seen.clear()
                async with pager:
                    async for webhook in pager:
                        seen.append(webhook.gid)
                        await asyncio.sleep(0)

            async def check() -> None:
                assert fetching() == set()
                assert seen == ["1", "2", "3", "4"][: len(seen)]

            assert await cancel_at_every_step(consume, check) > 10
            assert seen == ["1", "2", "3", "4"]


class TestExpiredOffset:
    @EITHER_WAY
    async def test_says_what_is_needed_to_go_on(self, prefetch: bool) -> None:
        """The error names the offset and how far the walk came; the step taken again gets it again."""
        async with FakeAsana(webhooks=9) as fake, session_with(fake) as asana:
            async with get_webhooks(asana, workspace=fake.workspace, page_size=2, prefetch=prefetch) as pager:
                walk, came = pager.pages(), 0
                with pytest.raises(
                    PaginationError, match=rf"has expired \(items so far: {4 if prefetch else 2}\)"
                ) as caught:
                    while True:
                        last = await anext(walk)
                        came += len(last.items)
                        await asyncio.sleep(0)  # begins to fetch ahead
                        await fetched_ahead()
                        await fake.advance(TOO_LONG)
                with pytest.raises(PaginationError):
                    await anext(walk)

        assert came == (4 if prefetch else 2)  # what was asked for ahead came in time
        error = caught.value
        assert (error.reason, error.offset, error.items_so_far) == ("expired", last.next_offset, came)
        assert str(last.next_offset) not in f"{error} {error!r}"

    @EITHER_WAY
    async def test_other_bad_requests_stay_what_they_are(self, prefetch: bool) -> None:
        """An offset that never was one, an expiry of no offset or of something else, parameters that are wrong."""
        nothing_said = answer(400, {})
        for first, offset in (
            (INVALID, "junk"),
            (EXPIRED, None),
            (errors(400, "The bearer token has expired."), "a"),
            (errors(400, "workspace: Unknown object: 1331", "limit: Must be between 1 and 100"), "a"),
            (nothing_said, "a"),  # it may be anything, for no page has come
        ):
            async with scripted_server(first) as server, session(server.url) as asana:
                with pytest.raises(BadRequestError):
                    await gids_of(get_webhooks(asana, workspace="1", offset=offset, prefetch=prefetch))

    async def test_however_asana_says_it(self) -> None:
        """One sentence of many is enough; without any it can only be the offset, if a page has come."""
        for refused in (answer(400, {}), errors(400, "limit: odd", "offset: Your pagination token has expired.")):
            async with scripted_server(page("1", then="a"), refused) as server, session(server.url) as asana:
                _, error = await walk_until(PaginationError, get_webhooks(asana, workspace="1"))
                assert error.reason == "expired"


class TestEndless:
    @EITHER_WAY
    @pytest.mark.parametrize(
        ("begin", "then", "came"),
        [(None, "aa", 2), (None, "aba", 3), (None, "abb", 3), (None, "abca", 4), ("a", "a", 1), ("a", "ba", 2)],
    )
    async def test_an_offset_that_comes_again(self, begin: str | None, then: str, came: int, prefetch: bool) -> None:
        """A A, A B A and their like are errors after all pages that came, and the offset is not asked with again."""
        steps = [page(str(number), then=offset) for number, offset in enumerate(then)]
        async with scripted_server(*steps) as server, session(server.url) as asana:
            pager = get_webhooks(asana, workspace="1331", offset=begin, prefetch=prefetch)
            seen, error = await walk_until(PaginationError, pager)

        assert seen == [str(number) for number in range(came)]
        assert (error.reason, error.items_so_far) == ("repeated", came)
        assert offsets_asked(server) == [begin, *then[:-1]]

    @EITHER_WAY
    async def test_a_hundred_pages_with_nothing_new(self, prefetch: bool) -> None:
        """Ninety-nine do not end a walk, and one webhook that is new starts the count again."""

        def answer_to(offset: str | None) -> bytes:
            number = int(offset or 0)
            asked.append(number)
            return page("1" if number < 100 else "2", then=str(number + 1))

        asked: list[int] = []
        async with offset_server(answer_to) as url, session(url) as asana:
            seen, error = await walk_until(PaginationError, get_webhooks(asana, workspace="1", prefetch=prefetch))

        assert (seen, error.reason, error.items_so_far) == (["1", "2"], "endless", 2)
        assert asked == list(range(201))

    @EITHER_WAY
    async def test_far_too_many_pages(self, prefetch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that makes up webhooks and offsets for ever is left at a bound far above what Asana allows."""
        monkeypatch.setattr(pages, "_MAX_PAGES", 4)
        async with offset_server(lambda offset: page(f"1{offset or 0}", then=str(int(offset or 0) + 1))) as url:
            async with session(url) as asana:
                seen, error = await walk_until(PaginationError, get_webhooks(asana, workspace="1", prefetch=prefetch))

        assert (len(seen), error.reason) == (4, "endless")


ASTRAY = [
    "http://127.0.0.1:{port}/api/1.0/webhooks?offset=a",
    "//127.0.0.1:{port}/api/1.0/webhooks?offset=a",
    "http://user:password@127.0.0.1:{port}/webhooks",
    "http://app.asana.com@127.0.0.1:{port}/webhooks",
    "/../../admin?offset=b",
    "file:///etc/passwd",
    "",
    None,
    5,
    {"offset": "b"},
]


class TestNextPage:
    @EITHER_WAY
    async def test_nothing_of_it_is_used_but_its_offset(self, prefetch: bool) -> None:
        """Whatever its path and uri are, nobody else is connected to, and the token goes nowhere but where it went."""
        for given_uri in ASTRAY:
            async with scripted_server(page("9")) as stranger:
                uri = given_uri.format(port=stranger.port) if isinstance(given_uri, str) else given_uri
                following = {"offset": "a", "path": uri, "uri": uri}
                first = answer(200, {"data": [{"gid": "1"}], "next_page": following})
                async with scripted_server(first, page("2")) as server, session(server.url) as asana:
                    assert await gids_of(get_webhooks(asana, workspace="1331", prefetch=prefetch)) == ["1", "2"]

                assert stranger.connections == 0
                assert {(seen.method, seen.path) for seen in server.requests} == {("GET", "/api/1.0/webhooks")}
                assert offsets_asked(server) == [None, "a"]

    async def test_an_offset_is_sent_back_as_it_came(self) -> None:
        """It stays one parameter, whatever is in it."""
        odd = ["a&workspace=6", "http://evil.example/", "../x?y#z", "a b+c%2Fd", "\u00e9\r\nX-Evil: 1", "x" * 4000]
        for offset in odd:
            async with scripted_server(page("1", then=offset), page("2")) as server, session(server.url) as asana:
                assert await gids_of(get_webhooks(asana, workspace="1331")) == ["1", "2"]

                first, second = server.requests
                assert second.query == first.query | {"offset": offset}
                assert "x-evil" not in second.headers

    async def test_what_makes_no_sense_is_the_servers_fault(self) -> None:
        """The walk does not end as if that had been all, and goes on if the page comes in order the next time."""
        odd: list[Any] = [None, "", 5, True, ["b"], {}]
        for next_page in [{}, {"uri": "/webhooks?offset=b"}, *({"offset": one} for one in odd), 5, "a", [], True]:
            bad = answer(200, {"data": [{"gid": "2"}], "next_page": next_page})
            async with scripted_server(page("1", then="a"), bad, page("2")) as server, session(server.url) as asana:
                walk = aiter(get_webhooks(asana, workspace="1331"))
                await anext(walk)
                with pytest.raises(UnexpectedResponseError, match=r"\$\.next_page"):
                    await anext(walk)
                assert [webhook.gid async for webhook in walk] == ["2"]
                assert offsets_asked(server) == [None, "a", "a"]

    async def test_none_is_the_end(self) -> None:
        """A page without the member ends the walk like one where it is null."""
        last = answer(200, {"data": [{"gid": "2"}]})
        async with scripted_server(page("1", then="a"), last) as server, session(server.url) as asana:
            assert await gids_of(get_webhooks(asana, workspace="1331")) == ["1", "2"]


class TestPrefetch:
    async def test_asks_while_the_page_is_worked_on(self) -> None:
        """The next page is on the wire before the loop's body asks for it."""
        steps = [page("1", then="a"), page("2", then="b"), page("3")]
        async with scripted_server(*steps) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                walk = pager.pages()
                await anext(walk)
                server.got_request.clear()
                await server.got_request.wait()
                assert offsets_asked(server) == [None, "a"]
                assert [[webhook.gid for webhook in one.items] async for one in walk] == [["2"], ["3"]]

    async def test_asks_though_the_body_never_awaits(self) -> None:
        """The next page has been asked for when the loop's body begins, so a body that only computes waits less."""
        asked: list[int] = []

        async def token() -> str:
            asked.append(len(server.requests))
            return TOKEN

        async with scripted_server(page("1", then="a"), page("2")) as server:
            async with AsanaSession(token, base_url=server.url) as asana:
                async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                    await anext(pager.pages())
                    assert asked == [0, 1]

    async def test_wants_an_owner(self) -> None:
        """Without async with there would be nobody to end the task."""
        async with session("http://127.0.0.1:1") as asana:
            with pytest.raises(ConfigurationError, match="async with"):
                get_webhooks(asana, workspace="1", prefetch=True).pages()

    async def test_leaving_the_loop_ends_its_task(self) -> None:
        """Break inside async with cancels what is still being fetched."""
        async with scripted_server(page("1", then="a"), "hang") as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                async for _ in pager:
                    server.got_request.clear()
                    await server.got_request.wait()
                    break
                assert len(fetching()) == 1
            assert fetching() == set()
            await server.gone.wait()

    async def test_an_error_of_a_page_nobody_asked_for(self) -> None:
        """A prefetched page that failed after the loop was left makes no noise."""
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        async with scripted_server(page("1", then="a"), errors(500, "No")) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                async for _ in pager:
                    break
                await fetched_ahead()
            gc.collect()

        assert reports == []
        assert len(server.requests) == 2

    async def test_an_iterator_ends_with_its_async_with(self) -> None:
        """Begun or not, it asks for nothing more, also not in a later block."""
        async with scripted_server(page("1", then="a"), page("2", then="b")) as server, session(server.url) as asana:
            pager = get_webhooks(asana, workspace="1", prefetch=True)
            async with pager:
                begun, new = aiter(pager), aiter(pager)
                await anext(begun)
            asked = len(server.requests)
            for walk in (begun, new):
                with pytest.raises(ConfigurationError, match="async with"):
                    await anext(walk)
            async with pager:
                for walk in (begun, new):
                    with pytest.raises(ConfigurationError, match="async with"):
                        await anext(walk)
            assert (len(server.requests), fetching()) == (asked, set())

    async def test_a_cancelled_wait_for_the_page_ahead_leaves_it_alone(self) -> None:
        """It comes with the next step, and is asked for once."""
        let_go = asyncio.Event()
        steps = [page("1", then="a"), page("2")]

        async def talk(writer: asyncio.StreamWriter) -> None:
            if len(steps) == 1:
                await let_go.wait()
            writer.write(steps.pop(0))

        async with raw_server(talk, keep=True) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                walk = aiter(pager)
                assert (await anext(walk)).gid == "1"
                step = asyncio.ensure_future(anext(walk))
                await server.got(2)
                step.cancel()
                await asyncio.wait({step})
                assert step.cancelled()
                let_go.set()

                assert (await anext(walk)).gid == "2"
                assert len(server.requests) == 2

    async def test_a_page_that_comes_after_the_block_fetches_no_other(self) -> None:
        """A task would have no owner any more."""
        async with scripted_server(page("1", then="a"), page("2")) as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                first = asyncio.ensure_future(anext(aiter(pager)))
                await server.got_request.wait()
                assert not first.done()
            assert (await first).gid == "1"
            assert fetching() == set()

    async def test_who_waits_for_a_page_when_the_block_ends_is_told_so(self) -> None:
        """The cancelled task is not taken for the waiter's own cancellation, and is over when the block is left."""
        async with scripted_server(page("1", then="a"), "hang") as server, session(server.url) as asana:
            async with get_webhooks(asana, workspace="1", prefetch=True) as pager:
                walk = aiter(pager)
                await anext(walk)
                server.got_request.clear()
                waiting = asyncio.ensure_future(anext(walk))
                await server.got_request.wait()
            assert fetching() == set()
            with pytest.raises(ConfigurationError, match="async with"):
                await waiting


@frozen(kw_only=True)
class Change:
    """What happens to the list after a page."""

    added: int
    removed: tuple[int, ...]
    """Positions."""


CHANGES = st.lists(
    st.builds(Change, added=st.integers(0, 3), removed=st.lists(st.integers(0, 30), max_size=3).map(tuple)), max_size=8
)


@frozen
class Story:
    """How a walk over a list that changed went."""

    came: list[str]
    always_there: set[str]
    """From before the first page to after the last."""
    ever_there: set[str]
    offsets: list[str | None]


async def walk_the_fake(schedule: Sequence[Change], *, webhooks: int, page_size: int, prefetch: bool) -> Story:
    """Walk over the fake's webhooks while they change as *schedule* says."""
    later = sum(change.added for change in schedule)
    async with FakeAsana(webhooks=webhooks + later) as fake, session_with(fake) as asana:
        to_add = [fake.webhooks.popitem() for _ in range(later)][::-1]
        always, ever = set(fake.webhooks), set(fake.webhooks)
        came: list[str] = []
        upcoming = iter(schedule)
        async with get_webhooks(asana, workspace=fake.workspace, page_size=page_size, prefetch=prefetch) as pager:
            async for one in pager.pages():
                came += [webhook.gid for webhook in one.items]
                change = next(upcoming, Change(added=0, removed=()))
                for _ in range(change.added):
                    gid, webhook = to_add.pop(0)
                    fake.webhooks[gid] = webhook
                ever |= set(fake.webhooks)
                for position in change.removed:
                    if position < len(fake.webhooks):
                        del fake.webhooks[list(fake.webhooks)[position]]
                always &= set(fake.webhooks)
        return Story(came, always, ever, offsets_asked(fake))


async def walk_by_position(schedule: Sequence[Change], *, webhooks: int, page_size: int, prefetch: bool) -> Story:
    """Walk over a list whose newest comes first, and whose offsets are positions in it, so that changes move it."""
    listed = [str(gid) for gid in range(webhooks, 0, -1)]
    always, ever = set(listed), set(listed)
    offsets: list[str | None] = []
    upcoming = iter(schedule)

    def answer_to(offset: str | None) -> bytes:
        offsets.append(offset)
        begin = int(offset or 0)
        gids, more = listed[begin : begin + page_size], begin + page_size < len(listed)
        change = next(upcoming, Change(added=0, removed=()))
        for _ in range(change.added):
            listed.insert(0, str(len(ever) + 1))
            ever.add(listed[0])
        for position in change.removed:
            del listed[position : position + 1]
        always.intersection_update(listed)
        return page(*gids, then=str(begin + page_size) if more else None)

    async with offset_server(answer_to) as url, session(url) as asana:
        pager = get_webhooks(asana, workspace="1331", page_size=page_size, prefetch=prefetch)
        return Story(await gids_of(pager), always, ever, offsets)


@pytest.mark.parametrize("walk", [walk_the_fake, walk_by_position])
def test_lists_that_change_under_the_walk(walk: Callable[..., Any]) -> None:
    """No webhook comes twice, no page is asked for twice, the walk ends; and what was there all the time comes,
    unless offsets are positions and removals move the list.
    """

    @given(schedule=CHANGES, webhooks=st.integers(0, 9), page_size=st.integers(1, 4), prefetch=st.booleans())
    @settings(max_examples=50)
    def check(schedule: list[Change], webhooks: int, page_size: int, prefetch: bool) -> None:
        story = asyncio.run(walk(schedule, webhooks=webhooks, page_size=page_size, prefetch=prefetch))

        assert len(set(story.came)) == len(story.came)
        assert set(story.came) <= story.ever_there
        assert len(set(story.offsets)) == len(story.offsets)
        if walk is walk_the_fake or not any(change.removed for change in schedule):
            assert story.always_there <= set(story.came)

    check()
