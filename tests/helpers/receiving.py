"""A receiver in a process of its own, to kill and to stop, and senders that keep it busy."""

import asyncio
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from attrs import define, field, frozen

from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.raw import later
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

__all__ = ["Load", "ReceiverProcess", "Stored", "locked", "memory", "prepare", "receiver_process", "sending", "stored"]

ROOT = Path(__file__).parents[2]


async def prepare(path: Path) -> None:
    """Make a store with the registration that `Load` sends to."""
    async with SQLiteStore(path) as store:
        await register(store)


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep everybody else from writing while the block runs, or until the connection yielded is told ROLLBACK."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
    finally:
        connection.close()


@frozen(kw_only=True)
class Stored:
    """What a file holds, asked behind the store's back."""

    bodies: list[bytes]
    """Of what is not done."""
    deliveries: int
    """How many are known, those that are done included."""
    intact: bool


def stored(path: Path) -> Stored:
    """Look into a store's file."""
    connection = sqlite3.connect(path)
    try:
        return Stored(
            bodies=[bytes(one) for (one,) in connection.execute("SELECT body FROM bodies ORDER BY delivery")],
            deliveries=connection.execute("SELECT count(*) FROM seen").fetchone()[0],
            intact=connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            and connection.execute("PRAGMA foreign_key_check").fetchall() == [],
        )
    finally:
        connection.close()


def memory(pid: int, what: str) -> int:
    """Return bytes of a process: ``VmRSS`` now, or ``VmHWM`` at most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith(f"{what}:")]
    return int(kibibytes) * 1024


@define(eq=False, kw_only=True)
class ReceiverProcess:
    """`tests.helpers.receiver_program` on a port that stays its own, dead or alive."""

    path: Path
    door: str = "aiohttp"
    """``"aiohttp"``, or ``"asgi"`` on uvicorn."""
    receiver: Mapping[str, Any] = field(factory=dict)
    """Options of the receiver."""
    store: Mapping[str, Any] = field(factory=dict)
    """Options of the store."""
    url: str = ""
    """Its ``public_url``, from the first start on."""
    said: str = ""
    """What it printed after that; known when it has ended."""
    _port: socket.socket = field(factory=socket.socket, init=False)
    _process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr in all its lives."""
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.path.with_suffix(".log")

    def keep_port(self) -> None:
        """Take a free port; bound and never listening, the socket leaves it to the process and to nobody else."""
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))

    async def start(self) -> None:
        """Start it, for the first time or again, and wait until it serves."""
        port, options = self._port.getsockname()[1], json.dumps([dict(self.receiver), dict(self.store)])
        program = ("-m", "tests.helpers.receiver_program", self.door, str(self.path), str(port), options)
        with self._log.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *program, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        self.url = (await self._process.stdout.readline()).decode().strip()
        assert self.url, f"the receiver did not start: {self.log}"

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.process.kill()
        await self.wait()

    async def wait(self) -> int:
        """Wait for its end; return its status, negative if a signal ended it."""
        assert self.process.stdout is not None
        self.said += (await self.process.stdout.read()).decode()
        return await self.process.wait()

    def memory(self, what: str = "VmRSS") -> int:
        """Return how many bytes of memory it has now; with ``"VmHWM"``, at most so far."""
        return memory(self.pid, what)

    async def aclose(self) -> None:
        """Kill it if it is alive, and leave the port."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()
        self._port.close()


@asynccontextmanager
async def receiver_process(path: Path, **options: Any) -> AsyncIterator[ReceiverProcess]:
    """Run a receiver over the store at *path* while the block runs, which may kill it and start it again."""
    process = ReceiverProcess(path=path, **options)
    process.keep_port()
    try:
        await process.start()
        yield process
    finally:
        await process.aclose()


def endless() -> Iterator[bytes]:
    """Yield bodies that are all different."""
    while True:
        yield body(event())


@define(eq=False, kw_only=True)
class Load:
    """Senders that each post one signed body after another on a kept connection."""

    url: str
    bodies: Iterator[bytes] = field(factory=endless)
    """What they take from, one at a time."""
    senders: int = 20
    resend: bool = False
    """Send a body again until it is answered 200, as Asana would."""
    acknowledged: set[bytes] = field(factory=set)
    """Bodies that were answered 200."""
    statuses: Counter[int] = field(factory=Counter)
    slowest: dict[int, float] = field(factory=dict)
    """Seconds until the slowest answer of each status."""
    broken: int = 0
    """Requests that ended without an answer: the connection broke, was refused, or the time ran out."""
    _stopping: bool = False
    _tasks: list["asyncio.Task[None]"] = field(factory=list)
    _progress: asyncio.Event = field(factory=asyncio.Event)

    def start(self, http: aiohttp.ClientSession) -> None:
        """Begin to send."""
        self._tasks = [asyncio.create_task(self._send_all(http)) for _ in range(self.senders)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds; it is looked at after each request."""
        while not condition():
            assert not all(task.done() for task in self._tasks), "nobody sends any more"
            self._progress.clear()
            await self._progress.wait()

    async def acknowledge(self, number: int) -> None:
        """Wait until so many more are answered 200."""
        enough = self.statuses[200] + number
        await self.until(lambda: self.statuses[200] >= enough)

    async def finish(self) -> None:
        """Wait until there is nothing more to send."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Begin nothing more, and wait for the answers of what is under way."""
        self._stopping = True
        await self.finish()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send_all(self, http: aiohttp.ClientSession) -> None:
        for content in self.bodies:
            if self._stopping:
                return
            while await self._send(http, content) != 200 and self.resend and not self._stopping:
                await later(0.05)

    async def _send(self, http: aiohttp.ClientSession, content: bytes) -> int | None:
        """Send once; return the status of the answer, if there was one."""
        status = await self._post(http, content)
        self._progress.set()
        if status is None:
            await later(0.01)  # while nobody listens this would go round and round
        return status

    async def _post(self, http: aiohttp.ClientSession, content: bytes) -> int | None:
        begun = time.monotonic()
        try:
            async with http.post(
                f"{self.url}/{ENDPOINT}", data=content, headers={"X-Hook-Signature": sign_body(content, secret=SECRET)}
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            self.broken += 1
            return None
        self.statuses[status] += 1
        self.slowest[status] = max(self.slowest.get(status, 0.0), time.monotonic() - begun)
        if status == 200:
            self.acknowledged.add(content)
        return status


@asynccontextmanager
async def sending(url: str, *, give_up_after: float = 30.0, **options: Any) -> AsyncIterator[Load]:
    """Send to a receiver while the block runs; what is still under way at its end is cut off.

    Args:
        url: its ``public_url``.
        give_up_after: seconds each sender waits for an answer.
        **options: those of `Load`.
    """
    load = Load(url=url, **options)
    connector, total = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=give_up_after)
    async with aiohttp.ClientSession(connector=connector, timeout=total) as http:
        load.start(http)
        try:
            yield load
        finally:
            await load.aclose()
