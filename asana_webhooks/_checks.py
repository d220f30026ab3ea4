"""Checks of arguments, shared by all modules: numbers, URLs, headers, proxies, stores, handlers."""

import functools
import inspect
import re
import sys
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from yarl import URL

from asana_webhooks.errors import ConfigurationError, UnusableHandlerError

__all__ = [
    "check_awaitable",
    "check_count",
    "check_handler",
    "check_headers",
    "check_proxy",
    "check_reachable",
    "check_seconds",
    "check_session_and_store",
    "check_store",
    "check_url",
    "is_encodable",
    "is_store",
    "kind_of",
    "parse_url",
]

_RESERVED: Final = frozenset(
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
    """Return *value* as a float if it is a finite, non-negative number of seconds.

    Args:
        name: the argument's name, for the error.
        value: the value to check.
        zero: whether 0 is allowed.

    Raises:
        ConfigurationError: *value* is anything else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
        bound = "0 or more" if zero else "above 0"
        raise ConfigurationError(f"{name} must be a finite number of seconds, {bound}, not {value!r:.80}")
    return float(value)


def check_count(name: str, value: Any, *, zero: bool = False) -> int:
    """Return *value* if it is a whole number of at least 1.

    Args:
        name: the argument's name, for the error.
        value: the value to check.
        zero: whether 0 is allowed too.

    Raises:
        ConfigurationError: *value* is anything else.
    """
    least = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    return value


def parse_url(value: Any) -> URL:
    """Return *value* as a URL; if it is invalid or has no host, the empty URL."""
    try:
        url = URL(value)
        return url if url.host else URL()  # ValueError: an IDNA host that cannot be decoded
    except (TypeError, ValueError):
        return URL()


def is_encodable(text: object) -> bool:
    """Return whether *text* is a string that UTF-8 can encode; a lone surrogate is not."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def check_url(name: str, text: object, *, example: str) -> str:
    """Return *text* if it is a URL to which a token can be sent safely.

    Args:
        name: the argument's name, for the error.
        text: the value to check.
        example: a valid URL, for the error.

    Raises:
        ConfigurationError: *text* is not https (http: loopback only), or has more than a scheme, host, port and path.
    """
    url = parse_url(text)
    # Parsing drops some characters and decodes others, so the parsed host may differ from the one a reader sees.
    is_plain = isinstance(text, str) and text.isprintable() and " " not in text and "%" not in _authority(text)
    if not is_plain or not url.host or url.port == 0 or url.query_string or url.fragment or "@" in str(text):
        raise ConfigurationError(f"{name} must look like {example}: only a scheme, host, port and path")
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
        raise ConfigurationError(f"{name} must be https, because http exposes the token (http: loopback only)")
    return str(url)


def _authority(url: str) -> str:
    return url.partition("//")[2].partition("/")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_this_machine(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def check_reachable(name: str, url: str, *, base_url: str) -> None:
    """Check that *url* is not on this machine, unless *base_url* is, too, as a fake of Asana is.

    Args:
        name: the argument's name, for the error.
        url: the URL to check.
        base_url: the base URL of the session.

    Raises:
        ConfigurationError: Asana cannot reach *url*.
    """
    if _is_this_machine(parse_url(url).host or "") and not _is_this_machine(parse_url(base_url).host or ""):
        raise ConfigurationError(
            f"{name} is on localhost, which Asana cannot reach; start a tunnel, such as cloudflared or ngrok, and use "
            "its https URL"
        )


def check_headers(headers: object, defaults: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* plus the *defaults* they do not replace; names match in any case.

    Raises:
        ConfigurationError: *headers* is not a mapping of valid names and values, or sets a reserved header.
    """
    if headers is None:
        return dict(defaults)
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers must be a mapping of names to values, not {type(headers).__name__}")
    for name, value in headers.items():
        # The characters of a header name: RFC 9110, 5.6.2
        if not isinstance(name, str) or not re.fullmatch(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+", name):
            raise ConfigurationError(f"header names must be strings such as 'Asana-Enable', not {name!r:.80}")
        if name.lower() in _RESERVED:
            raise ConfigurationError(f"the session sets the header {name} itself; pass the token as token=")
        # The value is not shown: it may be a credential.
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigurationError(f"the header {name} must be a string without line breaks or control characters")
    if len({name.lower() for name in headers}) < len(headers):
        raise ConfigurationError("headers has the same name twice, in different case")
    given = {name.lower() for name in headers}
    return {name: value for name, value in defaults.items() if name.lower() not in given} | dict(headers)


def check_proxy(proxy: object) -> str | None:
    """Return *proxy* if it is ``None`` or the URL of a proxy.

    Raises:
        ConfigurationError: *proxy* is anything else.
    """
    if proxy is None:
        return None
    url = parse_url(proxy)
    # The value is not shown: it may contain a password.
    if not isinstance(proxy, str) or url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError("proxy must be the URL of an HTTP proxy, such as http://proxy.example:3128")
    if ":" in (url.user or "") or not re.fullmatch(r"[ -~\xa0-\xff]*", f"{url.user}{url.password}"):
        raise ConfigurationError("the proxy's user must have no colon, and user and password must be printable Latin-1")
    return proxy


def is_store(value: object) -> bool:
    """Return whether *value* looks like a `Store`: an object, not a class, with methods that only a store has."""
    methods = (getattr(value, name, None) for name in ("claim", "release"))
    return not isinstance(value, type) and all(map(callable, methods))


def check_store(store: object) -> None:
    """Check that *store* looks like a `Store`.

    Raises:
        ConfigurationError: *store* is anything else, such as a path or a URL; the message says what to pass.
    """
    if is_store(store):
        return
    if isinstance(store, str) or hasattr(type(store), "__fspath__"):
        advice = "open_store(url) or SQLiteStore(path)"
    else:
        advice = f'{"an instance" if isinstance(store, type) else "one"}, such as open_store("sqlite:///asana.db")'
    # The value is not shown: it may be a URL with a password.
    raise ConfigurationError(f"store must be a store, not {kind_of(store)}: pass {advice}")


def check_session_and_store(asana: object, store: object) -> None:
    """Check the two arguments that are easily swapped.

    Raises:
        ConfigurationError: *asana* is a store, or *store* is anything but a `Store`.
    """
    if is_store(asana):
        raise ConfigurationError("asana must be an AsanaSession, not a store: pass the session first, then the store")
    check_store(store)


def check_handler(name: str, handle: Any, *parameters: str) -> None:
    """Check that *handle* can be called with *parameters* and may return an awaitable.

    A lambda, a decorated coroutine function, and a callable that is not written in Python pass. Only a call shows
    whether their result can be awaited.

    Args:
        name: the argument's name, for the error.
        handle: the value to check.
        *parameters: the names of its positional arguments, for the error.

    Raises:
        ConfigurationError: *handle* is anything else; the message says how to correct it.
    """
    names = ", ".join(parameters)
    wanted = f"async def {name}({names})"
    if not callable(handle):
        raise ConfigurationError(f"{name} must be a coroutine function, {wanted}, not {kind_of(handle)}")
    if isinstance(handle, type):
        raise ConfigurationError(
            f"{name} is {kind_of(handle)}: pass an instance of it with {wanted.replace(name, '__call__')}"
        )
    function = _function_of(handle)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{name} contains yield, so calling it runs nothing: make it a plain {wanted}")
    is_async = inspect.iscoroutinefunction(handle) or inspect.iscoroutinefunction(function)
    if inspect.isfunction(function) and not is_async and function.__name__ != "<lambda>":
        call = f"lambda {names}: f({names})" if names else "lambda: f()"
        raise ConfigurationError(f"{name} is not async: make it {wanted}; if f returns an awaitable, pass {call}")
    try:
        signature = inspect.signature(handle, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # not written in Python
    try:
        signature.bind(*parameters)
    except TypeError as error:
        given = f"{len(parameters)} positional argument{'s' * (len(parameters) != 1)}"
        raise ConfigurationError(f"{name} must take {given}, {wanted}: {error}") from None


def check_awaitable(result: object) -> Awaitable[object]:
    """Return *result*, which a handler has returned, if it can be awaited.

    Raises:
        UnusableHandlerError: it cannot.
    """
    if not inspect.isawaitable(result):
        raise UnusableHandlerError(
            f"the handler returned {type(result).__name__}, which cannot be awaited: make it `async def`; "
            "a lambda must return what the coroutine function returns"
        )
    return result


def _function_of(handle: Any) -> Any:
    """Return the function that a call of *handle* runs, inside partials, objects, methods and decorators."""
    while isinstance(handle, functools.partial):
        handle = handle.func
    if not inspect.isroutine(handle) and not hasattr(handle, "__wrapped__"):
        handle = type(handle).__call__
    with suppress(ValueError):  # an object that has any attribute also has __wrapped__, without end
        handle = inspect.unwrap(handle)
    return getattr(handle, "__func__", handle)


def kind_of(value: object) -> str:
    """Return how an error names a value that must not be shown itself: by its type."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
