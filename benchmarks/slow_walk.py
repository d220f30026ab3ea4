"""Walking through pages that take 50 ms each, with a consumer that works on each of them for 20 ms.

Offsets are sequential, so no walk is faster than pages x latency, and with what a loop and a server need besides, none
is faster than a loop by hand that does nothing with its pages. Fetching the next page while one is worked on comes near
that, also where the work never awaits.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from attrs import evolve

from benchmarks import walkers
from benchmarks.canned import base_url, counted, serve
from benchmarks.harness import OURS, Case, Goal, Round, Size
from benchmarks.processes import apart, listener, serving
from benchmarks.walk import OFFICIAL, RAW, Walker
from benchmarks.walkers import Consumer

__all__ = ["TITLE", "cases"]

TITLE: Final = "Walking through pages of 50 ms with a consumer of 20 ms"

LATENCY: Final = 0.050
WORK: Final = 0.020
IDLE: Final = "loop by hand, no consumer"
PREFETCH: Final = f"{OURS}, prefetch"

WALKERS: Final[dict[str, Walker]] = {
    OURS: walkers.ours_by_page,
    PREFETCH: walkers.ours_with_prefetch,
    RAW: walkers.by_hand,
    OFFICIAL: walkers.official,
}


def walk(walker: Walker, url: str, consumer: Consumer, pages: int) -> Round:
    """Measure how many times pages x latency it takes, up to the moment when the consumer has its last page."""
    consumer = evolve(consumer)  # one that has nothing yet
    began = time.perf_counter()
    walker(url, consumer)
    seconds = time.perf_counter() - began - consumer.seconds
    return Round(value=seconds / (pages * LATENCY), work=(consumer.count, consumer.total), extras={"seconds": seconds})


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare the walkers with a consumer that awaits, and with one that computes."""
    pages = size.of(30, quick=3)
    with (
        apart(size, 0) as own,
        closing(listener()) as listening,
        serving(serve, listening, pages, LATENCY, core=1) as pipe,
    ):

        def compared() -> Iterator[Case]:
            for what, burning in {"awaits": False, "computes": True}.items():
                consumers = dict.fromkeys(WALKERS, Consumer(WORK, burning=burning)) | {IDLE: Consumer()}
                url = base_url(listening)
                yield Case(
                    name=f"{pages} pages, the consumer {what}",
                    unit="x pages x latency",
                    competitors={
                        name: counted(own(walk, WALKERS.get(name, walkers.by_hand), url, consumer, pages), pipe)
                        for name, consumer in consumers.items()
                    },
                    reference=IDLE,
                    rounds=3,
                    goals=[Goal(competitor=PREFETCH, against=IDLE, at_most=1.03)],
                )

        yield compared()
