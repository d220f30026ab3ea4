"""What a `SQLiteStore` does when the disk, the file or another process is in the way."""

import asyncio
import filecmp
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from asana_webhooks.errors import ConfigurationError, StoreError, StoreUnavailableError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import DeliveryState
from asana_webhooks.store.sqlite import maintenance
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.schema import APPLICATION_ID, VERSION, prepare
from tests.helpers.receiving import ROOT
from tests.store.sqlite_help import SECRET, allow, confirmed, in_writer, modes, new, rows


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="store")
async def _store(path: Path) -> AsyncIterator[SQLiteStore]:
    """An open store with the confirmed registration "r", which does not wait for others for long."""
    async with SQLiteStore(path, busy_timeout=0.05) as store:
        yield await confirmed(store)


@pytest.fixture(name="other")
def _other(path: Path, store: SQLiteStore) -> Iterator[sqlite3.Connection]:
    """Another connection to the same database."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def damage(path: Path) -> None:
    """Write nonsense over all but the first page."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def cut(path: Path, copied: Path) -> None:
    """Copy a database in use, without the end of its log."""
    shutil.copy(path, copied)
    log = path.with_name(path.name + "-wal").read_bytes()
    copied.with_name(copied.name + "-wal").write_bytes(log[:-5000])


def empty(path: Path, *, is_missing: bool) -> None:
    """Take all bytes of a file away, or itself."""
    if is_missing:
        path.unlink()
    else:
        path.write_bytes(b"")


def link_to_itself(path: Path) -> None:
    """Make a path that leads nowhere."""
    path.symlink_to(path)


def remove(path: Path) -> None:
    """Delete a database with all that belongs to it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


FINDING = """
import asyncio, os, sys
from asana_webhooks import SQLiteStore, StoreUnavailableError

async def find(path):
    store = SQLiteStore(path)
    try:
        await store.find_registration("r")
    except StoreUnavailableError as error:
        print(error)
    else:
        print("found")
    await store.aclose()

if os.getuid() != int(sys.argv[1]):
    os.setgroups([])
    os.setuid(int(sys.argv[1]))
for path in sys.argv[2:]:
    asyncio.run(find(path))
"""


def give_away(*paths: Path) -> int:
    """Make files those of a user whom permissions concern, if this one is root; return who that is."""
    uid = os.getuid() or 65534
    for path in paths:
        os.chown(path, uid, -1)
    return uid


def as_user(uid: int, *paths: Path) -> list[str]:
    """Use each store in a process of this user; return what it met."""
    command = [sys.executable, "-c", FINDING, str(uid), *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


class TestFullDisk:
    """No room: refused, nothing half done, and well again when there is room."""

    async def test_a_full_disk(self, store: SQLiteStore, path: Path) -> None:
        """Puts fail as a whole until there is room; nothing that was answered is lost."""
        await in_writer(store, lambda db: db.execute("PRAGMA max_page_count = 40"))
        stored = 0
        with pytest.raises(StoreUnavailableError, match=r"full.*SQLITE_FULL"):
            while stored < 100:
                await store.put(new(stored, size=4000))
                stored += 1
        assert 0 < stored < 100
        assert len(rows(path)) == stored
        assert rows(path, "SELECT count(*) FROM bodies") == [(stored,)]
        await in_writer(store, lambda db: db.execute("PRAGMA max_page_count = 1000000"))
        assert await store.put(new(stored, size=4000)) == "stored"
        assert len(await store.claim(100, lease=60)) == stored + 1

    async def test_all_of_a_transaction_fail_together(self, store: SQLiteStore, path: Path) -> None:
        """When the disk is full nobody of those who shared the transaction is told that it worked."""
        await in_writer(store, lambda db: db.execute("PRAGMA max_page_count = 40"))
        answers = await asyncio.gather(
            *(store.put(new(number, size=4000)) for number in range(100)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        assert len({id(answer) for answer in answers}) == 100
        assert rows(path) == []

    async def test_a_file_that_cannot_grow(self, store: SQLiteStore, path: Path) -> None:
        """The log itself finds no room: refused, and well again afterwards with a fresh connection."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
        try:
            with pytest.raises(StoreUnavailableError):
                await store.put(new(1, size=800_000))
            assert not (await store.health()).waiting
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert await store.put(new(1, size=800_000)) == "stored"
        assert len(rows(path)) == 1

    async def test_a_disk_that_is_nearly_full(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """No delivery takes the room that workers need. They handle what waits, and make room for the next ones."""
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(maintenance, "DISK_RESERVE", 1_000_000)
        await asyncio.gather(*(store.put(new(number, size=100_000)) for number in range(20)))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        with pytest.raises(StoreUnavailableError, match=r"free on the disk, which workers need\. Make") as caught:
            await store.put(new(100))
        health = await store.health()
        assert (health.writable, health.problems) == (False, (str(caught.value),))
        first, *others = await store.claim(100, lease=60)
        assert await store.fail(first, error="", retry_in=1)
        assert [await store.ack(lease) for lease in others] == [True] * 19
        assert (await store.health()).problems == ()
        assert await store.put(new(100)) == "stored"


class TestLocked:
    """Another process writes."""

    async def test_who_holds_the_lock_for_long(self, store: SQLiteStore, other: sqlite3.Connection) -> None:
        """Writing is refused after *busy_timeout*, reading goes on, and writing works again afterwards."""
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=r"another connection.*SQLITE_BUSY"):
                await store.put(new(1))
        assert (await store.find_registration("r")) is not None
        health = await store.health()
        assert (health.writable, health.secrets_readable) == (False, True)
        assert "another connection locks the database for too long (SQLITE_BUSY). Check" in health.problems[0]
        other.execute("ROLLBACK")
        assert await store.put(new(1)) == "stored"
        assert (await store.health()).writable is True

    async def test_who_holds_the_lock_for_a_moment(self, store: SQLiteStore, path: Path) -> None:
        """Within *busy_timeout* nobody notices."""
        other = sqlite3.connect(path, isolation_level=None)
        async with SQLiteStore(path, busy_timeout=5) as patient:
            other.execute("BEGIN IMMEDIATE")
            put = asyncio.ensure_future(patient.put(new(1)))
            await patient.find_registration("r")
            assert not put.done()
            other.execute("COMMIT")
            assert await put == "stored"
        other.close()

    async def test_who_holds_a_new_file(self, path: Path) -> None:
        """A file that another program holds before it has tables is waited for, but not for ever."""
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        store = SQLiteStore(path, busy_timeout=0.02)
        with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
            await store.find_registration("r")
        other.execute("ROLLBACK")
        other.close()
        assert await store.find_registration("r") is None
        await store.aclose()

    async def test_who_makes_a_new_file_at_the_same_time(self, path: Path) -> None:
        """SQLite says busy at once while another is about to switch a new file; the store waits all the same."""
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store = SQLiteStore(path, busy_timeout=20)
        found = asyncio.ensure_future(store.find_registration("r"))
        await asyncio.sleep(0.05)
        assert not found.done()
        other.execute("ROLLBACK")
        assert await found is None
        other.close()
        await store.aclose()

    async def test_who_reads_needs_no_lock(self, store: SQLiteStore, other: sqlite3.Connection, path: Path) -> None:
        """A store that only reads opens beside somebody who writes, and makes a file that is missing."""
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(20):
            for name, id in ((path, "r"), (path.with_name("new.db"), None)):
                reader = SQLiteStore(name, busy_timeout=0.05)
                found = await asyncio.gather(
                    reader.find_registration("r"),
                    reader.deliveries(state=DeliveryState.DEAD),
                    reader.find_registration("unknown"),
                )
                assert [found[0] and found[0].id, *found[1:]] == [id, [], None]
                await reader.aclose()

    async def test_a_reader_elsewhere(self, store: SQLiteStore, other: sqlite3.Connection) -> None:
        """A long read of another process keeps nobody from writing."""
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM inbox").fetchone()
        assert await store.put(new(1)) == "stored"
        assert other.execute("SELECT count(*) FROM inbox").fetchone() == (0,)


class TestReadOnly:
    """The file cannot be written."""

    async def test_a_connection_that_may_not_write(self, store: SQLiteStore, path: Path) -> None:
        """Writing is refused, and the next call tries with a new connection."""
        await in_writer(store, lambda db: db.execute("PRAGMA query_only = ON"))
        with pytest.raises(StoreUnavailableError, match=r"read-only.*SQLITE_READONLY"):
            await store.put(new(1))
        assert rows(path) == []
        assert await store.put(new(1)) == "stored"

    async def test_a_file_without_write_permission(self, store: SQLiteStore, path: Path) -> None:
        """A read-only file is refused, and works once it may be written."""
        await store.aclose()
        allow(path, 0o400)
        if os.access(path, os.W_OK):
            pytest.skip("this user may write everything")
        again = SQLiteStore(path)
        with pytest.raises(StoreUnavailableError, match="no permission to read and write"):
            await again.put(new(1))
        allow(path, 0o600)
        assert await again.put(new(1)) == "stored"
        await again.aclose()

    async def test_a_file_that_says_it_is_read_only(
        self, store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before SQLite is asked, the system is: for those who run the tests as root."""
        monkeypatch.setattr(os, "access", lambda path, _: not path.is_file())
        again = SQLiteStore(path)
        with pytest.raises(StoreUnavailableError, match="no permission to read and write"):
            await again.find_registration("r")
        await again.aclose()

    async def test_a_directory_without_write_permission(self) -> None:
        """The error names the directory and its owner, also where the file may be written: SQLite adds others."""
        with tempfile.TemporaryDirectory() as name:  # that of the test is closed to other users
            directory = Path(name)
            for file in ("whole.db", "new.db"):
                await (await confirmed(SQLiteStore(directory / file))).aclose()
            (directory / "new.db").write_bytes(b"")
            uid, child = give_away(directory / "whole.db", directory / "new.db"), os.getuid()
            allow(directory, 0o555)
            whole, new, missing = as_user(uid, *(directory / f"{file}.db" for file in ("whole", "new", "missing")))
            allow(directory, 0o755)
            real = os.path.realpath(name)  # noqa: ASYNC240 - of a temporary directory
        assert whole == new == missing
        assert (
            f"this process may not create files in the directory {real}, owned by uid {child} with mode 555; "
            f"this process has uid {uid}. Let it write there"
        ) in whole

    async def test_files_of_another_user(self) -> None:
        """The error names the file, its owner and mode, and the user of this process, and nothing is changed."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(os.path.realpath(name))  # noqa: ASYNC240 - of a temporary directory
            uid = give_away(directory)
            for file, closed in (("a.db", "a.db"), ("b.db", "b.db-wal")):
                (directory / file).touch()
                allow(directory / file, 0o666)
                (directory / closed).touch()
                allow(directory / closed, 0o400)
                (error,) = as_user(uid, directory / file)
                owner = f"owned by uid {os.getuid()} with mode 400; this process has uid {uid}"
                assert f"no permission to read and write the database file {directory / closed}, {owner}" in error
                assert modes(directory)[closed] == 0o400

    @pytest.mark.parametrize("mode", [0o660, 0o664])
    async def test_a_mode_that_somebody_chose(self, path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
        """It stays, and what SQLite makes beside the file gets it. If everybody can use it, each store warns once."""
        os.close(os.open(path, os.O_CREAT))
        allow(path, mode)
        for _ in range(2):
            async with SQLiteStore(path) as store:
                await store.record_heartbeat("r")
                assert modes(path.parent) == {"store.db": mode, "store.db-wal": mode, "store.db-shm": mode}
        warnings = [record.getMessage() for record in caplog.records if "contains secrets" in record.getMessage()]
        assert len(warnings) == (2 if mode & 0o007 else 0)
        assert all(f"mode {mode:o}" in warning for warning in warnings)


class TestWrongFile:
    """The path leads to something else."""

    async def test_a_missing_directory(self, tmp_path: Path) -> None:
        """Directories are not made: a missing one is a mistake in a path, or a disk that is not there."""
        with pytest.raises(ConfigurationError, match=r"directory .*missing does not exist"):
            async with SQLiteStore(tmp_path / "missing" / "store.db"):
                pass

    async def test_no_regular_file(self, tmp_path: Path) -> None:
        """A directory or a pipe is no database file, and is left as it is."""
        (tmp_path / "directory").mkdir()
        os.mkfifo(tmp_path / "pipe")
        for name in ("directory", "pipe"):
            allow(tmp_path / name, 0o755)
            with pytest.raises(ConfigurationError, match="is not a regular file"):
                async with SQLiteStore(tmp_path / name):
                    pass
        assert modes(tmp_path) == {"directory": 0o755, "pipe": 0o755}

    async def test_a_link_to_itself(self, path: Path) -> None:
        """What the system refuses is an error of ours."""
        link_to_itself(path)
        store = SQLiteStore(path)
        with pytest.raises(StoreUnavailableError, match="cannot be created or opened"):
            await store.find_registration("r")
        await store.aclose()

    async def test_another_kind_of_file(self, path: Path) -> None:
        """A file that SQLite does not know is refused and stays as it is."""
        shutil.copy(__file__, path)
        store = SQLiteStore(path)
        with pytest.raises(StoreUnavailableError, match="not a SQLite database"):
            await store.find_registration("r")
        await store.aclose()
        assert filecmp.cmp(__file__, path, shallow=False)

    @pytest.mark.parametrize("application", [0, 1])
    async def test_a_database_of_another_program(self, path: Path, application: int) -> None:
        """It is refused, and not a byte of it changes."""
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE theirs (x)")
        other.execute(f"PRAGMA application_id = {application}")
        other.close()
        copy = shutil.copy(path, path.with_suffix(".copy"))
        store = SQLiteStore(path)
        with pytest.raises(ConfigurationError, match="belongs to another program"):
            await store.find_registration("r")
        await store.aclose()
        assert filecmp.cmp(copy, path, shallow=False)
        assert len(modes(path.parent)) == 2  # neither has a log

    def test_tables_that_appear_while_it_looks(self, path: Path) -> None:
        """A process that looks at a new file while another one creates the tables takes it for ours, as it is."""
        here, there = (sqlite3.connect(path, isolation_level=None) for _ in range(2))

        def create(statement: str) -> None:
            if "user_version" in statement:
                here.set_trace_callback(None)
                prepare(there)

        here.set_trace_callback(create)
        prepare(here)
        assert here.execute("PRAGMA user_version").fetchone() == (VERSION,)
        here.close()
        there.close()

    async def test_another_version(self, store: SQLiteStore, path: Path) -> None:
        """A file of another release is refused, with both versions and what to do, and stays as it is."""
        for version, advice in ((VERSION + 1, "upgrade asana-webhooks"), (VERSION - 1, "move the file away")):
            await store.aclose()
            rows(path, f"PRAGMA user_version = {version}")
            store = SQLiteStore(path)
            with pytest.raises(ConfigurationError, match=rf"has version {version}\b.* version {VERSION}\b.*{advice}"):
                await store.find_registration("r")
            assert rows(path, "PRAGMA user_version") == [(version,)]
        await store.aclose()

    async def test_the_file_is_marked(self, store: SQLiteStore, path: Path) -> None:
        """Our files can be told from others."""
        assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
        assert rows(path, "PRAGMA user_version") == [(VERSION,)]

    async def test_tables_are_made_as_a_whole(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When making the tables fails half way, the file stays empty, and the next try works."""
        good = "asana_webhooks.store.sqlite.schema.TABLES"
        with monkeypatch.context() as patch:
            patch.setattr(good, ("CREATE TABLE registrations (x)", "CREATE NONSENSE"))
            store = SQLiteStore(path)
            with pytest.raises(StoreUnavailableError, match="SQLITE_ERROR"):
                await store.find_registration("r")
            assert rows(path, "SELECT count(*) FROM sqlite_master") == [(0,)]
        assert await store.find_registration("r") is None
        await store.aclose()

    async def test_a_file_system_without_shared_memory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where SQLite cannot keep its log, durability cannot be promised."""
        real = sqlite3.connect

        def connect(*args: object, **options: object) -> sqlite3.Connection:
            connection: sqlite3.Connection = real(":memory:", isolation_level=None)  # there is no log for these
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect)
        store = SQLiteStore(path)
        with pytest.raises(StoreUnavailableError, match="write-ahead log"):
            await store.find_registration("r")
        await store.aclose()


class TestDamage:
    """The file changes under us."""

    async def test_damaged_pages(self, store: SQLiteStore, path: Path) -> None:
        """Damage is an error, never an empty answer, and it does not stop the process from trying again."""
        for number in range(200):
            await store.put(new(number))
        await store.aclose()
        whole = path.with_name("whole.db")
        shutil.copy(path, whole)
        damage(path)
        damaged = SQLiteStore(path)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="damaged"):
                await damaged.claim(1, lease=60)
            with pytest.raises(StoreUnavailableError, match="damaged"):
                await damaged.health()
        await damaged.aclose()
        async with SQLiteStore(whole) as repaired:
            assert len(await repaired.claim(500, lease=60)) == 200

    async def test_a_log_that_was_cut_off(self, store: SQLiteStore, path: Path) -> None:
        """The rest of a torn log is gone, what came before is whole; a power cut does the same, so nobody is told."""
        for number in range(20):
            await store.put(new(number))
        torn = path.with_name("torn.db")
        cut(path, torn)
        async with SQLiteStore(torn) as again:
            left = len(rows(torn))
            assert 0 < left < 20
            assert [lease.body for lease in await again.claim(99, lease=60)] == [
                new(number).body for number in range(left)
            ]
            assert (await again.health()).problems == ()

    @pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "empty"])
    async def test_a_log_without_its_file(self, store: SQLiteStore, path: Path, is_missing: bool) -> None:
        """A log that is left beside a missing or empty file holds deliveries: it is refused, and stays as it is."""
        await store.put(new(1))
        left = path.with_name("left.db")
        cut(path, left)
        log = left.with_name("left.db-wal")
        whole, kept = left.read_bytes(), log.read_bytes()
        empty(left, is_missing=is_missing)
        restarted = SQLiteStore(left)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="missing or empty, but its write-ahead log exists"):
                await restarted.find_registration("r")
        assert left.exists() is not is_missing
        assert log.read_bytes() == kept
        left.write_bytes(whole)
        assert (await restarted.find_registration("r")) is not None
        await restarted.aclose()

    async def test_an_empty_log_without_its_file(self, path: Path) -> None:
        """An empty log holds nothing, so the database is made anew."""
        path.with_name("store.db-wal").touch()
        async with SQLiteStore(path) as store:
            assert await store.find_registration("r") is None

    async def test_a_deleted_file(self, store: SQLiteStore, path: Path) -> None:
        """What is written to a file without its name would be lost: it is refused until the name is back."""
        await store.put(new(1))
        rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        kept = path.with_name("kept.db")
        kept.hardlink_to(path)
        remove(path)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="deleted"):
                await store.put(new(2))
            with pytest.raises(StoreUnavailableError, match="deleted"):
                await store.find_registration("r")
        assert "store.db" not in modes(path.parent)
        kept.rename(path)
        assert await store.put(new(1)) == "duplicate"
        assert await store.put(new(2)) == "stored"
        assert len(rows(path)) == 2

    async def test_a_file_that_another_process_made_anew(self, store: SQLiteStore, path: Path) -> None:
        """An empty database in the place of ours knows no registration: it is refused, and nothing is written to it."""
        remove(path)
        async with SQLiteStore(path) as restarted:
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="replaced by another"):
                    await store.put(new(1))
                with pytest.raises(StoreUnavailableError, match="replaced by another"):
                    await store.find_registration("r")
            await confirmed(restarted)
        assert rows(path) == []

    async def test_a_rollback_that_fails(self, store: SQLiteStore) -> None:
        """A connection that cannot even roll back is given up, and the next call opens another."""
        with pytest.raises(ConfigurationError, match="ProgrammingError"):
            await in_writer(store, lambda db: db.close())
        assert await store.put(new(1)) == "stored"


async def test_errors_show_nothing(store: SQLiteStore, other: sqlite3.Connection) -> None:
    """No text of an error holds a secret, a body or a signature."""
    other.execute("BEGIN IMMEDIATE")
    secret = SECRET.reveal()
    calls = [
        store.put(new(1)),
        store.add_candidate("r", SECRET),
        store.confirm_registration("r", webhook_gid="9", secret=SECRET),
    ]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, StoreError)
        for text in (secret, new(1).signature, str(new(1).body)):
            assert text not in f"{error} {error!r} {error.__dict__}"
    other.execute("ROLLBACK")
