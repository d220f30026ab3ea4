"""Stores for registrations and deliveries: in memory, in a SQLite file or in PostgreSQL. `open_store` picks one.

.. include:: README.md
"""

import os

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import Store
from asana_webhooks.store.memory import MemoryStore
from asana_webhooks.store.postgres import PostgresStore
from asana_webhooks.store.secret_box import SecretBox
from asana_webhooks.store.sqlite import SQLiteStore

__all__ = ["MemoryStore", "PostgresStore", "SQLiteStore", "SecretBox", "Store", "open_store"]

_ADVICE = (
    "use sqlite:///relative.db, sqlite:////absolute/path.db, postgresql://user:password@host/database or memory:; "
    "a path without sqlite:/// must be a pathlib.Path, as in open_store(Path(…))"
)


def open_store(url: str | os.PathLike[str], *, secret_box: SecretBox | None = None) -> Store:
    """Return the store for a URL or path. ``async with`` or the first call opens it.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute/path.db`` (the path is used as written, without
            percent-decoding), ``postgresql://user:password@host/database`` (see `PostgresStore`), or ``memory:``. A
            ``pathlib.Path`` is the path of a SQLite file.
        secret_box: seals the secrets of webhooks; see `SQLiteStore`. A store in memory writes none, and ignores it.

    Raises:
        ConfigurationError: *url* is neither the URL of a store nor a ``Path``, or *secret_box* is not a `SecretBox`.
        ModuleNotFoundError: the URL is PostgreSQL's, and asyncpg is not installed.
    """
    if isinstance(url, os.PathLike):
        return SQLiteStore(url, secret_box=secret_box)
    if not isinstance(url, str):
        raise ConfigurationError(f"the store URL must be text, not {type(url).__name__}; {_ADVICE}")
    if url == "memory:":
        return MemoryStore()
    if url.startswith(("postgresql://", "postgres://")):
        return PostgresStore(url, secret_box=secret_box)
    scheme, _, rest = url.partition(":")
    path = rest.removeprefix("///")
    if scheme != "sqlite" or not rest.startswith("///") or not path or "?" in path:
        # The message leaves out the URL, which may contain a password.
        raise ConfigurationError(f"the store URL is not supported; {_ADVICE}")
    return SQLiteStore(path, secret_box=secret_box)
