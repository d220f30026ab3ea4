"""Tests that let a secret out, one for each way, and some that only look like it; `test_canary` runs them."""

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from asana_webhooks import AsanaSession, MemoryStore, Receiver, Secret, wire
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhookRequest
from asana_webhooks.store.base import registration_id
from tests.helpers.canary import PACKAGE

TEXT = "a-text-that-nobody-may-see-0123456789"
NOWHERE = "http://127.0.0.1:9/api/1.0"
GET = GetWebhookRequest(webhook_gid="1")

log = logging.getLogger("asana_webhooks.leaky")


def ours(source: str, name: str = "leaky.py") -> Callable[..., Any]:
    """Return the function ``run`` of *source*, as if it stood in a file of the package."""
    defined: dict[str, Any] = {}
    exec(compile(source, str(PACKAGE / name), "exec"), defined)
    run: Callable[..., Any] = defined["run"]
    return run


FAILING = "def run(text):\n    raise ValueError('no')"
CHAINING = """
def run(text):
    try:
        raise KeyError(text)
    except KeyError{name}:
        del text
        raise ValueError('no'){how}
"""
WAITING = "async def run(waiting, text):\n    await waiting"


# Where it shows


def test_leak_message() -> None:
    Secret(TEXT)
    log.debug("got %s", TEXT)


def test_leak_argument() -> None:
    Secret(TEXT)
    log.debug("got %.3s", TEXT)


def test_leak_before_it_is_known() -> None:
    log.debug("got %s", TEXT)
    Secret(TEXT)


@pytest.fixture
def late() -> Iterator[None]:
    yield
    log.debug("got %s", TEXT)


def test_leak_in_a_fixture(late: None) -> None:
    Secret(TEXT)


def test_leak_foreign_logger() -> None:
    Secret(TEXT)
    logging.getLogger("aiohttp.client").debug(TEXT)


def test_leak_logged_exception() -> None:
    Secret(TEXT)
    try:
        ours(FAILING)(TEXT)
    except ValueError:
        log.debug("it failed", exc_info=True)


async def test_leak_task() -> None:
    Secret(TEXT)

    async def fail() -> None:
        ours(FAILING)(TEXT)

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task  # nobody asks what became of it, so the loop logs it
    gc.collect()


def test_leak_text() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no " + TEXT)


def test_leak_called() -> None:
    Secret(TEXT)
    pytest.raises(ValueError, ours(FAILING), TEXT)  # noqa: RUF061 - this way of calling it


class Opaque(Exception):  # noqa: N818 - it is no error of anybody's
    def __str__(self) -> str:
        return "no"


def test_leak_repr() -> None:
    Secret(TEXT)
    with pytest.raises(Opaque):
        raise Opaque(TEXT)


def test_leak_escaped() -> None:
    Secret(TEXT + "\n'\"")
    with pytest.raises(Opaque):
        raise Opaque(TEXT + "\n'\"")


def test_leak_note() -> None:
    Secret(TEXT)
    error = ValueError("no")
    error.add_note(TEXT)
    with pytest.raises(ValueError, match="no"):
        raise error


def test_leak_local() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(FAILING)(TEXT)


@pytest.mark.parametrize("room", ["client", "receiver", "store", "store/sqlite", "subscriptions", "wire"])
def test_leak_room(room: str) -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(FAILING, f"{room}/leaky.py")(TEXT)


def test_leak_decoder_called_by_us() -> None:
    Secret(TEXT)
    decode = ours(FAILING, "wire.py")
    with pytest.raises(ValueError, match="no"):
        ours("def run(decode, text):\n    body, text = [text], ''\n    decode(*body)")(decode, TEXT)


def test_leak_bytes() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(FAILING)([TEXT.encode()])


def test_leak_cause() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(CHAINING.format(name=" as error", how=" from error"))(TEXT)


def test_leak_context() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(CHAINING.format(name="", how=""))(TEXT)


def test_leak_group() -> None:
    Secret(TEXT)
    with pytest.raises(ExceptionGroup):
        raise ExceptionGroup("several", [ValueError("no"), KeyError(TEXT)])


async def test_leak_cancelled() -> None:
    Secret(TEXT)
    task = asyncio.create_task(ours(WAITING)(asyncio.Event().wait(), TEXT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_leak_warning() -> None:
    Secret(TEXT)
    with pytest.warns(UserWarning, match="careful"):
        warnings.warn(f"careful with {TEXT}", stacklevel=1)


async def test_leak_session() -> None:
    """Nobody catches what leaves the session but asyncio."""

    async def provide() -> str:
        Secret(TEXT)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await ours(WAITING)(asyncio.sleep(0), TEXT)
        return TEXT

    async with AsanaSession(provide, base_url=NOWHERE) as asana:
        await asyncio.gather(asana.send(GET), return_exceptions=True)


async def test_leak_receiver() -> None:
    """Nor what leaves the receiver."""
    Secret(TEXT)

    async def body() -> AsyncIterator[bytes]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel(TEXT)
        await asyncio.sleep(0)
        yield b""

    store = MemoryStore()
    await store.open(registration_id("e" * 12 + "ndpoint"), resource="1", ttl=60)
    receiving = Receiver(store).receive("e" * 12 + "ndpoint", [(b"x-hook-signature", b"0" * 64)], body())
    await asyncio.gather(receiving, return_exceptions=True)


# How it is known


async def test_leak_bearer_token() -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TEXT}"}) as http:
        await _nowhere(http.get(NOWHERE))
    log.debug(TEXT)


async def test_leak_bearer_token_of_a_request() -> None:
    async with aiohttp.ClientSession() as http:
        await _nowhere(http.get(NOWHERE, headers={"Authorization": f"Bearer {TEXT}"}))
    log.debug(TEXT)


async def test_leak_hook_secret() -> None:
    async with aiohttp.ClientSession() as http:
        await _nowhere(http.post(NOWHERE, headers={"X-Hook-Secret": TEXT}))
    log.debug(TEXT)


async def test_leak_client_secret() -> None:
    async with aiohttp.ClientSession() as http:
        await _nowhere(http.post(NOWHERE, data={"client_secret": TEXT}))
    log.debug(TEXT)


async def _nowhere(request: Awaitable[Any]) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        await request


def test_leak_target_of_a_request() -> None:
    CreateWebhookRequest(resource="1", target=f"https://example.com/asana/{TEXT}?a=b")
    log.debug(TEXT)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"data":{{"gid":"1","target":"https://example.com/{TEXT}"}}}}',
        f'{{"data":[{{"gid":"1","target":"https://example.com/{TEXT}/"}}]}}',
        f'{{"X-Hook-Secret":"{TEXT}"}}',
        f'{{"refresh_token":"{TEXT}"}}',
    ],
    ids=["target", "targets", "secret", "token"],
)
def test_leak_json(body: str) -> None:
    wire.parse(body.encode())
    log.debug(TEXT)


def test_leak_webhook() -> None:
    wire.decode_webhook(f'{{"data":{{"gid":"1","target":"https://example.com/{TEXT}"}}}}'.encode())
    log.debug(TEXT)


def test_leak_page() -> None:
    wire.decode_webhook_list(f'{{"data":[{{"gid":"1","target":"https://example.com/{TEXT}"}}]}}'.encode())
    log.debug(TEXT)


def test_leak_endpoint() -> None:
    registration_id(TEXT)
    log.debug(TEXT)


async def test_leak_endpoint_of_a_request() -> None:
    await Receiver(MemoryStore()).receive(TEXT, [], b"")
    log.debug(TEXT)


# What may be marked


@pytest.mark.reveals("to see that it may")
def test_fine_marked() -> None:
    Secret(TEXT)
    log.debug(TEXT)


@pytest.mark.reveals("but it does not")
def test_leak_none_though_marked() -> None:
    Secret(TEXT)


@pytest.mark.reveals
def test_leak_marked_without_a_reason() -> None:
    Secret(TEXT)
    log.debug(TEXT)


# What is none of the canary's business


def test_fine_hidden() -> None:
    log.debug("%s %r", Secret(TEXT), [Secret(TEXT)])
    with pytest.raises(ValueError, match="no"):
        ours(FAILING)(Secret(TEXT))


def test_fine_short() -> None:
    Secret("short")
    Secret("0" * 40)
    log.debug("short %s", "0" * 40)


def test_fine_secret_of_another_test() -> None:
    log.debug(TEXT)


def test_fine_access_log() -> None:
    Secret(TEXT)
    logging.getLogger("aiohttp.access").info(TEXT)


def test_fine_local_of_a_test() -> None:
    Secret(TEXT)
    shown = TEXT
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no" + shown[:0])


def test_fine_what_a_decoder_is_given() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(FAILING, "wire.py")(TEXT)


@pytest.mark.parametrize("program", ["testing/leaky.py", "cli/leaky.py"])
def test_fine_local_of_a_program(program: str) -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(FAILING, program)(TEXT)


def test_fine_suppressed_context() -> None:
    Secret(TEXT)
    with pytest.raises(ValueError, match="no"):
        ours(CHAINING.format(name="", how=" from None"))(TEXT)


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
    with pytest.raises(KeyError), pytest.raises(ValueError, match="no"):
        raise KeyError("no")  # passes the inner one
    with pytest.raises((KeyError, ValueError)) as caught:
        raise KeyError("no")
    assert caught.type is KeyError
    assert pytest.raises(ValueError, int, "x").type is ValueError  # noqa: RUF061 - this way of calling it
