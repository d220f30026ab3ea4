"""A create request has no idempotency key. Wherever it breaks, one call never has two live webhooks.

Each cell of the table breaks it at one step. A webhook is live if its deliveries are accepted.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve, field, frozen

from asana_webhooks import (
    AsanaSession,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    DuplicateWebhookError,
    EstablishedWebhook,
    HandshakeMismatchError,
    MemoryStore,
    RateLimitedError,
    Receiver,
    RetryPolicy,
    SQLiteStore,
    StoreUnavailableError,
    TargetRejectedError,
    create_webhook,
)
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.stores import Clock
from tests.helpers.tcp_proxy import Loss, tcp_proxy
from tests.subscriptions.scenes import LoopClock, Scene, Stuck, arrived, live, mute, no_wait, shown, troubled

NOWHERE = "http://127.0.0.1:1"
DUPLICATED = "Duplicated webhook. You already have an existing webhook for the given resource and target."


def create(do: str = "answer", **options: Any) -> Fault:
    return Fault(at="createWebhook", do=do, **options)


@frozen(kw_only=True)
class Cell:
    """How a create is broken, and what is to come of it."""

    what: str
    ends: type[Exception] | None = None
    """What is raised; ``None``: a webhook is established."""
    creates: int
    """How many create requests reach Asana."""
    left: tuple[int, int]
    """How many webhooks there are in the end: if the workspace is known, and if it is not."""
    orphans: tuple[int, int] = (0, 0)
    """How many of them the result counts as left over."""

    faults: tuple[Fault, ...] = ()
    deadline: tuple[str, str] | None = None
    """The call's deadline passes while the fake holds a request here."""
    cut: int | None = None
    """How many bytes of the first answer arrive, head and body."""
    receiver: str = "there"
    asana: str = "there"
    trouble: str | None = None
    """The method of the store that fails."""
    done: bool = False
    """Whether it has done its work by then."""
    closes_late: bool = False
    """Whether the registration ends only with its deadline."""

    def __str__(self) -> str:
        return self.what


def unaffected(what: str, creates: int = 2, **how: Any) -> Cell:
    """Nothing came of what broke: the one webhook there is is live."""
    return Cell(what=what, creates=creates, left=(1, 1), **how)


def leftover(what: str, *faults: Fault, **how: Any) -> Cell:
    """A webhook came of what broke: it is deleted if the workspace is known, and counted if not."""
    usual: dict[str, Any] = {"creates": 2, "left": (1, 2), "orphans": (0, 1)}
    return Cell(what=what, faults=faults, **(usual | how))


def raises(what: str, ends: type[Exception], *faults: Fault, **how: Any) -> Cell:
    """The call fails, and usually nothing is left."""
    usual: dict[str, Any] = {"creates": 1, "left": (0, 0)}
    return Cell(what=what, ends=ends, faults=faults, **(usual | how))


LOST = create("lose_answer")
REFUSED = create(status=400, message="The remote server which is intended to receive the webhook could not be reached")
SENT_TWICE = create(status=403, message=DUPLICATED, executed=True)
LATE = Fault(at="getWebhooks", status=200, body='{"data": [], "next_page": null}')
NO_LIST = Fault(at="getWebhooks", status=500, times=None)
NO_DELETE = Fault(at="deleteWebhook", status=403, times=None)

UNKNOWN = [
    unaffected("reset before anything", faults=(create("reset"),)),
    unaffected("500, not executed", faults=(create(),)),
    leftover("500, executed", create(executed=True)),
    leftover("503, executed", create(status=503, executed=True)),
    leftover("answer lost", LOST),
    leftover("answer lost, and an early event", LOST, create("early_event")),
    *[leftover(f"answer cut after {size} bytes", cut=size) for size in (1, 11, 40, 150)],
    *[leftover(f"body cut after {size} bytes", create("truncate", size=size)) for size in (0, 1, 60, 300)],
    leftover("201 without a body", create(status=201, body="", executed=True)),
    leftover("201 of a proxy", create(status=201, body="<html>", headers={"Content-Type": "text/html"}, executed=True)),
    leftover("201 of another shape", create(status=201, body='{"data": 5}', executed=True)),
    unaffected("deadline before anything", deadline=("createWebhook", "before")),
    unaffected("deadline before the handshake", deadline=("handshake", "before")),
    # It is created after everything was looked through, so it is counted in either case.
    Cell(what="deadline after the echo", deadline=("handshake", "after"), creates=2, left=(2, 2), orphans=(1, 1)),
    leftover("deadline before the heartbeat", deadline=("createWebhook", "after_handshake")),
    leftover("deadline before the 201", deadline=("createWebhook", "before_answer")),
]
# Something on the way has sent our request twice: its target is ours alone, so nobody else's webhook can have it.
DUPLICATE = [
    unaffected("403 duplicate, not executed", faults=(create(status=403, message=DUPLICATED),)),
    leftover("403 duplicate, executed", SENT_TWICE),
    leftover("429, executed", create(status=429, retry_after=0, executed=True)),
]
CLEAR = [
    unaffected("nothing", creates=1),
    unaffected("429, then fine", faults=(create(status=429, retry_after=0),)),
    raises("handshake dropped", TargetRejectedError, Fault(at="handshake", do="drop")),
    raises("receiver down", TargetRejectedError, receiver="down"),
    raises("receiver too slow", TargetRejectedError, receiver="stuck"),
    raises("echo lost", TargetRejectedError, receiver="mute"),
    raises("wrong secret in the 201", HandshakeMismatchError, create("wrong_secret")),
    raises("no secret in the 201", HandshakeMismatchError, create("no_secret")),
    raises("no handshake before the 201", HandshakeMismatchError, create("skip_handshake")),
    raises("connection refused", ConnectionFailedError, asana="down", creates=0),
]  # fmt: skip
TWICE = [
    raises("lost twice", CreateOutcomeUnknownError, LOST, LOST, creates=2, left=(0, 2)),
    raises("lost twice, the first listed late", CreateOutcomeUnknownError, LOST, LOST, LATE, creates=2, left=(0, 2)),
    raises("duplicate twice", DuplicateWebhookError, SENT_TWICE, SENT_TWICE, creates=2, left=(0, 2)),
    raises("lost, then duplicate", DuplicateWebhookError, LOST, SENT_TWICE, creates=2, left=(0, 2)),
    raises("duplicate, then lost", CreateOutcomeUnknownError, SENT_TWICE, LOST, creates=2, left=(0, 2)),
    raises("lost, then rejected", TargetRejectedError, LOST, REFUSED, creates=2, left=(0, 1)),
    raises("lost, then 429", RateLimitedError, LOST, create(status=429, retry_after=700), creates=2, left=(0, 1)),
    raises("echo and answer lost", TargetRejectedError, create(), receiver="mute", creates=2),
    Cell(what="lost, listing fails", faults=(LOST, NO_LIST), creates=2, left=(2, 2), orphans=(1, 1)),
    Cell(what="lost, deleting fails", faults=(LOST, NO_DELETE), creates=2, left=(2, 2), orphans=(1, 1)),
]  # fmt: skip
STORE = [
    raises("list fails", StoreUnavailableError, creates=0, trouble="list_registrations"),
    raises("open fails", StoreUnavailableError, creates=0, trouble="open_registration"),
    raises("find fails", TargetRejectedError, trouble="find_registration"),
    raises("candidate fails", TargetRejectedError, trouble="add_candidate"),
    raises("confirm fails", StoreUnavailableError, trouble="confirm_registration"),
    raises("confirm and deleting fail", StoreUnavailableError, NO_DELETE, trouble="confirm_registration", left=(1, 1)),
    raises("close fails, rejected", TargetRejectedError, trouble="close_registration", receiver="down"),
    raises("close fails, mismatch", HandshakeMismatchError, create("wrong_secret"), trouble="close_registration"),
    raises("close fails, 429", StoreUnavailableError, create(status=429, retry_after=0), trouble="close_registration"),
]
STORE += [
    evolve(cell, what=f"{cell.what}, but it is done", done=True)
    for cell in STORE
    if cell.trouble not in {"find_registration", "list_registrations"}
]
STORE += [
    # While it may be open, nothing is created again.
    raises("close fails, answer lost", CreateOutcomeUnknownError, LOST, trouble="close_registration", left=(0, 1),
           closes_late=True),
    raises("close fails, answer lost, but it is done", CreateOutcomeUnknownError, LOST, trouble="close_registration",
           done=True, left=(0, 1)),
]  # fmt: skip


@frozen
class Stage:
    """The scene of a cell, and its clocks."""

    scene: Scene
    cell: Cell
    loop_clock: LoopClock
    stuck: Stuck
    clock: Clock = field(factory=Clock)

    async def run(self, call: Awaitable[Any]) -> Any:
        """Await *call*, or its error, and break it as the cell says; then let Asana end what it is doing."""
        calling = asyncio.ensure_future(call)
        hold = None
        if self.cell.deadline is not None:
            at, when = self.cell.deadline
            hold = self.scene.fake.hold(at, when=when)
            await hold.reached()
            self.loop_clock.turn(100)
        if self.cell.receiver == "stuck":
            await self.stuck.reached.wait()
            self.loop_clock.turn(11)
        came: Any = (await asyncio.gather(calling, return_exceptions=True))[0]
        self.stuck.released.set()
        if hold is not None:
            hold.release()
        await self.scene.fake.settle()
        return came


@asynccontextmanager
async def staged(cell: Cell, kind: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        clock, loop_clock = Clock(), LoopClock()
        fake = await stack.enter_async_context(FakeAsana())
        url = NOWHERE if cell.asana == "down" else fake.url
        if cell.cut is not None:
            proxy = await stack.enter_async_context(tcp_proxy(fake.url))
            proxy.lose(replies=Loss(cell.cut, "close"))
            url = proxy.url
        retry = RetryPolicy(sleep=no_wait, clock=loop_clock)
        asana = await stack.enter_async_context(AsanaSession(fake.token, base_url=url, retry=retry))
        kept: Store = MemoryStore(clock=clock) if kind == "memory" else SQLiteStore(tmp_path / "a.db", clock=clock)
        await stack.enter_async_context(kept)
        stuck = Stuck(kept, "add_candidate")
        store = kept if cell.trouble is None else troubled(kept, cell.trouble, done=cell.done)
        # So patient that Asana is the first to give up.
        receiver = Receiver(cast("Store", stuck) if cell.receiver == "stuck" else store, timeout=60)
        public_url = await stack.enter_async_context((mute if cell.receiver == "mute" else serve_receiver)(receiver))
        if cell.receiver == "down":
            public_url = NOWHERE
        fake.script(*cell.faults)
        yield Stage(Scene(fake, asana, store, public_url), cell, loop_clock, stuck, clock)


def endpoints(fake: FakeAsana) -> set[str]:
    """Return the endpoints of all targets Asana was ever asked to post to."""
    created = [one.body for one in fake.requests if one.operation == "createWebhook"]
    return {body["data"]["target"].rpartition("/")[2] for body in created}


def creates(fake: FakeAsana) -> int:
    return [one.operation for one in fake.requests].count("createWebhook")


@pytest.mark.parametrize("known", [True, False], ids=["workspace known", "workspace unknown"])
@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        *[("memory", cell) for cell in (*CLEAR, *UNKNOWN, *DUPLICATE, *TWICE, *STORE)],
        *[("sqlite", cell) for cell in (*UNKNOWN, *DUPLICATE, *STORE)],  # what the store says decides
    ],
    ids=str,
)
async def test_one_call_has_one_live_webhook_or_none(
    kind: str, cell: Cell, known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It returns and one webhook is live, or it raises and none is; whatever else exists is told and answered 404.

    And whatever happens, no endpoint is shown.
    """
    caplog.set_level(logging.DEBUG)
    async with staged(cell, kind, tmp_path) as stage:
        fake = stage.scene.fake
        came = await stage.run(stage.scene.establish(workspace=fake.workspace if known else None))

        if cell.closes_late:
            stage.clock.now += 200
        alive = await live(fake)
        assert {one.webhook_gid for one in await arrived(stage.scene.store)} == alive
        assert creates(fake) == cell.creates
        assert len(fake.webhooks) == cell.left[not known]
        if cell.ends is None:
            assert isinstance(came, EstablishedWebhook), came
            assert alive == {came.webhook_gid}
            assert came.orphans == cell.orphans[not known]
        else:
            assert type(came) is cell.ends
            assert alive == set()
        if cell in CLEAR:
            assert "getWebhooks" not in [one.operation for one in fake.requests]
        told = caplog.text + (shown(came) if isinstance(came, Exception) else repr(came))
        assert [one for one in endpoints(fake) if one in told] == []


@pytest.mark.parametrize("cell", UNKNOWN, ids=str)
async def test_create_webhook_tells_and_sends_no_more(cell: Cell, tmp_path: Path) -> None:
    """Where the target is the caller's own, the error says which webhook may exist, since when, and that is all."""
    async with staged(cell, "memory", tmp_path) as stage:
        endpoint = "Endpoint_0123456789_abcdefghijklmnopqrstuvw"
        await stage.scene.store.open_registration(
            registration_id(endpoint),
            resource=stage.scene.fake.projects[0],
            public_url="https://example.com/asana",
            ttl=60,
        )
        target = f"{stage.scene.public_url}/{endpoint}"
        before = datetime.now(UTC)
        came = await stage.run(create_webhook(stage.scene.asana, resource=stage.scene.fake.projects[0], target=target))

        assert isinstance(came, CreateOutcomeUnknownError), came
        assert came.target == target
        assert before <= came.sent_at <= datetime.now(UTC)
        assert creates(stage.scene.fake) == came.attempts == 1
        assert endpoint not in f"{came} {came!r}"
