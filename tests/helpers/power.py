"""A disk whose plug can be pulled: an SQLite file system that notes what is done, and tells what a cut would leave.

`Disk` notes every operation on the files of a directory, in order. For a cut after any number of them `Disk.after_cut`
tells what the disk holds: all that was synced, and of the rest what chance had written back from the cache by then:

* What was written to a file since its last sync is there in any of its versions, each sector or page for itself. A
  shorter length counts or not.
* A name that was made or taken away since the directory was synced is there or not. As SQLite does on Unix, the first
  sync of a journal or log syncs the directory too; that of the main file makes only its own name safe.

Nothing that was synced is lost, no byte turns up that nobody wrote, and the shared memory (``-shm``) is gone.

The store's own code runs on it: `Disk.connect` stands in for `sqlite3.connect`, and returns a connection of apsw (which
lets a file system be written in Python) in the shape of one of `sqlite3`.
"""

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import apsw
from attrs import define, field, frozen

SECTOR, PAGE = 512, 4096
_LOGS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
_ASSIGNMENT = re.compile(r"\s*PRAGMA (\w+) = ")
_disks = itertools.count()


# What is on the disk


@frozen
class Change:
    """Bytes written to a file at a place, or the file's end put there."""

    place: int
    data: bytes | None

    def parts(self, unit: int) -> Iterator[tuple[int | None, "Change"]]:
        """Yield what reaches the disk at once: the number of each unit, and what changes in it."""
        if self.data is None:
            yield None, self
            return
        start, end = self.place, self.place + len(self.data)
        while start < end:
            stop = min(end, (start // unit + 1) * unit)
            yield start // unit, Change(start, self.data[start - self.place : stop - self.place])
            start = stop

    def apply(self, content: bytearray) -> None:
        """Change the content of a file."""
        if self.data is None:
            del content[self.place :]
        else:
            content.extend(bytes(max(0, self.place - len(content))))
            content[self.place : self.place + len(self.data)] = self.data


@define(eq=False)
class Content:
    """What a file holds, whatever its name: what is safe, and what changed since."""

    safe: bytearray = field(factory=bytearray)
    since: list[Change] = field(factory=list)

    def sync(self) -> None:
        """Make everything safe."""
        for change in self.since:
            change.apply(self.safe)
        self.since.clear()

    def left(self, chance: random.Random, unit: int) -> bytes:
        """Return what a cut leaves."""
        parts = [(*part, number) for number, change in enumerate(self.since) for part in change.parts(unit)]
        versions: defaultdict[int | None, list[int]] = defaultdict(lambda: [-1])
        for where, _, number in parts:
            versions[where].append(number)
        latest = {where: chance.choice(numbers) for where, numbers in versions.items()}
        content = bytearray(self.safe)
        for where, part, number in parts:
            if number <= latest[where]:
                part.apply(content)
        return bytes(content)


@define(eq=False)
class Names:
    """What is in a directory: for each name what it may stand for after a cut, the present last."""

    meanings: dict[str, list[Content | None]] = field(factory=dict)

    def __getitem__(self, name: str) -> Content:
        content = self.meanings[name][-1]
        assert content is not None
        return content

    def make(self, name: str) -> None:
        """Add an empty file, unless there is one."""
        meanings = self.meanings.setdefault(name, [None])
        if meanings[-1] is None:
            meanings.append(Content())

    def delete(self, name: str, *, everything: bool) -> None:
        """Take a name away."""
        self.meanings[name].append(None)
        if everything:
            self._keep(self.meanings)

    def change(self, name: str, change: Change) -> None:
        """Change a file."""
        self[name].since.append(change)

    def sync(self, name: str, *, everything: bool) -> None:
        """Make a file safe, and its name, or all names."""
        self[name].sync()
        self._keep(self.meanings if everything else [name])

    def _keep(self, names: Iterable[str]) -> None:
        for name in names:
            del self.meanings[name][:-1]

    def left(self, chance: random.Random) -> dict[str, bytes]:
        """Return the files that a cut leaves."""
        unit = chance.choice((SECTOR, PAGE))
        contents = {name: chance.choice(meanings) for name, meanings in self.meanings.items()}
        return {name: content.left(chance, unit) for name, content in contents.items() if content is not None}


# What notes it


class Disk:
    """The disk under one directory; open it with ``with``.

    Args:
        pragmas: what the connections use, whatever the store's own code asks for.
        files: what is on it at the beginning, and safe.
    """

    def __init__(self, pragmas: Mapping[str, object], files: Mapping[str, bytes]) -> None:
        self._pragmas = pragmas
        self._files = files
        self._operations: list[Callable[[Names], None]] = []
        self._vfs = _FileSystem(f"power-{next(_disks)}", self.note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._vfs.unregister()

    def __len__(self) -> int:
        """How many operations there were."""
        return len(self._operations)

    def note(self, operation: Callable[..., None], *args: object, **options: object) -> None:
        """Add an operation, a method of `Names`."""

        def again(names: Names) -> None:
            operation(names, *args, **options)

        self._operations.append(again)

    def after_cut(self, operations: int, chance: random.Random) -> dict[str, bytes]:
        """Return the files and their contents if the power was cut after so many operations."""
        names = Names({name: [Content(bytearray(data))] for name, data in self._files.items()})
        for operation in self._operations[:operations]:
            operation(names)
        return names.left(chance)

    def connect(
        self,
        path: str | PathLike[str],
        *,
        timeout: float,
        isolation_level: None,
        uri: bool = False,
        cached_statements: int = 128,
    ) -> "Connection":
        """Do what `sqlite3.connect` does, as a library would that was built to sync less by default."""
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | (apsw.SQLITE_OPEN_URI if uri else 0)
        database = apsw.Connection(fspath(path), flags=flags, vfs=self._vfs.name)
        database.set_busy_timeout(int(timeout * 1000))
        for name, value in {"synchronous": "NORMAL", **self._pragmas}.items():
            database.execute(f"PRAGMA {name} = {value}")
        return Connection(database, self._pragmas)


class _FileSystem(apsw.VFS):
    """The system's files; what changes them is noted."""

    def __init__(self, name: str, note: Callable[..., None]) -> None:
        self.name = name
        self._note = note
        super().__init__(name, "unix")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> "_File":  # noqa: N802 - SQLite's names
        assert name is not None, "a temporary file"
        return _File(name, flags, self._note)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self._note(Names.delete, Path(filename).name, everything=syncdir)


class _File(apsw.VFSFile):
    def __init__(self, name: str | apsw.URIFilename, flags: list[int], note: Callable[..., None]) -> None:
        super().__init__("unix", name, flags)
        self._name = Path(name if isinstance(name, str) else name.filename()).name
        self._syncs_directory = bool(flags[0] & _LOGS and flags[0] & apsw.SQLITE_OPEN_CREATE)
        self._note = note
        note(Names.make, self._name)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._note(Names.change, self._name, Change(offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._note(Names.change, self._name, Change(newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802 - and nothing waits for the true disk
        self._note(Names.sync, self._name, everything=self._syncs_directory)
        self._syncs_directory = False


# What the store sees


class Connection:
    """A connection of apsw in the shape of one of `sqlite3`, as far as a store without errors needs it."""

    def __init__(self, database: apsw.Connection, pragmas: Mapping[str, object]) -> None:
        self._database = database
        self._pragmas = pragmas

    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> "Cursor":
        assigned = _ASSIGNMENT.match(sql)
        if assigned and assigned[1] in self._pragmas:
            sql = f"PRAGMA {assigned[1]} = {self._pragmas[assigned[1]]}"
        return Cursor(self._database, sql, values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        for values in rows:
            self.execute(sql, values)

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        self._database.close()


class Cursor:
    """What one statement found or did, all of it."""

    def __init__(self, database: apsw.Connection, sql: str, values: Sequence[Any] | Mapping[str, Any]) -> None:
        self.description: tuple[tuple[str, str], ...] = ()
        cursor = database.cursor()
        cursor.exec_trace = self._describe
        self._rows = iter(cursor.execute(sql, values).fetchall())
        self.rowcount = database.changes()
        self.lastrowid = database.last_insert_rowid()

    def _describe(self, cursor: apsw.Cursor, sql: str, values: object) -> bool:
        self.description = cursor.get_description()
        return True

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)
