"""The receiver without any web framework: what it answers, what it stores, what it says in the log."""

import asyncio
import inspect
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import (
    ConfigurationError,
    MemoryStore,
    Receiver,
    Secret,
    SQLiteStore,
    StoreFullError,
    StoreHealth,
    StoreUnavailableError,
    sign_body,
)
from asana_webhooks.receiver.pending import PendingDeliveries
from asana_webhooks.receiver.protocol import ReceiveResult
from asana_webhooks.store.base import NewDelivery, PutResult, RegistrationState, Store, registration_id
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

OTHER = Secret("4f8b1e07c92d5a36be70d1f29c8a6453")
HEARTBEAT = b'{"events":[]}'


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of each kind."""
    path = tmp_path / "asana.db"
    opened: Store = MemoryStore() if request.param == "memory" else SQLiteStore(path)
    async with opened:
        yield opened


def signed(content: bytes, secret: Secret = SECRET) -> list[tuple[bytes, bytes]]:
    return [(b"X-Hook-Signature", sign_body(content, secret=secret).encode())]


def handshake(secret: Secret = SECRET) -> list[tuple[bytes, bytes]]:
    return [(b"X-Hook-Secret", secret.reveal().encode())]


async def pending(store: Store) -> str:
    id = registration_id(ENDPOINT)
    assert await store.open_registration(id, resource="8675309", public_url="https://example.com/asana", ttl=60)
    return id


async def waiting(store: Store) -> list[bytes]:
    return [lease.body for lease in await store.claim(100, lease=60)]


async def test_a_handshake_is_committed_and_then_echoed(store: Store) -> None:
    """The very secret comes back, and by then the store knows it."""
    id = await pending(store)

    reply = await Receiver(store).receive(ENDPOINT, handshake(), b"")

    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers == ((b"X-Hook-Secret", SECRET.reveal().encode()),)
    found = await store.find_registration(id)
    assert found is not None
    assert found.candidates == (SECRET,)


async def test_a_handshake_after_confirmation_changes_nothing(store: Store) -> None:
    """A stored secret cannot be replaced by a POST (django-asana's mistake): 401, and deliveries still verify."""
    registration = await register(store)
    receiver = Receiver(store)

    reply = await receiver.receive(ENDPOINT, handshake(OTHER), b"")

    assert (reply.status, reply.headers, reply.body) == (401, (), b"")
    found = await store.find_registration(registration)
    assert found is not None
    assert found.secret == SECRET
    content = body(event())
    assert (await receiver.receive(ENDPOINT, signed(content), content)).status == 200
    assert (await receiver.receive(ENDPOINT, signed(content, OTHER), content)).status == 401


async def test_where_nothing_is_expected_everything_is_404(store: Store) -> None:
    """Unknown and closed endpoints answer 404 to handshakes and deliveries alike, keep nothing and stay as they are."""
    content = body(event())
    id = await register(store)
    await store.close_registration(id)
    receiver = Receiver(store)

    for endpoint in ("x" * 43, ENDPOINT, "\udcff/../\x00" * 10):
        for headers in (handshake(), signed(content), []):
            reply = await receiver.receive(endpoint, headers, content)
            assert (reply.status, reply.headers, reply.body) == (404, (), b"")
    assert await waiting(store) == []
    found = await store.find_registration(id)
    assert found is not None
    assert found.state is RegistrationState.CLOSED


async def test_a_proven_delivery_is_stored_before_it_is_answered(store: Store) -> None:
    """200 means that the raw bytes are in the store, whatever they are."""
    await register(store)
    contents = [body(event()), b"no json at all", b"[]", b"\xff\x00"]
    receiver = Receiver(store)

    assert [(await receiver.receive(ENDPOINT, signed(one), one)).status for one in contents] == [200] * 4
    assert await waiting(store) == contents


async def test_every_unproven_delivery_gets_the_same_empty_401(store: Store) -> None:
    """Nobody learns from the answer what was wrong, and nothing ends in a 500; a heartbeat has to be signed, too."""
    await register(store)
    receiver = Receiver(store)
    true = sign_body(b"{}", secret=SECRET).encode()
    values = [b"", b"0" * 64, "ü".encode(), b"\xff" * 64, b"a" * 8192, true[:63]]
    requests = [[(b"x-hook-signature", value)] for value in values]

    for headers in (*requests, [], signed(b"{}") * 2, signed(b"{}", OTHER)):
        reply = await receiver.receive(ENDPOINT, headers, b"{}")
        assert (reply.status, reply.headers, reply.body) == (401, (), b"")
    for headers in (signed(HEARTBEAT, OTHER), []):
        assert (await receiver.receive(ENDPOINT, headers, HEARTBEAT)).status == 401
    assert await waiting(store) == []


async def test_heartbeats_are_noted_and_not_stored(store: Store) -> None:
    """They are all alike, so they would be duplicates of each other."""
    id = await register(store)
    receiver = Receiver(store)

    for _ in range(2):
        assert (await receiver.receive(ENDPOINT, signed(HEARTBEAT), HEARTBEAT)).status == 200

    assert await waiting(store) == []
    found = await store.find_registration(id)
    assert found is not None
    assert (found.last_heartbeat_at is None, found.last_delivery_at) == (False, None)


async def test_duplicates_are_answered_200_and_kept_once(store: Store) -> None:
    """Asana sends again what was answered too late."""
    await register(store)
    content = body(event())
    receiver = Receiver(store)

    replies = await asyncio.gather(*(receiver.receive(ENDPOINT, signed(content), content) for _ in range(50)))

    assert {reply.status for reply in replies} == {200}
    assert await waiting(store) == [content]


async def test_encoded_bodies_are_refused_unread(store: Store) -> None:
    """415; a body of more than 64 KiB is not even asked for."""
    await register(store)
    for encoding in (b"gzip", b"identity, br"):
        headers = [*signed(b""), (b"Content-Encoding", encoding), (b"Content-Length", b"65537")]
        assert (await Receiver(store).receive(ENDPOINT, headers, unread())).status == 415


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_long_bodies_are_refused(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """413 by the announced length or by the bytes that come, and loudly: a true delivery would cost the webhook."""
    await register(store)
    receiver = Receiver(store, max_body=1000)
    headers = signed(b"")

    for chunks, extra in (([b"x" * 600] * 2, []), ([], [(b"content-length", b"1001")])):
        assert (await receiver.receive(ENDPOINT, [*headers, *extra], stream(chunks))).status == 413
    assert (await receiver.receive(ENDPOINT, headers, b"x" * 1001)).status == 413
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


class Broken(MemoryStore):
    """A store whose put does what it is told."""

    def __init__(self, *, error: Exception | None = None, result: PutResult | None = None) -> None:
        super().__init__()
        self.error = error
        self.result = result
        self.putting = asyncio.Event()

    async def put(self, delivery: NewDelivery) -> PutResult:
        self.putting.set()
        if self.error is not None:
            raise self.error
        if self.result is not None:
            return self.result
        await asyncio.Event().wait()
        raise AssertionError(delivery)


@pytest.mark.parametrize(
    ("store", "text"),
    [
        (Broken(error=StoreUnavailableError(problem="disk I/O error")), b"store unavailable"),
        (Broken(error=StoreFullError(problem="10000 deliveries wait")), b"store full"),
        (Broken(error=ConfigurationError("this store is closed")), b"store unavailable"),
        (Broken(error=RuntimeError("secret connection string")), b"store unavailable"),
        (Broken(error=OSError("secret path")), b"store unavailable"),
        (Broken(), b"not stored in time"),
    ],
    ids=["unavailable", "full", "closed", "somebody's own", "system", "hangs"],
)
async def test_what_cannot_be_stored_is_503_with_a_fixed_text(
    store: Broken, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Asana shows the text to others, so it says nothing; the log does."""
    await register(store)
    content = body(event())

    timeout = 0.02 if store.error is None else 60
    reply = await Receiver(store, timeout=timeout).receive(ENDPOINT, signed(content), content)

    assert (reply.status, reply.body) == (503, text)
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert f"request refused with 503: {text.decode()}" in caplog.text.replace("'", "")
    assert "secret" not in caplog.text


def test_the_limits_are_asanas() -> None:
    """Asana gives up after 10 seconds, so the answer comes within 8, and a body within 5."""
    parameters = inspect.signature(Receiver).parameters

    assert (parameters["timeout"].default, parameters["body_timeout"].default) == (8.0, 5.0)
    assert (parameters["max_body"].default, parameters["max_unproven"].default) == (8 * 1024**2, 64 * 1024**2)


async def test_bodies_of_strangers_have_a_bound_together(store: Store) -> None:
    """Past the bound the longest body is dropped and answered 503 at once; a shorter one that comes later has room."""
    await register(store)
    receiver = Receiver(store, max_body=1000, max_unproven=1000)
    waiting_for_more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 900
        waiting_for_more.set()
        await asyncio.Event().wait()

    long = asyncio.create_task(receiver.receive(ENDPOINT, signed(b""), slow()))
    await waiting_for_more.wait()
    content = body(event())
    assert (await receiver.receive(ENDPOINT, signed(content), stream([content]))).status == 200
    reply = await long
    assert (reply.status, reply.body, reply.close) == (503, b"too many requests or bytes in flight", True)


async def test_endpoints_nobody_minted_do_not_reach_the_store() -> None:
    """What cannot be an endpoint is answered without asking; a webhook made elsewhere may have 1 to 128 characters."""
    store = Broken()
    store.find_registration = None  # type: ignore[assignment, method-assign]

    for length, status in ((0, 404), (1, 503), (128, 503), (129, 404), (5000, 404)):
        assert (await Receiver(store).receive("x" * length, handshake(), b"")).status == status


async def test_a_store_of_any_kind_is_not_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    """Even a store whose `put` can be cancelled goes on when the answer is overdue, and counts, until all ends."""
    store = Broken()
    await register(store)
    content = body(event())
    receiver = Receiver(store, timeout=0.01, max_pending=1)

    assert (await receiver.receive(ENDPOINT, signed(content), content)).body == b"not stored in time"
    assert (await receiver.receive(ENDPOINT, signed(content), unread())).body == b"too many requests or bytes in flight"
    await receiver.aclose()
    assert "1 deliveries could not be stored" in caplog.text
    await receiver.aclose()
    assert caplog.text.count("could not be stored") == 1


@pytest.mark.parametrize("limit", ["max_pending", "max_pending_bytes"])
async def test_too_much_under_way_is_503_at_once(limit: str) -> None:
    """What the store has no room for is refused, by number before its body is read."""
    store = Broken()
    await register(store)
    content = body(event())
    room = {"max_pending": 1} if limit == "max_pending" else dict.fromkeys(["max_body", limit], len(content))
    receiver = Receiver(store, **room)
    first = asyncio.create_task(receiver.receive(ENDPOINT, signed(content), content))
    await store.putting.wait()

    other = content.replace(b"gid", b"GID", 1)
    reply = await receiver.receive(ENDPOINT, signed(other), unread() if limit == "max_pending" else stream([other]))
    assert (reply.status, reply.body, reply.close) == (503, b"too many requests or bytes in flight", True)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_too_many_requests_are_503_at_once(store: Store) -> None:
    """Those that are still sending count, too, so that nobody can open any number of them."""
    await register(store)
    receiver = Receiver(store, max_pending=2)
    go, reading = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        reading.release()
        await go.wait()
        yield b""

    running = [asyncio.create_task(receiver.receive(ENDPOINT, signed(b"x"), slow())) for _ in range(2)]
    for _ in running:
        await reading.acquire()
    assert (await receiver.receive(ENDPOINT, handshake(), unread())).body == b"too many requests or bytes in flight"
    go.set()
    assert [reply.status for reply in await asyncio.gather(*running)] == [401, 401]
    content = body(event())
    assert (await receiver.receive(ENDPOINT, signed(content), content)).status == 200


async def unread() -> AsyncIterator[bytes]:
    """A body that must not be read."""
    pytest.fail("read")
    yield b""


async def test_a_stopped_receiver_takes_nothing_new(store: Store) -> None:
    """503 at once, for deliveries and handshakes alike, without asking the store; what runs may finish."""
    await register(store)
    receiver = Receiver(store)
    content = body(event())
    go, reading = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield content
        reading.set()
        await go.wait()

    running = asyncio.create_task(receiver.receive(ENDPOINT, signed(content), slow()))
    await reading.wait()
    receiver.stop()
    receiver.stop()
    for headers in (signed(content), handshake()):
        reply = await receiver.receive(ENDPOINT, headers, unread())
        assert (reply.status, reply.body, reply.close) == (503, b"stopping", True)
    closing = asyncio.create_task(receiver.aclose())
    await asyncio.wait({closing}, timeout=0)
    assert not closing.done()
    go.set()
    assert (await running).status == 200
    await closing
    await receiver.aclose()
    assert await waiting(store) == [content]


async def test_leaving_the_block_closes(store: Store) -> None:
    """`async with` stops a receiver and waits; the store stays open."""
    async with Receiver(store) as receiver:
        await register(store)
    content = body(event())

    assert (await receiver.receive(ENDPOINT, signed(content), content)).status == 503
    assert (await store.health()).writable


async def test_a_forgery_that_misses_the_201_is_401() -> None:
    """Begun before the 201 and ended behind it, it is answered like any other that no secret of ours has signed."""
    store = Broken(result="refused")
    await pending(store)
    await store.add_candidate(registration_id(ENDPOINT), OTHER)
    content = body(event())
    receiver = Receiver(store)

    assert (await receiver.receive(ENDPOINT, signed(content, OTHER), content)).status == 401
    assert receiver.counts["invalid signature"] == 1


async def test_the_time_to_end_runs_from_the_first_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is stopped and closed, a service ends in time."""
    store = Broken()
    await register(store)
    content = body(event())
    receiver = Receiver(store, timeout=10)
    asking = asyncio.create_task(receiver.receive(ENDPOINT, signed(content), content))
    await store.putting.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    waited: list[float] = []

    async def drain(_: PendingDeliveries, seconds: float) -> int:
        waited.append(seconds)
        return 0

    monkeypatch.setattr(PendingDeliveries, "drain", drain)
    now = 100.0
    monkeypatch.setattr("asana_webhooks.receiver.receiver.time.monotonic", lambda: now)
    receiver.stop()
    now = 107.0
    receiver.stop()
    await receiver.aclose()
    now = 200.0
    await receiver.aclose()

    assert waited == [3.0, 0.0]


async def test_closing_ends_the_question_how_the_store_is() -> None:
    """A store that hangs is not asked on, and who asked hears that nothing is known."""
    store = Broken()
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hang() -> StoreHealth:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    store.health = hang  # type: ignore[method-assign]
    receiver = Receiver(store)
    asking = asyncio.create_task(receiver.health())
    await asked.wait()
    await receiver.aclose()

    assert cancelled.is_set()
    assert (await asking).status == 503


@pytest.mark.parametrize("method", ["find_registration", "add_candidate", "record_heartbeat", "put"])
async def test_a_store_that_is_interrupted_is_a_failure_of_the_store(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own cancellation is not the request's: that is answered 503, counted and logged like any other failure."""
    store = MemoryStore()
    await pending(store) if method == "add_candidate" else await register(store)

    async def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    assert hasattr(store, method)
    setattr(store, method, interrupted)
    content = HEARTBEAT if method == "record_heartbeat" else body(event())
    receiver = Receiver(store)
    reply = await receiver.receive(ENDPOINT, handshake() if method == "add_candidate" else signed(content), content)

    assert (reply.status, reply.body) == (503, b"store unavailable")
    assert receiver.counts["store unavailable"] == 1
    assert "CancelledError" in caplog.text


@pytest.mark.parametrize("limit", ["max_unproven", "max_pending_bytes"])
def test_limits_must_let_the_longest_body_pass(limit: str) -> None:
    """A body that is let in must fit where it goes, or the longest deliveries would be refused for ever."""
    Receiver(MemoryStore(), **{limit: 8 * 1024**2})
    with pytest.raises(ConfigurationError, match="max_body"):
        Receiver(MemoryStore(), **{limit: 8 * 1024**2 - 1})


async def test_counts(store: Store) -> None:
    """Each request counts once, by what became of it; all kinds are there from the start, for metrics."""
    receiver = Receiver(store)
    counts = receiver.counts
    assert set(counts) == set(ReceiveResult)
    assert set(counts.values()) == {0}
    content = body(event())
    await pending(store)
    await receiver.receive(ENDPOINT, handshake(), b"")
    early = body(event())
    await receiver.receive(ENDPOINT, signed(early), early)
    await store.confirm_registration(registration_id(ENDPOINT), webhook_gid="43214", secret=SECRET)
    await receiver.receive(ENDPOINT, signed(content), content)
    await receiver.receive(ENDPOINT, signed(content), content)
    await receiver.receive(ENDPOINT, signed(HEARTBEAT), HEARTBEAT)
    await receiver.receive(ENDPOINT, signed(content, OTHER), content)
    await receiver.receive("nobody-knows-this-one", signed(content), content)

    assert {name: number for name, number in counts.items() if number} == {
        "handshake echoed": 1,
        "quarantined": 1,
        "stored": 1,
        "duplicate": 1,
        "heartbeat": 1,
        "invalid signature": 1,
        "unknown endpoint": 1,
    }
    with pytest.raises(TypeError):
        counts["stored"] = 0  # type: ignore[index]


def test_limits_are_checked() -> None:
    """A limit that could never work is refused at once."""
    options = ["max_body", "max_unproven", "max_pending", "max_pending_bytes", "body_timeout", "timeout"]
    values: list[Any] = [0, -1, "5", None]
    for option, value in itertools.product(options, values):
        with pytest.raises(ConfigurationError, match=option):
            Receiver(MemoryStore(), **{option: value})


async def test_the_log_says_why_and_shows_no_secret(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """One record, one line and some fields for each refusal; no endpoint, secret, signature, body or header."""
    caplog.set_level(logging.DEBUG, logger="asana_webhooks")
    id = await register(store)
    content = body(event(action="s3cret-content"))
    receiver = Receiver(store)
    await receiver.receive(ENDPOINT, signed(content), content)
    await receiver.receive(ENDPOINT, signed(content, OTHER), content)
    await receiver.receive(ENDPOINT, [(b"x-hook-signature", b"evil\r\nline")], content)
    await receiver.receive("evil\r\nendpoint", signed(content), content)
    await receiver.receive(ENDPOINT, handshake(OTHER), content)

    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    refusals = [record.getMessage() for record in records]
    fields = {name: value for name, value in vars(records[0]).items() if name.startswith("asana_")}
    assert fields == {
        "asana_status": 401,
        "asana_outcome": "invalid signature",
        "asana_registration": id,
        "asana_webhook": "43214",
        "asana_label": "",
    }
    assert [line.split("; ")[0] for line in refusals] == [
        "request refused with 401: 'invalid signature'",
        "request refused with 401: 'invalid signature'",
        "request refused with 404: 'unknown endpoint'",
        "request refused with 401: 'no signature'",
    ]
    hidden = [SECRET.reveal(), OTHER.reveal(), ENDPOINT, sign_body(content, secret=SECRET), "s3cret-content", "evil"]
    assert [text for text in hidden if text in caplog.text] == []
