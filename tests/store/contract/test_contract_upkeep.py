"""What a store promises about looking at deliveries, dead letters, forgetting, and its health."""

import asyncio
from typing import Any

from asana_webhooks.store.base import DeliveryState, RegistrationState, Store
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    GID,
    ID,
    LEASE,
    OTHER,
    RESOURCE,
    SECRET,
    THIRD,
    TTL,
    adopt_one,
    bodies,
    bodies_of,
    claim_one,
    confirm_one,
    expect_lost,
    expect_misuse,
    find_one,
    gid_of,
    lease_one,
    new_delivery,
    open_one,
    put,
)

HOUR = 3600.0


async def put_quarantined(store: Store, number: int = 1, id: str = OTHER) -> None:
    """Open a registration, and put a delivery into its quarantine."""
    await open_one(store, id, ttl=HOUR)
    await store.add_candidate(id, SECRET)
    assert await store.put(new_delivery(number, registration=id, secret=SECRET)) == "stored", "a quarantined delivery"


# Looking


async def test_deliveries_are_shown_by_state(store: Store, clock: Clock) -> None:
    """Each delivery is shown in one state, with what is needed to understand it."""
    await confirm_one(store, label="tenant")
    leases = [await lease_one(store, number) for number in range(1, 5)]
    await store.fail(leases[0], error="a", retry_in=5)
    await store.fail(leases[1], error="bad: \N{SNOWMAN} \udcff", retry_in=None, done=[3])
    clock.advance(LEASE)
    due = await store.deliveries(state=DeliveryState.WAITING)
    assert bodies_of(due) == bodies(1, 3, 4), "the delay and the leases ran out"
    assert [one.due_at for one in due] == [None] * 3, "they wait for nothing"
    held = {lease.body: lease for lease in await store.claim(2, lease=LEASE)}
    assert sorted(held) == bodies(1, 3), "what is claimed"
    await store.fail(held[b"body 1"], error="c", retry_in=7)
    await put(store, 5)
    await put_quarantined(store, 6)
    found = {state: await store.deliveries(state=state) for state in DeliveryState}
    shown = {state.value: bodies_of(some) for state, some in found.items()}
    assert shown["waiting"] == bodies(4, 5), "the waiting, one of them since its lease ran out"
    assert (shown["leased"], shown["delayed"]) == (bodies(3), bodies(1)), "the leased and delayed"
    assert (shown["dead"], shown["quarantined"]) == (bodies(2), bodies(6)), "the dead and quarantined"
    for state, some in found.items():
        for one in some:
            assert await store.delivery(one.id) == one, "one by its id"
            assert one.state is state, "its state"
    delayed, leased, dead = (
        found[state][0] for state in (DeliveryState.DELAYED, DeliveryState.LEASED, DeliveryState.DEAD)
    )
    assert (delayed.due_at, leased.due_at, dead.due_at) == (clock.now + 7, clock.now + LEASE, None), "when that ends"
    assert [one.due_at for one in found[DeliveryState.WAITING]] == [None, None], "the waiting wait for nothing"
    assert (delayed.attempts, delayed.error, leased.attempts, leased.error) == (2, "c", 2, ""), "the attempts"
    assert (dead.id, dead.registration, dead.resource) == (leases[1].id, ID, RESOURCE), "the dead letter"
    assert (dead.webhook_gid, dead.label, dead.received_at) == (GID, "tenant", leases[1].received_at), "its webhook"
    assert (dead.attempts, dead.done) == (1, (3,)), "its attempts"
    assert dead.error.startswith("bad: \N{SNOWMAN}") is True, "its last error"


async def test_deliveries_come_in_pages(store: Store) -> None:
    """A page goes on above the id it is given, so the last one seen says where to go on."""
    await confirm_one(store)
    for number in range(5):
        await store.fail(await lease_one(store, number), error="", retry_in=None)
    await put(store, *range(10, 15))
    for state in (DeliveryState.DEAD, DeliveryState.WAITING):
        first = await store.deliveries(state=state, limit=3)
        second = await store.deliveries(state=state, limit=3, after=first[-1].id)
        ids = [one.id for one in (*first, *second)]
        assert (len(first), len(second), ids) == (3, 2, sorted(set(ids))), "the pages"
        assert list(await store.deliveries(state=state, after=ids[-1])) == [], "after the last"
        for limit in (0, -1):
            assert list(await store.deliveries(state=state, limit=limit)) == [], "a page of nothing"


async def test_states_have_names(store: Store) -> None:
    """A state may be its name; what is no state is a mistake."""
    await confirm_one(store)
    await put(store, 1)
    by_name: Any = "waiting"
    unknown: Any = "done"
    assert len(await store.deliveries(state=by_name)) == 1, "by its name"
    await expect_misuse(store.deliveries(state=unknown), "an unknown state")


async def test_what_is_done_is_gone(store: Store) -> None:
    """A delivery that is done or unknown is not shown."""
    await confirm_one(store)
    lease = await lease_one(store)
    assert await store.delivery(lease.id) is not None, "while it is leased"
    await store.ack(lease)
    assert await store.delivery(lease.id) is None, "when it is done"
    assert await store.delivery(lease.id + 1) is None, "one that never was"
    for state in DeliveryState:
        assert list(await store.deliveries(state=state)) == [], f"what is {state}"


# Dead letters


async def test_a_dead_letter_can_wait_again(store: Store, clock: Clock) -> None:
    """Requeuing counts attempts from the start; what is no dead letter stays as it is."""
    await confirm_one(store)
    lease = await lease_one(store)
    assert await store.requeue(lease.id) is False, "one that is held"
    await store.fail(lease, error="bad", retry_in=None)
    clock.advance(LEASE * 100)
    assert list(await store.claim(1, lease=LEASE)) == [], "a dead letter is out of the way"
    assert await store.requeue(lease.id) is True, "a dead letter"
    assert await store.requeue(lease.id) is False, "one that waits"
    assert list(await store.deliveries(state=DeliveryState.DEAD)) == [], "the dead letters"
    again = await claim_one(store)
    assert (again.id, again.attempt, again.body) == (lease.id, 1, lease.body), "the next lease"
    await store.fail(again, error="", retry_in=10)
    assert await store.requeue(again.id) is False, "one that is delayed"
    clock.advance(10)
    await store.ack(await claim_one(store))
    assert await store.requeue(again.id) is False, "one that is done"
    assert await store.requeue(again.id + 1) is False, "one that never was"


async def test_a_delivery_can_be_discarded(store: Store, clock: Clock) -> None:
    """What waits, is delayed, dead or in quarantine can be deleted, and stays known; what is held cannot."""
    await confirm_one(store)
    leases = [await lease_one(store, number) for number in range(1, 5)]
    delayed, dead, held, _ = leases
    await store.fail(delayed, error="", retry_in=100)
    await store.fail(dead, error="", retry_in=None)
    await put(store, 5)
    await put_quarantined(store, 6)
    assert await store.discard(held.id) is False, "one that is held"
    clock.advance(LEASE)
    await store.extend(held, seconds=LEASE)  # the fourth ran out
    gone = [delayed.id, dead.id]
    for state in (DeliveryState.WAITING, DeliveryState.QUARANTINED):
        gone += [one.id for one in await store.deliveries(state=state)]
    assert len(gone) == 5, "what can be discarded"
    for id in gone:
        assert await store.discard(id) is True, "discarding"
        assert await store.delivery(id) is None, "what is discarded"
        assert await store.discard(id) is False, "again"
    assert await store.discard(held.id + 100) is False, "one that never was"
    for number in range(1, 6):
        assert await store.put(new_delivery(number)) == "duplicate", "the same again"
    assert await store.put(new_delivery(6, registration=OTHER, secret=SECRET)) == "duplicate", "the quarantined again"
    assert await store.ack(held) is True, "the held one"
    assert await store.discard(held.id) is False, "one that is done"
    assert await store.put(new_delivery(3)) == "duplicate", "the held one again"


# Forgetting


async def test_purging_forgets_by_arrival_and_event(store: Store, clock: Clock) -> None:
    """A delivery is forgotten when its arrival and its first event are old enough; without a time, the arrival is."""
    await confirm_one(store)
    start = clock.now
    times = {1: None, 2: start - 1000, 3: start + 50, 4: start}
    new = {number: new_delivery(number, at=at) for number, at in times.items()}
    for one in new.values():
        await store.put(one)
        await store.ack(await claim_one(store))
    clock.advance(100)
    assert await store.purge(older_than=100) == 0, "nothing is older than just this"
    assert await store.purge(older_than=60) == 3, "all but the one with the later event"
    assert await store.put(new[3]) == "duplicate", "the one with the later event"
    assert await store.purge(older_than=60) == 0, "again"
    assert await store.purge(older_than=49) == 1, "the last"
    replay = new_delivery(5, at=start - 1000)
    for one in (*new.values(), replay):
        assert await store.put(one) == "stored", "one that is unknown again"
        await store.ack(await claim_one(store))
    assert await store.purge(older_than=1) == 0, "old events that have just come"
    assert await store.put(replay) == "duplicate", "a replay that has just come"
    clock.advance(2)
    assert await store.purge(older_than=1) == 5, "when they have been there for long"


async def test_purging_takes_what_is_dead_if_asked(store: Store, clock: Clock) -> None:
    """Dead letters go by their arrival, and only when asked for; what waits stays."""
    await confirm_one(store)
    young = new_delivery(1, at=clock.now + 100)
    await store.put(young)
    await store.fail(await claim_one(store), error="", retry_in=None)
    await put(store, 2)
    clock.advance(100)
    await store.fail(await lease_one_more(store, 3), error="", retry_in=None)
    assert await store.purge(older_than=100, dead=True) == 0, "nothing is older than just this"
    assert await store.purge(older_than=50) == 1, "the key of the one that waits"
    assert len(await store.deliveries(state=DeliveryState.DEAD)) == 2, "the dead letters"
    assert await store.purge(older_than=50, dead=True) == 1, "the old dead letter"
    assert bodies_of(await store.deliveries(state=DeliveryState.DEAD)) == bodies(3), "the other"
    assert await store.put(young) == "duplicate", "one whose event is young"
    assert bodies_of(await store.claim(9, lease=LEASE)) == bodies(2), "what waits"


async def lease_one_more(store: Store, number: int) -> Any:
    """Lease a new delivery while another one waits."""
    await put(store, number)
    first, second = await store.claim(2, lease=LEASE)
    await store.release(first)
    return second


async def test_purging_forgets_closed_registrations(store: Store, clock: Clock) -> None:
    """A closed registration is forgotten when its deadline is so long past and nothing of it is left."""
    await confirm_one(store)
    await put(store, 1)
    await open_one(store, OTHER)
    await store.close_registration(ID)
    await confirm_one(store, THIRD)
    clock.advance(TTL + 100)
    await store.purge(older_than=0)
    assert [await store.find_registration(one) is None for one in (ID, OTHER)] == [False, False], "what is not over"
    await store.expire_registrations()
    assert await store.purge(older_than=100) == 0, "what is purged"
    assert await store.find_registration(OTHER) is not None, "one that ended just now"
    assert await store.purge(older_than=99) == 0, "registrations are not counted"
    assert await store.find_registration(OTHER) is None, "one that is over"
    await store.ack(await claim_one(store))
    await store.purge(older_than=50)
    assert await store.find_registration(ID) is None, "one whose last delivery is gone"
    assert await store.close_registration(ID) is False, "one that is unknown again"
    assert (await find_one(store, THIRD)).state is RegistrationState.CONFIRMED, "one that is confirmed"


async def test_a_forgotten_id_begins_anew(store: Store, clock: Clock) -> None:
    """The id of a forgotten registration can be opened again; nothing of the old one comes back."""
    await confirm_one(store)
    await store.record_heartbeat(ID)
    known = new_delivery(1, at=clock.now + HOUR)
    await store.put(known)
    old = await claim_one(store)
    await store.ack(old)
    await store.close_registration(ID)
    clock.advance(TTL + 1)
    await store.purge(older_than=0)
    assert await store.find_registration(ID) is None, "the old registration"
    await open_one(store, ID, resource="1")
    found = await find_one(store)
    assert (found.resource, found.candidates, found.echoed) == ("1", (), False), "the new registration"
    assert (found.last_heartbeat_at, found.last_delivery_at) == (None, None), "what was heard of it"
    await store.add_candidate(ID, SECRET)
    await store.confirm_registration(ID, webhook_gid="new", secret=SECRET)
    assert await store.put(known) == "stored", "what only the old one knew"
    assert (await claim_one(store)).id > old.id, "its id"
    await expect_lost(store, old)


# Health


async def test_health_counts(store: Store, clock: Clock) -> None:
    """The numbers are right, a lease that ran out counts as waiting, and quarantine counts apart."""
    health = await store.health()
    assert (health.waiting, health.leased, health.quarantined, health.dead) == (0, 0, 0, 0), "an empty store"
    assert (health.oldest_age, health.webhooks, health.silent, health.problems) == (None, 0, (), ()), "an empty store"
    assert (health.writable, health.secrets_readable) == (True, True), "an empty store"
    await confirm_one(store)
    await put_quarantined(store)
    clock.advance(1)
    await store.fail(await lease_one(store, 1), error="", retry_in=None)
    await store.ack(await lease_one(store, 2))
    clock.advance(1)
    await store.fail(await lease_one(store, 3), error="", retry_in=1000)
    clock.advance(1)
    await lease_one(store, 4)
    await put(store, 5)
    clock.advance(LEASE - 1)
    health = await store.health()
    assert (health.waiting, health.leased, health.dead, health.quarantined) == (2, 1, 1, 1), "the numbers"
    assert (health.oldest_age, health.webhooks) == (LEASE, 1), "the age of the delayed one, and the webhooks"
    assert (health.writable, health.secrets_readable, health.problems) == (True, True, ()), "one with two secrets"
    clock.advance(1)
    health = await store.health()
    assert (health.waiting, health.leased, health.dead) == (3, 0, 1), "the numbers after the lease"
    for one in await store.deliveries(state=DeliveryState.DELAYED):
        await store.discard(one.id)
    (four, _) = await store.claim(2, lease=LEASE)
    assert (await store.health()).oldest_age == LEASE, "the age of a leased one"
    await store.ack(four)
    await store.close_registration(ID)
    assert (await store.health()).webhooks == 0, "the webhooks after the end"


async def test_the_silent_are_named(store: Store, clock: Clock) -> None:
    """A webhook from which nothing came for ten hours is named, after those that have been silent for longer."""
    await confirm_one(store, "opened")
    clock.advance(60)
    await confirm_one(store, "heard")
    await confirm_one(store, "delivered")
    await confirm_one(store, "closed")
    await open_one(store, "pending", ttl=HOUR * 100)
    clock.advance(HOUR)
    await store.record_heartbeat("heard")
    clock.advance(HOUR)
    await put(store, 1, registration="delivered")
    await store.close_registration("closed")
    clock.advance(HOUR * 8 - 61)
    assert (await store.health()).silent == (), "before ten hours"
    clock.advance(2)
    assert (await store.health()).silent == (gid_of("opened"),), "after ten hours"
    clock.advance(HOUR * 3)
    silent = tuple(gid_of(id) for id in ("opened", "heard", "delivered"))
    assert (await store.health()).silent == silent, "all of them"
    await store.record_heartbeat("opened")
    await put(store, 2, registration="heard")
    health = await store.health()
    assert (health.silent, health.webhooks) == (silent[2:], 3), "after they were heard"


async def test_few_of_the_silent_are_named(store: Store, clock: Clock) -> None:
    """Of many silent webhooks, the hundred that have been silent for longest are named."""
    names = [f"{number:03}" for number in range(102)]
    for some in (names[:51], names[51:101], names[101:]):
        assert all(await asyncio.gather(*(adopt_one(store, name, webhook_gid=name) for name in some))), "adopting"
        clock.advance(1)
    clock.advance(HOUR * 11)
    health = await store.health()
    assert (health.webhooks, len(health.silent)) == (102, 100), "the numbers"
    assert set(health.silent[:51]) == set(names[:51]), "the first"
    assert set(health.silent[51:]) < set(names[51:101]), "the others, but not the last"


async def test_no_age_is_negative(store: Store, clock: Clock) -> None:
    """What came in before the clock was set back is new."""
    await confirm_one(store)
    await put(store, 1)
    clock.advance(-10)
    assert (await store.health()).oldest_age == 0, "the age"
