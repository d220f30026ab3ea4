"""What a store promises about deliveries that come in, and about leases."""

import asyncio
from contextlib import suppress
from typing import Any

from asana_webhooks.store.base import NewDelivery, Store
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    FORGED,
    GID,
    ID,
    LEASE,
    OTHER,
    RESOURCE,
    SECRET,
    TTL,
    bodies_of,
    confirm_one,
    expect_lost,
    expect_misuse,
    lease_one,
    new_delivery,
)

AGES = 400 * 86_400.0
"""How far ahead a clock may be that was never set, or badly."""


# Putting


async def test_a_put_delivery_can_be_claimed(store: Store, clock: Clock) -> None:
    """What was put comes out byte for byte, with what is known about it."""
    await confirm_one(store)
    body = bytes(range(256)) * 3
    new = NewDelivery(registration=ID, signature="ab" * 32, body=body)
    assert await store.put(new) == "stored", "a new delivery"
    received_at = clock.now
    clock.advance(5)
    (lease,) = await store.claim(10, lease=LEASE)
    assert (lease.body, lease.registration, lease.resource) == (body, ID, RESOURCE), "the delivery"
    assert (lease.webhook_gid, lease.attempt) == (GID, 1), "its webhook and attempt"
    assert (lease.received_at, lease.expires_at) == (received_at, clock.now + LEASE), "its times"


async def test_a_delivery_is_stored_once(store: Store) -> None:
    """A signature is known while the delivery waits, is held, failed or done, and only for its registration."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    lease = await lease_one(store)
    assert await store.put(new_delivery(1)) == "duplicate", "while it is held"
    await store.fail(lease, error="", retry_in=None)
    assert await store.put(new_delivery(1)) == "duplicate", "while it is dead"
    await store.requeue(lease.id)
    assert await store.put(new_delivery(1)) == "duplicate", "while it waits"
    await store.ack((await store.claim(1, lease=LEASE))[0])
    assert await store.put(new_delivery(1)) == "duplicate", "when it is done"
    assert await store.put(new_delivery(1, registration=OTHER)) == "stored", "for another registration"


async def test_many_put_the_same_at_once(store: Store) -> None:
    """Of many who put the same delivery at the same time, one stores it."""
    await confirm_one(store)
    answers = await asyncio.gather(*(store.put(new_delivery(1)) for _ in range(20)))
    assert sorted(answers) == ["duplicate"] * 19 + ["stored"], "the answers"
    assert len(await store.claim(30, lease=LEASE)) == 1, "what is stored"


async def test_what_nobody_verified_is_refused(store: Store) -> None:
    """An unknown or closed registration takes nothing, nor does a pending one without a known candidate."""
    assert await store.put(new_delivery(1)) == "refused", "an unknown registration"
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    assert await store.put(new_delivery(1)) == "refused", "a pending one, without a candidate"
    assert await store.put(new_delivery(1, secret=FORGED)) == "refused", "a pending one, with an unknown candidate"
    bad = NewDelivery(registration=ID, signature="\ud800", body=b"")
    await store.add_candidate(ID, SECRET)
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    await expect_misuse(store.put(bad), "a signature that cannot be kept")
    await store.put(new_delivery(2))
    await store.close_registration(ID)
    assert await store.put(new_delivery(1)) == "refused", "a closed registration"
    assert await store.put(new_delivery(2)) == "refused", "a closed registration, even for a duplicate"


async def test_a_caller_may_go_away(store: Store) -> None:
    """Cancelling who waits for `put` leaves the store whole: the delivery is there once, or not at all."""
    await confirm_one(store)
    for turns in range(4):
        task = asyncio.ensure_future(store.put(new_delivery(turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    answers = [await store.put(new_delivery(turns)) for turns in range(4)]
    assert set(answers) <= {"stored", "duplicate"}, "putting again"
    held = await store.claim(10, lease=LEASE)
    assert sorted(bodies_of(held)) == [b"body %d" % number for number in range(4)], "what is stored"


# Claiming


async def test_the_oldest_are_claimed_first(store: Store) -> None:
    """Claims give up to the limit, oldest first, and nobody gets what another holds."""
    await confirm_one(store)
    for number in (5, 3, 9, 1):
        await store.put(new_delivery(number))
    assert list(await store.claim(0, lease=LEASE)) == [], "a claim for nothing"
    assert bodies_of(await store.claim(3, lease=LEASE)) == [b"body 5", b"body 3", b"body 9"], "the first claim"
    assert bodies_of(await store.claim(3, lease=LEASE)) == [b"body 1"], "the second"
    assert list(await store.claim(3, lease=LEASE)) == [], "the third"


async def test_claims_at_once_share_nothing(store: Store) -> None:
    """Workers that claim at the same time get different deliveries."""
    await confirm_one(store)
    for number in range(20):
        await store.put(new_delivery(number))
    claims = await asyncio.gather(*(store.claim(3, lease=LEASE) for _ in range(10)))
    ids = [lease.id for held in claims for lease in held]
    assert (len(ids), len(set(ids))) == (20, 20), "the deliveries"


async def test_a_lease_runs_out(store: Store, clock: Clock) -> None:
    """When its lease has run out a delivery waits again, and the attempt counts."""
    await confirm_one(store)
    first = await lease_one(store)
    clock.advance(LEASE - 1)
    assert list(await store.claim(1, lease=LEASE)) == [], "while the lease lasts"
    clock.advance(2)
    (second,) = await store.claim(1, lease=LEASE)
    assert (second.id, second.attempt) == (first.id, 2), "the second lease"
    assert second.fence != first.fence


async def test_what_a_lost_lease_says_is_ignored(store: Store, clock: Clock) -> None:
    """A holder whose lease ran out changes nothing, before and after the next holder came."""
    await confirm_one(store)
    old = await lease_one(store)
    clock.advance(LEASE + 1)
    await expect_lost(store, old)
    (new,) = await store.claim(1, lease=LEASE)
    await expect_lost(store, old)
    assert await store.ack(new) is True, "the holder is done"
    await expect_lost(store, old)
    await expect_lost(store, new)


async def test_an_extended_lease_lasts_longer(store: Store, clock: Clock) -> None:
    """`extend` counts from now, and the lease stays the same."""
    await confirm_one(store)
    lease = await lease_one(store)
    clock.advance(LEASE - 1)
    assert await store.extend(lease, seconds=LEASE) is True, "extending"
    clock.advance(LEASE - 1)
    assert list(await store.claim(1, lease=LEASE)) == [], "what can be claimed"
    assert await store.ack(lease) is True, "finishing"


async def test_a_dead_letter_holds_up_the_later_ones(store: Store) -> None:
    """With *halt* a registration's deliveries wait behind its dead letter, until that is requeued or purged."""
    for id in (ID, OTHER):
        await confirm_one(store, id)
    dead = await lease_one(store, 1)
    await store.fail(dead, error="", retry_in=None)
    await store.put(new_delivery(2))
    await store.put(new_delivery(3, registration=OTHER))
    heads = await store.claim(10, lease=LEASE, ordered=True, halt=True)
    assert bodies_of(heads) == [b"body 3"], "behind a dead letter"
    await store.requeue(dead.id)
    (one,) = await store.claim(10, lease=LEASE, ordered=True, halt=True)
    assert one.body == dead.body, "the requeued one"
    await store.ack(one)
    (two,) = await store.claim(10, lease=LEASE, ordered=True, halt=True)
    assert two.body == b"body 2", "behind what is done"
    await store.put(new_delivery(4))
    await store.fail(two, error="", retry_in=None)
    assert bodies_of(await store.claim(10, lease=LEASE, ordered=True)) == [b"body 4"], "without halt"


async def test_order_is_kept_where_asked_for(store: Store, clock: Clock) -> None:
    """With *ordered* only the oldest unfinished delivery of each registration is leased."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    for number, name in ((1, ID), (2, ID), (3, OTHER), (4, ID), (5, OTHER)):
        await store.put(new_delivery(number, registration=name))
    heads = await store.claim(10, lease=LEASE, ordered=True)
    assert bodies_of(heads) == [b"body 1", b"body 3"], "the first of each"
    one, three = heads
    assert list(await store.claim(10, lease=LEASE, ordered=True)) == [], "while both are held"
    await store.fail(one, error="later", retry_in=10)
    await store.ack(three)
    assert bodies_of(await store.claim(10, lease=LEASE, ordered=True)) == [b"body 5"], "while the first is delayed"
    clock.advance(11)
    (one,) = await store.claim(1, lease=LEASE, ordered=True)
    assert one.body == b"body 1", "the first, again"
    await store.fail(one, error="for good", retry_in=None)
    (two,) = await store.claim(1, lease=LEASE, ordered=True)
    assert two.body == b"body 2", "the next, when the first is dead"
    await store.release(two)
    assert bodies_of(await store.claim(1, lease=LEASE, ordered=True)) == [b"body 2"], "a released one"


# Clocks that are set


async def test_a_clock_that_was_ahead_holds_nothing_back(store: Store, clock: Clock) -> None:
    """A lease or delay that began in the future is void: its end may be years away."""
    await confirm_one(store)
    for number in (1, 2, 3):
        await store.put(new_delivery(number))
    (long,) = await store.claim(1, lease=AGES * 2)
    clock.advance(AGES)
    held, failed = await store.claim(2, lease=LEASE)
    await store.fail(failed, error="", retry_in=10)
    await store.extend(long, seconds=LEASE)
    clock.advance(-AGES)
    health = await store.health()
    assert (health.waiting, health.leased) == (3, 0), "the numbers"
    await expect_lost(store, held)
    await expect_lost(store, long)
    again = await store.claim(9, lease=LEASE)
    assert [lease.id for lease in again] == [long.id, held.id, failed.id], "what can be claimed"
    assert [lease.attempt for lease in again] == [2, 2, 2], "the attempts"
    assert [await store.ack(lease) for lease in again] == [True] * 3, "finishing them"


async def test_a_clock_may_be_set_back_a_little(store: Store, clock: Clock) -> None:
    """Clocks that differ by up to a minute void nothing."""
    await confirm_one(store)
    await store.put(new_delivery(1))
    await store.put(new_delivery(2))
    held, failed = await store.claim(2, lease=LEASE)
    await store.fail(failed, error="", retry_in=10)
    clock.advance(-60)
    assert list(await store.claim(9, lease=LEASE)) == [], "what can be claimed"
    assert (await store.health()).leased == 1, "what is held"
    assert await store.ack(held) is True, "finishing"


# Attempts


async def test_a_released_delivery_was_not_tried(store: Store) -> None:
    """`release` makes it wait at once, in its old place, and does not count."""
    await confirm_one(store)
    await store.fail(await lease_one(store), error="", retry_in=0)
    (lease,) = await store.claim(1, lease=LEASE)
    await store.put(new_delivery(2))
    assert await store.release(lease) is True, "releasing"
    await expect_lost(store, lease)
    again, _ = await store.claim(2, lease=LEASE)
    assert (again.id, again.attempt) == (lease.id, 2), "the next lease"
    await expect_lost(store, lease)


async def test_a_failed_delivery_is_tried_again(store: Store, clock: Clock) -> None:
    """`fail` with a time makes it wait so long, and the next attempt counts one more."""
    await confirm_one(store)
    lease = await lease_one(store)
    assert await store.fail(lease, error="a", retry_in=10) is True, "failing"
    await expect_lost(store, lease)
    assert (await store.health()).waiting == 1, "what is waiting"
    clock.advance(9)
    assert list(await store.claim(1, lease=LEASE)) == [], "before its time"
    clock.advance(2)
    (lease,) = await store.claim(1, lease=LEASE)
    assert lease.attempt == 2, "the attempt"
    await store.fail(lease, error="b", retry_in=0)
    (lease,) = await store.claim(1, lease=LEASE)
    assert lease.attempt == 3, "the attempt after one that waits for nothing"


async def test_durations_are_checked(store: Store) -> None:
    """A time that is negative or no number is refused, and nothing changes."""
    await confirm_one(store)
    lease = await lease_one(store)
    for value in (float("nan"), float("inf"), -1.0):
        await expect_misuse(
            store.open_registration(OTHER, resource=RESOURCE, public_url="https://example.com/asana", ttl=value),
            f"ttl={value}",
        )
        await expect_misuse(store.claim(1, lease=value), f"lease={value}")
        await expect_misuse(store.extend(lease, seconds=value), f"seconds={value}")
        await expect_misuse(store.fail(lease, error="", retry_in=value), f"retry_in={value}")
        await expect_misuse(store.purge(older_than=value), f"older_than={value}")
    assert await store.find_registration(OTHER) is None, "the registration"
    assert await store.ack(lease) is True, "the lease"


async def test_integers_are_checked(store: Store) -> None:
    """What is no whole number of at most 64 bits is refused, whatever the store could do with it."""
    await confirm_one(store)
    values: list[Any] = [2**63, 2**70, -(2**70), 1.5, "1", None]
    for value in values:
        await expect_misuse(store.claim(value, lease=LEASE), f"a limit of {value!r}")
        await expect_misuse(store.deliveries(state="dead", limit=value), f"a limit of {value!r}")
        await expect_misuse(store.deliveries(state="dead", after=value), f"after={value!r}")
        await expect_misuse(store.requeue(value), f"an id of {value!r}")
    await store.put(new_delivery(1))
    assert len(await store.claim(2**63 - 1, lease=LEASE)) == 1, "what the largest limit leases"
