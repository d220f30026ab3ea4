"""Every store there is, new and empty, for the contract: what `asana_webhooks.store.base.Store` promises."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from asana_webhooks.store import MemoryStore, PostgresStore, SQLiteStore, Store
from asana_webhooks.store.secret_box import FernetBox
from tests.helpers.stores import Clock

BOX = FernetBox({"k": Fernet.generate_key().decode()})
STORES: dict[str, Callable[[Any, Clock], Store]] = {
    "memory": lambda _, clock: MemoryStore(clock=clock),
    "sqlite": lambda path, clock: SQLiteStore(path, clock=clock),
    "sqlite with a box": lambda path, clock: SQLiteStore(path, clock=clock, secret_box=BOX),
    "postgres": lambda url, clock: PostgresStore(url, clock=clock),
}
"""How to make each of them at a place: the path of a file, or the URL of a database."""


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """The time of the store."""
    return Clock()


def maker(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Return what makes the store a fixture is asked for."""
    kind: str = request.param
    place = request.getfixturevalue("postgres_url") if kind.startswith("postgres") else tmp_path / "store.db"
    return lambda: STORES[kind](place, clock)


@pytest.fixture(name="make_store", params=STORES)
def _make_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Make a store of each kind."""
    return maker(request, tmp_path, clock)


@pytest.fixture(name="make_durable", params=[name for name in STORES if name != "memory"])
def _make_durable(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Make a store of each kind that outlives its process, each time on the same place."""
    return maker(request, tmp_path, clock)


@pytest.fixture(name="store")
async def _store(make_store: Callable[[], Store]) -> AsyncIterator[Store]:
    """An open store."""
    async with make_store() as store:
        yield store
