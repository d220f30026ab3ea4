"""Versions of SQLite that can lose a commit when two connections write."""

import logging
from pathlib import Path

import pytest

from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.sqlite import maintenance
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.store.sqlite.maintenance import is_affected
from tests.store.sqlite_help import confirmed, new, rows


@pytest.fixture(name="path")
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the database is; whatever SQLite is at hand, the store takes it for one with the fault."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    return tmp_path / "store.db"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_versions() -> None:
    """The fault is known by version: fixed in 3.51.3, and in later releases of 3.50 and 3.44."""
    for version in ((3, 37, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 49, 9), (3, 50, 6), (3, 51, 0), (3, 51, 2)):
        assert is_affected(version)
    for version in ((3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 50, 99), (3, 51, 3), (3, 52, 0), (4, 0, 0)):
        assert not is_affected(version)


async def test_two_stores_that_write(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each hears of the other at its next look, once, with what to do; the health says it from then on."""
    async with SQLiteStore(path) as one, SQLiteStore(path) as two:
        await confirmed(one)
        assert (await one.health()).problems == ()
        for _ in range(2):
            (problem,) = (await two.health()).problems
        (warning,) = warnings(caplog)
        for text in (str(path), sqlite3.sqlite_version, "asana-webhooks[sqlite]", "https://www.sqlite.org/wal.html"):
            assert text in warning
        assert problem.split("; ")[1:] == warning.split("; ")[1:]
        assert len((await one.health()).problems) == 1
        assert len(warnings(caplog)) == 2


async def test_without_a_look_at_the_health(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction looks, too, if the last look was a second ago."""
    monkeypatch.setattr(maintenance, "CHECK_INTERVAL", 3600)
    async with SQLiteStore(path) as store:
        await confirmed(store)
        rows(path, "PRAGMA user_version = 5")
        await store.put(new(1))
        assert warnings(caplog) == []
        monkeypatch.setattr(maintenance, "CHECK_INTERVAL", 0)
        await store.put(new(2))
        assert len(warnings(caplog)) == 1


async def test_one_alone(path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store alone is not bothered: not by those that were there before, its own reader, or a program that reads."""
    monkeypatch.setattr(maintenance, "CHECK_INTERVAL", 0)
    monkeypatch.setattr(maintenance, "LONG_LOG", 100_000)
    for first in (0, 100):
        async with SQLiteStore(path) as store:
            if not first:
                await confirmed(store)
            for number in range(first, first + 50):
                await store.put(new(number, size=4000))
                assert await store.find_registration("r") is not None
            assert len(rows(path)) == first // 2 + 50
            assert (await store.health()).problems == ()
    assert warnings(caplog) == []


async def test_a_version_without_the_fault(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fixed SQLite several stores share a file without a word."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    async with SQLiteStore(path) as one, SQLiteStore(path) as two:
        for store, id in ((one, "a"), (two, "b"), (one, "c")):
            await store.open_registration(id, resource="1", public_url="https://example.com/asana", ttl=1)
            assert (await store.health()).problems == ()
    assert warnings(caplog) == []
