"""The contract notices what is wrong with a store: here each store has one thing broken."""

import inspect
from typing import Any

import pytest

from asana_webhooks.store.base import Store, StoreHealth
from asana_webhooks.store.memory import MemoryStore
from tests.helpers.stores import Clock
from tests.store.contract import broken_stores, test_contract_inbox, test_contract_leases, test_contract_opening
from tests.store.contract import test_contract_registrations as registrations
from tests.store.contract import test_contract_upkeep as upkeep

MODULES = (test_contract_opening, registrations, test_contract_inbox, test_contract_leases, upkeep)

EMPTY = StoreHealth(waiting=0, leased=0, quarantined=0, dead=0, oldest_age=None, writable=True, webhooks=0)

# A method, what it answers without doing anything, and the promise this breaks
IDLE: list[tuple[str, object, str]] = [
    ("aclose", None, "a_closed_store_is_of_no_use"),
    ("open_registration", True, "an_open_registration_is_found"),
    ("adopt_registration", True, "an_adopted_registration_is_confirmed"),
    ("add_candidate", True, "a_candidate_is_remembered"),
    ("confirm_registration", True, "only_a_candidate_is_confirmed"),
    ("confirm_registration", False, "the_201_decides"),
    ("close_registration", False, "closing_tells_whether_it_was_echoed"),
    ("find_registration", None, "an_open_registration_is_found"),
    ("list_registrations", (), "registrations_are_listed"),
    ("expire_registrations", (), "what_is_overdue_expires"),
    ("record_heartbeat", None, "heartbeats_are_noted"),
    ("retire_registration", True, "retiring_is_noted"),
    ("put", "stored", "what_nobody_verified_is_refused"),
    ("claim", (), "the_oldest_are_claimed_first"),
    ("extend", True, "a_lost_lease_changes_nothing"),
    ("extend", True, "an_extended_lease_lasts_longer"),
    ("ack", True, "a_lost_lease_changes_nothing"),
    ("fail", True, "a_lost_lease_changes_nothing"),
    ("fail", True, "a_failed_delivery_is_tried_again"),
    ("release", True, "a_released_delivery_was_not_tried"),
    ("health", EMPTY, "health_counts"),
    ("deliveries", (), "deliveries_are_shown_by_state"),
    ("delivery", None, "what_is_done_is_gone"),
    ("requeue", True, "a_dead_letter_can_wait_again"),
    ("discard", True, "a_delivery_can_be_discarded"),
    ("purge", 0, "purging_forgets_by_arrival_and_event"),
]

# A method, options it takes for others than those given, and the promise this breaks
DEAF: list[tuple[str, dict[str, Any], str]] = [
    ("open_registration", {"ttl": 9.0}, "an_open_registration_is_found"),
    ("open_registration", {"label": ""}, "one_is_live_for_each_resource_and_label"),
    ("open_registration", {"label": "short"}, "labels_have_a_length"),
    ("open_registration", {"public_url": ""}, "an_open_registration_is_found"),
    ("open_registration", {"replaces": None}, "a_second_one_may_replace_the_only_live_one"),
    ("adopt_registration", {"label": "short"}, "labels_have_a_length"),
    ("confirm_registration", {"webhook_gid": "1"}, "the_201_decides"),
    ("confirm_registration", {"heartbeat_at": None}, "the_201_may_bring_a_heartbeat"),
    ("list_registrations", {"label": None}, "registrations_are_listed"),
    ("list_registrations", {"resource": None}, "registrations_are_listed"),
    ("list_registrations", {"webhook_gid": None}, "registrations_are_listed"),
    ("list_registrations", {"state": None}, "registrations_are_listed"),
    ("list_registrations", {"after": ""}, "the_list_comes_in_pages"),
    ("list_registrations", {"limit": 9}, "the_list_comes_in_pages"),
    ("retire_registration", {"after": 9.0}, "retiring_is_noted"),
    ("claim", {"ordered": False}, "order_is_kept_where_asked_for"),
    ("claim", {"halt": False}, "a_dead_letter_holds_up_the_later_ones"),
    ("claim", {"lease": 9.0}, "a_lease_runs_out"),
    ("extend", {"seconds": 9.0}, "an_extended_lease_lasts_longer"),
    ("fail", {"retry_in": 0.0}, "a_failed_delivery_is_tried_again"),
    ("fail", {"done": ()}, "what_is_done_is_kept"),
    ("fail", {"error": ""}, "deliveries_are_shown_by_state"),
    ("deliveries", {"after": 0}, "deliveries_come_in_pages"),
    ("deliveries", {"limit": 9}, "deliveries_come_in_pages"),
    ("deliveries", {"state": "waiting"}, "deliveries_are_shown_by_state"),
    ("purge", {"older_than": 0.0}, "purging_forgets_by_arrival_and_event"),
    ("purge", {"dead": True}, "purging_takes_what_is_dead_if_asked"),
    ("purge", {"dead": False}, "purging_takes_what_is_dead_if_asked"),
]

INSIDE: list[tuple[type[MemoryStore], str]] = [
    (broken_stores.NoDeadline, "a_registration_ends_at_its_deadline"),
    (broken_stores.NoDeadline, "a_candidate_may_come_too_late"),
    (broken_stores.Twice, "one_is_live_for_each_resource_and_label"),
    (broken_stores.Twice, "one_of_many_opens"),
    (broken_stores.Third, "a_second_one_may_replace_the_only_live_one"),
    (broken_stores.OverdueBlocks, "an_overdue_one_does_not_block"),
    (broken_stores.ClosesOverdue, "an_overdue_one_does_not_block"),
    (broken_stores.AdoptsPending, "an_adopted_registration_is_confirmed"),
    (broken_stores.AdoptsAnything, "adopting_again_changes_nothing"),
    (broken_stores.Undead, "closing_tells_whether_it_was_echoed"),
    (broken_stores.RetiresAll, "retiring_is_noted"),
    (broken_stores.EarlierHeartbeat, "the_201_may_bring_a_heartbeat"),
    (broken_stores.NoMinutes, "the_last_delivery_is_noted"),
    (broken_stores.ShowsSecrets, "registrations_are_listed"),
    (broken_stores.ListsOverdueAsPending, "registrations_are_listed"),
    (broken_stores.Credulous, "a_delivery_may_miss_the_201"),
    (broken_stores.FirstCome, "every_webhook_gets_its_turn"),
    (broken_stores.ForgetsTurns, "every_webhook_gets_its_turn"),
    (broken_stores.Youngest, "the_oldest_are_claimed_first"),
    (broken_stores.Crowd, "what_ended_without_an_answer_runs_alone"),
    (broken_stores.Crowd, "order_waits_for_what_runs_alone"),
    (broken_stores.NeverAlone, "what_ended_without_an_answer_runs_alone"),
    (broken_stores.AloneAtOnce, "what_ended_without_an_answer_runs_alone"),
    (broken_stores.AloneFirst, "what_must_run_alone_holds_up_no_other_webhook"),
    (broken_stores.AloneForever, "an_answer_ends_running_alone"),
    (broken_stores.ReleasedIsAnswered, "an_answer_ends_running_alone"),
    (broken_stores.ReleasedIsUnanswered, "two_in_a_row_make_it_run_alone"),
    (broken_stores.AloneForever, "two_in_a_row_make_it_run_alone"),
    (broken_stores.NoFence, "a_lost_lease_changes_nothing"),
    (broken_stores.NoFenceAtRelease, "a_lost_lease_changes_nothing"),
    (broken_stores.NoFenceAtFailure, "a_lost_lease_changes_nothing"),
    (broken_stores.Impatient, "a_lease_that_ran_out_may_still_answer"),
    (broken_stores.Impatient, "a_void_lease_may_still_answer"),
    (broken_stores.LastDone, "what_is_done_is_kept"),
    (broken_stores.ForgetsDone, "what_is_done_is_kept"),
    (broken_stores.Overdone, "what_is_done_is_checked"),
    (broken_stores.DiscardsHeld, "a_delivery_can_be_discarded"),
    (broken_stores.ForgetsDiscarded, "a_delivery_can_be_discarded"),
    (broken_stores.UsesIdsAgain, "a_new_delivery_never_fits_an_old_lease"),
    (broken_stores.OldKeys, "a_forgotten_id_begins_anew"),
    (broken_stores.PurgesByArrival, "purging_forgets_by_arrival_and_event"),
    (broken_stores.PurgesByEvent, "purging_forgets_by_arrival_and_event"),
    (broken_stores.PurgesWaiting, "purging_takes_what_is_dead_if_asked"),
    (broken_stores.PurgesLeased, "purging_forgets_closed_registrations"),
    (broken_stores.Deafened, "the_silent_are_named"),
    (broken_stores.AllSilent, "few_of_the_silent_are_named"),
    (broken_stores.CountsAll, "a_noisy_webhook_holds_up_no_other"),
    (broken_stores.WaitingIsOldest, "health_counts"),
]


async def keep(promise: str, kind: type[MemoryStore]) -> None:
    """Run the test of one promise with a store of this kind."""
    (test,) = [getattr(module, f"test_{promise}") for module in MODULES if hasattr(module, f"test_{promise}")]
    clock = Clock()
    given = {"clock": clock, "store": kind(clock=clock)}
    await test(**{name: given[name] for name in inspect.signature(test).parameters})


def all_broken() -> list[tuple[type[MemoryStore], str]]:
    """Return stores that only say that they did something, that do not listen, and that are wrong inside."""
    broken = list(INSIDE)
    for method, answer, promise in IDLE:

        async def idle(self: MemoryStore, *_: object, answer: object = answer, **__: object) -> object:
            return answer

        broken.append((type(f"Idle {method}", (MemoryStore,), {method: idle}), promise))
    for method, options, promise in DEAF:
        honest = getattr(MemoryStore, method)

        async def deaf(*args: Any, honest: Any = honest, options: Any = options, **given: Any) -> object:
            return await honest(*args, **given | options)

        broken.append((type(f"Deaf {method} {[*options]}", (MemoryStore,), {method: deaf}), promise))
    return broken


async def test_what_is_broken_is_noticed() -> None:
    """Each broken store breaks its promise; the contract itself shows that a whole one keeps them all."""
    for kind, promise in all_broken():
        try:
            await keep(promise, kind)
        except (AssertionError, ValueError):
            continue
        pytest.fail(f"{kind.__name__} keeps the promise: {promise}")


def test_every_method_is_broken_once() -> None:
    """A method that joins the protocol joins these tests."""
    methods = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if name[0] != "_"}
    assert methods == {name for name, *_ in IDLE}
