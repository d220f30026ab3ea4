"""The store protocol once more, as plainly as can be: dicts, searched from end to end. What every store is held to."""

from collections.abc import Iterator
from typing import Any

from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    MAX_CANDIDATES,
    DeadLetter,
    Lease,
    NewDelivery,
    Registration,
    RegistrationState,
    StoreHealth,
    candidate_id,
)

PENDING, CONFIRMED, CLOSED = RegistrationState
SKEW = 60

Record = dict[str, Any]


class Model:
    """A registration has the fields of `Registration`.

    A delivery has those that leases and dead letters share, and `signature`, `candidate`, `fence`, `attempts`, `error`;
    its `state` is quarantined, open, done or dead. An open one cannot be claimed between `since` and `until`: it
    `is_leased` so long, or it waits for another attempt.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.registrations: dict[str, Record] = {}
        self.deliveries: list[Record] = []
        self.last_id = 0

    def _state(self, record: Record) -> RegistrationState:
        is_overdue = record["state"] is PENDING and record["deadline"] <= self.now
        state: RegistrationState = CLOSED if is_overdue else record["state"]
        return state

    def _drop_quarantined(self, id: str) -> None:
        self.deliveries = [one for one in self.deliveries if (one["registration"], one["state"]) != (id, "quarantined")]

    # Registrations

    def open(self, id: str, ttl: float) -> bool:
        if id in self.registrations:
            return False
        record = {"candidates": (), "echoed": False, "secret": None, "webhook_gid": None, "last_heartbeat_at": None}
        self.registrations[id] = record | {"id": id, "resource": "1", "state": PENDING, "deadline": self.now + ttl}
        return True

    def add_candidate(self, id: str, secret: Secret) -> bool:
        record = self.registrations.get(id)
        if record is None or self._state(record) is not PENDING:
            return False
        if secret not in record["candidates"]:
            if len(record["candidates"]) == MAX_CANDIDATES:
                return False
            record["candidates"] += (secret,)
        record["echoed"] = True
        return True

    def confirm_registration(self, id: str, gid: str, secret: Secret) -> bool:
        record = self.registrations.get(id)
        if record is None:
            return False
        if record["state"] is CONFIRMED:
            return (record["webhook_gid"], record["secret"]) == (gid, secret)
        if self._state(record) is CLOSED or secret not in record["candidates"]:
            return False
        record |= {"state": CONFIRMED, "webhook_gid": gid, "secret": secret, "candidates": ()}
        for one in self.deliveries:
            if (one["registration"], one["candidate"]) == (id, candidate_id(secret)):
                one["state"] = "open"
        self._drop_quarantined(id)
        return True

    def close(self, id: str) -> bool:
        record = self.registrations.get(id)
        if record is None:
            return False
        record |= {"state": CLOSED, "secret": None, "candidates": ()}
        self._drop_quarantined(id)
        return bool(record["echoed"])

    def expire_registrations(self) -> list[Registration]:
        overdue = [record for record in self.registrations.values() if record["state"] is not self._state(record)]
        swept = [Registration(**record) for record in overdue]
        for record in overdue:
            self.close(record["id"])
        return swept

    def heartbeat(self, id: str) -> None:
        record = self.registrations.get(id)
        if record and self._state(record) is not CLOSED:
            record["last_heartbeat_at"] = self.now

    def find(self, id: str) -> Registration | None:
        record = self.registrations.get(id)
        if record is None:
            return None
        closed = {"state": CLOSED, "candidates": ()} if self._state(record) is CLOSED else {}
        return Registration(**record | closed)

    # Inbox

    def put(self, new: NewDelivery) -> str:
        record = self.registrations.get(new.registration)
        if record is None or self._state(record) is CLOSED:
            return "refused"
        is_pending = record["state"] is PENDING
        names = {candidate_id(secret) for secret in (*record["candidates"], record["secret"]) if secret}
        if new.candidate not in names and (is_pending or new.candidate is not None):
            return "refused"
        key = (new.registration, new.signature)
        if any((one["registration"], one["signature"]) == key for one in self.deliveries):
            return "duplicate"
        self.last_id += 1
        self.deliveries.append(
            {
                "id": self.last_id,
                "registration": new.registration,
                "signature": new.signature,
                "candidate": new.candidate,
                "body": new.body,
                "state": "quarantined" if is_pending else "open",
                "received_at": self.now,
                "since": 0,
                "until": 0,
                "is_leased": False,
                "fence": 0,
                "attempts": 0,
                "error": "",
            }
        )
        return "stored"

    def _runs(self, one: Record) -> bool:
        return bool(one["since"] <= self.now + SKEW and self.now < one["until"])

    def _details(self, one: Record) -> Record:
        record = self.registrations[one["registration"]]
        shared = {name: one[name] for name in ("id", "registration", "received_at", "body")}
        return shared | {"webhook_gid": record["webhook_gid"], "resource": "1"}

    def claim(self, limit: int, lease: float, *, ordered: bool, halt: bool) -> list[Lease]:
        claimed = [one for one in self._claimable(ordered=ordered, halt=halt) if not self._runs(one)][:limit]
        for one in claimed:
            one |= {"since": self.now, "until": self.now + lease, "is_leased": True}
            one["fence"] += 1
            one["attempts"] += 1
        return [
            Lease(**self._details(one), fence=one["fence"], attempt=one["attempts"], expires_at=one["until"])
            for one in claimed
        ]

    def _claimable(self, *, ordered: bool, halt: bool) -> Iterator[Record]:
        held_up: set[str] = set()
        for one in self.deliveries:
            if one["state"] == "open" and one["registration"] not in held_up:
                yield one
            if ordered and (one["state"] == "open" or (halt and one["state"] == "dead")):
                held_up.add(one["registration"])

    def _say(self, lease: Lease, **changes: Any) -> bool:
        """Change what a lease still holds."""
        for one in self.deliveries:
            is_held = one["state"] == "open" and one["is_leased"] and self._runs(one)
            if is_held and (one["id"], one["fence"]) == (lease.id, lease.fence):
                one.update(changes)
                return True
        return False

    def extend(self, lease: Lease, seconds: float) -> bool:
        return self._say(lease, since=self.now, until=self.now + seconds)

    def done(self, lease: Lease) -> bool:
        return self._say(lease, state="done")

    def fail(self, lease: Lease, error: str, retry_in: float | None) -> bool:
        if retry_in is None:
            return self._say(lease, error=error, is_leased=False, state="dead")
        return self._say(lease, error=error, is_leased=False, since=self.now, until=self.now + retry_in)

    def release(self, lease: Lease) -> bool:
        return self._say(lease, is_leased=False, until=self.now, attempts=lease.attempt - 1)

    def health(self) -> StoreHealth:
        states = [one["state"] for one in self.deliveries]
        unfinished = [one for one in self.deliveries if one["state"] == "open"]
        leased = sum(one["is_leased"] and self._runs(one) for one in unfinished)
        confirmed = [record for record in self.registrations.values() if record["state"] is CONFIRMED]
        return StoreHealth(
            waiting=len(unfinished) - leased,
            leased=leased,
            quarantined=states.count("quarantined"),
            dead=states.count("dead"),
            oldest_age=max(0.0, self.now - min(one["received_at"] for one in unfinished)) if unfinished else None,
            writable=True,
            heartbeats={record["webhook_gid"]: record["last_heartbeat_at"] for record in confirmed},
        )

    # Maintenance

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(**self._details(one), attempts=one["attempts"], error=one["error"])
            for one in self.deliveries
            if one["state"] == "dead"
        ]

    def requeue(self, id: int) -> bool:
        for one in self.deliveries:
            if (one["id"], one["state"]) == (id, "dead"):
                one |= {"state": "open", "attempts": 0, "is_leased": False, "until": self.now}
                return True
        return False

    def purge(self, older_than: float, *, dead: bool) -> int:
        states, before, count = ({"done", "dead"} if dead else {"done"}), self.now - older_than, len(self.deliveries)
        self.deliveries = [one for one in self.deliveries if one["state"] not in states or one["received_at"] >= before]
        used = {one["registration"] for one in self.deliveries}
        for id, record in list(self.registrations.items()):
            if record["state"] is CLOSED and record["deadline"] < before and id not in used:
                del self.registrations[id]
        return count - len(self.deliveries)
