"""Stores by URL."""

from pathlib import Path
from typing import Any

import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store import MemoryStore, PostgresStore, SQLiteStore, open_store


def test_memory() -> None:
    """``memory:`` is a store in memory."""
    assert isinstance(open_store("memory:"), MemoryStore)


async def test_an_absolute_path(tmp_path: Path) -> None:
    """Four slashes lead to an absolute path, which is taken literally."""
    path = tmp_path / "my %20 store.db"
    async with open_store(f"sqlite:///{path}") as store:
        assert isinstance(store, SQLiteStore)
    assert path.is_file()


async def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes lead to a path from the directory of that moment, whatever is the directory later."""
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///store.db")
    monkeypatch.chdir("/")
    async with store:
        pass
    assert (tmp_path / "store.db").is_file()


async def test_a_path_object(tmp_path: Path) -> None:
    """A `Path`, or another object with a path, is that of a SQLite file, whatever it looks like."""

    class Place:
        def __fspath__(self) -> str:
            return str(tmp_path / "place.db")

    for path, name in ((tmp_path / "memory:", "memory:"), (Place(), "place.db")):
        async with open_store(path) as store:
            assert isinstance(store, SQLiteStore)
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("path", ["hunter2.db", "/x/hunter2.db", r"C:\hunter2.db"])
def test_a_path_as_text(path: str) -> None:
    """A path without a scheme is refused with both forms that work, and is not repeated."""
    with pytest.raises(
        ConfigurationError, match=r"sqlite:///relative\.db, sqlite:////abs.*open_store\(Path\("
    ) as caught:
        open_store(path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, b"sqlite:///hunter2.db", 5, MemoryStore()], ids=lambda one: type(one).__name__)
def test_what_is_no_text(wrong: Any) -> None:
    """An unset variable, bytes or a store are named by their type, with the forms that work."""
    with pytest.raises(ConfigurationError, match=f"not {type(wrong).__name__}; use sqlite:///") as caught:
        open_store(wrong)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_postgresql(scheme: str) -> None:
    """Both schemes of PostgreSQL's URLs are a store there; no password is shown."""
    store = open_store(f"{scheme}://user:hunter2@db/asana")
    assert isinstance(store, PostgresStore)
    assert "hunter2" not in repr(store)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres",
        "postgresql:user:hunter2@db",
        "sqlite",
        "sqlite:",
        "sqlite:store.db",
        "sqlite://hunter2/store.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///store.db?mode=ro",
        "memory",
        "memory:hunter2",
        "mysql://user:hunter2@db/asana",
        "redis://:hunter2@db",
    ],
)
def test_other_urls(url: str) -> None:
    """Anything else is refused with what works instead, and is not repeated."""
    with pytest.raises(ConfigurationError, match="memory") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
