"""The inbox of a `SQLiteStore`: batches, turns, numbers, and when the last delivery came."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import Lease, candidate_id
from asana_webhooks.store.rules import minute_of
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.stores import Clock
from tests.store.sqlite_help import SECRET, confirmed, in_writer, new, opened, rows

T = TypeVar("T")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """The clock of the store."""
    return Clock()


@pytest.fixture(name="store")
async def _store(path: Path, clock: Clock) -> AsyncIterator[SQLiteStore]:
    """An open store with the confirmed registration "r"."""
    async with SQLiteStore(path, clock=clock) as store:
        yield await confirmed(store)


class TestBatches:
    """Deliveries that come at once are stored by a few statements, and each gets its own answer."""

    async def test_fifty_take_as_many_statements_as_one(self, store: SQLiteStore) -> None:
        """Putting, claiming and acknowledging many at once takes no more statements than doing so with one."""
        statements: list[str] = []
        await in_writer(store, lambda db: db.set_trace_callback(statements.append))

        async def taken(call: Awaitable[T]) -> tuple[T, int]:
            statements.clear()
            answer = await call
            return answer, sum(not text.startswith("PRAGMA") for text in statements)

        found: list[tuple[int, int, int]] = []
        for numbers in (range(1), range(1, 51)):
            _, put = await taken(asyncio.gather(*(store.put(new(number)) for number in numbers)))
            leases, claimed = await taken(store.claim(100, lease=60))
            acked, ended = await taken(asyncio.gather(*map(store.ack, leases)))
            assert acked == [True] * len(numbers)
            found.append((put, claimed, ended))
        assert found[0] == found[1]

    async def test_duplicates_among_fresh_ones(self, store: SQLiteStore) -> None:
        """The answers come in the order of the calls, whether a delivery was stored before, now, or twice now."""
        assert set(await asyncio.gather(*(store.put(new(number)) for number in range(0, 120, 3)))) == {"stored"}
        numbers = [*range(120), *range(110, 130)]
        answers = await asyncio.gather(*(store.put(new(number)) for number in numbers))
        known = set(range(0, 120, 3))
        expected = []
        for number in numbers:
            expected.append("duplicate" if number in known else "stored")
            known.add(number)
        assert answers == expected
        bodies = [lease.body for lease in await store.claim(200, lease=60)]
        assert bodies == [
            new(number).body for number in [*range(0, 120, 3), *(n for n in range(130) if n % 3 or n >= 120)]
        ]

    async def test_a_thousand_registrations(self, store: SQLiteStore) -> None:
        """A thousand webhooks deliver at once: all is stored, and each delivery comes back with its own webhook."""
        ids = [f"r{number:03}" for number in range(1000)]
        await asyncio.gather(*(adopted(store, id) for id in ids))
        puts = [store.put(new(number, registration=id)) for number, id in enumerate(ids)]
        assert set(await asyncio.gather(*puts)) == {"stored"}
        leases = await store.claim(1000, lease=60, ordered=True)
        expected = [(id, f"gid of {id}", new(number).body) for number, id in enumerate(ids)]
        assert [(lease.registration, lease.webhook_gid, lease.body) for lease in leases] == expected

    async def test_all_answers_in_one_batch(self, path: Path) -> None:
        """What is quarantined, waiting, known, refused or without room shares a transaction, each with its answer."""
        async with SQLiteStore(path, max_quarantined=2) as store:
            await confirmed(store)
            await opened(store, "p")
            await store.add_candidate("p", SECRET)
            mine, wrong = candidate_id(SECRET), "no candidate"
            calls = [
                ("p", 1, mine, "stored"),
                ("r", 1, None, "stored"),
                ("p", 1, mine, "duplicate"),
                ("r", 2, mine, "stored"),
                ("p", 2, None, "refused"),
                ("p", 2, mine, "stored"),
                ("p", 3, mine, StoreFullError),
                ("p", 2, mine, "duplicate"),
                ("r", 3, wrong, "refused"),
                ("r", 1, mine, "duplicate"),
                ("unknown", 1, None, "refused"),
                ("r", 3, None, "stored"),
            ]
            puts = [store.put(new(number, registration=id, candidate=by)) for id, number, by, _ in calls]
            answers = await asyncio.gather(*puts, return_exceptions=True)
            expected = [answer for *_, answer in calls]
            assert [answer if isinstance(answer, str) else type(answer) for answer in answers] == expected
            leases = await store.claim(9, lease=60)
            assert [(lease.registration, lease.body) for lease in leases] == [("r", new(n).body) for n in (1, 2, 3)]
            await store.confirm_registration("p", webhook_gid="3", secret=SECRET)
            leases = await store.claim(9, lease=60)
            assert [(lease.registration, lease.body) for lease in leases] == [("p", new(n).body) for n in (1, 2)]


async def adopted(store: SQLiteStore, id: str) -> None:
    where = {"resource": "1", "public_url": "https://example.com/asana", "label": id}
    assert await store.adopt_registration(id, **where, webhook_gid=f"gid of {id}", secret=SECRET)


async def test_an_idle_claim_writes_nothing(store: SQLiteStore, clock: Clock) -> None:
    """While nothing can be claimed, only the first claim begins to write; none misses what can be claimed later."""
    begun: list[str] = []
    await in_writer(store, lambda db: db.set_trace_callback(begun.append))

    async def expect_idle() -> None:
        await store.claim(1, lease=60)
        begun.clear()
        assert [await store.claim(1, lease=60) for _ in range(3)] == [(), (), ()]
        assert begun == []

    await expect_idle()
    await store.put(new(1))
    (lease,) = await store.claim(1, lease=60)
    await store.fail(lease, error="", retry_in=30)
    for change in (30, 60, -3600):  # its delay ends, its lease runs out, the clock is set back
        await expect_idle()
        clock.advance(change)
        assert len(await store.claim(1, lease=60)) == 1


class TestNumbers:
    """What has a number keeps it for itself."""

    async def test_deliveries(self, store: SQLiteStore, path: Path) -> None:
        """The id of a delivery that is done is not given to another one, even after the store was opened anew."""
        await store.put(new(1))
        (lease,) = await store.claim(1, lease=60)
        await store.ack(lease)
        await store.aclose()
        async with SQLiteStore(path) as again:
            await again.put(new(2))
            (later,) = await again.claim(1, lease=60)
            assert later.id > lease.id
            assert not await again.ack(lease)

    async def test_registrations(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """A new registration has no deliveries that one before it had, even when that one is forgotten."""
        clock.advance(1000)
        await store.put(new(1))
        await store.ack((await store.claim(1, lease=60))[0])
        await store.close_registration("r")
        await store.purge(older_than=500)  # the registration's time was over before that, the delivery came after it
        assert await store.find_registration("r") is None
        await store.aclose()
        async with SQLiteStore(path, clock=clock) as again:
            await confirmed(again, "s")
            assert await again.put(new(1, registration="s")) == "stored"


class TestLastDelivery:
    """When the last delivery came is known at once, and written once a minute."""

    async def last(self, store: SQLiteStore) -> float | None:
        found = await store.find_registration("r")
        assert found is not None
        (listed,) = await store.list_registrations(label="r")
        assert listed.last_delivery_at == found.last_delivery_at
        return found.last_delivery_at

    async def test_it_is_saved_once_a_minute(
        self, store: SQLiteStore, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This process knows it at once; no delivery writes it; a minute later another process knows it, too."""
        ahead = move_loop(monkeypatch)
        async with SQLiteStore(path, clock=clock) as other:
            assert await self.last(store) is None
            for number in range(3):
                clock.advance(20)
                await store.put(new(number))
                assert (await self.last(store), await self.last(other)) == (minute_of(clock()), None)
            ahead[0] += 30
            await turn(store)
            assert await self.last(other) is None
            ahead[0] += 31
            await turn(store)
            assert await self.last(other) == await self.last(store) == minute_of(clock())
            clock.advance(60)
            await store.put(new(3))
            ahead[0] += 61
            await turn(store)
            assert await self.last(other) == minute_of(clock())

    async def test_closing_saves_it(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """All of them are there when the store is opened again, however many, those that come last included."""
        ids = [f"r{number}" for number in range(600)]
        await asyncio.gather(*(adopted(store, id) for id in ids))
        puts = [store.put(new(1, registration=id)) for id in ids]
        await store.aclose()
        await asyncio.gather(*puts)
        found = rows(path, "SELECT last_delivery_at, count(*) FROM registrations WHERE id <> 'r' GROUP BY 1")
        assert found == [(minute_of(clock()), 600)]

    async def test_a_save_that_fails(
        self, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While another process locks the file nothing is forgotten; the next minute saves it, in silence."""
        ahead = move_loop(monkeypatch)
        async with SQLiteStore(path, clock=clock, busy_timeout=0) as store:
            await confirmed(store)
            await store.put(new(1))
            behind = sqlite3.connect(path, isolation_level=None)
            behind.execute("BEGIN IMMEDIATE")
            ahead[0] += 61
            await turn(store)
            behind.execute("ROLLBACK")
            behind.close()
            assert await self.last(store) == minute_of(clock())
            assert await store.put(new(1)) == "duplicate"
            ahead[0] += 61
            await turn(store)
            assert rows(path, "SELECT last_delivery_at FROM registrations") == [(minute_of(clock()),)]
        assert caplog.records == []

    async def test_closing_while_it_cannot_be_saved(self, path: Path, clock: Clock) -> None:
        """`aclose` does not raise, and ends."""
        async with SQLiteStore(path, clock=clock, busy_timeout=0) as store:
            await confirmed(store)
            await store.put(new(1))
            behind = sqlite3.connect(path, isolation_level=None)
            behind.execute("BEGIN IMMEDIATE")
            await store.aclose()
            behind.close()
        async with SQLiteStore(path) as again:
            assert await again.put(new(1)) == "duplicate"


def move_loop(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return by how many seconds the running loop's clock is ahead; a test may change it."""
    loop = asyncio.get_running_loop()
    clock, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead[0])
    return ahead


async def turn(store: SQLiteStore) -> None:
    """Let the loop run what is due, and the store write what that submitted."""
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.gather(in_writer(store, lambda _: None), return_exceptions=True)


NAMES = ["r", "s", "p"]
ENDS = ["ack", "retry", "bury", "release"]
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(1, 3)),
    st.tuples(st.just("claim"), st.integers(1, 4), st.booleans()),
    st.tuples(st.sampled_from(ENDS), st.integers(0, 9)),
    st.tuples(st.sampled_from(ENDS), st.integers(0, 9)),
    st.tuples(st.just("requeue"), st.integers(0, 9)),
    st.tuples(st.just("discard"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["purge", "confirm", "advance"])),
)
BEGINNING = [("put", "r", 3), ("put", "p", 2), ("claim", 2, False)]
"""What brings more about than an empty store."""
TURNS = "SELECT id FROM inbox WHERE turn IS NOT NULL ORDER BY id"
HEADS = "SELECT min(id) FROM inbox WHERE state = 'open' GROUP BY registration ORDER BY 1"


class Machine:
    """Takes steps in a store, with two confirmed registrations and a pending one."""

    def __init__(self, store: SQLiteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.leases: list[Lease] = []
        self.dead: list[int] = []
        self.puts = 0

    async def take(self, step: str, *values: Any) -> None:
        store = self.store
        if step == "put":
            await self._put(*values)
        elif step == "claim":
            limit, ordered = values
            self.leases += await store.claim(limit, lease=30, ordered=ordered)
        elif step == "discard":
            await store.discard(*values)
        elif step == "requeue" and self.dead:
            await store.requeue(self.dead.pop(values[0] % len(self.dead)))
        elif step == "purge":
            await store.purge(older_than=20, dead=True)
        elif step == "confirm":
            await store.confirm_registration("p", webhook_gid="3", secret=SECRET)
        elif step == "advance":
            self.clock.advance(10)
        elif self.leases and step != "requeue":
            await self._end(step, self.leases.pop(values[0] % len(self.leases)))

    async def _put(self, id: str, number: int) -> None:
        by = candidate_id(SECRET)
        puts = [new(self.puts + index, registration=id, candidate=by) for index in range(number)]
        await asyncio.gather(*(self.store.put(one) for one in puts))
        self.puts += number

    async def _end(self, how: str, lease: Lease) -> None:
        if how == "ack":
            await self.store.ack(lease)
        elif how == "release":
            await self.store.release(lease)
        elif how == "retry":
            await self.store.fail(lease, error="", retry_in=15)
        elif await self.store.fail(lease, error="", retry_in=None):
            self.dead.append(lease.id)


@settings(max_examples=30)
@given(st.lists(STEPS, min_size=12, max_size=25))
@pytest.mark.long
def test_turns(steps: list[tuple[Any, ...]]) -> None:
    """After any calls, the first open delivery of each registration has a turn, and no other one has."""

    async def run(path: Path) -> None:
        clock = Clock()
        async with SQLiteStore(path, clock=clock) as store:
            for id in ("r", "s"):
                await confirmed(store, id)
            await opened(store, "p", ttl=1e6)
            await store.add_candidate("p", SECRET)
            machine = Machine(store, clock)
            for step in [*BEGINNING, *steps]:
                await machine.take(*step)
                turns, heads = await in_writer(store, lambda db: [db.execute(one).fetchall() for one in (TURNS, HEADS)])
                assert turns == heads

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory, "store.db")))
