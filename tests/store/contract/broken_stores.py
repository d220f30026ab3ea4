"""Stores with one thing broken inside, each told by its sentence."""

from collections.abc import Iterable, Iterator
from typing import Any

from attrs import evolve

from asana_webhooks.store import rules
from asana_webhooks.store.base import DeliveryState, Lease, NewDelivery, Registration, RegistrationState
from asana_webhooks.store.memory import MemoryStore

# Registrations


class NoDeadline(MemoryStore):
    """It sees no deadline before an overdue registration expires."""

    def _find(self, id: str) -> Registration | None:
        self._now()
        return self._registrations.get(id)


class Twice(MemoryStore):
    """It opens beside a live one."""

    def _add(self, new: Registration) -> bool:
        self._registrations[new.id] = new
        self._last_number += 1
        self._numbers[new.id] = self._last_number
        return True


class Third(Twice):
    """It opens a second and a third one to replace the first."""

    def _add(self, new: Registration) -> bool:
        return Twice._add(self, new) if new.replaces in self._registrations else MemoryStore._add(self, new)


class OverdueBlocks(MemoryStore):
    """It counts what is overdue as live until it expires."""

    def _add(self, new: Registration) -> bool:
        overdue = [one for one in self._registrations.values() if one.state is RegistrationState.PENDING]
        same = [one for one in overdue if (one.resource, one.label) == (new.resource, new.label)]
        return super()._add(new) if new.replaces or not same else False


class ClosesOverdue(MemoryStore):
    """It closes what is overdue when it opens another one."""

    def _add(self, new: Registration) -> bool:
        for one in self._listed(state=RegistrationState.CLOSED):
            self._registrations[one.id] = one
        return super()._add(new)


class AdoptsPending(MemoryStore):
    """It adopts in two steps, and says before the second that it is done."""

    async def adopt_registration(self, id: str, **given: Any) -> bool:
        secret = given.pop("secret")
        del given["webhook_gid"]
        return await self.open_registration(id, ttl=60, **given) and await self.add_candidate(id, secret)


class AdoptsAnything(MemoryStore):
    """It takes another webhook for one that it adopted already."""

    async def adopt_registration(self, id: str, **given: Any) -> bool:
        return id in self._registrations or await super().adopt_registration(id, **given)


class Undead(MemoryStore):
    """A closed registration lives on."""

    async def record_heartbeat(self, id: str) -> None:
        if found := self._registrations.get(id):
            self._registrations[id] = evolve(found, last_heartbeat_at=self._now())


class RetiresAll(MemoryStore):
    """It retires a registration in any state."""

    async def retire_registration(self, id: str, *, after: float) -> bool:
        answer = await super().retire_registration(id, after=after)
        if found := self._registrations.get(id):
            self._registrations[id] = evolve(found, retire_after=self._now() + after)
        return answer


class EarlierHeartbeat(MemoryStore):
    """The heartbeat in the 201 takes the place of a later one."""

    async def confirm_registration(self, id: str, *, heartbeat_at: float | None = None, **given: Any) -> bool:
        answer = await super().confirm_registration(id, **given)
        if heartbeat_at is not None:
            self._registrations[id] = evolve(self._registrations[id], last_heartbeat_at=heartbeat_at)
        return answer


class NoMinutes(MemoryStore):
    """It does not note deliveries."""

    async def put(self, delivery: NewDelivery) -> Any:
        before = self._registrations.get(delivery.registration)
        answer = await super().put(delivery)
        if before:
            self._registrations[before.id] = before
        return answer


class ShowsSecrets(MemoryStore):
    """It lists registrations with their secrets."""

    async def list_registrations(self, **given: Any) -> Any:
        return [self._registrations[one.id] for one in await super().list_registrations(**given)]


class ListsOverdueAsPending(MemoryStore):
    """It lists registrations by the state that is written down."""

    async def list_registrations(self, *, state: Any = None, **given: Any) -> Any:
        listed = await super().list_registrations(**given)
        written = [evolve(one, state=self._registrations[one.id].state) for one in listed]
        return [one for one in written if state in {None, one.state}]


# Deliveries


class Credulous(MemoryStore):
    """What was checked against any candidate is let in after the 201."""

    async def put(self, delivery: NewDelivery) -> Any:
        found = await self.find_registration(delivery.registration)
        is_confirmed = found is not None and found.state is RegistrationState.CONFIRMED
        return await super().put(evolve(delivery, candidate=None) if is_confirmed else delivery)


class FirstCome(MemoryStore):
    """It goes by age alone."""

    def _by_turn(self, claimable: Iterable[Any], limit: int) -> list[Any]:
        return list(claimable)[:limit]


class ForgetsTurns(MemoryStore):
    """It forgets who was served last."""

    async def claim(self, limit: int, **given: Any) -> Any:
        self._served.clear()
        return await super().claim(limit, **given)


class Youngest(MemoryStore):
    """It takes the youngest of each registration first."""

    def _claimable(self, now: float, **given: Any) -> Iterator[Any]:
        return reversed(list(super()._claimable(now, **given)))


class Crowd(MemoryStore):
    """It claims others with one that must run alone."""

    def _by_turn(self, claimable: Iterable[Any], limit: int) -> list[Any]:
        some = list(claimable)
        crowd = super()._by_turn(some, limit)
        return crowd + [one for one in some if one not in crowd][: limit - len(crowd)]


class NeverAlone(MemoryStore):
    """It lets nothing run alone."""

    def _by_turn(self, claimable: Iterable[Any], limit: int) -> list[Any]:
        chosen = super()._by_turn(claimable, limit)
        for one in chosen:
            one.unanswered = 0
        return chosen


class AloneAtOnce(MemoryStore):
    """One attempt without an answer is enough for it."""

    async def claim(self, limit: int, **given: Any) -> Any:
        return [
            evolve(lease, alone=self._inbox[lease.id].unanswered > 1) for lease in await super().claim(limit, **given)
        ]


class AloneFirst(MemoryStore):
    """What must run alone goes before all others."""

    def _by_turn(self, claimable: Iterable[Any], limit: int) -> list[Any]:
        some = list(claimable)
        return [one for one in some if one.unanswered >= 2][: min(limit, 1)] or super()._by_turn(some, limit)


class AloneForever(MemoryStore):
    """An answer does not end running alone."""

    async def fail(self, lease: Lease, **given: Any) -> bool:
        unanswered = self._inbox[lease.id].unanswered if lease.id in self._inbox else 0
        answer = await super().fail(lease, **given)
        if answer:
            self._inbox[lease.id].unanswered = unanswered
        return answer


class ReleasedIsAnswered(MemoryStore):
    """A release ends running alone."""

    async def release(self, lease: Lease) -> bool:
        answer = await super().release(lease)
        if answer:
            self._inbox[lease.id].unanswered = 0
        return answer


class ReleasedIsUnanswered(MemoryStore):
    """A release counts as an attempt without an answer."""

    async def release(self, lease: Lease) -> bool:
        answer = await super().release(lease)
        if answer:
            self._inbox[lease.id].unanswered += 1
        return answer


class NoFence(MemoryStore):
    """Any lease of a delivery holds it."""

    def _held(self, lease: Lease) -> Any:
        self._now()
        return self._inbox.get(lease.id)


class NoFenceAtRelease(MemoryStore):
    """A released lease still holds the delivery."""

    async def release(self, lease: Lease) -> bool:
        answer = await super().release(lease)
        if answer:
            self._inbox[lease.id].fence = lease.fence
        return answer


class NoFenceAtFailure(MemoryStore):
    """A lease still holds the delivery after it has failed."""

    async def fail(self, lease: Lease, **given: Any) -> bool:
        answer = await super().fail(lease, **given)
        if answer:
            self._inbox[lease.id].fence = lease.fence
        return answer


class Impatient(MemoryStore):
    """A lease is lost when it has run out."""

    def _held(self, lease: Lease) -> Any:
        held = super()._held(lease)
        return held if held and held.state_at(self._now()) is DeliveryState.LEASED else None


class LastDone(MemoryStore):
    """It keeps only the events that the last attempt handled."""

    async def fail(self, lease: Lease, **given: Any) -> bool:
        return await super().fail(evolve(lease, done=()), **given)


class ForgetsDone(MemoryStore):
    """It forgets at requeuing which events are done."""

    async def requeue(self, id: int) -> bool:
        if answer := await super().requeue(id):
            self._inbox[id].done = ()
        return answer


class Overdone(MemoryStore):
    """It keeps whatever is said to be done."""

    async def fail(self, lease: Lease, *, done: Iterable[Any] = (), **given: Any) -> bool:
        return await super().fail(lease, done=[one for one in done if isinstance(one, int) and one >= 0], **given)


class DiscardsHeld(MemoryStore):
    """It deletes what a worker holds."""

    async def discard(self, id: int) -> bool:
        return self._inbox.pop(rules.check_integer("id", id), None) is not None


class ForgetsDiscarded(MemoryStore):
    """It does not know again what was discarded."""

    async def discard(self, id: int) -> bool:
        found = self._inbox.get(id)
        answer = await super().discard(id)
        if found and answer:
            self._seen = {key: at for key, at in self._seen.items() if key[1] != found.new.signature}
        return answer


class UsesIdsAgain(MemoryStore):
    """It counts ids from the end when nothing is left."""

    async def put(self, delivery: NewDelivery) -> Any:
        self._last_id = max(self._inbox, default=0)
        return await super().put(delivery)


class OldKeys(MemoryStore):
    """It takes the id of a forgotten registration for the old one."""

    def _add(self, new: Registration) -> bool:
        answer = super()._add(new)
        self._numbers[new.id] = hash(new.id)
        return answer


class PurgesByArrival(MemoryStore):
    """It forgets by arrival alone."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        self._seen = {(*key[:2], 0): at for key, at in self._seen.items()}
        return await super().purge(older_than=older_than, dead=dead)


class PurgesByEvent(MemoryStore):
    """It forgets by the event's time alone, where there is one."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        self._seen = {key: at if key[2] == 0 else 0.0 for key, at in self._seen.items()}
        return await super().purge(older_than=older_than, dead=dead)


class PurgesWaiting(MemoryStore):
    """It deletes what waits for too long."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        before = self._now() - older_than
        self._inbox = {id: one for id, one in self._inbox.items() if dead is False or one.received_at >= before}
        return await super().purge(older_than=older_than, dead=dead)


class PurgesLeased(MemoryStore):
    """It forgets closed registrations of which something is left."""

    async def purge(self, **given: Any) -> int:
        inbox, self._inbox = self._inbox, {}
        count = await super().purge(**given)
        self._inbox = {id: one for id, one in inbox.items() if one.new.registration in self._registrations}
        return count


# Health


class Deafened(MemoryStore):
    """To it, all webhooks are silent since they were opened."""

    def _listed(self, **wanted: Any) -> list[Registration]:
        return [evolve(one, last_heartbeat_at=None, last_delivery_at=None) for one in super()._listed(**wanted)]


class AllSilent(MemoryStore):
    """It names all that are silent."""

    async def health(self) -> Any:
        gids = tuple(one.webhook_gid or "" for one in self._listed(state=RegistrationState.CONFIRMED))
        health = await super().health()
        return evolve(health, silent=gids if health.silent else ())


class CountsAll(MemoryStore):
    """Its counts have no end."""

    async def health(self) -> Any:
        waiting = [one for one in self._inbox.values() if one.state is DeliveryState.WAITING]
        return evolve(await super().health(), waiting=len(waiting))


class WaitingIsOldest(MemoryStore):
    """The age is that of the waiting only."""

    async def health(self) -> Any:
        health = await super().health()
        return health if health.waiting else evolve(health, oldest_age=None)
