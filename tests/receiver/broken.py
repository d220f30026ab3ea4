"""A real receiver over a SQLite file that a test breaks."""

import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import define, field

from asana_webhooks import Receiver, SQLiteStore, sign_body
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.testing import serve_receiver
from tests.helpers.receiving import stored
from tests.helpers.stores import ENDPOINT, SECRET, body, event

UNAVAILABLE = (503, b"store unavailable")
DONE = (200, b"")


@define(eq=False)
class Scene:
    """A receiver on a port, who posts to it, and what it has acknowledged."""

    path: Path
    store: SQLiteStore
    receiver: Receiver
    url: str
    http: aiohttp.ClientSession
    acknowledged: list[bytes] = field(factory=list)

    async def post(self, content: bytes, headers: dict[str, str], endpoint: str = ENDPOINT) -> tuple[int, bytes]:
        async with self.http.post(f"{self.url}/{endpoint}", data=content, headers=headers) as response:
            assert "X-Hook-Secret" not in response.headers
            return response.status, await response.read()

    async def deliver(self, content: bytes | None = None, *, size: int = 0) -> tuple[int, bytes]:
        """Deliver something; return the answer."""
        content = content or body(event(padding="x" * size))
        answer = await self.post(content, {"X-Hook-Signature": sign_body(content, secret=SECRET)})
        if answer == DONE and content not in self.acknowledged:
            self.acknowledged.append(content)
        return answer

    async def refusals(self) -> list[int]:
        """Ask what needs no writing: an unknown endpoint, a forgery, a handshake that comes too late."""
        asked = [
            self.post(b"{}", {"X-Hook-Signature": "0" * 64}, "x" * 43),
            self.post(b"{}", {"X-Hook-Signature": "0" * 64}),
            self.post(b"", {"X-Hook-Secret": "f" * 32}),
        ]
        return [status for status, _ in [await one for one in asked]]

    def check(self) -> None:
        """See that all that was acknowledged is there, once, and nothing else."""
        found = stored(self.path)
        assert found.intact
        assert sorted(found.bodies) == sorted(self.acknowledged)
        assert found.deliveries == len(found.bodies)


@asynccontextmanager
async def scene(path: Path, *, answer_within: float = 8.0, **options: Any) -> AsyncIterator[Scene]:
    """Serve a receiver over the store at *path*, which is opened by the first request."""
    store = SQLiteStore(path, **options)
    receiver = Receiver(store, timeout=answer_within)
    try:
        async with receiver, serve_receiver(receiver) as url, aiohttp.ClientSession() as http:
            yield Scene(path, store, receiver, url, http)
    finally:
        await store.aclose()


def told(caplog: pytest.LogCaptureFixture) -> str:
    """Return the last error the log tells of."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR][-1]


def descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


async def fill(here: Scene) -> bytes:
    """Deliver until there is no room; return what did not fit."""
    while True:
        content = body(event(padding="x" * 30_000))
        answer = await here.deliver(content)
        if answer != DONE:
            assert answer == UNAVAILABLE
            return content


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def backed_up(path: Path) -> bytes:
    """Fold the log into the file; return what that holds then."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    finally:
        connection.close()
    return path.read_bytes()


def crashed(path: Path, directory: Path) -> Path:
    """Copy what is on the disk, as a process that is killed leaves it."""
    directory.mkdir()
    for one in (path, log_of(path)):
        if one.exists():
            shutil.copy(one, directory / one.name)
    return directory / path.name
