"""The canary over the whole suite, as a pytest plugin: no test may put a secret where people look.

It learns every secret the running test makes, sends or receives, without any help of the test: what is wrapped in
`Secret`, bearer tokens, the endpoints of targets, and Asana's ``X-Hook-Secret``. And it watches where secrets turn up:
every log record, at DEBUG and of whatever logger, every warning, and every exception that a logger gets, that
`pytest.raises` catches, or that leaves `AsanaSession.send` or `Receiver.receive`. Of an exception it looks at the text,
the repr, and what error trackers collect: the repr of every local variable of this package's frames, along the whole
chain of causes. A test fails if anything is found; it is named and not shown.

``@pytest.mark.reveals("reason")`` is for the few tests that show a secret on purpose; one that shows none fails too.

The canary stands in a global, because frames of this module are in the tracebacks that tests look at.
"""

import functools
import logging
import sys
import warnings
from collections.abc import AsyncIterable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp
import pytest

from asana_webhooks import wire
from asana_webhooks.client.requests import CreateWebhookRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import PayloadError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.protocol import Headers
from asana_webhooks.receiver.receiver import Receiver, Reply
from asana_webhooks.store import base
from tests.helpers.canary import SHORTEST_ENDPOINT, Canary

_canary = Canary()
_patch = pytest.MonkeyPatch()


def pytest_configure(config: pytest.Config) -> None:
    """Begin, before any test imports what is replaced here."""
    config.addinivalue_line("markers", "reveals(reason): shows a secret on purpose")
    _learn_secrets()
    _learn_endpoints()
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


def _replace(original: Any, new: Any) -> None:
    """Put a function in the place of another in every module that has imported it."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            _patch.setattr(module, name, new)


def _learn_secrets() -> None:
    make, parse, request = Secret.__init__, wire.parse, aiohttp.ClientSession._request

    def learning_init(self: Secret, text: str) -> None:
        _canary.learn(text, "a Secret")
        make(self, text)

    @functools.wraps(parse)
    def learning_parse(body: bytes) -> Any:
        tree = parse(body)
        _canary.learn_answer(tree)
        return tree

    @functools.wraps(request)
    def learning_request(self: aiohttp.ClientSession, *args: Any, **options: Any) -> Any:
        _canary.learn_headers({**self.headers, **(options.get("headers") or {})})
        _canary.learn_form(options.get("data"))
        return request(self, *args, **options)

    _patch.setattr(Secret, "__init__", learning_init)
    _patch.setattr(aiohttp.ClientSession, "_request", learning_request)
    _replace(parse, learning_parse)
    for decode in (wire.decode_webhook, wire.decode_webhook_list):  # they do not parse
        _replace(decode, _learning_decode(decode))


def _learning_decode(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    @functools.wraps(decode)
    def learning(body: bytes) -> Any:
        with suppress(PayloadError):
            wire.parse(body)
        return decode(body)

    return learning


def _learn_endpoints() -> None:
    make, registration_id = CreateWebhookRequest.__init__, base.registration_id

    @functools.wraps(make)
    def learning_init(self: CreateWebhookRequest, *args: Any, **members: Any) -> None:
        _canary.learn_target(members.get("target"))
        make(self, *args, **members)

    @functools.wraps(registration_id)
    def learning_id(endpoint: str) -> str:
        _canary.learn(endpoint, "the endpoint of a registration", shortest=SHORTEST_ENDPOINT)
        return registration_id(endpoint)

    _patch.setattr(CreateWebhookRequest, "__init__", learning_init)
    _replace(registration_id, learning_id)


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
    raises, send, receive = pytest.raises, AsanaSession.send, Receiver.receive

    @functools.wraps(raises)
    def watched_raises(*args: Any, **options: Any) -> Any:
        caught: Any = raises(*args, **options)
        if isinstance(caught, pytest.ExceptionInfo):  # it was given a function to call
            _canary.see_exception(caught.value, "pytest.raises")
            return caught
        return _Raises(caught)

    @functools.wraps(send)
    async def watched_send(self: AsanaSession, request: Any) -> Any:
        try:
            return await send(self, request)
        except BaseException as error:
            _canary.see_exception(error, "AsanaSession.send")
            raise

    @functools.wraps(receive)
    async def watched_receive(
        self: Receiver, endpoint: str, headers: Headers, body: bytes | AsyncIterable[bytes]
    ) -> Reply:
        try:
            return await receive(self, endpoint, headers, body)
        except BaseException as error:
            _canary.see_exception(error, "Receiver.receive")
            raise

    _patch.setattr(pytest, "raises", watched_raises)
    _patch.setattr(AsanaSession, "send", watched_send)
    _patch.setattr(Receiver, "receive", watched_receive)


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
