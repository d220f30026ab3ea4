"""A store in the memory of one process, for tests and trials. What it holds is gone with the process."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Self

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import (
    MAX_CANDIDATES,
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    StoreHealth,
    candidate_id,
)
from asana_webhooks.store.rules import (
    DeliveryState,
    as_found,
    check_integer,
    check_texts,
    landing,
    readable,
)
from asana_webhooks.store.shelf import Entry, Kept, Shelf

__all__ = ["MemoryStore"]


class MemoryStore:
    """A `Store` that keeps everything in this process's memory.

    Args:
        clock: returns the time in seconds since the epoch.
        max_deliveries: how many deliveries it holds (dead letters included) before `put` raises `StoreFullError`;
            ``None`` removes the limit.
        max_bytes: how many bytes their bodies may have together, and so each of them; ``None`` removes the limit.
        max_finished: how many finished deliveries are remembered as duplicates; the oldest are forgotten first.
            ``None`` removes the limit.
        max_quarantined: how many deliveries one pending registration may have in quarantine.
        max_quarantined_bytes: how many bytes their bodies may have together.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        # Limits
        max_deliveries: int | None = 10_000,
        max_bytes: int | None = 256 * 1024**2,
        max_finished: int | None = 100_000,
        max_quarantined: int = 1_000,
        max_quarantined_bytes: int = 16 * 1024**2,
    ) -> None:
        self._clock = clock
        self._shelf = Shelf(
            max_deliveries=_count("max_deliveries", max_deliveries),
            max_bytes=_count("max_bytes", max_bytes),
            max_finished=_count("max_finished", max_finished),
            max_quarantined=check_count("max_quarantined", max_quarantined, zero=True),
            max_quarantined_bytes=check_count("max_quarantined_bytes", max_quarantined_bytes, zero=True),
        )
        self._closed = False

    def __repr__(self) -> str:
        shelf = self._shelf
        return f"<MemoryStore registrations={len(shelf.entries)} deliveries={len(shelf.held)}>"

    async def __aenter__(self) -> Self:
        self._usable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`; what it held is gone."""
        self._closed = True

    def _entry(self, id: str) -> Entry | None:
        shelf = self._usable()
        check_texts(id)
        return shelf.entries.get(id)

    def _usable(self) -> Shelf:
        if self._closed:
            raise ConfigurationError("this store is closed")
        return self._shelf

    # Registrations

    async def open(self, id: str, *, resource: str, ttl: float) -> None:
        """See `Store.open`."""
        entries = self._usable().entries
        check_texts(id, resource)
        deadline = self._clock() + check_seconds("ttl", ttl)
        if id in entries:
            raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
        entries[id] = Entry(id=id, resource=resource, deadline=deadline)

    async def offer(self, id: str, secret: Secret) -> bool:
        """See `Store.offer`."""
        entry = self._entry(id)
        check_texts(secret)
        if entry is None or entry.standing(self._clock()) is not RegistrationState.PENDING:
            return False
        name = candidate_id(secret)
        if name not in entry.candidates and len(entry.candidates) >= MAX_CANDIDATES:
            return False
        entry.candidates.setdefault(name, secret)
        entry.echoed = True
        return True

    async def confirm(self, id: str, *, webhook_gid: str, secret: Secret) -> bool:
        """See `Store.confirm`."""
        shelf, entry = self._usable(), self._entry(id)
        check_texts(webhook_gid, secret)
        if entry is None:
            return False
        if entry.state is RegistrationState.CONFIRMED:
            return entry.webhook_gid == webhook_gid and entry.secret == secret
        chosen = candidate_id(secret)
        if entry.standing(self._clock()) is RegistrationState.CLOSED or chosen not in entry.candidates:
            return False
        entry.state, entry.webhook_gid, entry.secret = RegistrationState.CONFIRMED, webhook_gid, secret
        entry.candidates.clear()
        for kept in shelf.quarantined(entry):
            if kept.candidate == chosen:
                kept.move(DeliveryState.WAITING)
            else:
                shelf.drop(kept)
        return True

    async def close(self, id: str) -> bool:
        """See `Store.close`."""
        shelf, entry = self._usable(), self._entry(id)
        if entry is None:
            return False
        entry.state, entry.secret = RegistrationState.CLOSED, None
        entry.candidates.clear()
        for kept in shelf.quarantined(entry):
            shelf.drop(kept)
        return entry.echoed

    async def find(self, id: str) -> Registration | None:
        """See `Store.find`."""
        entry = self._entry(id)
        return as_found(entry.recorded(), now=self._clock()) if entry else None

    async def sweep(self) -> Sequence[Registration]:
        """See `Store.sweep`."""
        now, entries = self._clock(), self._usable().entries.values()
        overdue = [entry.recorded() for entry in entries if entry.standing(now) is not entry.state]
        for registration in overdue:
            await self.close(registration.id)
        return overdue

    async def heartbeat(self, id: str) -> None:
        """See `Store.heartbeat`."""
        entry, now = self._entry(id), self._clock()
        if entry is not None and entry.standing(now) is not RegistrationState.CLOSED:
            entry.last_heartbeat_at = now

    # Inbox

    async def put(self, delivery: NewDelivery) -> PutResult:
        """See `Store.put`."""
        shelf, now = self._usable(), self._clock()
        check_texts(delivery.registration, delivery.signature, delivery.candidate or "")
        entry = shelf.entries.get(delivery.registration)
        if entry is None:
            return "refused"
        confirmed = None if entry.secret is None else candidate_id(entry.secret)
        state = landing(
            entry.standing(now), confirmed=confirmed, candidates=entry.candidates, candidate=delivery.candidate
        )
        if state is None:
            return "refused"
        if shelf.knows(delivery):
            return "duplicate"
        shelf.add(delivery, state, now)
        return "stored"

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`."""
        shelf, now = self._usable(), self._clock()
        expires_at = now + check_seconds("lease", lease)
        open_ones = shelf.heads(halt=halt) if ordered else shelf.unfinished()
        claimable = (kept for kept in open_ones if not kept.runs(now))
        chosen = list(islice(claimable, max(check_integer("limit", limit), 0)))
        return [kept.lease(now, expires_at) for kept in chosen]

    def _held(self, lease: Lease) -> Kept | None:
        return self._usable().leased(lease, self._clock())

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        now = self._clock()
        due_at = now + check_seconds("seconds", seconds)
        kept = self._held(lease)
        if kept is not None:
            kept.move(DeliveryState.LEASED, now, due_at)
        return kept is not None

    async def done(self, lease: Lease) -> bool:
        """See `Store.done`."""
        kept = self._held(lease)
        if kept is not None:
            self._shelf.finish(kept)
        return kept is not None

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None) -> bool:
        """See `Store.fail`."""
        wait = None if retry_in is None else check_seconds("retry_in", retry_in)
        now = self._clock()
        kept = self._held(lease)
        if kept is None:
            return False
        kept.error = readable(error)
        if wait is None:
            kept.move(DeliveryState.DEAD)
        else:
            kept.move(DeliveryState.DELAYED, now, now + wait)
        return True

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        kept = self._held(lease)
        if kept is not None:
            kept.move(DeliveryState.WAITING)
            kept.attempts -= 1
        return kept is not None

    async def health(self) -> StoreHealth:
        """See `Store.health`."""
        shelf, now = self._usable(), self._clock()
        open_ones = shelf.unfinished()
        leased = sum(kept.state is DeliveryState.LEASED and kept.runs(now) for kept in open_ones)
        return StoreHealth(
            waiting=len(open_ones) - leased,
            leased=leased,
            quarantined=sum(kept.state is DeliveryState.QUARANTINED for kept in shelf.held.values()),
            dead=len(shelf.dead()),
            oldest_age=max(0.0, now - min(kept.received_at for kept in open_ones)) if open_ones else None,
            writable=not shelf.problems,
            heartbeats={
                entry.webhook_gid: entry.last_heartbeat_at
                for entry in shelf.entries.values()
                if entry.state is RegistrationState.CONFIRMED and entry.webhook_gid is not None
            },
            problems=shelf.problems,
        )

    # Maintenance

    async def dead_letters(self, *, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """See `Store.dead_letters`."""
        check_integer("after", after)
        dead = (kept for kept in self._usable().dead() if kept.id > after)
        return [kept.dead_letter() for kept in islice(dead, max(check_integer("limit", limit), 0))]

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        kept = self._usable().held.get(check_integer("id", id))
        if kept is None or kept.state is not DeliveryState.DEAD:
            return False
        kept.move(DeliveryState.WAITING)
        kept.attempts = 0
        return True

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`."""
        return self._usable().purge(self._clock() - check_seconds("older_than", older_than), dead=dead)


def _count(name: str, value: int | None) -> int | None:
    return None if value is None else check_count(name, value, zero=True)
