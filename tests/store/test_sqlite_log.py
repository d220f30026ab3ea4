"""The write-ahead log stays bounded, whoever reads, and the operator hears of it."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asana_webhooks.errors import ConfigurationError, StoreFullError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite import log, maintenance
from asana_webhooks.store.sqlite.log import TRY_AGAIN, LogWatch
from tests.store.sqlite_help import SECRET, confirmed, in_writer, new, rows

LONG = 300_000
MOST = 900_000

READING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM deliveries").fetchone()
print("reading", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="store")
async def _store(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SQLiteStore]:
    """A store whose log is long early, and which tries to empty it each time."""
    monkeypatch.setattr(log, "LONG", LONG)
    monkeypatch.setattr(log, "TRY_AGAIN", 0.0)
    monkeypatch.setattr(maintenance, "WAIT", 5)
    async with SQLiteStore(path, max_log_bytes=MOST) as store:
        yield await confirmed(store)


def log_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged about the log."""
    return [record.levelname for record in caplog.records if "write-ahead log" in record.getMessage()]


def reading(path: Path) -> subprocess.Popen[str]:
    """Have another process begin to read, until a line is sent to it."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout
    assert reader.stdout.readline() == "reading\n"
    return reader


async def fill(store: SQLiteStore, first: int) -> int:
    """Put deliveries until no more is taken, but not more than a hundred; return how many were."""
    for number in range(100):
        try:
            await store.put(new(first + number, size=40_000))
        except StoreFullError:
            return number
    return 100


class TestReaderElsewhere:
    """A read transaction of another process keeps SQLite from emptying the log."""

    async def test_the_log_is_bounded(self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """It stops growing at the limit: additions are refused, all else works. After the reader it is short again."""
        caplog.set_level(logging.INFO)
        with reading(path) as reader:
            count = await fill(store, 0)
            assert 10 < count < 100
            length = log_bytes(path)
            assert MOST < length < MOST + 200_000
            for refused in (
                store.open("p", resource="1", ttl=60),
                store.offer("r", SECRET),
                store.put(new(5000)),
                store.heartbeat("r"),
            ):
                with pytest.raises(StoreFullError, match=r"write-ahead log has \d+ bytes.*End what reads it"):
                    await refused
            health = await store.health()
            assert not health.writable
            assert health.log_bytes == length
            assert [problem for problem in health.problems if "max_log_bytes" in problem]
            (lease,) = await store.claim(1, lease=60)
            assert await store.done(lease)
            assert told(caplog) == ["WARNING"]
            assert await in_writer(store, lambda db: db.execute("PRAGMA busy_timeout").fetchone()) == (5000,)
            reader.communicate("end\n")
        await store.health()
        assert log_bytes(path) <= LONG
        assert (await store.health()).writable
        assert await fill(store, 1000) == 100
        assert log_bytes(path) <= LONG + 200_000
        health = await store.health()
        assert [problem for problem in health.problems if "write-ahead" in problem] == []
        assert told(caplog) == ["WARNING", "INFO"]
        assert rows(path, "SELECT count(*) FROM deliveries") == [(count + 100,)]

    async def test_asking_makes_it_no_longer(self, store: SQLiteStore, path: Path) -> None:
        """Whoever asks for the health, or sends heartbeats, writes nothing into a full log."""
        others = []
        store._keeper.look_for_others = lambda: others.append("looked")  # type: ignore[method-assign]
        with reading(path) as reader:
            await fill(store, 0)
            length = log_bytes(path)
            for _ in range(50):
                assert not (await store.health()).writable
                with pytest.raises(StoreFullError):
                    await store.heartbeat("r")
            assert log_bytes(path) == length
            assert len(others) == 50
            reader.communicate("end\n")

    async def test_it_is_told_before_anything_is_refused(
        self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """From the first limit on there is a warning and a problem, and additions go on."""
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM deliveries").fetchone()
        number = 0
        while log_bytes(path) <= LONG + 50_000:
            number += 1
            await store.put(new(number, size=40_000))
        health = await store.health()
        assert [problem for problem in health.problems if "cannot be emptied" in problem]
        assert await store.put(new(0)) == "stored"
        reader.close()
        assert told(caplog) == ["WARNING"]

    async def test_a_reader_of_its_own(
        self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those who read through the store all the time keep nobody from emptying the log."""
        monkeypatch.setattr(maintenance, "WAIT", 10_000)
        ended = asyncio.Event()

        async def read() -> None:
            while not ended.is_set():
                await store.find("r")

        readers = [asyncio.ensure_future(read()) for _ in range(5)]
        for number in range(100):
            assert await store.put(new(number, size=40_000)) == "stored"
        ended.set()
        await asyncio.gather(*readers)
        await store.heartbeat("r")
        assert log_bytes(path) <= LONG
        assert told(caplog) == []

    async def test_emptying_that_fails(self, store: SQLiteStore, path: Path) -> None:
        """When SQLite refuses to empty the log nothing is lost, and the next call opens a new connection."""
        assert await store.put(new(1)) == "stored"
        before = await in_writer(store, lambda db: db)
        store._keeper.log.see(MOST)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("asana_webhooks.store.sqlite.maintenance._empty", _failing)
            patch.setattr(store._file, "log_bytes", lambda: MOST)
            await store.heartbeat("r")
            assert await in_writer(store, lambda db: db) is not before
        assert await store.put(new(1)) == "duplicate"


def _failing(connection: sqlite3.Connection) -> bool:
    raise sqlite3.OperationalError("disk I/O error")


async def test_the_store_closes_with_an_empty_log(path: Path) -> None:
    """Only the connection that writes folds the log into the file; the other one leaves it alone, whichever is last."""
    store = await confirmed(SQLiteStore(path))
    await store.find("r")
    await store._access.writer.aclose()
    length = log_bytes(path)
    assert length > 0
    await store._access.reader.aclose()
    assert log_bytes(path) == length
    async with SQLiteStore(path) as again:
        assert await again.find("r") is not None
    assert [file.name for file in path.parent.iterdir()] == ["store.db"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True])
def test_the_limit_is_checked(path: Path, limit: int) -> None:
    """What is no number of bytes is refused by name."""
    with pytest.raises(ConfigurationError, match="max_log_bytes"):
        SQLiteStore(path, max_log_bytes=limit)


class Watched(RuleBasedStateMachine):
    """A log that grows and shrinks while attempts to empty it succeed or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = LogWatch(1000, 100)
        self.now = 0.0
        self.failed_at: float | None = None
        self.length = 0

    @rule(length=st.integers(0, 2000))
    def see(self, length: int) -> None:
        was_stuck = self.failed_at is not None
        if length <= 100:
            self.failed_at = None
        assert self.watch.see(length) == ("short again" if was_stuck and length <= 100 else None)
        self.length = length

    @rule()
    def fail(self) -> None:
        if self.watch.should_empty(now=self.now):
            assert self.watch.failed(now=self.now) == ("stuck" if self.failed_at is None else None)
            self.failed_at = self.now

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def decisions(self) -> None:
        stuck = self.failed_at is not None
        is_time = self.failed_at is None or self.now >= self.failed_at + TRY_AGAIN
        assert self.watch.should_empty(now=self.now) == (self.length > 100 and is_time)
        assert self.watch.is_full == (stuck and self.length > 1000)
        assert len(self.watch.problems) == stuck
        if self.watch.is_full:
            with pytest.raises(StoreFullError, match=f"has {self.length} bytes"):
                self.watch.check_room()
        else:
            self.watch.check_room()


Watched.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestWatched = Watched.TestCase
