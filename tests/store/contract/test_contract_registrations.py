"""What a store promises about registrations and the quarantine before the 201."""

from asana_webhooks.models import Secret
from asana_webhooks.store.base import MAX_CANDIDATES, RegistrationState, Store
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
    expect_misuse,
    find_one,
    new_delivery,
)

# Registrations


async def test_an_open_registration_is_found(store: Store, clock: Clock) -> None:
    """After `open` a registration is pending, with its deadline; an unknown one is not found."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    found = await find_one(store)
    assert found.id == ID, "the id"
    assert found.resource == RESOURCE, "the resource"
    assert found.state == RegistrationState.PENDING, "the state"
    assert found.deadline == clock.now + TTL, "the deadline"
    assert found.candidates == (), "the candidates"
    assert (found.secret, found.webhook_gid, found.last_heartbeat_at) == (None, None, None), "what comes later"
    assert found.echoed is False, "whether there was a handshake"
    assert await store.find_registration(OTHER) is None, "an unknown registration"


async def test_a_registration_is_opened_once(store: Store) -> None:
    """A known id cannot be opened again, and the registration stays as it was."""
    await confirm_one(store)
    before = await store.find_registration(ID)
    await expect_misuse(
        store.open_registration(ID, resource="1", public_url="https://example.com/asana", ttl=TTL),
        "a known id was opened",
    )
    await store.close_registration(ID)
    await expect_misuse(
        store.open_registration(ID, resource="1", public_url="https://example.com/asana", ttl=TTL),
        "a closed id was opened",
    )
    assert (await find_one(store)).resource == before.resource if before else None, "the resource"


async def test_an_offered_secret_is_remembered(store: Store) -> None:
    """The secrets of handshakes are kept in their order, each once."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    for secret in (FORGED, SECRET, FORGED):
        assert await store.add_candidate(ID, secret) is True, "an offer in time"
    assert (await find_one(store)).candidates == (FORGED, SECRET), "the candidates"


async def test_there_is_room_for_few_candidates(store: Store) -> None:
    """One secret more than `MAX_CANDIDATES` is not remembered; those known may come again."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    secrets = tuple(Secret(f"{number:032}") for number in range(MAX_CANDIDATES))
    for secret in secrets:
        await store.add_candidate(ID, secret)
    assert await store.add_candidate(ID, SECRET) is False, "an offer without room"
    assert await store.add_candidate(ID, secrets[0]) is True, "an offer that is known"
    assert (await find_one(store)).candidates == secrets, "the candidates"


async def test_an_offer_may_come_too_late(store: Store, clock: Clock) -> None:
    """After the deadline nothing is remembered, not even a known secret."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, SECRET)
    clock.advance(TTL + 1)
    assert await store.add_candidate(ID, SECRET) is False, "a known secret after the deadline"
    assert await store.add_candidate(ID, FORGED) is False, "a new secret after the deadline"
    (overdue,) = await store.expire_registrations()
    assert overdue.candidates == (SECRET,), "the candidates"


async def test_a_registration_ends_at_its_deadline(store: Store, clock: Clock) -> None:
    """A pending registration whose deadline has passed is closed for all who ask, before `sweep` as well."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, SECRET)
    clock.advance(TTL - 1)
    assert await store.put(new_delivery(1, secret=SECRET)) == "stored", "before the deadline"
    clock.advance(1)
    found = await find_one(store)
    assert (found.state, found.candidates) == (RegistrationState.CLOSED, ()), "what is found"
    assert await store.put(new_delivery(1, secret=SECRET)) == "refused", "a duplicate after the deadline"
    assert await store.put(new_delivery(2, secret=SECRET)) == "refused", "a new delivery after the deadline"
    await store.record_heartbeat(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, (
        "confirming after the deadline"
    )
    assert await store.find_registration(ID) == found, "the registration"
    assert list(await store.claim(9, lease=LEASE)) == [], "what can be claimed"


async def test_closing_after_the_deadline_tells_the_same(store: Store, clock: Clock) -> None:
    """`close` still tells whether a handshake had been remembered, and nothing is left to sweep."""
    for name in (ID, OTHER):
        await store.open_registration(name, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(OTHER, SECRET)
    clock.advance(TTL)
    assert await store.close_registration(ID) is False, "without a handshake"
    assert await store.close_registration(OTHER) is True, "with a handshake"
    assert list(await store.expire_registrations()) == [], "what is overdue"


async def test_a_confirmed_registration_has_no_deadline(store: Store, clock: Clock) -> None:
    """Once confirmed, a registration goes on for ever."""
    await confirm_one(store)
    before = await find_one(store)
    clock.advance(TTL * 100)
    assert await store.find_registration(ID) == before, "the registration"
    assert list(await store.expire_registrations()) == [], "what is overdue"
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is True, "confirming again"
    assert await store.put(new_delivery(1)) == "stored", "a delivery"


async def test_only_a_pending_registration_takes_offers(store: Store) -> None:
    """An unknown, confirmed or closed registration remembers no secret and stays as it is."""
    assert await store.add_candidate(ID, SECRET) is False, "an offer for an unknown registration"
    await confirm_one(store)
    before = await store.find_registration(ID)
    assert await store.add_candidate(ID, SECRET) is False, "an offer after the confirmation"
    assert await store.add_candidate(ID, FORGED) is False, "an offer after the confirmation"
    assert await store.find_registration(ID) == before, "the registration"
    await store.close_registration(ID)
    assert await store.add_candidate(ID, SECRET) is False, "an offer after the end"


async def test_the_201_decides(store: Store) -> None:
    """`confirm` keeps the candidate that Asana named, and drops the others."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, FORGED)
    await store.add_candidate(ID, SECRET)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is True, "a candidate"
    found = await find_one(store)
    assert found.state == RegistrationState.CONFIRMED, "the state"
    assert (found.webhook_gid, found.secret, found.candidates) == (GID, SECRET, ()), "what is kept"


async def test_only_a_candidate_is_confirmed(store: Store) -> None:
    """A secret that no handshake brought confirms nothing."""
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "an unknown registration"
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, FORGED)
    before = await store.find_registration(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "no candidate"
    assert await store.find_registration(ID) == before, "the registration"


async def test_confirming_again_changes_nothing(store: Store) -> None:
    """The same gid and secret may be confirmed again; others may not, nor may a closed registration."""
    await confirm_one(store)
    before = await store.find_registration(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is True, "the same again"
    assert await store.confirm_registration(ID, webhook_gid="9", secret=SECRET) is False, "another gid"
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=FORGED) is False, "another secret"
    assert await store.find_registration(ID) == before, "the registration"
    await store.close_registration(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "a closed registration"


async def test_closing_tells_whether_it_was_echoed(store: Store) -> None:
    """`close` is True for ever if a handshake had been remembered, and False without one."""
    assert await store.close_registration(ID) is False, "an unknown registration"
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    assert await store.close_registration(ID) is False, "without a handshake"
    await store.open_registration(OTHER, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(OTHER, FORGED)
    assert await store.close_registration(OTHER) is True, "with a handshake"
    assert await store.close_registration(OTHER) is True, "again"
    found = await store.find_registration(OTHER)
    assert found is not None
    assert (found.state, found.candidates) == (RegistrationState.CLOSED, ()), "the registration"
    assert [found.echoed, (await find_one(store)).echoed] == [True, False], "what both of them tell"
    await store.record_heartbeat(OTHER)
    assert await store.find_registration(OTHER) == found, "the registration after a heartbeat"


async def test_sweeping_closes_what_is_overdue(store: Store, clock: Clock) -> None:
    """`sweep` returns overdue pending registrations as they were, and leaves all others alone."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, SECRET)
    await confirm_one(store, OTHER)
    await store.open_registration("later", resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL * 3)
    before = await find_one(store)
    assert before.echoed is True, "that a handshake was remembered"
    assert list(await store.expire_registrations()) == [], "nothing is overdue yet"
    clock.advance(TTL + 1)
    assert list(await store.expire_registrations()) == [before], "what was overdue"
    assert (await find_one(store)).state == RegistrationState.CLOSED, "its state"
    states = [
        found.state for found in (await store.find_registration(OTHER), await store.find_registration("later")) if found
    ]
    assert states == [RegistrationState.CONFIRMED, RegistrationState.PENDING], "the others"
    assert list(await store.expire_registrations()) == [], "nothing is left"
    assert await store.close_registration(ID) is True, "that a handshake had been remembered"


async def test_heartbeats_are_noted(store: Store, clock: Clock) -> None:
    """The time of the last heartbeat is kept, also one before the confirmation; unknown ids do no harm."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, SECRET)
    await store.record_heartbeat(ID)
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    assert (await find_one(store)).last_heartbeat_at == clock.now, "the time"
    clock.advance(10)
    await store.record_heartbeat(ID)
    await store.record_heartbeat(OTHER)
    assert (await find_one(store)).last_heartbeat_at == clock.now, "the time"
    assert await store.find_registration(OTHER) is None, "an unknown registration"


async def test_texts_are_checked(store: Store) -> None:
    """A lone surrogate cannot be kept; it is refused, and nothing changes."""
    bad = "\ud800"
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, SECRET)
    before = await find_one(store)
    await expect_misuse(
        store.open_registration(OTHER, resource=bad, public_url="https://example.com/asana", ttl=TTL), "a resource"
    )
    await expect_misuse(store.add_candidate(ID, Secret(bad)), "a secret that was offered")
    await expect_misuse(
        store.confirm_registration(ID, webhook_gid=GID, secret=Secret(bad)), "a secret that was confirmed"
    )
    await expect_misuse(store.confirm_registration(ID, webhook_gid=bad, secret=SECRET), "a webhook")
    for call in (
        store.find_registration(bad),
        store.close_registration(bad),
        store.record_heartbeat(bad),
        store.add_candidate(bad, SECRET),
    ):
        await expect_misuse(call, "a registration's id")
    assert await store.find_registration(ID) == before, "the registration"
    assert await store.find_registration(OTHER) is None, "the other registration"


# Quarantine


async def test_quarantined_deliveries_wait_for_the_201(store: Store) -> None:
    """Nobody gets a delivery of a pending registration; those of the right secret come out in their order."""
    await store.open_registration(ID, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
    await store.add_candidate(ID, FORGED)
    await store.add_candidate(ID, SECRET)
    for number in (3, 1, 2):
        assert await store.put(new_delivery(number, secret=SECRET)) == "stored", "in quarantine"
        assert await store.put(new_delivery(number + 10, secret=FORGED)) == "stored", "in quarantine"
    assert await store.put(new_delivery(3, secret=SECRET)) == "duplicate", "in quarantine, again"
    assert list(await store.claim(10, lease=LEASE)) == [], "what can be claimed"
    assert (await store.health()).waiting == 0, "what is waiting"
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    held = await store.claim(10, lease=LEASE)
    assert bodies_of(held) == [b"body 3", b"body 1", b"body 2"], "what was released"
    assert {lease.webhook_gid for lease in held} == {GID}, "their webhook"
    assert await store.put(new_delivery(1, secret=SECRET)) == "duplicate", "a released one, again"
    assert await store.put(new_delivery(11, secret=SECRET)) == "stored", "a dropped one, with the right secret"


async def test_a_delivery_may_miss_the_201(store: Store) -> None:
    """A delivery checked against a candidate goes on if that was confirmed meanwhile, else it is refused."""
    await confirm_one(store)
    assert await store.put(new_delivery(1, secret=SECRET)) == "stored", "the confirmed secret"
    assert await store.put(new_delivery(2, secret=FORGED)) == "refused", "another secret"
    assert bodies_of(await store.claim(10, lease=LEASE)) == [b"body 1"], "what can be claimed"


async def test_closing_empties_the_quarantine(store: Store, clock: Clock) -> None:
    """`close` and `sweep` drop what is in quarantine, and what waited already stays."""
    await confirm_one(store)
    await store.put(new_delivery(1))
    await store.close_registration(ID)
    for name in (OTHER, "swept"):
        await store.open_registration(name, resource=RESOURCE, public_url="https://example.com/asana", ttl=TTL)
        await store.add_candidate(name, SECRET)
        await store.put(new_delivery(2, registration=name, secret=SECRET))
    await store.close_registration(OTHER)
    clock.advance(TTL + 1)
    await store.expire_registrations()
    assert (await store.health()).quarantined == 0, "what is left in quarantine"
    assert await store.confirm_registration(OTHER, webhook_gid=GID, secret=SECRET) is False, "after the end"
    (lease,) = await store.claim(10, lease=LEASE)
    assert (lease.body, lease.webhook_gid) == (b"body 1", GID), "what can be claimed"
    assert await store.ack(lease) is True, "finishing it"
