"""The tables of the SQLite store."""

import sqlite3
from itertools import starmap

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import candidate_id

__all__ = ["APPLICATION_ID", "VERSION", "kept_signature", "prepare"]

VERSION = 3
"""Kept in ``PRAGMA user_version``; raised by every change of the tables."""

APPLICATION_ID = 0x41_57_48_4B
"""Kept in ``PRAGMA application_id``: tells our files from other programs' ("AWHK")."""

DELIVERIES = """
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        duplicate_key BLOB NOT NULL,
        state TEXT NOT NULL CHECK (
            state IN ('quarantined', 'waiting') OR state IN ('delayed', 'leased') OR state IN ('done', 'dead')
        ),
        received_at REAL NOT NULL,
        since REAL CHECK ((since IS NOT NULL) = (state IN ('delayed', 'leased'))),
        due_at REAL CHECK ((due_at IS NOT NULL) = (state IN ('delayed', 'leased'))),
        fence INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        candidate TEXT,
        UNIQUE (registration, duplicate_key)
    )
"""
"""AUTOINCREMENT: an old lease must never fit a new delivery. `since` and `due_at`: when a delay or lease began, and
when it ends. `duplicate_key`: see `kept_signature`; it has not the name it had, so that a process with an older release
that has the file open cannot go on storing what is there already.

States are compared in pairs, here and in the indexes: SQLite makes a temporary table of a longer list each time a row
is written, and that was half of the instructions of a put.
"""

DELIVERIES_INDEXES = (
    # For claims.
    "CREATE INDEX deliveries_waiting ON deliveries (state, id) WHERE state = 'waiting'",
    # For ordered claims.
    """
    CREATE INDEX deliveries_unfinished ON deliveries (registration, id)
    WHERE state = 'waiting' OR state IN ('delayed', 'leased')
    """,
    # For leases and delays that ran out; the other columns let health count without looking at the rows.
    "CREATE INDEX deliveries_due ON deliveries (due_at, state, since, received_at) WHERE due_at IS NOT NULL",
    # For those that began in the future.
    "CREATE INDEX deliveries_since ON deliveries (since) WHERE since IS NOT NULL",
    # For quarantine, and for dead letters that hold up others.
    "CREATE INDEX deliveries_apart ON deliveries (state, registration, id) WHERE state IN ('quarantined', 'dead')",
    # For the list of dead letters.
    "CREATE INDEX deliveries_dead ON deliveries (id) WHERE state = 'dead'",
    # For purge.
    "CREATE INDEX deliveries_finished ON deliveries (state, received_at) WHERE state IN ('done', 'dead')",
)
"""None of them grows with deliveries that are done but the last, whose entries come in order."""

TABLES = (
    # `echoed` outlives the candidates: it answers whether Asana can have created a webhook for the registration.
    # `candidate` is which of them it was confirmed with. A secret is text, or sealed with the key of `key_id`.
    """
    CREATE TABLE registrations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        resource TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'confirmed', 'closed')),
        deadline REAL NOT NULL,
        echoed INTEGER NOT NULL DEFAULT 0,
        secret TEXT,
        webhook_gid TEXT,
        last_heartbeat_at REAL,
        key_id TEXT,
        candidate TEXT
    )
    """,
    # For sweep and health.
    "CREATE INDEX registrations_by_state ON registrations (state, deadline)",
    """
    CREATE TABLE candidates (
        number INTEGER PRIMARY KEY,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        id TEXT NOT NULL,
        secret TEXT NOT NULL,
        key_id TEXT,
        UNIQUE (registration, id)
    )
    """,
    DELIVERIES,
    *DELIVERIES_INDEXES,
    # Bodies lie apart: SQLite writes a row anew with each change of it, and a delivery changes three times.
    """
    CREATE TABLE bodies (
        delivery INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
        body BLOB NOT NULL
    )
    """,
    # One row that is written to see whether writing works.
    "CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL)",
)

VERSION_2 = (
    "ALTER TABLE registrations ADD COLUMN key_id TEXT",
    "ALTER TABLE registrations ADD COLUMN candidate TEXT",
    "ALTER TABLE candidates ADD COLUMN key_id TEXT",
)
"""What makes the tables of version 1 into those of version 2."""

VERSION_3 = (
    DELIVERIES.replace("TABLE deliveries", "TABLE deliveries_anew"),
    """
    INSERT INTO deliveries_anew
    SELECT id, registration, kept_signature(signature), state, received_at, since, due_at, fence, attempts, error,
        candidate
    FROM deliveries ORDER BY id
    """,
    # The highest number given out so far, which may be of a delivery that is forgotten.
    "DELETE FROM sqlite_sequence WHERE name = 'deliveries_anew'",
    "INSERT INTO sqlite_sequence SELECT 'deliveries_anew', seq FROM sqlite_sequence WHERE name = 'deliveries'",
    "DROP TABLE deliveries",
    "ALTER TABLE deliveries_anew RENAME TO deliveries",
    *DELIVERIES_INDEXES,
)
"""What makes the tables of version 2 into those of version 3: a table cannot get other checks but by being made anew.
Source: https://www.sqlite.org/lang_altertable.html#otheralter
"""


def kept_signature(signature: str) -> bytes | str:
    """Return a signature as it is kept: the bytes of lower-case hex, or else the text, so that no two become one."""
    try:
        content = bytes.fromhex(signature)
    except ValueError:
        return signature
    return content if content.hex() == signature else signature


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database, or those of an older version into today's; all of it, or nothing.

    Foreign keys are not looked after when it returns.

    Raises:
        ConfigurationError: the file is none of ours, or too new.
    """
    if _version(connection) == VERSION:
        return
    connection.execute("PRAGMA foreign_keys = OFF")  # or what refers to a table that is made anew would go with it
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # another process may have been faster
        if version is None:
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        if version == 1:
            _let_secrets_be_sealed(connection)
        if version in {1, 2}:
            _make_deliveries_anew(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _let_secrets_be_sealed(connection: sqlite3.Connection) -> None:
    for statement in VERSION_2:
        connection.execute(statement)
    confirmed = connection.execute("SELECT number, secret FROM registrations WHERE secret IS NOT NULL")
    connection.executemany("UPDATE registrations SET candidate = ? WHERE number = ?", list(starmap(_named, confirmed)))


def _make_deliveries_anew(connection: sqlite3.Connection) -> None:
    connection.create_function("kept_signature", 1, kept_signature, deterministic=True)
    for statement in VERSION_3:
        connection.execute(statement)


def _named(number: int, secret: str) -> tuple[str, int]:
    return candidate_id(Secret(secret)), number


def _version(connection: sqlite3.Connection) -> int | None:
    """Return the version of the tables; ``None`` if there are none yet."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return None
    if application != APPLICATION_ID:
        raise ConfigurationError("the database file belongs to another program; give the store a file of its own")
    if version > VERSION:
        raise ConfigurationError(
            f"the database file has version {version}, and this release knows versions up to {VERSION}; "
            "upgrade asana-webhooks"
        )
    return int(version)
