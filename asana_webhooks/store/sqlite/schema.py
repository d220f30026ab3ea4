"""The tables of the SQLite store."""

from typing import TYPE_CHECKING

from asana_webhooks.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "is_ready", "prepare"]

VERSION = 5
"""Stored in ``PRAGMA user_version``; every change of the tables increases it."""

APPLICATION_ID = 0x41_57_48_4B
"""Stored in ``PRAGMA application_id`` ("AWHK"): distinguishes our files from those of other programs."""

# One statement, so that the answers fit together if another process creates the tables meanwhile.
LOOK = """
    SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
    FROM pragma_application_id, pragma_user_version
"""

# AUTOINCREMENT: the number of a forgotten registration or delivery is never used again.
# REFERENCES are not enforced, which would cost a lookup for each row; `integrity_check` checks them.
TABLES = (
    # `echoed` outlives the candidates: it shows whether Asana may have created a webhook for the registration.
    """
    CREATE TABLE registrations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        resource TEXT NOT NULL,
        label TEXT NOT NULL,
        public_url TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state = 'confirmed' OR state IN ('pending', 'closed')),
        opened_at REAL NOT NULL,
        deadline REAL NOT NULL,
        echoed INTEGER NOT NULL DEFAULT 0,
        webhook_gid TEXT,
        last_heartbeat_at REAL,
        last_delivery_at REAL,
        replaces TEXT,
        retire_after REAL
    )
    """,
    "CREATE INDEX registrations_label ON registrations (label, id)",
    "CREATE INDEX registrations_resource ON registrations (resource, label, id)",
    "CREATE INDEX registrations_webhook ON registrations (webhook_gid) WHERE webhook_gid IS NOT NULL",
    # For expire_registrations and purge, which repeat its condition: else SQLite does not use it.
    "CREATE INDEX registrations_ending ON registrations (state, deadline) WHERE state <> 'confirmed'",
    # For health.
    """
    CREATE INDEX registrations_silent ON registrations (max(opened_at, coalesce(last_heartbeat_at, 0)))
    WHERE state = 'confirmed'
    """,
    # The candidates of a pending registration, or the secret of a confirmed one: plain text, or sealed with `key_id`.
    """
    CREATE TABLE secrets (
        number INTEGER PRIMARY KEY,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        id TEXT NOT NULL,
        secret TEXT NOT NULL,
        key_id TEXT,
        UNIQUE (registration, id)
    )
    """,
    "CREATE INDEX secrets_key ON secrets (key_id, number) WHERE key_id IS NOT NULL",
    # The keys of all deliveries, to recognize duplicates. The event's time comes first, so that new keys go to the last
    # pages and old ones are deleted by range: the cost of a put does not grow with history. `event_at`: milliseconds.
    # `signature`: bytes if it is lower-case hex.
    """
    CREATE TABLE seen (
        event_at INTEGER NOT NULL,
        signature BLOB NOT NULL,
        registration INTEGER NOT NULL,
        received_at REAL NOT NULL,
        PRIMARY KEY (event_at, signature, registration)
    ) WITHOUT ROWID
    """,
    # The deliveries that are not done. An open one is waiting unless `due_at` is set: then it is leased if it has a
    # `fence`, else delayed, since `since`. -1 as fence: released or requeued. `turn` is set only for the first open
    # delivery of each registration: when the registration was last served. It orders claims, so that each registration
    # gets its turn. `done`: JSON.
    """
    CREATE TABLE inbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        registration INTEGER NOT NULL REFERENCES registrations (number),
        state TEXT NOT NULL CHECK (state = 'open' OR state IN ('quarantined', 'dead')),
        received_at REAL NOT NULL,
        turn REAL CHECK (turn IS NULL OR state = 'open'),
        candidate TEXT,
        since REAL CHECK ((since IS NULL) = (due_at IS NULL)),
        due_at REAL CHECK (due_at IS NULL OR state = 'open'),
        fence INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        unanswered INTEGER NOT NULL DEFAULT 0,
        done TEXT NOT NULL DEFAULT '[]',
        error TEXT NOT NULL DEFAULT ''
    )
    """,
    "CREATE INDEX inbox_queue ON inbox (registration, state, id)",
    "CREATE INDEX inbox_waiting ON inbox (id) WHERE state = 'open' AND due_at IS NULL",
    "CREATE INDEX inbox_turns ON inbox (turn, id) WHERE turn IS NOT NULL AND due_at IS NULL",
    "CREATE INDEX inbox_due ON inbox (fence = 0, due_at, since, received_at) WHERE due_at IS NOT NULL",
    # For leases and delays that began in the future: the clock was set back.
    "CREATE INDEX inbox_since ON inbox (since) WHERE since IS NOT NULL",
    "CREATE INDEX inbox_apart ON inbox (state, id) WHERE state <> 'open'",
    # Bodies are separate: SQLite rewrites a whole row at each change.
    "CREATE TABLE bodies (delivery INTEGER PRIMARY KEY REFERENCES inbox (id), body BLOB NOT NULL)",
    """
    CREATE TRIGGER registrations_closed AFTER UPDATE OF state ON registrations WHEN NEW.state = 'closed' BEGIN
        DELETE FROM secrets WHERE registration = NEW.number;
        DELETE FROM bodies WHERE delivery IN (
            SELECT id FROM inbox WHERE registration = NEW.number AND state = 'quarantined'
        );
        DELETE FROM inbox WHERE registration = NEW.number AND state = 'quarantined';
    END
    """,
    # If the first open delivery dies, the next one inherits its turn.
    """
    CREATE TRIGGER inbox_dead AFTER UPDATE OF state ON inbox WHEN OLD.turn IS NOT NULL BEGIN
        UPDATE inbox SET turn = OLD.turn
        WHERE id = (SELECT min(id) FROM inbox WHERE registration = OLD.registration AND state = 'open');
    END
    """,
    # If one that is released or requeued is the first now, the next one loses its turn.
    """
    CREATE TRIGGER inbox_opened AFTER UPDATE OF state ON inbox WHEN NEW.state = 'open' BEGIN
        UPDATE inbox SET turn = NULL WHERE turn IS NOT NULL AND id = (
            SELECT min(id) FROM inbox WHERE registration = NEW.registration AND state = 'open' AND id > NEW.id
        );
        UPDATE inbox SET turn = NEW.received_at WHERE turn IS NULL
            AND id = (SELECT min(id) FROM inbox WHERE registration = NEW.registration AND state = 'open');
    END
    """,
    # One row, which health writes to test that writing works.
    "CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL)",
)


def prepare(connection: "sqlite3.Connection") -> None:
    """Create the tables in an empty database: all of them, or none.

    Raises:
        ConfigurationError: the file belongs to another program, or to another version of this package.
    """
    if is_ready(connection):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be creating the tables now
    try:
        if not is_ready(connection):
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        connection.rollback()  # unless it is committed


def is_ready(connection: "sqlite3.Connection") -> bool:
    """Return whether our tables exist; raise `ConfigurationError` for those of another program or version."""
    application, version, tables = connection.execute(LOOK).fetchone()
    if (application, version, tables) == (0, 0, 0):
        return False
    if application != APPLICATION_ID:
        raise ConfigurationError("the database file belongs to another program; give the store another file")
    if version != VERSION:
        advice = "upgrade asana-webhooks"
        if version < VERSION:
            advice = "move the file away, so that a new one is created, and create the webhooks again"
        what = f"the database file has version {version}, but this release reads version {VERSION}"
        raise ConfigurationError(f"{what}; {advice}")
    return True
