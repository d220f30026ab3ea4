"""The store protocol once more, as plainly as can be: dicts, searched from end to end. What every store is held to."""

from collections.abc import Iterable, Sequence
from typing import Any

from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    MAX_CANDIDATES,
    DeliveryState,
    Lease,
    NewDelivery,
    Registration,
    RegistrationState,
    StoredDelivery,
    StoreHealth,
    candidate_id,
)
from asana_webhooks.store.rules import event_time

PENDING, CONFIRMED, CLOSED = RegistrationState
WAITING, DELAYED, LEASED = DeliveryState.WAITING, DeliveryState.DELAYED, DeliveryState.LEASED
QUARANTINED, DEAD = DeliveryState.QUARANTINED, DeliveryState.DEAD
SKEW = 60
SILENT = 10 * 3600

Record = dict[str, Any]


class MisuseError(Exception):
    """The call is a mistake of the caller."""


class Model:
    """A registration has the fields of `Registration`, and `born`, which tells it from earlier ones with its id.

    A delivery has those that leases and stored deliveries share, and `candidate`, `fence`, `attempts`, `unanswered`,
    `error`. Its `state` may be leased or delayed although that has ended: see `state_of`.
    """

    def __init__(self, now: float) -> None:
        self.now = now
        self.registrations: dict[str, Record] = {}
        self.deliveries: list[Record] = []
        self.keys: dict[tuple[int, str], tuple[float, float]] = {}
        """When each known delivery came, and when its first event did."""
        self.fences: set[tuple[int, int]] = set()
        self.last_id = 0
        self.births = 0

    # Registrations

    def effective(self, record: Record) -> RegistrationState:
        is_overdue = record["state"] is PENDING and record["deadline"] <= self.now
        state: RegistrationState = CLOSED if is_overdue else record["state"]
        return state

    def add(self, id: str, label: str, replaces: str | None, **given: Any) -> bool:
        live = [
            one["id"] for one in self.registrations.values() if one["label"] == label and self.effective(one) != CLOSED
        ]
        if live != ([] if replaces is None else [replaces]):
            return False
        self.births += 1
        record = {"candidates": (), "echoed": False, "secret": None, "webhook_gid": None, "retire_after": None}
        record |= {"id": id, "label": label, "replaces": replaces, "born": self.births, "opened_at": self.now}
        record |= {"last_heartbeat_at": None, "last_delivery_at": None, "resource": "1", "public_url": "https://a"}
        self.registrations[id] = record | given
        return True

    def open(self, id: str, label: str, ttl: float, replaces: str | None) -> bool:
        if id in self.registrations:
            raise MisuseError
        return self.add(id, label, replaces, state=PENDING, deadline=self.now + ttl)

    def adopt(self, id: str, label: str, gid: str, secret: Secret) -> bool:
        given = {"state": CONFIRMED, "webhook_gid": gid, "secret": secret}
        if known := self.registrations.get(id):
            if known | given | {"label": label} != known:
                raise MisuseError
            return True
        return self.add(id, label, None, deadline=self.now, echoed=True, **given)

    def add_candidate(self, id: str, secret: Secret) -> bool:
        record = self.registrations.get(id)
        if record is None or self.effective(record) is not PENDING:
            return False
        if secret not in record["candidates"]:
            if len(record["candidates"]) == MAX_CANDIDATES:
                return False
            record["candidates"] += (secret,)
        record["echoed"] = True
        return True

    def confirm(self, id: str, gid: str, secret: Secret, heartbeat_at: float | None) -> bool:
        record = self.registrations.get(id)
        if record is None:
            return False
        if record["state"] is CONFIRMED:
            return (record["webhook_gid"], record["secret"]) == (gid, secret)
        if self.effective(record) is CLOSED or secret not in record["candidates"]:
            return False
        record |= {"state": CONFIRMED, "webhook_gid": gid, "secret": secret, "candidates": ()}
        times = [at for at in (record["last_heartbeat_at"], heartbeat_at) if at is not None]
        record["last_heartbeat_at"] = max(times, default=None)
        for one in self.deliveries:
            if (one["registration"], one["candidate"]) == (id, candidate_id(secret)):
                one["state"] = WAITING
        self.drop_quarantined(id)
        return True

    def close(self, id: str) -> bool:
        record = self.registrations.get(id)
        if record is None:
            return False
        record |= {"state": CLOSED, "secret": None, "candidates": ()}
        self.drop_quarantined(id)
        return bool(record["echoed"])

    def drop_quarantined(self, id: str) -> None:
        self.deliveries = [one for one in self.deliveries if (one["registration"], one["state"]) != (id, QUARANTINED)]

    def expire(self) -> list[Registration]:
        overdue = [record for record in self.registrations.values() if record["state"] is not self.effective(record)]
        expired = [self.as_written(record) for record in overdue]
        for record in overdue:
            self.close(record["id"])
        return expired

    def record_heartbeat(self, id: str) -> None:
        record = self.registrations.get(id)
        if record and self.effective(record) is not CLOSED:
            record["last_heartbeat_at"] = self.now

    def retire(self, id: str, after: float) -> bool:
        record = self.registrations.get(id)
        if record is None or record["state"] is not CONFIRMED:
            return False
        record["retire_after"] = self.now + after
        return True

    def as_written(self, record: Record) -> Registration:
        return Registration(**{name: value for name, value in record.items() if name != "born"})

    def find(self, id: str) -> Registration | None:
        record = self.registrations.get(id)
        if record is None:
            return None
        return self.as_written(
            record | ({"state": CLOSED, "candidates": ()} if self.effective(record) is CLOSED else {})
        )

    # Inbox

    def put(self, new: NewDelivery) -> str:
        record = self.registrations.get(new.registration)
        if record is None or self.effective(record) is CLOSED:
            return "refused"
        is_pending = record["state"] is PENDING
        names = {candidate_id(secret) for secret in (*record["candidates"], record["secret"]) if secret}
        if new.candidate not in names and (is_pending or new.candidate is not None):
            return "refused"
        key = (record["born"], new.signature)
        if key in self.keys:
            return "duplicate"
        self.keys[key] = (self.now, event_time(new.body) / 1000)
        record["last_delivery_at"] = self.now // 60 * 60
        self.last_id += 1
        delivery = {"id": self.last_id, "registration": new.registration, "received_at": self.now, "body": new.body}
        delivery |= {
            "state": QUARANTINED if is_pending else WAITING,
            "candidate": new.candidate,
            "since": 0,
            "until": 0,
        }
        delivery |= {"fence": None, "attempts": 0, "unanswered": 0, "error": "", "done": ()}
        self.deliveries.append(delivery)
        return "stored"

    def state_of(self, one: Record) -> DeliveryState:
        runs = one["since"] <= self.now + SKEW and self.now < one["until"]
        state: DeliveryState = WAITING if one["state"] in {LEASED, DELAYED} and not runs else one["state"]
        return state

    def details(self, one: Record) -> Record:
        record = self.registrations[one["registration"]]
        shared = {name: one[name] for name in ("id", "registration", "received_at", "body", "done")}
        return shared | {name: record[name] for name in ("webhook_gid", "resource", "label")}

    def claimable(self, *, ordered: bool, halt: bool) -> dict[str, list[Record]]:
        """Return what may be claimed of each registration, oldest first."""
        found: dict[str, list[Record]] = {}
        leased = {one["registration"] for one in self.deliveries if self.state_of(one) is LEASED}
        blocked = leased if ordered else set()
        for one in self.deliveries:
            if self.state_of(one) is WAITING and one["registration"] not in blocked:
                found.setdefault(one["registration"], []).append(one)
            if ordered and (halt or one["state"] is not DEAD):
                blocked.add(one["registration"])
        return found

    def claim(self, claimed: Sequence[Lease], limit: int, lease: float, *, ordered: bool, halt: bool) -> None:
        """Check that a store was right to choose these, and do the same."""
        queues = self.claimable(ordered=ordered, halt=halt)
        every = [one for queue in queues.values() for one in queue]
        must_be_alone = {one["id"] for one in every if one["unanswered"] >= 2}
        if any(given.id in must_be_alone for given in claimed):
            assert len(claimed) == 1, "what must run alone has company"
        elif must_be_alone and limit > 0:
            assert 0 < len(claimed) <= limit, "nothing is claimed"
        else:
            assert len(claimed) == min(max(limit, 0), len(every)), "how many are claimed"
        for registration, queue in queues.items():
            ids = [given.id for given in claimed if given.registration == registration]
            assert ids == [one["id"] for one in queue[: len(ids)]], "not the oldest of a registration"
        by_id = {one["id"]: one for one in every}
        for given in claimed:
            one = by_id[given.id]
            alone = one["unanswered"] >= 2
            assert (given.id, given.fence) not in self.fences, "the fence is an old one"
            self.fences.add((given.id, given.fence))
            one |= {"state": LEASED, "since": self.now, "until": self.now + lease, "fence": given.fence}
            one["attempts"] += 1
            one["unanswered"] += 1
            rest = {"fence": given.fence, "attempt": one["attempts"], "expires_at": one["until"], "alone": alone}
            assert given == Lease(**self.details(one), **rest), "what a lease says"

    def held(self, lease: Lease) -> Record | None:
        for one in self.deliveries:
            if (one["id"], one["fence"]) == (lease.id, lease.fence):
                return one
        return None

    def extend(self, lease: Lease, seconds: float) -> bool:
        if one := self.held(lease):
            one |= {"since": self.now, "until": self.now + seconds}
        return one is not None

    def ack(self, lease: Lease) -> bool:
        if one := self.held(lease):
            self.deliveries.remove(one)
        return one is not None

    def fail(self, lease: Lease, error: str, retry_in: float | None, done: Iterable[int]) -> bool:
        if one := self.held(lease):
            one |= {"fence": None, "unanswered": 0, "error": error, "done": tuple(sorted({*one["done"], *done}))}
            one |= {
                "state": DEAD if retry_in is None else DELAYED,
                "since": self.now,
                "until": self.now + (retry_in or 0),
            }
        return one is not None

    def release(self, lease: Lease) -> bool:
        if one := self.held(lease):
            one |= {"fence": None, "state": WAITING}
            one["attempts"] -= 1
            one["unanswered"] -= 1
        return one is not None

    def health(self) -> StoreHealth:
        states = [self.state_of(one) for one in self.deliveries]
        unfinished = [one["received_at"] for one in self.deliveries if one["state"] in {WAITING, DELAYED, LEASED}]
        confirmed = [record for record in self.registrations.values() if record["state"] is CONFIRMED]
        times = ("opened_at", "last_heartbeat_at", "last_delivery_at")
        signs = [(max(one[name] or 0 for name in times), one["webhook_gid"]) for one in confirmed]
        return StoreHealth(
            waiting=states.count(WAITING) + states.count(DELAYED),
            leased=states.count(LEASED),
            quarantined=states.count(QUARANTINED),
            dead=states.count(DEAD),
            oldest_age=max(0.0, self.now - min(unfinished)) if unfinished else None,
            writable=True,
            webhooks=len(confirmed),
            silent=tuple(gid for at, gid in sorted(signs) if at < self.now - SILENT),
        )

    # Maintenance

    def stored(self, state: DeliveryState) -> list[StoredDelivery]:
        found = [one for one in self.deliveries if self.state_of(one) is state]
        return [
            StoredDelivery(
                **self.details(one),
                state=state,
                due_at=one["until"] if state in {LEASED, DELAYED} else None,
                attempts=one["attempts"],
                error=one["error"],
            )
            for one in found
        ]

    def requeue(self, id: int) -> bool:
        for one in self.deliveries:
            if (one["id"], one["state"]) == (id, DEAD):
                one |= {"state": WAITING, "attempts": 0}
                return True
        return False

    def discard(self, id: int) -> bool:
        for one in self.deliveries:
            if one["id"] == id and self.state_of(one) is not LEASED:
                self.deliveries.remove(one)
                return True
        return False

    def purge(self, older_than: float, *, dead: bool) -> int:
        before = self.now - older_than
        count = len(self.keys) + len(self.deliveries)
        self.keys = {key: times for key, times in self.keys.items() if max(times) >= before}
        self.deliveries = [
            one for one in self.deliveries if not dead or one["state"] is not DEAD or one["received_at"] >= before
        ]
        used = {one["registration"] for one in self.deliveries}
        for id, record in list(self.registrations.items()):
            if record["state"] is CLOSED and record["deadline"] < before and id not in used:
                del self.registrations[id]
        return count - len(self.keys) - len(self.deliveries)
