"""What subscriptions decide, without a server: targets, filters, what to do with a webhook, when one may retire."""

import string
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asana_webhooks.models import Webhook, WebhookFilter
from asana_webhooks.store.base import Registration, RegistrationState
from asana_webhooks.subscriptions.rules import (
    LONGEST_WAIT,
    as_pair,
    endpoint_below,
    judge,
    may_retire,
    named,
    normal_filters,
    reaches,
    split_public_url,
    split_target,
)

URL = "https://example.com/asana"


def registration(id: str = "a", **members: Any) -> Registration:
    usual: dict[str, Any] = {"resource": "21", "public_url": URL, "state": RegistrationState.CONFIRMED, "deadline": 0.0}
    return Registration(id=id, **(usual | members))


def webhook(**members: Any) -> Webhook:
    usual: dict[str, Any] = {"gid": "12", "target": f"{URL}/7654"}
    return Webhook(**(usual | members))


SPLIT = {
    "https://example.com/asana/7654": (URL, "7654"),
    "https://example.com/asana/7654/": (URL, "7654"),
    "https://example.com/7654": ("https://example.com", "7654"),
    "https://example.com/asana/7654?key=a/b": (f"{URL}?key=a/b", "7654"),
    "https://example.com/asana/7654/?key=a%2Fb&x": (f"{URL}?key=a%2Fb&x", "7654"),
    "https://example.com/asana/7654#top/b?c": (URL, "7654"),
    "https://EXAMPLE.com:8443/Asana/b": ("https://example.com:8443/Asana", "b"),
    "http://[::1]:8080/asana/b": ("http://[::1]:8080/asana", "b"),
    "https://b\u00fccher.example/asana/\u00e4": ("https://xn--bcher-kva.example/asana", "\u00e4"),
    "https://example.com/asana/%C3%A4%25%2541": (URL, "\u00e4%%41"),
    "https://example.com/asana/a+b%2Bc%20d;e": (URL, "a+b+c d;e"),
    "https://example.com/%C3%A4/b": ("https://example.com/%C3%A4", "b"),
    # No segment, or one that servers read in different ways.
    "https://example.com": None,
    "https://example.com/?a/b": None,
    "https://example.com/asana//": None,
    "https://example.com/asana/a%2Fb": None,
    "https://example.com/asana/%FF": None,
    "ftp://example.com/asana/b": None,
    "/asana/b": None,
    "http://[::1/asana/b": None,
    "https://xn--/asana/b": None,
    "": None,
    None: None,
}


@pytest.mark.parametrize(("target", "split"), SPLIT.items())
def test_what_a_target_is_made_of(target: str | None, split: tuple[str, str] | None) -> None:
    """The last segment of its path is the endpoint, decoded; the rest, with the query, is the public URL."""
    assert split_target(target) == split
    if split is not None:
        assert endpoint_below(target, split[0]) == split[1]


NAMES = st.text(string.ascii_letters + string.digits + "-._~%\u00e4 ", min_size=1, max_size=12)


@given(
    path=st.lists(NAMES.filter(lambda name: name not in (".", "..")), max_size=3),
    query=st.sampled_from(["", "?", "?code=k3y", "?a=b/c&d=%2F"]),
    slash=st.booleans(),
    endpoint=st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=43),
)
def test_any_public_url_and_endpoint(path: list[str], query: str, slash: bool, endpoint: str) -> None:
    """A target made of a public URL, as establish_webhook makes it, is below it, and below no other."""
    given_url = "/".join(["https://example.com", *(quote(one) for one in path)]) + "/" * slash + query
    base, kept = split_public_url(given_url)
    target = f"{base / endpoint}{kept}"

    assert endpoint_below(target, given_url) == endpoint
    assert endpoint_below(target, f"https://example.com/other{kept}/{base.path}") is None
    assert endpoint_below(target, f"{given_url}&x" if "?" in given_url else f"{given_url}?x") is None


SAME = {
    URL: True,
    f"{URL}/": True,
    "https://EXAMPLE.com:443/%61sana": True,
    f"{URL}?": True,
    "http://example.com/asana": False,
    "https://example.com:8443/asana": False,
    "https://user@example.com/asana": False,
    "https://example.com/Asana": False,
    "https://example.com": False,
    f"{URL}/7654": False,
    f"{URL}?code=k3y": False,
    "": False,
}


@pytest.mark.parametrize(("public_url", "same"), SAME.items())
def test_whether_a_webhook_reaches_a_public_url(public_url: str, same: bool) -> None:
    """By what it was created with, or by its target: Asana may return that in another spelling, or not at all."""
    elsewhere = "https://example.org/7654"
    assert reaches(registration(), elsewhere, public_url) is same
    assert reaches(registration(), None, public_url) is same
    assert reaches(registration(public_url=elsewhere), f"{URL}/7654", public_url) is same
    assert not reaches(registration(public_url=elsewhere), elsewhere, URL)


TEXTS = st.sampled_from([None, "task", "story"])
FILTERS = st.lists(
    st.builds(
        WebhookFilter,
        resource_type=TEXTS,
        resource_subtype=TEXTS,
        action=TEXTS,
        fields=st.none() | st.lists(st.sampled_from(["a", "b", "c"])).map(tuple),
    ),
    max_size=4,
)


@given(FILTERS, st.randoms(use_true_random=False))
def test_filters_are_sets(filters: list[WebhookFilter], random: Any) -> None:
    """Order and repetition do not count, neither of filters nor of fields, and no fields are the same as null."""
    shuffled = [
        WebhookFilter(
            resource_type=one.resource_type,
            resource_subtype=one.resource_subtype,
            action=one.action,
            fields=(*reversed(one.fields), *one.fields) if one.fields else random.choice([None, ()]),
        )
        for one in [*filters, *filters[:1]]
    ]
    random.shuffle(shuffled)

    assert normal_filters(shuffled) == normal_filters(filters)
    assert normal_filters(()) == normal_filters(None) == frozenset()


@given(FILTERS, FILTERS)
def test_other_filters_are_different(some: list[WebhookFilter], others: list[WebhookFilter]) -> None:
    """Two lists are equal only if each has every filter of the other."""

    def known(filters: list[WebhookFilter]) -> set[str]:
        return {
            f"{one.resource_type} {one.resource_subtype} {one.action} {sorted({*(one.fields or ())})}"
            for one in filters
        }

    assert (normal_filters(some) == normal_filters(others)) is (known(some) == known(others))


TASKS, STORIES = WebhookFilter(resource_type="task"), WebhookFilter(resource_type="story")
JUDGED = [
    ((), (), "unchanged"),
    ((TASKS,), (WebhookFilter(resource_type="task", fields=()),), "unchanged"),
    ((TASKS, STORIES), (STORIES, TASKS), "unchanged"),
    ((), (TASKS,), "updated"),
    ((TASKS,), (TASKS, STORIES), "updated"),
    ((TASKS,), (), "replaced"),
]


@pytest.mark.parametrize(("there", "wanted", "verdict"), JUDGED)
def test_what_to_do_with_a_webhook(there: tuple[Any, ...], wanted: tuple[Any, ...], verdict: str) -> None:
    """Other filters need an update, none at all a new webhook, and so does another public URL, whatever the filters."""
    found = webhook(filters=there)
    assert judge(registration(), found, public_url=URL, filters=wanted) == verdict
    assert judge(registration(), found, public_url="https://example.org", filters=wanted) == "replaced"


def test_a_pair() -> None:
    """The one that is replaced comes first, in whatever order the store returns them."""
    old, new = registration("b"), registration("a", replaces="b")
    assert as_pair([old, new]) == as_pair([new, old]) == (old, new)


@example(retire_after=0, next_attempt=True, succeeded=1, waited=1)
@given(
    retire_after=st.none() | st.integers(-2, 2),
    next_attempt=st.booleans(),
    succeeded=st.none() | st.integers(-2, 2),
    waited=st.sampled_from([0, 1, LONGEST_WAIT - 1, LONGEST_WAIT, LONGEST_WAIT + 1]),
)
def test_when_one_may_retire(
    retire_after: int | None, next_attempt: bool, succeeded: int | None, waited: float
) -> None:
    """Its time is over, nothing is to be sent again, and a delivery came after the new one; or after nine hours."""
    since = 1_800_000_000.0
    now = since + waited
    old = registration(retire_after=None if retire_after is None else now + retire_after)
    found = webhook(
        next_attempt_after=datetime.fromtimestamp(now, UTC) if next_attempt else None,
        last_success_at=None if succeeded is None else datetime.fromtimestamp(since + succeeded, UTC),
    )
    is_over = retire_after is not None and retire_after <= 0
    is_idle = not next_attempt and succeeded is not None and succeeded > 0

    assert may_retire(old, found, since=since, now=now) is (is_over and (is_idle or waited >= 9 * 3600))
    assert may_retire(old, found, since=since, now=now, longest_wait=waited) is is_over


def test_names() -> None:
    """Logs and errors name the webhook, the resource and the label, each cut, and never the public URL."""
    assert named(registration()) == "webhook on 21"
    assert named(registration(webhook_gid="12", label="tenant a")) == "webhook 12 on 21 (label 'tenant a')"
    long = named(registration(webhook_gid="1" * 90, resource="2" * 90, label="l" * 200))
    assert len(long) < 150
