"""Both stores keep every promise of the protocol."""

from pathlib import Path

from asana_webhooks.store import MemoryStore, SQLiteStore, Store
from asana_webhooks.testing.conformance import SettableClock, StoreConformance


class TestMemoryStore(StoreConformance):
    """The store in memory."""

    def make_store(self, tmp_path: Path, clock: SettableClock) -> Store:
        return MemoryStore(clock=clock)


class TestSQLiteStore(StoreConformance):
    """The store in a SQLite file."""

    def make_store(self, tmp_path: Path, clock: SettableClock) -> Store:
        return SQLiteStore(tmp_path / "store.db", clock=clock)
