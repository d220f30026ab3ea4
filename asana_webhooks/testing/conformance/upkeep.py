"""What a store promises about dead letters, forgetting, and its health."""

from asana_webhooks.store.base import Store
from asana_webhooks.testing.conformance.tools import (
    GID,
    ID,
    LEASE,
    OTHER,
    RESOURCE,
    SECRET,
    TTL,
    SettableClock,
    bodies_of,
    check,
    confirm_one,
    expect,
    expect_lost,
    lease_one,
    lease_with_body,
    new_delivery,
)

__all__ = ["UpkeepPromises"]


class UpkeepPromises:
    """Dead letters, requeue, purge, health."""

    # Dead letters

    @check
    async def test_what_fails_for_good_is_a_dead_letter(self, store: Store, clock: SettableClock) -> None:
        """A dead letter is out of the way, and shows what is needed to understand it."""
        await confirm_one(store)
        await store.fail(await lease_one(store), error="another time", retry_in=0)
        (lease,) = await store.claim(1, lease=LEASE)
        error = "bad: \N{SNOWMAN} \udcff"
        expect(await store.fail(lease, error=error, retry_in=None), True, "failing")
        await expect_lost(store, lease)
        clock.advance(LEASE * 100)
        expect(list(await store.claim(1, lease=LEASE)), [], "what can be claimed")
        (letter,) = await store.dead_letters()
        expect((letter.id, letter.registration, letter.resource), (lease.id, ID, RESOURCE), "the letter")
        expect((letter.webhook_gid, letter.attempts, letter.body), (GID, 2, b"body 1"), "the letter")
        expect(letter.received_at, lease.received_at, "when it came")
        expect(letter.error.startswith("bad: \N{SNOWMAN}"), True, "the last error")

    @check
    async def test_dead_letters_come_in_pages(self, store: Store) -> None:
        """`dead_letters` goes by ids, so the last one seen says where to go on."""
        await confirm_one(store)
        for number in range(5):
            await store.fail(await lease_one(store, number), error="", retry_in=None)
        first = await store.dead_letters(limit=3)
        second = await store.dead_letters(limit=3, after=first[-1].id)
        ids = [letter.id for letter in (*first, *second)]
        expect((len(first), len(second), ids), (3, 2, sorted(set(ids))), "the pages")
        expect(list(await store.dead_letters(limit=0)), [], "a page of nothing")

    @check
    async def test_a_dead_letter_can_wait_again(self, store: Store) -> None:
        """`requeue` counts attempts from the start; what is no dead letter stays as it is."""
        await confirm_one(store)
        lease = await lease_one(store)
        expect(await store.requeue(lease.id), False, "one that is held")
        await store.fail(lease, error="", retry_in=None)
        expect(await store.requeue(lease.id), True, "a dead letter")
        expect(await store.requeue(lease.id), False, "one that waits")
        expect(list(await store.dead_letters()), [], "the dead letters")
        await expect_lost(store, lease)
        (again,) = await store.claim(1, lease=LEASE)
        expect((again.id, again.attempt, again.body), (lease.id, 1, lease.body), "the next lease")
        await expect_lost(store, lease)
        await store.done(again)
        expect(await store.requeue(again.id), False, "one that is done")
        expect(await store.requeue(again.id + 1), False, "one that never was")

    @check
    async def test_purging_forgets(self, store: Store, clock: SettableClock) -> None:
        """`purge` forgets finished deliveries of the given age, dead letters only if asked, and nothing else."""
        await confirm_one(store)
        await store.done(await lease_one(store, 1))
        await store.fail(await lease_one(store, 2), error="", retry_in=None)
        await store.put(new_delivery(3))
        clock.advance(100)
        await store.done((await store.claim(1, lease=LEASE))[0])
        await store.put(new_delivery(4))
        await store.done(await lease_with_body(store, b"body 4"))
        await store.put(new_delivery(5))
        expect(await store.purge(older_than=200), 0, "nothing is so old")
        expect(await store.purge(older_than=100, dead=True), 0, "nothing is older than just this")
        expect(await store.purge(older_than=50), 2, "the first and the third")
        expect(await store.purge(older_than=50), 0, "again")
        expect(await store.put(new_delivery(4)), "duplicate", "one too young to be forgotten")
        expect(await store.purge(older_than=50, dead=True), 1, "the dead letter")
        expect(list(await store.dead_letters()), [], "the dead letters")
        for number in (1, 2):
            expect(await store.put(new_delivery(number)), "stored", "one that was forgotten")
        expect(bodies_of(await store.claim(9, lease=LEASE)), [b"body 5", b"body 1", b"body 2"], "what can be claimed")

    @check
    async def test_purging_forgets_what_is_over(self, store: Store, clock: SettableClock) -> None:
        """A closed registration is forgotten when its deadline is so long past and nothing of it is left."""
        await confirm_one(store)
        await store.put(new_delivery(1))
        await store.open(OTHER, resource=RESOURCE, ttl=TTL)
        await store.close(ID)
        clock.advance(TTL + 100)
        await store.purge(older_than=0)
        expect([await store.find(one) is None for one in (ID, OTHER)], [False, False], "what is not over")
        await store.sweep()
        expect(await store.purge(older_than=100), 0, "what is purged")
        expect(await store.find(OTHER) is None, False, "one that ended just now")
        expect(await store.purge(older_than=99), 0, "registrations are not counted")
        expect(await store.find(OTHER), None, "one that is over")
        await store.done(await lease_with_body(store, b"body 1"))
        expect(await store.purge(older_than=50), 1, "its last delivery")
        await store.purge(older_than=50)
        expect(await store.find(ID), None, "one whose last delivery is gone")
        expect(await store.close(ID), False, "one that is unknown again")

    @check
    async def test_a_new_delivery_never_fits_an_old_lease(self, store: Store, clock: SettableClock) -> None:
        """Numbers are not given out again, even after a purge."""
        await confirm_one(store)
        old = await lease_one(store, 1)
        await store.done(old)
        clock.advance(1)
        await store.purge(older_than=0)
        await lease_one(store, 2)
        await expect_lost(store, old)

    # Health

    @check
    async def test_health_counts(self, store: Store, clock: SettableClock) -> None:
        """The numbers are right, a lease that ran out counts as waiting, and quarantine counts apart."""
        health = await store.health()
        expect((health.waiting, health.leased, health.quarantined, health.dead), (0, 0, 0, 0), "an empty store")
        expect(health.oldest_age, None, "an empty store")
        expect((health.writable, health.heartbeats, health.problems), (True, {}, ()), "an empty store")
        await confirm_one(store)
        await store.heartbeat(ID)
        beat = clock.now
        await store.open(OTHER, resource=RESOURCE, ttl=TTL)
        await store.offer(OTHER, SECRET)
        await store.put(new_delivery(1, registration=OTHER, secret=SECRET))
        clock.advance(1)
        await store.fail(await lease_one(store, 1), error="", retry_in=None)
        await store.done(await lease_one(store, 2))
        await store.fail(await lease_one(store, 3), error="", retry_in=1000)
        await lease_one(store, 4)
        await store.put(new_delivery(5))
        clock.advance(LEASE - 1)
        health = await store.health()
        expect((health.waiting, health.leased, health.dead), (2, 1, 1), "the numbers")
        expect(health.quarantined, 1, "what is in quarantine")
        expect((health.oldest_age, health.heartbeats), (LEASE - 1, {GID: beat}), "the age and the heartbeats")
        clock.advance(2)
        health = await store.health()
        expect((health.waiting, health.leased, health.dead), (3, 0, 1), "the numbers after the lease")
        await store.close(ID)
        expect((await store.health()).heartbeats, {}, "the heartbeats after the end")

    @check
    async def test_no_age_is_negative(self, store: Store, clock: SettableClock) -> None:
        """What came in before the clock was set back is new."""
        await confirm_one(store)
        await store.put(new_delivery(1))
        clock.advance(-10)
        expect((await store.health()).oldest_age, 0, "the age")
