"""Whether putting and receiving cost more the more a store holds: the same calls on files with ever more in them.

A round puts as many deliveries as it finishes, and leaves what waits as it was. It counts the pages that are written
by SQLite's log, which gets each of them. A receiver's round is what its process takes until all is answered; what it
has stored is finished after that.
"""

import asyncio
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle
from typing import Any, Final

from attrs import evolve

from asana_webhooks import SQLiteStore
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.filled import Waiting, WrittenPages, arriving, body_at, fill, numbered_endpoint
from benchmarks.harness import Case, Goal, Round
from benchmarks.load import WARM_UP, request, send_requests
from benchmarks.processes import apart, server
from benchmarks.receivers import ours
from benchmarks.receivers.telling import ask, watched
from benchmarks.stores import finish, put_all

TITLE: Final = "Putting and receiving deliveries of six events beside what is stored already"

AT_ONCE: Final = 50
"""How many calls are under way at once."""
EVENTS: Final = 6
"""In each delivery: 1.6 kB."""

CACHED: Final = 10_000
"""How many registrations a receiver keeps in memory."""

ONE_TABLE: Final = (
    "CREATE TABLE deliveries (id INTEGER PRIMARY KEY, key BLOB NOT NULL, state TEXT NOT NULL, at REAL NOT NULL)",
    "CREATE TABLE bodies (delivery INTEGER PRIMARY KEY, body BLOB NOT NULL)",
)
ONE_TABLE_KEYS: Final = "CREATE UNIQUE INDEX keys ON deliveries (key)"
ONE_TABLE_DONE: Final = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)
    INSERT INTO deliveries (key, state, at) SELECT randomblob(32), 'done', n FROM numbers
"""


def use(path: str, registrations: int, count: int) -> Round:
    async def main() -> Round:
        async with SQLiteStore(path) as store:
            new = arriving(count, registrations=registrations, events=EVENTS)
            cpu = time.process_time()
            puts, _ = await put_all(store.put, new, AT_ONCE)
            cpu = time.process_time() - cpu
            written, some = WrittenPages(path), arriving(count // 4, registrations=registrations, events=EVENTS)
            await put_all(store.put, some, AT_ONCE)
            pages = written.close() / len(some)
            finished, seconds = await finish(store, len(new) + len(some), AT_ONCE)
        extras = {"pages a put": pages, "puts a second": puts, "claimed and done a second": finished / seconds}
        return Round(value=cpu / count * 1e6, extras=extras, work=finished)

    return asyncio.run(main())


def fill_one_table(path: str, done: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA cache_size = -400000")
        for statement in ONE_TABLE:
            db.execute(statement)
        db.execute(ONE_TABLE_DONE, (done,))
        db.execute(ONE_TABLE_KEYS)
        db.commit()
        db.execute("PRAGMA journal_mode = WAL")


def use_one_table(path: str, count: int) -> Round:
    """Add as many with bare statements, in transactions of as many; a key says nothing of when it came."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        bodies = [new.body for new in arriving(count + count // 4, registrations=1, events=EVENTS)]
        began, cpu = time.perf_counter(), time.process_time()
        _add(db, bodies[:count])
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
        written = WrittenPages(path)
        _add(db, bodies[count:])
        extras = {"pages a put": written.close() / (count // 4), "puts a second": count / seconds}
    return Round(value=cpu / count * 1e6, extras=extras, work=len(bodies))


def _add(db: Any, bodies: Sequence[bytes]) -> None:
    for first in range(0, len(bodies), AT_ONCE):
        some = bodies[first : first + AT_ONCE]
        db.execute("BEGIN IMMEDIATE")
        keys = [(secrets.token_bytes(32), time.time()) for _ in some]
        db.executemany("INSERT INTO deliveries (key, state, at) VALUES (?, 'waiting', ?)", keys)
        (last,) = db.execute("SELECT max(id) FROM deliveries").fetchone()
        db.executemany("INSERT INTO bodies VALUES (?, ?)", enumerate(some, last + 1 - len(some)))
        db.execute("COMMIT")


def deliver(port: int, turns: Iterator[int], count: int) -> Round:
    """Send so many deliveries, each to the registration whose turn it is."""
    now, gid = time.time(), time.time_ns() // 1000
    bodies = [body_at(EVENTS, now + number / 1000) for number in range(WARM_UP + count)]
    endpoints = map(numbered_endpoint, turns)
    return send_requests(port, [request(next(endpoints), body, gid + one) for one, body in enumerate(bodies)])


def cases(*, quick: bool, large: bool = False) -> Iterator[Case]:
    """Compare files that hold more and more of one thing; *large*: also ten million that are done."""
    count = 100 if quick else 1_600
    top = 3 if quick else 7 if large else 6
    with apart(quick) as own, tempfile.TemporaryDirectory() as directory:

        def store(name: str, *, registrations: int = 100, **held: Any) -> Callable[[], Round]:
            path = f"{directory}/{name}.db"
            fill(path, registrations=registrations, **held)
            return own(use, path, registrations, count)

        def one_table(name: str, done: int) -> Callable[[], Round]:
            path = f"{directory}/{name}, one table.db"
            fill_one_table(path, done)
            return own(use_one_table, path, count)

        def amounts(first: int, last: int) -> dict[str, int]:
            return {f"{10**power:,}": 10**power for power in range(first, min(top, last) + 1)}

        done = {f"{n} done": store(f"{n} done", done=amount) for n, amount in amounts(3, 7).items()}
        yield _case("beside deliveries that are done", done, _flat(done))
        registered = {
            f"{n} registrations": store(f"{n} registrations", registrations=amount)
            for n, amount in amounts(1, 5).items()
        }
        yield _case("beside registrations", registered, _flat(registered))
        waiting = {
            f"{n} waiting": store(f"{n} waiting", waiting=[Waiting(count=amount)])
            for n, amount in amounts(3, 6).items()
        }
        yield _case("beside deliveries that wait", waiting, _fast(waiting))
        by_hand = {f"{n} done": one_table(f"{n} done", amount) for n, amount in amounts(3, 7).items()}
        yield _case("by hand, one table with random keys", by_hand)
    yield from _receiving(count, top)


def _receiving(count: int, top: int) -> Iterator[Case]:
    """Compare receivers behind our routes on aiohttp: with ever more webhooks, with ever more history."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())

        def receiver(name: str, numbers: range, **held: Any) -> Callable[[], Round]:
            path = f"{directory}/{name}.db"
            fill(path, **held)
            port, pipe = stack.enter_context(server(ours.serve_and_finish, path, core=0))
            turns = cycle(random.sample(numbers, len(numbers)))
            deliver(port, turns, min(len(numbers), CACHED))  # from now on the cache is full, or knows all
            ask(pipe)
            return partial(_cost, watched(partial(deliver, port, turns, count), pipe))

        options: dict[str, Any] = {"unit": "CPU µs a delivery", "rounds": 7}
        amounts = [10**power for power in range(1, min(top, 4) + 1)]
        used = {f"{n:,} registrations": receiver(f"{n}", range(n), registrations=n) for n in amounts}
        yield _case("received by so many registrations", used, _within(used), **options)
        amounts = [10**power for power in (3, 5, 6) if power <= top]
        done = {f"{n:,} done": receiver(f"{n} done", range(100), done=n) for n in amounts}
        yield _case("received beside deliveries that are done", done, _within(done), **options)
        many = 10 ** min(top, 5)
        cached = {
            "a tenth in use, all cached": receiver("hits", range(0, many, 10), registrations=many),
            "all in use, none cached": receiver("misses", range(many), registrations=many),
        }
        yield _case(f"received with {many:,} registrations", cached, **options | {"is_series": False})


def _cost(load: Callable[[], Round]) -> Round:
    done = load()
    return evolve(done, value=done.extras["CPU µs a request"], extras={})


def _case(name: str, competitors: dict[str, Callable[[], Round]], goals: Sequence[Goal] = (), **options: Any) -> Case:
    defaults: dict[str, Any] = {"unit": "CPU µs a put", "is_series": True, "rounds": 5}
    first = next(iter(competitors))
    return Case(name=name, competitors=competitors, reference=first, goals=goals, **defaults | options)


def _within(names: dict[str, Any]) -> list[Goal]:
    """Return the goals of a series that may grow by 15 % at most."""
    first, *others = names
    return [Goal(competitor=name, against=first, at_most=1.15) for name in others]


def _flat(names: dict[str, Any]) -> list[Goal]:
    """Return the goals of a series that is not to grow."""
    first, *others = names
    pages = [Goal(competitor=name, extra="pages a put", at_most=1.5) for name in names]
    return [*pages, *(Goal(competitor=name, against=first, at_most=1.25) for name in others)]


def _fast(names: dict[str, Any]) -> list[Goal]:
    """Return the goals of a series that may grow a little."""
    first, *others = names
    return [Goal(competitor=name, extra="puts a second", against=first, at_least=0.8) for name in others]
