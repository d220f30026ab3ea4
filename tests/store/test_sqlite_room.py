"""How much the inbox takes, and how seldom that is counted."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from asana_webhooks import StoreFullError
from asana_webhooks.store.rules import DeliveryState
from asana_webhooks.store.sqlite.room import COUNT_UNFINISHED, Room
from asana_webhooks.store.sqlite.schema import prepare

REGISTRATION = "INSERT INTO registrations (id, resource, state, deadline) VALUES ('r', '1', 'confirmed', 0)"
ADD = "INSERT INTO deliveries (registration, duplicate_key, state, received_at) VALUES (1, randomblob(8), 'waiting', 0)"
FINISH = "UPDATE deliveries SET state = 'done' WHERE id = (SELECT max(id) FROM deliveries WHERE state = 'waiting')"


class Inbox:
    """A database, and how often its deliveries were counted."""

    def __init__(self, connection: sqlite3.Connection, room: Room) -> None:
        self.connection = connection
        self.room = room
        self.counts = 0
        connection.set_trace_callback(self._see)

    def _see(self, statement: str) -> None:
        self.counts += statement == COUNT_UNFINISHED

    def transaction(self, *, now: float, puts: int = 1) -> int:
        """Put so many in one transaction; return how many were taken."""
        self.room.begin()
        taken = 0
        for _ in range(puts):
            try:
                self.room.check(self.connection, DeliveryState.WAITING, 1, 1, now=now)
            except StoreFullError:
                continue
            self.connection.execute(ADD)
            self.room.added(DeliveryState.WAITING)
            taken += 1
        return taken


def room(limit: int | None) -> Room:
    return Room(max_deliveries=limit, max_quarantined=0, max_quarantined_bytes=0)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """An empty database with one registration."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        prepare(connection)
        connection.execute(
            "INSERT INTO registrations (id, resource, state, deadline) VALUES ('r', '1', 'confirmed', 0)"
        )
        yield connection


def test_it_is_not_counted_for_each_transaction(connection: sqlite3.Connection) -> None:
    """While there is room by what was counted last, a transaction costs the same however many wait."""
    inbox = Inbox(connection, room(100))
    assert [inbox.transaction(now=number / 11, puts=9) for number in range(11)] == [9] * 11
    assert inbox.counts == 1


def test_it_ends_where_it_is_full(connection: sqlite3.Connection) -> None:
    """The last one that has room is taken, and none more; that is seen once in a transaction."""
    inbox = Inbox(connection, room(10))
    assert inbox.transaction(now=0, puts=7) == 7
    assert inbox.transaction(now=0, puts=50) == 3
    assert inbox.counts == 2
    assert inbox.transaction(now=0, puts=50) == 0
    assert inbox.counts == 3
    assert [inbox.room.is_full(unfinished) for unfinished in (9, 10, 11)] == [False, True, True]


def test_what_is_finished_makes_room(connection: sqlite3.Connection) -> None:
    """A full inbox is counted anew each time, so it takes again as soon as it can."""
    inbox = Inbox(connection, room(2))
    assert inbox.transaction(now=0, puts=3) == 2
    connection.execute(FINISH)
    assert inbox.transaction(now=0, puts=3) == 1


@pytest.mark.parametrize("later", [1.0, 5000.0, -1.0])
def test_others_are_reckoned_with(connection: sqlite3.Connection, later: float) -> None:
    """What another process puts in is seen a second later, also if the clock was set back meanwhile."""
    inbox = Inbox(connection, room(10))
    assert inbox.transaction(now=100) == 1
    for _ in range(9):
        connection.execute(ADD)
    assert inbox.transaction(now=100.9) == 1
    assert inbox.transaction(now=100 + later) == 0


def test_without_a_limit_nothing_is_counted(connection: sqlite3.Connection) -> None:
    """As many are taken as come."""
    inbox = Inbox(connection, room(None))
    assert inbox.transaction(now=0, puts=500) == 500
    assert inbox.transaction(now=60) == 1
    assert inbox.counts == 0
    assert not inbox.room.is_full(10**9)


def test_quarantine_is_apart(connection: sqlite3.Connection) -> None:
    """It has limits of its own, and takes nothing of the inbox's room."""
    own = Room(max_deliveries=2, max_quarantined=1, max_quarantined_bytes=10)
    inbox = Inbox(connection, own)
    assert inbox.transaction(now=0) == 1
    own.check(connection, DeliveryState.QUARANTINED, 1, 10, now=0)
    own.added(DeliveryState.QUARANTINED)
    with pytest.raises(StoreFullError, match="quarantine"):
        own.check(connection, DeliveryState.QUARANTINED, 1, 11, now=0)
    assert inbox.transaction(now=0) == 1
    assert inbox.counts == 1
