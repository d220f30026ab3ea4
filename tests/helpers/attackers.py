"""An attacker who knows a webhook's target, the raw requests he sends there, the place, and what is kept of it all."""

import asyncio
import gc
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import Factory, define, field, frozen

from asana_webhooks import AsanaSession, EstablishedWebhook, MemoryStore, Receiver, Secret, SQLiteStore, sign_body
from asana_webhooks.store.base import Store, candidate_id
from asana_webhooks.store.sqlite.file import sqlite3
from asana_webhooks.testing import FakeAsana, Hold
from tests.helpers.doors import DOORS
from tests.helpers.hostile import Answer, connected, raw_request, say
from tests.helpers.stores import body, event
from tests.subscriptions.scenes import Scene

T = TypeVar("T")

HEARTBEAT = b'{"events":[]}'
OURS = ("asana_webhooks.", "tests.")

STORES = ["memory", "sqlite"]
EITHER = [("aiohttp", "sqlite"), ("asgi", "memory")]
"""Each door and each store once, for what lies in one of them alone."""

Headers = Sequence[tuple[str, str]]


def signed(secret: Secret, content: bytes) -> Headers:
    return [("X-Hook-Signature", sign_body(content, secret=secret))]


def shaking(secret: Secret) -> Headers:
    return [("X-Hook-Secret", secret.reveal())]


async def post(target: str, headers: Headers, content: bytes = b"{}") -> Answer:
    """Send one request on a connection of its own, and return all that comes back."""
    return await say(target, _request(target, headers, content))


def _request(target: str, headers: Headers, content: bytes) -> bytes:
    lines = [f"{name}: {value}".encode() for name, value in headers]
    return raw_request(*lines, content=content, target=urlsplit(target).path)


@asynccontextmanager
async def half_posted(
    target: str, headers: Headers, content: bytes, *, sent: int
) -> AsyncIterator[Callable[[], Awaitable[Answer]]]:
    """Send the head of a request and the first *sent* bytes of its body; yields what sends the rest."""
    request = _request(target, headers, content)
    first = len(request) - len(content) + sent
    async with connected(target) as ear:
        ear.mouth.write(request[:first])

        async def finish() -> Answer:
            ear.mouth.write(request[first:])
            await ear.over.wait()
            return Answer(bytes(ear.heard))

        yield finish


@define(eq=False)
class Attacker:
    """Somebody who knows the target. What he invents he remembers, so that a test can look for it.

    He signs with the first secret that was echoed to him, or, as long as none was, with the first he made up.
    """

    target: str = field(repr=False)
    overheard: Secret | None = None
    """The secret of Asana's own handshake, once that was sent."""
    secrets: list[Secret] = Factory(list)
    """Those he made up, oldest first."""
    echoed: list[Secret] = Factory(list)
    """Those that were echoed to him."""
    forgeries: list[bytes] = field(factory=list, repr=False)
    """The bodies of the deliveries he made up."""
    answers: list[Answer] = Factory(list)
    _at_once: asyncio.Semaphore = Factory(lambda: asyncio.Semaphore(50))
    """What overflows a listener's backlog is tried again a second later."""

    def invent(self) -> Secret:
        self.secrets.append(Secret(secrets.token_hex(16)))
        return self.secrets[-1]

    async def _send(self, headers: Headers, content: bytes = b"{}") -> Answer:
        async with self._at_once:
            answer = await post(self.target, headers, content)
        self.answers.append(answer)
        return answer

    async def _deliver(self, secret: Secret, content: bytes, *more: tuple[str, str]) -> int:
        self.forgeries.append(content)
        return (await self._send([*more, *signed(secret, content)], content)).status

    async def shake(self) -> int:
        """Propose a new secret."""
        secret = self.invent()
        answer = await self._send(shaking(secret))
        assert answer.echoes(secret) is (answer.status == 200)
        if answer.status == 200:
            self.echoed.append(secret)
        return answer.status

    async def flood(self, handshakes: int) -> int:
        """Propose many secrets at once; return how many were echoed."""
        return (await asyncio.gather(*(self.shake() for _ in range(handshakes)))).count(200)

    async def replay(self) -> int:
        """Send Asana's own handshake once more."""
        assert self.overheard is not None
        return (await self._send(shaking(self.overheard))).status

    async def forge(self, secret: Secret | None = None) -> int:
        """Send a delivery signed with a secret of his."""
        return await self._deliver(secret or self._best(), body(event(action="forged")))

    async def beat(self) -> int:
        """Send a heartbeat signed with a secret of his."""
        return await self._deliver(self._best(), HEARTBEAT)

    async def mix(self) -> int:
        """Send a new secret and a signed delivery in one request."""
        best = self._best()
        return await self._deliver(best, body(event(action="forged")), *shaking(self.invent()))

    async def ask(self) -> int:
        """Send a delivery without a signature."""
        return (await self._send([], body(event(action="forged")))).status

    def _best(self) -> Secret:
        known = self.echoed or self.secrets
        return known[0] if known else self.invent()

    def traces(self) -> set[object]:
        """Return whatever would tell that a store has kept something of his.

        Signatures are not among it: they are the keys of dropped deliveries, which stay until they are purged.
        """
        own = {form for secret in self.secrets for form in (secret.reveal(), candidate_id(secret))}
        return {*own, *(one for one in self.forgeries if one != HEARTBEAT)}


def held_in_memory(store: MemoryStore) -> Iterator[object]:
    """Yield everything that can be reached from a store through our own objects and containers."""
    seen: set[int] = set()
    left: list[object] = [store]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Secret):
            yield one.reveal()
        elif isinstance(one, str | bytes):
            yield one
        elif isinstance(one, dict | list | tuple | set | deque) or type(one).__module__.startswith(OURS):
            left += gc.get_referents(one)


def held_in_file(path: Path) -> Iterator[object]:
    """Yield every value of every table."""
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                yield from row


@asynccontextmanager
async def going_on(work: Coroutine[Any, Any, T]) -> AsyncIterator["asyncio.Task[T]"]:
    """Do some work beside the block; it ends with the block at the latest."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@frozen(eq=False)
class Window:
    """The time in which Asana's handshake is answered and its 201 is still to come."""

    target: str = field(repr=False)
    secret: Secret
    _answering: Hold
    _establishing: "asyncio.Task[EstablishedWebhook]"

    async def close(self) -> EstablishedWebhook:
        """Let the 201 come."""
        self._answering.release()
        return await self._establishing


@frozen
class Stage(Scene):
    """A scene that tells everything its store holds."""

    held: Callable[[], Iterator[object]] = field(repr=False)

    @asynccontextmanager
    async def window(self) -> AsyncIterator[Window]:
        """Establish a webhook, and stop in the middle of it."""
        answering = self.fake.hold("createWebhook", when="after_handshake")
        async with going_on(self.establish()) as establishing:
            await answering.reached()
            handshake = self.fake.handshakes[-1]
            yield Window(handshake.target, handshake.secret, answering, establishing)

    async def change_something(self) -> None:
        """Let the first project change, and wait until its webhooks know."""
        self.fake.change(self.fake.projects[0], field="name")
        await self.fake.settle()


@asynccontextmanager
async def stage(
    door: str, kind: str, path: Path, *, store: Store | None = None, fake: FakeAsana | None = None, **options: Any
) -> AsyncIterator[Stage]:
    """Set a scene behind a door with a store of a kind, or one that is given; *options* are the store's."""
    file = path / "asana.db"
    if store is None:
        store = MemoryStore(**options) if kind == "memory" else SQLiteStore(file, **options)
    async with (
        fake or FakeAsana() as asana,
        AsanaSession(asana.token, base_url=asana.url) as session,
        store,
        DOORS[door](Receiver(store)) as public_url,
    ):
        held = (lambda: held_in_memory(store)) if isinstance(store, MemoryStore) else (lambda: held_in_file(file))
        yield Stage(asana, session, store, public_url, held)
