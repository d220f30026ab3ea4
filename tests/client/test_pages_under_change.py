"""Walks over a list that changes meanwhile, offsets that expire, and servers that want to lead a walk astray."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.pages import WebhookPager
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    BadRequestError,
    PaginationExpiredError,
    PaginationRepeatedError,
    ServerError,
    UnexpectedResponseError,
)
from asana_webhooks.models import Webhook
from asana_webhooks.testing import FakeAsana, Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.pages import EXPIRED, INVALID, offset_server, page
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


async def fetched_ahead(pager: WebhookPager) -> None:
    """Return when nothing is on its way."""
    if pager._tasks:
        await asyncio.wait(set(pager._tasks))


# Lists that change between pages


@frozen(kw_only=True)
class Change:
    """What happens to the list after a page."""

    added: int
    removed: tuple[int, ...]
    """Positions."""
    seconds: int = field(default=0)

    def __str__(self) -> str:
        return f"+{self.added} -{self.removed} {self.seconds}s"


def changes(*seconds: int) -> st.SearchStrategy[list[Change]]:
    """Draw what happens after the first page, the second, …"""
    one = st.builds(
        Change,
        added=st.integers(0, 3),
        removed=st.lists(st.integers(0, 30), max_size=3).map(tuple),
        seconds=st.sampled_from(seconds),
    )
    return st.lists(one, max_size=8)


@frozen
class Story:
    """How a walk over a list that changed went."""

    came: list[str]
    always_there: set[str]
    """From before the first page to after the last."""
    ever_there: set[str]
    offsets: list[str | None]
    expired: PaginationExpiredError | None = None


async def walk_the_fake(
    schedule: Sequence[Change], *, webhooks: int, page_size: int, prefetch: bool, restart: bool
) -> Story:
    """Walk over the fake's webhooks while they change as *schedule* says."""
    async with FakeAsana(webhooks=webhooks) as fake, session_with(fake) as asana:
        always, ever = set(fake.webhooks), set(fake.webhooks)
        came: list[str] = []
        expired = None
        upcoming = iter(schedule)
        pager = get_webhooks(asana, workspace=fake.workspace, page_size=page_size, prefetch=prefetch, restart=restart)
        try:
            async with pager:
                async for one in pager.pages():
                    came += [webhook.gid for webhook in one.items]
                    change = next(upcoming, Change(added=0, removed=()))
                    for _ in range(change.added):
                        fake.add_quiet_webhook()
                    ever |= set(fake.webhooks)
                    for position in change.removed:
                        if position < len(fake.webhooks):
                            del fake.webhooks[list(fake.webhooks)[position]]
                    always &= set(fake.webhooks)
                    await fetched_ahead(pager)
                    await fake.advance(change.seconds)
        except PaginationExpiredError as error:
            expired = error
        return Story(came, always, ever, offsets_asked(fake), expired)


@given(
    schedule=changes(0, 60),
    webhooks=st.integers(0, 9),
    page_size=st.integers(1, 4),
    prefetch=st.booleans(),
    restart=st.booleans(),
)
@settings(max_examples=50)
def test_webhooks_that_come_and_go(
    schedule: list[Change], webhooks: int, page_size: int, prefetch: bool, restart: bool
) -> None:
    """Whatever changes between pages, what was there all the time comes once, and the walk ends."""
    story = asyncio.run(
        walk_the_fake(schedule, webhooks=webhooks, page_size=page_size, prefetch=prefetch, restart=restart)
    )

    assert story.expired is None
    assert len(set(story.came)) == len(story.came)
    assert story.always_there <= set(story.came) <= story.ever_there
    assert story.offsets.count(None) == 1
    assert len(set(story.offsets)) == len(story.offsets)  # no page was asked for twice


@given(
    schedule=changes(0, TOO_LONG),
    webhooks=st.integers(0, 9),
    page_size=st.integers(1, 4),
    prefetch=st.booleans(),
)
@settings(max_examples=50)
def test_offsets_that_expire_while_webhooks_come_and_go(
    schedule: list[Change], webhooks: int, page_size: int, prefetch: bool
) -> None:
    """A walk that starts over brings all that was there all the time, once, unless offsets expire a third time."""
    story = asyncio.run(
        walk_the_fake(schedule, webhooks=webhooks, page_size=page_size, prefetch=prefetch, restart=True)
    )

    assert len(set(story.came)) == len(story.came)
    assert set(story.came) <= story.ever_there
    assert story.offsets.count(None) <= 3
    if story.expired is None:
        assert story.always_there <= set(story.came)
    else:
        assert story.offsets.count(None) == 3
        assert story.expired.items_so_far == len(story.came)


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
        return EXPIRED if offset and change.seconds else page(*gids, then=str(begin + page_size) if more else None)

    async with offset_server(answer_to) as url, session(url) as asana:
        pager = get_webhooks(asana, workspace="1331", page_size=page_size, prefetch=prefetch, restart=True)
        try:
            return Story(await gids_of(pager), always, ever, offsets)
        except PaginationExpiredError as error:
            return Story([], always, ever, offsets, error)


@given(
    schedule=changes(0, 0, 0, TOO_LONG), webhooks=st.integers(0, 9), page_size=st.integers(1, 4), prefetch=st.booleans()
)
@settings(max_examples=50)
def test_lists_that_move_under_the_walk(schedule: list[Change], webhooks: int, page_size: int, prefetch: bool) -> None:
    """Where offsets are positions, additions make records come again and removals make some be missed; no webhook
    comes twice, none is missed unless some were removed, and the walk ends.
    """
    story = asyncio.run(walk_by_position(schedule, webhooks=webhooks, page_size=page_size, prefetch=prefetch))

    assert len(set(story.came)) == len(story.came)
    assert set(story.came) <= story.ever_there
    assert story.offsets.count(None) <= 3
    if story.expired is None and not any(change.removed for change in schedule):
        assert story.always_there <= set(story.came)


# Offsets that expire


@EITHER_WAY
@pytest.mark.parametrize("pauses_after", [(), (1,), (1, 3)])
async def test_a_walk_starts_over_up_to_twice(prefetch: bool, pauses_after: tuple[int, ...]) -> None:
    """All webhooks come, each once, and every page knows the offset behind it."""
    async with FakeAsana(webhooks=7) as fake, session_with(fake) as asana:
        pages = []
        async with get_webhooks(asana, workspace=fake.workspace, page_size=2, prefetch=prefetch, restart=True) as pager:
            async for one in pager.pages():
                pages.append(one)
                if len(pages) in pauses_after:
                    await fetched_ahead(pager)
                    await fake.advance(TOO_LONG)

        assert [webhook.gid for one in pages for webhook in one.items] == list(fake.webhooks)
        assert offsets_asked(fake).count(None) == 1 + len(pauses_after)
        assert {one.next_offset for one in pages} == set(offsets_asked(fake))


@EITHER_WAY
@pytest.mark.parametrize(("restart", "starts"), [(False, 1), (True, 3)])
async def test_what_expires_once_more_is_an_error(prefetch: bool, restart: bool, starts: int) -> None:
    """It names the offset and counts what came in all; the step taken again gets it again and starts nothing over."""
    async with FakeAsana(webhooks=20) as fake, session_with(fake) as asana:
        came: list[Webhook] = []
        last = None
        async with get_webhooks(
            asana, workspace=fake.workspace, page_size=2, prefetch=prefetch, restart=restart
        ) as pager:
            pages = pager.pages()
            with pytest.raises(PaginationExpiredError) as caught:
                while True:
                    last = await anext(pages)
                    came += last.items
                    await fetched_ahead(pager)
                    await fake.advance(TOO_LONG)
            with pytest.raises(PaginationExpiredError):
                await anext(pages)

        assert last is not None
        assert (caught.value.offset, caught.value.items_so_far) == (last.next_offset, len(came))
        assert len(came) == (4 if prefetch else 2)  # what was asked for ahead came in time
        assert offsets_asked(fake).count(None) == starts


@EITHER_WAY
async def test_items_go_on_where_a_walk_started_over(prefetch: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Pages with nothing new are passed over, offsets used before may come again, and a log says what happened."""
    caplog.set_level(logging.INFO)
    steps = [page("1", "2", then="a"), page("3", then="old"), EXPIRED]
    steps += [page("2", "1", then="a"), page(then="b"), page("4", "3", then="old"), EXPIRED]
    steps += [page("1", "2", "3", "4", then="a"), page("5", "1")]
    async with scripted_server(*steps) as server, session(server.url) as asana:
        pager = get_webhooks(asana, workspace="1331", prefetch=prefetch, restart=True)

        assert await gids_of(pager) == ["1", "2", "3", "4", "5"]
        assert offsets_asked(server) == [None, "a", "old", None, "a", "b", "old", None, "a"]
    assert [record.getMessage() for record in caplog.records if record.name.endswith("client.pages")] == [
        "getWebhooks: the offset has expired; the walk starts over"
    ] * 2


@EITHER_WAY
async def test_a_resumed_walk_starts_over_from_the_very_start(prefetch: bool) -> None:
    """Where it was to begin is lost, so what came before that comes too; each loop may start over anew."""
    steps = [EXPIRED, page("1", then="a"), page("2")] * 2
    async with scripted_server(*steps) as server, session(server.url) as asana:
        pager = get_webhooks(asana, workspace="1331", offset="old", prefetch=prefetch, restart=True)
        for _ in range(2):
            assert await gids_of(pager) == ["1", "2"]

        assert offsets_asked(server) == ["old", None, "a"] * 2


@EITHER_WAY
async def test_a_start_over_that_failed_can_be_tried_again(prefetch: bool) -> None:
    """It counts once, however often its first page has to be asked for."""
    steps = [page("1", then="a"), EXPIRED, *[errors(500, "Server Error")] * 3, page("1", then="b"), EXPIRED, page("2")]
    async with scripted_server(*steps) as server, session(server.url) as asana:
        async with get_webhooks(asana, workspace="1331", prefetch=prefetch, restart=True) as pager:
            walk = aiter(pager)
            assert (await anext(walk)).gid == "1"
            for _ in range(3):
                with pytest.raises(ServerError):
                    await anext(walk)
            assert [webhook.gid async for webhook in walk] == ["2"]

        assert offsets_asked(server) == [None, "a", None, None, None, None, "b", None]


@EITHER_WAY
async def test_an_invalid_offset_does_not_start_a_walk_over(prefetch: bool) -> None:
    """In the middle of a walk it is raised as it is too; so is an expiry of no offset."""
    async with scripted_server(page("1", then="a"), INVALID) as server, session(server.url) as asana:
        with pytest.raises(BadRequestError, match="invalid"):
            await gids_of(get_webhooks(asana, workspace="1331", prefetch=prefetch, restart=True))
        assert offsets_asked(server) == [None, "a"]
    async with scripted_server(EXPIRED) as server, session(server.url) as asana:
        with pytest.raises(BadRequestError, match="expired"):
            await gids_of(get_webhooks(asana, workspace="1331", prefetch=prefetch, restart=True))
        assert offsets_asked(server) == [None]


# Servers that lead astray


@EITHER_WAY
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("begin", "then", "came"),
    [(None, "aa", 2), (None, "aba", 3), (None, "abb", 3), (None, "abca", 4), ("a", "a", 1), ("a", "ba", 2)],
)
async def test_an_offset_that_comes_again_ends_the_walk(
    begin: str | None, then: str, came: int, prefetch: bool, restart: bool
) -> None:
    """A A, A B A and their like are errors after all pages that came, and the offset is not asked with again."""
    steps = [page(str(number), then=offset) for number, offset in enumerate(then)]
    async with scripted_server(*steps) as server, session(server.url) as asana:
        seen = []
        async with get_webhooks(asana, workspace="1331", offset=begin, prefetch=prefetch, restart=restart) as pager:
            walk = aiter(pager)
            for _ in range(came):
                seen.append((await anext(walk)).gid)  # noqa: PERF401 - what came before the error counts
            for _ in range(2):
                with pytest.raises(PaginationRepeatedError, match=f"repeated an offset after {came} items"):
                    await anext(walk)

        assert seen == [str(number) for number in range(came)]
        assert offsets_asked(server) == [begin, *then[:-1]]


ASTRAY = [
    "http://127.0.0.1:{port}/api/1.0/webhooks?offset=a",
    "//127.0.0.1:{port}/api/1.0/webhooks?offset=a",
    "http://user:password@127.0.0.1:{port}/webhooks",
    "http://app.asana.com@127.0.0.1:{port}/webhooks",
    "/../../admin?offset=b",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "",
    None,
    5,
    {"offset": "b"},
]


@EITHER_WAY
@pytest.mark.parametrize("astray", ASTRAY)
async def test_nothing_of_next_page_is_used_but_its_offset(astray: Any, prefetch: bool) -> None:
    """Whatever its path and uri are, nobody else is connected to, and the token goes nowhere but where it went."""
    async with scripted_server(page("9")) as stranger:
        astray = astray.format(port=stranger.port) if isinstance(astray, str) else astray
        following = {"offset": "a", "path": astray, "uri": astray}
        first = answer(200, {"data": [{"gid": "1"}], "next_page": following})
        async with scripted_server(first, page("2")) as server, session(server.url) as asana:
            assert await gids_of(get_webhooks(asana, workspace="1331", prefetch=prefetch)) == ["1", "2"]

        assert stranger.connections == 0
        assert {(seen.method, seen.path) for seen in server.requests} == {("GET", "/api/1.0/webhooks")}
        assert offsets_asked(server) == [None, "a"]


@pytest.mark.parametrize(
    "offset", ["a&workspace=6", "http://evil.example/", "../x?y#z", "a b+c%2Fd", "\u00e9\r\nX-Evil: 1", "x" * 4000]
)
async def test_an_offset_is_sent_back_as_it_came(offset: str) -> None:
    """It stays one parameter, whatever is in it."""
    async with scripted_server(page("1", then=offset), page("2")) as server, session(server.url) as asana:
        assert await gids_of(get_webhooks(asana, workspace="1331")) == ["1", "2"]

        first, second = server.requests
        assert second.query == first.query | {"offset": offset}
        assert "x-evil" not in second.headers


ODD_OFFSETS: list[Any] = [None, "", 5, True, ["b"], {}]


@pytest.mark.parametrize(
    "next_page", [{}, {"uri": "/webhooks?offset=b"}, *({"offset": offset} for offset in ODD_OFFSETS)]
)
async def test_a_next_page_without_an_offset_is_the_servers_fault(next_page: dict[str, Any]) -> None:
    """The walk does not end as if that had been all, and goes on if the page comes in order the next time."""
    bad = answer(200, {"data": [{"gid": "2"}], "next_page": next_page})
    async with scripted_server(page("1", then="a"), bad, page("2")) as server, session(server.url) as asana:
        walk = aiter(get_webhooks(asana, workspace="1331"))
        await anext(walk)
        with pytest.raises(UnexpectedResponseError, match=r"\$\.next_page"):
            await anext(walk)
        assert [webhook.gid async for webhook in walk] == ["2"]
        assert offsets_asked(server) == [None, "a", "a"]


@pytest.mark.parametrize("next_page", [5, "a", [], True])
async def test_a_next_page_that_is_no_object_is_the_servers_fault(next_page: Any) -> None:
    """It is not taken for the end."""
    bad = answer(200, {"data": [], "next_page": next_page})
    async with scripted_server(bad) as server, session(server.url) as asana:
        with pytest.raises(UnexpectedResponseError, match=r"\$\.next_page"):
            await gids_of(get_webhooks(asana, workspace="1331"))


@pytest.mark.parametrize("last", [{"data": [{"gid": "2"}]}, {"data": [{"gid": "2"}], "next_page": None}])
async def test_no_next_page_is_the_end(last: dict[str, Any]) -> None:
    """Null and nothing mean the same."""
    async with scripted_server(page("1", then="a"), answer(200, last)) as server, session(server.url) as asana:
        assert await gids_of(get_webhooks(asana, workspace="1331")) == ["1", "2"]
        assert len(server.requests) == 2


# Pages that fail


@EITHER_WAY
@pytest.mark.parametrize(
    "fault",
    [
        Fault(at="getWebhooks", after=2, status=500),
        Fault(at="getWebhooks", after=2, status=429, retry_after=0),
        Fault(at="getWebhooks", after=2, do="reset"),
        Fault(at="getWebhooks", after=2, do="lose_answer"),
        Fault(at="getWebhooks", after=2, do="truncate", size=30),
    ],
    ids=lambda fault: f"{fault.do} {fault.status}",
)
async def test_one_page_is_sent_again_and_not_the_walk(fault: Fault, prefetch: bool) -> None:
    """When the third page fails, it alone is asked for once more, and no webhook comes twice."""
    async with FakeAsana(webhooks=9) as fake, session_with(fake, retry=PATIENT) as asana:
        fake.script(fault)
        pager = get_webhooks(asana, workspace=fake.workspace, page_size=2, prefetch=prefetch)

        assert await gids_of(pager) == list(fake.webhooks)
        asked = offsets_asked(fake)
        assert len(asked) == 6
        assert asked[2] == asked[3]
        assert len(set(asked)) == 5


# Pages fetched ahead


async def test_an_error_of_a_page_fetched_ahead_waits_for_its_turn() -> None:
    """All webhooks of the page before it come first, however early it failed, and the step can be taken again."""
    steps = [page("1", "2", then="a"), errors(500, "Server Error"), page("3")]
    async with scripted_server(*steps) as server, session(server.url) as asana:
        async with get_webhooks(asana, workspace="1331", prefetch=True) as pager:
            walk = aiter(pager)
            seen = [(await anext(walk)).gid]
            await fetched_ahead(pager)
            assert len(server.requests) == 2
            seen.append((await anext(walk)).gid)
            assert seen == ["1", "2"]
            with pytest.raises(ServerError):
                await anext(walk)
            assert [webhook.gid async for webhook in walk] == ["3"]


async def test_an_expiry_noticed_ahead_starts_nothing_over_before_its_turn() -> None:
    """The walk starts over when the next page is wanted; who leaves before that asks for nothing more."""
    async with scripted_server(page("1", then="a"), EXPIRED, page("2")) as server, session(server.url) as asana:
        async with get_webhooks(asana, workspace="1331", prefetch=True, restart=True) as pager:
            walk = aiter(pager)
            await anext(walk)
            await fetched_ahead(pager)
            for _ in range(10):
                await asyncio.sleep(0)
            assert offsets_asked(server) == [None, "a"]
            assert (await anext(walk)).gid == "2"
            assert offsets_asked(server) == [None, "a", None]


@EITHER_WAY
async def test_a_consumer_cancelled_anywhere_leaves_nothing_behind(prefetch: bool) -> None:
    """Also while it starts over: no task stays, and the session is good for the next walk."""
    pages = {"old": EXPIRED, None: page("1", "2", then="a"), "a": page("3", then="b"), "b": page("4")}
    async with offset_server(lambda offset: pages[offset]) as url, session(url) as asana:
        pager = get_webhooks(asana, workspace="1331", offset="old", prefetch=prefetch, restart=True)
        seen: list[str] = []

        async def consume() -> None:
            seen.clear()
            async with pager:
                async for webhook in pager:
                    seen.append(webhook.gid)
                    await asyncio.sleep(0)

        async def check() -> None:
            assert pager._tasks == set()
            assert seen == ["1", "2", "3", "4"][: len(seen)]

        assert await cancel_at_every_step(consume, check) > 10
        assert seen == ["1", "2", "3", "4"]
