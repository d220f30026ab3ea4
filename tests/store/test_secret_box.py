"""Secrets at rest: sealed before they are written, opened when they are needed, and nothing of them left behind."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import define, field
from cryptography.fernet import Fernet

from asana_webhooks.errors import ConfigurationError, SecretUnavailableError, StoreUnavailableError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store import MemoryStore, SQLiteStore, open_store
from asana_webhooks.store.base import RegistrationState, candidate_id
from asana_webhooks.store.secret_box import FernetBox, Sealer, SecretBox, StoredSecret
from tests.helpers.stores import ENDPOINT, Clock, body, event, register
from tests.store.sqlite_help import SECRET, confirmed, in_reader, modes, new, opened, rows

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
OTHER = Secret("b" * 32)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@define
class Box:
    """A box whose seal anybody can break, and which fails when told to."""

    key_id: str = "k1"
    error: BaseException | None = None
    sealed: Any = None
    opened: Any = None
    lost: set[str] = field(factory=set)
    calls: list[str] = field(factory=list)

    def seal(self, secret: Secret) -> bytes:
        self._fail("seal")
        return self.sealed if self.sealed is not None else secret.reveal().encode()[::-1]

    def open(self, sealed: bytes, key_id: str) -> Secret:
        self._fail(f"open {key_id}")
        if key_id in self.lost:
            raise KeyError(key_id)
        return self.opened if self.opened is not None else Secret(sealed[::-1].decode())

    def _fail(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


def files(path: Path) -> bytes:
    """Return all that lies on the disk of a database."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


class TestSealed:
    """Nobody can read the secrets out of the file."""

    async def test_nothing_readable_is_written(self, path: Path) -> None:
        """Neither a candidate's secret nor a confirmed one's is ever in the database, its log or what else is there."""
        async with SQLiteStore(path, secret_box=FernetBox({"k": OLD})) as store:
            await confirmed(store)
            await opened(store, "p")
            assert await store.add_candidate("p", OTHER)
            found = await store.find_registration("r")
            pending = await store.find_registration("p")
            assert found is not None
            assert pending is not None
            assert (found.secret, pending.candidates) == (SECRET, (OTHER,))
            for secret in (SECRET, OTHER):
                assert secret.reveal().encode() not in files(path)
        assert SECRET.reveal().encode() not in files(path)
        assert rows(path, "SELECT key_id FROM secrets") == [("k",), ("k",)]

    @pytest.mark.parametrize("ending", ["close", "confirm", "sweep"])
    async def test_what_is_dropped_is_wiped(self, path: Path, ending: str) -> None:
        """Also without a box, a secret that is dropped is not left in a free part of the file."""
        clock = Clock()
        async with SQLiteStore(path, clock=clock) as store:
            await confirmed(store)
            await opened(store, "p")
            assert await store.add_candidate("p", OTHER)
            if ending == "close":
                await store.close_registration("p")
            elif ending == "confirm":
                await store.add_candidate("p", SECRET)
                await store.confirm_registration("p", webhook_gid="3", secret=SECRET)
            else:
                clock.advance(61)
                assert [ended.candidates for ended in await store.expire_registrations()] == [(OTHER,)]
        assert SECRET.reveal().encode() in files(path)
        assert OTHER.reveal().encode() not in files(path)

    async def test_confirming_needs_no_box(self, path: Path) -> None:
        """A process that creates webhooks without the box leaves the secret as the receiver sealed it."""
        async with SQLiteStore(path, secret_box=Box()) as receiver, SQLiteStore(path) as creator:
            await opened(creator, "r")
            await receiver.add_candidate("r", SECRET)
            assert not await creator.confirm_registration("r", webhook_gid="2", secret=OTHER)
            assert await creator.confirm_registration("r", webhook_gid="2", secret=SECRET)
            assert await creator.confirm_registration("r", webhook_gid="2", secret=SECRET)
            assert not await creator.confirm_registration("r", webhook_gid="2", secret=OTHER)
            found = await receiver.find_registration("r")
            assert found is not None
            assert found.secret == SECRET
        assert rows(path, "SELECT secret, key_id FROM secrets") == [(SECRET.reveal().encode()[::-1], "k1")]

    async def test_deliveries_need_no_box(self, path: Path) -> None:
        """Storing and claiming deliveries asks the box for nothing, in quarantine and after."""
        box = Box()
        async with SQLiteStore(path, secret_box=box) as store:
            await opened(store, "r")
            await store.add_candidate("r", SECRET)
            box.calls.clear()
            mine, others = candidate_id(SECRET), candidate_id(OTHER)
            assert await store.put(new(1, candidate=mine)) == "stored"
            await store.confirm_registration("r", webhook_gid="2", secret=SECRET)
            assert await store.put(new(2, candidate=mine)) == "stored"
            assert await store.put(new(3, candidate=others)) == "refused"
            assert await store.put(new(4)) == "stored"
            assert len(await store.claim(9, lease=60)) == 3
            assert box.calls == []


class TestBoxFails:
    """A box that does not work makes the store unavailable, and shows nothing."""

    async def test_any_error(self, path: Path) -> None:
        """Whatever it raises, the caller gets one error that names the key and holds nothing of the box's."""
        errors = [
            ValueError(SECRET.reveal()),
            TimeoutError(),
            RecursionError(SECRET.reveal()),
            SystemExit(1),
            KeyboardInterrupt(),
            asyncio.CancelledError(),
        ]
        box = Box()
        async with SQLiteStore(path, secret_box=box) as store, asyncio.timeout(60):
            await confirmed(store)
            await opened(store, "p")
            for error in errors:
                box.error = error
                for call in (store.find_registration("r"), store.add_candidate("p", SECRET)):
                    with pytest.raises(StoreUnavailableError, match="'k1'") as caught:
                        await call
                    assert type(error).__name__ in str(caught.value)
                    assert caught.value.__context__ is caught.value.__cause__ is None
                    assert SECRET.reveal() not in "".join(traceback.format_exception(caught.value))
            box.error = None
            assert await store.add_candidate("p", SECRET)

    def test_a_box_that_returns_something_else(self) -> None:
        """What is no bytes, or no secret, is an error of the box."""
        for wrong in ("a text", 5):
            with pytest.raises(StoreUnavailableError, match="instead of bytes"):
                Sealer(Box(sealed=wrong)).seal(SECRET)
            with pytest.raises(StoreUnavailableError, match="instead of Secret"):
                Sealer(Box(opened=wrong)).open(StoredSecret(b"x", "k1"))

    @pytest.mark.parametrize("wrong", ["", "\ud800"])
    async def test_a_box_that_returns_no_usable_secret(self, path: Path, wrong: str) -> None:
        """A secret that verifies nothing is the box's error: the delivery is no forgery, and the health knows it."""
        box = Box()
        async with SQLiteStore(path, secret_box=box) as store:
            await register(store)
            box.opened = Secret(wrong)
            health = await Receiver(store).health()
            assert (health.status, b"it returned an empty Secret, or one" in health.body) == (503, True)
            content = body(event())
            signature = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
            assert (await Receiver(store).receive(ENDPOINT, signature, content)).status == 503

    async def test_sweeping_without_the_key(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A lost key keeps nothing from ending and being purged; it is told which had been echoed, and logged once."""
        clock = Clock()
        async with SQLiteStore(path, secret_box=Box("lost"), clock=clock) as store:
            for id in ("a", "b"):
                await opened(store, id)
                await store.add_candidate(id, OTHER)
        async with SQLiteStore(path, secret_box=FernetBox({"k": OLD}), clock=clock) as store:
            await store.add_candidate("b", SECRET)
            await opened(store, "c")
            await store.add_candidate("c", OTHER)
            await opened(store, "d")
            clock.advance(61)
            caplog.clear()
            swept = [(one.id, one.candidates, one.echoed) for one in await store.expire_registrations()]
            assert swept == [("a", (), True), ("b", (SECRET,), True), ("c", (OTHER,), True), ("d", (), False)]
            (warning,) = [record.getMessage() for record in caplog.records]
            assert "'lost'" in warning
            assert await store.expire_registrations() == []
            found = await store.find_registration("a")
            assert found is not None
            assert (found.state, found.echoed) == (RegistrationState.CLOSED, True)
            clock.advance(61)
            await store.purge(older_than=60)
        for table in ("secrets", "registrations"):
            assert rows(path, f"SELECT count(*) FROM {table}") == [(0,)]

    async def test_a_secret_is_opened_once_for_all_who_ask(self, path: Path) -> None:
        """Deliveries of one webhook that come at the same time cost one call of the box."""
        box = Box()
        async with SQLiteStore(path, secret_box=box) as store:
            await confirmed(store)
            box.calls.clear()
            found = await asyncio.gather(*(store.find_registration(id) for id in ("r", "r", "unknown", "r")))
            assert [one and one.secret for one in found] == [SECRET, SECRET, None, SECRET]
            assert box.calls == ["open k1"]

    async def test_a_key_is_asked_for_once_in_a_sweep(self, path: Path) -> None:
        """A key service that is down holds up a sweep once, not for each registration."""
        box, clock = Box(), Clock()
        async with SQLiteStore(path, secret_box=box, clock=clock) as store:
            for number in range(5):
                await opened(store, f"r{number}")
                await store.add_candidate(f"r{number}", SECRET)
            clock.advance(61)
            box.calls.clear()
            box.error = TimeoutError()
            assert [one.echoed for one in await store.expire_registrations()] == [True] * 5
            assert box.calls == ["open k1"]

    @pytest.mark.parametrize("call", ["find", "offer"])
    async def test_who_writes_does_not_wait(self, path: Path, call: str) -> None:
        """A slow box holds up nobody who writes, for another thread waits for it."""
        is_slow, under_way, go_on = threading.Event(), threading.Event(), threading.Event()

        class Slow(Box):
            def seal(self, secret: Secret) -> bytes:
                self._wait()
                return super().seal(secret)

            def open(self, sealed: bytes, key_id: str) -> Secret:
                self._wait()
                return super().open(sealed, key_id)

            def _wait(self) -> None:
                if is_slow.is_set():
                    under_way.set()
                    go_on.wait(20)

        async with SQLiteStore(path, secret_box=Box()) as store:
            await confirmed(store)
            await opened(store, "p")
        async with SQLiteStore(path, secret_box=Slow()) as store:
            is_slow.set()
            waiting = asyncio.ensure_future(
                store.find_registration("r") if call == "find" else store.add_candidate("p", OTHER)
            )
            await asyncio.to_thread(under_way.wait, 20)
            async with asyncio.timeout(10):
                assert await store.put(new(1)) == "stored"
            assert not waiting.done()
            go_on.set()
            assert await waiting

    @pytest.mark.parametrize("box", [FernetBox({"k2": NEW}), FernetBox({"k1": NEW}), None], ids=["id", "key", "none"])
    async def test_the_receiver_answers_503(
        self, path: Path, box: SecretBox | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without the right key a true delivery is answered so that Asana sends it again: no 401, no 404."""
        content = body(event())
        headers = [(b"x-hook-signature", sign_body(content, secret=SECRET).encode())]
        async with SQLiteStore(path, secret_box=FernetBox({"k1": OLD})) as store:
            id = await register(store, secret=SECRET)
        async with SQLiteStore(path, secret_box=box) as store:
            reply = await Receiver(store).receive(ENDPOINT, headers, content)
            assert reply.status == 503
            mend = (
                r"'k1'.*(Give the store|Check that the box).*lost for good, call remove_webhook, which needs no secret"
            )
            with pytest.raises(SecretUnavailableError, match=mend):
                await store.find_registration(id)
        async with SQLiteStore(path, secret_box=FernetBox({"k2": NEW, "k1": OLD})) as store:
            assert (await Receiver(store).receive(ENDPOINT, headers, content)).status == 200

    def test_what_is_no_box(self, path: Path) -> None:
        """A mistake in the argument shows when the store is made, not when the first handshake comes."""
        wrong: list[Any] = [object(), Box(key_id=""), Box(key_id=cast(str, 5)), FernetBox]
        for box in wrong:
            with pytest.raises(ConfigurationError, match="secret_box must be"):
                open_store(f"sqlite:///{path}", secret_box=box)


class TestTried:
    """One secret of each key is tried when the store opens, and whenever somebody asks for its health."""

    @pytest.fixture(name="path")
    async def _path(self, tmp_path: Path) -> Path:
        """Confirmed ones of "k1", candidates of "k2", two of each; one of "k3" whose time is over, one plain."""
        path, clock = tmp_path / "store.db", Clock()
        for number, box in enumerate([Box("k1"), Box("k2"), Box("k1"), Box("k3"), Box("k2"), None]):
            async with SQLiteStore(path, secret_box=box, clock=clock) as store:
                await opened(store, f"r{number}", ttl=60 if number == 3 else 1e6)
                secret = Secret(f"{number}" * 32)
                await store.add_candidate(f"r{number}", secret)
                if box is not None and box.key_id == "k1":
                    await store.confirm_registration(f"r{number}", webhook_gid=f"{number}", secret=secret)
        return path

    async def test_all_keys_are_there(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Each key costs one call of the box, and nothing is logged or reported."""
        box, clock = Box(), Clock()
        clock.advance(100)
        async with SQLiteStore(path, secret_box=box, clock=clock) as store:
            assert sorted(box.calls) == ["open k1", "open k2"]
            health = await store.health()
            assert (health.writable, health.secrets_readable, health.problems) == (True, True, ())
            assert sorted(box.calls[2:]) == ["open k1", "open k2"]
        assert caplog.text == ""

    async def test_keys_that_are_not_there(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The store opens, logs each missing key once, and reports it until it is back; other webhooks work on."""
        clock = Clock()
        clock.advance(100)
        for box, lost in ((Box(lost={"k2"}), ["k2"]), (Box(lost={"k1", "k2"}), ["k1", "k2"]), (None, ["k1", "k2"])):
            caplog.clear()
            async with SQLiteStore(path, secret_box=box, clock=clock) as store:
                health = await store.health()
                assert (health.writable, health.secrets_readable) == (True, False)
                for key, problem, record in zip(lost, sorted(health.problems), logged(caplog), strict=True):
                    assert f"the key '{key}'" in problem
                    assert "Give the store" in problem or "Check that the box" in problem
                    assert record.name == "asana_webhooks.store.sqlite.store"
                    assert record.levelname == "ERROR"
                    for said in (problem, f"secrets in '{path}'", "answered 503", "only runs workers may ignore"):
                        assert said in record.getMessage()
                    assert problem == str(await failure(store.find_registration("r0" if key == "k1" else "r1")))
                assert await store.put(new(1, registration="r0")) in {"stored", "duplicate"}
                with pytest.raises(ConfigurationError, match="ProgrammingError"):
                    await in_reader(store, lambda db: db.close())
                assert await store.find_registration("r5") is not None  # over a new connection
                assert len(logged(caplog)) == len(lost)
                if box is not None:
                    box.lost.clear()
                    assert (await store.health()).secrets_readable

    async def test_another_key_with_the_same_id(self, path: Path) -> None:
        """The oldest secret is tried, so new webhooks do not hide that earlier ones have lost their key."""
        for key, id in ((OLD, "first"), (NEW, "second")):
            async with SQLiteStore(path.with_name("other.db"), secret_box=FernetBox({"k": key})) as store:
                await confirmed(store, id)
                assert (await store.health()).secrets_readable is (key == OLD)

    async def test_opening_meets_other_faults_later(self, path: Path) -> None:
        """A clock that fails is the caller's error in the first call that needs it, as it is without sealed secrets."""

        def clock() -> float:
            raise ZeroDivisionError

        async with SQLiteStore(path, clock=clock) as store:
            with pytest.raises(ZeroDivisionError):
                await store.find_registration("r0")


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what was logged, ordered by its text."""
    return sorted(caplog.records, key=logging.LogRecord.getMessage)


async def failure(call: Awaitable[object]) -> StoreUnavailableError:
    """Return the error of a call."""
    with pytest.raises(StoreUnavailableError) as caught:
        await call
    return caught.value


async def test_without_a_box(path: Path) -> None:
    """Secrets are plain text in a file that only its owner can read, and nobody complains."""
    async with SQLiteStore(path) as store:
        await confirmed(store)
    async with SQLiteStore(path) as store:
        found = await store.find_registration("r")
    assert found is not None
    assert found.secret == SECRET
    assert rows(path, "SELECT secret, key_id FROM secrets") == [(SECRET.reveal(), None)]
    assert modes(path.parent) == {"store.db": 0o600}


def test_a_store_in_memory() -> None:
    """It writes nothing, so it takes a box and needs none."""
    assert isinstance(open_store("memory:", secret_box=Box()), MemoryStore)


class TestReseal:
    """`reseal` seals all secrets with the key that seals now."""

    @pytest.fixture(name="path")
    async def _path(self, tmp_path: Path) -> Path:
        """A file with the secret of "r" and a candidate of "p" in plain text."""
        path = tmp_path / "store.db"
        async with SQLiteStore(path) as store:
            await confirmed(store)
            await opened(store, "p", ttl=10_000)
            await store.add_candidate("p", OTHER)
        return path

    async def test_plain_text_is_sealed(self, path: Path) -> None:
        """Opening changes nothing; after `reseal` no secret is readable in the file, and all of them are known."""
        async with SQLiteStore(path, secret_box=FernetBox({"k": OLD})) as store:
            assert await store.find_registration("r") is not None
            assert SECRET.reveal().encode() in files(path)
            assert await store.reseal() == 2
            assert await store.reseal() == 0
            found, pending = await store.find_registration("r"), await store.find_registration("p")
        assert found is not None
        assert pending is not None
        assert (found.secret, pending.candidates) == (SECRET, (OTHER,))
        for secret in (SECRET, OTHER):
            assert secret.reveal().encode() not in files(path)

    async def test_the_key_is_changed(self, path: Path) -> None:
        """Secrets sealed with an older key are sealed with the first one; then the old key can go."""
        async with SQLiteStore(path, secret_box=FernetBox({"old": OLD})) as store:
            assert await store.reseal() == 2
        async with SQLiteStore(path, secret_box=FernetBox({"new": NEW, "old": OLD})) as store:
            assert await store.reseal() == 2
        async with SQLiteStore(path, secret_box=FernetBox({"new": NEW})) as store:
            found = await store.find_registration("r")
        assert found is not None
        assert found.secret == SECRET

    async def test_what_cannot_be_opened_stays(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """One lost key keeps nobody else's secrets from being sealed; it is asked for once, and logged once."""
        async with SQLiteStore(path, secret_box=Box("lost")) as store:
            for id in ("a", "b"):
                await confirmed(store, id)
        box = Box("new", lost={"lost"})
        async with SQLiteStore(path, secret_box=box) as store:
            box.calls.clear()
            caplog.clear()
            assert await store.reseal() == 2
        assert box.calls.count("open lost") == 1
        assert rows(path, "SELECT key_id FROM secrets ORDER BY number") == [("new",), ("new",), ("lost",), ("lost",)]
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "'lost'" in warning

    async def test_a_box_that_is_missing_or_down(self, path: Path) -> None:
        """Without a box it is a mistake; one that cannot seal is an error, and nothing is changed."""
        async with SQLiteStore(path) as store:
            with pytest.raises(ConfigurationError, match="secret_box"):
                await store.reseal()
        async with SQLiteStore(path, secret_box=Box(error=TimeoutError())) as store:
            with pytest.raises(StoreUnavailableError, match="cannot seal"):
                await store.reseal()
        assert rows(path, "SELECT DISTINCT key_id FROM secrets") == [(None,)]

    async def test_nothing_is_locked_meanwhile(self, path: Path) -> None:
        """While the box is asked others write: what they wrote is kept, and sealed as well if the box can open it."""

        class Slow(Box):
            def seal(self, secret: Secret) -> bytes:
                if not self.calls.count("seal"):
                    rows(path, "DELETE FROM secrets WHERE registration = 1")
                    rows(path, "UPDATE secrets SET secret = x'00', key_id = 'theirs'")
                return super().seal(secret)

        async with SQLiteStore(path, secret_box=Slow(lost={"theirs"})) as store:
            assert await store.reseal() == 0
        assert rows(path, "SELECT secret, key_id FROM secrets") == [(b"\0", "theirs")]
        async with SQLiteStore(path, secret_box=Box()) as store:
            assert await store.reseal() == 1
        assert rows(path, "SELECT secret, key_id FROM secrets") == [(b"\0", "k1")]

    async def test_a_candidate_that_is_confirmed_meanwhile(self, path: Path) -> None:
        """Its secret is sealed anew all the same."""

        class Slow(Box):
            def seal(self, secret: Secret) -> bytes:
                if secret == OTHER and self.calls.count("seal") == 1:
                    asyncio.run(confirm())
                return super().seal(secret)

        async def confirm() -> None:
            async with SQLiteStore(path) as other:
                assert await other.confirm_registration("p", webhook_gid="3", secret=OTHER)

        async with SQLiteStore(path, secret_box=Slow()) as store:
            assert await store.reseal() == 2
        assert rows(path, "SELECT registration, key_id FROM secrets ORDER BY number") == [(1, "k1"), (2, "k1")]


class TestFernetBox:
    """Fernet keys by id."""

    def test_round_trip(self) -> None:
        """What it sealed it opens, and nobody can read it meanwhile."""
        box = FernetBox({"k": Secret(OLD)})
        sealed = box.seal(SECRET)
        assert SECRET.reveal().encode() not in sealed
        assert box.open(sealed, "k") == SECRET
        assert box.key_id == "k"

    def test_a_key_as_it_is_generated(self) -> None:
        """Fernet.generate_key() returns bytes; the same key as text opens what it sealed."""
        key = Fernet.generate_key()
        sealed = FernetBox({"k": key}).seal(SECRET)
        assert FernetBox({"k": key.decode()}).open(sealed, "k") == SECRET

    def test_the_first_key_seals(self) -> None:
        """Any of the keys opens what it sealed once; a key of another id does not."""
        sealed = FernetBox({"old": OLD}).seal(SECRET)
        box = FernetBox({"new": NEW, "old": OLD})
        assert box.key_id == "new"
        assert box.open(sealed, "old") == SECRET
        assert box.open(box.seal(SECRET), "new") == SECRET
        with pytest.raises(ConfigurationError, match="was not sealed with the key 'new'"):
            box.open(sealed, "new")
        with pytest.raises(ConfigurationError, match="no key 'lost'"):
            box.open(sealed, "lost")

    def test_a_changed_seal(self) -> None:
        """Every changed byte is found, and the error has nothing of cryptography's."""
        box = FernetBox({"k": OLD})
        sealed = bytearray(box.seal(SECRET))
        sealed[len(sealed) // 2] ^= 1
        with pytest.raises(ConfigurationError, match="changed since") as caught:
            box.open(bytes(sealed), "k")
        assert caught.value.__context__ is None

    def test_bad_keys(self) -> None:
        """What is no key is refused with how to make one, and not shown."""
        bad: list[dict[str, Any]] = [{}, {"k": ""}, {"k": "short"}, {"k": OLD[:-2]}, {"": OLD}, {"k": "\udcff" * 44}]
        bad += [{"k": b"short"}, {"k": Secret("short")}, {"k": None}, {"k": 5}]
        for keys in bad:
            with pytest.raises(ConfigurationError, match=r"key") as caught:
                FernetBox(keys)
            for key in keys.values():
                assert not isinstance(key, str) or not key or key not in str(caught.value)
            assert caught.value.__context__ is None
        unnamed: list[Any] = [OLD, OLD.encode(), Secret(OLD), [OLD], None]
        for keys in unnamed:
            with pytest.raises(ConfigurationError, match="keys by their ids") as caught:
                FernetBox(keys)
            assert OLD not in str(caught.value)

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever lacks cryptography is told what to install."""
        monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'asana-webhooks\[fernet\]'"):
            FernetBox({"k": OLD})

    def test_its_repr(self) -> None:
        """It names its key and shows none."""
        shown = repr(FernetBox({"2026-11": NEW, "2025": OLD}))
        assert shown == "<FernetBox key_id='2026-11' keys=2>"
