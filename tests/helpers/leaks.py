"""Tests that let a secret out, one for each way, and some that only look like it; `test_canary` runs them.

`shows` says what the report must say of a test.
"""

import asyncio
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import aiohttp
import pytest

from asana_webhooks import AsanaSession, MemoryStore, Receiver, Secret, StoreError, wire
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhookRequest

TEXT = "a-text-that-nobody-may-see-0123456789"
TARGET = f"https://example.com/asana/{TEXT}"
NOWHERE = "http://127.0.0.1:9/api/1.0"
SHOWN: dict[str, str] = {}
"""What the report must say of each test that leaks."""

T = TypeVar("T", bound=Callable[..., Any])

log = logging.getLogger("asana_webhooks.leaky")


def shows(what: str) -> Callable[[T], T]:
    def mark(test: T) -> T:
        SHOWN[test.__name__] = what
        return test

    return mark


def fail() -> None:
    raise KeyError(TEXT)


# Where it shows


@shows("a Secret shows in: log message (asana_webhooks.leaky, DEBUG,")
def test_leak_message() -> None:
    log.debug("got %s", TEXT)
    Secret(TEXT)  # known afterwards only


@shows("a Secret shows in: log arguments (asana_webhooks.leaky, DEBUG,")
def test_leak_argument() -> None:
    Secret(TEXT)
    log.debug("got %.3s", TEXT)


@pytest.fixture
def late() -> Iterator[None]:
    yield
    logging.getLogger("aiohttp.client").debug(TEXT)


@shows("a Secret shows in: log message (aiohttp.client, DEBUG,")
def test_leak_in_a_fixture(late: None) -> None:
    Secret(TEXT)


@shows("a Secret shows in: text of logged exception (asyncio, ERROR,")
async def test_leak_task() -> None:
    Secret(TEXT)

    async def work() -> None:
        raise ValueError(TEXT)

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    del task  # nobody asks what became of it, so the loop logs it
    gc.collect()


@shows("a Secret shows in: text of pytest.raises: ValueError")
def test_leak_text() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no " + TEXT)


class Opaque(Exception):  # noqa: N818 - it is no error of anybody's
    def __str__(self) -> str:
        return "no"


@shows("a Secret shows in: repr of pytest.raises: Opaque")
def test_leak_repr() -> None:
    Secret(TEXT + "\n'\"")
    with pytest.raises(Opaque):
        raise Opaque(TEXT + "\n'\"")


@shows("a Secret shows in: notes of pytest.raises: ValueError")
def test_leak_note() -> None:
    Secret(TEXT)
    error = ValueError("no")
    error.add_note(TEXT)
    with pytest.raises(ValueError, match="no"):
        raise error


@shows("a Secret shows in: attributes of pytest.raises: StoreError")
def test_leak_attribute() -> None:
    Secret(TEXT)
    error = StoreError(problem="no")
    error.body = TEXT.encode()  # type: ignore[attr-defined]
    with pytest.raises(StoreError):
        raise error


@shows("a Secret shows in: repr of pytest.raises: KeyError")
def test_leak_cause() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no") from KeyError(TEXT)


@shows("a Secret shows in: repr of pytest.raises: KeyError")
def test_leak_context() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        try:
            fail()
        except KeyError:
            raise ValueError("no")  # noqa: B904 - that is the point


@shows("a Secret shows in: repr of pytest.raises: KeyError")
def test_leak_group() -> None:
    Secret(TEXT)
    with pytest.raises(ExceptionGroup):
        raise ExceptionGroup("several", [ValueError("no"), KeyError(TEXT)])


@shows("a Secret shows in: warning")
def test_leak_warning() -> None:
    Secret(TEXT)
    with pytest.warns(UserWarning, match="careful"):
        warnings.warn(f"careful with {TEXT}", stacklevel=1)


@shows("a Secret shows in: text of AsanaSession.send: StoreError")
async def test_leak_session() -> None:

    async def provide() -> str:
        Secret(TEXT)
        raise StoreError(problem=TEXT)

    async with AsanaSession(provide, base_url=NOWHERE) as asana:
        await asyncio.gather(asana.send(GetWebhookRequest(webhook_gid="1")), return_exceptions=True)


# How it is known


@shows(" shows in: log message")
@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {TEXT}"}, {"X-Hook-Secret": TEXT}])
@pytest.mark.parametrize("of_session", [True, False])
async def test_leak_header(headers: dict[str, str], *, of_session: bool) -> None:
    async with aiohttp.ClientSession(headers=headers if of_session else None) as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.post(NOWHERE, headers=None if of_session else headers)
    log.debug(TEXT)


@shows("a client_secret shows in")
async def test_leak_client_secret() -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.post(NOWHERE, data={"client_secret": TEXT})
    log.debug(TEXT)


@shows("the endpoint of a target shows in")
def test_leak_target_of_a_request() -> None:
    CreateWebhookRequest(resource="1", target=f"{TARGET}?a=b")
    log.debug(TEXT)


@shows("shows in: log message")
@pytest.mark.parametrize(
    "body",
    [
        f'{{"data":{{"gid":"1","target":"{TARGET}"}}}}',
        f'{{"data":[{{"gid":"1","target":"{TARGET}/"}}]}}',
        f'{{"X-Hook-Secret":"{TEXT}","data":{{"gid":"1"}}}}',
        f'{{"refresh_token":"{TEXT}"}}',
    ],
    ids=["target", "targets", "secret", "token"],
)
def test_leak_json(body: str) -> None:
    wire.parse(body.encode())
    log.debug(TEXT)


@shows("the endpoint of a target shows in")
def test_leak_webhook() -> None:
    webhook = wire.decode_webhook(f'{{"data":{{"gid":"1","target":"{TARGET}"}}}}'.encode())
    log.debug(webhook.target)


@shows("the endpoint of a target shows in")
def test_leak_page() -> None:
    page = wire.decode_webhook_list(f'{{"data":[{{"gid":"1","target":"{TARGET}"}}]}}'.encode())
    log.debug(page.data[0].target)


@shows("the endpoint of a registration shows in")
async def test_leak_endpoint_of_a_request() -> None:
    await Receiver(MemoryStore()).receive(TEXT, [], b"")
    log.debug(TEXT)


# What may be marked


@pytest.mark.reveals("to see that it may")
def test_fine_marked() -> None:
    Secret(TEXT)
    log.debug(TEXT)


@shows("must say why, and must reveal something")
@pytest.mark.reveals("but it does not")
def test_leak_none_though_marked() -> None:
    Secret(TEXT)


@shows("must say why, and must reveal something")
@pytest.mark.reveals
def test_leak_marked_without_a_reason() -> None:
    Secret(TEXT)
    log.debug(TEXT)


# What is none of the canary's business


def test_fine_hidden() -> None:
    log.debug("%s %r", Secret(TEXT), [Secret(TEXT)])


def test_fine_short() -> None:
    Secret("short")
    Secret("0" * 40)
    log.debug("short %s", "0" * 40)


def test_fine_secret_of_another_test() -> None:
    log.debug(TEXT)


def test_fine_access_log() -> None:
    Secret(TEXT)
    logging.getLogger("aiohttp.access").info(TEXT)


def test_fine_suppressed_context() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        try:
            fail()
        except KeyError:
            raise ValueError("no") from None


def test_fine_what_caplog_gets(caplog: pytest.LogCaptureFixture) -> None:
    log.debug("hidden")
    log.warning("shown %d", 1)
    with caplog.at_level(logging.DEBUG, logger=log.name):
        log.debug("shown %d", 2)

    assert caplog.messages == ["shown 1", "shown 2"]


def test_fine_what_raises_does() -> None:
    with pytest.raises(AssertionError, match="did not match"), pytest.raises(ValueError, match="yes"):
        raise ValueError("no")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), pytest.raises(ValueError):  # noqa: PT011
        pass
    with pytest.raises((KeyError, ValueError)) as caught, pytest.raises(ValueError, match="no"):
        raise KeyError("no")  # passes the inner one
    assert caught.type is KeyError
