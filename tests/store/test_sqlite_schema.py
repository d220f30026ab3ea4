"""The tables, and files of older releases."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from asana_webhooks.errors import StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store import NewDelivery, RegistrationState, SQLiteStore, candidate_id
from asana_webhooks.store.sqlite import schema
from asana_webhooks.store.sqlite.schema import APPLICATION_ID, VERSION
from tests.store.sqlite_help import SECRET, in_writer, rows

OTHER = Secret("b" * 32)
FAR = 32_503_680_000.0  # a deadline in the year 3000

VERSION_1 = """
    CREATE TABLE registrations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        resource TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'confirmed', 'closed')),
        deadline REAL NOT NULL,
        echoed INTEGER NOT NULL DEFAULT 0,
        secret TEXT,
        webhook_gid TEXT,
        last_heartbeat_at REAL
    );
    CREATE INDEX registrations_by_state ON registrations (state, deadline);
    CREATE TABLE candidates (
        number INTEGER PRIMARY KEY,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        id TEXT NOT NULL,
        secret TEXT NOT NULL,
        UNIQUE (registration, id)
    );
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        signature TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('quarantined', 'waiting', 'delayed', 'leased', 'done', 'dead')),
        received_at REAL NOT NULL,
        since REAL CHECK ((since IS NOT NULL) = (state IN ('delayed', 'leased'))),
        due_at REAL CHECK ((due_at IS NOT NULL) = (state IN ('delayed', 'leased'))),
        fence INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        candidate TEXT,
        UNIQUE (registration, signature)
    );
    CREATE INDEX deliveries_by_state ON deliveries (state, id);
    CREATE INDEX deliveries_by_registration ON deliveries (state, registration, id);
    CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX deliveries_since ON deliveries (since) WHERE since IS NOT NULL;
    CREATE INDEX deliveries_finished ON deliveries (state, received_at) WHERE state IN ('done', 'dead');
    CREATE TABLE bodies (
        delivery INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
        body BLOB NOT NULL
    );
    CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL);
    PRAGMA user_version = 1;
"""
"""What release 0.1.0 made."""

OPENING = """
import asyncio, sys
from asana_webhooks.store import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    async with store:
        print((await store.find("r")).secret.reveal())

asyncio.run(main())
"""


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """A file as release 0.1.0 left it: registrations "r" (confirmed), "p" (pending), "c" (closed), one delivery."""
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(VERSION_1)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.executemany(
        "INSERT INTO registrations (id, resource, state, deadline, echoed, secret, webhook_gid) "
        "VALUES (?, '1', ?, ?, 1, ?, ?)",
        [
            ("r", "confirmed", 1.0, SECRET.reveal(), "2"),
            ("p", "pending", FAR, None, None),
            ("c", "closed", 1.0, None, "3"),
        ],
    )
    connection.execute(
        "INSERT INTO candidates (registration, id, secret) VALUES (2, ?, ?)", (candidate_id(OTHER), OTHER.reveal())
    )
    connection.execute(
        "INSERT INTO deliveries (registration, signature, state, received_at) VALUES (1, 's', 'waiting', 1)"
    )
    connection.execute("INSERT INTO bodies (delivery, body) VALUES (1, x'7b7d')")
    connection.commit()
    connection.close()
    return path


def columns(path: Path) -> dict[str, list[object]]:
    """Return the columns of each table, in any order."""
    tables = [str(name) for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {
        name: sorted(
            rows(path, f"SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info('{name}')"), key=str
        )
        for name in tables
    }


def foreign_keys(path: Path) -> list[tuple[object, ...]]:
    query = """
        SELECT name, keys."from", keys."table", keys."to", on_delete
        FROM sqlite_master, pragma_foreign_key_list(name) AS keys ORDER BY 1, 2
    """
    return rows(path, query)


def indexes(path: Path) -> list[tuple[object, ...]]:
    return rows(path, "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name")


class TestOldFiles:
    """A file of release 0.1.0 goes on."""

    async def test_everything_is_there(self, path: Path) -> None:
        """Registrations, candidates and deliveries are as they were, and everything works with them."""
        async with SQLiteStore(path) as store:
            found = [await store.find(id) for id in ("r", "p", "c")]
            assert [one and (one.state, one.secret, one.candidates, one.webhook_gid) for one in found] == [
                (RegistrationState.CONFIRMED, SECRET, (), "2"),
                (RegistrationState.PENDING, None, (OTHER,), None),
                (RegistrationState.CLOSED, None, (), "3"),
            ]
            assert await store.confirm("r", webhook_gid="2", secret=SECRET)
            assert not await store.confirm("r", webhook_gid="2", secret=OTHER)
            late = NewDelivery(registration="r", signature="t", body=b"", candidate=candidate_id(SECRET))
            assert await store.put(late) == "stored"
            assert await store.offer("p", OTHER)
            assert await store.confirm("p", webhook_gid="4", secret=OTHER)
            assert [lease.body for lease in await store.claim(9, lease=60)] == [b"{}", b""]
        assert rows(path, "PRAGMA user_version") == [(VERSION,)]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]

    async def test_it_becomes_like_a_new_one(self, path: Path, tmp_path: Path) -> None:
        """The tables of an old file end up as those of a new one."""
        fresh = tmp_path / "fresh.db"
        for each in (path, fresh):
            async with SQLiteStore(each):
                pass
        assert columns(path) == columns(fresh)
        assert indexes(path) == indexes(fresh)
        assert foreign_keys(path) == foreign_keys(fresh)

    @pytest.mark.parametrize("version", [2, 3])
    async def test_all_or_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
        """When it fails half way the old file is as it was, and the next try works."""
        good = f"asana_webhooks.store.sqlite.schema.VERSION_{version}"
        steps = getattr(schema, f"VERSION_{version}")
        before = columns(path)
        store = SQLiteStore(path)
        with monkeypatch.context() as patch:
            patch.setattr(good, (*steps[:-1], "ALTER NONSENSE"))
            with pytest.raises(StoreUnavailableError, match="SQLITE_ERROR"):
                await store.find("r")
            assert columns(path) == before
            assert rows(path, "PRAGMA user_version") == [(1,)]
        assert await store.find("r") is not None
        await store.aclose()

    async def test_deliveries_go_on_as_they_were(self, path: Path) -> None:
        """In whatever state a delivery is, nothing about it changes but the form of its signature."""
        with closing(sqlite3.connect(path)) as old:
            old.executemany(
                "INSERT INTO deliveries VALUES (?, 1, ?, ?, ?, ?, ?, 3, 2, 'an error', 'a candidate')",
                [
                    (number, f"{number:064x}", state, 10.5 + number, *([20.5, FAR] if number in {3, 4} else [None] * 2))
                    for number, state in enumerate(("done", "delayed", "leased", "dead", "quarantined"), 2)
                ],
            )
            old.commit()
        columns = """
            SELECT {}, id, registration, state, received_at, since, due_at, fence, attempts, error, candidate
            FROM deliveries ORDER BY id
        """
        before = rows(path, columns.format("signature"))
        assert len(before) == 6
        async with SQLiteStore(path) as store:
            as_text = "iif(typeof(duplicate_key) = 'blob', lower(hex(duplicate_key)), duplicate_key)"
            assert rows(path, columns.format(as_text)) == before
            assert list(await store.integrity_check()) == []
            assert await in_writer(store, lambda db: db.execute("PRAGMA foreign_keys").fetchone()) == (1,)

    async def test_what_is_known_stays_known(self, path: Path) -> None:
        """A delivery that an older release stored is a duplicate for this one, whatever its signature looks like."""
        signatures = ["s", "0a" * 32, "0A" * 32, "0a" * 3, "0a 0a", ""]
        with closing(sqlite3.connect(path)) as old:
            old.executemany(
                "INSERT INTO deliveries (registration, signature, state, received_at) VALUES (1, ?, 'done', 1)",
                [(signature,) for signature in signatures[1:]],
            )
            old.commit()
        async with SQLiteStore(path) as store:
            again = [NewDelivery(registration="r", signature=signature, body=b"") for signature in signatures]
            assert await asyncio.gather(*map(store.put, again)) == ["duplicate"] * 6
            other = NewDelivery(registration="r", signature="0b" * 32, body=b"")
            assert await store.put(other) == "stored"

    async def test_an_older_release_that_goes_on_fails(self, path: Path) -> None:
        """A process that has the file open with an older release cannot store again what it no longer recognizes."""
        with closing(sqlite3.connect(path)) as old:
            async with SQLiteStore(path):
                with pytest.raises(sqlite3.OperationalError, match="no column named signature"):
                    old.execute(
                        "INSERT INTO deliveries (registration, signature, state, received_at) VALUES (1, '', 'done', 1)"
                    )

    async def test_numbers_go_on(self, path: Path) -> None:
        """The number of a delivery that an older release has forgotten is not given out again."""
        with closing(sqlite3.connect(path)) as old:
            old.execute(
                "INSERT INTO deliveries (id, registration, signature, state, received_at) VALUES (9, 1, 't', 'done', 1)"
            )
            old.execute("DELETE FROM deliveries")
            old.execute("DELETE FROM bodies")
            old.commit()
        async with SQLiteStore(path) as store:
            await store.put(NewDelivery(registration="r", signature="u", body=b""))
            assert [lease.id for lease in await store.claim(9, lease=60)] == [10]

    @pytest.mark.slow
    def test_two_processes_at_once(self, path: Path) -> None:
        """Processes of a new release that start together bring the file up to date once, and both can use it."""
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", OPENING, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate()[0] for process in processes]
        assert answers == [f"{SECRET.reveal()}\n"] * 2
        assert [process.returncode for process in processes] == [0, 0]
        assert rows(path, "PRAGMA user_version") == [(VERSION,)]

    async def test_who_reads_first(self, path: Path) -> None:
        """Also when the first call only reads, the old file is brought up to date before."""
        store = SQLiteStore(path)
        found = await asyncio.gather(store.find("r"), store.dead_letters(), store.find("c"))
        assert found[0] is not None
        await store.aclose()

    async def test_a_reader_needs_no_lock(self, path: Path) -> None:
        """Once the file is up to date, opening it to read does not wait for somebody who writes."""
        async with SQLiteStore(path):
            pass
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store = SQLiteStore(path, busy_timeout=0.05)
        assert await store.find("r") is not None
        other.close()
        await store.aclose()
