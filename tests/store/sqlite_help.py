"""What the tests of the SQLite store share."""

import asyncio
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from asana_webhooks.models import Secret
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import NewDelivery
from asana_webhooks.store.sqlite.file import sqlite3

T = TypeVar("T")

SECRET = Secret("d7c5b0a1f3e24986a0b1c2d3e4f50617")


def new(number: int, *, registration: str = "r", candidate: str | None = None, size: int = 100) -> NewDelivery:
    return NewDelivery(
        registration=registration,
        signature=f"{number:064x}",
        body=number.to_bytes(4, "big") * (size // 4),
        candidate=candidate,
    )


async def opened(store: SQLiteStore, id: str, *, ttl: float = 60) -> None:
    """Open a registration. Its label is its id, so that many can be live."""
    assert await store.open_registration(id, resource="1", public_url="https://example.com/asana", label=id, ttl=ttl)


async def confirmed(store: SQLiteStore, id: str = "r") -> SQLiteStore:
    await opened(store, id)
    await store.add_candidate(id, SECRET)
    await store.confirm_registration(id, webhook_gid="2", secret=SECRET)
    return store


def in_writer(store: SQLiteStore, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
    """Run something on the store's connection that writes, in its thread and in a transaction with others."""
    return store._writer.submit(operation)


def in_reader(store: SQLiteStore, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
    """Run something on the store's connection that reads, in its thread."""
    return store._reader.submit(operation)


@contextmanager
def hanging_reader(store: SQLiteStore) -> Iterator[None]:
    """Let the store's thread that reads hang while the block runs."""
    go_on = threading.Event()
    in_reader(store, lambda _: go_on.wait(60))
    try:
        yield
    finally:
        go_on.set()


SIGNATURES = "SELECT lower(hex(signature)) FROM seen ORDER BY received_at, signature"


def rows(path: Path, query: str = SIGNATURES) -> list[tuple[object, ...]]:
    """Ask the file behind the store's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def modes(directory: Path) -> dict[str, int]:
    """Return the files of a directory with their permissions."""
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


def allow(path: Path, mode: int) -> None:
    """Set the permissions of a file or directory."""
    path.chmod(mode)
