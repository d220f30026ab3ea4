"""Receiving deliveries: verified, and with ours durably stored before the answer.

Each receiver has one core and the load generator another one. Ours keep every delivery in SQLite (``synchronous=FULL``)
or, where they say so, in memory; their peers keep nothing.
"""

import asyncio
import itertools
import socket
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import uvicorn
import uvloop
from aiohttp import web

from asana_webhooks import MemoryStore, Receiver, Secret, SQLiteStore
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.store.secret_box import PLAIN_TEXT
from benchmarks import receivers
from benchmarks.bodies import ENDPOINT, SECRET
from benchmarks.harness import OURS, Case, Goal, Round, Size, UnequalWorkError, percentile
from benchmarks.load import CONNECTIONS, send_deliveries
from benchmarks.processes import apart, listener, serving

__all__ = ["TITLE", "cases"]

TITLE: Final = f"Receiving deliveries on one core, {CONNECTIONS} connections"

BARE: Final = "aiohttp.web, stores nothing"
FLASK: Final = "Asana's example on Flask, stores nothing"
MEMORY: Final = f"{OURS}, in memory"
LIMIT: Final = "bare protocol, stores nothing"
PEERS: Final = {
    BARE: receivers.bare_aiohttp,
    "FastAPI, stores nothing": receivers.fastapi,
    LIMIT: receivers.bare_protocol,
}

SLOW_SYNC: Final = 0.010
"""Seconds that a commit takes longer, where the disk is said to be slow."""

_Waiting = Callable[[], int]


# What runs in the process of a receiver


@asynccontextmanager
async def _store(path: str | None, pipe: Connection) -> AsyncIterator[Store]:
    """Open a store that knows the webhook; tell how many deliveries wait in it, and how late the loop is, if asked."""
    limits: dict[str, Any] = {"max_deliveries": None, "max_bytes": None}
    opened = MemoryStore(**limits) if path is None else SQLiteStore(path, secret_box=PLAIN_TEXT)
    async with opened as store:
        id = registration_id(ENDPOINT)
        await store.open(id, resource="1331", ttl=60)
        await store.offer(id, Secret(SECRET))
        await store.confirm(id, webhook_gid="43214", secret=Secret(SECRET))
        delays: list[float] = []

        async def answer() -> None:
            pipe.send(((await store.health()).waiting, percentile(delays, 0.99)))
            delays.clear()

        def asked() -> None:
            pipe.recv()
            tasks.append(asyncio.create_task(answer()))

        tasks = [asyncio.create_task(_watch_loop(delays))]
        asyncio.get_running_loop().add_reader(pipe.fileno(), asked)
        yield store


async def _watch_loop(delays: list[float]) -> None:
    """Note how many seconds too late the loop comes back to what wants to run every ten milliseconds."""
    while True:
        due = time.perf_counter() + 0.01
        await asyncio.sleep(0.01)
        delays.append(time.perf_counter() - due)


async def _aiohttp_door(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    async with _store(path, pipe) as store:
        app = web.Application()
        app.add_routes(webhook_routes(Receiver(store)))
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        await asyncio.Event().wait()


def on_aiohttp(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    asyncio.run(_aiohttp_door(listening, pipe, path))


def on_aiohttp_uvloop(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    uvloop.run(_aiohttp_door(listening, pipe, path))


def on_uvicorn(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    async def main() -> None:
        async with _store(path, pipe) as store:
            app = ReceiverApp(Receiver(store))
            config = uvicorn.Config(app, access_log=False, log_level="warning", http="httptools")
            await uvicorn.Server(config).serve(sockets=[listening])

    uvloop.run(main())


def on_slow_disk(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_SlowCommits))  # noqa: B010 - it has overloads
    on_aiohttp(listening, pipe, path)


class _SlowCommits(sqlite3.Connection):
    """A connection whose commits take as long as on a slow disk; the thread sleeps as it would there."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *parameters)
        if sql == "COMMIT":
            time.sleep(SLOW_SYNC)
        return cursor


OURS_BY_NAME: Final = {
    OURS: on_aiohttp,
    f"{OURS}, uvloop": on_aiohttp_uvloop,
    f"{OURS}, ASGI on uvicorn": on_uvicorn,
    MEMORY: on_aiohttp,
}


# What runs here


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare the receivers with short and with long deliveries, then look at the loop while the disk is slow."""
    with ExitStack() as stack:
        own = stack.enter_context(apart(size, 1))
        directory, numbers = stack.enter_context(tempfile.TemporaryDirectory()), itertools.count()

        def peer(main: Callable[..., None], *args: str) -> int:
            listening = stack.enter_context(listener())
            stack.enter_context(serving(main, listening, *args, core=0))
            return int(listening.getsockname()[1])

        def store(name: str, main: Callable[..., None]) -> tuple[int, Connection]:
            listening = stack.enter_context(listener())
            path = None if name == MEMORY else f"{directory}/{next(numbers)}.db"
            pipe = stack.enter_context(serving(main, listening, path, core=0))
            return int(listening.getsockname()[1]), pipe

        ports = {name: peer(main) for name, main in PEERS.items()}
        ports[FLASK] = peer(receivers.flask_gunicorn, directory)
        doors = {name: store(name, main) for name, main in OURS_BY_NAME.items()}
        slow = store(OURS, on_slow_disk)

        def compared() -> Iterator[Case]:
            for events, count, goals in (
                (1, size.of(3_000, quick=100), _goals(0.6, 15)),
                (20, size.of(1_500, quick=100), _goals(0.35, 30)),
            ):
                load = {name: own(send_deliveries, port, events, count) for name, port in ports.items()}
                stored = {
                    name: _stored(own(send_deliveries, port, events, count), pipe)
                    for name, (port, pipe) in doors.items()
                }
                yield Case(
                    name=f"deliveries of {events} event{'s' * (events > 1)}",
                    unit="requests a second",
                    competitors=load | stored,
                    reference=BARE,
                    more_is_better=True,
                    rounds=5,
                    goals=goals,
                )
            count = size.of(4_000, quick=100)
            on_time = {
                "the disk as it is": _stored(own(send_deliveries, doors[OURS][0], 1, count), doors[OURS][1]),
                "every sync 10 ms slower": _stored(own(send_deliveries, slow[0], 1, count), slow[1]),
            }
            yield Case(
                name="lateness of the event loop, 1 event",
                unit="milliseconds, p99",
                competitors={name: partial(_lateness, one) for name, one in on_time.items()},
                reference="the disk as it is",
                goals=[Goal(competitor=name, at_most=2) for name in on_time],
            )

        yield compared()


def _goals(share: float, p99: float) -> Sequence[Goal]:
    return [
        Goal(against=BARE, at_least=share),
        Goal(against=FLASK, at_least=8),
        Goal(extra="p99 ms", at_most=p99),
    ]


LAG: Final = "loop p99 ms"


def _stored(load: Callable[[], Round], pipe: Connection) -> Callable[[], Round]:
    """Have a round count only if everything was stored that was answered."""

    def run() -> Round:
        before, _ = _ask(pipe)
        done = load()
        after, lateness = _ask(pipe)
        if {200: after - before} != done.work:
            raise UnequalWorkError(f"{done.work} were answered, and {after - before} stored")
        return Round(value=done.value, work=done.work, extras={**done.extras, LAG: lateness * 1e3})

    return run


def _ask(pipe: Connection) -> tuple[int, float]:
    pipe.send("how many?")
    waiting, lateness = pipe.recv()
    return int(waiting), float(lateness)


def _lateness(stored: Callable[[], Round]) -> Round:
    done = stored()
    return Round(value=done.extras[LAG], work=done.work)
