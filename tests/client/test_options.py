"""What a session takes, and what it refuses before anything is sent."""

from typing import Any

import aiohttp
import pytest

from asana_webhooks._checks import (
    check_base_url,
    check_headers,
    check_proxy,
    is_encodable,
    parse_url,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError

TOKEN = "2/1331/7654:0123456789abcdef"
DEFAULTS = {"User-Agent": "us", "Accept": "application/json"}


@pytest.mark.parametrize(
    "base_url",
    ["", "https://:pw@host.example/api", "https://user@host.example", "https://@host.example", 5, b"https://x.example"],
    ids=repr,
)
def test_a_base_url_holds_no_credentials_and_is_not_empty(base_url: Any) -> None:
    """A password without a user is one too, and an empty text does not mean Asana's own address."""
    with pytest.raises(ConfigurationError, match="base_url"):
        check_base_url(base_url)
    with pytest.raises(ConfigurationError, match="base_url"):
        AsanaSession(TOKEN, base_url=base_url)


@pytest.mark.parametrize(
    ("base_url", "used"),
    [
        ("https://gateway.example/asana%20api/1.0/", "https://gateway.example/asana%20api/1.0"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080/api", "http://[::1]:8080/api"),
    ],
)
def test_odd_base_urls(base_url: str, used: str) -> None:
    """Gateways have paths and hosts of many kinds."""
    assert check_base_url(base_url) == used


@pytest.mark.parametrize(
    "base_url",
    [
        "https://app.asana.com\n.evil.example",
        "https://app.asana.com\t.evil.example/api",
        "https://ex ample.com",
        "https://%65vil.example",
        "https://app.asana.com:0",
    ],
    ids=ascii,
)
def test_a_base_url_is_what_it_looks_like(base_url: str) -> None:
    """What a URL cannot have is not quietly dropped: another host would be left."""
    with pytest.raises(ConfigurationError, match="base_url must look like"):
        check_base_url(base_url)


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
        AsanaSession(TOKEN, headers=headers)

    assert "canary" not in str(caught.value)


def test_given_headers_replace_defaults_in_whatever_case() -> None:
    """No header goes out twice because it was spelled differently."""
    assert check_headers(None, DEFAULTS) == DEFAULTS
    assert check_headers({"user-agent": "me", "X-A": "ä b"}, DEFAULTS) == {
        "Accept": "application/json",
        "user-agent": "me",
        "X-A": "ä b",
    }


@pytest.mark.parametrize(
    "proxy", [5, "", "not a url", "http://", "socks5://h:1", "http://[::1", "proxy:3128"], ids=repr
)
def test_a_proxy_is_a_url(proxy: Any) -> None:
    """What is no proxy's URL is refused at once, not at the first call."""
    with pytest.raises(ConfigurationError, match="proxy"):
        AsanaSession(TOKEN, proxy=proxy)


def test_good_proxies() -> None:
    """Credentials and https are fine for a proxy."""
    assert check_proxy(None) is None
    for proxy in ("http://user:pw@proxy.example:3128", "https://proxy.example"):
        assert check_proxy(proxy) == proxy


@pytest.mark.parametrize("timeout", ["60", None, True, 0, -1, float("inf"), float("nan")], ids=repr)
def test_a_timeout_is_a_finite_number(timeout: Any) -> None:
    """No call may hang for ever."""
    with pytest.raises(ConfigurationError, match="timeout"):
        AsanaSession(TOKEN, timeout=timeout)


def test_lent_things_are_what_they_should_be() -> None:
    """A client session and an async context manager: nothing else can be used."""
    something: Any = object()
    with pytest.raises(ConfigurationError, match=r"http must be an aiohttp\.ClientSession"):
        AsanaSession(TOKEN, http=something)
    with pytest.raises(ConfigurationError, match="limiter must be"):
        AsanaSession(TOKEN, limiter=something)
    with pytest.raises(ConfigurationError, match="retry must be a RetryPolicy, not object"):
        AsanaSession(TOKEN, retry=something)
    for name in ("clock", "sleep", "random"):
        with pytest.raises(ConfigurationError, match=f"{name} must be a function"):
            RetryPolicy(**{name: something})


async def test_a_lent_session_that_does_not_unpack_is_refused() -> None:
    """It asks for gzip all the same, so no answer could be read."""
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        with pytest.raises(ConfigurationError, match="auto_decompress"):
            AsanaSession(TOKEN, http=http)


async def test_a_lent_session_with_credentials_is_refused() -> None:
    """Its own login would stand against the token."""
    with pytest.warns(DeprecationWarning, match="auth"):
        http = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "canary"))
    async with http:
        with pytest.raises(ConfigurationError, match="auth=") as caught:
            AsanaSession(TOKEN, http=http)

    assert "canary" not in str(caught.value)


def test_what_is_no_url_is_the_empty_one() -> None:
    """Neither a wrong type nor a wrong text raises."""
    assert [parse_url(value).host for value in (5, None, "http://[::1", "https://a.example")] == [None] * 3 + [
        "a.example"
    ]


def test_half_a_surrogate_pair_cannot_be_encoded() -> None:
    """Nor can what is no text."""
    assert [is_encodable(value) for value in ("", "ä", "\ud800", 5, None)] == [True, True, False, False, False]
