"""What a store does beside deliveries: forget old keys, tell its health, and answer a worker that has nothing to do."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Final

from asana_webhooks import Delivery, SQLiteStore, Worker
from benchmarks.filled import KEPT, Waiting, fill, timed
from benchmarks.harness import OURS, Case, Goal, Round, percentile
from benchmarks.processes import apart

TITLE: Final = "Purging, health and idling"

STEP: Final = "asana_webhooks.store.sqlite.store._purge_seen"
"""What a purge does in one transaction."""


def purge(path: str, keys: int) -> Round:
    """Purge a copy of the file, in which everything is old."""

    async def main() -> Round:
        async with SQLiteStore(f"{fresh}/copy.db") as store:
            began, used = time.perf_counter(), time.process_time()
            purged = await store.purge(older_than=KEPT)
            assert purged == keys
            cpu, seconds = time.process_time() - used, time.perf_counter() - began
        extras = {"µs a key": seconds / purged * 1e6, "longest step, CPU ms": max(steps) * 1e3}
        return Round(value=cpu / purged * 1e6, extras=extras, work=purged)

    with tempfile.TemporaryDirectory() as fresh, timed(STEP, time.thread_time) as steps:
        shutil.copy(path, f"{fresh}/copy.db")
        return asyncio.run(main())


def health(path: str, count: int) -> Round:
    async def main() -> Round:
        seconds = list[float]()
        async with SQLiteStore(path) as store:
            for _ in range(count):
                began = time.perf_counter()
                found = await store.health()
                seconds.append(time.perf_counter() - began)
        extras = {"p99 ms": percentile(seconds, 0.99) * 1e3}
        return Round(value=percentile(seconds, 0.5) * 1e3, extras=extras, work=found.writable)

    return asyncio.run(main())


def idle(path: str, seconds: float) -> Round:
    """Let a worker with the default *poll* look for deliveries that do not come."""

    async def handle(_: Delivery) -> None:
        raise AssertionError("there are none")

    async def main() -> Round:
        async with SQLiteStore(path) as store, Worker(store, handle) as worker:
            running = asyncio.create_task(worker.run())
            await asyncio.sleep(seconds / 10)  # the first purge is over
            used = time.process_time()
            await asyncio.sleep(seconds)
            cpu = time.process_time() - used
            worker.stop()
            await running
        return Round(value=cpu / seconds * 1e3, work=worker.health().last_claim_at is not None)

    return asyncio.run(main())


def cases(*, quick: bool) -> Iterator[Case]:
    """Purge old keys, ask for the health of a full store, and watch an idle worker."""
    million, registrations = (1_000, 100) if quick else (1_000_000, 100_000)
    full = f"{million:,} waiting over {registrations:,} registrations"
    with apart(quick) as own, tempfile.TemporaryDirectory() as directory:
        old, waiting, empty = (f"{directory}/{name}.db" for name in ("old", "waiting", "empty"))
        fill(old, done=million, age=KEPT)
        yield _case(
            f"purging {million:,} keys",
            "CPU µs a key",
            own(purge, old, million),
            [Goal(at_most=1), Goal(extra="longest step, CPU ms", at_most=5)],
        )
        fill(waiting, registrations=registrations, waiting=[Waiting(count=million, over=registrations)])
        yield _case(f"health, {full}", "ms, p50", own(health, waiting, 3 if quick else 100), [Goal(at_most=5)])
        fill(empty)
        yield _case("an idle worker", "CPU ms a second", own(idle, empty, 0.2 if quick else 2.0), [Goal(at_most=3)])


def _case(name: str, unit: str, ours: Callable[[], Round], goals: list[Goal]) -> Case:
    return Case(name=name, unit=unit, competitors={OURS: ours}, reference=OURS, rounds=3, goals=goals)
