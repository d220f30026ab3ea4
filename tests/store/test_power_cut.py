"""The power is cut: what the store had acknowledged is on the disk, whatever the system had not yet written back.

A store works on a disk that notes every operation; the content of all tables is kept after each step, together with
how many operations there had been when the step was acknowledged. For a cut, what the disk holds is opened with the
library everybody has, and must be exactly the content after the last acknowledged step, or after the next one.
"""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Awaitable
from contextlib import closing
from itertools import compress, product
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen

from asana_webhooks.models import Secret
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import candidate_id
from asana_webhooks.store.sqlite.file import sqlite3
from tests.helpers.power import Disk
from tests.helpers.stores import Clock
from tests.store.sqlite_help import SECRET, confirmed, in_writer, new

OTHER = Secret("8a1f6be2c4d94f0f9b53c0a7d1e26b84")
TABLES = ("registrations", "secrets", "seen", "inbox", "bodies")
PAGES_IN_LOG = 12
"""How many pages the log may have before it is folded into the file: so few that it happens every few steps."""

Content = list[list[tuple[Any, ...]]]
EMPTY: Content = [[] for _ in TABLES]


def content(database: sqlite3.Connection) -> Content:
    """Return all rows, but not when the last delivery came: that may be saved later."""
    return [rows_of(database.execute(f"SELECT * FROM {table} ORDER BY 1, 2")) for table in TABLES]


def rows_of(cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    kept = [column[0] != "last_delivery_at" for column in cursor.description]
    return [tuple(compress(row, kept)) for row in cursor]


@frozen
class Step:
    """What the store held when a step had been acknowledged, and how much the disk had done by then."""

    operations: int
    content: Content


@define
class Run:
    """A store at work on a disk."""

    path: Path
    disk: Disk
    before: Content
    """What the store held at first."""
    clock: Clock = field(factory=Clock)
    steps: list[Step] = field(factory=list)

    async def play(self, *ids: str) -> None:
        """Let the store do all it can do, for one registration after another, with restarts between."""
        for id in ids:
            async with SQLiteStore(self.path, clock=self.clock) as store:
                await self._keep(store)
                await self._establish(store, id)
                await self._work(store, id, 0)
                with closing(self.disk.connect(self.path, timeout=0, isolation_level=None)) as reader:
                    reader.execute("BEGIN")  # while somebody reads, the log cannot be folded into the file as a whole
                    reader.execute("SELECT count(*) FROM inbox")
                    await self._work(store, id, 10)
                await self._work(store, id, 20)
                await self._step(store, store.purge(older_than=0, dead=True))

    async def _establish(self, store: SQLiteStore, id: str) -> None:
        await self._step(
            store, store.open_registration(id, resource=id, public_url="https://example.com/asana", ttl=60)
        )
        for secret in (OTHER, SECRET):
            assert await self._step(store, store.add_candidate(id, secret)) == [True]
        early = [
            new(number, registration=id, candidate=candidate_id(secret))
            for number, secret in enumerate((OTHER, SECRET, OTHER, SECRET), 900)
        ]
        assert await self._step(store, *map(store.put, early)) == ["stored"] * 4
        assert await self._step(store, store.confirm_registration(id, webhook_gid="2", secret=SECRET)) == [True]
        await self._step(
            store,
            store.open_registration(f"{id} in vain", resource="2", public_url="https://example.com/asana", ttl=60),
        )
        await self._step(store, store.add_candidate(f"{id} in vain", OTHER))
        await self._step(store, store.close_registration(f"{id} in vain"))

    async def _work(self, store: SQLiteStore, id: str, first: int) -> None:
        many = [new(first + number, registration=id, size=size) for number, size in enumerate((40, 3000, 100, 9000))]
        assert await self._step(store, *map(store.put, many)) == ["stored"] * 4
        await self._step(store, store.put(new(first + 4, registration=id, size=700)))
        await self._step(store, store.record_heartbeat(id))
        [[done, dead, later, *rest]] = await self._step(store, store.claim(5, lease=60))
        self.clock.now += 1
        assert all(await self._step(store, store.extend(done, seconds=60), *map(store.release, rest)))
        assert await self._step(store, store.ack(done), store.fail(later, error="no", retry_in=1)) == [True] * 2
        assert await self._step(store, store.fail(dead, error="never", retry_in=None)) == [True]
        await self._step(store, store.requeue(dead.id))

    async def _step(self, store: SQLiteStore, *calls: Awaitable[Any]) -> list[Any]:
        answers = await asyncio.gather(*calls)  # together, so that they share a commit
        await self._keep(store)
        return answers

    async def _keep(self, store: SQLiteStore) -> None:
        operations = len(self.disk)  # of those that were awaited; what follows only reads
        self.steps.append(Step(operations, await in_writer(store, content)))

    def acknowledged(self, operations: int) -> int:
        """Return how many steps were acknowledged before the cut."""
        return sum(step.operations <= operations for step in self.steps)


async def played(directory: Path, monkeypatch: pytest.MonkeyPatch, **pragmas: object) -> Run:
    """Run a store on an empty disk to its end."""
    with Disk({"wal_autocheckpoint": PAGES_IN_LOG, **pragmas}, {}) as disk, monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", disk.connect)
        run = Run(directory / "store.db", disk, EMPTY)
        await run.play("r0", "r1")
    return run


async def played_after(
    files: dict[str, bytes], before: Content, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a store on what a cut has left."""
    write(files, directory)
    with Disk({"wal_autocheckpoint": PAGES_IN_LOG}, files) as disk, monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", disk.connect)
        run = Run(directory / "store.db", disk, before)
        await run.play("r2")
    return run


def found(files: dict[str, bytes], directory: Path) -> Content | None:
    """Open what a cut has left, with the library everybody has, and return what is in it; None if it is damaged."""
    write(files, directory)
    database = sqlite3.connect(directory / "store.db")
    try:
        database.execute("PRAGMA synchronous = OFF")  # nobody cuts the power here
        if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            return None
        return content(database) if database.execute("PRAGMA user_version").fetchone() != (0,) else EMPTY
    except sqlite3.DatabaseError:
        return None
    finally:
        database.close()


def write(files: dict[str, bytes], directory: Path) -> None:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)


def outcome(run: Run, cut: int, seed: int, directory: Path) -> str:
    """Cut the power and tell what is left: all that was acknowledged, an older state as a whole, or something else."""
    place = directory / "left"
    left = found(run.disk.after_cut(cut, random.Random(seed)), place)
    shutil.rmtree(place)
    acknowledged = run.acknowledged(cut)
    contents = [run.before, *(step.content for step in run.steps)]
    if left in contents[acknowledged : acknowledged + 2]:
        return "all"
    return "older" if left in contents[:acknowledged] else "damaged"


def outcomes(run: Run, directory: Path, *, every: int, seeds: int = 1) -> Counter[str]:
    """Cut the power after every so many operations, with as many seeds each, and count what is left."""
    cuts = product(range(0, len(run.disk) + 1, every), range(seeds))
    return Counter(outcome(run, cut, 100 * cut + seed, directory) for cut, seed in cuts)


async def test_nothing_acknowledged_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the power is cut, every acknowledged step is there byte for byte, and the one under way wholly or not.

    The file being made, checkpoints, a restart, group commits and every kind of write are among those steps.
    """
    run = await played(tmp_path, monkeypatch)
    left = outcomes(run, tmp_path, every=5)
    assert left == {"all": left.total()}
    assert left.total() > 200


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost_wherever_the_cut_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a cut after each single operation, with several chances of what was written back."""
    run = await played(tmp_path, monkeypatch)
    left = outcomes(run, tmp_path, every=1, seeds=3)
    assert left == {"all": left.total()}
    assert left.total() > 3000


async def test_nothing_is_lost_in_a_second_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power is cut again while a store makes good the first cut, or soon after."""
    first = await played(tmp_path, monkeypatch)
    for cut in range(100, len(first.disk), 600):
        files = first.disk.after_cut(cut, random.Random(cut))
        before = found(files, tmp_path / f"{cut} seen")
        assert before is not None
        second = await played_after(files, before, tmp_path / f"{cut} again", monkeypatch)
        left = outcomes(second, tmp_path / f"{cut} again", every=15)
        assert left == {"all": left.total()}


async def test_the_store_goes_on_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store opens whatever a cut leaves, and takes what comes next."""
    run = await played(tmp_path, monkeypatch)
    for cut in range(0, len(run.disk) + 1, 60):
        write(run.disk.after_cut(cut, random.Random(cut)), tmp_path / str(cut))
        async with SQLiteStore(tmp_path / str(cut) / "store.db", clock=run.clock) as store:
            await confirmed(store, "another")
            again = new(1, registration="another")
            assert [await store.put(again), await store.put(again)] == ["stored", "duplicate"]
            assert (await store.health()).problems == ()


async def test_the_cuts_would_find_a_store_that_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With synchronous=NORMAL the same cuts lose acknowledged steps, though never a part of one."""
    run = await played(tmp_path, monkeypatch, synchronous="NORMAL")
    left = outcomes(run, tmp_path, every=30)
    assert left["older"] > 5
    assert left["damaged"] == 0


async def test_the_cuts_would_find_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With synchronous=OFF, so that nothing is ordered, the same cuts leave damaged files: they are hard enough."""
    run = await played(tmp_path, monkeypatch, synchronous="OFF")
    assert outcomes(run, tmp_path, every=30)["damaged"] > 5
