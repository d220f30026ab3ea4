"""How a SQLite store reaches its database: one lane that writes and one that reads, within one event loop."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.sqlite.file import DatabaseFile
from asana_webhooks.store.sqlite.maintenance import Keeper
from asana_webhooks.store.sqlite.transactions import Lane, Operation, Together

__all__ = ["Access"]

R = TypeVar("R")
T = TypeVar("T")


class Access:
    """The two lanes of one store. Its methods raise a `ConfigurationError` in another event loop, or once it is closed.

    Args:
        file: the database.
        keeper: looks after it.
        begun: called at the beginning of each transaction that writes, in its thread.
        max_operations: how many additions may wait to be written, and how many questions to be answered.
        max_bytes: how many bytes of bodies may wait to be written.
    """

    def __init__(
        self, file: DatabaseFile, keeper: Keeper, *, begun: Callable[[], None], max_operations: int, max_bytes: int
    ) -> None:
        self.keeper = keeper
        self.writer = Lane(
            file,
            connect=keeper.connect,
            name="asana-webhooks-writer",
            begin="BEGIN IMMEDIATE",
            ready=keeper.ready,
            begun=begun,
            settled=keeper.settled,
            disconnected=keeper.disconnected,
            max_operations=max_operations,
            max_bytes=max_bytes,
        )
        self.reader = Lane(
            file,
            connect=file.connect_to_read,
            name="asana-webhooks-reader",
            begin="BEGIN",
            max_operations=max_operations,
        )
        self._is_made = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def __str__(self) -> str:
        return "closed" if self._closed else "open" if self._loop else "new"

    async def open(self) -> None:
        """Connect both lanes, or neither."""
        try:
            await self.write(_nothing)
            await self.read(_nothing)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Wait for what is under way, then disconnect."""
        if not self._closed:
            self._check_loop()
            self._closed = True
        await self.reader.aclose()
        await self.writer.aclose()  # last, so that this connection folds the log into the file

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError("this store belongs to another event loop; make one for each loop")

    def _check_usable(self) -> None:
        self._check_loop()
        if self._closed:
            raise ConfigurationError("this store is closed")

    def write(self, operation: Operation[T], *, adds: int | None = None) -> asyncio.Future[T]:
        """Have an operation write; see `Lane.submit`."""
        self._check_usable()
        return self.writer.submit(operation, adds=adds)

    def write_together(self, together: Together[R, T], request: R, *, adds: int | None = None) -> asyncio.Future[T]:
        """Have a request done that writes; see `Lane.submit_together`."""
        self._check_usable()
        return self.writer.submit_together(together, request, adds=adds)

    def add(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Have an operation write that makes the store larger; `StoreFullError` if full."""

        def checked(db: sqlite3.Connection) -> T:
            self.keeper.log.check_room()
            return operation(db)

        return self.write(checked, adds=0)

    async def write_or_undo(self, operation: Operation[T], *, undo: Callable[[sqlite3.Connection, T], object]) -> T:
        """Have an operation write; if the caller is cancelled, what it would have got is undone."""
        written = self.write(operation)
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:
            if written.done():
                self._undo(written, undo)
            else:
                written.add_done_callback(lambda done: self._undo(done, undo))
            raise

    def _undo(self, written: asyncio.Future[T], undo: Callable[[sqlite3.Connection, T], object]) -> None:
        if not written.cancelled() and written.exception() is None:
            result = written.result()
            undone = self.writer.submit(lambda db: undo(db, result))
            undone.add_done_callback(lambda done: done.exception())  # nobody is left to hear that it failed

    async def read(self, operation: Operation[T]) -> T:
        """Have an operation read; `StoreFullError` if too many wait for that, whoever asked them being gone or not."""
        await self._make()
        return await self.reader.submit(operation, adds=0)

    async def read_together(self, together: Together[R, T], request: R) -> T:
        """Have a request done that reads; see `read` and `Lane.submit_together`."""
        await self._make()
        return await self.reader.submit_together(together, request, adds=0)

    async def _make(self) -> None:
        """See that there are tables: who only reads cannot make any, or bring old ones up to date."""
        self._check_usable()
        if not self._is_made:
            await self.writer.open()
            self._is_made = True
            self._check_usable()


def _nothing(connection: sqlite3.Connection) -> None:
    """Open the lane's connection, and do no more."""
