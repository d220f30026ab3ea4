"""A real receiver over a SQLite file that goes bad: full, locked, read-only, damaged, gone; and well again.

Every scene ends with a look at the file: all that was answered 200 is there, nothing in part, nothing broken.
"""

import asyncio
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from asana_webhooks import Receiver, SQLiteStore
from asana_webhooks.store.base import NewDelivery, PutResult
from tests.helpers.receiving import ROOT, locked, prepare, stored
from tests.helpers.stores import body, event
from tests.receiver.broken import (
    DONE,
    UNAVAILABLE,
    Scene,
    backed_up,
    crashed,
    descriptors,
    fill,
    log_of,
    scene,
    told,
)
from tests.store.sqlite_help import allow, in_writer
from tests.subscriptions.scenes import LoopClock

GROWING = """
import asyncio, contextlib, subprocess, sys
from pathlib import Path
from tests.helpers.receiving import prepare
from tests.receiver.broken import DONE, UNAVAILABLE, fill, scene

async def main(directory):
    path = Path(directory) / "asana.db"
    await prepare(path)
    async with scene(path) as here:
        refused = await fill(here)
        assert len(here.acknowledged) > 5
        assert await here.refusals() == [404, 401, 401]
        assert [await here.deliver(refused) for _ in range(20)] == [UNAVAILABLE] * 20
        assert "less than 16 MiB are free on the disk" in (await here.store.health()).problems[0]
        with contextlib.suppress(OSError):
            Path(directory, "rest").write_bytes(bytes(2**25))  # as much of it as there is room for
        assert "less than 16 MiB are free on the disk" in (await here.store.health()).problems[0]
        subprocess.run(["mount", "-o", "remount,size=40m", directory], check=True)
        assert (await here.store.health()).writable
        assert await here.deliver(refused) == DONE
    here.check()

asyncio.run(main(sys.argv[1]))
"""
"""Fills the disk under a receiver, then makes it larger; it fails unless all goes well."""


@pytest.fixture(name="path")
async def _path(tmp_path: Path) -> Path:
    """Where the database is, with the registration that deliveries come for."""
    path = tmp_path / "asana.db"
    await prepare(path)
    return path


@pytest.fixture(name="here")
async def _here(path: Path) -> AsyncIterator[Scene]:
    """A receiver that has acknowledged one delivery, over a store that does not wait long for others."""
    async with scene(path, busy_timeout=0.05) as here:
        assert await here.deliver() == DONE
        yield here


class TestFull:
    """There is no room."""

    async def test_a_delivery_that_does_not_fit(self, here: Scene, caplog: pytest.LogCaptureFixture) -> None:
        """It is 503 while there is no room, and 200 as soon as there is; nothing of it is kept before."""
        await in_writer(here.store, lambda db: db.execute("PRAGMA max_page_count = 40"))
        refused = await fill(here)
        assert "the disk is full, or the file has reached its maximum size (SQLITE_FULL)" in told(caplog)
        assert await here.refusals() == [404, 401, 401]
        here.check()

        await in_writer(here.store, lambda db: db.execute("PRAGMA max_page_count = 100000"))
        assert await here.deliver(refused) == DONE
        here.check()

    @pytest.mark.slow
    def test_a_disk_without_room(self, tmp_path: Path) -> None:
        """A file system of 17 MiB fills up; when it has grown, the very process that refused stores again."""
        mount = f"mount -t tmpfs -o size=17m none {tmp_path}"
        if shutil.which("unshare") is None or in_namespace(mount).returncode:
            pytest.skip("this system does not let its users mount anything")
        ended = in_namespace(f'{mount} && exec "$0" "$@"', sys.executable, "-c", GROWING, str(tmp_path))
        assert ended.returncode == 0, ended.stderr


def in_namespace(*script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that sees mounts of its own."""
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", *script], cwd=ROOT, capture_output=True, text=True, check=False
    )


class TestLocked:
    """Somebody else writes."""

    async def test_for_a_moment(self, path: Path) -> None:
        """A delivery waits for it, and is then 200; what needs no writing is answered meanwhile."""
        async with scene(path) as here:
            with locked(path) as lock:
                delivering = asyncio.create_task(here.deliver())
                assert await here.refusals() == [404, 401, 401]
                assert not delivering.done()
                lock.execute("ROLLBACK")
                assert await delivering == DONE
        here.check()

    async def test_for_longer_than_the_store_waits(self, here: Scene, caplog: pytest.LogCaptureFixture) -> None:
        """Deliveries and handshakes are 503 while it lasts, and the health says why; afterwards all is well."""
        with locked(here.path):
            assert await here.deliver() == UNAVAILABLE
            assert "another connection locks the database for too long (SQLITE_BUSY)" in told(caplog)
            assert await here.refusals() == [404, 401, 401]
            assert not (await here.store.health()).writable
            assert (await here.receiver.health()).status == 503
        assert (await here.store.health()).writable
        assert await here.deliver() == DONE
        here.check()

    async def test_for_longer_than_the_receiver_waits(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is 503 before Asana gives up; when it is stored after all, the next try is its duplicate."""
        clock, is_putting = LoopClock(), asyncio.Event()
        async with scene(path, answer_within=60, busy_timeout=30) as here:
            put, content = here.store.put, body(event())

            def noting(delivery: NewDelivery) -> Awaitable[PutResult]:
                is_putting.set()
                return put(delivery)

            monkeypatch.setattr(here.store, "put", noting)
            with locked(path):
                delivering = asyncio.create_task(here.deliver(content))
                await is_putting.wait()
                clock.turn(60)
                assert await delivering == (503, b"not stored in time")
            assert await here.deliver(content) == DONE
        here.check()

    def test_the_store_gives_up_first(self) -> None:
        """By default the store gives up before the receiver, so that the log names the cause; both do before Asana."""
        waits = inspect.signature(SQLiteStore).parameters["busy_timeout"].default
        limit = inspect.signature(Receiver).parameters["timeout"].default
        assert waits < limit < 10


class TestReadOnly:
    """The file may not be written."""

    async def test_until_it_may_be(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Everything is 503 with a reason, and 200 once the permission is there, without a restart."""
        allow(path, 0o400)
        if os.access(path, os.W_OK):  # root; the system says to it what it says to everybody else
            monkeypatch.setattr(os, "access", lambda file, mode: bool(Path(file).stat().st_mode & 0o200))
        async with scene(path) as here:
            for _ in range(3):
                assert await here.deliver() == UNAVAILABLE
            assert "this process has no permission to read and write the database file" in told(caplog)
            assert (await here.receiver.health()).status == 503
            allow(path, 0o600)
            assert await here.deliver() == DONE
            assert (await here.store.health()).writable
        here.check()


class TestDamaged:
    """The bytes are not what SQLite wrote."""

    async def test_pages(self, here: Scene, caplog: pytest.LogCaptureFixture) -> None:
        """Damage is 503 and costs nothing but that; with the file restored the next delivery is 200."""
        for _ in range(40):
            await here.deliver(size=3000)
        copied = backed_up(here.path)
        with here.path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (len(copied) - 4096))
        assert await here.deliver() == UNAVAILABLE
        assert "the database file is damaged" in told(caplog)
        assert "restore the file from a backup" in told(caplog)
        assert (await here.receiver.health()).status == 503
        before = descriptors()
        assert [await here.deliver() for _ in range(50)] == [UNAVAILABLE] * 50
        assert descriptors() == before

        here.path.write_bytes(copied)
        assert await here.deliver() == DONE
        assert (await here.store.health()).writable
        here.check()

    @pytest.mark.parametrize("place", [-50_000, -30], ids=["in the middle", "at the end"])
    async def test_the_log_after_a_crash(self, here: Scene, tmp_path: Path, place: int) -> None:
        """What stands in the log before the damage is there, what came after it is not, and no part of anything.

        What is sent again is stored again.
        """
        for _ in range(20):
            await here.deliver(size=3000)
        left = crashed(here.path, tmp_path / "left")
        log = bytearray(log_of(left).read_bytes())
        log[place] ^= 1
        log_of(left).write_bytes(log)

        async with scene(left) as again:
            assert await again.refusals() == [404, 401, 401]
            again.acknowledged = stored(left).bodies
            assert 0 < len(again.acknowledged) < 21
            assert again.acknowledged == here.acknowledged[: len(again.acknowledged)]
            assert [await again.deliver(content) for content in here.acknowledged] == [DONE] * 21
        again.check()


class TestGone:
    """The file is not where it was."""

    async def test_moved_away(self, here: Scene, caplog: pytest.LogCaptureFixture) -> None:
        """What nobody would find again is not acknowledged; when the file is back, the next delivery is 200."""
        aside = here.path.with_name("aside.db")
        here.path.rename(aside)
        assert [await here.deliver() for _ in range(3)] == [UNAVAILABLE] * 3
        assert "the database file was deleted" in told(caplog)
        assert (await here.receiver.health()).status == 503
        assert not here.path.exists()
        aside.rename(here.path)
        assert await here.deliver() == DONE
        assert (await here.store.health()).writable
        here.check()

    async def test_with_its_directory(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A directory that is gone, as of a disk that is no longer mounted, is 503 until it is back."""
        directory, aside = tmp_path / "here", tmp_path / "aside"
        directory.mkdir()
        await prepare(directory / "asana.db")
        async with scene(directory / "asana.db") as here:
            assert await here.deliver() == DONE
            directory.rename(aside)
            assert [await here.deliver() for _ in range(3)] == [UNAVAILABLE] * 3
            assert "the database file was deleted" in told(caplog)
            aside.rename(directory)
            assert await here.deliver() == DONE
        here.check()

    async def test_replaced(self, here: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Another database in its place is not written to; the log says to restart, and a restart uses it."""
        other = tmp_path / "other.db"
        await prepare(other)
        aside = [one.rename(one.with_name(f"aside-{one.name}")) for one in (here.path, log_of(here.path))]
        other.rename(here.path)
        assert [await here.deliver() for _ in range(3)] == [UNAVAILABLE] * 3
        assert "replaced by another. Restart to use the new file." in told(caplog)
        assert all(one.exists() for one in aside)
        async with scene(here.path) as restarted:
            assert await restarted.deliver() == DONE
        restarted.check()

    async def test_never_there(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A receiver whose database is in a directory that does not exist yet says so, and works once it does."""
        async with scene(tmp_path / "later" / "asana.db") as here:
            assert await here.deliver() == UNAVAILABLE
            assert "later does not exist" in told(caplog)
            (tmp_path / "later").mkdir()
            await prepare(here.path)
            assert await here.deliver() == DONE
        here.check()

    async def test_its_log(self, here: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Who deletes the log while a receiver runs loses nothing that was acknowledged, even if it crashes then."""
        log_of(here.path).unlink()
        assert await here.deliver() == UNAVAILABLE
        assert "log" in told(caplog)
        found = stored(crashed(here.path, tmp_path / "left"))
        assert found.bodies == here.acknowledged

    async def test_all_but_its_log(self, here: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A log without its file holds deliveries, so it is left alone; with the file back, they are all there."""
        left = crashed(here.path, tmp_path / "left")
        aside = left.rename(left.with_name("aside.db"))
        async with scene(left) as restarted:
            assert await restarted.deliver() == UNAVAILABLE
            assert "its write-ahead log exists" in told(caplog)
            aside.rename(left)
            assert await restarted.deliver() == DONE
            restarted.acknowledged += here.acknowledged
        restarted.check()
