"""What a store promises about dead letters, forgetting, and its health."""

from asana_webhooks.store.base import Store
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
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
    lease_one,
    lease_with_body,
    new_delivery,
)

# Dead letters


async def test_what_fails_for_good_is_a_dead_letter(store: Store, clock: Clock) -> None:
    """A dead letter is out of the way, and shows what is needed to understand it."""
    await confirm_one(store)
    await store.fail(await lease_one(store), error="another time", retry_in=0)
    (lease,) = await store.claim(1, lease=LEASE)
    error = "bad: \N{SNOWMAN} \udcff"
    assert await store.fail(lease, error=error, retry_in=None) is True, "failing"
    await expect_lost(store, lease)
    clock.advance(LEASE * 100)
    assert list(await store.claim(1, lease=LEASE)) == [], "what can be claimed"
    (letter,) = await store.deliveries(state="dead")
    assert (letter.id, letter.registration, letter.resource) == (lease.id, ID, RESOURCE), "the letter"
    assert (letter.webhook_gid, letter.attempts, letter.body) == (GID, 2, b"body 1"), "the letter"
    assert letter.received_at == lease.received_at, "when it came"
    assert letter.error.startswith("bad: \N{SNOWMAN}") is True, "the last error"


async def test_dead_letters_come_in_pages(store: Store) -> None:
    """`dead_letters` goes by ids, so the last one seen says where to go on."""
    await confirm_one(store)
    for number in range(5):
        await store.fail(await lease_one(store, number), error="", retry_in=None)
    first = await store.deliveries(state="dead", limit=3)
    second = await store.deliveries(state="dead", limit=3, after=first[-1].id)
    ids = [letter.id for letter in (*first, *second)]
    assert (len(first), len(second), ids) == (3, 2, sorted(set(ids))), "the pages"
    assert list(await store.deliveries(state="dead", limit=0)) == [], "a page of nothing"


async def test_a_dead_letter_can_wait_again(store: Store) -> None:
    """`requeue` counts attempts from the start; what is no dead letter stays as it is."""
    await confirm_one(store)
    lease = await lease_one(store)
    assert await store.requeue(lease.id) is False, "one that is held"
    await store.fail(lease, error="", retry_in=None)
    assert await store.requeue(lease.id) is True, "a dead letter"
    assert await store.requeue(lease.id) is False, "one that waits"
    assert list(await store.deliveries(state="dead")) == [], "the dead letters"
    await expect_lost(store, lease)
    (again,) = await store.claim(1, lease=LEASE)
    assert (again.id, again.attempt, again.body) == (lease.id, 1, lease.body), "the next lease"
    await expect_lost(store, lease)
    await store.ack(again)
    assert await store.requeue(again.id) is False, "one that is done"
    assert await store.requeue(again.id + 1) is False, "one that never was"


async def test_purging_forgets(store: Store, clock: Clock) -> None:
    """`purge` forgets finished deliveries of the given age, dead letters only if asked, and nothing else."""
    await confirm_one(store)
    await store.ack(await lease_one(store, 1))
    await store.fail(await lease_one(store, 2), error="", retry_in=None)
    await store.put(new_delivery(3))
    clock.advance(100)
    await store.ack((await store.claim(1, lease=LEASE))[0])
    await store.put(new_delivery(4))
    await store.ack(await lease_with_body(store, b"body 4"))
    await store.put(new_delivery(5))
    assert await store.purge(older_than=200) == 0, "nothing is so old"
    assert await store.purge(older_than=100, dead=True) == 0, "nothing is older than just this"
    assert await store.purge(older_than=50) == 2, "the first and the third"
    assert await store.purge(older_than=50) == 0, "again"
    assert await store.put(new_delivery(4)) == "duplicate", "one too young to be forgotten"
    assert await store.purge(older_than=50, dead=True) == 1, "the dead letter"
    assert list(await store.deliveries(state="dead")) == [], "the dead letters"
    for number in (1, 2):
        assert await store.put(new_delivery(number)) == "stored", "one that was forgotten"
    assert bodies_of(await store.claim(9, lease=LEASE)) == [b"body 5", b"body 1", b"body 2"], "what can be claimed"


async def test_purging_forgets_what_is_over(store: Store, clock: Clock) -> None:
    """A closed registration is forgotten when its deadline is so long past and nothing of it is left."""
    await confirm_one(store)
    await store.put(new_delivery(1))
    await store.open_registration(OTHER, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.close_registration(ID)
    clock.advance(TTL + 100)
    await store.purge(older_than=0)
    assert [await store.find_registration(one) is None for one in (ID, OTHER)] == [False, False], "what is not over"
    await store.expire_registrations()
    assert await store.purge(older_than=100) == 0, "what is purged"
    assert await store.find_registration(OTHER) is not None, "one that ended just now"
    assert await store.purge(older_than=99) == 0, "registrations are not counted"
    assert await store.find_registration(OTHER) is None, "one that is over"
    await store.ack(await lease_with_body(store, b"body 1"))
    assert await store.purge(older_than=50) == 1, "its last delivery"
    await store.purge(older_than=50)
    assert await store.find_registration(ID) is None, "one whose last delivery is gone"
    assert await store.close_registration(ID) is False, "one that is unknown again"


async def test_a_new_delivery_never_fits_an_old_lease(store: Store, clock: Clock) -> None:
    """Numbers are not given out again, even after a purge."""
    await confirm_one(store)
    old = await lease_one(store, 1)
    await store.ack(old)
    clock.advance(1)
    await store.purge(older_than=0)
    await lease_one(store, 2)
    await expect_lost(store, old)


# Health


async def test_health_counts(store: Store, clock: Clock) -> None:
    """The numbers are right, a lease that ran out counts as waiting, and quarantine counts apart."""
    health = await store.health()
    assert (health.waiting, health.leased, health.quarantined, health.dead) == (0, 0, 0, 0), "an empty store"
    assert health.oldest_age is None, "an empty store"
    assert (health.heartbeats, health.problems) == ({}, ()), "an empty store"
    assert (health.writable, health.secrets_readable) == (True, True), "an empty store"
    await confirm_one(store)
    await store.record_heartbeat(ID)
    beat = clock.now
    await store.open_registration(OTHER, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(OTHER, SECRET)
    await store.put(new_delivery(1, registration=OTHER, secret=SECRET))
    clock.advance(1)
    await store.fail(await lease_one(store, 1), error="", retry_in=None)
    await store.ack(await lease_one(store, 2))
    await store.fail(await lease_one(store, 3), error="", retry_in=1000)
    await lease_one(store, 4)
    await store.put(new_delivery(5))
    clock.advance(LEASE - 1)
    health = await store.health()
    assert (health.waiting, health.leased, health.dead) == (2, 1, 1), "the numbers"
    assert health.quarantined == 1, "what is in quarantine"
    assert (health.oldest_age, health.heartbeats) == (LEASE - 1, {GID: beat}), "the age and the heartbeats"
    assert (health.writable, health.secrets_readable, health.problems) == (True, True, ()), "one with two secrets"
    clock.advance(2)
    health = await store.health()
    assert (health.waiting, health.leased, health.dead) == (3, 0, 1), "the numbers after the lease"
    await store.close_registration(ID)
    assert (await store.health()).heartbeats == {}, "the heartbeats after the end"


async def test_no_age_is_negative(store: Store, clock: Clock) -> None:
    """What came in before the clock was set back is new."""
    await confirm_one(store)
    await store.put(new_delivery(1))
    clock.advance(-10)
    assert (await store.health()).oldest_age == 0, "the age"
