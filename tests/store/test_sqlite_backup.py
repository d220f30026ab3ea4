"""A `SQLiteStore` is copied while it works, and the copy takes its place."""

import asyncio
import errno
import os
import resource
import shutil
import signal
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite.file import DatabaseFile, sqlite3
from tests.store.sqlite_help import SECRET, confirmed, modes, new, rows

TABLES = ("registrations", "seen", "inbox", "bodies")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """Where its copy goes, alone in a directory."""
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "copy.db"


@pytest.fixture(name="store")
async def _store(path: Path) -> AsyncIterator[SQLiteStore]:
    """An open store with the confirmed registration "r" and a few deliveries, one of which is done."""
    async with SQLiteStore(path) as store:
        await confirmed(store)
        for number in range(10):
            await store.put(new(number, size=20_000))
        (lease,) = await store.claim(1, lease=60)
        assert await store.ack(lease)
        yield store


@pytest.fixture(name="held")
def _held(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Stop backups when they begin to copy; return what is set then, and what to set to let them go on."""
    begun, go_on = threading.Event(), threading.Event()
    real = DatabaseFile.connect_to_read

    def wait(statement: str) -> None:
        begun.set()
        go_on.wait(20)

    def connect(file: DatabaseFile) -> sqlite3.Connection:
        connection = real(file)
        connection.set_trace_callback(wait)
        return connection

    monkeypatch.setattr(DatabaseFile, "connect_to_read", connect)
    return begun, go_on


async def test_a_copy_takes_the_place_of_the_database(store: SQLiteStore, path: Path, copy: Path) -> None:
    """With the steps of the guide, what was acknowledged before the backup comes back, and nothing that came later."""
    before = [rows(path, f"SELECT * FROM {table}") for table in TABLES]
    await store.backup(copy)
    assert modes(copy.parent) == {"copy.db": 0o600}
    await store.put(new(100))
    log = path.with_name("store.db-wal")
    crashed = log.read_bytes()
    await store.aclose()
    log.write_bytes(crashed)

    log.unlink()
    shutil.copy(copy, path)
    assert [rows(path, f"SELECT * FROM {table}") for table in TABLES] == before
    async with SQLiteStore(path) as restored:
        found = await restored.find_registration("r")
        assert found is not None
        assert found.secret == SECRET
        assert await restored.put(new(0, size=20_000)) == "duplicate"
        assert await restored.put(new(100)) == "stored"
        assert len(await restored.claim(100, lease=60)) == 10
        assert list(await restored.integrity_check()) == []
    assert rows(path, "PRAGMA auto_vacuum") == [(2,)]


async def test_others_go_on(store: SQLiteStore, copy: Path, held: tuple[threading.Event, threading.Event]) -> None:
    """While a copy is made, the store takes deliveries, finds secrets and tells its health."""
    begun, go_on = held
    backup = asyncio.ensure_future(store.backup(copy))
    assert await asyncio.to_thread(begun.wait, 20)
    assert await store.put(new(100)) == "stored"
    assert await store.find_registration("r") is not None
    assert (await store.health()).writable
    assert copy.name not in modes(copy.parent)
    go_on.set()
    await backup
    assert len(rows(copy)) in {10, 11}


async def test_a_cancelled_backup(
    store: SQLiteStore, copy: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    """It leaves no file."""
    begun, go_on = held
    backup = asyncio.ensure_future(store.backup(copy))
    assert await asyncio.to_thread(begun.wait, 20)
    backup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await backup
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # waits for the thread
    assert modes(copy.parent) == {}


async def test_where_no_copy_can_be(store: SQLiteStore, path: Path, copy: Path) -> None:
    """A file in its place stays as it is, and a directory that is missing is a mistake."""
    old = copy.with_name("old.db")
    old.write_bytes(b"yesterday")
    for target, problem in ((old, "already exists"), (path, "already exists"), (old / "a", "does not exist")):
        with pytest.raises(ConfigurationError, match=problem):
            await store.backup(target)
    assert old.read_bytes() == b"yesterday"


async def test_a_disk_without_room(store: SQLiteStore, copy: Path) -> None:
    """A copy that finds no room is an error, and leaves no file; the next one works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreUnavailableError):
            await store.backup(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert modes(copy.parent) == {}
    await store.backup(str(copy))
    assert len(rows(copy)) == 10


async def test_the_copy_is_on_the_disk(store: SQLiteStore, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its name, and its directory afterwards; a failure is an error of ours."""
    synced: list[tuple[bool, bool]] = []

    def sync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), copy.exists()))

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailableError, match=r"backup cannot be written \(Input/output error\)"):
        await store.backup(copy)
    assert modes(copy.parent) == {}
    monkeypatch.setattr(os, "fsync", sync)
    await store.backup(copy)
    assert synced == [(False, False), (True, True)]
