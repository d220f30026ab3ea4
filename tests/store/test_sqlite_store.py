"""What a `SQLiteStore` does beyond the protocol."""

import asyncio
import gc
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from asana_webhooks.errors import ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store import NewDelivery, SQLiteStore, candidate_id
from asana_webhooks.store.secret_box import PLAIN_TEXT
from asana_webhooks.store.sqlite import inbox, registrations
from asana_webhooks.testing.conformance import SettableClock
from tests.store.sqlite_help import SECRET, allow, confirmed, in_writer, modes, new, rows

T = TypeVar("T")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture(name="store")
async def _store(path: Path) -> AsyncIterator[SQLiteStore]:
    """An open store with the confirmed registration "r"."""
    async with SQLiteStore(path) as store:
        yield await confirmed(store)


PRIVATE = {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600, "store.db-users": 0o600}


def remove(path: Path) -> None:
    path.unlink()


def link_to(path: Path, target: Path) -> None:
    path.symlink_to(target)


async def in_reader(store: SQLiteStore, operation: Callable[[sqlite3.Connection], T]) -> T:
    """Run something on the connection that reads, in its thread."""
    return await store._reader.submit(operation)


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asana-webhooks")]


class TestDurability:
    """What is answered is on the disk."""

    @pytest.mark.parametrize(
        ("pragma", "expected"),
        [
            ("synchronous", 2),  # FULL
            ("journal_mode", "wal"),
            ("busy_timeout", 5000),
            ("foreign_keys", 1),
            ("journal_size_limit", 64 * 1024**2),
            ("wal_autocheckpoint", 1000),
            ("secure_delete", 1),
        ],
    )
    async def test_the_live_connections_are_set_up(self, store: SQLiteStore, pragma: str, expected: int | str) -> None:
        """The connection that writes has the settings that durability rests on."""
        assert await in_writer(store, lambda db: db.execute(f"PRAGMA {pragma}").fetchone()) == (expected,)

    async def test_the_reader_waits_as_long(self, store: SQLiteStore) -> None:
        """The connection that reads waits for locks as the other one does, and reads the same log."""
        assert await in_reader(store, lambda db: db.execute("PRAGMA busy_timeout").fetchone()) == (5000,)
        assert await in_reader(store, lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)

    async def test_the_reader_cannot_write(self, store: SQLiteStore) -> None:
        """All that is written goes through one connection."""
        with pytest.raises(StoreUnavailableError, match="SQLITE_READONLY"):
            await in_reader(store, lambda db: db.execute("DELETE FROM deliveries"))

    async def test_sqlite_may_have_been_built_otherwise(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Durability does not rest on the defaults of the SQLite library at hand."""

        class Careless(sqlite3.Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.execute("PRAGMA synchronous = OFF")

        monkeypatch.setattr(sqlite3, "connect", Careless)
        async with SQLiteStore(path) as store:
            assert await in_writer(store, lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)

    async def test_a_result_means_committed(self, store: SQLiteStore, path: Path) -> None:
        """Whoever got an answer can see the effect through another connection."""
        await store.open("p", resource="1", ttl=60)
        assert await store.offer("p", SECRET)
        assert rows(path, "SELECT secret FROM candidates") == [(SECRET.reveal(),)]
        assert await store.put(new(1)) == "stored"
        assert rows(path) == [(new(1).signature,)]

    async def test_it_survives_reopening(self, store: SQLiteStore, path: Path) -> None:
        """Another store on the same file goes on where the first one ended."""
        await store.put(new(1))
        await store.put(new(2))
        (lease,) = await store.claim(1, lease=60)
        await store.done(lease)
        found = await store.find("r")
        await store.aclose()
        async with SQLiteStore(path) as again:
            assert await again.find("r") == found
            assert await again.put(new(1)) == "duplicate"
            assert [lease.body for lease in await again.claim(9, lease=60)] == [new(2).body]

    async def test_a_done_delivery_keeps_no_body(self, store: SQLiteStore, path: Path) -> None:
        """Only the key of a finished delivery stays, until it is purged."""
        await store.put(new(1))
        await store.done((await store.claim(1, lease=60))[0])
        assert rows(path, "SELECT count(*) FROM bodies") == [(0,)]
        assert len(rows(path)) == 1

    async def test_what_is_dropped_leaves_nothing(self, store: SQLiteStore, path: Path) -> None:
        """The 201 ends what was quarantined for other secrets; a closed registration keeps no secrets and bodies."""
        await store.open("q", resource="1", ttl=60)
        for secret in (SECRET, Secret("b" * 32)):
            await store.offer("q", secret)
        await store.put(new(1, registration="q", candidate=candidate_id(Secret("b" * 32))))
        await store.confirm("q", webhook_gid="2", secret=SECRET)
        assert rows(path) == []
        await store.close("q")
        await store.open("p", resource="1", ttl=60)
        await store.offer("p", SECRET)
        await store.put(new(1, registration="p", candidate=candidate_id(SECRET)))
        await store.close("p")
        await store.close("r")
        for table in ("candidates", "deliveries", "bodies"):
            assert rows(path, f"SELECT count(*) FROM {table}") == [(0,)]
        assert rows(path, "SELECT DISTINCT secret, key_id, candidate FROM registrations") == [(None, None, None)]


async def test_two_who_sweep(path: Path) -> None:
    """A registration that two stores end at the same time is reported by one of them, and only to one."""
    clock = SettableClock()
    async with SQLiteStore(path, clock=clock) as one, SQLiteStore(path, clock=clock) as two:
        for number in range(20):
            await one.open(f"r{number}", resource="1", ttl=60)
            clock.advance(61)
            swept = await asyncio.gather(one.sweep(), two.sweep())
            assert [registration.id for both in swept for registration in both] == [f"r{number}"]


class TestGroupCommit:
    """Those who wait at the same time share a transaction."""

    @pytest.fixture(name="commits")
    async def _commits(self, store: SQLiteStore) -> list[str]:
        """The COMMIT statements of the writer since now."""
        commits: list[str] = []
        await in_writer(
            store, lambda db: db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        )
        await in_writer(store, lambda db: None)
        commits.clear()
        return commits

    async def test_a_burst_is_one_transaction(self, store: SQLiteStore, commits: list[str]) -> None:
        """Five hundred puts that are ready at once need one commit."""
        answers = await asyncio.gather(*(store.put(new(number)) for number in range(500)))
        assert set(answers) == {"stored"}
        assert len(commits) == 1

    async def test_followers_gather(self, store: SQLiteStore, commits: list[str]) -> None:
        """Fifty callers who put one after the other need one commit for each round, not for each put."""

        async def caller(first: int) -> None:
            for number in range(first, first + 10):
                await store.put(new(number))

        await asyncio.gather(*(caller(100 * number) for number in range(50)))
        assert len(commits) <= 12

    async def test_latecomers_do_not_split_the_group(self, store: SQLiteStore, commits: list[str]) -> None:
        """Callers who came while others were being written share all later transactions with them."""

        async def caller(first: int) -> None:
            for number in range(first, first + 10):
                await store.put(new(number))

        under_way, go_on = threading.Event(), threading.Event()

        def hold_up(connection: sqlite3.Connection) -> None:
            under_way.set()
            go_on.wait(5)

        first = asyncio.ensure_future(caller(0))
        await asyncio.sleep(0)
        store._write(hold_up)
        await asyncio.to_thread(under_way.wait, 5)
        second = asyncio.ensure_future(caller(100))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, second)
        assert len(commits) == 11

    async def test_acknowledgements_ride_along(self, store: SQLiteStore, commits: list[str]) -> None:
        """Workers and receivers share transactions."""
        for number in range(10):
            await store.put(new(number))
        leases = await store.claim(10, lease=60)
        commits.clear()
        await asyncio.gather(
            *(store.done(lease) for lease in leases), *(store.put(new(number)) for number in range(10, 20))
        )
        assert len(commits) == 1

    async def test_one_bad_value_fails_alone(self, store: SQLiteStore, path: Path) -> None:
        """An operation that the database refuses does not fail its neighbours, and its error shows no value."""
        bad = NewDelivery(registration="r", signature="hunter2\udcff", body=b"")
        answers = await asyncio.gather(
            store.put(new(1)), store.put(bad), store.put(new(2)), store.put(new(1)), return_exceptions=True
        )
        error = answers[1]
        assert [answers[0], answers[2]] == ["stored", "stored"]
        assert answers[3] == "duplicate"
        assert isinstance(error, ConfigurationError)
        assert "hunter2" not in str(error)
        assert error.__context__ is error.__cause__ is None
        assert len(rows(path)) == 2

    async def test_a_refused_call_fails_alone(self, store: SQLiteStore, commits: list[str]) -> None:
        """Errors of this package are answers: the transaction goes on."""
        answers = await asyncio.gather(
            store.put(new(1)), store.open("r", resource="1", ttl=1), store.put(new(2)), return_exceptions=True
        )
        assert isinstance(answers[1], ConfigurationError)
        assert [answers[0], answers[2]] == ["stored", "stored"]
        assert len(commits) == 1

    async def test_a_failing_clock_fails_its_caller(self, path: Path) -> None:
        """An error out of the caller's own clock comes through, and nothing is written."""
        clock = SettableClock()
        async with SQLiteStore(path, clock=clock) as store:
            await confirmed(store)
            clock.now = "never"  # type: ignore[assignment]
            with pytest.raises(TypeError):
                await store.claim(1, lease=1)
            clock.now = 0
            assert await store.put(new(1)) == "stored"


class TestCancellation:
    """Who goes away cancels nothing but the waiting."""

    async def test_the_delivery_is_stored_anyway(self, store: SQLiteStore) -> None:
        """A cancelled `put` neither splits nor stops the transaction, nor does it fail its neighbours."""
        gone, other = (asyncio.ensure_future(store.put(new(number))) for number in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await other == "stored"
        assert gone.cancelled()
        assert await store.put(new(1)) == "duplicate"

    @pytest.mark.parametrize("stage", ["before it began", "gathered", "in its transaction"])
    async def test_unclaimed_leases_come_back(self, store: SQLiteStore, stage: str) -> None:
        """When a claim is cancelled at whatever moment, nobody's leases keep others waiting."""
        await store.put(new(1))
        under_way, go_on = threading.Event(), threading.Event()

        def hold_up(connection: sqlite3.Connection) -> None:
            under_way.set()
            go_on.wait(5)

        task = asyncio.ensure_future(store.claim(1, lease=3600))
        if stage != "before it began":
            await asyncio.sleep(0)
        held_up = store._write(hold_up)  # in the transaction of the claim
        if stage == "in its transaction":
            await asyncio.to_thread(under_way.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await held_up
        await store.heartbeat("r")  # what is given back takes its turn
        (lease,) = await store.claim(1, lease=3600)
        assert lease.attempt == 1

    async def test_leases_that_cannot_be_given_back(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody waits for what a cancelled claim gives back; when that fails the lease just runs out, silently."""
        times = [1.0]
        async with SQLiteStore(path, secret_box=PLAIN_TEXT, clock=lambda: times[0]) as store:
            await confirmed(store)
            await store.put(new(1))
            task = asyncio.ensure_future(store.claim(1, lease=3600))
            await asyncio.sleep(0)
            task.cancel()
            stopped = store._write(lambda db: times.clear())  # after the claim, in its transaction
            with pytest.raises(asyncio.CancelledError):
                await task
            await stopped
        del task, stopped
        gc.collect()
        assert rows(path, "SELECT state FROM deliveries") == [("leased",)]
        assert caplog.records == []

    async def test_leases_of_a_late_cancellation_come_back(self, store: SQLiteStore) -> None:
        """Also when the answer is there already, and only the caller has not seen it yet."""
        await store.put(new(1))
        task = asyncio.ensure_future(store.claim(1, lease=3600))
        await asyncio.sleep(0)
        (entry,) = store._writer._gathered
        entry.answer.add_done_callback(lambda _: task.cancel())
        with pytest.raises(asyncio.CancelledError):
            await task
        (lease,) = await store.claim(1, lease=3600)
        assert lease.attempt == 1

    async def test_closing_waits_for_what_comes_back(self, store: SQLiteStore, path: Path) -> None:
        """`aclose` right after a cancelled claim still gives its leases back."""
        await store.put(new(1))
        task = asyncio.ensure_future(store.claim(1, lease=3600))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        await store.aclose()
        assert rows(path, "SELECT state, attempts FROM deliveries") == [("waiting", 0)]

    async def test_a_failed_claim_gives_nothing_back(self, path: Path) -> None:
        """A cancelled claim that failed as well is simply over."""
        async with SQLiteStore(path, clock=lambda: 1 / 0) as store:
            task = asyncio.ensure_future(store.claim(1, lease=1))
            await asyncio.sleep(0)
            task.cancel()
            await store.dead_letters()
            assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


class TestLimits:
    """Nothing grows without bounds."""

    async def test_too_many_additions(self, path: Path) -> None:
        """What finds no place in the queue is refused at once; what has one is stored, and others are let in."""
        async with SQLiteStore(path, max_operations=3) as store:
            await confirmed(store)
            answers = await asyncio.gather(*(store.put(new(number)) for number in range(10)), return_exceptions=True)
            assert answers[:3] == ["stored"] * 3
            assert {type(answer) for answer in answers[3:]} == {StoreFullError}
            assert await store.put(new(9)) == "stored"
            await asyncio.gather(*(store.heartbeat("r") for _ in range(10)))

    async def test_too_many_bytes(self, path: Path) -> None:
        """The bodies in the queue are bounded together."""
        async with SQLiteStore(path, max_bytes=1000) as store:
            await confirmed(store)
            sizes = (600, 400, 4)
            answers = await asyncio.gather(
                *(store.put(new(number, size=size)) for number, size in enumerate(sizes)), return_exceptions=True
            )
            assert answers[:2] == ["stored"] * 2
            assert isinstance(answers[2], StoreFullError)
            assert await store.put(new(2, size=1000)) == "stored"
            with pytest.raises(StoreFullError, match="larger than max_bytes"):
                await store.put(new(3, size=1004))

    async def test_too_many_unfinished(self, path: Path) -> None:
        """With *max_deliveries* an inbox takes only so many, also within one transaction."""
        async with SQLiteStore(path, max_deliveries=3) as store:
            await confirmed(store)
            answers = await asyncio.gather(*(store.put(new(number)) for number in range(5)), return_exceptions=True)
            assert answers[:3] == ["stored"] * 3
            assert {type(answer) for answer in answers[3:]} == {StoreFullError}
            assert await store.put(new(1)) == "duplicate"
            one, two = await store.claim(2, lease=60)
            await store.done(one)
            await store.fail(two, error="", retry_in=None)
            assert await store.put(new(3)) == "stored"
            assert await store.put(new(4)) == "stored"
            with pytest.raises(StoreFullError, match="unfinished"):
                await store.put(new(5))

    @pytest.mark.parametrize("by", ["count", "bytes"])
    async def test_the_quarantine_is_bounded(self, path: Path, by: str) -> None:
        """A pending registration holds only so much, and other registrations do not suffer from it."""
        limit = 2 if by == "count" else 1000
        size = 200 if by == "bytes" else 100
        async with SQLiteStore(path, max_quarantined=limit, max_quarantined_bytes=2 * size) as store:
            await confirmed(store)
            await store.open("p", resource="1", ttl=60)
            await store.offer("p", SECRET)
            name = candidate_id(SECRET)
            for number in (1, 2):
                assert await store.put(new(number, registration="p", candidate=name, size=size)) == "stored"
            with pytest.raises(StoreFullError, match="quarantine"):
                await store.put(new(3, registration="p", candidate=name, size=4))
            assert await store.put(new(2, registration="p", candidate=name)) == "duplicate"
            assert await store.put(new(3)) == "stored"

    async def test_a_purge_goes_in_steps(self, store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Much to forget is forgotten in several transactions, so that others get their turn."""
        monkeypatch.setattr("asana_webhooks.store.sqlite.store.PURGED_AT_ONCE", 3)
        await asyncio.gather(*(store.put(new(number)) for number in range(10)))
        for lease in await store.claim(10, lease=60):
            await store.done(lease)
        assert await store.purge(older_than=0) == 10
        assert rows(path) == []

    async def test_work_does_not_grow_with_the_store(self, store: SQLiteStore) -> None:
        """Every statement finds its rows by an index, however many there are."""
        statements = {
            f"{module.__name__.rpartition('.')[2]}.{name}": text
            for module in (inbox, registrations)
            for name, text in vars(module).items()
            if name.isupper() and name not in {"HELD", "COLUMNS"} and isinstance(text, str)
        }
        assert len(statements) >= 38
        for name, text in statements.items():
            steps = await in_writer(store, partial(explain, text))
            scans = [step for step in steps if step.startswith("SCAN") and "queues" not in step and "heads" not in step]
            assert (name, scans) == (name, [])
            # Only what was chosen already is sorted: the heads of an ordered claim, the few of a sweep or a handshake.
            assert ("B-TREE" in "".join(steps)) <= (name in SORTING), name

    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            (inbox.KNOWN, "(registration=? AND signature=?)"),
            (inbox.WAKE, "deliveries_due (due_at<?)"),
            (inbox.WAKE, "deliveries_since (since>?)"),
            (inbox.OLDEST, "deliveries_by_state (state=?)"),
            (inbox.OLDEST_IN_ORDER, "deliveries_by_registration (state=? AND registration>?)"),
            (inbox.OLDEST_IN_ORDER, "deliveries_by_registration (state=? AND registration=? AND id<?)"),
            (inbox.QUARANTINED, "deliveries_by_registration (state=? AND registration=?)"),
            (inbox.FIRST, "deliveries_by_state (state=?)"),
            (inbox.DEAD_LETTERS, "deliveries_by_state (state=? AND id>?)"),
            (inbox.PURGE, "deliveries_finished (state=? AND received_at<?)"),
            (registrations.OVERDUE, "registrations_by_state (state=? AND deadline<?)"),
            (registrations.RELEASE, "deliveries_by_registration (state=? AND registration=?)"),
            (registrations.DROP_QUARANTINED, "deliveries_by_registration (state=? AND registration=?)"),
        ],
    )
    async def test_the_right_index_is_used(self, store: SQLiteStore, statement: str, expected: str) -> None:
        """The statements that could look through many rows use the index that was made for them."""
        assert expected in "; ".join(await in_writer(store, partial(explain, statement)))


SORTING = {"inbox.OLDEST_IN_ORDER", "registrations.OVERDUE", "registrations.CANDIDATES"}


def explain(statement: str, connection: sqlite3.Connection) -> list[str]:
    """Return the steps of SQLite's plan for a statement."""
    plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [0] * statement.count("?"))
    return [step for *_, step in plan]


class TestOpening:
    """The file, its permissions and its threads."""

    @pytest.mark.parametrize("mask", [0, 0o077, 0o777])
    async def test_new_files_are_private(self, path: Path, mask: int) -> None:
        """Nobody but the owner can read the database and what lies beside it, whatever the umask."""
        before = os.umask(mask)
        try:
            async with SQLiteStore(path) as store:
                await confirmed(store)
                found = modes(path.parent)
        finally:
            os.umask(before)
        assert found == PRIVATE

    async def test_files_made_anew_are_private(self, path: Path) -> None:
        """The log and its index are as private when a later store, or SQLite after a crash, makes them again."""
        before = os.umask(0)
        try:
            async with SQLiteStore(path) as store:
                await confirmed(store)
            assert modes(path.parent) == {"store.db": 0o600}
            async with SQLiteStore(path) as store:
                await store.heartbeat("r")
                assert modes(path.parent) == PRIVATE
                for name in PRIVATE.keys() - {"store.db"}:
                    remove(path.parent / name)
                store._writer._executor.submit(store._writer._disconnect)
                store._reader._executor.submit(store._reader._disconnect)
                await store.heartbeat("r")
                assert modes(path.parent) == PRIVATE
        finally:
            os.umask(before)

    async def test_a_link_to_the_file(self, path: Path) -> None:
        """What lies beside the file a symbolic link leads to is private, too."""
        link = path.with_name("link.db")
        async with SQLiteStore(path):
            pass
        link_to(link, path)
        async with SQLiteStore(link) as store:
            await store.heartbeat("r")
            for name in PRIVATE:
                allow(path.parent / name, 0o666)
            async with SQLiteStore(link):
                assert modes(path.parent) == PRIVATE | {"link.db": 0o600}

    async def test_old_files_are_tightened(self, store: SQLiteStore, path: Path) -> None:
        """A database that others could read is closed to them."""
        for name in modes(path.parent):
            allow(path.parent / name, 0o666)
        async with SQLiteStore(path):
            assert modes(path.parent) == PRIVATE

    async def test_nothing_is_opened_before_its_first_use(self, path: Path) -> None:
        """Making a store touches neither disk nor threads, and neither does closing an unused one make a file."""
        store = SQLiteStore(path)
        assert repr(store) == "<SQLiteStore new>"
        assert (modes(path.parent), store_threads()) == ({}, [])
        await store.aclose()
        assert (modes(path.parent), store_threads()) == ({}, [])

    async def test_nothing_is_left_open(self, path: Path, recwarn: pytest.WarningsRecorder) -> None:
        """After `aclose` no thread runs, no descriptor is open, and the log is folded into the file."""
        async with SQLiteStore(path) as store:
            await confirmed(store)
            assert len(store_threads()) == 2
            assert repr(store) == "<SQLiteStore open>"
        assert repr(store) == "<SQLiteStore closed>"
        assert store_threads() == []
        assert list(modes(path.parent)) == ["store.db"]
        del store
        gc.collect()
        assert [str(one.message) for one in recwarn] == []

    async def test_closing_waits_for_what_is_under_way(self, path: Path) -> None:
        """What was asked for before `aclose` is written and answered."""
        store = await confirmed(SQLiteStore(path))
        puts = [asyncio.ensure_future(store.put(new(number))) for number in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(store.aclose(), store.aclose())
        assert {await put for put in puts} == {"stored"}
        assert len(rows(path)) == 20

    def test_it_belongs_to_one_loop(self, path: Path) -> None:
        """Use in a second event loop is a clear error, not a hang."""
        store = SQLiteStore(path)
        with asyncio.Runner() as first, asyncio.Runner() as second:
            first.run(store.__aenter__())
            with pytest.raises(ConfigurationError, match="another event loop"):
                second.run(store.find("r"))
            with pytest.raises(ConfigurationError, match="another event loop"):
                second.run(store.aclose())
            first.run(store.aclose())
            second.run(store.aclose())

    def test_a_loop_may_end_first(self, path: Path) -> None:
        """A loop that is closed under a running transaction leaves a thread that does no harm."""
        store = SQLiteStore(path)
        held = threading.Event()

        def wait(connection: sqlite3.Connection) -> None:
            held.wait(5)

        async def leave() -> None:
            store._write(wait).cancel()
            await asyncio.sleep(0)

        asyncio.run(leave())
        held.set()
        assert store._writer._executor.submit(store._writer._disconnect).result(5) is None
        store._writer._executor.shutdown()

    @pytest.mark.parametrize("path", ["", ":memory:"])
    def test_it_needs_a_file(self, path: str) -> None:
        """SQLite's databases without a file are refused; there is another store for that."""
        with pytest.raises(ConfigurationError, match="MemoryStore"):
            SQLiteStore(path)
