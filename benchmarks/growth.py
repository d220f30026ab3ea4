"""Whether work grows with what a store holds: the same calls on files with ever more in them.

The files are filled by plain SQL. A round adds as many deliveries as it finishes, and leaves what waits as it was.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

from asana_webhooks import Secret, SQLiteStore
from asana_webhooks.store.base import NewDelivery, candidate_id, registration_id
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.bodies import SECRET, delivery
from benchmarks.harness import Case, Round
from benchmarks.processes import apart
from benchmarks.putting import put_all

TITLE: Final = "Putting and finishing beside what is stored already"

WAITING: Final = 50
"""How many calls are under way at once."""

REGISTRATIONS: Final = """
    INSERT INTO registrations (id, resource, state, deadline, echoed, secret, webhook_gid, candidate)
    VALUES (?, '1331', 'confirmed', 0, 1, ?, ?, ?)
"""
DELIVERIES: Final = """
    WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?)
    INSERT INTO deliveries (registration, duplicate_key, state, received_at)
    SELECT 1 + number % ?, randomblob(32), ?, number FROM numbers
"""
BODIES: Final = "INSERT INTO bodies SELECT id, ? FROM deliveries WHERE state = 'waiting'"


def _fill(path: str, *, registrations: int = 100, done: int = 0, waiting: int = 0) -> int:
    """Make a store's file that holds so many of each; return how many registrations."""

    async def make() -> None:
        async with SQLiteStore(path):
            pass

    asyncio.run(make())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -400000")
        name = candidate_id(Secret(SECRET))
        ids = map(_id, range(registrations))
        db.executemany(REGISTRATIONS, ((id, SECRET, str(number), name) for number, id in enumerate(ids)))
        for state, count in (("done", done), ("waiting", waiting)):
            if count:
                db.execute(DELIVERIES, (count, registrations, state))
        db.execute(BODIES, (delivery(1, 0),))
    return registrations


def _id(number: int) -> str:
    return registration_id(f"endpoint {number}")


async def _finish(store: SQLiteStore, count: int) -> tuple[float, int]:
    """Return how many deliveries a second were claimed and done, and how many of them."""
    finished, began = 0, time.perf_counter()
    while finished < count:
        leases = await store.claim(min(WAITING, count - finished), lease=60)
        finished += sum(await asyncio.gather(*map(store.ack, leases)))
    return count / (time.perf_counter() - began), finished


def use(path: str, registrations: int, count: int) -> Round:
    async def main() -> Round:
        body = delivery(1, 0)
        ids = (_id(secrets.randbelow(registrations)) for _ in range(count))
        new = [NewDelivery(registration=id, signature=secrets.token_hex(32), body=body) for id in ids]
        async with SQLiteStore(path) as store:
            puts, _ = await put_all(store.put, new, WAITING)
            done, finished = await _finish(store, count)
        return Round(value=puts, extras={"claimed and done a second": done}, work=finished)

    return asyncio.run(main())


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare files that hold more and more of one thing."""
    count = 50 if quick else 2_000
    top = 3 if quick else 6
    with apart(quick) as own, tempfile.TemporaryDirectory() as directory:
        for what, first in {"registrations": 1, "done": 3, "waiting": 3}.items():
            competitors: dict[str, Callable[[], Round]] = {}
            for amount in (10**power for power in range(first, top + (first > 1))):
                name = f"{amount:,} {what}"
                path = f"{directory}/{name}.db"
                competitors[name] = own(use, path, _fill(path, **{what: amount}), count)
            yield Case(
                name=f"beside {what}" if what == "registrations" else f"beside deliveries that are {what}",
                unit="puts a second",
                competitors=competitors,
                reference=next(iter(competitors)),
                more_is_better=True,
                is_series=True,
                rounds=5,
            )
