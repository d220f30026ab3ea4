"""Every store against a model, by random sequences of calls, crashes among them."""

import asyncio
import base64
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asana_webhooks.models import Secret
from asana_webhooks.store import MemoryStore, SQLiteStore, Store
from asana_webhooks.store.base import Lease, NewDelivery, StoreHealth, candidate_id
from asana_webhooks.store.secret_box import FernetBox
from tests.helpers.stores import Clock
from tests.store.store_model import Model

NAMES = ["r1", "r2", "r3"]
IDS = st.sampled_from(NAMES)
GOOD, FORGED, *OTHERS = (Secret(letter * 32) for letter in "abcdef")
SECRETS = st.sampled_from([GOOD, FORGED, *OTHERS])
NUMBERS = st.integers(0, 12)
SECONDS = st.sampled_from([0, 1, 5, 30])
ANSWERS = st.sampled_from(["done", "retry", "bury", "release", "extend"])
THEN = st.lists(ANSWERS | st.just("nothing yet"), max_size=4)
HOUR = 3600
KEYS = {letter: Secret(base64.urlsafe_b64encode(letter.encode() * 32).decode()) for letter in "kl"}
BOXES = [FernetBox(KEYS), FernetBox(dict(reversed(KEYS.items())))]
"""A box, and the one that takes over when its key has been replaced."""


class MemoryMachine(RuleBasedStateMachine):
    """Calls the model and the stores alike, and compares every answer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.clock = Clock(0)
        self.was_set_back = False
        self.runner = asyncio.Runner()
        self.stores: list[Store] = [MemoryStore(clock=self.clock)]
        self.abandoned: list[Store] = []
        self.leases: list[Lease] = []

    def teardown(self) -> None:
        for store in [*self.stores, *self.abandoned]:
            self.runner.run(store.aclose())
        self.runner.close()

    def ask(self, method: str, *args: object, **options: object) -> Any:
        """Call a method of every store; their answers must agree."""

        async def asked(store: Store) -> Any:
            return await getattr(store, method)(*args, **options)

        first, *others = [self.runner.run(asked(store)) for store in self.stores]
        assert others == [first] * len(others)
        return first

    # Registrations

    @initialize(number=st.integers(0, 4), others=st.integers(0, 4))
    def establish(self, number: int, others: int) -> None:
        """Begin with what chance would seldom bring about: deliveries from before a 201 and after it."""
        for id, count in (("r1", number), ("r2", others)):
            self.open(id, 5)
            for secret in (GOOD, FORGED):
                self.add_candidate(id, secret)
                for step in range(count):
                    self.put(id, step if secret == GOOD else 6 + step, secret)
        self.confirm_registration("r1", GOOD, "1")
        for step in range(3):
            self.put("r1", 10 + step, None)

    def open(self, id: str, ttl: int) -> None:
        if self.model.open(id, ttl):
            self.ask("open", id, resource="1", ttl=ttl)

    def add_candidate(self, id: str, secret: Secret) -> None:
        assert self.ask("offer", id, secret) == self.model.add_candidate(id, secret)

    def confirm_registration(self, id: str, secret: Secret, gid: str) -> None:
        gid = id + gid
        assert self.ask("confirm", id, webhook_gid=gid, secret=secret) == self.model.confirm_registration(
            id, gid, secret
        )

    @rule(id=IDS, ttl=SECONDS, offered=st.lists(SECRETS, max_size=5))
    def begin(self, id: str, ttl: int, offered: list[Secret]) -> None:
        self.open(id, ttl)
        for secret in offered:
            self.add_candidate(id, secret)

    @rule(id=IDS, secret=SECRETS, gid=st.sampled_from(["1", "1", "1", "2"]))
    def decide(self, id: str, secret: Secret, gid: str) -> None:
        self.confirm_registration(id, secret, gid)

    @rule(id=IDS, how=st.sampled_from(["closed", "swept", "alive"]))
    def end(self, id: str, how: str) -> None:
        if how == "closed":
            assert self.ask("close", id) == self.model.close(id)
        elif how == "swept":
            assert self.ask("sweep") == self.model.expire_registrations()
        else:
            self.ask("heartbeat", id)
            self.model.record_heartbeat(id)

    # Inbox

    @rule(id=IDS, number=NUMBERS, secret=st.none() | SECRETS)
    def put(self, id: str, number: int, secret: Secret | None) -> None:
        new = NewDelivery(
            registration=id,
            signature=f"{number:064x}",
            body=b"%d" % number,
            candidate=None if secret is None else candidate_id(secret),
        )
        assert self.ask("put", new) == self.model.put(new)

    def claim(self, limit: int, lease: int, order: str, then: list[str]) -> None:
        """Lease some, and say of each at once how it went, or nothing yet."""
        options = {"ordered": order != "any", "halt": order == "halt"}
        claimed = self.ask("claim", limit, lease=lease, **options)
        assert claimed == self.model.claim(limit, lease, **options)
        self.leases += claimed
        for held, what in zip(claimed, then, strict=False):
            self.say(held, what, 5)

    @rule(limit=st.integers(0, 4), lease=SECONDS, then=THEN)
    def claim_any(self, limit: int, lease: int, then: list[str]) -> None:
        self.claim(limit, lease, "any", then)

    @rule(limit=st.integers(1, 3), lease=SECONDS, order=st.sampled_from(["skip", "halt"]), then=THEN)
    def claim_in_order(self, limit: int, lease: int, order: str, then: list[str]) -> None:
        self.claim(limit, lease, order, then)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), what=ANSWERS, seconds=SECONDS)
    def say_later(self, data: st.DataObject, what: str, seconds: int) -> None:
        """Any lease, more often a late one: most of the old are lost."""
        held = data.draw(st.sampled_from(self.leases[-3:]) | st.sampled_from(self.leases))
        self.say(held, what, seconds)

    def say(self, lease: Lease, what: str, seconds: int) -> None:
        if what in {"done", "release"}:
            assert self.ask(what, lease) == getattr(self.model, what)(lease)
        elif what == "extend":
            assert self.ask("extend", lease, seconds=seconds) == self.model.extend(lease, seconds)
        elif what in {"retry", "bury"}:
            retry_in = seconds if what == "retry" else None
            error = f"{what} {seconds}"
            assert self.ask("fail", lease, error=error, retry_in=retry_in) == self.model.fail(lease, error, retry_in)

    # Maintenance

    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        dead = [letter.id for letter in self.model.deliveries(state="dead")]
        id = data.draw(st.sampled_from([*dead, *dead, 0, 1, 2]))
        assert self.ask("requeue", id) == self.model.requeue(id)

    @rule(later=SECONDS, older_than=SECONDS, dead=st.booleans())
    def purge(self, later: int, older_than: int, dead: bool) -> None:
        self.tick(later)
        assert self.ask("purge", older_than=older_than, dead=dead) == self.model.purge(older_than, dead=dead)

    # What happens to it

    @rule(seconds=SECONDS)
    def tick(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model.now += seconds

    @precondition(lambda self: not self.was_set_back)
    @rule()
    def set_the_clock_back(self) -> None:
        """Once at most: the time until then must not come again."""
        self.was_set_back = True
        self.clock.advance(-HOUR)
        self.model.now -= HOUR

    # What holds at any time

    def comparable(self, health: StoreHealth) -> StoreHealth:
        """Leave out what only some stores have, and an age over which a clock that was set back has no say."""
        age = None if self.was_set_back else health.oldest_age
        return evolve(health, log_bytes=None, problems=(), oldest_age=age)

    @invariant()
    def all_hold_the_same(self) -> None:
        """Registrations, dead letters and numbers are those of the model."""

        async def look(store: Store) -> list[Any]:
            found = [await store.find_registration(name) for name in NAMES]
            return [await store.health(), await store.deliveries(state="dead"), *found]

        expected = [self.model.deliveries(state="dead"), *map(self.model.find, NAMES)]
        for store in self.stores:
            health, *others = self.runner.run(look(store))
            assert others == expected
            assert self.comparable(health) == self.comparable(self.model.health())


class SQLiteMachine(MemoryMachine):
    """The same with a store on disk beside, which loses its process now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "store.db"
        self.stores.append(SQLiteStore(self.path, clock=self.clock, secret_box=BOXES[0]))

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
            self.runner.run(self.stores.pop().aclose())
        else:  # this one hangs while another takes over
            self.abandoned.append(self.stores.pop())
        if how in {"killed", "power cut"}:
            left = Path(tempfile.mkdtemp(dir=self.directory)) / self.path.name
            for suffix in ("", "-wal", "-shm") if how == "killed" else ("", "-wal"):
                if (there := self.path.with_name(self.path.name + suffix)).exists():
                    shutil.copy(there, left.with_name(left.name + suffix))
            if how == "power cut":
                with left.with_name(left.name + "-wal").open("ab") as log:
                    log.write(tail)
            self.path = left
        self.stores.append(SQLiteStore(self.path, clock=self.clock, secret_box=box))


class LongMachine(SQLiteMachine):
    """The same for a minute."""


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
TestForLong = pytest.mark.long(pytest.mark.timeout(300)(LongMachine.TestCase))
TestForLong.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
