"""establish_webhook is cancelled wherever it waits: nothing of it is live, open, leaked or shown."""

import asyncio
import logging
import secrets
import traceback
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
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.testing import Fault
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import Dawdling, Scene, Stuck, live, scene, shown

LOST = Fault(at="createWebhook", do="lose_answer")
MISMATCH = Fault(at="createWebhook", do="wrong_secret")
# The first list is for what another process left behind, the second one does not show yet what was just created.
LATE = Fault(at="getWebhooks", after=1, status=200, body=b'{"data": [], "next_page": null}')


def leaks(here: Scene) -> list[str]:
    """Name the connections and tasks that are still at work for the session."""
    http = here.asana._http
    connections = [] if http is None or http.connector is None else [str(one) for one in http.connector._acquired]
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return connections + [name for name in names if "wait_for" in name or "AsanaSession" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [(), (LOST,), (LOST, LATE), (MISMATCH,)],
    ids=["fine", "lost", "lost and listed late", "mismatch"],
)
async def test_it_may_be_cancelled_at_every_step(faults: tuple[Fault, ...]) -> None:
    """Clearing up after another process, creating, clearing up after itself: only what returned is live."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    dawdling = Dawdling(store)
    returned: list[EstablishedWebhook] = []
    async with scene(store) as here:
        mine = evolve(here, store=cast("Store", dawdling))

        async def prepare() -> None:
            """Leave a registration of another process behind whose handshake was echoed."""
            endpoint = secrets.token_urlsafe(32)
            await store.open(registration_id(endpoint), resource=here.fake.projects[0], ttl=1)
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
            assert set((await store.health()).heartbeats) == {one.webhook_gid for one in returned}
            assert leaks(here) == []
            if not returned:
                here.fake.webhooks.clear()  # those of which no answer told
            await prepare()

        await prepare()
        turns = await cancel_at_every_step(establish, check)
        here.fake.faults.clear()

        assert turns > 20
        assert len(returned) == (faults in [(), (LOST,), (LOST, LATE)])
        assert await live(here.fake) == {one.webhook_gid for one in returned}
        assert (await mine.establish()).webhook_gid in here.fake.webhooks


@pytest.mark.parametrize(
    ("at", "when"),
    [
        ("createWebhook", "before"),
        ("handshake", "before"),
        ("handshake", "after"),
        ("createWebhook", "after_handshake"),
        ("createWebhook", "before_answer"),
        ("getWebhooks", "before"),
        ("deleteWebhook", "before"),
        ("deleteWebhook", "before_answer"),
    ],
)
async def test_it_shows_no_endpoint_when_it_is_cancelled(at: str, when: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the log nor a report with the locals of our frames does, wherever Asana is when it is cancelled."""
    caplog.set_level(logging.DEBUG)
    async with scene(MemoryStore()) as here:
        here.fake.script(*([LOST] if at in ("getWebhooks", "deleteWebhook") else []))
        error = await cancelled(here, [(at, when)])

        assert endpoint_of(here.fake.requests[0].body["data"]["target"]) not in caplog.text + shown(error)


async def test_a_walk_over_many_pages_shows_no_endpoint_when_it_is_cancelled() -> None:
    """Nor does it show those of the webhooks it has seen."""
    async with scene(MemoryStore()) as here:
        established = await here.establish()
        record = here.fake.webhook(established.webhook_gid)
        for number in range(1, 101):
            gid = f"{number}"
            here.fake.webhooks[gid] = evolve(record, gid=gid)
        here.fake.script(LOST)
        error = await cancelled(here, [("getWebhooks", "before"), ("getWebhooks", "before")])

        assert "_find" in "".join(traceback.format_tb(error.__traceback__))
        assert endpoint_of(record.target) not in shown(error)


async def test_a_second_cancellation_does_not_spare_the_webhook() -> None:
    """Cancelled again while the registration is being closed, it still deletes what it cannot confirm."""
    async with scene(MemoryStore()) as here:
        closing = Stuck(here.store, "close")
        here.fake.script(MISMATCH)
        establishing = asyncio.ensure_future(evolve(here, store=cast("Store", closing)).establish())
        await closing.reached.wait()
        establishing.cancel()
        closing.released.set()
        with pytest.raises(asyncio.CancelledError):
            await establishing

        assert here.fake.webhooks == {}


def endpoint_of(target: str) -> str:
    return target.rpartition("/")[2]


async def cancelled(here: Scene, moments: list[tuple[str, str]]) -> BaseException:
    """Cancel an establish call when Asana has come to the last of these moments; return how it ended."""
    holds = [here.fake.hold(moments[0][0], when=moments[0][1])]
    establishing = asyncio.ensure_future(here.establish(workspace=here.fake.workspace))
    for at, when in moments[1:]:
        await holds[-1].reached()
        holds.append(here.fake.hold(at, when=when))
        holds[-2].release()
    await holds[-1].reached()
    establishing.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await establishing
    holds[-1].release()
    await here.fake.settle()
    return caught.value
