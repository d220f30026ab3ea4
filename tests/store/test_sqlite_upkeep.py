"""How a `SQLiteStore` forgets, and what it says when it cannot keep up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite import inbox
from tests.helpers.stores import Clock
from tests.store.sqlite_help import confirmed, in_writer, new, rows

MIB = 1024**2


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


async def finish(store: SQLiteStore, *, dead: bool) -> None:
    """Handle all that waits: it is done, or dead."""
    for lease in await store.claim(100, lease=60):
        assert await (store.fail(lease, error="", retry_in=None) if dead else store.ack(lease))


class TestPurge:
    """Much to forget is forgotten in several transactions, so that others get their turn."""

    @pytest.mark.parametrize("dead", [False, True])
    async def test_rows_are_bounded(
        self, store: SQLiteStore, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, dead: bool
    ) -> None:
        """A step takes only so many rows, and all are forgotten and counted in the end."""
        monkeypatch.setattr(inbox, "ROWS_AT_ONCE", 3)
        await asyncio.gather(*(store.put(new(number)) for number in range(10)))
        await finish(store, dead=dead)
        clock.advance(1)
        steps: list[str] = []
        await in_writer(store, lambda db: db.set_trace_callback(steps.append))
        assert await store.purge(older_than=0, dead=dead) == 10
        assert rows(path) == []
        assert _purges_in_each(steps) == [3, 3, 3, 1]

    async def test_bytes_are_bounded(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """Large dead letters go a few at a time: the log stays short, and who puts meanwhile need not wait for all."""
        for number in range(24):
            await store.put(new(number, size=MIB))
        await finish(store, dead=True)
        clock.advance(1)
        purging_all = asyncio.ensure_future(store.purge(older_than=0, dead=True))
        await asyncio.sleep(0)  # the first step is on its way
        for number in range(100, 103):
            assert await store.put(new(number)) == "stored"
            assert not purging_all.done()
        assert await purging_all == 24
        assert (await store.health()).dead == 0
        # The file of the log never gets shorter by itself, so this is the most it ever had.
        assert path.with_name("store.db-wal").stat().st_size < 12 * MIB

    async def test_a_large_one_goes_alone(
        self, store: SQLiteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that alone is more than a step may have is forgotten all the same."""
        monkeypatch.setattr(inbox, "BYTES_AT_ONCE", 100)
        for number in range(3):
            await store.put(new(number, size=400))
        await finish(store, dead=True)
        clock.advance(1)
        steps: list[str] = []
        await in_writer(store, lambda db: db.set_trace_callback(steps.append))
        assert await store.purge(older_than=0, dead=True) == 3
        assert _purges_in_each(steps) == [1, 1, 1]

    async def test_registrations_are_all_forgotten(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """However many have ended, one purge forgets them."""
        ids = [f"over{number}" for number in range(1300)]
        await asyncio.gather(
            *(store.open_registration(id, resource="1", public_url="https://example.com/asana", ttl=60) for id in ids)
        )
        await asyncio.gather(*(store.close_registration(id) for id in ids))
        clock.advance(100)
        assert await store.purge(older_than=10) == 0
        assert rows(path, "SELECT id FROM registrations") == [("r",)]


def _purges_in_each(statements: list[str]) -> list[int]:
    """Return how many deliveries went in each transaction in which some did."""
    transactions: list[set[str]] = [set()]  # a statement that cascades is traced more than once
    for statement in statements:
        if statement == "COMMIT":
            transactions.append(set())
        elif statement.startswith("DELETE FROM deliveries"):
            transactions[-1].add(statement)
    return [len(one) for one in transactions if one]


class TestRoom:
    """A store that would take no delivery says so."""

    async def test_too_much_is_waiting_to_be_written(self, path: Path) -> None:
        """While no more can be queued for the disk it is not writable, and is again when that is written."""
        async with SQLiteStore(path, max_operations=3) as store:
            await confirmed(store)
            puts = [asyncio.ensure_future(store.put(new(number))) for number in range(3)]
            await asyncio.sleep(0)
            health = await store.health()
            assert not health.writable
            with pytest.raises(StoreFullError) as caught:
                await store.put(new(9))
            assert health.problems == (str(caught.value),)
            assert "max_operations" in health.problems[0]
            assert await asyncio.gather(*puts) == ["stored"] * 3
            health = await store.health()
            assert (health.writable, health.problems) == (True, ())

    async def test_too_much_is_waiting_to_be_read(self, path: Path) -> None:
        """It is not writable either: a delivery needs the secret of its webhook. The health itself needs no room."""
        async with SQLiteStore(path, max_operations=3) as store:
            await confirmed(store)
            finds = [asyncio.ensure_future(store.find_registration("r")) for _ in range(3)]
            await asyncio.sleep(0)
            answers = await asyncio.gather(*(store.health() for _ in range(9)))
            with_room = [health for health in answers if health.writable or "waiting" not in health.problems[0]]
            assert (len(answers), with_room) == (9, [])
            assert None not in await asyncio.gather(*finds)
            assert (await store.health()).writable
