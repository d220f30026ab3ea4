"""A fake Asana, a session with it, a store and a receiver on a port; and ways to spoil what is between them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from traceback import format_exception
from typing import Any, cast

from aiohttp import web
from attrs import frozen

from asana_webhooks import (
    AsanaSession,
    EnsuredWebhook,
    EstablishedWebhook,
    MemoryStore,
    Receiver,
    StoreUnavailableError,
    Worker,
    ensure_webhook,
    establish_webhook,
)
from asana_webhooks.models import Delivery
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.testing import FakeAsana, serve_receiver

GONE = '{"errors": [{"message": "webhook: Unknown object: 43214"}]}'
"""What Asana says in a 404 for an object that does not exist."""


@frozen
class Scene:
    """A fake Asana, a session with it, a store, and a receiver on a port."""

    fake: FakeAsana
    asana: AsanaSession
    store: Store
    public_url: str

    async def establish(self, **options: Any) -> EstablishedWebhook:
        wanted = {"public_url": self.public_url, "resource": self.fake.projects[0]} | options
        return await establish_webhook(self.asana, self.store, **wanted)

    async def ensure(self, **options: Any) -> EnsuredWebhook:
        wanted = {"public_url": self.public_url, "resource": self.fake.projects[0]} | options
        return await ensure_webhook(self.asana, self.store, **wanted)

    async def registration(self, established: EstablishedWebhook) -> Registration:
        found = await self.store.find_registration(established.registration)
        assert found is not None
        return found


@asynccontextmanager
async def scene(store: Store, **options: Any) -> AsyncIterator[Scene]:
    """Set the scene; *options* are the session's."""
    async with (
        FakeAsana() as fake,
        AsanaSession(fake.token, **({"base_url": fake.url} | options)) as asana,
        store,
        serve_receiver(Receiver(store)) as public_url,
    ):
        yield Scene(fake, asana, store, public_url)


async def arrived(store: Store) -> list[Delivery]:
    """Return the deliveries that reach a worker."""
    got: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        got.append(delivery)

    await Worker(store, handle).drain()
    return got


async def live(fake: FakeAsana) -> set[str]:
    """Let every project change, and return the webhooks whose targets accept what they are told."""
    for project in fake.projects:
        fake.change(project, field="name")
    await fake.settle()
    answered = {one.webhook_gid: one.status for one in fake.deliveries}
    return {gid for gid in fake.webhooks if answered.get(gid) == 200}


def shown(error: BaseException) -> str:
    """Return all that a report of an error may show: texts, tracebacks and reprs of it and of those before it."""
    before = error.__cause__ or error.__context__
    return "".join([repr(error), *format_exception(error), shown(before) if before else ""])


async def no_wait(_: float) -> None:
    """Stand in for the pause between attempts."""


class Remembering(MemoryStore):
    """A store that remembers which registrations were opened."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.opened: list[str] = []

    async def open_registration(self, id: str, **options: Any) -> bool:
        self.opened.append(id)
        return await super().open_registration(id, **options)

    async def states(self) -> list[RegistrationState]:
        found = [await self.find_registration(id) for id in self.opened]
        return [one.state for one in found if one is not None]


class _Troubled:
    def __init__(self, store: Store, method: str, *, done: bool) -> None:
        self._store, self._method, self._done = store, method, done

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name != self._method:
            return found

        async def fail(*args: Any, **options: Any) -> None:
            if self._done:
                await found(*args, **options)
            raise StoreUnavailableError(problem="disk I/O error")

        return fail


def troubled(store: Store, method: str, *, done: bool = False) -> Store:
    """Return *store* with a method that always fails; with *done*, after it has done its work all the same."""
    return cast("Store", _Troubled(store, method, done=done))


class Dawdling(_Troubled):
    """A store that can be cancelled before and after it does anything, and remembers what was opened through it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "", done=False)
        self.opened: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        async def dawdle(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            came = await found(*args, **options)
            await asyncio.sleep(0)
            return came

        return dawdle

    async def open_registration(self, id: str, **options: Any) -> Any:
        self.opened.append(id)
        return await self.__getattr__("open_registration")(id, **options)

    async def open_now(self) -> list[str]:
        """Return those that are still pending."""
        found = [await self._store.find_registration(id) for id in self.opened]
        return [one.id for one in found if one is not None and one.state is RegistrationState.PENDING]


class Stuck(_Troubled):
    """A store with a method that waits until it is let go."""

    def __init__(self, store: Store, method: str) -> None:
        super().__init__(store, method, done=False)
        self.reached, self.released = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name != self._method:
            return found

        async def wait(*args: Any, **options: Any) -> Any:
            self.reached.set()
            await self.released.wait()
            return await found(*args, **options)

        return wait


class LoopClock:
    """The time of an event loop, which a test may turn forward: timeouts of what is under way run out then."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._ahead = 0.0
        setattr(loop, "time", self)  # noqa: B010 - a method, and so no place to assign to

    def __call__(self) -> float:
        return self._time() + self._ahead

    def turn(self, seconds: float) -> None:
        self._ahead += seconds


@asynccontextmanager
async def mute(receiver: Receiver) -> AsyncIterator[str]:
    """Serve *receiver*, but cut the connection in place of every answer; yields its ``public_url``."""

    async def swallow(request: web.Request) -> web.Response:
        await receiver.receive(request.match_info["endpoint"], request.raw_headers, await request.read())
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app = web.Application()
    app.router.add_post("/asana/{endpoint}", swallow)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/asana"
    finally:
        await runner.cleanup()
