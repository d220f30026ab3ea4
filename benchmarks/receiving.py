"""Receiving deliveries: verified, and with ours durably stored before the answer.

Each receiver has one core and the load generator another one. Ours keeps every delivery in SQLite with
``synchronous=FULL``, and so do its peers, except for those whose names say that they store nothing.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.load import CONNECTIONS, send_deliveries
from benchmarks.processes import apart, server
from benchmarks.receivers import on_aiohttp, on_flask, on_granian, on_huey, on_uvicorn, ours
from benchmarks.receivers.telling import ask, poking, watched

TITLE: Final = f"Receiving deliveries on one core, {CONNECTIONS} connections"

BARE: Final = "aiohttp.web, stores nothing"
FLASK: Final = "Asana's example on Flask, stores nothing"
BY_HAND: Final = "aiohttp.web, SQLite by hand"
ASGI: Final = f"{OURS}, ASGI on uvicorn"
ASGI_BY_HAND: Final = "ASGI on uvicorn, SQLite by hand"
GRANIAN: Final = "granian, SQLite by hand"
HUEY: Final = "aiohttp.web, SQLite queue of huey"
SLOW: Final = f"{OURS}, every sync 10 ms slower"
RATE: Final = 1_000
"""Where the lateness of the loop is the question: one that has more to do than it can is late whatever it does."""


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare the receivers with short and with long deliveries, then look at the loop while the disk is slow."""
    count = 100 if quick else 1_200
    with ExitStack() as stack:
        own = stack.enter_context(apart(quick, 1))
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        paths = (f"{directory}/{number}.db" for number in itertools.count())

        def start(main: Callable[..., None], *args: str) -> tuple[int, Connection]:
            return stack.enter_context(server(main, *args, core=0))

        flask, _ = start(on_flask.serve, directory)
        doors = {
            BARE: start(on_aiohttp.serve),
            BY_HAND: start(on_aiohttp.serve_with_sqlite, next(paths)),
            ASGI_BY_HAND: start(on_uvicorn.serve_with_sqlite, next(paths)),
            GRANIAN: start(on_granian.serve_with_sqlite, next(paths)),
            HUEY: start(on_huey.serve, next(paths)),
            OURS: start(ours.serve, next(paths)),
            ASGI: start(ours.serve_asgi, next(paths)),
        }
        for events, share, asgi_share in ((1, 0.65, 0.8), (20, 0.52, 0.62)):
            yield Case(
                name=f"deliveries of {events} event{'s' * (events > 1)}",
                unit="requests a second",
                competitors={
                    FLASK: own(send_deliveries, flask, events, count),
                    **{
                        name: watched(own(send_deliveries, port, events, count), pipe, keeps=name != BARE)
                        for name, (port, pipe) in doors.items()
                    },
                },
                reference=BARE,
                more_is_better=True,
                rounds=9,
                goals=[
                    Goal(against=BARE, at_least=share),
                    Goal(against=BY_HAND, at_least=0.85),
                    Goal(against=FLASK, at_least=8),
                    Goal(competitor=ASGI, against=BARE, at_least=asgi_share),
                    Goal(competitor=ASGI, against=ASGI_BY_HAND, at_least=0.8),
                    Goal(extra="p99 ms", against=BARE, at_most=2),
                ],
            )
        poked = {BARE: doors[BARE], OURS: doors[OURS], SLOW: start(ours.serve_on_slow_disk, next(paths))}
        yield Case(
            name=f"lateness of the event loop at {RATE:,} deliveries of 1 event a second",
            unit="milliseconds, p99",
            competitors={
                name: _lateness(own(send_deliveries, port, 1, count, RATE), pipe)
                for name, (port, pipe) in poked.items()
            },
            reference=BARE,
            rounds=5,
            goals=[Goal(competitor=name, against=BARE, at_most=3) for name in (OURS, SLOW)],
        )


def _lateness(load: Callable[[], Round], pipe: Connection) -> Callable[[], Round]:
    """Have a round tell how late the loop was."""

    def run() -> Round:
        ask(pipe)
        with poking(pipe, core=1):
            done = load()
        return Round(value=ask(pipe).lateness * 1e3, work=done.work, extras={"requests a second": done.value})

    return run
