"""The tables of the SQLite store."""

from typing import TYPE_CHECKING

from asana_webhooks.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "prepare"]

VERSION = 4
"""Stored in ``PRAGMA user_version``; every change of the tables increases it."""

APPLICATION_ID = 0x41_57_48_4B
"""Stored in ``PRAGMA application_id`` ("AWHK"): distinguishes our files from those of other programs."""

TABLES = (
    # `echoed` outlives the candidates: it shows whether Asana may have created a webhook for the registration.
    # `candidate` is the id of the one that was confirmed. `secret` is plain text, or sealed with the key `key_id`.
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
    # AUTOINCREMENT: an old lease must never match a new delivery. `since` and `due_at`: when a delay or lease begins
    # and ends. `duplicate_key`: the signature, as bytes if it is lower-case hex.
    #
    # Lists of states have two items at most, here and in the indexes. For longer lists SQLite makes a temporary table
    # at each write of a row, which was half of the instructions of a put.
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
    # Of the indexes below, only `deliveries_finished` grows with done deliveries, and its entries come in order.
    # For claims.
    "CREATE INDEX deliveries_waiting ON deliveries (state, id) WHERE state = 'waiting'",
    # For ordered claims.
    """
    CREATE INDEX deliveries_unfinished ON deliveries (registration, id)
    WHERE state = 'waiting' OR state IN ('delayed', 'leased')
    """,
    # For expired leases and delays; the other columns let health count from the index alone.
    "CREATE INDEX deliveries_due ON deliveries (due_at, state, since, received_at) WHERE due_at IS NOT NULL",
    # For leases and delays that began in the future.
    "CREATE INDEX deliveries_since ON deliveries (since) WHERE since IS NOT NULL",
    # For quarantine, and for dead letters that block later deliveries.
    "CREATE INDEX deliveries_apart ON deliveries (state, registration, id) WHERE state IN ('quarantined', 'dead')",
    # For the list of dead letters.
    "CREATE INDEX deliveries_dead ON deliveries (id) WHERE state = 'dead'",
    # For purge.
    "CREATE INDEX deliveries_finished ON deliveries (state, received_at) WHERE state IN ('done', 'dead')",
    # Bodies are separate: SQLite rewrites a whole row at each change, and a delivery changes three times.
    """
    CREATE TABLE bodies (
        delivery INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
        body BLOB NOT NULL
    )
    """,
    # One row, which health writes to test that writing works.
    "CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL)",
)


def prepare(connection: "sqlite3.Connection") -> None:
    """Create the tables in an empty database: all of them, or none.

    Raises:
        ConfigurationError: the file belongs to another program, or to another version of this package.
    """
    if _identity(connection) == (APPLICATION_ID, VERSION):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be creating the tables now
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
    """Return the application id and the version of the tables."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _has_tables(connection: "sqlite3.Connection") -> bool:
    """Return whether our tables exist; raise `ConfigurationError` for those of another program or version."""
    application, version = _identity(connection)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if application != APPLICATION_ID:
        raise ConfigurationError("the database file belongs to another program; give the store another file")
    if version > VERSION:
        raise ConfigurationError(
            f"the database file has version {version}, but this release reads version {VERSION}; upgrade asana-webhooks"
        )
    if version < VERSION:
        raise ConfigurationError(
            f"the database file has version {version}, of an earlier development state, but this release reads version "
            f"{VERSION}; move the file away, so that a new one is created, and create the webhooks again"
        )
    return True
