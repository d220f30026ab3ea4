"""What the tests of the SQLite store share."""

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from asana_webhooks.models import Secret
from asana_webhooks.store import NewDelivery, SQLiteStore

T = TypeVar("T")

SECRET = Secret("d7c5b0a1f3e24986a0b1c2d3e4f50617")


def new(number: int, *, registration: str = "r", candidate: str | None = None, size: int = 100) -> NewDelivery:
    return NewDelivery(
        registration=registration,
        signature=f"{number:064x}",
        body=number.to_bytes(4, "big") * (size // 4),
        candidate=candidate,
    )


async def confirmed(store: SQLiteStore, id: str = "r") -> SQLiteStore:
    await store.open(id, resource="1", ttl=60)
    await store.offer(id, SECRET)
    await store.confirm(id, webhook_gid="2", secret=SECRET)
    return store


async def in_writer(store: SQLiteStore, operation: Callable[[sqlite3.Connection], T]) -> T:
    """Run something on the store's live connection, in its thread."""
    return await store._access.writer.submit(operation)


SIGNATURES = "SELECT lower(hex(duplicate_key)) FROM deliveries ORDER BY id"


def rows(path: Path, query: str = SIGNATURES) -> list[tuple[object, ...]]:
    """Ask the file behind the store's back."""
    connection = sqlite3.connect(path)
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
