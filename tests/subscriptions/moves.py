"""A webhook to move, receivers at both of its public URLs, and time that passes while the move sleeps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import define

from asana_webhooks import (
    EnsuredWebhook,
    Receiver,
    RegistrationState,
    ReplacedWebhook,
    Reply,
    WebhookFilter,
    WebhookHealth,
    check_webhooks,
    ensure_webhook,
    replace_webhook,
)
from asana_webhooks.store.base import Registration
from asana_webhooks.subscriptions import move
from asana_webhooks.testing import serve_receiver
from tests.subscriptions.scenes import Scene
from tests.subscriptions.times import Turned, earlier

FILTERS = (WebhookFilter(resource_type="task", action="changed"), WebhookFilter(action="deleted"))


class Door(Receiver):
    """A receiver that a test may turn down: it then answers 503."""

    down = False

    async def receive(self, *args: Any) -> Reply:
        return Reply(status=503) if self.down else await super().receive(*args)


def ending(timeout: asyncio.Timeout) -> Callable[[float], Any]:
    """Return what ends a block in place of a sleep."""

    async def end(_: float) -> None:
        timeout.reschedule(0)
        await asyncio.Event().wait()

    return end


@define
class Moving:
    """A scene with receivers at two public URLs, and a webhook at the first."""

    here: Scene
    time: Turned
    doors: tuple[Door, Door]
    new_url: str
    old: EnsuredWebhook

    async def replace(self, **options: Any) -> ReplacedWebhook:
        usual = {"webhook_gid": self.old.webhook_gid, "public_url": self.new_url}
        return await replace_webhook(self.here.asana, self.here.store, **(usual | options))

    async def ensure(self, **options: Any) -> EnsuredWebhook:
        usual = {"resource": self.here.fake.projects[0], "public_url": self.new_url, "filters": FILTERS}
        return await ensure_webhook(self.here.asana, self.here.store, **(usual | options))

    def sends(self) -> None:
        """Let something happen about which both webhooks tell."""
        self.here.fake.change(self.here.fake.add_task(), field="name")

    async def busily(self, seconds: float) -> None:
        """Let time pass in which something happens."""
        self.sends()
        await self.here.fake.advance(seconds)

    async def begin(self) -> None:
        """Begin the move, and cancel it when it waits for the first time."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                self.time.advance = ending(timeout)
                await self.replace()
        self.time.advance = None

    async def check(self) -> tuple[WebhookHealth, ...]:
        here = self.here
        return await check_webhooks(here.asana, here.store, public_url=here.public_url, workspace=here.fake.workspace)

    async def registrations(self) -> list[Registration]:
        """Return those of the webhook's label, the old one first."""
        found = await self.here.store.list_registrations()
        return sorted(found, key=lambda one: one.id != self.old.registration)

    async def states(self) -> list[RegistrationState]:
        return [one.state for one in await self.registrations()]


CLOSED, CONFIRMED = RegistrationState.CLOSED, RegistrationState.CONFIRMED


@asynccontextmanager
async def moving(monkeypatch: pytest.MonkeyPatch, *, hours: float = 30) -> AsyncIterator[Moving]:
    """Set the scene. While `replace_webhook` sleeps, the fake's clock goes on."""
    async with (
        earlier(hours) as (past, _),
        serve_receiver(one := Door(past.store)) as old_url,
        serve_receiver(other := Door(past.store)) as new_url,
    ):
        here = Scene(past.fake, past.asana, past.store, old_url)
        time = Turned(here.fake)
        monkeypatch.setattr(move, "asyncio", time)
        monkeypatch.setattr(move, "time", time)
        old = await ensure_webhook(
            here.asana, here.store, resource=here.fake.projects[0], public_url=here.public_url, filters=FILTERS
        )
        await here.fake.advance(60)
        yield Moving(here, time, (one, other), new_url, old)
