"""Files of stores that hold much already, filled by plain SQL; and new deliveries to put beside that."""

import asyncio
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final
from unittest.mock import patch

from attrs import frozen

from asana_webhooks import Secret, SQLiteStore
from asana_webhooks.store.base import NewDelivery, candidate_id, registration_id
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.bodies import SECRET, delivery

DAY: Final = 86_400.0
KEPT: Final = 3 * DAY
"""Seconds of history: what a worker keeps by default."""

NUMBERS: Final = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers LIMIT :count)"
REGISTRATIONS: Final = """
    INSERT INTO registrations (id, resource, label, public_url, state, opened_at, deadline, echoed, webhook_gid,
        last_heartbeat_at)
    VALUES (?, '1331', ?, 'https://example.com/asana', 'confirmed', 0, 0, 1, ?, ?)
"""
SECRETS: Final = "INSERT INTO secrets (registration, id, secret) SELECT number, ?, ? FROM registrations"
SEEN: Final = f"""
    {NUMBERS} INSERT INTO seen (event_at, signature, registration, received_at)
    SELECT cast((:from + n * :step) * 1000 AS INTEGER), randomblob(32), 1 + n % :over, :from + n * :step FROM numbers
"""
INBOX: Final = f"""
    {NUMBERS} INSERT INTO inbox (registration, state, received_at, since, due_at)
    SELECT :first + n % :over, 'open', :now, :since, :due_at FROM numbers
"""
BODIES: Final = "INSERT INTO bodies SELECT id, ? FROM inbox"
INDEXES: Final = "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'inbox' AND sql LIKE 'CREATE INDEX%'"
TURNS: Final = """
    UPDATE inbox SET turn = received_at WHERE id IN (SELECT min(id) FROM inbox GROUP BY registration)
"""


@frozen(kw_only=True)
class Waiting:
    """So many deliveries that wait, dealt out to registrations in turn."""

    count: int
    over: int = 100
    """How many registrations."""
    first: int = 1
    """The number of the first of them."""
    delayed: bool = False
    """Whether they failed, and wait for their next attempt."""


def fill(
    path: str, *, registrations: int = 100, done: int = 0, waiting: Sequence[Waiting] = (), age: float = 0
) -> None:
    """Make a store's file that holds so many of each; the last of what is *done* came *age* seconds ago."""

    async def make() -> None:
        async with SQLiteStore(path):
            pass

    asyncio.run(make())
    now = time.time()
    ids = enumerate(map(numbered_id, range(registrations)))
    keys = done + sum(some.count for some in waiting)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -1000000")
        db.executemany(REGISTRATIONS, ((id, str(n), str(n), now) for n, id in ids))
        db.execute(SECRETS, (candidate_id(Secret(SECRET)), SECRET))
        if keys:
            values = {"count": keys, "over": registrations, "from": now - age - KEPT, "step": KEPT / keys}
            db.execute(SEEN, values)
        indexes = dict(db.execute(INDEXES).fetchall())
        for index in indexes:
            db.execute(f"DROP INDEX {index}")
        for some in waiting:
            times = {"since": now, "due_at": now + DAY} if some.delayed else {"since": None, "due_at": None}
            values = {"count": some.count, "over": some.over, "first": some.first, "now": now}
            db.execute(INBOX, {**values, **times})
        db.execute(BODIES, (body_at(1, now),))
        db.execute(TURNS)
        for statement in indexes.values():
            db.execute(statement)
        db.commit()
    with Path(path).open("rb") as file:
        os.fsync(file)  # or the first checkpoint would have to wait for all this


def numbered_id(number: int) -> str:
    """Return the id of one of the registrations in a filled file, counted from 0."""
    return registration_id(numbered_endpoint(number))


def numbered_endpoint(number: int) -> str:
    """Return the endpoint of this registration."""
    return f"endpoint-{number}"


def body_at(events: int, at: float) -> bytes:
    """Return the body of a delivery whose events were created *at* this time."""
    created_at = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").encode()
    return re.sub(rb'(?<="created_at":")[^"]*', created_at, delivery(events))


def arriving(count: int, *, registrations: int, events: int = 1) -> list[NewDelivery]:
    """Return new deliveries for registrations picked at random; their events were created now, one after the other."""
    now = time.time()
    return [
        NewDelivery(
            registration=numbered_id(secrets.randbelow(registrations)),
            signature=secrets.token_hex(32),
            body=body_at(events, now + number / 1000),
        )
        for number in range(count)
    ]


@contextmanager
def timed(name: str, clock: Callable[[], float] = time.perf_counter) -> Iterator[list[float]]:
    """Yield a list of seconds: how long each call of a function takes, given as ``package.module.function``."""
    seconds = list[float]()
    function = resolve_name(name)

    def noting(*args: Any, **options: Any) -> Any:
        began = clock()
        result = function(*args, **options)
        seconds.append(clock() - began)
        return result

    with patch(name, noting):
        yield seconds


class WrittenPages:
    """Counts the pages that other connections write to a database; none of them may use it at this moment.

    Once all of its log is in the database, SQLite begins it again with the next write. From then on this reader keeps
    it from doing so, and the length of the log tells.
    """

    def __init__(self, path: str) -> None:
        self._reader = sqlite3.connect(path, isolation_level=None)
        self._checkpoint()
        self._reader.execute("BEGIN")
        self._reader.execute("SELECT * FROM sqlite_master").fetchall()

    def _checkpoint(self) -> int:
        busy, pages, copied = self._reader.execute("PRAGMA wal_checkpoint").fetchone()
        assert (busy, pages) == (0, copied)
        return int(pages)

    def close(self) -> int:
        """Return how many pages were written; one that several transactions wrote counts for each."""
        self._reader.execute("COMMIT")
        pages = self._checkpoint()
        self._reader.close()
        return pages
