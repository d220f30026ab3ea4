"""Tests that let a secret out, one for each way, and some that only look like it; `test_canary` runs them.

The id of a test that leaks is what the report must say of it.
"""

import asyncio
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from asana_webhooks import AsanaSession, MemoryStore, Receiver, Secret, StoreError, wire
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhookRequest

TEXT = "a-text-that-nobody-may-see-0123456789"
TARGET = f"https://example.com/asana/{TEXT}"
ANOTHER = "another-text-that-nobody-may-see"
NOWHERE = "http://127.0.0.1:9/api/1.0"

log = logging.getLogger("asana_webhooks.leaky")


def catch(error: BaseException) -> None:
    with pytest.raises(type(error)):
        raise error


class Opaque(Exception):  # noqa: N818 - it is no error of anybody's
    def __str__(self) -> str:
        return "no"


def escaped() -> None:
    Secret(TEXT + "\n'\"")
    catch(Opaque(TEXT + "\n'\""))


def noted() -> None:
    error = ValueError("no")
    error.add_note(TEXT)
    catch(error)


def carried() -> None:
    error = StoreError(problem="no")
    error.body = TEXT.encode()  # type: ignore[attr-defined]
    catch(error)


def caused() -> None:
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no") from KeyError(TEXT)


def fail() -> None:
    raise KeyError(TEXT)


def chained() -> None:
    with pytest.raises(StoreError):
        raise StoreError(problem="no") from aiohttp.ClientError("no")


def in_context() -> None:
    with pytest.raises(ValueError, match="no"):
        try:
            fail()
        except KeyError:
            raise ValueError("no")  # noqa: B904 - that is the point


def warned() -> None:
    with pytest.warns(UserWarning, match="careful"):
        warnings.warn(f"careful with {TEXT}", stacklevel=1)


SHOWN: dict[str, Callable[[], object]] = {
    "shows in: log message (asana_webhooks.leaky, DEBUG,": lambda: log.debug("got %s", TEXT),
    "shows in: log arguments (asana_webhooks.leaky, DEBUG,": lambda: log.debug("got %.3s", TEXT),
    "shows in: log message (aiohttp.client, DEBUG,": lambda: logging.getLogger("aiohttp.client").debug(TEXT),
    "shows in: text of pytest.raises: ValueError": lambda: catch(ValueError("no " + TEXT)),
    "shows in: repr of pytest.raises: Opaque": escaped,
    "shows in: notes of pytest.raises: ValueError": noted,
    "shows in: attributes of pytest.raises: StoreError": carried,
    "shows in: repr of pytest.raises: KeyError": caused,
    "shows in: text of pytest.raises: KeyError": in_context,
    "shows in: text of pytest.raises: LookupError": lambda: catch(ExceptionGroup("no", [LookupError(TEXT)])),
    "shows in: warning": warned,
    "ClientError is chained to StoreError": chained,
}


@pytest.mark.parametrize("how", SHOWN)
def test_leak_shown(how: str) -> None:
    SHOWN[how]()
    Secret(TEXT)  # known afterwards only


@pytest.fixture
def late() -> Iterator[None]:
    yield
    log.debug(TEXT)


@pytest.mark.parametrize("how", ["shows in: log message"])
def test_leak_in_a_fixture(how: str, late: None) -> None:
    Secret(TEXT)


@pytest.mark.parametrize("how", ["shows in: text of logged exception (asyncio, ERROR,"])
async def test_leak_in_a_task(how: str) -> None:
    async def work() -> None:
        raise ValueError(Secret(TEXT).reveal())

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    del task  # nobody asks what became of it, so the loop logs it
    gc.collect()


@pytest.mark.parametrize("how", ["shows in: text of AsanaSession.send: StoreError"])
async def test_leak_from_the_session(how: str) -> None:
    async def provide() -> str:
        raise StoreError(problem=Secret(TEXT).reveal())

    async with AsanaSession(provide, base_url=NOWHERE) as asana:
        await asyncio.gather(asana.send(GetWebhookRequest(webhook_gid="1")), return_exceptions=True)


async def post(*, of_session: Any = None, **options: Any) -> None:
    async with aiohttp.ClientSession(headers=of_session) as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.post(NOWHERE, **options)


def parsed(body: str) -> Any:
    return lambda: wire.parse(body.encode())


WEBHOOK = f'{{"gid":"1","target":"{TARGET}"}}'
KNOWN: dict[str, Callable[[], Any]] = {
    "a bearer token shows in: log message": lambda: post(headers={"Authorization": f"Bearer {TEXT}"}),
    "a bearer token shows in: log": lambda: post(of_session={"Authorization": f"Bearer {TEXT}"}),
    "an X-Hook-Secret shows in: log message": lambda: post(headers={"X-Hook-Secret": TEXT}),
    "a client_secret shows in: log message": lambda: post(data={"client_secret": TEXT}),
    "an X-Hook-Secret in JSON shows in: log message": parsed(f'{{"X-Hook-Secret":"{TEXT}"}}'),
    "an refresh_token in JSON shows in: log message": parsed(f'{{"refresh_token":"{TEXT}"}}'),
    "the endpoint of a target shows in: log message": parsed(f'{{"data":{WEBHOOK}}}'),
    "the endpoint of a target shows in: log": parsed(f'{{"data":[{WEBHOOK}]}}'),
    "endpoint of a target shows in: log message": lambda: wire.decode_webhook(f'{{"data":{WEBHOOK}}}'.encode()),
    "endpoint of a target shows in: log": lambda: wire.decode_webhook_list(f'{{"data":[{WEBHOOK}]}}'.encode()),
    "endpoint of a target shows": lambda: CreateWebhookRequest(resource="1", target=f"{TARGET}/?a=b"),
    "the endpoint of a registration shows in: log message": lambda: Receiver(MemoryStore()).receive(TEXT, [], b""),
}


@pytest.mark.parametrize("how", KNOWN)
async def test_leak_known(how: str) -> None:
    made = KNOWN[how]()
    if asyncio.iscoroutine(made):
        await made
    log.debug(TEXT)


@pytest.mark.reveals("but it does not")
@pytest.mark.parametrize("how", ["must say why, and must reveal something"])
def test_leak_none_though_marked(how: str) -> None:
    Secret(TEXT)


@pytest.mark.reveals
@pytest.mark.parametrize("how", ["must say why, and must reveal something"])
def test_leak_marked_without_a_reason(how: str) -> None:
    Secret(TEXT)
    log.debug(TEXT)


# What is none of the canary's business


@pytest.mark.reveals("to see that it may")
def test_fine_marked() -> None:
    Secret(TEXT)
    log.debug(TEXT)


def test_fine_hidden_or_short() -> None:
    Secret("short")
    Secret("0" * 40)
    log.debug("%s %r short %s", Secret(TEXT), [Secret(TEXT)], "0" * 40)


def test_fine_secret_of_another_test_or_access_log() -> None:
    log.debug(TEXT)
    Secret(ANOTHER)
    logging.getLogger("aiohttp.access").info(ANOTHER)


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
