"""A registration is opened last: while establish_webhook waits for its turn, nothing is pending."""

import asyncio
from typing import Self

import pytest

from asana_webhooks import DeadlineExceededError, RetryPolicy
from asana_webhooks.store.base import RegistrationState, registration_id
from asana_webhooks.testing import Fault
from tests.subscriptions.scenes import Remembering, scene


class Gate:
    """A limiter, and a sleep, that wait until they are let go."""

    def __init__(self) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def wait(self, _: float = 0.0) -> None:
        self.reached.set()
        await self.open.wait()

    async def __aenter__(self) -> Self:
        await self.wait()
        return self

    async def __aexit__(self, *_: object) -> None: ...


async def test_nothing_is_open_while_it_waits_for_the_limiter() -> None:
    """The deadline of a registration begins when all that is missing is the request itself."""
    store, gate = Remembering(), Gate()
    async with scene(store, limiter=gate) as here:
        establishing = asyncio.create_task(here.establish())
        await gate.reached.wait()
        assert store.opened == []
        gate.open.set()
        established = await establishing

        assert store.opened == [established.registration]


async def test_a_turn_that_does_not_come_opens_nothing() -> None:
    """The error is the session's."""
    store = Remembering()
    async with scene(store, limiter=Gate(), slot_timeout=0.05) as here:
        with pytest.raises(DeadlineExceededError, match="for the limiter"):
            await here.establish()

        assert store.opened == []


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_pause_after_a_429(cancelled: bool) -> None:
    """The registration of the refused request is closed before the pause; the next request has another endpoint."""
    store, gate = Remembering(), Gate()
    async with scene(store, retry=RetryPolicy(sleep=gate.wait)) as here:
        here.fake.script(Fault(at="createWebhook", status=429, retry_after=30))
        establishing = asyncio.create_task(here.establish())
        await gate.reached.wait()
        assert await store.states() == [RegistrationState.CLOSED]
        if cancelled:
            establishing.cancel()
            await asyncio.wait({establishing})
            assert (len(store.opened), here.fake.webhooks) == (1, {})
            return
        gate.open.set()
        established = await establishing

        assert await store.states() == [RegistrationState.CLOSED, RegistrationState.CONFIRMED]
        targets = [one.body["data"]["target"] for one in here.fake.requests]
        assert [registration_id(target.rpartition("/")[2]) for target in targets] == store.opened
        assert established.registration == store.opened[1]
