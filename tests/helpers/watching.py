"""The canary over the whole suite, as a pytest plugin: no test may put a secret where people look.

It learns every secret the running test makes, sends or receives, without any help of the test: what is wrapped in
`Secret`, bearer tokens, the endpoints of targets, and Asana's ``X-Hook-Secret``. And it watches where secrets turn up:
every log record, at DEBUG and of whatever logger, every warning, and every exception that a logger gets, that
`pytest.raises` catches, or that leaves `AsanaSession.send`. Of an exception it looks at the text, the repr, the notes
and what our own carry, along the whole chain of causes, where none of aiohttp may be. A test fails if anything is
found; it is named and not shown.

``@pytest.mark.reveals("reason")`` is for the few tests that show a secret on purpose; one that shows none fails too.

This file is not named after the canary, because its own frames are in tracebacks in which tests look for that word.
"""

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp
import pytest
from attrs import define, field

from asana_webhooks import wire
from asana_webhooks.client.requests import CreateWebhookRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, PayloadError
from asana_webhooks.models import Secret
from asana_webhooks.store import base

ACCESS_LOGS = {"aiohttp.access", "uvicorn.access"}
"""They print paths because somebody asked them to."""
SHORTEST = 12
"""Characters. What is shorter turns up by chance, and so does what has fewer than four different ones."""
SHORTEST_ENDPOINT = 16
FOREIGN = {"aiohttp", "msgspec", "cattrs"}
"""Packages whose exceptions must not hang on ours, for they quote what they like."""
CARRIED = {"target", "offset"}
"""Attributes of our errors that hold what texts and reprs hide, because that is what they are for."""
_AT_ONCE = 16 * 1024 * 1024
"""Characters to keep before they are looked through."""


@define(eq=False, repr=False)
class Canary:
    """What is secret, and what was seen. Its repr shows none of it."""

    lasting: dict[str, str] = field(factory=dict)
    """Secrets that were made before any test began, and where each came from."""
    secrets: dict[str, str] = field(factory=dict)
    """Those of the running test, the lasting ones among them."""
    watching: bool = False
    _seen: dict[tuple[str, str], None] = field(factory=dict)
    """Texts with where they were, each once."""
    _size: int = 0
    _found: dict[str, None] = field(factory=dict)

    def begin(self) -> None:
        """Begin a test."""
        self.secrets = dict(self.lasting)
        self._seen, self._size, self._found, self.watching = {}, 0, {}, True

    def end(self) -> list[str]:
        """End it; return what was found, one line for each place."""
        self.watching = False
        self._search()
        return list(self._found)

    # What is secret

    def learn(self, text: object, source: str, *, shortest: int = SHORTEST) -> None:
        if isinstance(text, str) and len(text) >= shortest and len(set(text)) >= 4:
            (self.secrets if self.watching else self.lasting).setdefault(text, source)

    def learn_target(self, target: object) -> None:
        if isinstance(target, str):
            endpoint = target.partition("?")[0].rstrip("/").rpartition("/")[2]
            self.learn(endpoint, "the endpoint of a target", shortest=SHORTEST_ENDPOINT)

    def learn_request(self, headers: Mapping[str, str], form: object) -> None:
        for name, value in headers.items():
            scheme, _, token = str(value).partition(" ")
            if name.lower() == "authorization" and scheme.lower() == "bearer":
                self.learn(token, "a bearer token")
            if name.lower() == "x-hook-secret":
                self.learn(value, "an X-Hook-Secret")
        for name in ("client_secret", "refresh_token"):
            self.learn(form.get(name) if isinstance(form, Mapping) else None, f"a {name}")

    def learn_answer(self, tree: object) -> None:
        if not isinstance(tree, dict):
            return
        for name in ("X-Hook-Secret", "access_token", "refresh_token"):
            self.learn(tree.get(name), f"an {name} in JSON")
        data = tree.get("data")
        for one in data if isinstance(data, list) else [data]:
            self.learn_target(one.get("target") if isinstance(one, dict) else None)

    # Where people look

    def see(self, text: str, where: str) -> None:
        if self.watching and (text, where) not in self._seen:
            self._seen[text, where] = None
            self._size += len(text)
            if self._size > _AT_ONCE:
                self._search()

    def see_record(self, record: logging.LogRecord) -> None:
        """Look at a log record, whether anybody would print it or not."""
        if not self.watching or record.name in ACCESS_LOGS:
            return
        where = f"({record.name}, {record.levelname}, {record.pathname}:{record.lineno})"
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # logging complains about those itself
            message = str(record.msg)
        self.see(message, f"log message {where}")
        self.see(_shown(record.args), f"log arguments {where}")
        if record.exc_info and record.exc_info[1] is not None:
            self.see_exception(record.exc_info[1], f"logged exception {where}")

    def see_exception(self, error: BaseException, where: str) -> None:
        """Look at an exception and at all that hangs on it."""
        if not self.watching:
            return
        for one in _chain(error):
            if isinstance(error, AsanaError) and type(one).__module__.partition(".")[0] in FOREIGN:
                self._found[f"{type(one).__name__} is chained to {type(error).__name__}"] = None
            what = f"{where}: {type(one).__name__}"
            self.see(_shown(one, str), f"text of {what}")
            self.see(_shown(one), f"repr of {what}")
            self.see("\n".join(getattr(one, "__notes__", ())), f"notes of {what}")
            if isinstance(one, AsanaError):
                carried = {name: value for name, value in vars(one).items() if name not in CARRIED}
                self.see(_shown(carried), f"attributes of {what}")

    def _search(self) -> None:
        """Look for every secret in what was seen, and forget that."""
        everything = "\0".join(text for text, _ in self._seen)
        for secret, source in self.secrets.items():
            for form in {secret, repr(secret)[1:-1]}:
                if form in everything:
                    places = (where for text, where in self._seen if form in text)
                    self._found |= dict.fromkeys(f"{source} shows in: {where}" for where in places)
        self._seen, self._size = {}, 0


def _shown(value: object, show: Callable[[object], str] = repr) -> str:
    try:
        return show(value)
    except Exception as error:  # noqa: BLE001 - some objects of tests cannot be shown at all
        return f"<{type(error).__name__}>"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts as far as Python prints them, and the members of groups."""
    waiting, known = [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        yield one
        context = None if one.__suppress_context__ else one.__context__
        waiting += [other for other in (one.__cause__, context) if other is not None]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()


# The plugin

_canary = Canary()
_patch = pytest.MonkeyPatch()


def pytest_configure(config: pytest.Config) -> None:
    """Begin, before any test imports what is replaced here."""
    config.addinivalue_line("markers", "reveals(reason): shows a secret on purpose")
    _learn_secrets()
    _watch_logs_and_warnings()
    _watch_exceptions()


def pytest_unconfigure() -> None:
    """Put everything back."""
    _patch.undo()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """Watch from before the first fixture."""
    _canary.begin()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test if anything was found until after the last fixture."""
    try:
        result = yield
    finally:
        found = _canary.end()
    mark = item.get_closest_marker("reveals")
    if mark is not None and not (found and mark.args and mark.args[0]):
        pytest.fail("a test marked 'reveals' must say why, and must reveal something", pytrace=False)
    if mark is None and found:
        pytest.fail("\n".join(["secrets show", *found[:20]]), pytrace=False)
    return result


def _before(place: Any, name: str, look: Callable[..., None]) -> None:
    """Have *look* called with the arguments of a function before the function is, wherever it has been imported."""
    original = getattr(place, name)

    @functools.wraps(original)
    def watched(*args: Any, **options: Any) -> Any:
        look(*args, **options)
        return original(*args, **options)

    _patch.setattr(place, name, watched)
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            _patch.setattr(module, name, watched)


def _learn_secrets() -> None:
    parse = wire.parse

    def learn_request(http: aiohttp.ClientSession, *_: Any, headers: Any = None, data: Any = None, **__: Any) -> None:
        _canary.learn_request({**http.headers, **(headers or {})}, data)

    def learn_json(body: bytes) -> None:
        with suppress(PayloadError):
            _canary.learn_answer(parse(body))

    def learn_endpoint(endpoint: str) -> None:
        _canary.learn(endpoint, "the endpoint of a registration", shortest=SHORTEST_ENDPOINT)

    _before(Secret, "__init__", lambda _, text: _canary.learn(text, "a Secret"))
    _before(aiohttp.ClientSession, "_request", learn_request)
    _before(CreateWebhookRequest, "__init__", lambda *_, target=None, **__: _canary.learn_target(target))
    _before(base, "registration_id", learn_endpoint)
    for name in ("parse", "decode_webhook", "decode_webhook_list"):
        _before(wire, name, learn_json)


def _watch_logs_and_warnings() -> None:
    is_enabled, handle, warn = logging.Logger.isEnabledFor, logging.Logger.handle, warnings.warn

    def always_enabled(self: logging.Logger, level: int) -> bool:
        return _canary.watching or is_enabled(self, level)

    def watched_handle(self: logging.Logger, record: logging.LogRecord) -> None:
        _canary.see_record(record)
        if is_enabled(self, record.levelno):  # the handlers, caplog's too, get what they would have got
            handle(self, record)

    @functools.wraps(warn)
    def watched_warn(message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **more: Any) -> None:
        _canary.see(f"{message!s} {source!r}", f"warning ({category or type(message)})")
        warn(message, category, stacklevel + 1, source, **more)

    _patch.setattr(logging.Logger, "isEnabledFor", always_enabled)
    _patch.setattr(logging.Logger, "handle", watched_handle)
    _patch.setattr(warnings, "warn", watched_warn)


def _watch_exceptions() -> None:
    raises, send = pytest.raises, AsanaSession.send

    @functools.wraps(raises)
    def watched_raises(*args: Any, **options: Any) -> Any:
        return _Raises(raises(*args, **options))

    @functools.wraps(send)
    async def watched_send(self: AsanaSession, request: Any, **options: Any) -> Any:
        try:
            return await send(self, request, **options)
        except BaseException as error:
            _canary.see_exception(error, "AsanaSession.send")
            raise

    _patch.setattr(pytest, "raises", watched_raises)
    _patch.setattr(AsanaSession, "send", watched_send)


class _Raises:
    """What `pytest.raises` returns, with a look at what it catches."""

    def __init__(self, raises: Any) -> None:
        self._raises = raises

    def __enter__(self) -> Any:
        return self._raises.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        if error is not None:
            _canary.see_exception(error, "pytest.raises")
        return self._raises.__exit__(kind, error, trace)
