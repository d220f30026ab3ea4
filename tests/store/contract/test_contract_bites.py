"""The contract notices what is wrong with a store: here each store has one thing broken."""

import inspect
from typing import Any

import pytest
from attrs import evolve

from asana_webhooks.store.base import Lease, NewDelivery, Registration, RegistrationState, Store, StoreHealth
from asana_webhooks.store.memory import MemoryStore
from tests.helpers.stores import Clock
from tests.store.contract import test_contract_inbox, test_contract_opening, test_contract_registrations
from tests.store.contract import test_contract_upkeep as upkeep

SICK = StoreHealth(waiting=1, leased=0, quarantined=0, dead=0, oldest_age=None, writable=False, heartbeats={})

# A method, what it answers without doing anything, and the promise this breaks
IDLE: list[tuple[str, object, str]] = [
    ("aclose", None, "a_closed_store_is_of_no_use"),
    ("open", None, "an_open_registration_is_found"),
    ("offer", True, "an_offered_secret_is_remembered"),
    ("confirm", True, "only_a_candidate_is_confirmed"),
    ("confirm", False, "the_201_decides"),
    ("close", False, "closing_tells_whether_it_was_echoed"),
    ("find", None, "an_open_registration_is_found"),
    ("sweep", (), "sweeping_closes_what_is_overdue"),
    ("heartbeat", None, "heartbeats_are_noted"),
    ("put", "stored", "what_nobody_verified_is_refused"),
    ("claim", (), "the_oldest_are_claimed_first"),
    ("extend", False, "an_extended_lease_lasts_longer"),
    ("done", True, "what_a_lost_lease_says_is_ignored"),
    ("fail", False, "a_failed_delivery_is_tried_again"),
    ("release", False, "a_released_delivery_was_not_tried"),
    ("health", SICK, "health_counts"),
    ("dead_letters", (), "integers_are_checked"),
    ("requeue", True, "a_dead_letter_can_wait_again"),
    ("purge", 0, "purging_forgets"),
]

# A method, options it takes for others than those given, and the promise this breaks
DEAF: list[tuple[str, dict[str, Any], str]] = [
    ("open", {"ttl": 9.0}, "an_open_registration_is_found"),
    ("confirm", {"webhook_gid": "1"}, "the_201_decides"),
    ("claim", {"ordered": False}, "order_is_kept_where_asked_for"),
    ("claim", {"halt": False}, "a_dead_letter_holds_up_the_later_ones"),
    ("claim", {"lease": 9.0}, "a_lease_runs_out"),
    ("extend", {"seconds": 9.0}, "an_extended_lease_lasts_longer"),
    ("fail", {"retry_in": 0.0}, "a_failed_delivery_is_tried_again"),
    ("dead_letters", {"after": 0}, "dead_letters_come_in_pages"),
    ("purge", {"older_than": 0.0}, "purging_forgets"),
    ("purge", {"dead": True}, "purging_forgets"),
]


class NoDeadline(MemoryStore):
    """It sees no deadline before `sweep` does."""

    def _find(self, id: str) -> Registration | None:
        self._now()
        return self._registrations.get(id)


class NoFence(MemoryStore):
    """Any lease of a delivery holds it."""

    async def ack(self, lease: Lease) -> bool:
        held = self._open.get(lease.id)
        return await super().ack(evolve(lease, fence=held.fence) if held else lease)


class Undead(MemoryStore):
    """A closed registration lives on."""

    async def record_heartbeat(self, id: str) -> None:
        if found := self._registrations.get(id):
            self._registrations[id] = evolve(found, last_heartbeat_at=self._now())


class Credulous(MemoryStore):
    """What was checked against any candidate is let in after the 201."""

    async def put(self, delivery: NewDelivery) -> Any:
        found = self._find(delivery.registration)
        is_confirmed = found is not None and found.state is RegistrationState.CONFIRMED
        return await super().put(evolve(delivery, candidate=None) if is_confirmed else delivery)


INSIDE: list[tuple[type[MemoryStore], str]] = [
    (NoDeadline, "a_registration_ends_at_its_deadline"),
    (NoDeadline, "an_offer_may_come_too_late"),
    (NoFence, "what_a_lost_lease_says_is_ignored"),
    (Undead, "closing_tells_whether_it_was_echoed"),
    (Credulous, "a_delivery_may_miss_the_201"),
]


async def keep(promise: str, kind: type[MemoryStore]) -> None:
    """Run the test of one promise with a store of this kind."""
    modules = (test_contract_opening, test_contract_registrations, test_contract_inbox, upkeep)
    (test,) = [getattr(module, f"test_{promise}") for module in modules if hasattr(module, f"test_{promise}")]
    clock = Clock()
    given = {"clock": clock, "store": kind(clock=clock)}
    await test(**{name: given[name] for name in inspect.signature(test).parameters})


async def test_what_is_broken_is_noticed() -> None:
    """A store that only says that it did something fails, one that does not listen, and one that is wrong inside."""
    broken = list(INSIDE)
    for method, answer, promise in IDLE:

        async def idle(self: MemoryStore, *_: object, answer: object = answer, **__: object) -> object:
            return answer

        broken.append((type(f"Idle {method}", (MemoryStore,), {method: idle}), promise))
    for method, options, promise in DEAF:
        honest = getattr(MemoryStore, method)

        async def deaf(*args: Any, honest: Any = honest, options: Any = options, **given: Any) -> object:
            return await honest(*args, **given | options)

        broken.append((type(f"Deaf {method}", (MemoryStore,), {method: deaf}), promise))
    for kind, promise in broken:
        await keep(promise, MemoryStore)
        try:
            await keep(promise, kind)
        except AssertionError:
            continue
        pytest.fail(f"{kind.__name__} keeps the promise: {promise}")


def test_every_method_is_broken_once() -> None:
    """A method that joins the protocol joins these tests."""
    methods = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if name[0] != "_"}
    assert methods == {name for name, *_ in IDLE}
