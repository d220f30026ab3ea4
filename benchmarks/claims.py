"""Claiming in order, where a naive claim would visit each registration; and a worker that does so beside puts."""

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from asana_webhooks import Delivery, SQLiteStore, Worker
from benchmarks.filled import Waiting, arriving, fill, timed
from benchmarks.harness import OURS, Case, Goal, Round, percentile
from benchmarks.processes import apart

TITLE: Final = "Claiming in order"

LIMIT: Final = 50
"""How many deliveries are claimed at once."""
CONCURRENCY: Final = 100
"""How many deliveries the worker handles at a time."""
PUTTING: Final = 10
"""How many calls put deliveries beside the worker."""
PAUSE: Final = 0.01
"""Seconds between two puts of each."""


def claim(path: str, count: int, expected: int) -> Round:
    """Claim and give back, so that the file stays as it was."""

    async def main() -> Round:
        whole, claimed = list[float](), set[int]()
        async with SQLiteStore(path) as store:
            for _ in range(count):
                began = time.perf_counter()
                leases = await store.claim(LIMIT, lease=60, ordered=True)
                whole.append(time.perf_counter() - began)
                claimed.add(len(leases))
                assert all(await asyncio.gather(*map(store.release, leases)))
        assert claimed == {expected}
        figures = {"p50": (seconds, 0.5), "awaited, p50 ms": (whole, 0.5), "awaited, p99 ms": (whole, 0.99)}
        extras = {name: percentile(values, share) * 1e3 for name, (values, share) in figures.items()}
        return Round(value=percentile(seconds, 0.99) * 1e3, extras=extras, work=expected)

    with timed("asana_webhooks.store.sqlite.inbox._claim", time.thread_time) as seconds:
        return asyncio.run(main())


def work(path: str, registrations: int, count: int, *, ordered: bool) -> Round:
    """Handle so many deliveries, and note how long puts take meanwhile."""

    async def main() -> Round:
        handled, latencies = set[int](), list[float]()
        new = iter(arriving(count // 2, registrations=registrations))
        gc.collect()
        gc.freeze()  # or the loop would stand still while what the benchmark itself holds is looked through

        async def handle(one: Delivery) -> None:
            handled.add(one.id)
            if len(handled) >= count:
                worker.stop()

        async def keep_putting(store: SQLiteStore) -> None:
            for one in new:
                began = time.perf_counter()
                await store.put(one)
                latencies.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE)

        async with SQLiteStore(path) as store:
            worker = Worker(store, handle, concurrency=CONCURRENCY, ordered=ordered, retention=None)
            putting = asyncio.gather(*(keep_putting(store) for _ in range(PUTTING)))
            began = time.perf_counter()
            await worker.run()
            seconds = time.perf_counter() - began
            putting.cancel()
            with suppress(asyncio.CancelledError):
                await putting
        assert worker.counts["done"] == len(handled)
        p99 = percentile(latencies, 0.99) * 1e3
        return Round(value=len(handled) / seconds, extras={"put p99 ms": p99}, work=len(handled) >= count)

    return asyncio.run(main())


def cases(*, quick: bool) -> Iterator[Case]:
    """Claim in the worst places, then compare a worker that keeps the order with one that does not."""
    many = 1_000 if quick else 100_000
    scenarios: dict[str, list[Waiting]] = {
        f"{many:,} with 3 each": [Waiting(count=3 * many, over=many)],
        f"{many:,} delayed, 1,000 behind, {LIMIT} free": [
            Waiting(count=many, over=many, delayed=True),
            Waiting(count=1_000, over=1_000),
            Waiting(count=LIMIT, first=many + 1, over=LIMIT),
        ],
        f"one with {many:,}, 99 with 10": [
            Waiting(count=many, over=1),
            Waiting(count=990, first=2, over=99),
        ],
    }
    with apart(quick) as own, tempfile.TemporaryDirectory() as directory:
        competitors: dict[str, Callable[[], Round]] = {}
        for number, (name, waiting) in enumerate(scenarios.items()):
            path = f"{directory}/{number}.db"
            fill(path, registrations=many + LIMIT, waiting=waiting)
            competitors[name] = own(claim, path, 5 if quick else 300, LIMIT)
        yield Case(
            name=f"an ordered claim of {LIMIT} beside registrations",
            unit="CPU ms, p99",
            competitors=competitors,
            reference=next(iter(competitors)),
            is_series=True,
            rounds=3,
            goals=[Goal(competitor=name, at_most=1) for name in competitors],
        )
        options: dict[str, Any] = {f"{OURS}, {kind}": kind == "ordered" for kind in ("ordered", "unordered")}
        for name, ordered in options.items():
            path = f"{directory}/{name}.db"
            fill(path, registrations=many, waiting=[Waiting(count=3 * many, over=many)])
            options[name] = own(work, path, many, 100 if quick else 10_000, ordered=ordered)
        ours, unordered = options
        yield Case(
            name=f"a worker beside puts, {many:,} registrations with 3 each",
            unit="deliveries a second",
            competitors=options,
            reference=unordered,
            more_is_better=True,
            rounds=5,
            goals=[
                Goal(competitor=ours, against=unordered, at_least=0.7),
                Goal(competitor=ours, extra="put p99 ms", at_most=20),
            ],
        )
