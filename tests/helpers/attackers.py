"""An attacker who knows a webhook's target, the raw requests he sends there, the place, and what is kept of it all."""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from attrs import Factory, define, field, frozen

from asana_webhooks import AsanaSession, EstablishedWebhook, MemoryStore, Receiver, Secret, SQLiteStore, sign_body
from asana_webhooks.store.base import Store, candidate_id
from asana_webhooks.testing import FakeAsana, Hold
from tests.helpers.doors import DOORS
from tests.helpers.stores import body, event
from tests.subscriptions.scenes import Scene

T = TypeVar("T")

HEARTBEAT = b'{"events":[]}'

STORES = ["memory", "sqlite"]
EITHER = [("aiohttp", "sqlite"), ("asgi", "memory")]
"""Each door and each store once, for what lies in one of them alone."""

Headers = Sequence[tuple[str, str]]


@frozen(eq=False)
class Answer:
    """What came back, to the byte. Its repr shows nothing that may be secret."""

    raw: bytes = field(repr=False)

    @property
    def status(self) -> int:
        return int(self.raw[9:12])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def undated(self) -> bytes:
        """All of it but the time, which says nothing about the request."""
        head, _, content = self.raw.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"date:")]
        return b"\r\n".join([*lines, b"", content])

    def echoes(self, secret: Secret) -> bool:
        lines = [line.partition(b": ") for line in self.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")]
        return [value for name, _, value in lines if name.lower() == b"x-hook-secret"] == [secret.reveal().encode()]


def signed(secret: Secret, content: bytes) -> Headers:
    return [("X-Hook-Signature", sign_body(content, secret=secret))]


def shaking(secret: Secret) -> Headers:
    return [("X-Hook-Secret", secret.reveal())]


async def post(target: str, headers: Headers, content: bytes = b"{}") -> Answer:
    """Send one request on a connection of its own, and read all that comes back."""
    async with half_posted(target, headers, content, sent=len(content)) as request:
        return await request.finish()


@define(eq=False)
class HalfPosted:
    """A request of which some bytes are still to be sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: bytes

    async def finish(self) -> Answer:
        self.writer.write(self.left)
        return Answer(await self.reader.read())


@asynccontextmanager
async def half_posted(target: str, headers: Headers, content: bytes, *, sent: int) -> AsyncIterator[HalfPosted]:
    """Send the head of a request and the first *sent* bytes of its body."""
    url = urlsplit(target)
    lines = [
        f"POST {url.path} HTTP/1.1",
        f"Host: {url.netloc}",
        "Connection: close",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content[:sent])
        yield HalfPosted(reader, writer, content[sent:])
    finally:
        writer.close()
        await writer.wait_closed()


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
    signatures: list[str] = field(factory=list, repr=False)
    """What he signed them with."""
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
        headers = signed(secret, content)
        self.forgeries.append(content)
        self.signatures += [signature for _, signature in headers]
        return (await self._send([*more, *headers], content)).status

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
        """Return whatever would tell that a store has kept something of his."""
        own = {form for secret in self.secrets for form in (secret.reveal(), candidate_id(secret))}
        return {*own, *self.signatures, *(one for one in self.forgeries if one != HEARTBEAT)}


def held_in_memory(store: MemoryStore) -> Iterator[object]:
    """Yield everything a store holds that came over the network."""
    for registration in store._registrations.values():
        for secret in (registration.secret, *registration.candidates):
            yield None if secret is None else secret.reveal()
    for delivery in store._known.values():
        yield from (delivery.body, delivery.signature, delivery.candidate)


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
