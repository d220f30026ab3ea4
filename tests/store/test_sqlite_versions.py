"""Versions of SQLite with a fault, and who else uses the file."""

import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite.users import Users, is_affected
from tests.store.sqlite_help import modes

USING = """
import asyncio, sys
from asana_webhooks.store import SQLiteStore

async def main():
    async with SQLiteStore(sys.argv[1]):
        print("open", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="affected", autouse=True)
def _affected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever SQLite is at hand, the store takes it for one with the fault."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))


def using(path: Path) -> subprocess.Popen[str]:
    """Open a store in another process, until a line is sent to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", USING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    return process


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((3, 37, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 44, 9), False),
        ((3, 45, 0), True),
        ((3, 49, 9), True),
        ((3, 50, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 50, 99), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions(version: tuple[int, int, int], expected: bool) -> None:
    """The fault is known by version: fixed in 3.51.3, and in later releases of 3.50 and 3.44."""
    assert is_affected(version) is expected


class TestWarning:
    """Several users of one file hear of the fault, one does not."""

    async def test_another_process(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Who comes second is told once, with what to do; the health says it while the other is there."""
        with using(path) as other:
            async with SQLiteStore(path) as store:
                health = await store.health()
                (warning,) = warnings(caplog)
                for text in (str(path), sqlite3.sqlite_version, "3.51.3", "https://www.sqlite.org/wal.html"):
                    assert text in warning
                assert len(health.problems) == 1
                assert health.problems[0].split("; ")[1:] == warning.split("; ")[1:]
                other.communicate("end\n")
                assert (await store.health()).problems == ()
                assert len(warnings(caplog)) == 1

    async def test_who_comes_first_hears_of_it_later(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The first one finds the second when it is asked for its health; also when that one is killed."""
        async with SQLiteStore(path) as store:
            assert (await store.health()).problems == ()
            with using(path) as other:
                assert len((await store.health()).problems) == 1
                other.kill()
                other.wait()
            assert (await store.health()).problems == ()
        assert len(warnings(caplog)) == 1

    async def test_two_stores_of_one_process(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """They are two connections that write, so the fault concerns them as well."""
        async with SQLiteStore(path) as store:
            async with SQLiteStore(path):
                assert len((await store.health()).problems) == 1
            assert (await store.health()).problems == ()
        assert len(warnings(caplog)) == 2

    async def test_one_alone(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A store alone is not bothered, whatever the version, nor by those that were there before."""
        for _ in range(2):
            async with SQLiteStore(path) as store:
                await store.find("r")
                assert (await store.health()).problems == ()
        assert warnings(caplog) == []

    async def test_a_version_without_the_fault(
        self, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a fixed SQLite several processes share a file without a word."""
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
        async with SQLiteStore(path) as store, SQLiteStore(path):
            assert (await store.health()).problems == ()
        assert warnings(caplog) == []


class TestUsers:
    """The lock that tells users of a file from each other, and keeps nobody from anything."""

    def test_counting(self, path: Path) -> None:
        """Each sees whether there are others; the last one deletes the file."""
        one, two, three = Users(path), Users(path), Users(path)
        assert not one.are_several()
        one.join()
        one.join()
        assert not one.are_several()
        assert modes(path.parent) == {"store.db": 0o600}
        for other in (two, three):
            other.join()
            assert one.are_several()
            assert other.are_several()
        one.leave()
        assert two.are_several()
        two.leave()
        assert not three.are_several()
        assert path.exists()
        three.leave()
        three.leave()
        assert not path.exists()

    def test_a_file_left_over(self, path: Path) -> None:
        """What a killed process has left is nobody's."""
        path.touch(0o600)
        users = Users(path)
        users.join()
        assert not users.are_several()
        users.leave()
        assert not path.exists()

    def test_a_file_that_was_just_deleted(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who opens the file while its last user deletes it makes a new one that all later ones find."""
        last, late, later = Users(path), Users(path), Users(path)
        last.join()
        opened = os.open

        def slowly(*args: object, **options: object) -> int:
            file = opened(*args, **options)  # type: ignore[arg-type]
            last.leave()
            return file

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", slowly)
            late.join()
        later.join()
        assert late.are_several()
        assert later.are_several()
        late.leave()
        later.leave()

    def test_a_file_that_somebody_deletes(self, path: Path) -> None:
        """Those who come before and after find each other, when the first one looks again."""
        one, two = Users(path), Users(path)
        one.join()
        path.unlink()
        two.join()
        assert one.are_several()
        assert two.are_several()
        one.leave()
        two.leave()
        assert not path.exists()

    @pytest.mark.parametrize("obstacle", ["missing", "directory", "link"])
    async def test_where_it_does_not_work(self, path: Path, obstacle: str) -> None:
        """A path that cannot be opened fails nobody: the store works, and everybody looks alone."""
        beside = path.with_name("store.db-users")
        if obstacle == "directory":
            make_directory(beside)
        elif obstacle == "link":
            link_to(beside, path.with_name("elsewhere"))
        users = Users(path.with_name("missing") / "users" if obstacle == "missing" else beside)
        users.join()
        assert not users.are_several()
        users.leave()
        async with SQLiteStore(path) as store:
            assert await store.find("r") is None
        assert not path.with_name("elsewhere").exists()

    def test_a_file_system_without_locks(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system has no such locks nobody is held up, and everybody looks alone."""

        def refuse(file: int, kind: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refuse)
        one, two = Users(path), Users(path)
        one.join()
        two.join()
        assert not one.are_several()
        one.leave()
        two.leave()

    def test_nothing_is_left_open(self, path: Path) -> None:
        """A store that is dropped without being closed counts no more."""
        one, two = Users(path), Users(path)
        one.join()
        two.join()
        del two
        assert not one.are_several()
        one.leave()


def make_directory(path: Path) -> None:
    path.mkdir()


def link_to(path: Path, target: Path) -> None:
    path.symlink_to(target)
