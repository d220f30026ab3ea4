"""The store protocol once more, as plainly as can be: two lists, searched from end to end. What a store is held to."""

from collections.abc import Iterator

from attrs import define

from asana_webhooks.models import Secret
from asana_webhooks.store import (
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


@define(kw_only=True)
class Entry:
    id: str
    deadline: float
    state: RegistrationState = PENDING
    candidates: tuple[Secret, ...] = ()
    echoed: bool = False
    secret: Secret | None = None
    gid: str | None = None
    heartbeat: float | None = None


@define(kw_only=True)
class Item:
    id: int
    entry: Entry
    signature: str
    body: bytes
    candidate: str | None
    state: str
    """quarantined, open, done or dead."""
    received: float
    since: float = 0
    until: float = 0
    """Open ones: nobody can claim it in between."""
    is_leased: bool = False
    """It is a lease that lasts so long, and no wait for another attempt."""
    fence: int = 0
    attempts: int = 0
    error: str = ""


class PlainStore:
    def __init__(self) -> None:
        self.now = 0.0
        self.entries: list[Entry] = []
        self.items: list[Item] = []
        self.last_id = 0

    def _entry(self, id: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.id == id), None)

    def _state(self, entry: Entry) -> RegistrationState:
        overdue = entry.state is PENDING and entry.deadline <= self.now
        return CLOSED if overdue else entry.state

    def _quarantined(self, entry: Entry) -> list[Item]:
        return [item for item in self.items if item.entry is entry and item.state == "quarantined"]

    def _runs(self, item: Item) -> bool:
        return item.since <= self.now + SKEW and self.now < item.until

    # Registrations

    def open(self, id: str, ttl: float) -> bool:
        if self._entry(id):
            return False
        self.entries.append(Entry(id=id, deadline=self.now + ttl))
        return True

    def offer(self, id: str, secret: Secret) -> bool:
        entry = self._entry(id)
        if entry is None or self._state(entry) is not PENDING:
            return False
        if secret not in entry.candidates:
            if len(entry.candidates) == MAX_CANDIDATES:
                return False
            entry.candidates += (secret,)
        entry.echoed = True
        return True

    def confirm(self, id: str, gid: str, secret: Secret) -> bool:
        entry = self._entry(id)
        if entry is None:
            return False
        if entry.state is CONFIRMED:
            return (entry.gid, entry.secret) == (gid, secret)
        if self._state(entry) is CLOSED or secret not in entry.candidates:
            return False
        entry.state, entry.gid, entry.secret, entry.candidates = CONFIRMED, gid, secret, ()
        for item in self._quarantined(entry):
            if item.candidate == candidate_id(secret):
                item.state = "open"
            else:
                self.items.remove(item)
        return True

    def close(self, id: str) -> bool:
        entry = self._entry(id)
        if entry is None:
            return False
        entry.state, entry.secret, entry.candidates = CLOSED, None, ()
        for item in self._quarantined(entry):
            self.items.remove(item)
        return entry.echoed

    def sweep(self) -> list[Registration]:
        overdue = [entry for entry in self.entries if entry.state is not self._state(entry)]
        swept = [self._registration(entry, entry.state) for entry in overdue]
        for entry in overdue:
            self.close(entry.id)
        return swept

    def heartbeat(self, id: str) -> None:
        entry = self._entry(id)
        if entry and self._state(entry) is not CLOSED:
            entry.heartbeat = self.now

    def find(self, id: str) -> Registration | None:
        entry = self._entry(id)
        return None if entry is None else self._registration(entry, self._state(entry))

    def _registration(self, entry: Entry, state: RegistrationState) -> Registration:
        return Registration(
            id=entry.id,
            resource="1",
            state=state,
            deadline=entry.deadline,
            candidates=() if state is CLOSED else entry.candidates,
            echoed=entry.echoed,
            secret=entry.secret,
            webhook_gid=entry.gid,
            last_heartbeat_at=entry.heartbeat,
        )

    # Inbox

    def put(self, new: NewDelivery) -> str:
        entry = self._entry(new.registration)
        if entry is None or self._state(entry) is CLOSED:
            return "refused"
        if entry.state is PENDING and new.candidate not in [candidate_id(secret) for secret in entry.candidates]:
            return "refused"
        if entry.secret and new.candidate not in {None, candidate_id(entry.secret)}:
            return "refused"
        if any((item.entry, item.signature) == (entry, new.signature) for item in self.items):
            return "duplicate"
        self.last_id += 1
        self.items.append(
            Item(
                id=self.last_id,
                entry=entry,
                signature=new.signature,
                body=new.body,
                candidate=new.candidate,
                state="quarantined" if entry.state is PENDING else "open",
                received=self.now,
            )
        )
        return "stored"

    def claim(self, limit: int, lease: float, *, ordered: bool, halt: bool) -> list[Lease]:
        claimed = [item for item in self._claimable(ordered=ordered, halt=halt) if not self._runs(item)][:limit]
        for item in claimed:
            item.since, item.until, item.is_leased = self.now, self.now + lease, True
            item.fence += 1
            item.attempts += 1
        return [self._lease(item) for item in claimed]

    def _claimable(self, *, ordered: bool, halt: bool) -> Iterator[Item]:
        held_up: list[Entry] = []
        for item in self.items:
            if item.state == "open" and item.entry not in held_up:
                yield item
            if (ordered and item.state == "open") or (ordered and halt and item.state == "dead"):
                held_up.append(item.entry)

    def _lease(self, item: Item) -> Lease:
        return Lease(
            id=item.id,
            fence=item.fence,
            attempt=item.attempts,
            registration=item.entry.id,
            webhook_gid=item.entry.gid,
            resource="1",
            received_at=item.received,
            expires_at=item.until,
            body=item.body,
        )

    def held(self, lease: Lease) -> Item | None:
        """Return what a lease still holds."""
        for item in self.items:
            if item.state == "open" and item.is_leased and (item.id, item.fence) == (lease.id, lease.fence):
                return item if self._runs(item) else None
        return None

    def extend(self, lease: Lease, seconds: float) -> bool:
        if item := self.held(lease):
            item.since, item.until = self.now, self.now + seconds
        return item is not None

    def done(self, lease: Lease) -> bool:
        if item := self.held(lease):
            item.state = "done"
        return item is not None

    def fail(self, lease: Lease, error: str, retry_in: float | None) -> bool:
        if item := self.held(lease):
            item.error, item.is_leased = error, False
            if retry_in is None:
                item.state = "dead"
            else:
                item.since, item.until = self.now, self.now + retry_in
        return item is not None

    def release(self, lease: Lease) -> bool:
        if item := self.held(lease):
            item.is_leased, item.until = False, self.now
            item.attempts -= 1
        return item is not None

    def health(self) -> StoreHealth:
        unfinished = [item for item in self.items if item.state == "open"]
        leased = sum(item.is_leased and self._runs(item) for item in unfinished)
        return StoreHealth(
            waiting=len(unfinished) - leased,
            leased=leased,
            quarantined=sum(item.state == "quarantined" for item in self.items),
            dead=sum(item.state == "dead" for item in self.items),
            oldest_age=max(0.0, self.now - min(item.received for item in unfinished)) if unfinished else None,
            writable=True,
            heartbeats={entry.gid: entry.heartbeat for entry in self.entries if entry.gid and entry.state is CONFIRMED},
        )

    # Maintenance

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(
                id=item.id,
                registration=item.entry.id,
                webhook_gid=item.entry.gid,
                resource="1",
                received_at=item.received,
                attempts=item.attempts,
                error=item.error,
                body=item.body,
            )
            for item in self.items
            if item.state == "dead"
        ]

    def requeue(self, id: int) -> bool:
        for item in self.items:
            if (item.id, item.state) == (id, "dead"):
                item.state, item.attempts, item.is_leased, item.until = "open", 0, False, self.now
                return True
        return False

    def purge(self, older_than: float, *, dead: bool) -> int:
        states = {"done", "dead"} if dead else {"done"}
        before = self.now - older_than
        gone = [item for item in self.items if item.state in states and item.received < before]
        self.items = [item for item in self.items if item not in gone]
        used = [item.entry for item in self.items]
        self.entries = [
            entry
            for entry in self.entries
            if not (entry.state is CLOSED and entry.deadline < before and entry not in used)
        ]
        return len(gone)
