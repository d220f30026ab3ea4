"""Walking through 10,000 webhooks of a server that answers at once: the time it takes, and the memory."""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from attrs import define, field

from benchmarks import walkers
from benchmarks.canned import PAGE, base_url, counted, serve
from benchmarks.harness import OURS, Case, Goal, Round, Size
from benchmarks.processes import apart, listener, serving
from benchmarks.walkers import Consumer

__all__ = ["TITLE", "cases"]

TITLE: Final = "Walking through 10,000 webhooks"

RAW: Final = "loop by hand, aiohttp + orjson"
OFFICIAL: Final = "official asana"

Walker = Callable[[str, Consumer], None]

WALKERS: Final[dict[str, Walker]] = {
    OURS: walkers.ours,
    f"{OURS}, page by page": walkers.ours_by_page,
    f"{OURS}, prefetch": walkers.ours_with_prefetch,
    RAW: walkers.by_hand,
    OFFICIAL: walkers.official,
}


@define
class _Watching(Consumer):
    """Looks after each page how much memory is in use."""

    used: list[int] = field(factory=list)
    """Bytes."""

    def take_blocking(self, gids: list[str]) -> None:
        """Work on a page, and look."""
        super().take_blocking(gids)
        self.used.append(tracemalloc.get_traced_memory()[0])


def walk(walker: Walker, url: str) -> Round:
    consumer = Consumer()
    began, worked = time.perf_counter(), time.process_time()
    walker(url, consumer)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    return Round(value=seconds, work=(consumer.count, consumer.total), extras={"CPU s": cpu})


def memory(walker: Walker, url: str) -> Round:
    """Measure how much more there is at most than after a tenth of the pages."""
    consumer = _Watching()
    tracemalloc.start()
    try:
        walker(url, consumer)
    finally:
        tracemalloc.stop()
    tenth = len(consumer.used) // 10
    grown = max(consumer.used[tenth:]) - consumer.used[tenth]
    return Round(value=grown / 1e6, work=(consumer.count, consumer.total))


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare the time of all walkers, and the memory of some."""
    pages = size.of(100, quick=10)
    with apart(size, 0) as own, closing(listener()) as listening, serving(serve, listening, pages, 0.0, core=1) as pipe:

        def competitors(
            measure: Callable[[Walker, str], Round], names: Iterator[str]
        ) -> dict[str, Callable[[], Round]]:
            return {name: counted(own(measure, WALKERS[name], base_url(listening)), pipe) for name in names}

        def compared() -> Iterator[Case]:
            yield Case(
                name=f"{pages * PAGE:,} webhooks, no latency",
                unit="seconds",
                competitors=competitors(walk, iter(WALKERS)),
                reference=RAW,
                rounds=15,
                goals=[
                    Goal(against=RAW, at_most=1.3),
                    Goal(against=OFFICIAL, at_most=1),
                ],
            )
            yield Case(
                name="memory that is added, nothing being kept",
                unit="MB",
                competitors=competitors(memory, iter((OURS, f"{OURS}, prefetch", RAW, OFFICIAL))),
                reference=RAW,
                rounds=1,
                goals=[Goal(at_most=2)],
            )

        yield compared()
