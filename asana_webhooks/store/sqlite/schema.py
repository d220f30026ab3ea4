"""The tables of the SQLite store."""

from typing import TYPE_CHECKING

from asana_webhooks.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "prepare"]

VERSION = 4
"""Kept in ``PRAGMA user_version``; raised by every change of the tables."""

APPLICATION_ID = 0x41_57_48_4B
"""Kept in ``PRAGMA application_id``: tells our files from other programs' ("AWHK")."""

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
    # AUTOINCREMENT: an old lease must never fit a new delivery. `since` and `due_at`: when a delay or lease began, and
    # when it ends. `duplicate_key`: the signature, as bytes if it is lower-case hex.
    #
    # States are compared in pairs, here and in the indexes: SQLite makes a temporary table of a longer list each time a
    # row is written, and that was half of the instructions of a put.
    """
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
    """,
    # None of the indexes grows with deliveries that are done but the last, whose entries come in order.
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


def prepare(connection: "sqlite3.Connection") -> None:
    """Make the tables in an empty database; all of them, or nothing.

    Raises:
        ConfigurationError: the file belongs to another program, or to another version of this one.
    """
    if _identity(connection) == (APPLICATION_ID, VERSION):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be making the tables just now
    try:
        if not _has_tables(connection):
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _identity(connection: "sqlite3.Connection") -> tuple[int, int]:
    """Return which program made the tables, and in which version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _has_tables(connection: "sqlite3.Connection") -> bool:
    """Tell whether the tables are there; an error if the tables of somebody else are."""
    application, version = _identity(connection)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if application != APPLICATION_ID:
        raise ConfigurationError("the database file belongs to another program; give the store a file of its own")
    if version > VERSION:
        raise ConfigurationError(
            f"the database file has version {version}, and this release reads version {VERSION}; upgrade asana-webhooks"
        )
    if version < VERSION:
        raise ConfigurationError(
            f"the database file has version {version}, of an earlier development state, and this release reads version "
            f"{VERSION}; move the file away, so that a new one is made, and create the webhooks anew"
        )
    return True
