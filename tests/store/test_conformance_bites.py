"""The conformance suite notices what is wrong with a store: here each store has one thing broken."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from asana_webhooks.store import MemoryStore, Registration, Store, StoreHealth
from asana_webhooks.store.rules import DeliveryState
from asana_webhooks.store.shelf import Entry, Kept, Shelf
from asana_webhooks.testing.conformance import SettableClock, StoreConformance

SICK = StoreHealth(waiting=1, leased=0, quarantined=0, dead=0, oldest_age=None, writable=False, heartbeats={})

# A method, what it answers without doing anything, and the promise this breaks
IDLE = [
    ("aclose", None, "a_closed_store_is_of_no_use"),
    ("open", None, "an_open_registration_is_found"),
    ("open", None, "a_registration_is_opened_once"),
    ("offer", True, "an_offered_secret_is_remembered"),
    ("offer", True, "texts_are_checked"),
    ("confirm", True, "only_a_candidate_is_confirmed"),
    ("confirm", False, "the_201_decides"),
    ("close", False, "closing_tells_whether_it_was_echoed"),
    ("find", None, "an_open_registration_is_found"),
    ("sweep", (), "sweeping_closes_what_is_overdue"),
    ("heartbeat", None, "heartbeats_are_noted"),
    ("put", "stored", "what_nobody_verified_is_refused"),
    ("put", "stored", "a_delivery_may_miss_the_201"),
    ("claim", (), "the_oldest_are_claimed_first"),
    ("claim", (), "integers_are_checked"),
    ("extend", True, "what_a_lost_lease_says_is_ignored"),
    ("extend", False, "an_extended_lease_lasts_longer"),
    ("extend", True, "durations_are_checked"),
    ("done", True, "what_a_lost_lease_says_is_ignored"),
    ("fail", True, "what_a_lost_lease_says_is_ignored"),
    ("fail", False, "a_failed_delivery_is_tried_again"),
    ("release", True, "what_a_lost_lease_says_is_ignored"),
    ("release", False, "a_released_delivery_was_not_tried"),
    ("health", SICK, "health_counts"),
    ("dead_letters", (), "integers_are_checked"),
    ("requeue", True, "a_dead_letter_can_wait_again"),
    ("purge", 0, "purging_forgets"),
    ("purge", 0, "purging_forgets_what_is_over"),
]

# A method, options it takes for others than those given, and the promise this breaks
DEAF = [
    ("open", {"ttl": 9.0}, "an_open_registration_is_found"),
    ("open", {"resource": "1"}, "an_open_registration_is_found"),
    ("confirm", {"webhook_gid": "1"}, "the_201_decides"),
    ("claim", {"ordered": False}, "order_is_kept_where_asked_for"),
    ("claim", {"halt": False}, "a_dead_letter_holds_up_the_later_ones"),
    ("claim", {"halt": True}, "a_dead_letter_holds_up_the_later_ones"),
    ("claim", {"lease": 9.0}, "a_lease_runs_out"),
    ("extend", {"seconds": 9.0}, "an_extended_lease_lasts_longer"),
    ("fail", {"retry_in": 0.0}, "a_failed_delivery_is_tried_again"),
    ("dead_letters", {"limit": 9}, "dead_letters_come_in_pages"),
    ("dead_letters", {"after": 0}, "dead_letters_come_in_pages"),
    ("purge", {"older_than": 0.0}, "purging_forgets"),
    ("purge", {"dead": True}, "purging_forgets"),
    ("purge", {"dead": False}, "purging_forgets"),
]


def keeps_its_key(shelf: Shelf, kept: Kept) -> None:
    shelf._remove(kept)


def sees_no_deadline(entry: Entry, now: float) -> object:
    return entry.state


def trusts_the_clock(kept: Kept, now: float) -> bool:
    return kept.state is not DeliveryState.WAITING and now < kept.due_at


def knows_no_fence(shelf: Shelf, lease: Any, now: float) -> Kept | None:
    kept = shelf.held.get(lease.id)
    return kept if kept and kept.state is DeliveryState.LEASED else None


def tells_only_of_secrets_it_has(
    entry: Entry, recorded: Callable[[Entry], Registration] = Entry.recorded
) -> Registration:
    return evolve(recorded(entry), echoed=bool(entry.candidates))


# Where something inside does otherwise than it should, and the promises this breaks
INSIDE: list[tuple[tuple[type, str], Callable[..., Any], str]] = [
    ((Shelf, "drop"), keeps_its_key, "purging_forgets"),
    ((Shelf, "drop"), keeps_its_key, "quarantined_deliveries_wait_for_the_201"),
    ((Shelf, "leased"), knows_no_fence, "what_a_lost_lease_says_is_ignored"),
    ((Entry, "standing"), sees_no_deadline, "a_registration_ends_at_its_deadline"),
    ((Entry, "standing"), sees_no_deadline, "an_offer_may_come_too_late"),
    ((Entry, "recorded"), tells_only_of_secrets_it_has, "closing_tells_whether_it_was_echoed"),
    ((Kept, "runs"), trusts_the_clock, "a_clock_that_was_ahead_holds_nothing_back"),
]


def keep(promise: str, store: type[MemoryStore], tmp_path: Path) -> None:
    """Run the check of one promise."""

    class Suite(StoreConformance):
        def make_store(self, tmp_path: Path, clock: SettableClock) -> Store:
            return store(clock=clock)

    getattr(Suite(), f"test_{promise}")(tmp_path)


@pytest.mark.parametrize(("method", "answer", "promise"), IDLE)
def test_an_idle_method_is_noticed(method: str, answer: object, promise: str, tmp_path: Path) -> None:
    """A store that only says that it did something fails, by an expectation of the suite."""

    async def idle(self: MemoryStore, *args: object, **options: object) -> object:
        return answer

    keep(promise, MemoryStore, tmp_path)
    with pytest.raises(AssertionError):
        keep(promise, type("Idle", (MemoryStore,), {method: idle}), tmp_path)


@pytest.mark.parametrize(("method", "options", "promise"), DEAF)
def test_a_deaf_method_is_noticed(method: str, options: dict[str, Any], promise: str, tmp_path: Path) -> None:
    """A store that does not listen to what it is told fails."""

    async def deaf(self: MemoryStore, *args: object, **given: object) -> object:
        return await getattr(MemoryStore, method)(self, *args, **given | options)

    keep(promise, MemoryStore, tmp_path)
    with pytest.raises(AssertionError):
        keep(promise, type("Deaf", (MemoryStore,), {method: deaf}), tmp_path)


@pytest.mark.parametrize(("place", "wrong", "promise"), INSIDE)
def test_a_fault_inside_is_noticed(
    place: tuple[type, str], wrong: Callable[..., Any], promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults that show only in the answers of other methods are found as well."""
    monkeypatch.setattr(*place, wrong)
    with pytest.raises(AssertionError):
        keep(promise, MemoryStore, tmp_path)


def test_a_heartbeat_of_a_closed_registration_is_noticed(tmp_path: Path) -> None:
    """A closed registration lives no more."""

    class Undead(MemoryStore):
        async def heartbeat(self, id: str) -> None:
            if entry := self._shelf.entries.get(id):
                entry.last_heartbeat_at = self._clock()

    with pytest.raises(AssertionError, match="after a heartbeat"):
        keep("closing_tells_whether_it_was_echoed", Undead, tmp_path)


def test_every_method_is_broken_once() -> None:
    """A method that joins the protocol joins these tests."""
    methods = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if name[0] != "_"}
    assert methods == {name for name, *_ in IDLE}
