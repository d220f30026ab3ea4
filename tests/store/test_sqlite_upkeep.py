"""How a `SQLiteStore` forgets, and what it says when it cannot keep up."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asana_webhooks.errors import StoreFullError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.stores import Clock
from tests.store.sqlite_help import confirmed, hanging_reader, in_writer, new, opened, rows

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

    @pytest.mark.parametrize("kind", ["keys", "dead letters"])
    async def test_rows_are_bounded(self, store: SQLiteStore, path: Path, clock: Clock, kind: str) -> None:
        """Many are forgotten in many transactions; what is younger stays, wherever a step ends."""
        is_dead = kind == "dead letters"
        await in_writer(store, lambda db: add_old(db, 10_001, dead=is_dead, received=(clock.now - 100, clock.now - 10)))
        purging = asyncio.ensure_future(store.purge(older_than=50, dead=True))
        await asyncio.sleep(0)  # the first step is on its way
        for number in range(4):
            assert await store.put(new(number)) == "stored"
            assert not purging.done()
        assert await purging == 5001
        assert rows(path, f"SELECT count(*) FROM {'bodies' if is_dead else 'seen'}") == [(5004,)]

    async def test_bytes_are_bounded(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """Large dead letters go a few at a time: the log stays short, and who puts meanwhile need not wait for all."""
        for number in range(24):
            await store.put(new(number, size=MIB))
        await store.put(new(24, size=5 * MIB))  # larger than a step may be
        await finish(store, dead=True)
        clock.advance(1)
        purging_all = asyncio.ensure_future(store.purge(older_than=0, dead=True))
        await asyncio.sleep(0)  # the first step is on its way
        for number in range(100, 103):
            assert await store.put(new(number)) == "stored"
            assert not purging_all.done()
        assert await purging_all == 50  # with their keys
        assert (await store.health()).dead == 0
        # The file of the log never gets shorter by itself, so this is the most it ever had.
        assert path.with_name("store.db-wal").stat().st_size < 12 * MIB

    async def test_registrations_are_all_forgotten(self, store: SQLiteStore, path: Path, clock: Clock) -> None:
        """However many have ended, one purge forgets them."""
        ids = [f"over{number}" for number in range(1300)]
        await asyncio.gather(*(opened(store, id) for id in ids))
        await asyncio.gather(*(store.close_registration(id) for id in ids))
        clock.advance(100)
        assert await store.purge(older_than=10) == 0
        assert rows(path, "SELECT id FROM registrations") == [("r",)]


def add_old(connection: sqlite3.Connection, number: int, *, dead: bool, received: tuple[float, float]) -> None:
    """Add keys or dead letters to the registration; every second one was received at the later time."""
    wanted = {"number": number, "early": received[0], "late": received[1]}
    many = "WITH RECURSIVE many (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM many WHERE n + 1 < :number)"
    if dead:
        row = "n + 1, 1, 'dead', iif(n % 2, :late, :early)"
        connection.execute(
            f"{many} INSERT INTO inbox (id, registration, state, received_at) SELECT {row} FROM many", wanted
        )
        connection.execute(f"{many} INSERT INTO bodies SELECT n + 1, x'00' FROM many", wanted)
    else:
        row = "0, CAST(printf('%08d', n) AS BLOB), 1, iif(n % 2, :late, :early)"
        connection.execute(f"{many} INSERT INTO seen SELECT {row} FROM many", wanted)


class TestRoom:
    """A store that would take no delivery says so."""

    async def test_too_much_is_waiting_to_be_written(self, path: Path) -> None:
        """While no more can be queued for the disk it is not writable, and is again when that is written."""
        async with SQLiteStore(path, max_operations=3, busy_timeout=20) as store:
            await confirmed(store)
            go_on = threading.Event()
            hung = in_writer(store, lambda _: go_on.wait(20))
            puts = [store.put(new(number)) for number in range(3)]
            health = await store.health()
            assert not health.writable
            with pytest.raises(StoreFullError) as caught:
                await store.put(new(9))
            assert health.problems == (str(caught.value),)
            assert "max_operations" in health.problems[0]
            go_on.set()
            assert await asyncio.gather(*puts, hung) == [*["stored"] * 3, True]
            health = await store.health()
            assert (health.writable, health.problems) == (True, ())

    async def test_too_much_is_waiting_to_be_read(self, path: Path) -> None:
        """It is not writable either: a delivery needs the secret of its webhook. The health itself needs no room."""
        async with SQLiteStore(path, max_operations=3) as store:
            await confirmed(store)
            with hanging_reader(store):
                finds = [asyncio.ensure_future(store.find_registration("r")) for _ in range(3)]
                asked = [asyncio.ensure_future(store.health()) for _ in range(9)]
                await asyncio.sleep(0)  # all have found that there is no room
            answers = await asyncio.gather(*asked)
            with_room = [health for health in answers if health.writable or "waiting" not in health.problems[0]]
            assert (len(answers), with_room) == (9, [])
            assert None not in await asyncio.gather(*finds)
            assert (await store.health()).writable
