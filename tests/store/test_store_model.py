"""Both stores against a small model, by random sequences of calls."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asana_webhooks.models import Secret
from asana_webhooks.store import Lease, MemoryStore, NewDelivery, RegistrationState, SQLiteStore, candidate_id
from asana_webhooks.testing.conformance import SettableClock

IDS = st.sampled_from(["r1", "r2", "r3"])
SECRETS = st.sampled_from([Secret(letter * 32) for letter in "abcdef"])
NUMBERS = st.integers(0, 12)
SECONDS = st.sampled_from([0, 1, 5, 30])


def name_of(secret: Secret | None) -> str | None:
    return None if secret is None else candidate_id(secret)


class Model:
    """The protocol once more, as plainly as can be: lists of dictionaries, searched from end to end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registrations: dict[str, dict[str, Any]] = {}
        self.deliveries: list[dict[str, Any]] = []
        self.put_so_far = 0

    def open(self, id: str, ttl: float) -> bool:
        if id in self.registrations:
            return False
        self.registrations[id] = {"state": "pending", "deadline": self.now + ttl, "offered": [], "secret": None}
        return True

    def offer(self, id: str, secret: Secret) -> bool:
        one = self.registrations.get(id)
        if not one or one["state"] != "pending" or self.now >= one["deadline"]:
            return False
        if secret not in one["offered"]:
            if len(one["offered"]) == 4:
                return False
            one["offered"].append(secret)
        return True

    def state_of(self, id: str) -> str:
        one = self.registrations[id]
        overdue = one["state"] == "pending" and one["deadline"] <= self.now
        return "closed" if overdue else str(one["state"])

    def confirm(self, id: str, secret: Secret) -> bool:
        one = self.registrations.get(id)
        if not one or self.state_of(id) == "closed":
            return False
        if one["state"] == "confirmed":
            return bool(one["secret"] == secret)
        if secret not in one["offered"]:
            return False
        one.update(state="confirmed", secret=secret)
        self.leave_quarantine(id, candidate_id(secret))
        return True

    def close(self, id: str) -> bool:
        one = self.registrations.get(id)
        if not one:
            return False
        one["state"] = "closed"
        self.leave_quarantine(id, None)
        return bool(one["offered"])

    def leave_quarantine(self, id: str, released: str | None) -> None:
        for one in [one for one in self.deliveries if one["registration"] == id and one["state"] == "quarantined"]:
            if one["candidate"] == released:
                one["state"] = "open"
            else:
                self.deliveries.remove(one)

    def sweep(self) -> list[str]:
        overdue = [
            name
            for name, one in self.registrations.items()
            if one["state"] == "pending" and one["deadline"] <= self.now
        ]
        for name in overdue:
            self.close(name)
        return overdue

    def put(self, id: str, number: int, secret: Secret | None) -> str:
        one = self.registrations.get(id)
        if not one or self.state_of(id) == "closed":
            return "refused"
        if one["state"] == "pending" and secret not in one["offered"]:
            return "refused"
        if one["state"] == "confirmed" and secret not in {None, one["secret"]}:
            return "refused"
        if any(old["registration"] == id and old["number"] == number for old in self.deliveries):
            return "duplicate"
        self.put_so_far += 1
        self.deliveries.append(
            {
                "serial": self.put_so_far,
                "registration": id,
                "number": number,
                "candidate": name_of(secret),
                "state": "quarantined" if one["state"] == "pending" else "open",
                "due": self.now,
                "leases": 0,
                "holder": None,
                "attempts": 0,
                "received": self.now,
            }
        )
        return "stored"

    def claim(self, limit: int, lease: float, *, ordered: bool) -> list[dict[str, Any]]:
        claimed: list[dict[str, Any]] = []
        blocked: set[str] = set()
        for one in self.deliveries:
            if one["state"] != "open":
                continue
            if len(claimed) < limit and one["due"] <= self.now and one["registration"] not in blocked:
                number = one["leases"] + 1
                one.update(due=self.now + lease, leases=number, holder=number, attempts=one["attempts"] + 1)
                claimed.append(one)
            if ordered:
                blocked.add(one["registration"])
        return claimed

    def held(self, serial: int, holder: int) -> dict[str, Any] | None:
        for one in self.deliveries:
            if (one["serial"], one["holder"], one["state"]) == (serial, holder, "open") and one["due"] > self.now:
                return one
        return None


@settings(max_examples=15, stateful_step_count=40, deadline=None)
class StoreMachine(RuleBasedStateMachine):
    """Calls the model and both stores alike, and compares every answer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.clock = SettableClock(0)
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.stores = (
            MemoryStore(clock=self.clock),
            SQLiteStore(Path(self.directory.name) / "store.db", clock=self.clock),
        )
        self.leases: list[tuple[tuple[int, int], list[Lease]]] = []

    def teardown(self) -> None:
        for store in self.stores:
            self.runner.run(store.aclose())
        self.runner.close()
        self.directory.cleanup()

    def ask(self, method: str, *args: object, **options: object) -> Any:
        """Call a method of both stores; their answers must agree."""
        answers = [self.runner.run(getattr(store, method)(*args, **options)) for store in self.stores]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(id=IDS, ttl=SECONDS)
    def open(self, id: str, ttl: int) -> None:
        if self.model.open(id, ttl):
            self.ask("open", id, resource="1", ttl=ttl)

    @rule(id=IDS, secret=SECRETS)
    def offer(self, id: str, secret: Secret) -> None:
        assert self.ask("offer", id, secret) == self.model.offer(id, secret)

    @rule(id=IDS, secret=SECRETS)
    def confirm(self, id: str, secret: Secret) -> None:
        assert self.ask("confirm", id, webhook_gid="2", secret=secret) == self.model.confirm(id, secret)

    @rule(id=IDS)
    def close(self, id: str) -> None:
        assert self.ask("close", id) == self.model.close(id)

    @rule()
    def sweep(self) -> None:
        swept = self.ask("sweep")
        assert {one.state for one in swept} <= {RegistrationState.PENDING}
        assert [one.id for one in swept] == self.model.sweep()

    @rule(id=IDS, number=NUMBERS, secret=st.none() | SECRETS)
    def put(self, id: str, number: int, secret: Secret | None) -> None:
        new = NewDelivery(
            registration=id,
            signature=f"{number:064x}",
            body=b"%d" % number,
            candidate=name_of(secret),
        )
        assert self.ask("put", new) == self.model.put(id, number, secret)

    @rule(limit=st.integers(0, 4), lease=SECONDS, ordered=st.booleans())
    def claim(self, limit: int, lease: int, ordered: bool) -> None:
        expected = self.model.claim(limit, lease, ordered=ordered)
        claimed = [self.runner.run(store.claim(limit, lease=lease, ordered=ordered)) for store in self.stores]
        known = [(one["registration"], one["number"], one["attempts"]) for one in expected]
        for leases in claimed:
            assert [(one.registration, int(one.body), one.attempt) for one in leases] == known
        for one, *leases in zip(expected, *claimed, strict=True):
            self.leases.append(((one["serial"], one["holder"]), leases))

    @rule(seconds=SECONDS)
    def tick(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model.now += seconds

    def holder(self, data: st.DataObject, method: str, **options: object) -> dict[str, Any] | None:
        """Let some lease, perhaps an old one, call a method; return what it still holds in the model."""
        key, leases = data.draw(st.sampled_from(self.leases))
        answers = [
            self.runner.run(getattr(store, method)(lease, **options))
            for store, lease in zip(self.stores, leases, strict=True)
        ]
        one = self.model.held(*key)
        assert answers == [one is not None] * 2
        return one

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        if one := self.holder(data, "done"):
            one["state"] = "done"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), retry_in=st.none() | SECONDS)
    def fail(self, data: st.DataObject, retry_in: int | None) -> None:
        if one := self.holder(data, "fail", error="x", retry_in=retry_in):
            one["holder"] = None
            if retry_in is None:
                one["state"] = "dead"
            else:
                one["due"] = self.model.now + retry_in

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), seconds=SECONDS)
    def extend(self, data: st.DataObject, seconds: int) -> None:
        if one := self.holder(data, "extend", seconds=seconds):
            one["due"] = self.model.now + seconds

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if one := self.holder(data, "release"):
            one.update(holder=None, due=self.model.now, attempts=one["attempts"] - 1)

    @rule()
    def requeue(self) -> None:
        for letter in self.ask("dead_letters"):
            assert self.ask("requeue", letter.id) is True
        for one in self.model.deliveries:
            if one["state"] == "dead":
                one.update(state="open", due=self.model.now, attempts=0, holder=None)

    @rule(older_than=SECONDS, dead=st.booleans())
    def purge(self, older_than: int, dead: bool) -> None:
        states = {"done", "dead"} if dead else {"done"}
        gone = [
            one
            for one in self.model.deliveries
            if one["state"] in states and one["received"] < self.model.now - older_than
        ]
        for one in gone:
            self.model.deliveries.remove(one)
        assert self.ask("purge", older_than=older_than, dead=dead) == len(gone)

    @rule(id=IDS)
    def find(self, id: str) -> None:
        found, expected = self.ask("find", id), self.model.registrations.get(id)
        if found is None or expected is None:
            assert found is expected is None
        else:
            assert found.state.value == self.model.state_of(id)
            pending = found.state is RegistrationState.PENDING
            assert found.candidates == (tuple(expected["offered"]) if pending else ())

    @invariant()
    def the_numbers_agree(self) -> None:
        """What health says is what the model holds."""
        health, now = self.ask("health"), self.model.now
        open_ones = [one for one in self.model.deliveries if one["state"] == "open"]
        leased = sum(one["holder"] is not None and one["due"] > now for one in open_ones)
        assert (health.waiting, health.leased) == (len(open_ones) - leased, leased)
        assert health.dead == sum(one["state"] == "dead" for one in self.model.deliveries)
        assert health.oldest_age == max((now - one["received"] for one in open_ones), default=None)


TestStores = StoreMachine.TestCase
