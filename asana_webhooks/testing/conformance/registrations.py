"""What a store promises about registrations and the quarantine before the 201."""

from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, RegistrationState, Store
from asana_webhooks.testing.conformance.tools import (
    FORGED,
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
    expect_misuse,
    find_one,
    new_delivery,
)

__all__ = ["RegistrationPromises"]


class RegistrationPromises:
    """Opening, offering, confirming, closing, sweeping, heartbeats, quarantine."""

    # Registrations

    @check
    async def test_an_open_registration_is_found(self, store: Store, clock: SettableClock) -> None:
        """After `open` a registration is pending, with its deadline; an unknown one is not found."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        found = await find_one(store)
        expect(found.id, ID, "the id")
        expect(found.resource, RESOURCE, "the resource")
        expect(found.state, RegistrationState.PENDING, "the state")
        expect(found.deadline, clock.now + TTL, "the deadline")
        expect(found.candidates, (), "the candidates")
        expect((found.secret, found.webhook_gid, found.last_heartbeat_at), (None, None, None), "what comes later")
        expect(found.echoed, False, "whether there was a handshake")
        expect(await store.find(OTHER), None, "an unknown registration")

    @check
    async def test_a_registration_is_opened_once(self, store: Store) -> None:
        """A known id cannot be opened again, and the registration stays as it was."""
        await confirm_one(store)
        before = await store.find(ID)
        await expect_misuse(store.open(ID, resource="1", ttl=TTL), "a known id was opened")
        await store.close(ID)
        await expect_misuse(store.open(ID, resource="1", ttl=TTL), "a closed id was opened")
        expect((await find_one(store)).resource, before.resource if before else None, "the resource")

    @check
    async def test_an_offered_secret_is_remembered(self, store: Store) -> None:
        """The secrets of handshakes are kept in their order, each once."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        for secret in (FORGED, SECRET, FORGED):
            expect(await store.offer(ID, secret), True, "an offer in time")
        expect((await find_one(store)).candidates, (FORGED, SECRET), "the candidates")

    @check
    async def test_there_is_room_for_few_candidates(self, store: Store) -> None:
        """One secret more than `MAX_CANDIDATES` is not remembered; those known may come again."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        secrets = tuple(Secret(f"{number:032}") for number in range(MAX_CANDIDATES))
        for secret in secrets:
            await store.offer(ID, secret)
        expect(await store.offer(ID, SECRET), False, "an offer without room")
        expect(await store.offer(ID, secrets[0]), True, "an offer that is known")
        expect((await find_one(store)).candidates, secrets, "the candidates")

    @check
    async def test_an_offer_may_come_too_late(self, store: Store, clock: SettableClock) -> None:
        """After the deadline nothing is remembered, not even a known secret."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, SECRET)
        clock.advance(TTL + 1)
        expect(await store.offer(ID, SECRET), False, "a known secret after the deadline")
        expect(await store.offer(ID, FORGED), False, "a new secret after the deadline")
        (overdue,) = await store.sweep()
        expect(overdue.candidates, (SECRET,), "the candidates")

    @check
    async def test_a_registration_ends_at_its_deadline(self, store: Store, clock: SettableClock) -> None:
        """A pending registration whose deadline has passed is closed for all who ask, before `sweep` as well."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, SECRET)
        clock.advance(TTL - 1)
        expect(await store.put(new_delivery(1, secret=SECRET)), "stored", "before the deadline")
        clock.advance(1)
        found = await find_one(store)
        expect((found.state, found.candidates), (RegistrationState.CLOSED, ()), "what is found")
        expect(await store.put(new_delivery(1, secret=SECRET)), "refused", "a duplicate after the deadline")
        expect(await store.put(new_delivery(2, secret=SECRET)), "refused", "a new delivery after the deadline")
        await store.heartbeat(ID)
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), False, "confirming after the deadline")
        expect(await store.find(ID), found, "the registration")
        expect(list(await store.claim(9, lease=LEASE)), [], "what can be claimed")

    @check
    async def test_closing_after_the_deadline_tells_the_same(self, store: Store, clock: SettableClock) -> None:
        """`close` still tells whether a handshake had been remembered, and nothing is left to sweep."""
        for name in (ID, OTHER):
            await store.open(name, resource=RESOURCE, ttl=TTL)
        await store.offer(OTHER, SECRET)
        clock.advance(TTL)
        expect(await store.close(ID), False, "without a handshake")
        expect(await store.close(OTHER), True, "with a handshake")
        expect(list(await store.sweep()), [], "what is overdue")

    @check
    async def test_a_confirmed_registration_has_no_deadline(self, store: Store, clock: SettableClock) -> None:
        """Once confirmed, a registration goes on for ever."""
        await confirm_one(store)
        before = await find_one(store)
        clock.advance(TTL * 100)
        expect(await store.find(ID), before, "the registration")
        expect(list(await store.sweep()), [], "what is overdue")
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), True, "confirming again")
        expect(await store.put(new_delivery(1)), "stored", "a delivery")

    @check
    async def test_only_a_pending_registration_takes_offers(self, store: Store) -> None:
        """An unknown, confirmed or closed registration remembers no secret and stays as it is."""
        expect(await store.offer(ID, SECRET), False, "an offer for an unknown registration")
        await confirm_one(store)
        before = await store.find(ID)
        expect(await store.offer(ID, SECRET), False, "an offer after the confirmation")
        expect(await store.offer(ID, FORGED), False, "an offer after the confirmation")
        expect(await store.find(ID), before, "the registration")
        await store.close(ID)
        expect(await store.offer(ID, SECRET), False, "an offer after the end")

    @check
    async def test_the_201_decides(self, store: Store) -> None:
        """`confirm` keeps the candidate that Asana named, and drops the others."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, FORGED)
        await store.offer(ID, SECRET)
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), True, "a candidate")
        found = await find_one(store)
        expect(found.state, RegistrationState.CONFIRMED, "the state")
        expect((found.webhook_gid, found.secret, found.candidates), (GID, SECRET, ()), "what is kept")

    @check
    async def test_only_a_candidate_is_confirmed(self, store: Store) -> None:
        """A secret that no handshake brought confirms nothing."""
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), False, "an unknown registration")
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, FORGED)
        before = await store.find(ID)
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), False, "no candidate")
        expect(await store.find(ID), before, "the registration")

    @check
    async def test_confirming_again_changes_nothing(self, store: Store) -> None:
        """The same gid and secret may be confirmed again; others may not, nor may a closed registration."""
        await confirm_one(store)
        before = await store.find(ID)
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), True, "the same again")
        expect(await store.confirm(ID, webhook_gid="9", secret=SECRET), False, "another gid")
        expect(await store.confirm(ID, webhook_gid=GID, secret=FORGED), False, "another secret")
        expect(await store.find(ID), before, "the registration")
        await store.close(ID)
        expect(await store.confirm(ID, webhook_gid=GID, secret=SECRET), False, "a closed registration")

    @check
    async def test_closing_tells_whether_it_was_echoed(self, store: Store) -> None:
        """`close` is True for ever if a handshake had been remembered, and False without one."""
        expect(await store.close(ID), False, "an unknown registration")
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        expect(await store.close(ID), False, "without a handshake")
        await store.open(OTHER, resource=RESOURCE, ttl=TTL)
        await store.offer(OTHER, FORGED)
        expect(await store.close(OTHER), True, "with a handshake")
        expect(await store.close(OTHER), True, "again")
        found = await store.find(OTHER)
        expect(found and (found.state, found.candidates), (RegistrationState.CLOSED, ()), "the registration")
        expect([found and found.echoed, (await find_one(store)).echoed], [True, False], "what both of them tell")
        await store.heartbeat(OTHER)
        expect(await store.find(OTHER), found, "the registration after a heartbeat")

    @check
    async def test_sweeping_closes_what_is_overdue(self, store: Store, clock: SettableClock) -> None:
        """`sweep` returns overdue pending registrations as they were, and leaves all others alone."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, SECRET)
        await confirm_one(store, OTHER)
        await store.open("later", resource=RESOURCE, ttl=TTL * 3)
        before = await find_one(store)
        expect(before.echoed, True, "that a handshake was remembered")
        expect(list(await store.sweep()), [], "nothing is overdue yet")
        clock.advance(TTL + 1)
        expect(list(await store.sweep()), [before], "what was overdue")
        expect((await find_one(store)).state, RegistrationState.CLOSED, "its state")
        states = [found.state for found in (await store.find(OTHER), await store.find("later")) if found]
        expect(states, [RegistrationState.CONFIRMED, RegistrationState.PENDING], "the others")
        expect(list(await store.sweep()), [], "nothing is left")
        expect(await store.close(ID), True, "that a handshake had been remembered")

    @check
    async def test_heartbeats_are_noted(self, store: Store, clock: SettableClock) -> None:
        """The time of the last heartbeat is kept, also one before the confirmation; unknown ids do no harm."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, SECRET)
        await store.heartbeat(ID)
        await store.confirm(ID, webhook_gid=GID, secret=SECRET)
        expect((await find_one(store)).last_heartbeat_at, clock.now, "the time")
        clock.advance(10)
        await store.heartbeat(ID)
        await store.heartbeat(OTHER)
        expect((await find_one(store)).last_heartbeat_at, clock.now, "the time")
        expect(await store.find(OTHER), None, "an unknown registration")

    @check
    async def test_texts_are_checked(self, store: Store) -> None:
        """A lone surrogate cannot be kept; it is refused, and nothing changes."""
        bad = "\ud800"
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, SECRET)
        before = await find_one(store)
        await expect_misuse(store.open(OTHER, resource=bad, ttl=TTL), "a resource")
        await expect_misuse(store.offer(ID, Secret(bad)), "a secret that was offered")
        await expect_misuse(store.confirm(ID, webhook_gid=GID, secret=Secret(bad)), "a secret that was confirmed")
        await expect_misuse(store.confirm(ID, webhook_gid=bad, secret=SECRET), "a webhook")
        for call in (store.find(bad), store.close(bad), store.heartbeat(bad), store.offer(bad, SECRET)):
            await expect_misuse(call, "a registration's id")
        expect(await store.find(ID), before, "the registration")
        expect(await store.find(OTHER), None, "the other registration")

    # Quarantine

    @check
    async def test_quarantined_deliveries_wait_for_the_201(self, store: Store) -> None:
        """Nobody gets a delivery of a pending registration; those of the right secret come out in their order."""
        await store.open(ID, resource=RESOURCE, ttl=TTL)
        await store.offer(ID, FORGED)
        await store.offer(ID, SECRET)
        for number in (3, 1, 2):
            expect(await store.put(new_delivery(number, secret=SECRET)), "stored", "in quarantine")
            expect(await store.put(new_delivery(number + 10, secret=FORGED)), "stored", "in quarantine")
        expect(await store.put(new_delivery(3, secret=SECRET)), "duplicate", "in quarantine, again")
        expect(list(await store.claim(10, lease=LEASE)), [], "what can be claimed")
        expect((await store.health()).waiting, 0, "what is waiting")
        await store.confirm(ID, webhook_gid=GID, secret=SECRET)
        held = await store.claim(10, lease=LEASE)
        expect(bodies_of(held), [b"body 3", b"body 1", b"body 2"], "what was released")
        expect({lease.webhook_gid for lease in held}, {GID}, "their webhook")
        expect(await store.put(new_delivery(1, secret=SECRET)), "duplicate", "a released one, again")
        expect(await store.put(new_delivery(11, secret=SECRET)), "stored", "a dropped one, with the right secret")

    @check
    async def test_a_delivery_may_miss_the_201(self, store: Store) -> None:
        """A delivery checked against a candidate goes on if that was confirmed meanwhile, else it is refused."""
        await confirm_one(store)
        expect(await store.put(new_delivery(1, secret=SECRET)), "stored", "the confirmed secret")
        expect(await store.put(new_delivery(2, secret=FORGED)), "refused", "another secret")
        expect(bodies_of(await store.claim(10, lease=LEASE)), [b"body 1"], "what can be claimed")

    @check
    async def test_closing_empties_the_quarantine(self, store: Store, clock: SettableClock) -> None:
        """`close` and `sweep` drop what is in quarantine, and what waited already stays."""
        await confirm_one(store)
        await store.put(new_delivery(1))
        await store.close(ID)
        for name in (OTHER, "swept"):
            await store.open(name, resource=RESOURCE, ttl=TTL)
            await store.offer(name, SECRET)
            await store.put(new_delivery(2, registration=name, secret=SECRET))
        await store.close(OTHER)
        clock.advance(TTL + 1)
        await store.sweep()
        expect(await store.confirm(OTHER, webhook_gid=GID, secret=SECRET), False, "after the end")
        (lease,) = await store.claim(10, lease=LEASE)
        expect((lease.body, lease.webhook_gid), (b"body 1", GID), "what can be claimed")
        expect(await store.done(lease), True, "finishing it")
