"""One database with two threads: one writes, one reads. The methods of `SQLiteStore` run in them."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.rules import QuarantineLimits
from asana_webhooks.store.secret_box import Sealer, SecretBox
from asana_webhooks.store.sqlite.file import DatabaseFile, sqlite3
from asana_webhooks.store.sqlite.maintenance import Writer
from asana_webhooks.store.sqlite.transactions import Operation, TransactionQueue

__all__ = ["Database", "named"]

T = TypeVar("T")


class Database:
    """What the parts of `SQLiteStore` share; it documents the arguments."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        secret_box: SecretBox | None = None,
        clock: Callable[[], float] = time.time,
        # Timeouts
        busy_timeout: float = 5.0,
        # Limits
        max_operations: int = 10_000,
        max_bytes: int = 64 * 1024**2,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
    ) -> None:
        check_count("max_operations", max_operations)
        check_count("max_bytes", max_bytes)
        self._file = DatabaseFile(path, busy_timeout=check_seconds("busy_timeout", busy_timeout))
        self._clock = clock
        self._quarantine = QuarantineLimits(max_quarantined, max_quarantined_bytes)
        self._sealer = Sealer(secret_box)
        self._writer = Writer(self._file, max_operations=max_operations, max_bytes=max_bytes)
        self._reader = TransactionQueue(self._file, self._connect_to_read, max_operations=max_operations)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._recent: dict[int, float] = {}
        """When the last deliveries of registrations were stored, by number, until that is saved."""

    def _connect_to_read(self) -> sqlite3.Connection:
        if self._file.opened is None:
            self._writer.connect()  # a reader cannot create tables, and would leave a log behind
        return self._file.connect_to_read()

    def _check_loop(self) -> None:
        self._file.claim()
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise ConfigurationError("this store belongs to another event loop; create one in each loop")

    def _check_usable(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConfigurationError("this store is closed; create a new one")

    def _write(self, operation: Operation[T], *, adds: int | None = None) -> asyncio.Future[T]:
        """Run a write. If it *adds* data, so many bytes, raise `StoreFullError` if too many are waiting."""
        self._check_usable()
        return self._writer.submit(operation, adds=adds)

    def _read(self, operation: Operation[T]) -> asyncio.Future[T]:
        self._check_usable()
        return self._reader.submit(operation, adds=0)


def named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    """Yield the rows with the names of their columns."""
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)
