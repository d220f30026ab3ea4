"""A store in one SQLite file; several processes on one machine may share it."""

from asana_webhooks.store.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
