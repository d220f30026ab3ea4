"""Calls that wait for their turn before each step: a loop without time, a store, and an Asana of a few lines.

A step is one call of the store, or one request to Asana; a create request is three: it is sent, Asana makes the
handshake, Asana creates the webhook. See `interleave.explore`.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
from attrs import define, evolve, field, frozen

from asana_webhooks import AsanaSession, CreateOutcomeUnknownError, MemoryStore, NotFoundError, Receiver
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    Request,
    UpdateWebhookRequest,
)
from asana_webhooks.errors import TargetRejectedError
from asana_webhooks.models import CreatedWebhook, ResourceRef, Secret, Webhook
from asana_webhooks.wire import WebhookList

__all__ = ["Actor", "MemoryAsana", "SteppingSession", "SteppingStore", "StillLoop", "endpoint_of", "turn"]

_SIMPLE = {str, int, float, bool, type(None), datetime}
_PLAIN = {"asana_webhooks.models", "asana_webhooks.store.base", "asana_webhooks.client.requests"}
"""Where the classes are whose objects never change, and are equal if their members are."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_actor: ContextVar["Actor"] = ContextVar("actor")
AnswerT = TypeVar("AnswerT")


class Killed(BaseException):
    """Ends whatever a killed call still tries, so that it has no effect."""


class StillLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still. It runs until everything in it waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.next_timer: float | None = None
        """Seconds until the first sleep ends."""
        super().__init__(_NoSockets(self))

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run until everything waits for a turn, or sleeps."""
        self.run_forever()

    def pass_time(self, seconds: float) -> None:
        self.now = round(self.now + seconds + 0.0005, 3)  # in milliseconds, so that equal times are equal numbers
        self.settle()


class _NoSockets(selectors.SelectSelector):
    def __init__(self, loop: StillLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._loop.next_timer = timeout
            self._loop.stop()
        return []


@frozen(eq=False)
class Turn:
    """A step that waits to be taken, and the faults that may happen instead."""

    step: str
    faults: tuple[str, ...]
    chosen: "asyncio.Future[str]"


@define(eq=False)
class Actor:
    """A call, or Asana's work on a create request. Asana goes on with that even if the sender is killed."""

    name: str
    role: object
    """Actors with one role are alike: states that differ only in who of them is where count as one."""
    turns: list[Turn] = field(factory=list)
    sent: "Actor | None" = None
    """Asana's work on its latest create request."""
    killed: bool = False
    creates: int = 0
    unknown: int = 0
    """How many of its creates got no answer."""
    answers: list[Any] = field(factory=list)
    """What it was told so far, and when."""
    task: Any = None

    def begin(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> "Actor":
        context = copy_context()
        context.run(_actor.set, self)
        self.task = loop.create_task(work, context=context)
        return self

    def note(self, *answer: object) -> None:
        self.answers.append((*answer, asyncio.get_running_loop().time()))

    def kill(self) -> None:
        self.killed = True
        self.task.cancel()
        for waiting in self.turns:
            waiting.chosen.cancel()  # what cleans up need not be cancelled with its task

    @property
    def runs(self) -> bool:
        return not self.killed and not self.task.done()

    @property
    def sleeps(self) -> bool:
        return not self.turns and not (self.sent is not None and self.sent.runs)

    @property
    def error(self) -> BaseException | None:
        return None if self.killed or not self.task.done() else self.task.exception()

    @property
    def returned(self) -> bool:
        return not self.killed and self.task.done() and self.error is None

    def key(self) -> tuple[Any, ...]:
        place: Any = "killed" if self.killed else type(self.error)
        if self.runs:
            place = place_of(self.task)
            if any(name.endswith("comp>") for name, *_ in place):  # what a comprehension has so far is no variable
                place += (value_of(self.answers),)
        return (self.role, place, *(one.step for one in self.turns), self.creates, self.unknown)


def place_of(task: Any) -> tuple[Any, ...]:
    """Return where a task is: the functions it is in, with what they wait for and their variables."""
    found, waiting = [], task.get_coro()
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        found.append((frame.f_code.co_name, frame.f_lasti, value_of(dict(frame.f_locals))))
        waiting = waiting.cr_await
    return tuple(found)


def value_of(value: Any) -> Any:
    """Return a value in a form that is equal in two runs if the values are; of foreign objects, the type."""
    kind, found = type(value), value
    if kind is dict:
        found = frozenset([(key, value_of(one)) for key, one in value.items()])
    elif kind in {list, tuple}:
        found = tuple([value_of(one) for one in value])
    elif kind is set:
        found = frozenset([value_of(one) for one in value])
    elif isinstance(value, asyncio.Task):
        found = place_of(value)
    elif isinstance(value, asyncio.TimerHandle | asyncio.Timeout):
        found = value.when()
    elif kind not in _SIMPLE and kind.__module__ not in _PLAIN:
        ours = kind.__module__.startswith("asana_webhooks.")
        names = [one.name for one in attrs.fields(kind)] if attrs.has(kind) else vars(value) if ours else ()
        found = (kind, *[(name, value_of(getattr(value, name))) for name in names if ours])
    return found


async def turn(step: str, *faults: str) -> str:
    """Let the current actor wait until it may take this step; return the fault chosen for it, or an empty string."""
    actor = _actor.get()
    if actor.killed:
        raise Killed
    waiting = Turn(step, faults, asyncio.get_running_loop().create_future())
    actor.turns.append(waiting)
    try:
        return await waiting.chosen
    finally:
        actor.turns.remove(waiting)


def endpoint_of(number: int) -> str:
    """Return an endpoint, and let the current actor know it."""
    _actor.get().note(number)
    return f"endpoint-number-{number}"


class SteppingStore:
    """A store each of whose calls is a step."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def step(*args: Any, **options: Any) -> Any:
            await turn(name)
            answer = await method(*args, **options)
            _actor.get().note(name, answer)
            return answer

        return step


@define
class MemoryAsana:
    """Asana's webhooks by gid. All targets lead to *receiver*. Secrets and gids are the same in every run."""

    receiver: Receiver
    webhooks: dict[str, Webhook] = field(factory=dict)
    working: list[Actor] = field(factory=list)
    """Its work on create requests."""
    _created: int = 0

    def add(self, target: str, **members: Any) -> Webhook:
        """Create a webhook, without a handshake."""
        self._created += 1
        gid = f"{self._created}"
        self.webhooks[gid] = Webhook(gid=gid, active=True, target=target, **members)
        return self.webhooks[gid]

    async def create(self, request: CreateWebhookRequest) -> CreatedWebhook:
        _actor.get().note(request.target)
        await turn("handshake")
        endpoint = request.target.partition("?")[0].rpartition("/")[2]
        secret = f"secret-of-{endpoint}"
        reply = await self.receiver.receive(endpoint, [(b"X-Hook-Secret", secret.encode())], b"")
        if reply.status != 200:
            said = f"The target replied with an incorrect status code: {reply.status}"
            raise TargetRejectedError(operation=request.operation, status=400, messages=(said,))
        fault = await turn("create", "answer lost")
        webhook = self.add(request.target, filters=request.filters, resource=ResourceRef(gid=request.resource))
        if fault:
            raise unanswered(request)
        return CreatedWebhook(webhook=webhook, secret=Secret(secret))

    def answer(self, request: Request[Any]) -> Any:
        """Answer any other request for webhooks."""
        if isinstance(request, GetWebhooksRequest):
            return WebhookList(data=tuple(self.webhooks.values()))
        assert isinstance(request, GetWebhookRequest | UpdateWebhookRequest | DeleteWebhookRequest)
        gid = request.webhook_gid
        if gid not in self.webhooks:
            raise NotFoundError(operation=request.operation, status=404, messages=("webhook: Unknown object",))
        if isinstance(request, DeleteWebhookRequest):
            del self.webhooks[gid]
            return None
        if isinstance(request, UpdateWebhookRequest):
            self.webhooks[gid] = evolve(self.webhooks[gid], filters=request.filters)
        return self.webhooks[gid]


def unanswered(request: CreateWebhookRequest) -> CreateOutcomeUnknownError:
    problem, target = "no answer", request.target
    return CreateOutcomeUnknownError(
        operation=request.operation, attempts=1, problem=problem, target=target, sent_at=_EPOCH
    )


class SteppingSession(AsanaSession):
    """A session with a `MemoryAsana`; each of its requests is a step, and Asana's work on a create request two more."""

    def __init__(self, asana: MemoryAsana) -> None:
        super().__init__("token", base_url="https://app.asana.com/api/1.0")
        self._asana = asana

    async def send(self, request: Request[AnswerT], *, prepare: Any = None, discard: Any = None) -> AnswerT:
        actor = _actor.get()
        try:
            answer: AnswerT
            if isinstance(request, CreateWebhookRequest):
                answer = await self._create(prepare, discard)
            else:
                await turn(request.operation)
                answer = self._asana.answer(request)
        except Exception as error:
            actor.unknown += isinstance(error, CreateOutcomeUnknownError)
            actor.note(error)
            raise
        actor.note(request.operation, answer)
        return answer

    async def _create(self, prepare: Any, discard: Any) -> Any:
        actor, request = _actor.get(), await prepare()
        while (fault := await turn("createWebhook", "429", "lost")) == "429":
            await discard()
            request = await prepare()
        actor.creates += 1
        if fault:
            raise unanswered(request)
        sent = Actor(f"Asana for {actor.name}", "asana")
        actor.sent = sent.begin(self._asana.create(request), asyncio.get_running_loop())
        self._asana.working.append(sent)
        await asyncio.wait({sent.task})
        return sent.task.result()
