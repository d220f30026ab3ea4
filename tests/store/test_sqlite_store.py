"""What a `SQLiteStore` does beyond the protocol."""

import asyncio
import gc
import os
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from asana_webhooks.errors import ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import DeliveryState, NewDelivery, PutResult, candidate_id
from asana_webhooks.store.sqlite.file import DatabaseFile, sqlite3
from tests.helpers.stores import Clock
from tests.store.sqlite_help import SECRET, confirmed, hanging_reader, in_reader, in_writer, modes, new, opened, rows

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


PRIVATE = {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def link_to(path: Path, target: Path) -> None:
    path.symlink_to(target)


async def put(store: SQLiteStore, number: int) -> PutResult:
    """Put a delivery in a turn of the loop's own, as those do who call it from tasks."""
    return await store.put(new(number))


def ask(pragma: str, connection: sqlite3.Connection) -> Any:
    """Return the setting of a connection."""
    return connection.execute(f"PRAGMA {pragma}").fetchone()


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asana-webhooks")]


class TestDurability:
    """What is answered is on the disk."""

    async def test_the_connection_that_writes_is_set_up(self, store: SQLiteStore) -> None:
        """It has the settings that durability rests on."""
        expected: dict[str, int | str] = {
            "synchronous": 2,  # FULL
            "journal_mode": "wal",
            "busy_timeout": 5000,
            "journal_size_limit": 64 * 1024**2,
            "wal_autocheckpoint": 1000,
            "secure_delete": 1,
        }
        for pragma, value in expected.items():
            assert (pragma, await in_writer(store, partial(ask, pragma))) == (pragma, (value,))

    async def test_the_reader_waits_as_long(self, store: SQLiteStore) -> None:
        """The connection that reads waits for locks as the other one does, and reads the same log."""
        assert await in_reader(store, partial(ask, "busy_timeout")) == (5000,)
        assert await in_reader(store, partial(ask, "journal_mode")) == ("wal",)

    async def test_the_reader_cannot_write(self, store: SQLiteStore) -> None:
        """All that is written goes through one connection."""
        with pytest.raises(StoreUnavailableError, match="SQLITE_READONLY"):
            await in_reader(store, lambda db: db.execute("DELETE FROM inbox"))

    async def test_sqlite_may_have_been_built_otherwise(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Durability does not rest on the defaults of the SQLite library at hand."""

        class Careless(sqlite3.Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.execute("PRAGMA synchronous = OFF")

        monkeypatch.setattr(sqlite3, "connect", Careless)
        async with SQLiteStore(path) as store:
            assert await in_writer(store, partial(ask, "synchronous")) == (2,)

    async def test_a_result_means_committed(self, store: SQLiteStore, path: Path) -> None:
        """Whoever got an answer can see the effect through another connection."""
        await opened(store, "p")
        assert await store.add_candidate("p", SECRET)
        assert rows(path, "SELECT secret FROM secrets WHERE registration = 2") == [(SECRET.reveal(),)]
        assert await store.put(new(1)) == "stored"
        assert rows(path) == [(new(1).signature,)]

    async def test_it_survives_reopening(self, store: SQLiteStore, path: Path) -> None:
        """Another store on the same file goes on where the first one ended."""
        await store.put(new(1))
        await store.put(new(2))
        (lease,) = await store.claim(1, lease=60)
        await store.ack(lease)
        found = await store.find_registration("r")
        await store.aclose()
        async with SQLiteStore(path) as again:
            assert await again.find_registration("r") == found
            assert await again.put(new(1)) == "duplicate"
            assert [lease.body for lease in await again.claim(9, lease=60)] == [new(2).body]

    async def test_a_done_delivery_keeps_no_body(self, store: SQLiteStore, path: Path) -> None:
        """Only the key of a finished delivery stays, until it is purged: no body, and no error, which may quote it."""
        await store.put(new(1))
        await store.fail((await store.claim(1, lease=60))[0], error="of a customer", retry_in=0)
        await store.ack((await store.claim(1, lease=60))[0])
        assert len(rows(path)) == 1
        await store.aclose()
        (content,) = (file.read_bytes() for file in path.parent.iterdir())
        assert bytes.fromhex(new(1).signature) in content
        assert (new(1).body in content, b"of a customer" in content) == (False, False)

    async def test_what_is_dropped_leaves_nothing(self, store: SQLiteStore, path: Path) -> None:
        """The 201 ends what was quarantined for other secrets; a closed registration keeps no secrets and bodies."""
        await opened(store, "q")
        for secret in (SECRET, Secret("b" * 32)):
            await store.add_candidate("q", secret)
        await store.put(new(1, registration="q", candidate=candidate_id(Secret("b" * 32))))
        await store.confirm_registration("q", webhook_gid="2", secret=SECRET)
        assert rows(path, "SELECT delivery FROM bodies") == []
        await store.close_registration("q")
        await opened(store, "p")
        await store.add_candidate("p", SECRET)
        await store.put(new(1, registration="p", candidate=candidate_id(SECRET)))
        await store.close_registration("p")
        await store.close_registration("r")
        for table in ("secrets", "inbox", "bodies"):
            assert rows(path, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_two_who_sweep(path: Path) -> None:
    """A registration that two stores end at the same time is reported by one of them, and only to one."""
    clock = Clock()
    async with SQLiteStore(path, clock=clock) as one, SQLiteStore(path, clock=clock) as two:
        for number in range(20):
            await opened(one, f"r{number}")
            clock.advance(61)
            swept = await asyncio.gather(one.expire_registrations(), two.expire_registrations())
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

    async def test_a_call_is_one_transaction(self, store: SQLiteStore, commits: list[str]) -> None:
        """What a call changes, it changes in one transaction: a process that is killed leaves nothing half done."""
        where: dict[str, Any] = {"resource": "2", "public_url": "https://example.com/asana"}
        secret: dict[str, Any] = {"webhook_gid": "3", "secret": SECRET}
        await put(store, 1)
        (lease,) = await store.claim(1, lease=60)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.open_registration("a", **where, label="a", ttl=60),
            lambda: store.add_candidate("a", SECRET),
            lambda: store.put(new(1, registration="a", candidate=candidate_id(SECRET))),
            lambda: store.confirm_registration("a", **secret, heartbeat_at=1),
            lambda: store.adopt_registration("b", **where, **secret),
            lambda: store.retire_registration("b", after=1),
            lambda: store.claim(1, lease=60, ordered=True, halt=True),
            lambda: store.extend(lease, seconds=60),
            lambda: store.fail(lease, error="", retry_in=None, done=[0]),
            lambda: store.requeue(lease.id),
            lambda: store.discard(lease.id),
            lambda: store.close_registration("a"),
        ]
        for call in calls:
            commits.clear()
            assert await call()
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
        in_writer(store, hold_up)
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
        await asyncio.gather(*(store.ack(lease) for lease in leases), *(put(store, number) for number in range(10, 20)))
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

    async def test_order_is_kept(self, store: SQLiteStore, commits: list[str]) -> None:
        """What shares a transaction happens in the order it was asked for, whatever kinds of calls come mixed."""
        await store.put(new(1))
        (one,) = await store.claim(1, lease=60)
        commits.clear()

        async def put(number: int) -> object:
            return await store.put(new(number))  # which asks at once, while the others ask when their task runs

        calls: list[Awaitable[object]] = [
            put(2),
            store.ack(one),
            put(2),
            store.ack(one),
            store.close_registration("r"),
            put(3),
        ]
        assert await asyncio.gather(*calls) == ["stored", True, "duplicate", False, True, "refused"]
        assert len(commits) == 1

    async def test_a_refused_call_fails_alone(self, store: SQLiteStore, commits: list[str]) -> None:
        """Errors of this package are answers: the transaction goes on."""
        answers = await asyncio.gather(
            put(store, 1),
            opened(store, "r", ttl=1),
            put(store, 2),
            return_exceptions=True,
        )
        assert isinstance(answers[1], ConfigurationError)
        assert [answers[0], answers[2]] == ["stored", "stored"]
        assert len(commits) == 1

    async def test_a_failing_clock_fails_its_caller(self, path: Path) -> None:
        """An error out of the caller's own clock comes through, and nothing is written."""
        clock = Clock()
        async with SQLiteStore(path, clock=clock) as store:
            await confirmed(store)
            clock.now = "never"  # type: ignore[assignment]
            with pytest.raises(TypeError):
                await store.claim(1, lease=1)
            clock.now = 0
            assert await store.put(new(1)) == "stored"

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
    async def test_a_clock_that_would_end_the_thread(self, path: Path, error: type[BaseException]) -> None:
        """An exit or a cancellation out of the caller's clock is an error of this call, and the store goes on."""
        times = Clock()
        failing = [False]

        def clock() -> float:
            if failing[0]:
                raise error(SECRET.reveal())
            return times()

        async with SQLiteStore(path, clock=clock) as store, asyncio.timeout(60):
            await confirmed(store)
            await store.put(new(1))
            (lease,) = await store.claim(1, lease=1)
            failing[0] = True
            claimed, beat, released = await asyncio.gather(
                store.claim(1, lease=1), store.record_heartbeat("r"), store.release(lease), return_exceptions=True
            )
            for refused in (claimed, beat):
                assert isinstance(refused, StoreUnavailableError)
                assert error.__name__ in str(refused)
                assert SECRET.reveal() not in "".join(traceback.format_exception(refused))
            assert released is True
            with pytest.raises(StoreUnavailableError, match=error.__name__):
                await store.find_registration("r")
            failing[0] = False
            assert await store.put(new(2)) == "stored"
            assert await store.find_registration("r") is not None


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
        held_up = in_writer(store, hold_up)  # in the transaction of the claim
        if stage == "in its transaction":
            await asyncio.to_thread(under_way.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await held_up
        await store.record_heartbeat("r")  # what is given back takes its turn
        (lease,) = await store.claim(1, lease=3600)
        assert lease.attempt == 1

    async def test_leases_that_cannot_be_given_back(
        self, store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody waits for what a cancelled claim gives back; when that fails the lease just runs out, silently."""
        await store.put(new(1))
        refuse = "CREATE TEMP TRIGGER refuse BEFORE UPDATE ON inbox BEGIN SELECT RAISE(ABORT, 'refused'); END"
        task = asyncio.ensure_future(store.claim(1, lease=3600))
        await asyncio.sleep(0)
        task.cancel()
        refusing = in_writer(store, lambda db: db.execute(refuse))  # after the claim, in its transaction
        with pytest.raises(asyncio.CancelledError):
            await task
        await refusing
        await store.aclose()
        del task, refusing
        gc.collect()
        async with SQLiteStore(path) as again:
            (held,) = await again.deliveries(state=DeliveryState.LEASED)
        assert held.attempts == 1
        assert caplog.records == []

    async def test_leases_of_a_late_cancellation_come_back(self, store: SQLiteStore) -> None:
        """Also when the answer is there already, and only the caller has not seen it yet."""
        await store.put(new(1))
        task = asyncio.ensure_future(store.claim(1, lease=3600))
        await asyncio.sleep(0)
        (group,) = store._writer._gathered
        group.answers[0].add_done_callback(lambda _: task.cancel())
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
        async with SQLiteStore(path) as again:
            (back,) = await again.deliveries(state=DeliveryState.WAITING)
        assert back.attempts == 0

    async def test_a_failed_claim_gives_nothing_back(self, path: Path) -> None:
        """A cancelled claim that failed as well is simply over."""
        async with SQLiteStore(path, clock=lambda: 1 / 0) as store:
            task = asyncio.ensure_future(store.claim(1, lease=1))
            await asyncio.sleep(0)
            task.cancel()
            await in_writer(store, lambda db: None)
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
            beats = await asyncio.gather(*(store.record_heartbeat("r") for _ in range(10)), return_exceptions=True)
            assert [type(beat) for beat in beats] == [type(None)] * 3 + [StoreFullError] * 7
            assert len(await asyncio.gather(*(store.claim(1, lease=60) for _ in range(10)))) == 10

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

    async def test_duplicates_write_nothing(self, path: Path) -> None:
        """Asana's, or anybody's, repetitions make no log longer and use up no numbers."""
        async with SQLiteStore(path) as store:
            await confirmed(store)
            await store.put(new(1))
            before = path.with_name(f"{path.name}-wal").read_bytes()
            assert [await store.put(new(1)) for _ in range(5)] == ["duplicate"] * 5
            assert path.with_name(f"{path.name}-wal").read_bytes() == before
            await store.put(new(2))
            assert [lease.id for lease in await store.claim(9, lease=60)] == [1, 2]

    async def test_the_oldest_may_be_leased_or_delayed(self, path: Path) -> None:
        """The age of the inbox is that of the oldest delivery that is not finished, whoever holds it."""
        clock = Clock()
        async with SQLiteStore(path, clock=clock) as store:
            await confirmed(store)
            for number in (1, 2):
                await store.put(new(number))
                clock.advance(10)
            leased, delayed = await store.claim(2, lease=1000)
            await store.put(new(3))
            assert (await store.health()).oldest_age == 20
            await store.fail(delayed, error="", retry_in=1000)
            await store.ack(leased)
            assert (await store.health()).oldest_age == 10

    async def test_too_many_questions(self, path: Path) -> None:
        """While the disk hangs, questions whose askers have gone do not pile up without bounds."""
        async with SQLiteStore(path, max_operations=3) as store:
            with hanging_reader(store):
                for asked in [asyncio.ensure_future(store.find_registration("r")) for _ in range(3)]:
                    await asyncio.sleep(0)
                    asked.cancel()
                with pytest.raises(StoreFullError, match="too many operations or bytes are waiting"):
                    await store.find_registration("r")
            while True:
                with suppress(StoreFullError):
                    assert await store.find_registration("r") is None
                    break
                await asyncio.sleep(0)

    def test_limits_are_checked(self, path: Path) -> None:
        """A limit that could never work is refused at once, by name."""
        wrong: list[dict[str, Any]] = [
            {"max_operations": 0},
            {"max_operations": "x"},
            {"max_bytes": -1},
            {"max_bytes": None},
            {"max_quarantined": "x"},
            {"max_quarantined_bytes": -1},
            {"busy_timeout": -1},
        ]
        for limit in wrong:
            with pytest.raises(ConfigurationError, match=next(iter(limit))):
                SQLiteStore(path, **limit)

    @pytest.mark.parametrize("by", ["count", "bytes"])
    async def test_the_quarantine_is_bounded(self, path: Path, by: str) -> None:
        """A pending registration holds only so much, and other registrations do not suffer from it."""
        limit, room = (2, 10_000) if by == "count" else (1000, 400)
        size = 200 if by == "bytes" else 100
        async with SQLiteStore(path, max_quarantined=limit, max_quarantined_bytes=room) as store:
            await confirmed(store)
            await opened(store, "p")
            await store.add_candidate("p", SECRET)
            name = candidate_id(SECRET)
            for number in (1, 2):
                assert await store.put(new(number, registration="p", candidate=name, size=size)) == "stored"
            with pytest.raises(StoreFullError, match="quarantine"):
                await store.put(new(3, registration="p", candidate=name, size=4))
            assert await store.put(new(2, registration="p", candidate=name)) == "duplicate"
            assert await store.put(new(3)) == "stored"


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
                await store.record_heartbeat("r")
                assert modes(path.parent) == PRIVATE
                for use in (in_reader, in_writer):
                    with pytest.raises(ConfigurationError):
                        await use(store, lambda db: db.close())  # so that the next call connects anew
                assert modes(path.parent) == {"store.db": 0o600}
                await store.record_heartbeat("r")
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
            await store.record_heartbeat("r")
            assert modes(path.parent) == PRIVATE | {"link.db": 0o600}

    async def test_nothing_is_opened_before_its_first_use(self, path: Path) -> None:
        """Making a store touches neither disk nor threads, and neither does closing an unused one make a file."""
        store = SQLiteStore(path)
        assert repr(store) == "<SQLiteStore new>"
        assert (modes(path.parent), store_threads()) == ({}, [])
        await store.aclose()
        assert (modes(path.parent), store_threads()) == ({}, [])

    async def test_nothing_is_left_behind_by_who_only_reads(self, path: Path) -> None:
        """A store that was never written to leaves no log either, whether it made the file or not."""
        for _ in range(2):
            store = SQLiteStore(path)
            assert await store.find_registration("r") is None
            assert modes(path.parent) == PRIVATE
            await store.aclose()
            assert list(modes(path.parent)) == ["store.db"]

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
                second.run(store.find_registration("r"))
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
            in_writer(store, wait).cancel()
            await asyncio.sleep(0)

        asyncio.run(leave())
        held.set()
        store._writer._executor.submit(store._writer._disconnect).result(5)
        store._writer._executor.shutdown()

    def test_it_needs_a_file(self) -> None:
        """SQLite's databases without a file are refused; there is another store for that."""
        for path in ("", ":memory:"):
            with pytest.raises(ConfigurationError, match="MemoryStore"):
                SQLiteStore(path)

    async def test_opening_is_all_or_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If `async with` fails, no thread, connection or lock stays behind."""

        def broken(*_: object) -> None:
            raise StoreUnavailableError(problem="the disk is gone")

        monkeypatch.setattr(DatabaseFile, "connect_to_read", broken)
        with pytest.raises(StoreUnavailableError):
            await SQLiteStore(path).__aenter__()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("asana-webhooks")] == []
        assert [file.name for file in path.parent.iterdir()] == [path.name]


class TestIntegrity:
    """The file can be looked through on request."""

    async def test_a_whole_file(self, store: SQLiteStore) -> None:
        """There is nothing to say about it."""
        await store.put(new(1))
        assert list(await store.integrity_check()) == []

    async def test_damage(self, store: SQLiteStore, path: Path) -> None:
        """What SQLite finds is told, and so are rows that belong to nothing."""
        await store.put(new(1))
        behind = sqlite3.connect(path)
        behind.execute("DELETE FROM inbox")
        behind.execute("PRAGMA writable_schema = ON")
        behind.execute("DELETE FROM sqlite_master WHERE name = 'inbox_waiting'")
        behind.execute("PRAGMA schema_version = 1000")  # so that the store's connections read it again
        behind.commit()
        behind.close()
        found = await store.integrity_check()
        assert "a row of bodies refers to a missing row of inbox" in found
        assert any("never used" in problem for problem in found)
