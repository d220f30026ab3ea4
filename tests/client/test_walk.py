"""Walk: every walk there can be over two offsets, played to its end, and what ends or restarts one."""

from collections.abc import Iterator
from typing import Literal

import pytest

from asana_webhooks.client.walk import Walk
from asana_webhooks.errors import BadRequestError, PaginationExpiredError, PaginationRepeatedError
from asana_webhooks.models import Webhook
from asana_webhooks.wire import NextPage, WebhookList


def page(*gids: str, then: str | None = None) -> WebhookList:
    following = None if then is None else NextPage(offset=then)
    return WebhookList(data=tuple(Webhook(gid=gid) for gid in gids), next_page=following)


def refusal(*messages: str) -> BadRequestError:
    return BadRequestError(operation="getWebhooks", status=400, messages=messages)


EXPIRED = refusal("offset: Your pagination token has expired.")

Answer = WebhookList | BadRequestError
End = Literal["finished", "repeated", "expired", "refused"] | None

PAGES = [page(*gids, then=then) for gids in (["1"], ["2", "1", "2"]) for then in (None, "a", "b")]
ANSWERS: list[Answer] = [*PAGES, EXPIRED]


def play(start: str | None, answers: tuple[Answer, ...], *, restart: bool) -> End:
    """Walk through *answers* and compare every step with what the history of the walk says it must be."""
    walk = Walk(start, restart=restart)
    came: list[str] = []
    asked: list[str | None] = []  # since the walk began, or started over
    expected, restarts = start, 0
    for answer in answers:
        assert (walk.offset, walk.finished, walk.problem) == (expected, False, None)
        if isinstance(answer, WebhookList):
            new = list(dict.fromkeys(one.gid for one in answer.data if one.gid not in came))
            assert [one.gid for one in walk.take(answer)] == new
            came += new
            asked.append(expected)
            expected = None if answer.next_page is None else answer.next_page.offset
            continue
        if expected is None:
            with pytest.raises(BadRequestError) as caught:
                walk.refused(answer)
            assert caught.value is answer
            return "refused"
        if not restart or restarts == 2:
            with pytest.raises(PaginationExpiredError) as expiry:
                walk.refused(answer)
            assert (expiry.value.offset, expiry.value.items_so_far) == (expected, len(came))
            assert walk.offset == expected
            return "expired"
        walk.refused(answer)
        expected, restarts, asked = None, restarts + 1, []
    if asked and expected is None:
        assert (walk.offset, walk.finished, walk.problem) == (None, True, None)
        return "finished"
    if expected in asked:
        assert isinstance(walk.problem, PaginationRepeatedError)
        assert walk.problem.items_so_far == len(came)
        return "repeated"
    return None


def every_walk(start: str | None, *, restart: bool) -> Iterator[tuple[tuple[Answer, ...], End]]:
    """Play every walk to its end; yields its answers and how it ended.

    With restarts they are many, so there each page has the same webhook, which comes once.
    """
    answers_there_are: list[Answer] = [*PAGES[:3], EXPIRED] if restart else ANSWERS
    begun: list[tuple[Answer, ...]] = [()]
    while begun:
        answers = begun.pop()
        end = play(start, answers, restart=restart)
        if end is None:
            begun += [(*answers, answer) for answer in answers_there_are]
        else:
            yield answers, end


@pytest.mark.parametrize("start", [None, "a", "elsewhere"])
@pytest.mark.parametrize("restart", [False, True])
def test_every_walk_there_is(start: str | None, restart: bool) -> None:
    """Whatever a server answers, each page asked for is the right one, nothing comes twice, and the walk ends."""
    walks = list(every_walk(start, restart=restart))

    # Each offset once, the start of the list being one; and again from there for each restart.
    longest = {None: 3, "a": 2, "elsewhere": 3}[start] + (2 * 3 if restart else 0)
    assert max(len(answers) for answers, _ in walks) == longest
    ends = {end for _, end in walks}
    assert ends == {"finished", "repeated", "expired"} | ({"refused"} if restart or start is None else set())
    restarts = {answers[:-1].count(EXPIRED) for answers, end in walks if end == "expired"}
    assert restarts == ({2} if restart else {0})


def test_an_expired_offset_can_be_asked_with_once_more() -> None:
    """When no restart is left the walk stays where it is, and so do its errors."""
    walk = Walk("a")
    for _ in range(2):
        with pytest.raises(PaginationExpiredError):
            walk.refused(EXPIRED)
    assert [one.gid for one in walk.take(page("1"))] == ["1"]
    assert walk.finished


@pytest.mark.parametrize(
    "messages",
    [
        (),
        ("offset: Your pagination token is invalid.",),
        ("The bearer token has expired.",),
        ("workspace: Unknown object: 1331", "limit: Must be between 1 and 100"),
    ],
)
def test_other_refusals_are_no_expiry(messages: tuple[str, ...]) -> None:
    """They come out as they are, also when the walk could start over, and change nothing."""
    walk = Walk("a", restart=True)
    error = refusal(*messages)
    with pytest.raises(BadRequestError) as caught:
        walk.refused(error)

    assert caught.value is error
    assert walk.offset == "a"


def test_a_refusal_without_a_text() -> None:
    """Behind a page that has come it can only be about the offset; at the beginning of a walk it may be anything."""
    walk = Walk("a", restart=True)
    with pytest.raises(BadRequestError):
        walk.refused(refusal())
    walk.take(page("1", then="b"))
    walk.refused(refusal())

    assert walk.offset is None


def test_one_sentence_of_many_is_enough() -> None:
    """Asana may say more than that the offset has expired."""
    walk = Walk("a", restart=True)
    walk.refused(refusal("limit: odd", *EXPIRED.messages))

    assert walk.offset is None


def test_a_hundred_pages_with_nothing_new_end_a_walk() -> None:
    """Ninety-nine do not, and one webhook that is new starts the count again."""
    walk = Walk(None)
    walk.take(page("1", then="0"))
    for number in range(1, 100):
        walk.take(page("1", then=f"{number}"))
    assert walk.problem is None
    walk.take(page("2", then="new"))
    for number in range(100, 199):
        walk.take(page(*("1", "2")[: number % 3], then=f"{number}"))
    assert walk.problem is None
    walk.take(page(then="last"))

    assert "100 pages in a row with nothing new after 2 items" in str(walk.problem)


def test_pages_that_came_before_a_restart_are_not_counted_as_stale() -> None:
    """After starting over hundreds of pages may bring nothing new; that is no endless walk."""
    walk = Walk(None, restart=True)
    for number in range(250):
        assert len(walk.take(page(f"{number}", then=f"first {number}"))) == 1
    walk.refused(EXPIRED)
    for number in range(250):
        assert walk.take(page(f"{number}", then=f"second {number}")) == ()
        assert walk.problem is None

    assert [one.gid for one in walk.take(page("249", "250"))] == ["250"]


def test_empty_pages_end_a_walk_after_a_restart_too() -> None:
    """The count starts again with the walk, and still ends one that never would."""
    walk = Walk(None, restart=True)
    walk.take(page("1", then="x"))
    for number in range(99):
        walk.take(page(then=f"first {number}"))
    walk.refused(EXPIRED)
    for number in range(99):
        walk.take(page(then=f"second {number}"))
    assert walk.problem is None
    walk.take(page(then="last"))

    assert "100 pages in a row with nothing new after 1 items" in str(walk.problem)


def test_the_first_of_two_records_with_one_gid_counts() -> None:
    """A page's own order is kept, and the first record of a webhook with it."""
    first, second = (Webhook(gid="1", active=active) for active in (True, False))
    listed = WebhookList(data=(first, Webhook(gid="2"), second), next_page=None)

    assert Walk(None).take(listed) == (first, Webhook(gid="2"))


@pytest.mark.parametrize("pages", [3, 4])
def test_a_walk_of_far_too_many_pages(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """A server that makes up new webhooks and offsets for ever is left at a bound far above what Asana allows."""
    monkeypatch.setattr("asana_webhooks.client.walk._MOST_PAGES", 4)
    walk = Walk(None)
    for number in range(pages):
        assert walk.problem is None
        walk.take(page(f"{number}", then=f"offset-{number}"))

    assert (walk.problem is None) == (pages == 3)
    if walk.problem is not None:
        assert "4 pages, and more are to follow" in str(walk.problem)
