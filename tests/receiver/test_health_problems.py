"""The health check of a real receiver over a real file: it says what the next delivery meets, in the log's words."""

import asyncio
import json
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from asana_webhooks import MemoryStore, Receiver, Reply, SQLiteStore, Store, StoreUnavailableError, sign_body
from asana_webhooks.store.base import NewDelivery, PutResult
from asana_webhooks.store.secret_box import FernetBox
from tests.helpers.cancelling import pass_turns
from tests.helpers.receiving import locked
from tests.helpers.stores import ENDPOINT, SECRET, body, deliver, event, register
from tests.receiver.broken import DONE, Scene, backed_up, log_of, scene, told
from tests.store.sqlite_help import in_writer, new

KEY, OTHER_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()


class Down(FernetBox):
    """A box whose key service does not answer."""

    def open(self, sealed: bytes, key_id: str) -> Any:
        raise TimeoutError


@contextmanager
def holding_the_lock(here: Scene) -> Iterator[None]:
    with locked(here.path):
        yield


@contextmanager
def no_log(here: Scene) -> Iterator[None]:
    log_of(here.path).unlink()
    yield


@contextmanager
def moved_away(here: Scene) -> Iterator[None]:
    here.path.rename(here.path.with_name("aside.db"))
    yield


@contextmanager
def replaced(here: Scene) -> Iterator[None]:
    here.path.rename(here.path.with_name("aside.db"))
    here.path.touch()
    yield


@contextmanager
def damaged(here: Scene) -> Iterator[None]:
    size = len(backed_up(here.path))
    with here.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    yield


@contextmanager
def no_growth(here: Scene) -> Iterator[None]:
    """Let no file of this process grow beyond the size of the log."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_of(here.path).stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def full(here: Scene) -> Iterator[None]:
    """Let the writing thread hang, and fill the queue before it."""
    go = threading.Event()
    hanging = in_writer(here.store, lambda _: go.wait(20))
    waiting = [asyncio.ensure_future(here.store.put(new(number))) for number in range(2)]
    try:
        yield
    finally:
        go.set()
        hanging.cancel()
        for one in waiting:
            one.cancel()


@contextmanager
def nothing(_: Scene) -> Iterator[None]:
    yield


SITUATIONS: dict[str, tuple[Callable[[Scene], AbstractContextManager[None]], dict[str, Any], str]] = {
    "locked": (holding_the_lock, {}, "another connection locks the database"),
    "log deleted": (no_log, {}, "write-ahead log was deleted. Shut this process down cleanly"),
    "deleted": (moved_away, {}, "the database file was deleted. Put this file back"),
    "replaced": (replaced, {}, "the database file was replaced by another. Restart"),
    "damaged": (damaged, {}, "the database file is damaged (SQLITE_CORRUPT). Check the disk"),
    "no growth": (no_growth, {}, "reading or writing the database file failed"),
    "full": (full, {"max_operations": 2}, "too many operations or bytes are waiting. Use a faster disk, or raise max_"),
    "no box": (nothing, {"secret_box": None}, "sealed with the key 'k1', but this store has no secret_box. Give"),
    "another key": (nothing, {"secret_box": FernetBox({"k1": OTHER_KEY})}, "with the key 'k1' (ConfigurationError)"),
    "key missing": (
        nothing,
        {"secret_box": FernetBox({"k2": KEY})},
        "with the key 'k1' (ConfigurationError). Check that the box has this very key",
    ),
    "key service down": (
        nothing,
        {"secret_box": Down({"k1": KEY})},
        "with the key 'k1' (TimeoutError). Check that the box",
    ),
}
"""What happens, the options of the store, and the problem."""


async def asked(store: Store) -> tuple[int, dict[str, Any]]:
    """Ask a new receiver, which has no earlier answer to give."""
    reply = await Receiver(store).health()
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_the_health_says_what_a_delivery_meets(
    situation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is 503 with the text that the receiver logs when it refuses a true delivery; so is the store's own health."""
    happens, options, expected = SITUATIONS[situation]
    path = tmp_path / "asana.db"
    box = FernetBox({"k1": KEY})
    async with SQLiteStore(path, secret_box=box) as store:
        await deliver(store, await register(store), body(event(padding="x" * 10_000)))
    async with scene(path, **{"secret_box": box, "busy_timeout": 0.05, **options}) as here:
        if happens is not nothing:
            assert await here.deliver(size=10_000) == DONE
            status, said = await asked(here.store)
            assert (status, said["writable"], said["secrets_readable"], said["problems"]) == (200, True, True, [])
        with happens(here):
            status, said = await asked(here.store)
            (problem,) = said["problems"]
            assert (status, said["status"]) == (503, "unavailable")
            assert expected in problem
            own = await here.store.health() if said["writable"] is not None else None
            if own is None:
                with pytest.raises(StoreUnavailableError) as caught:
                    await here.store.health()
                assert (str(caught.value), said["secrets_readable"]) == (problem, None)
            else:
                assert own.problems == (problem,)
                assert (own.writable, own.secrets_readable) == (said["writable"], said["secrets_readable"])
                assert (own.writable, own.secrets_readable) == (happens is nothing, happens is not nothing)

            refused, text = await here.deliver(size=10_000)
            assert (refused, text) == (503, b"store full" if situation == "full" else b"store unavailable")
            assert repr(f"{text.decode()}: {problem}")[:200] in told(caplog)
        assert said.keys() == (await asked(MemoryStore()))[1].keys()


@pytest.mark.parametrize("options", [{"max_pending": 1}, {"max_body": 99, "max_pending_bytes": 99}])
async def test_a_receiver_that_is_full(options: dict[str, Any]) -> None:
    """At a limit of its own it is 503 with the refusal's words and the limits to raise, and 200 again below it."""
    go = asyncio.Event()

    class Slow(MemoryStore):
        async def put(self, delivery: NewDelivery) -> PutResult:
            await go.wait()
            return await super().put(delivery)

    store = Slow()
    await register(store)
    receiver = Receiver(store, **options)
    content = b'{"events": [{}]}'.ljust(99)
    delivery = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
    receiving = asyncio.create_task(receiver.receive(ENDPOINT, delivery, content))
    await pass_turns(5)
    reply = await receiver.health()
    assert reply.status == 503
    said = json.loads(reply.body)
    assert (said["status"], said["writable"]) == ("unavailable", True)
    assert said["problems"] == ["too many requests or bytes in flight; raise max_pending or max_pending_bytes"]
    assert await receiver.receive(ENDPOINT, delivery, content) == Reply(
        status=503, body=b"too many requests or bytes in flight", close=True
    )
    go.set()
    assert (await receiving).status == 200
    assert (await receiver.health()).status == 200
