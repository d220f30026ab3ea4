"""A store in the memory of one process, for tests and trials. Its content is lost when the process ends."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, takewhile, zip_longest
from typing import Any, Self

from attrs import define, evolve

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.store import rules
from asana_webhooks.store.base import (
    MAX_CANDIDATES,
    MAX_COUNT,
    DeliveryState,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    StoredDelivery,
    StoreHealth,
    candidate_id,
)

__all__ = ["MemoryStore"]


@define(eq=False)
class _Delivery:
    id: int
    new: NewDelivery
    state: DeliveryState
    received_at: float
    since: float = 0.0
    """When its lease or delay began."""
    due_at: float = 0.0
    """When its lease or delay ends."""
    fence: int = 0
    """The number of its lease; 0 if nobody may answer."""
    attempts: int = 0
    unanswered: int = 0
    """How many of its last attempts ended without an answer, the present one included."""
    done: tuple[int, ...] = ()
    error: str = ""

    def move(self, state: DeliveryState, now: float = 0.0, seconds: float = 0.0, *, fence: int = 0) -> None:
        self.state, self.since, self.due_at, self.fence = state, now, now + seconds, fence

    def state_at(self, now: float) -> DeliveryState:
        """Return its state; one whose lease or delay has run out is waiting."""
        can_end = self.state in {DeliveryState.DELAYED, DeliveryState.LEASED}
        has_ended = can_end and not rules.runs(since=self.since, until=self.due_at, now=now)
        return DeliveryState.WAITING if has_ended else self.state


class MemoryStore:
    """A `Store` in this process's memory. Only quarantine is limited.

    Args:
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._quarantine = rules.QuarantineLimits()
        self._registrations: dict[str, Registration] = {}
        self._numbers: dict[str, int] = {}
        """A number for each registration. It is not used again, though the id may be."""
        self._seen: dict[tuple[int, str, int], float] = {}
        """When each known delivery was received, by its registration's number, signature and event time."""
        self._inbox: dict[int, _Delivery] = {}
        """Deliveries that are not done, by id, oldest first."""
        self._served: dict[str, int] = {}
        """The fence of the last claim that took a delivery of each registration."""
        self._last_id = 0
        self._last_number = 0
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

    async def open_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", ttl: float, replaces: str | None = None
    ) -> bool:
        """See `Store.open_registration`."""
        now = self._now()
        rules.check_texts(id, resource, public_url, replaces or "")
        new = Registration(
            id=id,
            resource=resource,
            public_url=public_url,
            label=rules.check_label(label),
            state=RegistrationState.PENDING,
            opened_at=now,
            deadline=now + check_seconds("ttl", ttl),
            replaces=replaces,
        )
        if id in self._registrations:
            raise ConfigurationError("this registration exists already; every registration needs a fresh endpoint")
        return self._add(new)

    async def adopt_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", webhook_gid: str, secret: Secret
    ) -> bool:
        """See `Store.adopt_registration`."""
        now = self._now()
        rules.check_texts(id, resource, public_url, webhook_gid, secret)
        if known := self._registrations.get(id):
            same = (resource, label, RegistrationState.CONFIRMED, webhook_gid, secret)
            if (known.resource, known.label, known.state, known.webhook_gid, known.secret) != same:
                raise ConfigurationError(
                    "this endpoint already has a registration: a closed one, or with another webhook, label or secret"
                )
            return True
        new = Registration(
            id=id,
            resource=resource,
            public_url=public_url,
            label=rules.check_label(label),
            state=RegistrationState.CONFIRMED,
            opened_at=now,
            deadline=now,
            echoed=True,
            secret=secret,
            webhook_gid=webhook_gid,
        )
        return self._add(new)

    def _add(self, new: Registration) -> bool:
        same = self._listed(resource=new.resource, label=new.label)
        live = [one.id for one in same if one.state is not RegistrationState.CLOSED]
        if not rules.may_open(live, replaces=new.replaces):
            return False
        self._registrations[new.id] = new
        self._last_number += 1
        self._numbers[new.id] = self._last_number
        return True

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        """See `Store.add_candidate`."""
        rules.check_texts(secret)
        found = self._find(id)
        if found is None or found.state is not RegistrationState.PENDING:
            return False
        if secret not in found.candidates:
            if len(found.candidates) >= MAX_CANDIDATES:
                return False
            self._registrations[id] = evolve(found, candidates=(*found.candidates, secret), echoed=True)
        return True

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        """See `Store.confirm_registration`."""
        rules.check_texts(webhook_gid, secret)
        found = self._find(id)
        if found is None:
            return False
        if found.state is RegistrationState.CONFIRMED:
            return (found.webhook_gid, found.secret) == (webhook_gid, secret)
        if secret not in found.candidates:
            return False
        self._registrations[id] = evolve(
            found,
            state=RegistrationState.CONFIRMED,
            webhook_gid=webhook_gid,
            secret=secret,
            candidates=(),
            last_heartbeat_at=max(found.last_heartbeat_at or 0.0, heartbeat_at or 0.0) or None,
        )
        for delivery in self._quarantined(id):
            if delivery.new.candidate == candidate_id(secret):
                delivery.move(DeliveryState.WAITING)
            else:
                del self._inbox[delivery.id]
        return True

    async def close_registration(self, id: str) -> bool:
        """See `Store.close_registration`."""
        found = self._find(id)
        if found is None:
            return False
        self._close(found)
        return found.echoed

    def _close(self, found: Registration) -> None:
        self._registrations[found.id] = evolve(found, state=RegistrationState.CLOSED, secret=None, candidates=())
        for delivery in self._quarantined(found.id):
            del self._inbox[delivery.id]

    async def expire_registrations(self) -> Sequence[Registration]:
        """See `Store.expire_registrations`."""
        now = self._now()
        overdue = [one for one in self._registrations.values() if rules.as_found(one, now=now) is not one]
        for registration in overdue:
            self._close(registration)
        return overdue

    async def find_registration(self, id: str) -> Registration | None:
        """See `Store.find_registration`."""
        return self._find(id)

    def _find(self, id: str) -> Registration | None:
        # Not the public method, which tests of applications may replace to make the store fail.
        now = self._now()
        rules.check_texts(id)
        found = self._registrations.get(id)
        return None if found is None else rules.as_found(found, now=now)

    async def list_registrations(
        self,
        *,
        label: str | None = None,
        resource: str | None = None,
        webhook_gid: str | None = None,
        state: RegistrationState | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Registration]:
        """See `Store.list_registrations`."""
        rules.check_texts(label or "", resource or "", webhook_gid or "", after)
        wanted = {"label": label, "resource": resource, "webhook_gid": webhook_gid, "state": state}
        found = self._listed(**{name: value for name, value in wanted.items() if value is not None})
        page = sorted((one for one in found if one.id > after), key=lambda one: one.id)
        return [evolve(one, secret=None, candidates=()) for one in page[: max(rules.check_integer("limit", limit), 0)]]

    def _listed(self, **wanted: Any) -> list[Registration]:
        now = self._now()
        found = (rules.as_found(one, now=now) for one in self._registrations.values())
        return [one for one in found if all(getattr(one, name) == value for name, value in wanted.items())]

    async def record_heartbeat(self, id: str) -> None:
        """See `Store.record_heartbeat`."""
        found = self._find(id)
        if found is not None and found.state is not RegistrationState.CLOSED:
            self._registrations[id] = evolve(found, last_heartbeat_at=self._now())

    async def retire_registration(self, id: str, *, after: float) -> bool:
        """See `Store.retire_registration`."""
        check_seconds("after", after)
        found = self._find(id)
        if found is None or found.state is not RegistrationState.CONFIRMED:
            return False
        self._registrations[id] = evolve(found, retire_after=self._now() + after)
        return True

    # Inbox

    async def put(self, delivery: NewDelivery) -> PutResult:
        """See `Store.put`."""
        rules.check_texts(delivery.signature, delivery.candidate or "")
        found = self._find(delivery.registration)
        if found is None:
            return "refused"
        names = [candidate_id(secret) for secret in (*found.candidates, found.secret) if secret is not None]
        state = rules.initial_state(found.state, secrets=names, candidate=delivery.candidate)
        if state is None:
            return "refused"
        key = (self._numbers[found.id], delivery.signature, rules.event_time(delivery.body))
        if key in self._seen:
            return "duplicate"
        if state is DeliveryState.QUARANTINED:
            sizes = [len(one.new.body) for one in self._quarantined(delivery.registration)]
            self._quarantine.check_room(len(sizes), sum(sizes), len(delivery.body))
        now = self._seen[key] = self._now()
        self._last_id += 1
        id = self._last_id
        self._inbox[id] = _Delivery(id, delivery, state, now)
        self._registrations[found.id] = evolve(found, last_delivery_at=rules.minute_of(now))
        return "stored"

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """See `Store.claim`."""
        now = self._now()
        check_seconds("lease", lease)
        claimable = self._claimable(now, ordered=ordered, halt=halt)
        chosen = self._by_turn(claimable, max(rules.check_integer("limit", limit), 0))
        self._last_number += 1
        fence = self._last_number
        leases = []
        for one in chosen:
            shared = self._details(one) | {"alone": rules.is_alone(one.unanswered)}
            one.move(DeliveryState.LEASED, now, lease, fence=fence)
            self._served[one.new.registration] = fence
            one.attempts += 1
            one.unanswered += 1
            leases.append(Lease(fence=fence, attempt=one.attempts, expires_at=one.due_at, **shared))
        return leases

    def _claimable(self, now: float, *, ordered: bool, halt: bool) -> Iterator[_Delivery]:
        """Yield claimable deliveries, oldest first; if *ordered*, only each registration's first unfinished one.

        A later one may be leased, if the first is a requeued dead letter: it waits until that ends.
        """
        leased = (one for one in self._inbox.values() if one.state_at(now) is DeliveryState.LEASED)
        behind = {one.new.registration for one in leased} if ordered else set()
        for one in self._inbox.values():
            if one.state_at(now) is DeliveryState.WAITING and one.new.registration not in behind:
                yield one
            if ordered and (halt or one.state is not DeliveryState.DEAD):
                behind.add(one.new.registration)

    def _by_turn(self, claimable: Iterable[_Delivery], limit: int) -> list[_Delivery]:
        """Choose in turns: one of each registration, then a second one … Who was served last comes last.

        One that must run alone is chosen when it is the very first. Until then it holds up its registration.
        """
        queues: dict[str, list[_Delivery]] = {}
        for one in claimable:
            queues.setdefault(one.new.registration, []).append(one)
        turns = [queues[name] for name in sorted(queues, key=lambda name: self._served.get(name, 0))]
        if turns and rules.is_alone(turns[0][0].unanswered):
            return turns[0][: min(limit, 1)]
        ready = [takewhile(lambda one: not rules.is_alone(one.unanswered), queue) for queue in turns]
        return list(islice((one for each in zip_longest(*ready) for one in each if one is not None), limit))

    def _held(self, lease: Lease) -> _Delivery | None:
        """Return the delivery unless the lease was lost."""
        self._now()
        delivery = self._inbox.get(lease.id)
        return delivery if delivery is not None and delivery.fence == lease.fence != 0 else None

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """See `Store.extend`."""
        check_seconds("seconds", seconds)
        if delivery := self._held(lease):
            delivery.move(DeliveryState.LEASED, self._now(), seconds, fence=lease.fence)
        return delivery is not None

    async def ack(self, lease: Lease) -> bool:
        """See `Store.ack`."""
        if delivery := self._held(lease):
            del self._inbox[delivery.id]
        return delivery is not None

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None, done: Iterable[int] = ()) -> bool:
        """See `Store.fail`."""
        wait = 0.0 if retry_in is None else check_seconds("retry_in", retry_in)
        finished = rules.add_done(lease.done, done)
        if delivery := self._held(lease):
            delivery.error, delivery.done = rules.readable(error), finished
            delivery.unanswered = 0
            delivery.move(DeliveryState.DEAD if retry_in is None else DeliveryState.DELAYED, self._now(), wait)
        return delivery is not None

    async def release(self, lease: Lease) -> bool:
        """See `Store.release`."""
        if delivery := self._held(lease):
            delivery.move(DeliveryState.WAITING)
            delivery.attempts -= 1
            delivery.unanswered -= 1
        return delivery is not None

    async def health(self) -> StoreHealth:
        """See `Store.health`."""
        now = self._now()
        counts = Counter(one.state_at(now) for one in self._inbox.values())
        unfinished = {DeliveryState.WAITING, DeliveryState.DELAYED, DeliveryState.LEASED}
        arrivals = [one.received_at for one in self._inbox.values() if one.state in unfinished]
        confirmed = sorted(self._listed(state=RegistrationState.CONFIRMED), key=rules.last_sign)
        silent = [one.webhook_gid or "" for one in confirmed if rules.last_sign(one) < now - rules.SILENT_AFTER]
        return StoreHealth(
            waiting=min(counts[DeliveryState.WAITING] + counts[DeliveryState.DELAYED], MAX_COUNT),
            leased=min(counts[DeliveryState.LEASED], MAX_COUNT),
            quarantined=min(counts[DeliveryState.QUARANTINED], MAX_COUNT),
            dead=min(counts[DeliveryState.DEAD], MAX_COUNT),
            oldest_age=max(0.0, now - min(arrivals)) if arrivals else None,
            writable=True,
            webhooks=min(len(confirmed), MAX_COUNT),
            silent=tuple(silent[: rules.MAX_SILENT]),
        )

    # Maintenance

    async def deliveries(self, *, state: str, after: int = 0, limit: int = 100) -> Sequence[StoredDelivery]:
        """See `Store.deliveries`."""
        now = self._now()
        wanted = rules.check_state(state)
        rules.check_integer("after", after)
        found = (one for one in self._inbox.values() if one.id > after and one.state_at(now) is wanted)
        return [self._shown(one, now) for one in islice(found, max(rules.check_integer("limit", limit), 0))]

    async def delivery(self, id: int) -> StoredDelivery | None:
        """See `Store.delivery`."""
        now = self._now()
        found = self._inbox.get(rules.check_integer("id", id))
        return None if found is None else self._shown(found, now)

    def _shown(self, one: _Delivery, now: float) -> StoredDelivery:
        state = one.state_at(now)
        due_at = one.due_at if state in {DeliveryState.DELAYED, DeliveryState.LEASED} else None
        return StoredDelivery(state=state, due_at=due_at, attempts=one.attempts, error=one.error, **self._details(one))

    async def requeue(self, id: int) -> bool:
        """See `Store.requeue`."""
        self._now()
        delivery = self._inbox.get(rules.check_integer("id", id))
        if delivery is None or delivery.state is not DeliveryState.DEAD:
            return False
        delivery.move(DeliveryState.WAITING)
        delivery.attempts = 0
        return True

    async def discard(self, id: int) -> bool:
        """See `Store.discard`."""
        now = self._now()
        delivery = self._inbox.get(rules.check_integer("id", id))
        if delivery is None or delivery.state_at(now) is DeliveryState.LEASED:
            return False
        del self._inbox[id]
        return True

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """See `Store.purge`."""
        before = self._now() - check_seconds("older_than", older_than)
        seen = {key: at for key, at in self._seen.items() if max(at, key[2] / 1000) >= before}
        letters = [one for one in self._inbox.values() if one.state is DeliveryState.DEAD] if dead else []
        buried = {one.id for one in letters if one.received_at < before}
        gone = len(self._seen) - len(seen) + len(buried)
        self._seen, self._inbox = seen, {id: one for id, one in self._inbox.items() if id not in buried}
        in_use = {one.new.registration for one in self._inbox.values()}
        for registration in list(self._registrations.values()):
            is_old = registration.state is RegistrationState.CLOSED and registration.deadline < before
            if is_old and registration.id not in in_use:
                del self._registrations[registration.id]
                del self._numbers[registration.id]
                self._served.pop(registration.id, None)
        return gone

    def _quarantined(self, id: str) -> list[_Delivery]:
        quarantined = (one for one in self._inbox.values() if one.state is DeliveryState.QUARANTINED)
        return [one for one in quarantined if one.new.registration == id]

    def _details(self, one: _Delivery) -> dict[str, Any]:
        """Return the fields that leases and stored deliveries share."""
        found = self._registrations[one.new.registration]
        of_registration = {"label": found.label, "webhook_gid": found.webhook_gid, "resource": found.resource}
        shared = {"id": one.id, "registration": found.id, "received_at": one.received_at, "done": one.done}
        return of_registration | shared | {"body": one.new.body}
