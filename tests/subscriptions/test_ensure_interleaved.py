"""`ensure_webhook` and `remove_webhook` at once, in every order of their steps, killed at any of them."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    RegistrationClosedError,
    WebhookFilter,
    ensure_webhook,
    remove_webhook,
)
from asana_webhooks.models import Secret
from asana_webhooks.store.base import registration_id
from tests.helpers.interleave import Call, Scenario, World, explore

RESOURCE = "8675309"
URL, OTHER_URL = "https://example.com/asana", "https://old.example.com/asana"
FILTERS = (WebhookFilter(resource_type="task", action="changed"),)
OTHER_FILTERS = (WebhookFilter(resource_type="story"),)
FIRST, SECOND = "endpoint-of-the-first", "endpoint-of-the-second"
SECRET = Secret("c41f0e9a7b2d5863")


async def ensure(asana: AsanaSession, store: Any) -> None:
    await ensure_webhook(asana, store, resource=RESOURCE, public_url=URL, filters=FILTERS, workspace="1331")


async def ensure_other_url(asana: AsanaSession, store: Any) -> None:
    await ensure_webhook(asana, store, resource=RESOURCE, public_url=OTHER_URL, filters=FILTERS, workspace="1331")


async def ensure_other_filters(asana: AsanaSession, store: Any) -> None:
    await ensure_webhook(asana, store, resource=RESOURCE, public_url=URL, filters=OTHER_FILTERS, workspace="1331")


async def remove(asana: AsanaSession, store: Any) -> None:
    await remove_webhook(asana, store, resource=RESOURCE)


async def one(
    world: World,
    endpoint: str = FIRST,
    *,
    url: str = URL,
    filters: tuple[WebhookFilter, ...] = FILTERS,
    replaces: str | None = None,
    confirm: bool = True,
    exists: bool = True,
) -> None:
    """Create a webhook; a process that is killed before it confirms it leaves it pending."""
    id, old = registration_id(endpoint), registration_id(replaces) if replaces else None
    assert await world.store.open_registration(id, resource=RESOURCE, public_url=url, ttl=75.0, replaces=old)
    assert await world.store.add_candidate(id, SECRET)
    webhook = world.asana.add(f"{url}/{endpoint}", filters=filters)
    if confirm:
        assert await world.store.confirm_registration(id, webhook_gid=webhook.gid, secret=SECRET)
    if not exists:
        del world.asana.webhooks[webhook.gid]


async def pair(world: World, *, old: bool = True, new: bool = True, confirm: bool = True) -> None:
    """Leave a replacement half done: both are live."""
    await one(world, FIRST, url=OTHER_URL, exists=old)
    await one(world, SECOND, replaces=FIRST, exists=new, confirm=confirm)


async def nothing(_: World) -> None:
    """Leave all empty."""


SCENES: dict[str, Callable[[World], Coroutine[Any, Any, None]]] = {
    "nothing": nothing,
    "as wanted": one,
    "other filters": partial(one, filters=OTHER_FILTERS),
    "other URL": partial(one, url=OTHER_URL),
    "gone": partial(one, exists=False),
    "pending": partial(one, confirm=False),
    "pair": pair,
    "pair, old one gone": partial(pair, old=False),
    "pair, new one gone": partial(pair, new=False),
    "pair, both gone": partial(pair, old=False, new=False),
    "pair, new one pending": partial(pair, confirm=False),
}
LARGE = {"pair, new one gone", "pair, new one pending"}
"""Those with the most orders."""


def at_most_two(world: World) -> None:
    assert len(world.live) <= 2, world.live


def promised(world: World) -> None:
    """Check what is promised of each state."""
    at_most_two(world)
    assert all(call.creates <= min(1 + call.unknown, 2) for call in world.calls), "a call created too often"
    if world.returned is not None and world.returned.role is ensure:
        assert len(world.alive) <= 1, world.alive


def promised_without_gap(world: World) -> None:
    """Check also that a webhook that exists is replaced by another one, and not only deleted."""
    promised(world)
    assert world.alive, "a time without a webhook"


def checks_of(scene: str) -> Callable[[World], None]:
    return promised if scene in {"nothing", "gone", "pending", "pair, both gone"} else promised_without_gap


def unexpected(world: World, *expected: type[AsanaError]) -> list[BaseException]:
    errors = [call.error for call in world.calls if call.error is not None]
    return [error for error in errors if not isinstance(error, expected)]


def as_wanted(world: World) -> None:
    """Check the end: whoever was not killed has returned, and the one live webhook is as wanted."""
    assert not unexpected(world), unexpected(world)
    [found] = world.live
    webhook = world.asana.webhooks[found.webhook_gid or ""]
    assert (found.public_url, webhook.filters) == (URL, FILTERS)


def as_wanted_and_nothing_else(world: World) -> None:
    """Check the end of calls of which none was killed: Asana has no other webhook either."""
    as_wanted(world)
    assert len(world.asana.webhooks) == 1, world.asana.webhooks


def as_one_wanted(world: World) -> None:
    """Check the end of calls that want different webhooks: there is one, as the last one wanted it."""
    assert not unexpected(world), unexpected(world)
    assert world.live == world.alive
    assert len(world.live) == len(world.asana.webhooks) == 1


def one_or_none(world: World) -> None:
    """Check the end of calls of which one removes: whoever comes last has its way."""
    errors = unexpected(world, RegistrationClosedError)
    assert not errors, errors
    assert len(world.live) <= 1
    assert world.live == world.alive
    if not any(call.killed for call in world.calls):
        created = {gid for gid, webhook in world.asana.webhooks.items() if not (webhook.target or "").endswith(FIRST)}
        assert created <= {found.webhook_gid for found in world.live}, "one of its own is left at Asana"


def nothing_is_left(world: World) -> None:
    assert not unexpected(world), unexpected(world)
    assert not world.live
    assert not world.asana.webhooks


def one_is_live(world: World) -> None:
    """Check the end of calls whose requests fail, and whose webhook may vanish after they looked at it."""
    errors = unexpected(world, RegistrationClosedError)
    assert not errors, errors
    assert len(world.live) == 1 or any(call.error for call in world.calls)


def few(*some: str, of: list[str]) -> list[Any]:
    """Return scenes as parameters: *some* always, the others only in long runs."""
    return [one if one in some else pytest.param(one, marks=pytest.mark.long) for one in of]


@pytest.mark.parametrize(
    "scene", few("nothing", "other filters", "pair", of=[one for one in SCENES if one not in LARGE])
)
def test_two_that_want_the_same(scene: str) -> None:
    """One does what there is to do, once; the other one waits for it. Both return, and one webhook is left."""
    explored = explore(
        Scenario(
            calls=[ensure, ensure],
            before=SCENES[scene],
            always=checks_of(scene),
            at_end=as_wanted_and_nothing_else,
        )
    )
    assert explored.ends


@pytest.mark.parametrize("scene", few("as wanted", of=["nothing", "as wanted", "other filters", "pair, old one gone"]))
def test_a_kill_at_any_step(scene: str) -> None:
    """Whichever of two is killed, wherever: the other one and a third one return, and one webhook is live."""
    explored = explore(
        Scenario(
            calls=[ensure, ensure],
            before=SCENES[scene],
            after_kill=ensure,
            always=checks_of(scene),
            at_end=as_wanted,
            kills=1,
        )
    )
    assert explored.ends > 1


@pytest.mark.long
@pytest.mark.parametrize("scene", ["nothing", "as wanted"])
@pytest.mark.parametrize("other", [ensure_other_url, ensure_other_filters])
def test_two_that_want_different_webhooks(scene: str, other: Call) -> None:
    """Both return, and one webhook is left."""
    explore(
        Scenario(
            calls=[ensure, other],
            before=SCENES[scene],
            always=at_most_two,
            at_end=as_one_wanted,
        )
    )


@pytest.mark.parametrize("scene", few("pending", of=["nothing", "as wanted", "pending"]))
def test_one_that_removes(scene: str) -> None:
    """It is removed, and perhaps created anew. What is live exists, and whose registration was closed is told so."""
    explore(Scenario(calls=[ensure, remove], before=SCENES[scene], always=promised, at_end=one_or_none))


@pytest.mark.parametrize("scene", ["nothing", "as wanted", "pair"])
def test_two_that_remove(scene: str) -> None:
    """Nothing is left, also if one of them is killed at any step and another one comes."""
    explore(Scenario(calls=[remove, remove], before=SCENES[scene], after_kill=remove, at_end=nothing_is_left, kills=1))


LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "pair, new one gone": ("pair, new one gone", {}),
    "pair, new one pending": ("pair, new one pending", {}),
    "pair, killed": ("pair", {"kills": 1}),
    "other URL, killed": ("other URL", {"kills": 1}),
    "gone, killed": ("gone", {"kills": 1}),
    "pending, killed": ("pending", {"kills": 1}),
    "pair, new one gone, killed": ("pair, new one gone", {"kills": 1}),
    "pair, both gone, killed": ("pair, both gone", {"kills": 1}),
    "nothing, awake": ("nothing", {"naps": 2}),
    "other URL, awake": ("other URL", {"naps": 1}),
    "pending, awake": ("pending", {"naps": 1}),
    "nothing, a fault": ("nothing", {"faults": 1}),
    "other filters, a fault": ("other filters", {"faults": 1}),
    "pair, a fault": ("pair", {"faults": 1}),
    "gone, a fault": ("gone", {"faults": 1}),
    "as wanted, two killed": ("as wanted", {"kills": 2}),
    "nothing, three": ("nothing", {"calls": [ensure, ensure, ensure]}),
    "other filters, three, killed": ("other filters", {"calls": [ensure, ensure, ensure], "kills": 1}),
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LONG)
def test_more_of_them(name: str) -> None:
    """More processes, more kills, sleepers that wake up early, lost answers, 429s, vanished webhooks, late answers."""
    scene, options = LONG[name]
    usual: dict[str, Any] = {"calls": [ensure, ensure], "after_kill": ensure}
    checks = {"always": promised, "at_end": one_is_live if "faults" in options else as_wanted}
    explore(Scenario(before=SCENES[scene], **(usual | checks | options)))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", ["nothing", "as wanted", "other filters"])
def test_one_that_removes_and_a_kill(scene: str) -> None:
    """Whichever is killed, another one ensures the webhook."""
    explore(
        Scenario(
            calls=[ensure, remove],
            before=SCENES[scene],
            after_kill=ensure,
            always=promised,
            at_end=one_or_none,
            kills=1,
        )
    )
