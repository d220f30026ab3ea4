"""`establish_webhook` at once from several processes, in every order of their steps, with kills and lost answers."""

from typing import Any

import pytest

from asana_webhooks import AsanaSession, MemoryStore, WebhookExistsError, establish_webhook
from asana_webhooks.store.base import Registration, RegistrationState
from tests.helpers.interleave import Scenario, World, explore
from tests.helpers.stepping import turn

RESOURCE = "8675309"
URL = "https://example.com/asana"


async def establish(asana: AsanaSession, store: Any) -> None:
    await establish_webhook(asana, store, public_url=URL, resource=RESOURCE, workspace="1331")


def at_most_one(world: World) -> None:
    """One is live at most, and a create call is repeated only if nobody knows what came of it."""
    assert len(world.live) <= 1, world.live
    assert all(one.creates <= 1 + one.unknown for one in world.calls)


def one_established(world: World) -> None:
    """One has established it, nothing else is left, and the other one was told so."""
    assert {type(call.error) for call in world.calls if not call.returned} == {WebhookExistsError}
    assert [found.webhook_gid for found in world.live] == list(world.asana.webhooks)
    assert sum(call.returned for call in world.calls) == 1


def test_one_of_two_establishes() -> None:
    """In every order, one of two creates the webhook, and the other one finds it or its registration."""
    explored = explore(Scenario(calls=[establish, establish], always=at_most_one, at_end=one_established))
    assert explored.runs > 50


@pytest.mark.parametrize(("kills", "faults"), [(1, 0), pytest.param(0, 1, marks=pytest.mark.long)])
def test_one_is_live_at_most(kills: int, faults: int) -> None:
    """Also if one is killed at any step and another one comes, or if a create request gets no answer or a 429."""
    explored = explore(
        Scenario(calls=[establish, establish], after_kill=establish, always=at_most_one, kills=kills, faults=faults)
    )
    assert explored.ends > 3


class Careless(MemoryStore):
    """A store that opens a second one."""

    def _add(self, new: Registration) -> bool:
        self._registrations[new.id] = new
        return True


class CheckThenOpen(MemoryStore):
    """A store that looks first and opens later."""

    async def open_registration(self, id: str, **options: Any) -> bool:
        same = {name: options[name] for name in ("resource", "label")}
        if [one for one in await self.list_registrations(**same) if one.state is not RegistrationState.CLOSED]:
            return False
        await turn("open_registration, after its look")
        return await super().open_registration(id, **options)

    def _add(self, new: Registration) -> bool:
        self._registrations[new.id] = new
        return True


@pytest.mark.parametrize("store", [Careless, CheckThenOpen])
def test_a_store_that_lets_two_in_is_found_out(store: type[MemoryStore]) -> None:
    """The exploration finds an order in which two are live, and shows it."""
    with pytest.raises(AssertionError) as caught:
        explore(Scenario(calls=[establish, establish], always=at_most_one, store=store))
    assert caught.value.__notes__[0].count("open_registration") >= 2
