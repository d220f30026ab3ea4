"""Secrets that lie in the file in another way than they would be written today are sealed anew when it is opened."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator

from attrs import frozen

from asana_webhooks.errors import StoreUnavailableError
from asana_webhooks.store.secret_box import KeptSecret, Safe
from asana_webhooks.store.sqlite.registrations import kept

__all__ = ["has_plain_text", "reseal"]

_log = logging.getLogger(__name__)

TABLES = ("registrations", "candidates")
PLAIN = "SELECT EXISTS (SELECT 1 FROM {table} WHERE secret IS NOT NULL AND key_id IS NULL)"
STALE = "SELECT number, secret, key_id FROM {table} WHERE secret IS NOT NULL AND key_id IS NOT ?"
RENEW = "UPDATE {table} SET secret = ?, key_id = ? WHERE number = ? AND secret = ? AND key_id IS ?"


@frozen
class _Renewed:
    table: str
    number: int
    old: KeptSecret
    new: KeptSecret


def has_plain_text(connection: sqlite3.Connection) -> bool:
    """Tell whether a secret lies in the file as plain text."""
    return any(connection.execute(PLAIN.format(table=table)).fetchone() == (1,) for table in TABLES)


def reseal(connection: sqlite3.Connection, safe: Safe, path: str) -> None:
    """Seal every secret with the key that seals now; those that the box cannot open stay, and are logged.

    The box is asked while nothing is locked, and what others have changed meanwhile stays as they wrote it. Where
    there was plain text, nothing of it is left in the file or its log.
    """
    renewed = list(_sealed_anew(connection, safe, path))
    if not renewed:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for one in renewed:
            connection.execute(
                RENEW.format(table=one.table),
                (one.new.column, one.new.key_id, one.number, one.old.column, one.old.key_id),
            )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    _log.info("sealed %d secrets in %.200a anew, with the key %.80a", len(renewed), path, safe.key_id)
    if any(one.old.key_id is None for one in renewed):
        _wipe(connection, path)


def _sealed_anew(connection: sqlite3.Connection, safe: Safe, path: str) -> Iterator[_Renewed]:
    failed: dict[str | None, int] = {}
    for table, number, old in _stale(connection, safe):
        if old.key_id in failed:  # asking again would only take time
            failed[old.key_id] += 1
            continue
        try:
            yield _Renewed(table, number, old, safe.seal(safe.open(old)))
        except StoreUnavailableError as error:
            failed[old.key_id] = 1
            _log.warning("a secret in %.200a stays as it is: %.300r", path, str(error))
    if failed:
        _log.warning(
            "%d secrets in %.200a could not be sealed with the key %.80a", sum(failed.values()), path, safe.key_id
        )


def _stale(connection: sqlite3.Connection, safe: Safe) -> Iterable[tuple[str, int, KeptSecret]]:
    return [
        (table, number, old)
        for table in TABLES
        for number, old in kept(connection.execute(STALE.format(table=table), (safe.key_id,)))
    ]


def _wipe(connection: sqlite3.Connection, path: str) -> None:
    """Leave nothing of what was overwritten: not in free pages, nor in the log."""
    reason = None
    try:
        connection.execute("VACUUM")  # SQLite may have been built to leave deleted content where it was
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            reason = "another connection reads it"
    except sqlite3.OperationalError as error:
        reason = error.sqlite_errorname
    if reason:
        _log.warning(
            "copies of secrets in plain text may be left in free parts of %.200a and in its log (%r); to clear them, "
            "stop what uses the file, and run VACUUM and PRAGMA wal_checkpoint(TRUNCATE) in an SQL shell",
            path,
            reason,
        )
