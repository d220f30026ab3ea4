"""Log and file stay short, and where somebody keeps the log from being emptied, the operator hears of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite import maintenance
from asana_webhooks.store.sqlite.file import sqlite3
from tests.store.sqlite_help import confirmed, in_writer, new, rows

LONG = 300_000


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="store")
async def _store(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SQLiteStore]:
    """A store whose log is long early, and which tries to empty it each time."""
    monkeypatch.setattr(maintenance, "LONG_LOG", LONG)
    monkeypatch.setattr(maintenance, "RETRY_INTERVAL", 0.0)
    monkeypatch.setattr(maintenance, "READER_TIMEOUT", 5)
    async with SQLiteStore(path) as store:
        yield await confirmed(store)


def log_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def file_bytes(path: Path) -> int:
    return path.stat().st_size


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged about the log."""
    return [record.levelname for record in caplog.records if "write-ahead log" in record.getMessage()]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read with another connection, which keeps SQLite from emptying the log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM inbox").fetchone()
        yield


async def fill(store: SQLiteStore, first: int) -> None:
    for number in range(first, first + 30):
        assert await store.put(new(number, size=40_000)) == "stored"


async def test_a_log_that_cannot_be_emptied(store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is one warning, and a problem in the health, and all goes on; after the reader the log is short again."""
    caplog.set_level(logging.INFO)
    with reading(path):
        await fill(store, 0)
        health = await store.health()
        assert health.writable
        assert health.log_bytes == log_bytes(path) > LONG
        assert [problem for problem in health.problems if "cannot be emptied" in problem]
        (lease,) = await store.claim(1, lease=60)
        assert await store.ack(lease)
        assert told(caplog) == ["WARNING"]
        assert await in_writer(store, lambda db: db.execute("PRAGMA busy_timeout").fetchone()) == (5000,)
    await store.health()
    await fill(store, 100)
    await store.record_heartbeat("r")
    assert log_bytes(path) <= LONG + 100_000
    assert [problem for problem in (await store.health()).problems if "write-ahead" in problem] == []
    assert told(caplog) == ["WARNING", "INFO"]
    assert rows(path, "SELECT count(*) FROM seen") == [(60,)]


async def test_attempts_have_a_pause(
    store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads, it is not tried at each transaction, for writers wait meanwhile."""
    monkeypatch.setattr(maintenance, "RETRY_INTERVAL", 3600)
    with reading(path):
        await fill(store, 0)
        statements: list[str] = []
        await in_writer(store, lambda db: db.set_trace_callback(statements.append))
        await fill(store, 100)
    await fill(store, 200)
    assert [text for text in statements if "wal_checkpoint" in text] == []
    assert told(caplog) == ["WARNING"]


async def test_a_reader_of_its_own(
    store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who read through the store all the time keep nobody from emptying the log."""
    monkeypatch.setattr(maintenance, "READER_TIMEOUT", 10_000)
    ended = asyncio.Event()

    async def read() -> None:
        while not ended.is_set():
            await store.find_registration("r")

    readers = [asyncio.ensure_future(read()) for _ in range(5)]
    for first in (0, 100, 200):
        await fill(store, first)
    ended.set()
    await asyncio.gather(*readers)
    await store.record_heartbeat("r")
    assert log_bytes(path) <= LONG + 100_000
    assert told(caplog) == []


async def test_emptying_that_fails(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When SQLite refuses to empty the log nothing is lost, and the next call opens a new connection."""

    def fail(connection: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    before = await in_writer(store, lambda db: db)
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "_empty", fail)
        await fill(store, 0)
    assert await in_writer(store, lambda db: db) is not before
    assert await store.put(new(0)) == "duplicate"


async def test_the_store_closes_with_an_empty_log(path: Path) -> None:
    """Only the connection that writes folds the log into the file; the other one leaves it alone, whichever is last."""
    store = await confirmed(SQLiteStore(path))
    await store.find_registration("r")
    await store._writer.aclose()
    length = log_bytes(path)
    assert length > 0
    await store._reader.aclose()
    assert log_bytes(path) == length
    async with SQLiteStore(path) as again:
        assert await again.find_registration("r") is not None
    assert [file.name for file in path.parent.iterdir()] == ["store.db"]


async def work_off(store: SQLiteStore, deliveries: int) -> None:
    """Store so many deliveries of 100 kB, acknowledge them all, and forget them."""
    await asyncio.gather(*(store.put(new(number, size=100_000)) for number in range(deliveries)))
    for lease in await store.claim(deliveries, lease=60):
        assert await store.ack(lease)
    await store.purge(older_than=0)
    await store.record_heartbeat("r")  # after the checkpoint that ended the last step


async def test_the_file_gives_its_space_back(path: Path) -> None:
    """When a backlog is worked off the open file is short again, but for a reserve that the next deliveries use."""
    async with SQLiteStore(path) as store:
        await confirmed(store)
        await work_off(store, 150)
        reserve = maintenance.PAGE * maintenance.FREE_PAGES
        assert reserve <= file_bytes(path) < reserve + 1_000_000
        await store.put(new(1000, size=3_000_000))
        rows(path, "PRAGMA wal_checkpoint")
        assert file_bytes(path) < reserve + 1_000_000
        assert list(await store.integrity_check()) == []


async def test_space_is_given_back_in_steps(store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes no longer than its time, so that others get their turn; one that gets nowhere is the last."""
    monkeypatch.setattr(maintenance, "STEP_TIME", 0.0001)
    statements: list[str] = []
    await in_writer(store, lambda db: db.set_trace_callback(statements.append))
    await work_off(store, 150)
    steps = "".join(
        "v" if "incremental_vacuum" in text else "c" for text in statements if "incr" in text or text == "COMMIT"
    )
    assert len(steps.replace("c", " ").strip().split()) > 3
    monkeypatch.setattr(maintenance, "STEP_TIME", -1)
    monkeypatch.setattr(maintenance, "FREE_PAGES", 0)
    await asyncio.wait_for(store.purge(older_than=0), 20)
    assert rows(path, "PRAGMA freelist_count") != [(0,)]
