"""Deliveries of a known registration are verified without asking the store; every answer is as if it had been asked."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from attrs import evolve

from asana_webhooks import MemoryStore, Receiver, Secret, StoreUnavailableError, sign_body
from asana_webhooks.receiver.protocol import Reply
from asana_webhooks.receiver.receiver import RegistrationCache
from asana_webhooks.receiver.signature import verify_signature
from asana_webhooks.store.base import NewDelivery, PutResult, Registration, RegistrationState, registration_id
from tests.helpers.cancelling import pass_turns
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register
from tests.subscriptions.scenes import LoopClock

ID = registration_id(ENDPOINT)
OTHER = Secret("4f8b1e07c92d5a36be70d1f29c8a6453")
HEARTBEAT = b'{"events":[]}'

Headers = list[tuple[bytes, bytes]]
Content = bytes | AsyncIterator[bytes]


def signed(content: bytes, secret: Secret = SECRET) -> Headers:
    return [(b"X-Hook-Signature", sign_body(content, secret=secret).encode())]


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def cut() -> AsyncIterator[bytes]:
    yield b"{"
    raise ConnectionResetError


async def stuck() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


class Asked(MemoryStore):
    """A store that counts how often it is asked for a registration, and can fail or hang."""

    def __init__(self) -> None:
        super().__init__()
        self.finds = 0
        self.is_away = False
        self.hangs = False
        self.says: Callable[[Registration | None], Registration | None] = lambda found: found
        self.putting = asyncio.Semaphore(0)

    async def find_registration(self, id: str) -> Registration | None:
        self.finds += 1
        if self.is_away:
            raise StoreUnavailableError(problem="away")
        return self.says(await super().find_registration(id))

    async def put(self, delivery: NewDelivery) -> PutResult:
        if self.hangs:
            self.putting.release()
            await asyncio.Event().wait()
        return await super().put(delivery)


async def deliver(receiver: Receiver, content: bytes | None = None) -> Reply:
    content = body(event()) if content is None else content
    return await receiver.receive(ENDPOINT, signed(content), content)


@pytest.fixture
async def store() -> Asked:
    """A store with a confirmed registration."""
    store = Asked()
    await register(store)
    return store


@pytest.fixture
async def receiver(store: Asked) -> Receiver:
    """A receiver that has seen a delivery, and so knows the registration."""
    receiver = Receiver(store, max_body=1000, body_timeout=0.01)
    assert (await deliver(receiver)).status == 200
    assert store.finds == 1
    return receiver


async def test_the_store_is_asked_once(store: Asked, receiver: Receiver) -> None:
    """However the body comes, further deliveries are stored without another question."""
    content, chunked = body(event()), body(event())

    assert (await deliver(receiver, content)).status == 200
    assert (await receiver.receive(ENDPOINT, signed(chunked), stream(chunked[:9], chunked[9:]))).status == 200
    assert (await deliver(receiver, content)).status == 200
    assert store.finds == 1
    assert [lease.body for lease in await store.claim(9, lease=60)][1:] == [content, chunked]
    assert receiver.counts["duplicate"] == 1


@pytest.mark.parametrize("header", [(b"Transfer-Encoding", b"chunked"), (b"Content-Encoding", b"identity")])
async def test_the_store_is_asked_once_whatever_the_headers(
    store: Asked, receiver: Receiver, header: tuple[bytes, bytes]
) -> None:
    """Headers that a delivery seldom has, but may have, cost no question either; nor does a body that is awaited."""
    whole, late = body(event()), body(event())

    async def waiting() -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        yield late

    assert (await receiver.receive(ENDPOINT, [*signed(whole), header], whole)).status == 200
    assert (await receiver.receive(ENDPOINT, [*signed(late), header], waiting())).status == 200
    assert (store.finds, receiver.counts["stored"]) == (1, 3)


REQUESTS: dict[str, tuple[Callable[[], tuple[Headers, Content]], int]] = {
    "heartbeat": (lambda: (signed(HEARTBEAT), HEARTBEAT), 200),
    "heartbeat in chunks": (lambda: (signed(HEARTBEAT), stream(HEARTBEAT)), 200),
    "forged": (lambda: (signed(b"{}", OTHER), b"{}"), 401),
    "forged in chunks": (lambda: (signed(b"{}", OTHER), stream(b"{}")), 401),
    "unsigned": (lambda: ([], b"{}"), 401),
    "handshake": (lambda: ([(b"X-Hook-Secret", b"c0ffee0d15ea5e0000badc0de0decade")], b""), 401),
    "encoded": (lambda: ([*signed(b"{}"), (b"Content-Encoding", b"gzip")], b"{}"), 415),
    "announced too long": (lambda: ([*signed(b"{}"), (b"Content-Length", b"1001")], stream()), 413),
    "too long": (lambda: (signed(b"x" * 1001), b"x" * 1001), 413),
    "too long in chunks": (lambda: (signed(b"x" * 1001), stream(b"x" * 1000, b"x")), 413),
    "too slow": (lambda: (signed(b"{}"), stuck()), 408),
    "cut off": (lambda: (signed(b"{}"), cut()), 400),
}


@pytest.mark.parametrize("request_", REQUESTS)
async def test_whatever_is_not_verified_is_for_the_store_to_judge(
    store: Asked, receiver: Receiver, request_: str
) -> None:
    """Heartbeats and refusals are answered by what the store says now: the same while it stands, and then 404."""
    make, status = REQUESTS[request_]
    before = dict(receiver.counts)

    assert (await receiver.receive(ENDPOINT, *make())).status == status
    assert store.finds == 2
    assert sum(receiver.counts.values()) == sum(before.values()) + 1

    await store.close_registration(ID)
    assert (await receiver.receive(ENDPOINT, *make())).status == 404
    assert receiver.counts["closed registration"] == 1
    assert store.finds == 3


@pytest.mark.parametrize("request_", ["forged", "forged in chunks", "heartbeat", "heartbeat in chunks"])
async def test_a_signature_is_checked_once(
    store: Asked, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    """What the store is asked for after a look at the signature is not worth another: a secret never changes."""
    tried: list[Secret] = []

    def note(content: bytes, signature: bytes, *, secret: Secret) -> bool:
        tried.append(secret)
        return verify_signature(content, signature, secret=secret)

    monkeypatch.setattr("asana_webhooks.receiver.protocol.verify_signature", note)
    make, status = REQUESTS[request_]

    assert (await receiver.receive(ENDPOINT, *make())).status == status
    assert (store.finds, tried) == (2, [SECRET])


async def test_a_registration_that_has_ended_takes_nothing(store: Asked, receiver: Receiver) -> None:
    """The store refuses what the receiver has proven with what it knew, which is then forgotten."""
    await store.close_registration(ID)

    assert (await deliver(receiver)).status == 404
    assert store.finds == 1
    assert (await deliver(receiver)).status == 404
    assert store.finds == 2
    assert receiver.counts["closed registration"] == 2
    assert len(await store.claim(9, lease=60)) == 1


async def test_a_registration_that_is_gone_is_forgotten(store: Asked, receiver: Receiver) -> None:
    """Nor does one stay known that the store has lost altogether."""
    store.says = lambda _: None

    assert (await receiver.receive(ENDPOINT, [], b"")).status == 404
    assert receiver.counts["unknown endpoint"] == 1
    content = body(event())
    assert (await receiver.receive(ENDPOINT, signed(content), content)).status == 404
    assert store.finds == 3
    assert receiver.counts["unknown endpoint"] == 2


async def test_a_pending_registration_is_asked_for_each_time() -> None:
    """Its candidates change, and so does what becomes of it."""
    store = Asked()
    assert await store.open_registration(ID, resource="1", public_url="https://example.com/asana", ttl=60)
    await store.add_candidate(ID, SECRET)
    receiver = Receiver(store)

    assert [(await deliver(receiver)).status for _ in range(3)] == [200] * 3
    assert store.finds == 3
    assert receiver.counts["quarantined"] == 3


async def test_a_store_that_cannot_be_asked(store: Asked, receiver: Receiver) -> None:
    """What is proven needs no question; all else is 503 meanwhile, as nobody knows what to answer."""
    store.is_away = True

    assert (await deliver(receiver)).status == 200
    assert (await deliver(receiver, HEARTBEAT)).status == 503
    assert (await receiver.receive(ENDPOINT, signed(b"{}", OTHER), b"{}")).status == 503


async def test_where_there_is_no_room(store: Asked) -> None:
    """503 while the registration stands, 404 when it has ended, in that order as ever."""
    receiver = Receiver(store, max_pending=2)
    assert (await deliver(receiver)).status == 200
    store.hangs = True
    hanging = [asyncio.create_task(deliver(receiver)) for _ in range(2)]
    for task in hanging:
        await store.putting.acquire()
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)

    assert (await deliver(receiver)).body == b"too many requests or bytes in flight"
    await store.close_registration(ID)
    assert (await deliver(receiver)).status == 404


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_cached_delivery_has_its_timeout(store: Asked, is_whole: bool) -> None:
    """A store that hangs over a delivery whose registration is known is given up in time."""
    receiver, clock = Receiver(store, timeout=60), LoopClock()
    assert (await deliver(receiver)).status == 200
    store.hangs = True
    content = body(event())

    receiving = asyncio.create_task(
        receiver.receive(ENDPOINT, signed(content), content if is_whole else stream(content))
    )
    await store.putting.acquire()
    clock.turn(60)
    reply = await receiving
    assert (reply.status, reply.body) == (503, b"not stored in time")
    assert receiver.counts["not stored in time"] == 1


async def test_the_whole_time_is_short_for_a_body_too(store: Asked) -> None:
    """A known registration's body is read within the time for the answer, should that be the shorter one."""
    receiver, clock = Receiver(store, timeout=60, body_timeout=90), LoopClock()
    assert (await deliver(receiver)).status == 200

    receiving = asyncio.create_task(receiver.receive(ENDPOINT, signed(b"{}"), stuck()))
    await pass_turns(2)
    clock.turn(60)
    assert (await receiving).body == b"not stored in time"


def confirmed(id: str) -> Registration:
    return Registration(id=id, resource="1", state=RegistrationState.CONFIRMED, deadline=0.0, secret=SECRET)


def test_the_least_recently_used_goes_first() -> None:
    """There is room for so many; asking for one, or seeing it again, keeps it; and no repr shows a secret."""
    cache = RegistrationCache(size=3)
    for id in "abc":
        cache.add(confirmed(id))
    assert cache.get("a") == confirmed("a")
    cache.add(confirmed("b"))
    cache.add(confirmed("d"))

    assert [id for id in "abcd" if cache.get(id) is not None] == ["a", "b", "d"]
    cache.add(confirmed("e"))
    assert [id for id in "abcde" if cache.get(id) is not None] == ["b", "d", "e"]
    assert SECRET.reveal() not in repr(cache)


def test_only_the_confirmed_are_remembered() -> None:
    """What may still change its secret is not, and what has ended is forgotten."""
    cache = RegistrationCache()
    for state in (RegistrationState.PENDING, RegistrationState.CLOSED):
        cache.add(evolve(confirmed("a"), state=state))
        assert cache.get("a") is None
        cache.add(confirmed("a"))
        assert cache.get("a") is not None
        cache.add(evolve(confirmed("a"), state=state, secret=None))
        assert cache.get("a") is None
    cache.forget("never seen")
