"""Whether work grows with what a store holds: the same calls on files with ever more in them.

The files are filled by plain SQL. A round adds as many deliveries as it finishes, and leaves what waits as it was.
"""

import asyncio
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

from attrs import frozen

from asana_webhooks import Secret, SQLiteStore
from asana_webhooks.store.base import NewDelivery, candidate_id, registration_id
from benchmarks.bodies import SECRET, delivery
from benchmarks.harness import Case, Round, Size
from benchmarks.processes import apart

__all__ = ["TITLE", "cases"]

TITLE: Final = "Putting, finding and finishing beside what is stored already"

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


@frozen(kw_only=True)
class Held:
    """What a store holds before a round."""

    registrations: int = 100
    done: int = 0
    waiting: int = 0


def _fill(path: str, held: Held) -> None:
    async def make() -> None:
        async with SQLiteStore(path):
            pass

    asyncio.run(make())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -400000")
        name = candidate_id(Secret(SECRET))
        ids = map(_id, range(held.registrations))
        db.executemany(REGISTRATIONS, ((id, SECRET, str(number), name) for number, id in enumerate(ids)))
        for state, count in (("done", held.done), ("waiting", held.waiting)):
            if count:
                db.execute(DELIVERIES, (count, held.registrations, state))
        db.execute(BODIES, (delivery(1, 0),))


def _id(number: int) -> str:
    return registration_id(f"endpoint {number}")


async def _timed(call: Callable[[Any], Awaitable[Any]], values: Sequence[Any]) -> tuple[float, list[Any]]:
    """Return how many calls a second there were, and what they returned."""
    left, results = iter(values), list[Any]()

    async def keep_calling() -> None:
        for value in left:
            results.append(await call(value))

    began = time.perf_counter()
    await asyncio.gather(*(keep_calling() for _ in range(WAITING)))
    return len(values) / (time.perf_counter() - began), results


async def _finish(store: SQLiteStore, count: int) -> tuple[float, int]:
    """Return how many deliveries a second were claimed and done, and how many of them."""
    finished, began = 0, time.perf_counter()
    while finished < count:
        leases = await store.claim(min(WAITING, count - finished), lease=60)
        finished += sum(await asyncio.gather(*map(store.done, leases)))
    return count / (time.perf_counter() - began), finished


def use(path: str, registrations: int, count: int) -> Round:
    async def main() -> Round:
        body = delivery(1, 0)
        ids = [_id(secrets.randbelow(registrations)) for _ in range(count)]
        new = [NewDelivery(registration=id, signature=secrets.token_hex(32), body=body) for id in ids]
        async with SQLiteStore(path) as store:
            puts, stored = await _timed(store.put, new)
            finds, found = await _timed(store.find, ids)
            done, finished = await _finish(store, count)
        return Round(
            value=puts,
            extras={"finds a second": finds, "claimed and done a second": done},
            work=(stored.count("stored"), sum(one is not None for one in found), finished),
        )

    return asyncio.run(main())


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare files that hold more and more of one thing."""
    count = size.of(2_000, quick=50)
    top = size.of(6, quick=3)
    held = {
        "registrations": [Held(registrations=10**power) for power in range(1, top)],
        "done": [Held(done=10**power) for power in range(3, top + 1)],
        "waiting": [Held(waiting=10**power) for power in range(3, top + 1)],
    }
    with apart(size) as own, tempfile.TemporaryDirectory() as directory:

        def compared() -> Iterator[Case]:
            for what, amounts in held.items():
                competitors: dict[str, Callable[[], Round]] = {}
                for amount in amounts:
                    name = f"{getattr(amount, what):,} {what}"
                    path = f"{directory}/{name}.db"
                    _fill(path, amount)
                    competitors[name] = own(use, path, amount.registrations, count)
                yield Case(
                    name=f"beside {what}" if what == "registrations" else f"beside deliveries that are {what}",
                    unit="puts a second",
                    competitors=competitors,
                    reference=next(iter(competitors)),
                    more_is_better=True,
                    is_series=True,
                    rounds=5,
                )

        yield compared()
