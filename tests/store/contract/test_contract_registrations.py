"""What a store promises about registrations."""

import asyncio
import itertools
from typing import Any

from attrs import evolve

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
    THIRD,
    TTL,
    URL,
    adopt_one,
    confirm_one,
    expect_misuse,
    find_one,
    gid_of,
    new_delivery,
    open_one,
    put,
)

PENDING, CONFIRMED, CLOSED = RegistrationState


# Opening


async def test_an_open_registration_is_found(store: Store, clock: Clock) -> None:
    """An opened registration is pending, with all that was said of it; an unknown one is not found."""
    assert await open_one(store, ID, label="tenant", resource="1", public_url=URL + "?code=7") is True, "opening"
    found = await find_one(store)
    assert (found.id, found.resource, found.label) == (ID, "1", "tenant"), "what it is for"
    assert found.public_url == URL + "?code=7", "the public URL"
    assert (found.state, found.opened_at, found.deadline) == (PENDING, clock.now, clock.now + TTL), "the times"
    assert (found.candidates, found.echoed, found.secret, found.webhook_gid) == ((), False, None, None), "the secrets"
    assert (found.last_heartbeat_at, found.last_delivery_at) == (None, None), "what was heard of it"
    assert (found.replaces, found.retire_after) == (None, None), "its successors"
    assert await store.find_registration(OTHER) is None, "an unknown registration"


async def test_a_known_id_is_not_opened_again(store: Store, clock: Clock) -> None:
    """Whatever became of a registration, opening its id again is a mistake, and changes nothing."""
    await open_one(store, ID)
    await confirm_one(store, OTHER)
    await confirm_one(store, THIRD)
    await store.close_registration(THIRD)
    clock.advance(TTL)
    for id in (ID, OTHER, THIRD):
        before = await find_one(store, id)
        await expect_misuse(open_one(store, id, label="new"), "opening a known id")
        assert await find_one(store, id) == before, "the registration"


async def test_one_is_live_for_each_resource_and_label(store: Store) -> None:
    """A pending or confirmed registration blocks others with its resource and label, and no more than those."""
    await open_one(store, ID, label="a")
    for state in ("pending", "confirmed"):
        assert await open_one(store, OTHER, label="a") is False, f"beside a {state} one"
        assert await adopt_one(store, OTHER, label="a") is False, f"adopting beside a {state} one"
        await store.add_candidate(ID, SECRET)
        await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    assert await store.find_registration(OTHER) is None, "what was not opened"
    assert await open_one(store, "another label", label="b") is True, "another label"
    assert await open_one(store, "no label", label="") is True, "no label"
    assert await open_one(store, "another resource", label="a", resource="1") is True, "another resource"
    await store.close_registration(ID)
    assert await open_one(store, OTHER, label="a") is True, "when the first is closed"


async def test_one_of_many_opens(store: Store) -> None:
    """Of many that open one for the same resource and label at the same time, one does."""
    opened = [open_one(store, f"{number}", label="a") for number in range(5)]
    adopted = [adopt_one(store, f"{number}", label="a") for number in range(5, 10)]
    assert sorted(await asyncio.gather(*opened, *adopted)) == [False] * 9 + [True], "the answers"
    assert len(await store.list_registrations()) == 1, "the registrations"


async def test_a_second_one_may_replace_the_only_live_one(store: Store) -> None:
    """Opening with *replaces* wants exactly that one live, pending or confirmed; there is never a third."""
    await open_one(store, ID, label="a")
    assert await open_one(store, OTHER, label="a", replaces=ID) is True, "replacing a pending one"
    assert (await find_one(store, OTHER)).replaces == ID, "what it replaces"
    for replaces in (None, ID, OTHER):
        assert await open_one(store, THIRD, label="a", replaces=replaces) is False, "a third one"
    assert await adopt_one(store, THIRD, label="a") is False, "adopting a third one"
    await store.close_registration(ID)
    assert await open_one(store, THIRD, label="a", replaces=ID) is False, "replacing a closed one"
    await store.add_candidate(OTHER, SECRET)
    await store.confirm_registration(OTHER, webhook_gid="2", secret=SECRET)
    for label, resource in (("b", RESOURCE), ("a", "1")):
        answer = await open_one(store, THIRD, label=label, resource=resource, replaces=OTHER)
        assert answer is False, "replacing one of another label or resource"
    assert await open_one(store, THIRD, label="a", replaces="nobody") is False, "replacing an unknown one"
    assert await open_one(store, THIRD, label="a", replaces=OTHER) is True, "replacing a confirmed one"
    assert (await find_one(store, OTHER)).state is CONFIRMED, "the one to replace"


async def test_an_overdue_one_does_not_block(store: Store, clock: Clock) -> None:
    """Past its deadline a registration is not live: others are opened beside it, and it still expires."""
    await open_one(store, ID, label="a")
    await store.add_candidate(ID, SECRET)
    before = await find_one(store)
    clock.advance(TTL)
    assert await open_one(store, OTHER, label="a", replaces=ID) is False, "replacing an overdue one"
    assert await open_one(store, OTHER, label="a") is True, "opening beside an overdue one"
    clock.advance(TTL)
    assert await adopt_one(store, THIRD, label="a") is True, "adopting beside two overdue ones"
    expired = {one.id: one for one in await store.expire_registrations()}
    assert set(expired) == {ID, OTHER}, "what expired"
    assert expired[ID] == before, "as it was"
    assert (await find_one(store, THIRD)).state is CONFIRMED, "the live one"


async def test_labels_have_a_length(store: Store) -> None:
    """A label may have 200 characters and no more."""
    longest = "\N{SNOWMAN}" * 200
    assert await open_one(store, ID, label=longest) is True, "opening with a long label"
    assert (await find_one(store)).label == longest, "the label"
    await expect_misuse(open_one(store, OTHER, label=longest + "a"), "opening with a label that is too long")
    await expect_misuse(adopt_one(store, OTHER, label=longest + "a"), "adopting with a label that is too long")
    assert await store.find_registration(OTHER) is None, "the other registration"


# Adopting


async def test_an_adopted_registration_is_confirmed(store: Store, clock: Clock) -> None:
    """Adopting makes a registration that takes deliveries at once, and never waits for a handshake."""
    assert await adopt_one(store, ID, label="tenant", resource="1") is True, "adopting"
    found = await find_one(store)
    assert (found.resource, found.label, found.public_url) == ("1", "tenant", URL), "what it is for"
    assert (found.state, found.opened_at, found.echoed) == (CONFIRMED, clock.now, True), "the state"
    assert (found.webhook_gid, found.secret, found.candidates) == (GID, SECRET, ()), "the secret"
    assert await store.add_candidate(ID, FORGED) is False, "a candidate"
    clock.advance(TTL * 1000)
    assert list(await store.expire_registrations()) == [], "what expires"
    assert await store.find_registration(ID) == found, "the registration"
    assert await store.put(new_delivery(1)) == "stored", "a delivery"
    assert await store.close_registration(ID) is True, "that there is a webhook"


async def test_adopting_again_changes_nothing(store: Store) -> None:
    """The same may be adopted again; anything else with a known id is a mistake."""
    await adopt_one(store, ID, label="a")
    await store.record_heartbeat(ID)
    before = await find_one(store)
    assert await adopt_one(store, ID, label="a") is True, "the same again"
    changes: list[dict[str, Any]] = [{"webhook_gid": "9"}, {"secret": FORGED}, {"resource": "9"}, {"label": "b"}]
    for change in changes:
        await expect_misuse(adopt_one(store, ID, **{"label": "a"} | change), f"adopting it with another {[*change]}")
    assert await find_one(store) == before, "the registration"
    await open_one(store, OTHER)
    await expect_misuse(adopt_one(store, OTHER), "adopting a pending one")
    await store.close_registration(ID)
    await expect_misuse(adopt_one(store, ID, label="a"), "adopting a closed one")


# The handshake


async def test_a_candidate_is_remembered(store: Store) -> None:
    """The secrets of handshakes are kept in their order, each once."""
    await open_one(store)
    for secret in (FORGED, SECRET, FORGED):
        assert await store.add_candidate(ID, secret) is True, "a candidate in time"
    found = await find_one(store)
    assert (found.candidates, found.echoed) == ((FORGED, SECRET), True), "the candidates"


async def test_there_is_room_for_few_candidates(store: Store) -> None:
    """One secret more than `MAX_CANDIDATES` is not remembered; those known may come again."""
    await open_one(store)
    secrets = tuple(Secret(f"{number:032}") for number in range(MAX_CANDIDATES))
    for secret in secrets:
        await store.add_candidate(ID, secret)
    assert await store.add_candidate(ID, SECRET) is False, "a candidate without room"
    assert await store.add_candidate(ID, secrets[0]) is True, "a candidate that is known"
    assert (await find_one(store)).candidates == secrets, "the candidates"


async def test_a_candidate_may_come_too_late(store: Store, clock: Clock) -> None:
    """After the deadline nothing is remembered, not even a known secret."""
    await open_one(store)
    await store.add_candidate(ID, SECRET)
    clock.advance(TTL)
    assert await store.add_candidate(ID, SECRET) is False, "a known secret after the deadline"
    assert await store.add_candidate(ID, FORGED) is False, "a new secret after the deadline"
    (overdue,) = await store.expire_registrations()
    assert overdue.candidates == (SECRET,), "the candidates"


async def test_only_a_pending_registration_takes_candidates(store: Store) -> None:
    """An unknown, confirmed or closed registration remembers no secret and stays as it is."""
    assert await store.add_candidate(ID, SECRET) is False, "for an unknown registration"
    await confirm_one(store)
    before = await find_one(store)
    assert await store.add_candidate(ID, SECRET) is False, "the same after the confirmation"
    assert await store.add_candidate(ID, FORGED) is False, "another after the confirmation"
    assert await find_one(store) == before, "the registration"
    await store.close_registration(ID)
    assert await store.add_candidate(ID, SECRET) is False, "after the end"


async def test_the_201_decides(store: Store) -> None:
    """Confirming keeps the candidate that Asana named, and drops the others."""
    await open_one(store)
    await store.add_candidate(ID, FORGED)
    await store.add_candidate(ID, SECRET)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is True, "a candidate"
    found = await find_one(store)
    assert (found.state, found.last_heartbeat_at) == (CONFIRMED, None), "the state"
    assert (found.webhook_gid, found.secret, found.candidates) == (GID, SECRET, ()), "what is kept"


async def test_only_a_candidate_is_confirmed(store: Store) -> None:
    """A secret that no handshake brought confirms nothing."""
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "an unknown registration"
    await open_one(store)
    await store.add_candidate(ID, FORGED)
    before = await find_one(store)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "no candidate"
    assert await find_one(store) == before, "the registration"


async def test_confirming_again_changes_nothing(store: Store) -> None:
    """The same gid and secret may be confirmed again; others may not, nor may a closed registration."""
    await confirm_one(store)
    before = await find_one(store)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is True, "the same again"
    assert await store.confirm_registration(ID, webhook_gid="9", secret=SECRET) is False, "another gid"
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=FORGED) is False, "another secret"
    assert await find_one(store) == before, "the registration"
    await store.close_registration(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "a closed registration"


async def test_the_201_may_bring_a_heartbeat(store: Store, clock: Clock) -> None:
    """The time of the last success in the 201 is a heartbeat, unless a later one came meanwhile."""
    for id, at, expected in ((ID, clock.now - 5, clock.now), (OTHER, clock.now + 5, clock.now + 5)):
        await open_one(store, id)
        await store.add_candidate(id, SECRET)
        await store.record_heartbeat(id)
        await store.confirm_registration(id, webhook_gid=gid_of(id), secret=SECRET, heartbeat_at=at)
        assert (await find_one(store, id)).last_heartbeat_at == expected, "the last heartbeat"


async def test_a_confirmed_registration_has_no_deadline(store: Store, clock: Clock) -> None:
    """Once confirmed, a registration goes on for ever."""
    await confirm_one(store)
    before = await find_one(store)
    clock.advance(TTL * 100)
    assert await find_one(store) == before, "the registration"
    assert list(await store.expire_registrations()) == [], "what is overdue"
    assert await store.put(new_delivery(1)) == "stored", "a delivery"


# The end


async def test_a_registration_ends_at_its_deadline(store: Store, clock: Clock) -> None:
    """A pending registration whose deadline has passed is closed for all who ask, before it expires as well."""
    await open_one(store)
    await store.add_candidate(ID, SECRET)
    clock.advance(TTL - 1)
    assert await store.put(new_delivery(1, secret=SECRET)) == "stored", "before the deadline"
    clock.advance(1)
    found = await find_one(store)
    assert (found.state, found.candidates) == (CLOSED, ()), "what is found"
    assert await store.put(new_delivery(1, secret=SECRET)) == "refused", "a duplicate after the deadline"
    assert await store.put(new_delivery(2, secret=SECRET)) == "refused", "a new delivery after the deadline"
    await store.record_heartbeat(ID)
    assert await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET) is False, "confirming it"
    assert await find_one(store) == found, "the registration"
    assert list(await store.claim(9, lease=LEASE)) == [], "what can be claimed"


async def test_closing_tells_whether_it_was_echoed(store: Store, clock: Clock) -> None:
    """Closing is True for ever if a handshake had been remembered, and False without one."""
    assert await store.close_registration(ID) is False, "an unknown registration"
    for id in (ID, OTHER, THIRD):
        await open_one(store, id)
    await store.add_candidate(OTHER, FORGED)
    await store.add_candidate(THIRD, FORGED)
    assert await store.close_registration(ID) is False, "without a handshake"
    assert [await store.close_registration(OTHER) for _ in range(2)] == [True, True], "with a handshake"
    found = await find_one(store, OTHER)
    assert (found.state, found.candidates, found.echoed) == (CLOSED, (), True), "the registration"
    await store.record_heartbeat(OTHER)
    assert await find_one(store, OTHER) == found, "the registration after a heartbeat"
    clock.advance(TTL)
    assert await store.close_registration(THIRD) is True, "after the deadline"
    assert list(await store.expire_registrations()) == [], "what is left to expire"
    await confirm_one(store, "confirmed")
    assert await store.close_registration("confirmed") is True, "a confirmed one"
    assert (await find_one(store, "confirmed")).secret is None, "its secret"


async def test_what_is_overdue_expires(store: Store, clock: Clock) -> None:
    """Overdue pending registrations are returned as they were, once, and all others stay as they are."""
    await open_one(store)
    await store.add_candidate(ID, SECRET)
    await confirm_one(store, OTHER)
    await open_one(store, THIRD, ttl=TTL * 3)
    before = [await find_one(store, id) for id in (ID, OTHER, THIRD)]
    assert list(await store.expire_registrations()) == [], "nothing is overdue yet"
    clock.advance(TTL)
    assert list(await store.expire_registrations()) == before[:1], "what was overdue"
    assert (await find_one(store)).state is CLOSED, "its state"
    assert [await find_one(store, id) for id in (OTHER, THIRD)] == before[1:], "the others"
    assert list(await store.expire_registrations()) == [], "nothing is left"
    assert await store.close_registration(ID) is True, "that a handshake had been remembered"


# What is noted


async def test_heartbeats_are_noted(store: Store, clock: Clock) -> None:
    """The time of the last heartbeat is kept, also one before the confirmation; unknown ids do no harm."""
    await open_one(store)
    await store.add_candidate(ID, SECRET)
    await store.record_heartbeat(ID)
    await store.confirm_registration(ID, webhook_gid=GID, secret=SECRET)
    assert (await find_one(store)).last_heartbeat_at == clock.now, "the time"
    clock.advance(10)
    await store.record_heartbeat(ID)
    await store.record_heartbeat(OTHER)
    assert (await find_one(store)).last_heartbeat_at == clock.now, "the time"
    assert await store.find_registration(OTHER) is None, "an unknown registration"


async def test_the_last_delivery_is_noted(store: Store, clock: Clock) -> None:
    """The time of the last delivery that was stored is kept, rounded down to the minute."""
    await confirm_one(store)
    clock.advance(-clock.now % 60 + 59)
    minute = clock.now - 59
    await put(store, 1)
    assert (await find_one(store)).last_delivery_at == minute, "after the first"
    clock.advance(70)
    await store.put(new_delivery(1))
    assert (await find_one(store)).last_delivery_at == minute, "after a duplicate"
    await put(store, 2)
    assert (await find_one(store)).last_delivery_at == minute + 120, "after the second"
    (listed,) = await store.list_registrations()
    assert listed.last_delivery_at == minute + 120, "what is listed"


async def test_retiring_is_noted(store: Store, clock: Clock) -> None:
    """A confirmed registration may get a time to retire, which closes nothing; any other one gets none."""
    await confirm_one(store)
    assert await store.retire_registration(ID, after=90) is True, "a confirmed one"
    assert (await find_one(store)).retire_after == clock.now + 90, "the time"
    await expect_misuse(store.retire_registration(ID, after=-1), "a negative time")
    clock.advance(100)
    await store.expire_registrations()
    assert (await find_one(store)).state is CONFIRMED, "after that time"
    assert await store.retire_registration(ID, after=0) is True, "again"
    assert (await find_one(store)).retire_after == clock.now, "the new time"
    assert await store.retire_registration(OTHER, after=0) is False, "an unknown one"
    await open_one(store, OTHER)
    assert await store.retire_registration(OTHER, after=0) is False, "a pending one"
    await store.close_registration(ID)
    before = await find_one(store)
    clock.advance(1)
    assert await store.retire_registration(ID, after=0) is False, "a closed one"
    assert await find_one(store) == before, "the closed one"
    assert (await find_one(store, OTHER)).retire_after is None, "the pending one"


# Listing


async def test_registrations_are_listed(store: Store, clock: Clock) -> None:
    """Each filter alone, and any of them together, leave those that match all, by id and without secrets."""
    await open_one(store, "d", label="", ttl=1)
    await store.add_candidate("d", SECRET)
    clock.advance(1)
    await confirm_one(store, "b", label="x", resource="1")
    await confirm_one(store, "c", label="y", resource="2")
    await store.close_registration("c")
    await open_one(store, "a", label="x", resource="2", ttl=TTL)
    await store.add_candidate("a", SECRET)
    await adopt_one(store, "e", label="", resource="1", webhook_gid=gid_of("b"))
    every = [evolve(await find_one(store, id), secret=None, candidates=()) for id in "abcde"]
    assert [one.state for one in every] == [PENDING, CONFIRMED, CLOSED, CLOSED, CONFIRMED], "the states"
    assert list(await store.list_registrations()) == every, "all of them"
    values = {"label": (None, "", "x", "n"), "resource": (None, "1", "n"), "state": (None, *RegistrationState)}
    values |= {"webhook_gid": (None, gid_of("b"), gid_of("c"), "n")}
    for chosen in itertools.product(*values.values()):
        wanted: dict[str, Any] = {name: one for name, one in zip(values, chosen, strict=True) if one is not None}
        matching = [one for one in every if all(getattr(one, name) == value for name, value in wanted.items())]
        assert list(await store.list_registrations(**wanted)) == matching, f"those with {wanted}"
    assert list(await store.expire_registrations()) != [], "the overdue one still expires"


async def test_the_list_comes_in_pages(store: Store) -> None:
    """A page goes on above the id it is given, and ends at its limit."""
    for id in "dbeac":
        await open_one(store, id, label=id if id == "e" else f"same {id}")
        await store.close_registration(id)
    await open_one(store, "f", label="open")
    pages = [await store.list_registrations(after=after, limit=2) for after in ("", "b", "d", "f")]
    assert [[one.id for one in page] for page in pages] == [["a", "b"], ["c", "d"], ["e", "f"], []], "the pages"
    closed = await store.list_registrations(state=CLOSED, after="c", limit=9)
    assert [one.id for one in closed] == ["d", "e"], "a page of the closed"
    for limit in (0, -1):
        assert list(await store.list_registrations(limit=limit)) == [], "a page of nothing"


# Arguments


async def test_texts_are_checked(store: Store) -> None:
    """A lone surrogate cannot be kept; it is refused, and nothing changes."""
    bad = "\ud800"
    await open_one(store)
    await store.add_candidate(ID, SECRET)
    before = await find_one(store)
    for name in ("resource", "public_url", "label"):
        await expect_misuse(open_one(store, OTHER, **{name: bad}), f"opening with a bad {name}")
        await expect_misuse(adopt_one(store, OTHER, **{name: bad}), f"adopting with a bad {name}")
    for change in ({"webhook_gid": bad}, {"secret": Secret(bad)}):
        await expect_misuse(adopt_one(store, OTHER, **change), "adopting")
        named: dict[str, Any] = {"webhook_gid": GID, "secret": SECRET} | change
        await expect_misuse(store.confirm_registration(ID, **named), "confirming")
    await expect_misuse(store.add_candidate(ID, Secret(bad)), "a candidate")
    for call in (
        open_one(store, bad),
        store.find_registration(bad),
        store.close_registration(bad),
        store.record_heartbeat(bad),
        store.retire_registration(bad, after=1),
        store.add_candidate(bad, SECRET),
    ):
        await expect_misuse(call, "a registration's id")
    assert await find_one(store) == before, "the registration"
    assert await store.find_registration(OTHER) is None, "the other registration"
