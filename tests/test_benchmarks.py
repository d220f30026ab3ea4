"""How benchmarks compare: `benchmarks.harness`, with rounds that take no time; and what those of stores begin with."""

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from asana_webhooks import Secret, SQLiteStore
from asana_webhooks.store.sqlite.file import sqlite3
from benchmarks.bodies import SECRET
from benchmarks.filled import DAY, KEPT, Waiting, WrittenPages, arriving, fill, numbered_id
from benchmarks.harness import OURS, Case, Goal, Round, SkippedError, Spread, UnequalWorkError, compare, percentile
from benchmarks.postgres_server import benchmark_database, empty, run_sql


def rounds(*values: float, work: object = 7, **extras: float) -> Callable[[], Round]:
    left = list(values)
    return lambda: Round(value=left.pop(0), work=work, extras=extras)


def case(competitors: dict[str, Callable[[], Round]], **options: Any) -> Case:
    return Case(name="one", unit="seconds", competitors=competitors, reference="peer", **{"rounds": 3} | options)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that gets slower in the middle of a run changes the values and not the ratios."""
    found = compare(case({OURS: rounds(1, 2, 30), "peer": rounds(2, 4, 60)}))
    assert found.values[OURS] == Spread(2, 1.5, 16)
    assert found.ratios == {OURS: Spread(0.5, 0.5, 0.5), "peer": Spread(1, 1, 1)}


@pytest.mark.long
def test_another_competitor_begins_each_round() -> None:
    """Nobody always runs right after the same neighbour."""
    ran: list[str] = []

    def noting(name: str) -> Callable[[], Round]:
        def run() -> Round:
            ran.append(name)
            return Round(value=1, work=None)

        return run

    compare(case({name: noting(name) for name in ("peer", "b", "c")}))
    assert ran == ["peer", "b", "c", "b", "c", "peer", "c", "peer", "b"]


def test_unequal_work_is_refused() -> None:
    """Who did less than the others is no faster, so there is no result at all."""
    with pytest.raises(UnequalWorkError, match="one: asana_webhooks did 99, and peer 100"):
        compare(case({OURS: rounds(1, work=99), "peer": rounds(1, work=100)}))


def test_one_round_is_enough_for_a_quick_look() -> None:
    """With a single round there are no quartiles, so they are its value."""
    found = compare(case({"peer": rounds(5)}, rounds=1))
    assert found.values["peer"] == Spread(5, 5, 5)


def test_goals_are_judged_by_medians() -> None:
    """A goal names a competitor, what of it is meant, and what it is compared with; the table says so."""
    goals = [
        (Goal(against="peer", at_most=0.5), 0.5, True),
        (Goal(against="peer", at_most=0.49), 0.5, False),
        (Goal(at_least=2), 2, True),
        (Goal(at_least=2.1), 2, False),
        (Goal(extra="p99", at_most=3), 4, False),
        (Goal(extra="p99", against="peer", at_least=2), 2, True),
        (Goal(competitor="peer", extra="p99", at_most=2), 2, True),
    ]
    competitors = {OURS: rounds(1, 2, 30, p99=4), "peer": rounds(2, 4, 60, p99=2)}
    verdicts = compare(case(competitors, goals=[goal for goal, _, _ in goals])).verdicts
    assert [(one.goal, one.value, one.reached) for one in verdicts] == [(str(goal), *rest) for goal, *rest in goals]
    assert str(goals[0][0]) == "asana_webhooks: at most 0.5 x peer"
    assert str(goals[4][0]) == "asana_webhooks, p99: at most 3"


def test_percentiles_are_values_that_occurred() -> None:
    """A percentile is one of the values, the largest included."""
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 51, 100, 100]


@pytest.mark.long
def test_the_best_comes_first() -> None:
    """What is shown is sorted by its figures, but for sizes, which are shown as they grow."""
    orders: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["c", "peer", "a"]),
        ({"more_is_better": True}, ["a", "peer", "c"]),
        ({"is_series": True, "more_is_better": True}, ["peer", "a", "c"]),
    ]
    for options, names in orders:
        competitors = {"peer": rounds(2), "a": rounds(3), "c": rounds(1)}
        assert list(compare(case(competitors, rounds=1, **options)).names) == names


def schema(path: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


async def test_a_filled_file_is_one_that_a_store_could_have_written(tmp_path: Path) -> None:
    """Each registration has its turn, its later deliveries follow, the delayed ones do not, and all keys are old."""
    path = str(tmp_path / "filled.db")
    delayed = Waiting(count=3, first=3, over=1, delayed=True)
    waiting = [Waiting(count=5, over=2), delayed]
    await asyncio.to_thread(fill, path, registrations=4, done=20, waiting=waiting, age=DAY)
    async with SQLiteStore(new := str(tmp_path / "new.db")):
        assert schema(new) == schema(path)
    async with SQLiteStore(path) as store:
        assert await store.integrity_check() == []
        assert (await store.health()).waiting == 8
        last = await store.find_registration(numbered_id(3))
        assert last is not None
        assert last.secret == Secret(SECRET)
        served = []
        while leases := await store.claim(10, lease=60, ordered=True):
            served.append([lease.id for lease in leases])
            assert all([await store.ack(lease) for lease in leases])
        assert served == [[1, 2], [3, 4], [5]]
        (one,) = arriving(1, registrations=4)
        assert [await store.put(one), await store.put(one)] == ["stored", "duplicate"]
        assert await store.purge(older_than=KEPT + DAY + 60) == 0
        assert await store.purge(older_than=DAY) == 28


def test_a_page_counts_for_each_transaction_that_writes_it(tmp_path: Path) -> None:
    """A counted page is one that SQLite has to write: the same one again in the next transaction."""
    path = str(tmp_path / "counted.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY)")
        for transactions in (1, 2_000):  # more than SQLite lets its log grow to, if it can empty it
            written = WrittenPages(path)
            for _ in range(transactions):
                db.execute("INSERT INTO rows DEFAULT VALUES")
            assert written.close() == pytest.approx(transactions, rel=0.01)


def test_benchmarks_of_postgresql_touch_nothing_else(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They empty a database of their own, which is gone after them, and leave the one they were given as it is."""
    monkeypatch.setenv("ASANA_WEBHOOKS_TEST_POSTGRES", postgres_database)
    asyncio.run(run_sql(postgres_database, "CREATE SCHEMA asana_webhooks"))
    with benchmark_database() as url:
        asyncio.run(run_sql(url, "CREATE TABLE deliveries ()"))
        asyncio.run(empty(url))
        asyncio.run(run_sql(url, "CREATE TABLE deliveries ()"))
    asyncio.run(run_sql(postgres_database, "DROP SCHEMA asana_webhooks"))
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        asyncio.run(run_sql(url))


def test_a_benchmark_without_a_server_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PostgreSQL cannot be started, its benchmark is skipped for a reason, and the others run."""
    monkeypatch.delenv("ASANA_WEBHOOKS_TEST_POSTGRES", raising=False)
    monkeypatch.setattr("tests.helpers.postgres.why_no_server", lambda: "no PostgreSQL here")
    with pytest.raises(SkippedError, match="no PostgreSQL here"), benchmark_database():
        pass


STARTING = """
import multiprocessing, signal
from benchmarks.processes import listener, serving
from benchmarks.receivers import on_aiohttp
from benchmarks.receivers.telling import ask

with listener() as listening, serving(on_aiohttp.serve, listening) as pipe:
    ask(pipe)  # it is there
    print(multiprocessing.active_children()[0].pid, flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a process that its parent has gone")
def test_a_server_does_not_outlive_its_benchmark() -> None:
    """Not even one that was killed, and had no time to end it."""
    with subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        server = os.pidfd_open(int(benchmark.stdout.readline()))
        benchmark.kill()
    try:
        assert select.select([server], [], [], 30)[0] == [server]
    finally:
        os.close(server)
