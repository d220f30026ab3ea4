"""Every store against a model, by random sequences of calls, crashes among them."""

import asyncio
import base64
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store import MemoryStore, PostgresStore, SQLiteStore, Store
from asana_webhooks.store.base import DeliveryState, Lease, NewDelivery, StoreHealth, candidate_id
from asana_webhooks.store.secret_box import FernetBox
from tests.helpers.stores import Clock
from tests.store.store_model import MisuseError, Model

NAMES = ["r1", "r2", "r3", "r4"]
IDS = st.sampled_from(NAMES)
LABELS = st.sampled_from(["", "a", "a"])
GOOD, FORGED, *OTHERS = (Secret(letter * 32) for letter in "abcdef")
SECRETS = st.sampled_from([GOOD, GOOD, FORGED, *OTHERS])
NUMBERS = st.integers(0, 12)
SECONDS = st.sampled_from([0, 1, 5, 30])
ANSWERS = st.sampled_from(["ack", "retry", "bury", "release", "extend"])
THEN = st.lists(ANSWERS | st.just("nothing yet"), max_size=4)
DONE = st.lists(st.integers(0, 3), max_size=2)
START = 1_000_000
HOUR = 3600
KEYS = {letter: Secret(base64.urlsafe_b64encode(letter.encode() * 32).decode()) for letter in "kl"}
BOXES = [FernetBox(KEYS), FernetBox(dict(reversed(KEYS.items())))]
"""A box, and the one that takes over when its key has been replaced."""


def body_of(number: int) -> bytes:
    """Return a body without a time, or with one before the beginning, or soon after it."""
    if number % 3 == 0:
        return b"%d" % number
    day = "01T00:00:01" if number % 3 == 1 else f"12T13:46:{40 + number}"
    return f'{{"events":[{{"created_at":"1970-01-{day}.000Z"}}],"number":{number}}}'.encode()


class MemoryMachine(RuleBasedStateMachine):
    """Calls the model and a store alike, and compares every answer."""

    was_set_back = False

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(START)
        self.clock = Clock(START)
        self.was_set_back = False
        self.runner = asyncio.Runner()
        self.store: Store = self.make_store()
        self.abandoned: list[Store] = []
        self.leases: list[Lease] = []

    def make_store(self) -> Store:
        return MemoryStore(clock=self.clock)

    def teardown(self) -> None:
        for store in [self.store, *self.abandoned]:
            self.runner.run(store.aclose())
        self.runner.close()

    def ask(self, method: str, *args: object, **options: object) -> Any:
        """Call a method of the store."""

        async def asked() -> Any:
            return await getattr(self.store, method)(*args, **options)

        return self.runner.run(asked())

    def agree(self, expected: Callable[[], object], method: str, *args: object, **options: object) -> None:
        """Call a method of the store; its answer must be that of the model."""
        try:
            wanted = expected()
        except MisuseError:
            wanted = "misuse"
        try:
            answer = self.ask(method, *args, **options)
        except ConfigurationError:
            answer = "misuse"
        assert answer == wanted

    # Registrations

    @initialize(number=st.integers(0, 4), others=st.integers(0, 4))
    def establish(self, number: int, others: int) -> None:
        """Begin with what chance would seldom bring about: deliveries from before a 201 and after it."""
        for id, count in (("r1", number), ("r2", others)):
            self.open(id, id, 5, None)
            for secret in (GOOD, FORGED):
                self.add_candidate(id, secret)
                for step in range(count):
                    self.put(id, step if secret == GOOD else 6 + step, secret)
        self.confirm("r1", "1", GOOD, None)
        for step in range(3):
            self.put("r1", 10 + step, None)

    def open(self, id: str, label: str, ttl: int, replaces: str | None) -> None:
        options = {"resource": "1", "public_url": "https://a", "label": label, "ttl": ttl, "replaces": replaces}
        self.agree(lambda: self.model.open(id, label, ttl, replaces), "open_registration", id, **options)

    def add_candidate(self, id: str, secret: Secret) -> None:
        self.agree(lambda: self.model.add_candidate(id, secret), "add_candidate", id, secret)

    def confirm(self, id: str, gid: str, secret: Secret, beat: int | None) -> None:
        gid, at = id + gid, None if beat is None else self.model.now - beat
        options = {"webhook_gid": gid, "secret": secret, "heartbeat_at": at}
        self.agree(lambda: self.model.confirm(id, gid, secret, at), "confirm_registration", id, **options)

    @rule(id=IDS, label=LABELS, ttl=SECONDS, replaces=st.none() | IDS, secrets=st.lists(SECRETS, max_size=5))
    def begin(self, id: str, label: str, ttl: int, replaces: str | None, secrets: list[Secret]) -> None:
        self.open(id, label, ttl, replaces)
        for secret in secrets:
            self.add_candidate(id, secret)

    @rule(id=IDS, label=LABELS, gid=st.sampled_from(["1", "1", "2"]), secret=st.sampled_from([GOOD, GOOD, FORGED]))
    def adopt(self, id: str, label: str, gid: str, secret: Secret) -> None:
        options = {
            "resource": "1",
            "public_url": "https://a",
            "label": label,
            "webhook_gid": id + gid,
            "secret": secret,
        }
        self.agree(lambda: self.model.adopt(id, label, id + gid, secret), "adopt_registration", id, **options)

    @rule(id=IDS, secret=SECRETS, gid=st.sampled_from(["1", "1", "1", "2"]), beat=st.none() | st.sampled_from([0, 9]))
    def decide(self, id: str, secret: Secret, gid: str, beat: int | None) -> None:
        self.confirm(id, gid, secret, beat)

    @rule(id=IDS, ways=st.lists(st.sampled_from(["closed", "heard", "retired"]), min_size=1, max_size=3), after=SECONDS)
    def change(self, id: str, ways: list[str], after: int) -> None:
        for way in ways:
            if way == "closed":
                self.agree(lambda: self.model.close(id), "close_registration", id)
            elif way == "heard":
                self.agree(lambda: self.model.record_heartbeat(id), "record_heartbeat", id)
            else:
                self.agree(lambda: self.model.retire(id, after), "retire_registration", id, after=after)

    @rule()
    def expire(self) -> None:
        expired = {one.id: one for one in self.ask("expire_registrations")}
        assert expired == {one.id: one for one in self.model.expire()}

    # Inbox

    @rule(id=IDS, number=NUMBERS, secret=st.none() | SECRETS)
    def put(self, id: str, number: int, secret: Secret | None) -> None:
        """The signature is one of the secret that verified it."""
        own = self.model.registrations.get(id, {}).get("secret")
        letter = (secret or own or GOOD).reveal()[0]
        candidate = None if secret is None else candidate_id(secret)
        new = NewDelivery(registration=id, signature=f"{number:063}{letter}", body=body_of(number), candidate=candidate)
        self.agree(lambda: self.model.put(new), "put", new)

    def claim(self, limit: int, lease: int, order: str, then: list[str]) -> None:
        """Lease some, and say of each at once how it went, or nothing yet."""
        options = {"ordered": order != "any", "halt": order == "halt"}
        claimed = self.ask("claim", limit, lease=lease, **options)
        self.model.claim(claimed, limit, lease, **options)
        self.leases += claimed
        for held, what in zip(claimed, then, strict=False):
            self.say(held, what, 5, [held.attempt % 4])

    @rule(limit=st.integers(-1, 4), lease=SECONDS, then=THEN)
    def claim_any(self, limit: int, lease: int, then: list[str]) -> None:
        self.claim(limit, lease, "any", then)

    @rule(limit=st.integers(1, 3), lease=SECONDS, order=st.sampled_from(["skip", "halt"]), then=THEN)
    def claim_in_order(self, limit: int, lease: int, order: str, then: list[str]) -> None:
        self.claim(limit, lease, order, then)

    @rule(times=st.integers(1, 3), lease=st.sampled_from([1, 5]))
    def claim_and_crash(self, times: int, lease: int) -> None:
        """Let several leases in a row run out."""
        for _ in range(times):
            self.claim(3, lease, "any", [])
            self.tick(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), answers=st.lists(ANSWERS, min_size=1, max_size=2), seconds=SECONDS, done=DONE)
    def say_later(self, data: st.DataObject, answers: list[str], seconds: int, done: list[int]) -> None:
        """Any lease, more often a late one: most of the old are lost."""
        held = data.draw(st.sampled_from(self.leases[-3:]) | st.sampled_from(self.leases))
        for what in answers:
            self.say(held, what, seconds, done)

    def say(self, lease: Lease, what: str, seconds: int, done: list[int]) -> None:
        if what in {"ack", "release"}:
            self.agree(lambda: getattr(self.model, what)(lease), what, lease)
        elif what == "extend":
            self.agree(lambda: self.model.extend(lease, seconds), "extend", lease, seconds=seconds)
        elif what in {"retry", "bury"}:
            options = {"error": f"{what} {seconds}", "retry_in": seconds if what == "retry" else None, "done": done}
            self.agree(lambda: self.model.fail(lease, **options), "fail", lease, **options)  # type: ignore[arg-type]

    # Maintenance

    @rule(data=st.data(), method=st.sampled_from(["requeue", "discard"]))
    def move(self, data: st.DataObject, method: str) -> None:
        known = [one["id"] for one in self.model.deliveries]
        dead = [one.id for one in self.model.stored(DeliveryState.DEAD)]
        id = data.draw(st.sampled_from([*dead, *dead, *known, 0, 1]))
        self.agree(lambda: getattr(self.model, method)(id), method, id)

    @rule(later=SECONDS, older_than=SECONDS, dead=st.booleans())
    def purge(self, later: int, older_than: int, dead: bool) -> None:
        self.tick(later)
        self.agree(lambda: self.model.purge(older_than, dead=dead), "purge", older_than=older_than, dead=dead)

    # What happens to it

    @rule(seconds=SECONDS | st.just(11 * HOUR))
    def tick(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model.now += seconds

    @precondition(lambda self: not self.was_set_back)
    @rule()
    def set_the_clock_back(self) -> None:
        """Once at most: the time until then must not come again."""
        self.was_set_back = True
        self.was_set_back = True
        self.clock.advance(-HOUR)
        self.model.now -= HOUR

    def forget_the_last_delivery(self) -> None:
        """Only the time of the last delivery may be lost: it is saved now and then, by a clock that no test turns."""
        for id, record in self.model.registrations.items():
            found, known = self.ask("find_registration", id).last_delivery_at, record["last_delivery_at"]
            assert found is None or found <= known or self.was_set_back  # then an earlier one may be later
            record["last_delivery_at"] = found

    # What holds at any time

    def comparable(self, health: StoreHealth) -> StoreHealth:
        """Leave out what only some stores have, and an age over which a clock that was set back has no say."""
        age = None if self.was_set_back else health.oldest_age
        silent = tuple(sorted(health.silent))
        return evolve(health, log_bytes=None, problems=(), oldest_age=age, silent=silent)

    @invariant()
    def both_hold_the_same(self) -> None:
        """Registrations, deliveries and numbers are those of the model."""

        async def look(store: Store) -> list[Any]:
            states = (store.deliveries(state=state) for state in DeliveryState)
            registrations = (store.find_registration(name) for name in NAMES)
            return await asyncio.gather(store.health(), store.list_registrations(), *states, *registrations)

        health, listed, *others = self.runner.run(look(self.store))
        found, deliveries = others[-len(NAMES) :], [list(some) for some in others[: -len(NAMES)]]
        assert listed == [evolve(one, secret=None, candidates=()) for one in found if one]
        if self.was_set_back:  # is the last delivery the one with the later time, or the later one?
            for one in found:
                if one:
                    self.model.registrations[one.id]["last_delivery_at"] = one.last_delivery_at
        assert found == [self.model.find(name) for name in NAMES]
        assert deliveries == [self.model.stored(state) for state in DeliveryState]
        assert self.comparable(health) == self.comparable(self.model.health())


class SQLiteMachine(MemoryMachine):
    """The same with a store on disk, which loses its process now and then."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "store.db"
        self.box = BOXES[0]
        super().__init__()

    def make_store(self) -> Store:
        return SQLiteStore(self.path, clock=self.clock, secret_box=self.box)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)

    @rule(
        how=st.sampled_from(["closed", "abandoned", "killed", "power cut"]),
        tail=st.binary(max_size=64),
        box=st.sampled_from(BOXES),
    )
    def reopen(self, how: str, tail: bytes, box: FernetBox) -> None:
        """Go on with another store on the same file, or on a copy of the open files: what kill -9 leaves.

        A power cut takes the index, too, which is memory that processes share, and may leave half a page at the end of
        the log.
        """
        if how == "closed":
            self.runner.run(self.store.aclose())
        else:  # this one hangs while another takes over
            self.abandoned.append(self.store)
        if how in {"killed", "power cut"}:
            left = Path(tempfile.mkdtemp(dir=self.directory)) / self.path.name
            for suffix in ("", "-wal", "-shm") if how == "killed" else ("", "-wal"):
                if (there := self.path.with_name(self.path.name + suffix)).exists():
                    shutil.copy(there, left.with_name(left.name + suffix))
            if how == "power cut":
                with left.with_name(left.name + "-wal").open("ab") as log:
                    log.write(tail)
            self.path = left
        self.box = box
        self.store = self.make_store()
        if how != "closed":
            self.forget_the_last_delivery()


class LongMachine(SQLiteMachine):
    """The same for a minute."""


class PostgresMachine(MemoryMachine):
    """The same in PostgreSQL, in which other processes take over now and then."""

    url: ClassVar[str]

    def __init__(self) -> None:
        self.schema = f"model_{secrets.token_hex(8)}"
        self.box = BOXES[0]
        super().__init__()

    def make_store(self) -> Store:
        return PostgresStore(self.url, schema=self.schema, clock=self.clock, secret_box=self.box, connections=2)

    @rule(closed=st.booleans(), box=st.sampled_from(BOXES))
    def reopen(self, closed: bool, box: FernetBox) -> None:
        """Go on with another store; the one before is closed, or hangs while this one takes over."""
        if closed:
            self.runner.run(self.store.aclose())
        else:
            self.abandoned.append(self.store)
        self.box = box
        self.store = self.make_store()
        if not closed:
            self.forget_the_last_delivery()

    @rule(later=SECONDS, older_than=SECONDS, dead=st.booleans())
    def purge(self, later: int, older_than: int, dead: bool) -> None:
        """It keeps what was closed in the last minute, for which a put may be under way."""
        super().purge(later + 61 + (HOUR if self.was_set_back else 0), older_than, dead)


class LongPostgresMachine(PostgresMachine):
    """The same for minutes."""


@pytest.fixture(name="postgres_machines")
def _postgres_machines(postgres_url: str) -> None:
    """Where the machines keep their tables; each has a schema of its own."""
    PostgresMachine.url = postgres_url


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
TestForLong = pytest.mark.long(pytest.mark.timeout(300)(LongMachine.TestCase))
TestForLong.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestPostgres = pytest.mark.usefixtures("postgres_machines")(PostgresMachine.TestCase)
TestPostgres.settings = settings(max_examples=5, stateful_step_count=30, deadline=None)
TestPostgresForLong = pytest.mark.usefixtures("postgres_machines")(LongPostgresMachine.TestCase)
TestPostgresForLong = pytest.mark.long(pytest.mark.timeout(600)(TestPostgresForLong))
TestPostgresForLong.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
