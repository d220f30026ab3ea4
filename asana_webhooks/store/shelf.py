"""What a `MemoryStore` holds: registrations, deliveries, and how much of them."""

from collections.abc import Iterator

from attrs import define, field

from asana_webhooks.errors import StoreFullError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import DeadLetter, Lease, NewDelivery, Registration, RegistrationState
from asana_webhooks.store.rules import NO_ROOM, UNFINISHED, DeliveryState, runs, standing

__all__ = ["Entry", "Kept", "Shelf"]

_NO_BYTES = "no delivery more has room: let the workers catch up, or raise max_bytes"


@define(eq=False, kw_only=True)
class Entry:
    """A registration as it is kept."""

    id: str
    resource: str
    deadline: float
    state: RegistrationState = RegistrationState.PENDING
    candidates: dict[str, Secret] = field(factory=dict, repr=False)
    """By `candidate_id`, oldest first."""
    echoed: bool = False
    secret: Secret | None = None
    webhook_gid: str | None = None
    last_heartbeat_at: float | None = None

    def standing(self, now: float) -> RegistrationState:
        """Return the state it counts as."""
        return standing(self.state, deadline=self.deadline, now=now)

    def recorded(self) -> Registration:
        """Return it as it is kept, whatever the time."""
        return Registration(
            id=self.id,
            resource=self.resource,
            state=self.state,
            deadline=self.deadline,
            candidates=tuple(self.candidates.values()),
            echoed=self.echoed,
            secret=self.secret,
            webhook_gid=self.webhook_gid,
            last_heartbeat_at=self.last_heartbeat_at,
        )


@define(eq=False, kw_only=True)
class Kept:
    """A delivery as it is kept, until it is done."""

    id: int
    entry: Entry
    signature: str = field(repr=False)
    body: bytes = field(repr=False)
    candidate: str | None
    state: DeliveryState
    received_at: float
    since: float = 0.0
    """When its lease or delay began."""
    due_at: float = 0.0
    """When a delayed or leased delivery is waiting again."""
    fence: int = 0
    attempts: int = 0
    error: str = ""

    def move(self, state: DeliveryState, since: float = 0.0, due_at: float = 0.0) -> None:
        """Go over to *state*, there to stay from *since* until *due_at*."""
        self.state, self.since, self.due_at = state, since, due_at

    def runs(self, now: float) -> bool:
        """Tell whether it is held or delayed now."""
        return self.state is not DeliveryState.WAITING and runs(since=self.since, until=self.due_at, now=now)

    def lease(self, now: float, expires_at: float) -> Lease:
        """Give it to a worker."""
        self.move(DeliveryState.LEASED, now, expires_at)
        self.fence += 1
        self.attempts += 1
        return Lease(
            id=self.id,
            fence=self.fence,
            attempt=self.attempts,
            registration=self.entry.id,
            webhook_gid=self.entry.webhook_gid,
            resource=self.entry.resource,
            received_at=self.received_at,
            expires_at=expires_at,
            body=self.body,
        )

    def dead_letter(self) -> DeadLetter:
        """Return it as callers see it once it is dead."""
        return DeadLetter(
            id=self.id,
            registration=self.entry.id,
            webhook_gid=self.entry.webhook_gid,
            resource=self.entry.resource,
            received_at=self.received_at,
            attempts=self.attempts,
            error=self.error,
            body=self.body,
        )


@define(eq=False, kw_only=True)
class Shelf:
    """Everything one store holds, within limits; see `MemoryStore` for what they mean."""

    max_deliveries: int | None
    max_bytes: int | None
    max_finished: int | None
    max_quarantined: int
    max_quarantined_bytes: int
    entries: dict[str, Entry] = field(factory=dict)
    held: dict[int, Kept] = field(factory=dict)
    """All deliveries that still have a body, by id."""
    _bytes: int = 0
    _known: set[tuple[str, str]] = field(factory=set)
    """Registration and signature of every delivery, done ones included."""
    _finished: dict[tuple[str, str], float] = field(factory=dict)
    """The keys of those that are done, in that order, and when each came in."""
    _last_id: int = 0

    def knows(self, new: NewDelivery) -> bool:
        """Tell whether this delivery is a duplicate."""
        return (new.registration, new.signature) in self._known

    def add(self, new: NewDelivery, state: DeliveryState, now: float) -> None:
        """Take in a delivery; `StoreFullError` if there is no room."""
        entry = self.entries[new.registration]
        self._check_room(entry, state, len(new.body))
        self._last_id += 1
        self._known.add((new.registration, new.signature))
        self._bytes += len(new.body)
        self.held[self._last_id] = Kept(
            id=self._last_id,
            entry=entry,
            signature=new.signature,
            body=new.body,
            candidate=new.candidate,
            state=state,
            received_at=now,
        )

    def _check_room(self, entry: Entry, state: DeliveryState, size: int) -> None:
        if state is DeliveryState.QUARANTINED:
            sizes = [len(kept.body) for kept in self.quarantined(entry)]
            if len(sizes) >= self.max_quarantined or sum(sizes) + size > self.max_quarantined_bytes:
                raise StoreFullError(problem="a pending registration has no room for more in quarantine")
        if self._has_all_deliveries:
            raise StoreFullError(problem="it holds too many deliveries")
        if self.max_bytes is not None and size > self.max_bytes:
            raise StoreFullError(problem="the delivery is larger than max_bytes allows")
        if not self._has_room_for(size):
            raise StoreFullError(problem="the deliveries it holds are too large together")

    @property
    def _has_all_deliveries(self) -> bool:
        return self.max_deliveries is not None and len(self.held) >= self.max_deliveries

    def _has_room_for(self, size: int) -> bool:
        return self.max_bytes is None or self._bytes + size <= self.max_bytes

    @property
    def problems(self) -> tuple[str, ...]:
        """Why not even a delivery of one byte would be taken now, if so."""
        if self._has_all_deliveries:
            return (NO_ROOM,)
        return () if self._has_room_for(1) else (_NO_BYTES,)

    def finish(self, kept: Kept) -> None:
        """Let go of a delivery that is done, but for its key."""
        self._remove(kept)
        self._finished[kept.entry.id, kept.signature] = kept.received_at
        if self.max_finished is not None and len(self._finished) > self.max_finished:
            self._forget(next(iter(self._finished)))

    def drop(self, kept: Kept) -> None:
        """Let go of a delivery as if it had never come."""
        self._remove(kept)
        self._known.discard((kept.entry.id, kept.signature))

    def purge(self, before: float, *, dead: bool) -> int:
        """Forget those that are done and came in before a time, with *dead* the dead letters too, and what is over."""
        done = [key for key, received_at in self._finished.items() if received_at < before]
        for key in done:
            self._forget(key)
        buried = [kept for kept in self.dead() if dead and kept.received_at < before]
        for kept in buried:
            self.drop(kept)
        in_use = {id for id, _ in self._known}
        for entry in list(self.entries.values()):
            if entry.state is RegistrationState.CLOSED and entry.deadline < before and entry.id not in in_use:
                del self.entries[entry.id]
        return len(done) + len(buried)

    def _remove(self, kept: Kept) -> None:
        del self.held[kept.id]
        self._bytes -= len(kept.body)

    def _forget(self, key: tuple[str, str]) -> None:
        del self._finished[key]
        self._known.discard(key)

    def quarantined(self, entry: Entry) -> list[Kept]:
        """Return what one registration has in quarantine, oldest first."""
        return [kept for kept in self.held.values() if kept.entry is entry and kept.state is DeliveryState.QUARANTINED]

    def unfinished(self) -> list[Kept]:
        """Return what is waiting, delayed or leased, oldest first."""
        return [kept for kept in self.held.values() if kept.state in UNFINISHED]

    def heads(self, *, halt: bool) -> Iterator[Kept]:
        """Yield each registration's oldest unfinished delivery; with *halt*, only where no dead one is ahead."""
        seen: set[str] = set()
        for kept in self.held.values():
            if kept.entry.id in seen or kept.state is DeliveryState.QUARANTINED:
                continue
            if kept.state is not DeliveryState.DEAD:
                yield kept
            if halt or kept.state is not DeliveryState.DEAD:
                seen.add(kept.entry.id)

    def dead(self) -> list[Kept]:
        """Return the dead letters, oldest first."""
        return [kept for kept in self.held.values() if kept.state is DeliveryState.DEAD]

    def leased(self, lease: Lease, now: float) -> Kept | None:
        """Return the delivery if this very lease still holds it."""
        kept = self.held.get(lease.id)
        if kept is None or kept.state is not DeliveryState.LEASED or kept.fence != lease.fence or not kept.runs(now):
            return None
        return kept
