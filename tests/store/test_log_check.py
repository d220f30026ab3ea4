"""A damaged write-ahead log is noticed, and what a power cut or a killed process leaves is not taken for damage."""

import asyncio
import errno
import io
import logging
import random
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.secret_box import PLAIN_TEXT
from asana_webhooks.store.sqlite import file, log_check
from asana_webhooks.store.sqlite.log_check import INDEX_BYTES, find_damage
from asana_webhooks.store.sqlite.users import Users
from tests.store.sqlite_help import in_writer, rows

STEP = 24 + 4096
COUNT = 12
"""How many deliveries the killed process had acknowledged."""

PUTTING = """
import asyncio, os, signal, sys
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.secret_box import PLAIN_TEXT
from tests.store.sqlite_help import confirmed, new

async def main(path, first, last):
    store = await confirmed(SQLiteStore(path, secret_box=PLAIN_TEXT), f"r{first}")
    for number in range(first, last):
        await store.put(new(number, registration=f"r{first}", size=9000))
        print(number, flush=True)  # the answer
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""
"""Puts deliveries one by one, and kills itself."""


def putting(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUTTING, str(path), str(first), str(last)], stdout=subprocess.PIPE, text=True
    )


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@frozen
class Left:
    """What a killed process has left."""

    path: Path

    @property
    def log(self) -> bytes:
        return beside(self.path, "-wal").read_bytes()

    @property
    def index(self) -> bytes:
        return beside(self.path, "-shm").read_bytes()[:INDEX_BYTES]

    def copy(self, directory: Path, log: bytes, *, index: bool = True) -> Path:
        """Copy all files, with another log."""
        path = directory / self.path.name
        shutil.copy(self.path, path)
        beside(path, "-wal").write_bytes(log)
        if index:
            shutil.copy(beside(self.path, "-shm"), beside(path, "-shm"))
        return path


def killed(directory: Path) -> Left:
    path = directory / "store.db"
    with putting(path, 0, COUNT) as process:
        answers, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(answers.split()) == COUNT
    return Left(path)


@pytest.fixture(name="left", scope="module")
def _left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What is left of a process that had put some deliveries, one transaction each."""
    return killed(tmp_path_factory.mktemp("left"))


def damage(log: bytes, index: bytes = b"") -> str | None:
    return find_damage(io.BytesIO(log), index)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def ends(log: bytes) -> list[int]:
    """Return the places of the frames that end a transaction."""
    return [at for at in range(32, len(log), STEP) if log[at + 4 : at + 8] != bytes(4)]


def committed_before(log: bytes, frame: int) -> int:
    """Return how many frames there are up to the last that ends a transaction before another."""
    return max((number + 1 for number in range(frame) if 32 + number * STEP in ends(log)), default=0)


# A writer of logs that are like SQLite's


Frame = tuple[bytes, bytes]
"""The number of a page with the size of the database, and the page."""


def frames_of(log: bytes) -> list[Frame]:
    return [(log[at : at + 8], log[at + 24 : at + STEP]) for at in range(32, len(log), STEP)]


def add_up(data: bytes, sums: tuple[int, int], order: str = "<") -> tuple[int, int]:
    """Do what SQLite's documentation says, word for word."""
    a, b = sums
    for x, y in struct.iter_unpack(f"{order}2I", data):
        a = (a + x + b) % 2**32
        b = (b + y + a) % 2**32
    return a, b


def written(log: bytes, *frames: Frame, order: str = "<") -> bytes:
    """Return a log with the header of another, and other frames."""
    kind = {"<": 0x377F0682, ">": 0x377F0683}[order]
    header = struct.pack(">I", kind) + log[4:24]
    sums = add_up(header, (0, 0), order)
    parts = [header, struct.pack(">2I", *sums)]
    for head, page in frames:
        sums = add_up(page, add_up(head, sums, order), order)
        parts += [head, log[16:24], struct.pack(">2I", *sums), page]
    return b"".join(parts)


class TestWhole:
    """Nothing is wrong with these."""

    def test_of_a_killed_process(self, left: Left) -> None:
        """What a process leaves that had ended its transactions is whole, with and without an index."""
        assert len(ends(left.log)) > COUNT
        assert damage(left.log, left.index) is None
        assert damage(left.log) is None

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_of_either_kind(self, left: Left, tmp_path: Path, order: str) -> None:
        """Sums may be of words in either order, and SQLite takes what is read here as whole."""
        log = written(left.log, *frames_of(left.log), order=order)
        assert damage(log, left.index) is None
        assert "frame 4 " in str(damage(flipped(log, 8 * (32 + 3 * STEP + 100)), left.index))
        assert len(rows(left.copy(tmp_path, log, index=False))) == COUNT

    @pytest.mark.parametrize("page_size", [512, 65536])
    def test_of_any_page_size(self, tmp_path: Path, page_size: int) -> None:
        """The smallest and the largest pages are summed up as SQLite does."""
        with closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as database:
            database.execute(f"PRAGMA page_size = {page_size}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE numbers (number)")
            for number in range(200):
                database.execute("INSERT INTO numbers VALUES (?)", (number,))
            log = (tmp_path / "other.db-wal").read_bytes()
        assert len(log) > 200 * page_size
        assert damage(log) is None
        assert damage(flipped(log, 8 * 500)) is not None

    @given(data=st.data())
    @settings(max_examples=30)
    def test_cut_off_as_by_a_power_cut(self, left: Left, data: st.DataObject) -> None:
        """Without an index a log may end anywhere."""
        assert damage(left.log[: data.draw(st.integers(0, len(left.log)))]) is None

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=30)
    def test_torn_in_the_last_transaction(self, left: Left, seed: int) -> None:
        """Of a transaction that was under way each sector may be there or not, with an index of any age before it."""
        log, chance = bytearray(left.log), random.Random(seed)
        start = ends(left.log)[-2] + STEP
        for sector in range(-(-start // 512) * 512, len(log), 512):
            if chance.random() < 0.5:
                log[sector : sector + 512] = bytes(len(log[sector : sector + 512]))
        assert damage(bytes(log)) is None

    def test_an_end_that_is_repeated(self, left: Left) -> None:
        """SQLite may fill a sector with the last frame once more: those are of one transaction, which may be torn."""
        frames = frames_of(left.log)
        log = written(left.log, *frames, frames[-1], frames[-1])
        assert damage(log) is None
        assert damage(flipped(log, 8 * (ends(left.log)[-2] + STEP + 50))) is None
        assert damage(flipped(log, 8 * (ends(left.log)[-2] + STEP + 50)), left.index) is not None

    def test_what_failed_transactions_left_behind_the_end(self, left: Left) -> None:
        """Transactions that could not be committed lie behind the end until they are overwritten, ends and all."""
        frames = frames_of(left.log)
        open_, end = (bytes(4) + bytes(4), bytes(4096)), (bytes(3) + b"\1" + bytes(3) + b"\1", bytes(4096))
        long = written(left.log, *frames, *[open_] * 10)
        short = written(left.log, *frames, *[(b"\0\0\0\2" + bytes(4), bytes(4096))] * 4, end)
        last = written(left.log, *frames, open_, end)
        log = last + short[len(last) :] + long[len(short) :]
        assert len(ends(log)) == len(ends(left.log)) + 2
        assert damage(log, left.index) is None

    def test_an_index_of_another_log(self, left: Left, tmp_path: Path) -> None:
        """An index that is left from before the log began anew says nothing about it."""
        assert damage(left.log[:32], killed(tmp_path).index) is None

    @given(bit=st.integers(0, 8 * INDEX_BYTES - 1))
    @settings(max_examples=30)
    @example(bit=8 * 12)
    def test_a_damaged_index(self, left: Left, bit: int) -> None:
        """An index that was only half written back says nothing."""
        assert damage(left.log[:-1], flipped(left.index, bit)) is None
        both = flipped(left.index[:48], bit % 384) * 2
        assert damage(left.log[:-1], both) is None

    @pytest.mark.parametrize(("place", "value"), [(0, 3007001), (12, 0)], ids=["of another version", "not made yet"])
    def test_an_index_that_is_none(self, left: Left, place: int, value: int) -> None:
        """An index is only read if it is of the kind that is known, and complete."""
        header = bytearray(left.index[:40])
        struct.pack_into("=I", header, place, value)
        order = "<" if sys.byteorder == "little" else ">"
        whole = bytes(header) + struct.pack("=2I", *add_up(bytes(header), (0, 0), order))
        assert damage(left.log[:-1], whole * 2) is None

    def test_a_header_alone(self, left: Left) -> None:
        """Before there is a frame the header may be as it likes: nothing was committed."""
        assert damage(flipped(left.log[:32], 100), left.index) is None

    @given(log=st.binary(max_size=200), index=st.binary(max_size=120))
    def test_any_bytes(self, log: bytes, index: bytes) -> None:
        """Whatever the files hold, there is an answer."""
        assert damage(log, index) == ("its header is damaged" if len(log) > 32 else None)


class TestDamage:
    """What no power cut leaves."""

    @given(data=st.data())
    @settings(max_examples=40)
    def test_a_bit(self, left: Left, data: st.DataObject) -> None:
        """With the index, any bit that is flipped in the log is noticed."""
        bit = data.draw(st.integers(0, 8 * len(left.log) - 1))
        assert damage(flipped(left.log, bit), left.index) is not None

    @given(data=st.data())
    @settings(max_examples=40)
    def test_a_bit_without_an_index(self, left: Left, data: st.DataObject) -> None:
        """Without it, any that comes before the end of the last transaction but one."""
        bit = data.draw(st.integers(0, 8 * ends(left.log)[-2] - 1))
        assert damage(flipped(left.log, bit)) is not None

    @given(data=st.data())
    @settings(max_examples=40)
    def test_a_cut(self, left: Left, data: st.DataObject) -> None:
        """With the index, a log that was cut off anywhere behind its header is noticed."""
        length = data.draw(st.integers(32, len(left.log) - 1))
        assert "committed" in str(damage(left.log[:length], left.index))

    def test_the_very_frame(self, left: Left, tmp_path: Path) -> None:
        """The frame that is named is the one SQLite stops at: it takes all that was committed before."""
        for frame in (0, 7, 20, 35):
            log = flipped(left.log, 8 * (32 + frame * STEP + 30))
            directory = tmp_path / str(frame)
            directory.mkdir()
            with closing(sqlite3.connect(left.copy(directory, log, index=False))) as database:
                assert database.execute("PRAGMA wal_checkpoint").fetchone()[1] == committed_before(left.log, frame)
            assert f"frame {frame + 1} is damaged" in str(damage(log))

    def test_a_page_size_that_cannot_be(self, left: Left) -> None:
        """A header whose sums are right is damaged all the same if it says nonsense."""
        log = written(left.log[:8] + struct.pack(">I", 4097) + left.log[12:], *frames_of(left.log))
        assert damage(log) == "its header is damaged"

    def test_a_long_log(self, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a long log only the beginning is read: damage there is found, and nothing is said of what is not read."""
        monkeypatch.setattr(log_check, "MOST", 20 * STEP)
        for frame, found in ((3, True), (25, False)):
            log = io.BytesIO(flipped(left.log, 8 * (32 + frame * STEP + 30)))
            assert (find_damage(log, left.index) is not None) is found
            assert log.tell() <= 32 + 20 * STEP


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*-wal-damaged-*"))


def store_at(path: Path) -> SQLiteStore:
    return SQLiteStore(path, secret_box=PLAIN_TEXT)


async def problems(path: Path) -> tuple[str, ...]:
    async with store_at(path) as store:
        return (await store.health()).problems


class TestStore:
    """What a store does that finds a damaged log."""

    @pytest.mark.parametrize(
        ("what", "said"), [("flip", "frame 21 is damaged"), ("cut", "were committed"), ("header", "header is damaged")]
    )
    async def test_it_tells(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, said: str
    ) -> None:
        """It keeps the log as it is, logs one error that says all, and goes on; its health says so while it lives."""
        damaged = {
            "flip": flipped(left.log, 8 * (32 + 20 * STEP + 30)),
            "cut": left.log[: 32 + 40 * STEP],
            "header": flipped(left.log, 100),
        }[what]
        path = left.copy(tmp_path, damaged)
        async with store_at(path) as store:
            (error,) = errors(caplog)
            (copy,) = copies(path)
            for text in (said, str(path), str(copy), "may be lost", "look at the disk", "fetch the current state"):
                assert text in error
            assert copy.read_bytes() == damaged
            assert stat.S_IMODE(copy.stat().st_mode) == 0o600
            await store.open("another", resource="1", ttl=60)
            for _ in range(2):
                health = await store.health()
                assert health.writable
                (problem,) = health.problems
                assert problem.startswith(
                    "the write-ahead log was damaged when this store was opened, and acknowledged"
                )
            assert 0 <= health.waiting < COUNT
        assert await problems(path) == ()
        assert len(errors(caplog)) == len(copies(path)) == 1

    async def test_it_tells_once(self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Who is killed before the log began anew does not leave the same damage to be told of again."""
        path = left.copy(tmp_path, flipped(left.log, 8 * (32 + 20 * STEP + 30)))
        with putting(path, 100, 101) as process:
            process.communicate()
        assert len(copies(path)) == 1
        assert await problems(path) == ()
        assert errors(caplog) == []

    async def test_there_is_no_room_for_a_copy(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log that cannot be copied is told of all the same, and half a copy does not stay."""

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        path = left.copy(tmp_path, left.log[:-1])
        monkeypatch.setattr(shutil, "copyfileobj", fail)
        assert len(await problems(path)) == 1
        assert errors(caplog)[0].endswith("could not be copied (No space left on device)")
        assert copies(path) == []

    async def test_while_somebody_reads(self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The damage cannot be cleared then, and each start tells of it; but one copy is enough, and stays as it is."""
        log = flipped(left.log, 4 * len(left.log))
        path = left.copy(tmp_path, log)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_master").fetchall()
        for starts in (1, 2, 3):
            await problems(path)
            assert len(errors(caplog)) == starts
            assert [copy.read_bytes() for copy in copies(path)] == [log]
        reader.close()

    async def test_no_store_opens_while_another_looks(
        self, left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one process the two exclude each other: closing the index drops the locks of who has just opened it."""
        look, connect = file._is_open_here, sqlite3.connect
        guarded: list[tuple[str, bool]] = []

        def looking(path: Path) -> bool:
            guarded.append(("look", file._OPENING.locked()))
            return look(path)

        def connecting(*args: Any, **options: Any) -> sqlite3.Connection:
            guarded.append(("open", file._OPENING.locked()))
            opened: sqlite3.Connection = connect(*args, **options)
            return opened

        monkeypatch.setattr(file, "_is_open_here", looking)
        monkeypatch.setattr(sqlite3, "connect", connecting)
        await problems(left.copy(tmp_path, left.log))
        assert set(guarded) == {("look", True), ("open", True)}

    async def test_a_link_in_the_place_of_the_copy(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is not followed, so nobody can have a secret written where he can read it."""
        path, other = left.copy(tmp_path, left.log[:-1]), tmp_path / "other"
        beside(path, f"-wal-damaged-{left.log[16:24].hex()}").symlink_to(other)
        assert len(await problems(path)) == 1
        assert errors(caplog)[0].endswith("could not be copied (File exists)")
        assert not other.exists()

    async def test_somebody_else_was_there_before(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A log that another store uses is not looked at: that one did, and it is being written."""
        path = left.copy(tmp_path, left.log[:-1])
        other = Users(beside(path, "-users"))
        other.join()
        assert [problem for problem in await problems(path) if "damaged" in problem] == []
        other.leave()
        assert errors(caplog) == []

    async def test_stores_that_start_together(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of several that come at the same moment after a crash, one looks."""
        path = left.copy(tmp_path, flipped(left.log, 8 * (32 + 20 * STEP + 30)))
        stores = [store_at(path) for _ in range(4)]
        await asyncio.gather(*(store.__aenter__() for store in stores))
        await asyncio.gather(*(store.aclose() for store in stores))
        assert errors(caplog)

    async def test_a_log_that_is_being_written(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What another program writes meanwhile looks damaged for a moment, but not twice in the same way."""
        verdicts: Iterator[str | None] = iter(["frame 7", "frame 9"])
        monkeypatch.setattr(log_check, "find_damage", lambda *_: next(verdicts))
        assert await problems(left.copy(tmp_path, left.log)) == ()
        assert next(verdicts, None) is None
        assert errors(caplog) == []

    async def test_an_index_that_this_process_has_open(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is not opened again: closing it would drop the locks of whoever reads the database there."""
        path = left.copy(tmp_path, left.log[:-1])
        with beside(path, "-shm").open("rb"):
            assert await problems(path) == ()
        assert errors(caplog) == []

    async def test_a_log_that_cannot_be_read(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What cannot be read is not judged; that SQLite cannot read it either is a clear error."""
        path = left.copy(tmp_path, left.log)
        beside(path, "-wal").unlink()
        make_directory(beside(path, "-wal"))
        async with aclosing(store_at(path)) as store:
            with pytest.raises(StoreUnavailableError, match="SQLITE_CANTOPEN"):
                await store.find("r0")
        assert errors(caplog) == []

    async def test_the_file_is_missing(self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A damaged log without its file is told of when the file is back."""
        path = left.copy(tmp_path, left.log[:-1])
        aside = path.rename(tmp_path / "aside.db")
        async with aclosing(store_at(path)) as store:
            with pytest.raises(StoreUnavailableError, match="missing or empty"):
                await store.find("r0")
            assert errors(caplog) == []
            assert copies(path) == []
            aside.rename(path)
            assert len((await store.health()).problems) == len(errors(caplog)) == len(copies(path)) == 1

    async def test_the_database_cannot_be_opened(
        self, left: Left, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While it cannot, nothing is told a second time, and the store does not count as one of its users."""
        path = left.copy(tmp_path, left.log[:-1])
        async with aclosing(store_at(path)) as store:
            with monkeypatch.context() as patch:
                patch.setattr("os.access", lambda *_: False)
                for _ in range(2):
                    with pytest.raises(StoreUnavailableError, match="may not be read and written"):
                        await store.find("r0")
                    assert not beside(path, "-users").exists()
            assert len((await store.health()).problems) == len(errors(caplog)) == len(copies(path)) == 1

    async def test_a_store_that_connects_again(
        self, left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log is looked at when it was left by others, not when this store itself has written it."""
        async with store_at(left.copy(tmp_path, left.log)) as store:
            assert await store.find("r0")  # as long as somebody reads, the log stays when it is closed
            monkeypatch.setattr(log_check, "find_damage", lambda *_: "something")
            with pytest.raises(ConfigurationError, match="ProgrammingError"):
                await in_writer(store, lambda database: database.close())
            health = await store.health()
            assert health.writable
            assert health.problems == ()

    async def test_the_log_is_missing(self, left: Left, tmp_path: Path) -> None:
        """An index that is left without its log proves nothing."""
        path = left.copy(tmp_path, b"")
        beside(path, "-wal").unlink()
        assert await problems(path) == ()


def make_directory(path: Path) -> None:
    path.mkdir()


class TestFirst:
    """Who comes first knows it."""

    def test_who_comes_first(self, tmp_path: Path) -> None:
        """Only one of several users of a file is the first, until all are gone."""
        one, two = Users(tmp_path / "users"), Users(tmp_path / "users")
        one.join()
        two.join()
        assert (one.was_first, two.was_first) == (True, False)
        one.leave()
        two.leave()
        two.join()
        assert two.was_first
        two.leave()


def kill_again_and_again(path: Path, times: int) -> None:
    """Kill who writes at any moment, and look at what is left; whoever comes next goes on with it."""
    chance = random.Random(times)
    for number in range(times):
        with putting(path, 10_000 * number, 10_000 * (number + 1)) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 150)):
                process.stdout.readline()
            process.kill()
            process.stdout.read()
        left = Left(path)
        assert damage(left.log, left.index) is None
    assert copies(path) == []


@pytest.mark.slow
def test_kills_are_no_damage(tmp_path: Path) -> None:
    """A process that is killed at any moment leaves a log that is whole, as often as it happens."""
    kill_again_and_again(tmp_path / "store.db", 2)


@pytest.mark.long
def test_many_kills_are_no_damage(tmp_path: Path) -> None:
    """The same, for much longer."""
    kill_again_and_again(tmp_path / "store.db", 20)
