"""What a store promises about leases: how they end, what they keep, and which delivery runs alone."""

from typing import Any

import pytest

from asana_webhooks.store.base import DeliveryState, Lease, Store
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    ANSWERS,
    ID,
    LEASE,
    OTHER,
    bodies,
    bodies_of,
    claim_one,
    confirm_one,
    expect_lost,
    expect_misuse,
    lease_one,
    new_delivery,
    put,
)

pytestmark = pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", "postgres"], indirect=True
)  # a box makes no difference here

AGES = 400 * 86_400.0
"""How far ahead a clock may be that was never set, or badly."""


# The end of a lease


async def test_a_lease_runs_out(store: Store, clock: Clock) -> None:
    """When its lease has run out a delivery waits again, and the attempt counts."""
    await confirm_one(store)
    first = await lease_one(store)
    clock.advance(LEASE - 1)
    assert list(await store.claim(1, lease=LEASE)) == [], "while the lease lasts"
    clock.advance(1)
    second = await claim_one(store)
    assert (second.id, second.attempt) == (first.id, 2), "the second lease"
    assert second.fence != first.fence, "its fence"


async def test_a_lease_that_ran_out_may_still_answer(store: Store, clock: Clock) -> None:
    """While nobody else has claimed the delivery, every answer counts after the end as before it."""
    await confirm_one(store)
    for number, (name, answer) in enumerate(ANSWERS.items()):
        lease = await lease_one(store, number)
        clock.advance(LEASE * 10)
        assert list(await store.claim(0, lease=LEASE)) == [], "a claim that takes nothing"
        assert (await store.health()).leased == 0, "what is leased"
        assert await answer(store, lease) is True, f"{name} after the end"
        left = await store.delivery(lease.id)
        state = None if left is None else left.state
        expected = {"extend": "leased", "ack": None, "release": "waiting", "retry": "waiting", "bury": "dead"}
        assert state == expected[name], f"the state after {name}"
        if name == "extend":
            assert list(await store.claim(9, lease=LEASE)) == [], "what can be claimed while it is extended"
        again = lease if name == "extend" else await claim_one(store) if state == "waiting" else None
        assert again is None or again.attempt == (2 if name == "retry" else 1), f"the attempt after {name}"
        if again is not None:
            assert await store.ack(again) is True, f"finishing after {name}"


async def test_a_lost_lease_changes_nothing(store: Store, clock: Clock) -> None:
    """Another claim, a release, a failure, requeuing and discarding each end a lease for good."""
    await confirm_one(store)
    first = await lease_one(store)
    clock.advance(LEASE)
    second = await claim_one(store)
    await expect_lost(store, first)
    await store.release(second)
    await expect_lost(store, second)
    third = await claim_one(store)
    assert third.attempt == 2, "the attempt after a release"
    await expect_lost(store, second)
    await store.fail(third, error="", retry_in=0)
    await expect_lost(store, third)
    fourth = await claim_one(store)
    await store.fail(fourth, error="", retry_in=None)
    await expect_lost(store, fourth)
    await store.requeue(fourth.id)
    await expect_lost(store, fourth)
    fifth = await claim_one(store)
    await expect_lost(store, fourth)
    clock.advance(LEASE)
    assert await store.discard(fifth.id) is True, "discarding what ran out"
    await expect_lost(store, fifth)
    sixth = await lease_one(store, 2)
    assert await store.ack(sixth) is True, "finishing another one"
    for lease in (first, second, third, fourth, fifth, sixth):
        await expect_lost(store, lease)


async def test_a_new_delivery_never_fits_an_old_lease(store: Store, clock: Clock) -> None:
    """Ids are not given out again, not even when nothing is left."""
    await confirm_one(store)
    for number in range(3):
        old = await lease_one(store, number)
        await (store.ack(old) if number else store.release(old))
        await store.discard(old.id)
        clock.advance(1)
        await store.purge(older_than=0)
        new = await lease_one(store, number + 10)
        assert new.id > old.id, "the new id"
        await expect_lost(store, old)
        await store.ack(new)


async def test_an_extended_lease_lasts_longer(store: Store, clock: Clock) -> None:
    """Extending counts from now, and the lease stays the same."""
    await confirm_one(store)
    lease = await lease_one(store)
    clock.advance(LEASE - 1)
    assert await store.extend(lease, seconds=LEASE) is True, "extending"
    clock.advance(LEASE - 1)
    assert list(await store.claim(1, lease=LEASE)) == [], "what can be claimed"
    assert await store.ack(lease) is True, "finishing"


# Attempts


async def test_a_released_delivery_was_not_tried(store: Store) -> None:
    """Releasing makes it wait at once, in its old place, and does not count."""
    await confirm_one(store)
    await store.fail(await lease_one(store), error="", retry_in=0)
    lease = await claim_one(store)
    await put(store, 2)
    assert await store.release(lease) is True, "releasing"
    stored = await store.delivery(lease.id)
    assert stored is not None, "the delivery"
    assert (stored.state, stored.attempts) == (DeliveryState.WAITING, 1), "the delivery"
    again, _ = await store.claim(2, lease=LEASE)
    assert (again.id, again.attempt) == (lease.id, 2), "the next lease"


async def test_a_failed_delivery_is_tried_again(store: Store, clock: Clock) -> None:
    """Failing with a time makes it wait so long, and the next attempt counts one more."""
    await confirm_one(store)
    lease = await lease_one(store)
    assert await store.fail(lease, error="a", retry_in=10) is True, "failing"
    assert (await store.health()).waiting == 1, "what is waiting"
    clock.advance(9)
    assert list(await store.claim(1, lease=LEASE)) == [], "before its time"
    clock.advance(1)
    lease = await claim_one(store)
    assert lease.attempt == 2, "the attempt"
    await store.fail(lease, error="b", retry_in=0)
    assert (await claim_one(store)).attempt == 3, "the attempt after one that waits for nothing"


# What is done


async def test_what_is_done_is_kept(store: Store, clock: Clock) -> None:
    """The events that an attempt handled are kept with earlier ones, whatever happens to the delivery."""
    await confirm_one(store)
    lease = await lease_one(store)
    await store.fail(lease, error="", retry_in=0, done=iter([7, 2, 7]))
    lease = await claim_one(store)
    assert lease.done == (2, 7), "after a failure"
    await store.fail(lease, error="", retry_in=0)
    lease = await claim_one(store)
    assert lease.done == (2, 7), "after a failure that handled nothing"
    await store.release(lease)
    lease = await claim_one(store)
    assert lease.done == (2, 7), "after a release"
    clock.advance(LEASE)
    lease = await claim_one(store)
    assert lease.done == (2, 7), "after a lease that ran out"
    await store.fail(lease, error="", retry_in=None, done=(0, 2, 12))
    (letter,) = await store.deliveries(state=DeliveryState.DEAD)
    assert letter.done == (0, 2, 7, 12), "in a dead letter"
    await store.requeue(letter.id)
    assert (await claim_one(store)).done == (0, 2, 7, 12), "after requeuing"


async def test_what_is_done_is_checked(store: Store) -> None:
    """Only indices of events can be done; else the failure is not recorded."""
    await confirm_one(store)
    lease = await lease_one(store)
    values: list[Any] = [[-1], [0, "1"], [1.5], [None], [2**63]]
    for done in values:
        await expect_misuse(store.fail(lease, error="", retry_in=0, done=done), f"done={done}")
    assert await store.ack(lease) is True, "the lease"


# Alone


async def run_out(store: Store, clock: Clock, times: int = 2) -> None:
    """Claim everything so often, and let the leases run out."""
    for _ in range(times):
        while await store.claim(100, lease=LEASE):
            pass
        clock.advance(LEASE)


async def test_what_ended_without_an_answer_runs_alone(store: Store, clock: Clock) -> None:
    """A delivery whose last two leases ran out is claimed with no other; those beside it come by themselves."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    await put(store, 1, 2)
    await put(store, 3, registration=OTHER)
    await run_out(store, clock, times=1)
    second = await store.claim(9, lease=LEASE)
    assert [lease.alone for lease in second] == [False] * 3, "after one"
    clock.advance(LEASE)
    await put(store, 4, 5)
    await put(store, 6, registration=OTHER)
    claims = [await store.claim(9, lease=LEASE) for _ in range(7)]
    assert len(claims[-1]) == 0, "what is left at the end"
    leases = [lease for claimed in claims for lease in claimed]
    assert sorted(bodies_of(leases)) == bodies(*range(1, 7)), "what was claimed"
    alone = [lease for lease in leases if lease.alone]
    assert sorted(bodies_of(alone)) == bodies(1, 2, 3), "what ran alone"
    assert all(len(claimed) == 1 for claimed in claims if any(lease.alone for lease in claimed)), "its claim"
    for id in (ID, OTHER):
        own = [lease.id for lease in leases if lease.registration == id]
        assert own == sorted(own), "the order within a registration"


async def test_what_must_run_alone_holds_up_no_other_webhook(store: Store, clock: Clock) -> None:
    """Beside many of one webhook that must run alone, one of another is leased within two claims, and reversed."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    await put(store, *range(9))
    await run_out(store, clock)
    assert (await claim_one(store, 8)).alone is True, "the first"
    await put(store, 20, registration=OTHER)
    claimed = [*await store.claim(8, lease=LEASE), *await store.claim(8, lease=LEASE)]
    assert b"body 20" in bodies_of(claimed), "within two claims"
    await put(store, *range(30, 39), registration=OTHER)
    claimed = [*await store.claim(1, lease=LEASE), *await store.claim(1, lease=LEASE)]
    assert any(lease.alone for lease in claimed), "of the first webhook"


async def test_order_waits_for_what_runs_alone(store: Store, clock: Clock) -> None:
    """With *ordered* a head that must run alone is claimed before those behind it, and with none beside it."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    await put(store, 1, 2)
    for _ in range(2):
        assert (await claim_one(store, 9, ordered=True)).alone is False, "the head"
        clock.advance(LEASE)
    await put(store, 3, registration=OTHER)
    claims = [await store.claim(9, lease=LEASE, ordered=True) for _ in range(2)]
    assert sorted(bodies_of([*claims[0], *claims[1]])) == bodies(1, 3), "both heads"
    assert [len(claimed) for claimed in claims] == [1, 1], "in claims of their own"
    (alone,) = [lease for claimed in claims for lease in claimed if lease.alone]
    assert alone.body == b"body 1", "what runs alone"


async def test_an_answer_ends_running_alone(store: Store, clock: Clock) -> None:
    """A release keeps it so, for nothing was tried; a failure and requeuing begin anew."""

    async def lease_alone(number: int) -> Lease:
        await put(store, number)
        await run_out(store, clock)
        lease = await claim_one(store)
        assert lease.alone is True, "after two that ran out"
        return lease

    await confirm_one(store)
    lease = await lease_alone(1)
    await store.release(lease)
    lease = await claim_one(store)
    assert lease.alone is True, "after a release"
    clock.advance(LEASE)
    lease = await claim_one(store)
    assert lease.alone is True, "after another that ran out"
    await store.fail(lease, error="", retry_in=0)
    lease = await claim_one(store)
    assert lease.alone is False, "after a failure"
    clock.advance(LEASE)
    lease = await claim_one(store)
    assert lease.alone is False, "after a failure and one that ran out"
    await store.ack(lease)
    lease = await lease_alone(2)
    await store.fail(lease, error="", retry_in=None)
    await store.requeue(lease.id)
    assert (await claim_one(store)).alone is False, "after requeuing"


async def test_two_in_a_row_make_it_run_alone(store: Store, clock: Clock) -> None:
    """A release between two that ran out does not count; an answer between them does."""
    await confirm_one(store)
    for number, answer, expected in ((1, "release", True), (2, "retry", False)):
        await put(store, number)
        await run_out(store, clock, times=1)
        await ANSWERS[answer](store, await claim_one(store))
        assert (await claim_one(store)).alone is False, f"after one and {answer}"
        clock.advance(LEASE)
        lease = await claim_one(store)
        assert lease.alone is expected, f"with {answer} between"
        await store.ack(lease)


# Clocks that are set


async def test_a_clock_that_was_ahead_holds_nothing_back(store: Store, clock: Clock) -> None:
    """A lease or delay that began in the future is void: its end may be years away."""
    await confirm_one(store)
    await put(store, 1, 2, 3)
    (long,) = await store.claim(1, lease=AGES * 2)
    clock.advance(AGES)
    held, failed = await store.claim(2, lease=LEASE)
    await store.fail(failed, error="", retry_in=10)
    await store.extend(long, seconds=LEASE)
    clock.advance(-AGES)
    health = await store.health()
    assert (health.waiting, health.leased) == (3, 0), "the numbers"
    assert [one.due_at for one in await store.deliveries(state=DeliveryState.WAITING)] == [None] * 3, "the waiting"
    again = await store.claim(9, lease=LEASE)
    assert [lease.id for lease in again] == [long.id, held.id, failed.id], "what can be claimed"
    assert [lease.attempt for lease in again] == [2, 2, 2], "the attempts"
    for lease in (held, long):
        await expect_lost(store, lease)
    assert [await store.ack(lease) for lease in again] == [True] * 3, "finishing them"


async def test_a_void_lease_may_still_answer(store: Store, clock: Clock) -> None:
    """A lease that the clock made void is not lost while nobody else has claimed the delivery."""
    await confirm_one(store)
    clock.advance(AGES)
    lease = await lease_one(store)
    clock.advance(-AGES)
    assert await store.extend(lease, seconds=LEASE) is True, "extending"
    assert list(await store.claim(1, lease=LEASE)) == [], "what can be claimed"
    assert await store.ack(lease) is True, "finishing"
    assert await store.put(new_delivery(1)) == "duplicate", "the same again"


async def test_a_clock_may_be_set_back_a_little(store: Store, clock: Clock) -> None:
    """Clocks that differ by up to a minute void nothing."""
    await confirm_one(store)
    await put(store, 1, 2)
    held, failed = await store.claim(2, lease=LEASE)
    await store.fail(failed, error="", retry_in=10)
    clock.advance(-60)
    assert list(await store.claim(9, lease=LEASE)) == [], "what can be claimed"
    assert (await store.health()).leased == 1, "what is held"
    assert await store.ack(held) is True, "finishing"
