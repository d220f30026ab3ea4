"""A store in the memory of one process, for tests and trials. Its content is lost when the process ends."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from attrs import define, evolve

from asana_webhooks._checks import check_seconds
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
    QuarantineLimits,
    as_found,
    check_integer,
    check_texts,
    initial_state,
    readable,
    runs,
)

__all__ = ["MemoryStore"]

_UNFINISHED = (DeliveryState.WAITING, DeliveryState.DELAYED, DeliveryState.LEASED)


@define(eq=False)
class _Delivery:
    id: int
    new: NewDelivery
    """The delivery as it was put; once done, without its body."""
    state: DeliveryState
    received_at: float
    since: float = 0.0
    """When its lease or delay began."""
    due_at: float = 0.0
    """When its lease or delay ends."""
    fence: int = 0
    attempts: int = 0
    error: str = ""

    def move(self, state: DeliveryState, now: float, seconds: float) -> None:
        self.state, self.since, self.due_at = state, now, now + seconds

    def runs(self, now: float) -> bool:
        """Return whether it is leased or delayed now."""
        return self.state is not DeliveryState.WAITING and runs(since=self.since, until=self.due_at, now=now)


class MemoryStore:
    """A `Store` in this process's memory. Only quarantine is limited.

    Args:
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._quarantine = QuarantineLimits()
        self._registrations: dict[str, Registration] = {}
        self._known: dict[tuple[str, str], _Delivery] = {}
        """All deliveries by registration and signature."""
        self._open: dict[int, _Delivery] = {}
        """Deliveries that are not done, by id, oldest first."""
        self._last_id = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        self._now()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`. The content is lost."""
        self._closed = True

    def _now(self) -> float:
        """Return the time; raise `ConfigurationError` if the store is closed."""
        if self._closed:
            raise ConfigurationError("this store is closed; create a new one")
        return self._clock()

    # Registrations

    async def open(self, id: str, *, resource: str, ttl: float) -> None:
        """See `Store.open`."""
        check_texts(id, resource)
        deadline = self._now() + check_seconds("ttl", ttl)
        if id in self._registrations:
            raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
        new = Registration(id=id, resource=resource, state=RegistrationState.PENDING, deadline=deadline)
        self._registrations[id] = new

    async def offer(self, id: str, secret: Secret) -> bool:
        """See `Store.offer`."""
        check_texts(secret)
        found = self._find(id)
        if found is None or found.state is not RegistrationState.PENDING:
            return False
        if secret not in found.candidates:
            if len(found.candidates) >= MAX_CANDIDATES:
                return False
            self._registrations[id] = evolve(found, candidates=(*found.candidates, secret), echoed=True)
        return True

    async def confirm(self, id: str, *, webhook_gid: str, secret: Secret) -> bool:
        """See `Store.confirm`."""
        check_texts(webhook_gid, secret)
        found = self._find(id)
        if found is None:
            return False
        if found.state is RegistrationState.CONFIRMED:
            return (found.webhook_gid, found.secret) == (webhook_gid, secret)
        if secret not in found.candidates:
            return False
        state = RegistrationState.CONFIRMED
        self._registrations[id] = evolve(found, state=state, webhook_gid=webhook_gid, secret=secret, candidates=())
        for delivery in self._quarantined(id):
            if delivery.new.candidate == candidate_id(secret):
                delivery.state = DeliveryState.WAITING
            else:
                self._delete(delivery)
        return True

    async def close(self, id: str) -> bool:
        """See `Store.close`."""
        found = self._find(id)
        if found is None:
            return False
        self._end(found)
        return found.echoed

    def _end(self, found: Registration) -> None:
        self._registrations[found.id] = evolve(found, state=RegistrationState.CLOSED, secret=None, candidates=())
        for delivery in self._quarantined(found.id):
            self._delete(delivery)

    async def find(self, id: str) -> Registration | None:
        """See `Store.find`."""
        return self._find(id)

    def _find(self, id: str) -> Registration | None:
        now = self._now()
        check_texts(id)
        found = self._registrations.get(id)
        return None if found is None else as_found(found, now=now)

    async def sweep(self) -> Sequence[Registration]:
        """See `Store.sweep`."""
        now = self._now()
        overdue = [one for one in self._registrations.values() if as_found(one, now=now) is not one]
        for registration in overdue:
            self._end(registration)
        return overdue

    async def heartbeat(self, id: str) -> None:
        """See `Store.heartbeat`."""
        found = self._find(id)
        if found is not None and found.state is not RegistrationState.CLOSED:
            self._registrations[id] = evolve(found, last_heartbeat_at=self._now())

    # Inbox

    async def put(self, delivery: NewDelivery) -> PutResult:
        """See `Store.put`."""
        check_texts(delivery.signature, delivery.candidate or "")
        found = self._find(delivery.registration)
        if found is None:
            return "refused"
        state = initial_state(
            found.state,
            confirmed=None if found.secret is None else candidate_id(found.secret),
            candidates=[candidate_id(secret) for secret in found.candidates],
            candidate=delivery.candidate,
        )
        if state is None:
            return "refused"
        key = delivery.registration, delivery.signature
        if key in self._known:
            return "duplicate"
        if state is DeliveryState.QUARANTINED:
            sizes = [len(one.new.body) for one in self._quarantined(delivery.registration)]
            self._quarantine.check_room(len(sizes), sum(sizes), len(delivery.body))
        self._last_id += 1
        added = _Delivery(self._last_id, delivery, state, self._now())
        self._open[added.id] = self._known[key] = added
        return "stored"

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`."""
        now = self._now()
        check_seconds("lease", lease)
        claimable = self._claimable(now, ordered=ordered, halt=halt)
        claimed = list(islice(claimable, max(check_integer("limit", limit), 0)))
        for delivery in claimed:
            delivery.move(DeliveryState.LEASED, now, lease)
            delivery.fence += 1
            delivery.attempts += 1
        return [
            Lease(fence=one.fence, attempt=one.attempts, expires_at=one.due_at, **self._details(one)) for one in claimed
        ]

    def _claimable(self, now: float, *, ordered: bool, halt: bool) -> Iterator[_Delivery]:
        """Yield claimable deliveries, oldest first; if *ordered*, only each registration's first unfinished one."""
        behind: set[str] = set()
        for one in self._in(*_UNFINISHED, DeliveryState.DEAD):
            is_dead = one.state is DeliveryState.DEAD
            if not is_dead and not one.runs(now) and one.new.registration not in behind:
                yield one
            if ordered and (halt or not is_dead):
                behind.add(one.new.registration)

    def _held(self, lease: Lease) -> _Delivery | None:
        """Return the delivery if this lease still holds it, else ``None``."""
        now = self._now()
        delivery = self._open.get(lease.id)
        if delivery is None or delivery.state is not DeliveryState.LEASED or delivery.fence != lease.fence:
            return None
        return delivery if delivery.runs(now) else None

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)
        if delivery := self._held(lease):
            delivery.move(DeliveryState.LEASED, self._now(), seconds)
        return delivery is not None

    async def done(self, lease: Lease) -> bool:
        """See `Store.done`."""
        if delivery := self._held(lease):
            self._open.pop(delivery.id)
            delivery.state, delivery.new = DeliveryState.DONE, evolve(delivery.new, body=b"")
        return delivery is not None

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None) -> bool:
        """See `Store.fail`."""
        wait = 0.0 if retry_in is None else check_seconds("retry_in", retry_in)
        if delivery := self._held(lease):
            delivery.error = readable(error)
            delivery.move(DeliveryState.DEAD if retry_in is None else DeliveryState.DELAYED, self._now(), wait)
        return delivery is not None

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        if delivery := self._held(lease):
            delivery.state = DeliveryState.WAITING
            delivery.attempts -= 1
        return delivery is not None

    async def health(self) -> StoreHealth:
        """See `Store.health`."""
        now = self._now()
        unfinished = list(self._in(*_UNFINISHED))
        leased = sum(one.state is DeliveryState.LEASED and one.runs(now) for one in unfinished)
        confirmed = [one for one in self._registrations.values() if one.state is RegistrationState.CONFIRMED]
        return StoreHealth(
            waiting=len(unfinished) - leased,
            leased=leased,
            quarantined=len(list(self._in(DeliveryState.QUARANTINED))),
            dead=len(list(self._in(DeliveryState.DEAD))),
            oldest_age=max(0.0, now - min(one.received_at for one in unfinished)) if unfinished else None,
            writable=True,
            heartbeats={one.webhook_gid or "": one.last_heartbeat_at for one in confirmed},
        )

    # Maintenance

    async def dead_letters(self, *, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """See `Store.dead_letters`."""
        self._now()
        check_integer("after", after)
        dead = (delivery for delivery in self._in(DeliveryState.DEAD) if delivery.id > after)
        return [
            DeadLetter(attempts=one.attempts, error=one.error, **self._details(one))
            for one in islice(dead, max(check_integer("limit", limit), 0))
        ]

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        self._now()
        delivery = self._open.get(check_integer("id", id))
        if delivery is None or delivery.state is not DeliveryState.DEAD:
            return False
        delivery.state, delivery.attempts = DeliveryState.WAITING, 0
        return True

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`."""
        before = self._now() - check_seconds("older_than", older_than)
        states = {DeliveryState.DONE, DeliveryState.DEAD} if dead else {DeliveryState.DONE}
        old = [one for one in self._known.values() if one.state in states and one.received_at < before]
        for delivery in old:
            self._delete(delivery)
        in_use = {id for id, _ in self._known}
        for one in list(self._registrations.values()):
            if one.state is RegistrationState.CLOSED and one.deadline < before and one.id not in in_use:
                del self._registrations[one.id]
        return len(old)

    def _in(self, *states: DeliveryState) -> Iterator[_Delivery]:
        """Yield the deliveries in these states, oldest first."""
        return (delivery for delivery in self._open.values() if delivery.state in states)

    def _quarantined(self, id: str) -> list[_Delivery]:
        return [one for one in self._in(DeliveryState.QUARANTINED) if one.new.registration == id]

    def _delete(self, delivery: _Delivery) -> None:
        """Delete a delivery; a duplicate of it would be stored as new."""
        del self._known[delivery.new.registration, delivery.new.signature]
        self._open.pop(delivery.id, None)

    def _details(self, delivery: _Delivery) -> dict[str, Any]:
        """Return the fields that leases and dead letters share."""
        registration = self._registrations[delivery.new.registration]
        return {
            "id": delivery.id,
            "registration": registration.id,
            "webhook_gid": registration.webhook_gid,
            "resource": registration.resource,
            "received_at": delivery.received_at,
            "body": delivery.new.body,
        }
