"""What a store promises about deliveries that come in, and about whose turn it is."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from asana_webhooks.store.base import MAX_COUNT, DeliveryState, NewDelivery, Store
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
    adopt_one,
    bodies,
    bodies_of,
    claim_one,
    confirm_one,
    expect_misuse,
    lease_one,
    new_delivery,
    open_one,
    put,
    put_many,
)

pytestmark = pytest.mark.parametrize(
    "make_store", ["memory", "sqlite", "postgres"], indirect=True
)  # a box makes no difference here

# Putting


async def test_a_put_delivery_can_be_claimed(store: Store, clock: Clock) -> None:
    """What was put comes out byte for byte, with what is known about it."""
    await confirm_one(store, label="tenant")
    body = bytes(range(256)) * 3
    new = NewDelivery(registration=ID, signature="ab" * 32, body=body)
    assert await store.put(new) == "stored", "a new delivery"
    received_at = clock.now
    clock.advance(5)
    lease = await claim_one(store, 10)
    assert (lease.body, lease.registration, lease.resource) == (body, ID, RESOURCE), "the delivery"
    assert (lease.webhook_gid, lease.label, lease.attempt) == (GID, "tenant", 1), "its webhook and attempt"
    assert (lease.received_at, lease.expires_at) == (received_at, clock.now + LEASE), "its times"
    assert (lease.done, lease.alone) == ((), False), "what happened before"


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
    await store.ack(await claim_one(store))
    assert await store.put(new_delivery(1)) == "duplicate", "when it is done"
    assert await store.put(new_delivery(1, registration=OTHER)) == "stored", "for another registration"


async def test_many_put_the_same_at_once(store: Store) -> None:
    """Of many who put the same delivery at the same time, one stores it."""
    await confirm_one(store)
    answers = await asyncio.gather(*(store.put(new_delivery(1)) for _ in range(20)))
    assert sorted(answers) == ["duplicate"] * 19 + ["stored"], "the answers"
    await claim_one(store, 30)


async def test_what_nobody_verified_is_refused(store: Store) -> None:
    """An unknown or closed registration takes nothing, nor does a pending one without a known candidate."""
    assert await store.put(new_delivery(1)) == "refused", "an unknown registration"
    await open_one(store)
    assert await store.put(new_delivery(1)) == "refused", "a pending one, without a candidate"
    assert await store.put(new_delivery(1, secret=FORGED)) == "refused", "a pending one, with an unknown candidate"
    await store.add_candidate(ID, SECRET)
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    await expect_misuse(store.put(NewDelivery(registration=ID, signature="\ud800", body=b"")), "a bad signature")
    await put(store, 2)
    await store.close_registration(ID)
    assert await store.put(new_delivery(1)) == "refused", "a closed registration"
    assert await store.put(new_delivery(2)) == "refused", "a closed registration, even for a duplicate"


async def test_a_caller_may_go_away(store: Store) -> None:
    """Cancelling who waits for a put leaves the store whole: the delivery is there once, or not at all."""
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
    assert sorted(bodies_of(held)) == bodies(*range(4)), "what is stored"


# Quarantine


async def test_quarantined_deliveries_wait_for_the_201(store: Store) -> None:
    """Nobody gets a delivery of a pending registration; those of the right secret come out in their order."""
    await open_one(store)
    await store.add_candidate(ID, FORGED)
    await store.add_candidate(ID, SECRET)
    for number in (3, 1, 2):
        assert await store.put(new_delivery(number, secret=SECRET)) == "stored", "in quarantine"
        assert await store.put(new_delivery(number + 10, secret=FORGED)) == "stored", "in quarantine"
    assert await store.put(new_delivery(3, secret=SECRET)) == "duplicate", "in quarantine, again"
    assert list(await store.claim(10, lease=LEASE)) == [], "what can be claimed"
    health = await store.health()
    assert (health.waiting, health.quarantined, health.oldest_age) == (0, 6, None), "the numbers"
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    await put(store, 4)
    held = await store.claim(10, lease=LEASE)
    assert bodies_of(held) == bodies(3, 1, 2, 4), "what was released, and then what came"
    assert {lease.webhook_gid for lease in held} == {GID}, "their webhook"
    assert await store.put(new_delivery(1, secret=SECRET)) == "duplicate", "a released one, again"
    assert (await store.health()).quarantined == 0, "what is left in quarantine"


async def test_a_delivery_may_miss_the_201(store: Store) -> None:
    """A delivery checked against a candidate goes on if that was confirmed meanwhile, else it is refused."""
    await confirm_one(store)
    assert await store.put(new_delivery(1, secret=SECRET)) == "stored", "the confirmed secret"
    assert await store.put(new_delivery(2, secret=FORGED)) == "refused", "another secret"
    assert bodies_of(await store.claim(10, lease=LEASE)) == bodies(1), "what can be claimed"


async def test_the_end_empties_the_quarantine(store: Store, clock: Clock) -> None:
    """Closing and expiring drop what is in quarantine, and what waited already stays."""
    await confirm_one(store)
    await put(store, 1)
    await store.close_registration(ID)
    for name in (OTHER, "expired"):
        await open_one(store, name)
        await store.add_candidate(name, SECRET)
        await store.put(new_delivery(2, registration=name, secret=SECRET))
    await store.close_registration(OTHER)
    clock.advance(TTL)
    await store.expire_registrations()
    assert (await store.health()).quarantined == 0, "what is left in quarantine"
    lease = await claim_one(store, 10)
    assert (lease.body, lease.webhook_gid) == (b"body 1", GID), "what can be claimed"
    assert await store.ack(lease) is True, "finishing it"


# Claiming


async def test_the_oldest_are_claimed_first(store: Store) -> None:
    """Claims give up to the limit, oldest first, and nobody gets what another holds."""
    await confirm_one(store)
    await put(store, 5, 3, 9, 1)
    for limit in (0, -1):
        assert list(await store.claim(limit, lease=LEASE)) == [], "a claim for nothing"
    assert bodies_of(await store.claim(3, lease=LEASE)) == bodies(5, 3, 9), "the first claim"
    assert bodies_of(await store.claim(3, lease=LEASE)) == bodies(1), "the second"
    assert list(await store.claim(3, lease=LEASE)) == [], "the third"


async def test_claims_at_once_share_nothing(store: Store) -> None:
    """Workers that claim at the same time get different deliveries."""
    await confirm_one(store)
    await put(store, *range(20))
    claims = await asyncio.gather(*(store.claim(3, lease=LEASE) for _ in range(10)))
    ids = [lease.id for held in claims for lease in held]
    assert (len(ids), len(set(ids))) == (20, 20), "the deliveries"


async def test_a_noisy_webhook_holds_up_no_other(store: Store) -> None:
    """Beside thousands of one webhook, a delivery of another is leased within two claims. Its count has an end."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    await put_many(store, range(MAX_COUNT + 1))
    assert (await store.health()).waiting == MAX_COUNT, "the number of the waiting"
    await store.claim(8, lease=LEASE)
    for number, limit in enumerate((1, 2, 8) * 2):
        await put(store, number, registration=OTHER)
        options = {"ordered": number >= 3}
        claimed = [*await store.claim(limit, lease=LEASE, **options)]
        if number % 2:
            for lease in claimed:
                await store.ack(lease)
        claimed += await store.claim(limit, lease=LEASE, **options)
        (own,) = [lease for lease in claimed if lease.registration == OTHER]
        await store.ack(own)


async def test_every_webhook_gets_its_turn(store: Store) -> None:
    """With several waiting for each of many webhooks, each one is served before long, however small the claims."""
    names = [f"{number:02}" for number in range(12)]
    for name in names:
        await adopt_one(store, name)
        await put(store, 1, 2, 3, registration=name)
    served = {(await claim_one(store)).registration for _ in range(2 * len(names))}
    assert served == set(names), "who was served"


async def test_the_oldest_does_not_wait_for_a_retry(store: Store) -> None:
    """While an earlier one of its webhook is delayed, the oldest waiting one is served soon, also by claims of one."""
    for id in (ID, OTHER):
        await adopt_one(store, id)
    await put(store, 1, 2)
    await store.fail(await claim_one(store), error="later", retry_in=3600)
    await put(store, *range(10, 20), registration=OTHER)
    served = []
    for _ in range(4):
        lease = await claim_one(store)
        served.append(lease.body)
        await store.ack(lease)
    assert b"body 2" in served, "what was served"


async def test_turns_go_on_when_the_clock_is_set_back(store: Store, clock: Clock) -> None:
    """A webhook that was served while the clock was ahead gets its next turn soon after it was set back."""
    for name in ("busy", "ahead"):
        await adopt_one(store, name)
    await put(store, 1, 2, registration="ahead")
    clock.advance(1e6)
    await store.ack(await claim_one(store, ordered=True))
    clock.advance(-1e6)
    await put(store, 3, 4, 5, 6, registration="busy")
    served = []
    for _ in range(3):
        lease = await claim_one(store, ordered=True)
        served.append(lease.registration)
        await store.ack(lease)
    assert "ahead" in served, "who was served"


async def test_order_waits_for_what_is_leased(store: Store) -> None:
    """With *ordered* none is leased beside a later one of its registration that another worker took out of order."""
    await confirm_one(store)
    await put(store, 1, 2)
    one, two = await store.claim(2, lease=LEASE)
    await store.release(one)
    assert list(await store.claim(9, lease=LEASE, ordered=True)) == [], "beside a later one"
    await store.ack(two)
    assert bodies_of(await store.claim(9, lease=LEASE, ordered=True)) == bodies(1), "afterwards"


async def test_order_is_kept_where_asked_for(store: Store, clock: Clock) -> None:
    """With *ordered* only the oldest unfinished delivery of each registration is leased."""
    await confirm_one(store)
    await confirm_one(store, OTHER)
    for number, name in ((1, ID), (2, ID), (3, OTHER), (4, ID), (5, OTHER)):
        await put(store, number, registration=name)
    heads = {lease.body: lease for lease in await store.claim(10, lease=LEASE, ordered=True)}
    assert sorted(heads) == bodies(1, 3), "the first of each"
    assert list(await store.claim(10, lease=LEASE, ordered=True)) == [], "while both are held"
    await store.fail(heads[b"body 1"], error="later", retry_in=10)
    await store.ack(heads[b"body 3"])
    assert bodies_of(await store.claim(10, lease=60, ordered=True)) == bodies(5), "while the first is delayed"
    clock.advance(11)
    one = await claim_one(store, 9, ordered=True)
    assert one.body == b"body 1", "the first, again"
    await store.fail(one, error="for good", retry_in=None)
    two = await claim_one(store, 9, ordered=True)
    assert two.body == b"body 2", "the next, when the first is dead"
    await store.release(two)
    assert await store.discard(two.id) is True, "discarding a released one"
    four = await claim_one(store, 9, ordered=True)
    assert four.body == b"body 4", "behind a discarded one"
    await store.requeue(one.id)
    assert list(await store.claim(9, lease=LEASE, ordered=True)) == [], "beside a later one that is held"
    await store.ack(four)
    assert bodies_of(await store.claim(9, lease=LEASE, ordered=True)) == bodies(1), "a requeued one is the first"


async def test_an_expired_head_keeps_its_place(store: Store, clock: Clock) -> None:
    """With *ordered* a delivery whose lease ran out is claimed again before those behind it."""
    await confirm_one(store)
    await put(store, 1, 2)
    for _ in range(4):
        assert bodies_of(await store.claim(9, lease=LEASE, ordered=True)) == bodies(1), "the first"
        clock.advance(LEASE)


async def test_a_dead_letter_holds_up_the_later_ones(store: Store, clock: Clock) -> None:
    """With *halt* a registration waits behind its dead letter, until that is requeued, discarded or purged."""
    for id in (ID, OTHER):
        await confirm_one(store, id)
    dead = await lease_one(store, 1)
    await store.fail(dead, error="", retry_in=None)
    await put(store, 2)
    await put(store, 3, registration=OTHER)
    heads = await store.claim(10, lease=LEASE * 9, ordered=True, halt=True)
    assert bodies_of(heads) == bodies(3), "behind a dead letter"
    await store.requeue(dead.id)
    one = await claim_one(store, 9, ordered=True, halt=True)
    assert one.body == dead.body, "the requeued one"
    await store.ack(one)
    for number, make_room in ((2, "discard"), (4, "purge"), (5, "no halt")):
        lease = await claim_one(store, 9, ordered=True, halt=True)
        assert lease.body == b"body %d" % number, "the next one"
        await store.fail(lease, error="", retry_in=None)
        await put(store, {2: 4, 4: 5, 5: 6}[number])
        clock.advance(1)
        assert list(await store.claim(9, lease=LEASE, ordered=True, halt=True)) == [], "behind the next dead letter"
        if make_room == "discard":
            await store.discard(lease.id)
        elif make_room == "purge":
            await store.purge(older_than=0.5, dead=True)
    assert bodies_of(await store.claim(9, lease=LEASE, ordered=True)) == bodies(6), "without halt"


# Arguments


async def test_durations_are_checked(store: Store) -> None:
    """A time that is negative or no number is refused, and nothing changes."""
    await confirm_one(store)
    lease = await lease_one(store)
    for value in (float("nan"), float("inf"), -1.0):
        await expect_misuse(open_one(store, OTHER, ttl=value), f"ttl={value}")
        await expect_misuse(store.retire_registration(ID, after=value), f"after={value}")
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
        await expect_misuse(store.list_registrations(limit=value), f"a limit of {value!r}")
        await expect_misuse(store.deliveries(state=DeliveryState.DEAD, limit=value), f"a limit of {value!r}")
        await expect_misuse(store.deliveries(state=DeliveryState.DEAD, after=value), f"after={value!r}")
        for method in (store.delivery, store.requeue, store.discard):
            await expect_misuse(method(value), f"an id of {value!r}")
    await put(store, 1)
    assert len(await store.claim(2**63 - 1, lease=LEASE)) == 1, "what the largest limit leases"
