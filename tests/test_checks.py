"""The checks of what people give us: numbers, URLs, headers, proxies, stores."""

import math
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import (
    AsanaSession,
    MemoryStore,
    Receiver,
    SQLiteStore,
    Worker,
    create_webhook,
    ensure_webhook,
    establish_webhook,
)
from asana_webhooks._checks import (
    check_count,
    check_headers,
    check_proxy,
    check_seconds,
    check_url,
    is_encodable,
    parse_url,
)
from asana_webhooks.errors import ConfigurationError


def test_other_seconds_are_refused() -> None:
    """Nobody keeps a time that never comes; the message names the argument."""
    odd: list[Any] = [-1e-9, math.nan, math.inf, -math.inf, 10**400, "5", None, True]
    for value in odd:
        for zero in (True, False):
            with pytest.raises(ConfigurationError, match=r"^lease must be a finite number of seconds, "):
                check_seconds("lease", value, zero=zero)


def test_no_seconds_at_all_are_refused_where_they_make_no_sense() -> None:
    """A time limit of nothing would let nothing happen."""
    with pytest.raises(ConfigurationError, match="above 0, not 0"):
        check_seconds("timeout", 0, zero=False)


def test_seconds_come_back_as_floats() -> None:
    """Whoever gives a whole number gets on with the same as everybody."""
    assert type(check_seconds("lease", 60)) is float


@given(st.floats())
def test_any_seconds(value: float) -> None:
    """Of all floats, those from 0 up pass as they are, if they have an end."""
    if math.isfinite(value) and value >= 0:
        assert check_seconds("lease", value) == value
    else:
        with pytest.raises(ConfigurationError, match="0 or more"):
            check_seconds("lease", value)


def test_counts_pass() -> None:
    """Whole numbers from 1 come back as they are."""
    assert (check_count("attempts", 1), check_count("attempts", 10)) == (1, 10)


def test_none_at_all_is_a_count_where_it_makes_sense() -> None:
    """A budget may be 0, but not less."""
    assert check_count("budget", 0, zero=True) == 0
    with pytest.raises(ConfigurationError, match=r"^budget must be a whole number of at least 0, not -1$"):
        check_count("budget", -1, zero=True)


def test_other_counts_are_refused() -> None:
    """Truth values, floats and texts are no counts, whether or not 0 is one; the message names the argument."""
    odd: list[Any] = [False, True, 0.0, 1.5, "0", "1", None, math.nan, -1]
    for value in odd:
        for zero in (True, False):
            with pytest.raises(ConfigurationError, match=r"^budget must be a whole number of at least [01], not "):
                check_count("budget", value, zero=zero)


def test_long_values_are_cut() -> None:
    """A message does not show thousands of letters of what was given."""
    for check in (check_seconds, check_count):
        with pytest.raises(ConfigurationError) as caught:
            check("lease", "x" * 5000)
        assert len(str(caught.value)) < 200


BASE_URL = "https://app.asana.com/api/1.0"
DEFAULTS = {"User-Agent": "us", "Accept": "application/json"}


def test_urls_that_a_token_may_be_sent_to() -> None:
    """Https anywhere, http to loopback; gateways have paths and hosts of many kinds."""
    for given_url, used in (
        ("https://gateway.example/asana%20api/1.0", "https://gateway.example/asana%20api/1.0"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080/api", "http://[::1]:8080/api"),
        ("http://localhost:8080/api/1.0", "http://localhost:8080/api/1.0"),
    ):
        assert check_url("base_url", given_url, example=BASE_URL) == used


@pytest.mark.parametrize(
    "url",
    [
        "",
        "app.asana.com/api",
        "https://",
        "http://[::1",
        "http://app.asana.com/api/1.0",
        "ftp://app.asana.com",
        "http://10.0.0.1/api",
        "https://app.asana.com/?x=1",
        "https://app.asana.com:0",
        # A password without a user is one too.
        "https://user:canary@app.asana.com/api",
        "https://:canary@host.example/api",
        "https://@host.example",
        # What a URL cannot have is not quietly dropped: another host would be left.
        "https://app.asana.com\n.evil.example",
        "https://app.asana.com\t.evil.example/api",
        "https://ex ample.com",
        "https://%65vil.example",
        5,
        b"https://x.example",
    ],
    ids=ascii,
)
def test_urls_that_a_token_must_not_be_sent_to(url: Any) -> None:
    """Whatever could be read on the way, or is another host than it seems, is refused without being shown."""
    with pytest.raises(ConfigurationError, match=r"^base_url must (be https|look like https://app)") as caught:
        check_url("base_url", url, example=BASE_URL)

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\r\nb"},
        {"X-A": "a\0"},
        {"X-A": "\ud800"},
        {"X-A": 5},
        {"X-A": None},
        {5: "a"},
        {"": "a"},
        {"X A": "a"},
        {"X-A\r\nB": "a"},
        {"Authorization": "Bearer canary"},
        {"authorization": "Bearer canary"},
        {"Content-Length": "3"},
        {"content-type": "text/plain"},
        {"Expect": "100-continue"},
        {"content-encoding": "gzip"},
        {"Connection": "close"},
        {"Upgrade": "h2c"},
        {"Host": "example.com"},
        {"X-A": "a", "x-a": "b"},
        [("X-A", "a")],
        "X-A: a",
        5,
    ],
    ids=repr,
)
def test_headers_that_cannot_be_sent_are_refused(headers: Any) -> None:
    """Names and values are texts HTTP can carry, and none of them is one of ours; values are not shown."""
    with pytest.raises(ConfigurationError, match="header") as caught:
        check_headers(headers, DEFAULTS)

    assert "canary" not in str(caught.value)


def test_given_headers_replace_defaults_in_whatever_case() -> None:
    """No header goes out twice because it was spelled differently."""
    assert check_headers(None, DEFAULTS) == DEFAULTS
    assert check_headers({"user-agent": "me", "Asana-Enable": "ä b"}, DEFAULTS) == {
        "Accept": "application/json",
        "user-agent": "me",
        "Asana-Enable": "ä b",
    }


def test_proxies() -> None:
    """Credentials and https are fine for a proxy; what is no proxy's URL is refused."""
    for proxy in (None, "http://user:pw@proxy.example:3128", "https://proxy.example"):
        assert check_proxy(proxy) == proxy
    for bad in (5, "", "not a url", "http://", "socks5://h:1", "http://[::1", "proxy:3128"):
        with pytest.raises(ConfigurationError, match="proxy"):
            check_proxy(bad)


def test_what_is_no_url_is_the_empty_one() -> None:
    """Neither a wrong type nor a wrong text raises."""
    assert [parse_url(value).host for value in (5, None, "http://[::1", "https://xn--", "https://a.example")] == [
        None
    ] * 4 + ["a.example"]


def test_half_a_surrogate_pair_cannot_be_encoded() -> None:
    """Nor can what is no text."""
    assert [is_encodable(value) for value in ("", "ä", "\ud800", 5, None)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sqlite:///canary.db", "not str: pass open_store(url) or SQLiteStore(path)"),
        ("postgresql://user:canary@host/db", "not str: pass open_store(url) or SQLiteStore(path)"),
        ("canary.db", "not str: pass open_store(url) or SQLiteStore(path)"),
        (PurePath("canary.db"), f"not {type(PurePath()).__name__}: pass open_store(url) or SQLiteStore(path)"),
        (SQLiteStore, 'not the class SQLiteStore: pass an instance, such as open_store("sqlite:///asana.db")'),
        (None, 'not NoneType: pass one, such as open_store("sqlite:///asana.db")'),
    ],
    ids=repr,
)
async def test_what_belongs_where_a_store_belongs(given: Any, said: str) -> None:
    """Whatever takes a store says what to pass in its place, and does not show what was given."""

    async def handle(_: object) -> None:
        raise AssertionError

    async with AsanaSession("token") as asana:
        for call in (Receiver, lambda store: Worker(store, handle)):
            with pytest.raises(ConfigurationError) as caught:
                call(given)
            assert str(caught.value) == f"store must be a store, {said}"
        with pytest.raises(ConfigurationError) as caught:
            await establish_webhook(asana, given, public_url="https://example.com", resource="1")
        assert str(caught.value) == f"store must be a store, {said}"
        assert "canary" not in said


async def test_a_target_on_this_machine() -> None:
    """Asana cannot reach localhost, so every way to create names a tunnel; nothing is sent or stored."""
    async with MemoryStore() as store, AsanaSession("token", base_url="https://asana.invalid/api/1.0") as asana:
        hosts = ("localhost:80", "LOCALHOST", "localhost.", "app.localhost", "127.0.0.1", "0.0.0.0", "[::1]:80")
        for url in (f"https://{host}/asana" for host in (*hosts, "[::]", "[::ffff:127.0.0.1]")):
            with pytest.raises(ConfigurationError, match=r"^target is on localhost.* tunnel"):
                await create_webhook(asana, resource="21", target=url)
            with pytest.raises(ConfigurationError, match=r"^public_url is on localhost.* tunnel"):
                await establish_webhook(asana, store, resource="21", public_url=url)
            with pytest.raises(ConfigurationError, match=r"^public_url is on localhost.* tunnel"):
                await ensure_webhook(asana, store, resource="21", public_url=url)


async def test_session_and_store_swapped() -> None:
    """The two first arguments in the wrong order, or the store twice, have a sentence of their own."""
    store: Any = MemoryStore()
    async with AsanaSession("token") as asana:
        others: list[Any] = [asana, store]
        for other in others:
            with pytest.raises(ConfigurationError, match="not a store: pass the session first, then the store"):
                await establish_webhook(store, other, public_url="https://example.com", resource="1")
            with pytest.raises(ConfigurationError, match="not a store: pass the session first, then the store"):
                await ensure_webhook(store, other, public_url="https://example.com", resource="1")
