"""The tables of the PostgreSQL store, and the steps that create and migrate them."""

import re
from typing import Any, Final

from asana_webhooks.errors import ConfigurationError

__all__ = ["DEFAULT_SCHEMA", "STEPS", "check_schema", "check_settings", "postgres_schema", "prepare"]

DEFAULT_SCHEMA: Final = "asana_webhooks"

# The number of a forgotten registration or delivery is never used again. Ids of registrations sort as in Python.
# `seen` and `inbox` have no foreign keys: each put would lock the row of its registration.
_TABLES: Final = """
CREATE TABLE @steps (number integer PRIMARY KEY, kind text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE @registrations (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    resource text NOT NULL,
    label text NOT NULL,
    public_url text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'confirmed', 'closed')),
    opened_at float8 NOT NULL,
    deadline float8 NOT NULL,
    closed_at float8,                      -- of one that was confirmed: a put that saw it so may not have ended
    echoed boolean NOT NULL DEFAULT false, -- it outlives the candidates
    webhook_gid text,
    last_heartbeat_at float8,
    last_delivery_at float8,
    replaces text,
    retire_after float8
) WITH (fillfactor = 80);
CREATE INDEX registrations_label ON @registrations (label, id);
CREATE INDEX registrations_resource ON @registrations (resource, label, id);
CREATE INDEX registrations_webhook ON @registrations (webhook_gid) WHERE webhook_gid IS NOT NULL;
CREATE INDEX registrations_ending ON @registrations (state, deadline) WHERE state <> 'confirmed';
CREATE INDEX registrations_silent ON @registrations (greatest(opened_at, coalesce(last_heartbeat_at, 0)))
    WHERE state = 'confirmed';

-- The candidates of a pending registration, or the secret of a confirmed one: plain text, or sealed with key_id.
CREATE TABLE @secrets (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    registration bigint NOT NULL REFERENCES @registrations (number) ON DELETE CASCADE,
    id text NOT NULL,
    secret bytea NOT NULL,
    key_id text,
    UNIQUE (registration, id)
);
CREATE INDEX secrets_key ON @secrets (key_id, number) WHERE key_id IS NOT NULL;

-- The keys of all deliveries, to recognize duplicates. The event's time (in milliseconds) comes first, so that new keys
-- go to the last pages and old ones are deleted by range: the cost of a put does not grow with history.
CREATE TABLE @seen (
    event_at bigint NOT NULL,
    signature bytea NOT NULL,
    registration bigint NOT NULL,
    received_at float8 NOT NULL,
    PRIMARY KEY (event_at, signature, registration)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);

-- The deliveries that are not done. An open one is waiting unless due_at is set: then it is leased if it has a fence,
-- else delayed, since `since`. done: the indices of the events that are handled.
CREATE TABLE @inbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    registration bigint NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'quarantined', 'dead')),
    received_at float8 NOT NULL,
    candidate text,
    since float8,
    due_at float8 CHECK (due_at IS NULL OR (state = 'open' AND since IS NOT NULL)),
    fence bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    unanswered integer NOT NULL DEFAULT 0,
    done bigint[] NOT NULL DEFAULT '{}',
    error text NOT NULL DEFAULT '',
    body bytea NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000
);
CREATE INDEX inbox_waiting ON @inbox (id) WHERE state = 'open' AND due_at IS NULL;
CREATE INDEX inbox_turns ON @inbox (registration, id) WHERE state = 'open' AND due_at IS NULL;
CREATE INDEX inbox_held ON @inbox (registration, id) WHERE due_at IS NOT NULL;
CREATE INDEX inbox_due ON @inbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX inbox_since ON @inbox (since) WHERE since IS NOT NULL; -- what began in the future: the clock was set back
CREATE INDEX inbox_apart ON @inbox (state, id) WHERE state <> 'open';
CREATE INDEX inbox_behind ON @inbox (registration, state, id) WHERE state <> 'open';

-- One row, which health writes to test that writing works.
CREATE TABLE @probe (one integer PRIMARY KEY CHECK (one = 1), at float8 NOT NULL);
"""
STEPS: Final = (("pre", _TABLES),)
"""The steps of the tables' history, counted from 1: when each may run, and its statements, where ``@`` stands for the
schema. ``pre``: the release before works with it, so it may run before the new one starts, and stores run it when they
open. ``post``: it may run only when no process of the release before is left; only an operator runs it."""

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_SETTINGS: Final = """
SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('server_encoding') AS encoding
"""


def check_schema(schema: str) -> str:
    """Return *schema*; raise `ConfigurationError` unless it is a plain name in lower case."""
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", schema):
        raise ConfigurationError("schema must be a name of at most 63 lower-case letters, digits and underscores")
    return schema


def postgres_schema(*, schema: str = DEFAULT_SCHEMA, after: int = 0) -> str:
    """Return the SQL that creates and migrates the tables of a `PostgresStore`, for those who run it themselves.

    ``python -c "from asana_webhooks.store.postgres import postgres_schema; print(postgres_schema())"`` prints it. The
    role of the store then needs no right to create anything: USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE
    on its tables.

    Each step says when it may run: ``pre`` before the new release starts, ``post`` only when no process of the release
    before is left. Each one is a transaction.

    Args:
        schema: the same as the store's.
        after: leave out the steps up to this number: those in the schema's table ``steps``.

    Raises:
        ConfigurationError: *schema* is not a plain name.
    """
    name = f'"{check_schema(schema)}"'
    parts = [] if after else [f"CREATE SCHEMA IF NOT EXISTS {name};"]
    for number, (kind, _) in list(enumerate(STEPS, 1))[after:]:
        parts.append(f"-- Step {number} ({kind})\nBEGIN;{_sql(number)}COMMIT;")
    return "\n".join(parts).replace("@", f"{name}.") + "\n"


def _sql(number: int) -> str:
    kind, sql = STEPS[number - 1]
    return f"{sql}INSERT INTO @steps (number, kind) VALUES ({number}, '{kind}');\n"  # noqa: S608


async def check_settings(connection: Any) -> None:
    """Check that a commit is durable.

    Raises:
        ConfigurationError: the server does not wait for its disk, or cannot save every text.
    """
    row = await connection.first(_SETTINGS)
    for name in ("fsync", "synchronous_commit"):
        if row[name] == "off":
            raise ConfigurationError(
                f"PostgreSQL has {name} = off, so it can lose deliveries that were acknowledged to Asana; turn it on "
                "(it may be set for the server, the database, the role, or in the DSN)"
            )
    if row["encoding"] != "UTF8":
        raise ConfigurationError("the database must have the encoding UTF8; create one with ENCODING 'UTF8'")


async def prepare(connection: Any, *, schema: str, create: bool) -> None:
    """Run the steps that are missing; stores that start at the same time wait for each other.

    Raises:
        ConfigurationError: the tables are those of a later release, or steps are missing and the role may not run them,
            or *create* is false.
    """
    if not _missing(await _applied(connection, schema)):
        return
    missing = f"the tables in the schema {schema} are missing or not up to date"
    if not create:
        raise ConfigurationError(
            f"{missing}; check the database's name, or start the service first, which creates them"
        )
    try:
        async with connection.transaction():
            await connection.fetch(_LOCK, f"asana_webhooks schema {schema}")
            for number in _missing(await _applied(connection, schema)):
                # IF NOT EXISTS would want the right to create schemas even where there is one.
                if not await connection.first("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
                    await connection.fetch(f'CREATE SCHEMA "{schema}"')
                await connection.run(_sql(number))
    except Exception as error:
        if getattr(error, "sqlstate", None) != "42501":
            raise
        raise ConfigurationError(
            f"{missing}, and this role may not create them; run the SQL of "
            "asana_webhooks.store.postgres.postgres_schema() as their owner"
        ) from None


async def _applied(connection: Any, schema: str) -> dict[int, str]:
    """Return the steps that were run, with their kind."""
    # to_regclass would answer from a cache that does not know what was created while this transaction waited.
    there = "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'steps'"
    if not await connection.first(there, schema):
        return {}
    return {row["number"]: row["kind"] for row in await connection.fetch("SELECT number, kind FROM @steps")}


def _missing(applied: dict[int, str]) -> list[int]:
    """Return the steps to run; raise `ConfigurationError` if this release cannot use the tables any more."""
    later = [number for number, kind in applied.items() if kind == "post" and number > len(STEPS)]
    if later:
        raise ConfigurationError(
            f"the tables have step {max(later)}, which only a later release understands; upgrade asana-webhooks"
        )
    return [number for number, (kind, _) in enumerate(STEPS, 1) if kind == "pre" and number not in applied]
