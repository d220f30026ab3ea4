"""establish_webhook is cancelled wherever it waits: nothing of it is live, open, leaked or shown."""

import asyncio
import secrets
from contextlib import suppress
from typing import cast

import pytest
from attrs import evolve

from asana_webhooks import (
    CreateOutcomeUnknownError,
    EstablishedWebhook,
    HandshakeMismatchError,
    MemoryStore,
)
from asana_webhooks.store.base import RegistrationState, Store, registration_id
from asana_webhooks.testing import Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import Dawdling, Stuck, live, scene

LATER = Fault(at="createWebhook", status=429, retry_after=0)
LOST = Fault(at="createWebhook", do="lose_answer")
MISMATCH = Fault(at="createWebhook", do="wrong_secret")
# The first list does not show yet what was just created.
LATE = Fault(at="getWebhooks", status=200, body=b'{"data": [], "next_page": null}')


def at_work() -> list[str]:
    """Name the tasks that are still at work for the session."""
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "wait_for" in name or "AsanaSession" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [(), pytest.param((LATER,), marks=pytest.mark.long), (LOST,), (LOST, LATE), (MISMATCH,)],
    ids=["fine", "429", "lost", "lost and listed late", "mismatch"],
)
async def test_it_may_be_cancelled_at_every_step(faults: tuple[Fault, ...]) -> None:
    """Creating, and clearing up after itself and another process: only what returned is live."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    dawdling = Dawdling(store)
    returned: list[EstablishedWebhook] = []
    async with scene(store) as here:
        mine = evolve(here, store=cast("Store", dawdling))

        async def prepare() -> None:
            """Leave a registration of another process behind whose handshake was echoed."""
            endpoint = secrets.token_urlsafe(32)
            assert await store.open_registration(
                registration_id(endpoint),
                resource=here.fake.projects[0],
                public_url="https://example.com/asana",
                label="killed",
                ttl=1,
            )
            await here.fake.stranger_handshake(f"{here.public_url}/{endpoint}")
            clock.now += 2
            here.fake.script(*faults)

        async def establish() -> None:
            with suppress(CreateOutcomeUnknownError, HandshakeMismatchError):
                returned.append(await mine.establish(workspace=here.fake.workspace))

        async def check() -> None:
            here.fake.faults.clear()
            await here.fake.settle()
            assert await dawdling.open_now() == []
            confirmed = await store.list_registrations(state=RegistrationState.CONFIRMED)
            assert {one.webhook_gid for one in confirmed} == {one.webhook_gid for one in returned}
            assert at_work() == []
            if not returned:
                here.fake.webhooks.clear()  # those of which no answer told
            await prepare()

        await prepare()
        turns = await cancel_at_every_step(establish, check)
        here.fake.faults.clear()

        assert turns > 20
        assert len(returned) == (faults != (MISMATCH,))
        assert await live(here.fake) == {one.webhook_gid for one in returned}
        assert (await mine.establish(label="another")).webhook_gid in here.fake.webhooks


async def test_a_second_cancellation_does_not_spare_the_webhook() -> None:
    """Cancelled again while the registration is being closed, it still deletes what it cannot confirm."""
    async with scene(MemoryStore()) as here:
        closing = Stuck(here.store, "close_registration")
        here.fake.script(MISMATCH)
        establishing = asyncio.ensure_future(evolve(here, store=cast("Store", closing)).establish())
        await closing.reached.wait()
        establishing.cancel()
        closing.released.set()
        with pytest.raises(asyncio.CancelledError):
            await establishing

        assert here.fake.webhooks == {}
