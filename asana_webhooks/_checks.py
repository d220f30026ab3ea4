"""Checks of what people give us, the same everywhere: numbers, URLs, headers, proxies."""

import re
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from yarl import URL

from asana_webhooks.errors import ConfigurationError

__all__ = ["check_count", "check_headers", "check_proxy", "check_seconds", "check_url", "is_encodable", "parse_url"]

_OURS: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "upgrade",
    }
)


def check_seconds(name: str, value: Any, *, zero: bool = True) -> float:
    """Return *value* if it is a finite number of seconds and not negative.

    Args:
        name: what it is called, for the error.
        value: what was given.
        zero: whether 0 is fine too.

    Raises:
        ConfigurationError: it is anything else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
        bound = "0 or more" if zero else "above 0"
        raise ConfigurationError(f"{name} must be a finite number of seconds, {bound}, not {value!r:.80}")
    return float(value)


def check_count(name: str, value: Any, *, zero: bool = False) -> int:
    """Return *value* if it is a whole number of at least 1.

    Args:
        name: what it is called, for the error.
        value: what was given.
        zero: whether 0 is fine too.

    Raises:
        ConfigurationError: it is anything else.
    """
    least = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    return value


def parse_url(value: Any) -> URL:
    """Return *value* as a URL, and what is none as the empty URL, which has neither scheme nor host."""
    try:
        return URL(value)
    except (TypeError, ValueError):
        return URL()


def is_encodable(text: object) -> bool:
    """Tell whether *text* is a text that UTF-8 can write: half a surrogate pair is not."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def check_url(name: str, text: object, *, example: str) -> str:
    """Return *text* if a token can be sent there safely.

    Args:
        name: what it is called, for the error.
        text: what was given.
        example: a good one, for the error.

    Raises:
        ConfigurationError: it is no https URL (or http to loopback) of a scheme, a host and a path alone.
    """
    url = parse_url(text)
    # Some letters are dropped when a URL is read, others decoded, and what is left may be another host than one sees.
    is_plain = isinstance(text, str) and text.isprintable() and " " not in text and "%" not in _authority(text)
    if not is_plain or not url.host or url.port == 0 or url.query_string or url.fragment or "@" in str(text):
        raise ConfigurationError(f"{name} must look like {example}: a scheme, a host and a path, no more")
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
        raise ConfigurationError(f"{name} must be https, or the token could be read on the way (http: loopback only)")
    return str(url)


def _authority(url: str) -> str:
    return url.partition("//")[2].partition("/")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_headers(headers: object, defaults: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* with those of *defaults* that they do not name themselves, in whatever case.

    Raises:
        ConfigurationError: they are no mapping of names to values that HTTP can carry, or name what only we can know.
    """
    if headers is None:
        return dict(defaults)
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers must be a mapping of names to values, not {type(headers).__name__}")
    for name, value in headers.items():
        # RFC 9110, 5.6.2: what a header's name is made of
        if not isinstance(name, str) or not re.fullmatch(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+", name):
            raise ConfigurationError(f"the names of headers must be texts such as 'Asana-Enable', not {name!r:.80}")
        if name.lower() in _OURS:
            raise ConfigurationError(f"the header {name} is set by itself where it is needed; the token goes in token=")
        # The value is not shown: it may be a credential.
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigurationError(f"the header {name} must be a text without line breaks or control characters")
    if len({name.lower() for name in headers}) < len(headers):
        raise ConfigurationError("headers names one header twice")
    given = {name.lower() for name in headers}
    return {name: value for name, value in defaults.items() if name.lower() not in given} | dict(headers)


def check_proxy(proxy: object) -> str | None:
    """Return *proxy* if it is ``None`` or the URL of a proxy.

    Raises:
        ConfigurationError: it is anything else.
    """
    if proxy is None:
        return None
    url = parse_url(proxy)
    # What is wrong is not shown: it may hold a password.
    if not isinstance(proxy, str) or url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError("proxy must be the URL of an HTTP proxy, such as http://proxy.example:3128")
    if ":" in (url.user or "") or not re.fullmatch(r"[ -~\xa0-\xff]*", f"{url.user}{url.password}"):
        raise ConfigurationError("the proxy's user must have no colon, and user and password Latin-1 letters only")
    return proxy
