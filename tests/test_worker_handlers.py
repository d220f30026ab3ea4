"""Handlers that are refused, that end in unusual ways, and that never end."""

import asyncio
import functools
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from asana_webhooks import (
    AsanaSession,
    Backoff,
    ConfigurationError,
    Delivery,
    DeliveryState,
    HandlerExitError,
    MemoryStore,
    PermanentFailure,
    Receiver,
    Worker,
    ensure_webhook,
    establish_webhook,
    open_store,
)
from tests.helpers.raw import later
from tests.helpers.stores import Clock, body, deliver, event, register

HOUR = 3600.0
OTHER = "Another_endpoint_0123456789"


def fresh() -> bytes:
    """Return the body of a delivery that is not stale by the store's clock."""
    return body(event(created_at="2027-01-15T07:00:00.000Z"))


@pytest.fixture
def clock() -> Clock:
    """The store's clock."""
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> MemoryStore:
    """A store with one delivery."""
    store = MemoryStore(clock=clock)
    await deliver(store, await register(store), fresh())
    return store


def raising(error: BaseException) -> Callable[[Delivery], Awaitable[None]]:
    """Return a handler that always raises this."""

    async def handle(_: Delivery) -> None:
        raise error

    return handle


async def hang(_: Delivery) -> None:
    await asyncio.Event().wait()


async def attempt(store: MemoryStore) -> int:
    """Return which attempt the next claim of the delivery is."""
    [lease] = await store.claim(1, lease=60)
    return lease.attempt


# What is refused at construction


async def good(_: Delivery) -> None: ...


def plain(_: Delivery) -> None: ...


async def generator(_: Delivery) -> AsyncIterator[None]:
    yield


def old_generator(_: Delivery) -> Iterator[None]:
    yield


async def two(_: Delivery, database: object) -> None: ...


async def none() -> None: ...


async def by_name(*, delivery: Delivery) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def injected(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(delivery: Delivery) -> Any:
        return function(delivery, None)

    return call


class Decorated:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class Methods:
    """Handlers as methods."""

    async def __call__(self, _: Delivery) -> None: ...

    async def good(self, _: Delivery) -> None: ...

    def plain(self, _: Delivery) -> None: ...


class Proxy:
    """A handler that has every attribute."""

    def __getattr__(self, _: str) -> "Proxy":
        return Proxy()

    async def __call__(self, _: Delivery) -> None: ...


class Plain:
    """A callable that is not async."""

    def __call__(self, _: Delivery) -> None: ...


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        (None, "handle must be a coroutine function, async def handle(delivery), not NoneType"),
        ("handle", "not str"),
        (
            plain,
            "handle is not async: make it async def handle(delivery); if f returns an awaitable, pass lambda deliv",
        ),
        (decorated(plain), "handle is not async"),
        (functools.partial(plain), "handle is not async"),
        (Methods().plain, "handle is not async"),
        (Plain(), "handle is not async"),
        (MagicMock(), "handle is not async"),
        (Methods, "handle is the class Methods: pass an instance of it with async def __call__(delivery)"),
        (generator, "handle contains yield"),
        (old_generator, "handle contains yield"),
        (functools.partial(generator), "handle contains yield"),
        (two, "handle must take 1 positional argument, async def handle(delivery): missing a required argument"),
        (none, "too many positional arguments"),
        (by_name, "handle must take 1 positional argument"),
        (good(None), "not coroutine"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_handlers_that_cannot_work(handle: Any, said: str) -> None:
    """They are refused when the worker is made, and the error names the mistake."""
    with pytest.raises(ConfigurationError) as caught:
        Worker(MemoryStore(), handle)
    assert said in str(caught.value)
    if asyncio.iscoroutine(handle):
        handle.close()


@pytest.mark.parametrize(
    "handle",
    [
        good,
        lambda delivery: good(delivery),  # noqa: PLW0108 - what a lambda returns shows only when it is called
        functools.partial(two, database=None),
        functools.partial(lambda database, delivery: two(delivery, database), None),
        Methods(),
        Methods().good,
        decorated(good),
        decorated(Methods().good),
        Decorated(good),
        injected(two),
        AsyncMock(),
        Proxy(),
    ],
    ids=[
        "function",
        "lambda",
        "partial",
        "partial lambda",
        "object",
        "method",
        "decorated",
        "decorated method",
        "decorated in an object",
        "decorated with an argument",
        "mock",
        "proxy",
    ],
)
async def test_handlers_of_other_kinds(store: MemoryStore, handle: Any) -> None:
    """Every callable that returns an awaitable is a handler."""
    worker = Worker(store, handle)
    await worker.drain()
    assert worker.counts["done"] == 1


@pytest.mark.parametrize(
    "store",
    [None, "sqlite:///secret.db", Path("secret.db"), MemoryStore, object()],
    ids=["none", "url", "path", "class", "object"],
)
async def test_what_is_no_store(store: Any) -> None:
    """Everything that takes a store says what to pass; a URL, which may hold a password, is not shown."""
    async with AsanaSession("token", base_url="http://127.0.0.1:9") as asana:
        calls: list[Callable[[], Any]] = [lambda: Worker(store, good), lambda: Receiver(store)]
        for call in calls:
            with pytest.raises(
                ConfigurationError, match=r"^store must be a store, not .*: pass .*open_store\("
            ) as caught:
                call()
            assert "secret" not in str(caught.value)
        with pytest.raises(ConfigurationError, match="store must be a store"):
            await establish_webhook(asana, store, public_url="https://example.com", resource="1")
        with pytest.raises(ConfigurationError, match="store must be a store"):
            await ensure_webhook(asana, store, public_url="https://example.com", resource="1")


def test_store_and_handler_swapped() -> None:
    """This mistake has a separate message."""
    swapped: Any = (good, MemoryStore())
    with pytest.raises(ConfigurationError, match=r"swapped: write Worker\(store, handle\)"):
        Worker(*swapped)


@pytest.mark.parametrize("how", ["run", "drain"])
async def test_a_result_that_cannot_be_awaited(store: MemoryStore, how: str) -> None:
    """It ends the worker, and the attempt does not count; other running handlers finish."""
    await deliver(store, await register(store, OTHER), fresh())
    ended = asyncio.Event()

    async def finish() -> None:
        await ended.wait()

    def handle(delivery: Delivery) -> Any:
        if delivery.id == 1:
            return finish()
        asyncio.get_running_loop().call_soon(ended.set)
        return None

    worker = Worker(store, lambda delivery: handle(delivery), poll=0.001)  # noqa: PLW0108 - the same
    with pytest.raises(ConfigurationError, match="the handler returned NoneType, which cannot be awaited"):
        await getattr(worker, how)()

    assert worker.counts["done"] == sum(worker.counts.values()) == 1
    assert await attempt(store) == 1


# What a handler can end in


class OwnError(BaseException):
    """No Exception."""


ENDS: list[BaseException] = [
    SystemExit(0),
    SystemExit("bye"),
    KeyboardInterrupt(),
    GeneratorExit(),
    OwnError("own"),
    BaseExceptionGroup("both", [OwnError(), ValueError()]),
]


@pytest.mark.parametrize("error", ENDS, ids=repr)
async def test_every_end_is_an_attempt(store: MemoryStore, clock: Clock, error: BaseException) -> None:
    """Each is recorded, and after the last attempt the delivery is a dead letter; each time, the worker ends, and says
    so: with the error itself, or for SystemExit with one that no process takes for success.
    """
    raised = HandlerExitError if isinstance(error, SystemExit) else type(error)
    for number in (1, 2):
        worker = Worker(store, raising(error), attempts=2, poll=0.001)
        with pytest.raises(raised) as caught:
            await worker.run()
        assert error in (caught.value, caught.value.__cause__)
        assert worker.counts["to be retried" if number == 1 else "dead letter"] == 1
        assert not worker.health().running
        clock.now += HOUR
    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert letter.attempts == 2
    assert letter.error.startswith(type(error).__name__)


async def test_an_end_that_cannot_be_logged(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program hears of it nevertheless."""

    def fail(_: logging.LogRecord) -> bool:
        raise ValueError

    monkeypatch.setattr(logging.getLogger("asana_webhooks.worker.processing"), "filter", fail)
    with pytest.raises(HandlerExitError):
        await Worker(store, raising(SystemExit(0))).run()


async def test_the_first_end_is_raised(store: MemoryStore) -> None:
    """When several handlers end so at once."""
    await deliver(store, await register(store, OTHER), fresh())

    async def handle(delivery: Delivery) -> None:
        await later(0.01 * delivery.id)
        raise KeyboardInterrupt if delivery.id == 1 else OwnError

    worker = Worker(store, handle)
    with pytest.raises(KeyboardInterrupt):
        await worker.run()
    assert worker.counts["to be retried"] == 2


async def test_the_others_finish(store: MemoryStore) -> None:
    """A handler that exits ends the worker as `stop` does: nothing more is claimed, what runs is acknowledged, and the
    worker may be run again.
    """
    other = await register(store, OTHER)
    for _ in range(2):
        await deliver(store, other, fresh())
    begun, exited = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.id == 1:
            await begun.wait()
            exited.set()
            raise SystemExit(1)
        begun.set()
        await exited.wait()
        await later(0.01)

    worker = Worker(store, handle, concurrency=2)
    with pytest.raises(HandlerExitError):
        await worker.run()
    assert (worker.counts["done"], worker.counts["to be retried"]) == (1, 1)

    await worker.drain()
    assert worker.counts["done"] == 2


def test_a_process_that_a_handler_exits(clock: Clock) -> None:
    """The event loop is not torn down in the middle, and asyncio.run raises what the worker raised."""
    for error, raised in ((SystemExit(0), HandlerExitError), (KeyboardInterrupt(), KeyboardInterrupt)):
        store = MemoryStore(clock=clock)

        async def main(store: MemoryStore = store, error: BaseException = error) -> None:
            await deliver(store, await register(store), fresh())
            async with Worker(store, raising(error)) as worker:
                await worker.run()

        with pytest.raises(raised):
            asyncio.run(main())
        assert asyncio.run(store.health()).leased == 0


@pytest.mark.parametrize("error", [SystemExit(1), OwnError()], ids=repr)
async def test_an_end_after_a_cancellation(store: MemoryStore, error: BaseException) -> None:
    """A cancelled handler that then raises such an exception has failed, and `run` raises it."""
    started = asyncio.Event()

    async def handle(_: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise error from None

    worker = Worker(store, handle, attempts=1, stop_timeout=0)
    running = asyncio.create_task(worker.run())
    await started.wait()
    worker.stop()
    with pytest.raises((HandlerExitError, OwnError)):
        await running
    assert (worker.counts["dead letter"], len(await store.deliveries(state=DeliveryState.DEAD))) == (1, 1)


def test_an_exit_in_a_task_group(tmp_path: Path) -> None:
    """The event loop stops for it, as asyncio does then. But it was an attempt, so it does not come first for ever."""

    async def exit_at_once() -> None:
        raise SystemExit(3)

    async def handle(_: Delivery) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(exit_at_once())

    async def work() -> None:
        async with open_store(f"sqlite:///{tmp_path}/a.db") as store, Worker(store, handle, attempts=1) as worker:
            await deliver(store, await register(store), fresh())
            await worker.run()

    async def dead_letters() -> int:
        async with open_store(f"sqlite:///{tmp_path}/a.db") as store:
            return len(await store.deliveries(state=DeliveryState.DEAD))

    with pytest.raises(SystemExit):
        asyncio.run(work())
    assert asyncio.run(dead_letters()) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_closed_from_outside(inside: bool, caplog: pytest.LogCaptureFixture) -> None:
    """When Python closes an unfinished coroutine, nothing is recorded."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # what a closed task says
    store, coroutines, started = MemoryStore(), list[Any](), asyncio.Event()

    async def handle(_: Delivery) -> None:
        task = asyncio.current_task()
        assert task is not None
        coroutines.append(task.get_coro())
        started.set()
        await asyncio.Event().wait()

    async def start() -> asyncio.Task[None]:
        await deliver(store, await register(store), fresh())
        running = asyncio.create_task(Worker(store, handle).run())
        await started.wait()
        if inside:
            coroutines[0].close()
        return running

    with asyncio.Runner() as runner:
        running = runner.run(start())
        if not inside:
            coroutines[0].close()
    assert running.done()
    assert asyncio.run(attempt(store)) == 1


# Failures and their log


def permanent() -> PermanentFailure:
    return PermanentFailure("the task is gone")


@pytest.mark.parametrize(
    ("error", "is_permanent"),
    [
        (permanent(), True),
        (ExceptionGroup("", [permanent()]), True),
        (ExceptionGroup("", [permanent(), ExceptionGroup("", [permanent(), permanent()])]), True),
        (ExceptionGroup("", [permanent(), ExceptionGroup("", [permanent(), ValueError()])]), False),
        (ValueError(), False),
    ],
    ids=repr,
)
async def test_permanent_failures(store: MemoryStore, error: Exception, *, is_permanent: bool) -> None:
    """PermanentFailure makes a dead letter at once, alone or in a group of nothing else."""
    worker = Worker(store, raising(error))
    await worker.drain()

    assert worker.counts["dead letter" if is_permanent else "to be retried"] == 1
    letters = await store.deliveries(state=DeliveryState.DEAD)
    assert len(letters) == is_permanent
    assert all(type(error).__name__ in one.error and "the task is gone" in one.error for one in letters)


async def fail_in_a_child(_: Delivery) -> None:
    """Fail in a task group, which on Python 3.11 and 3.12 leaves the handler's task marked as being cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(raise_soon(permanent()))


async def cancel_itself(_: Delivery) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    raise AssertionError("not reached")


async def raise_soon(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("handle", [fail_in_a_child, cancel_itself])
async def test_a_cancellation_within_a_handler_is_a_failure(
    store: MemoryStore, caplog: pytest.LogCaptureFixture, handle: Callable[[Delivery], Awaitable[None]]
) -> None:
    """Only the worker's own cancellation gives a delivery back untried."""
    worker = Worker(store, handle, attempts=1)
    await worker.drain()

    assert worker.counts["dead letter"] == 1
    assert "attempt 1 of 1 failed; dead letter" in caplog.text


async def test_an_earlier_cancellation(store: MemoryStore) -> None:
    """A run in a task that has survived one, and after a run that cancelled its handlers, counts failures as ever."""
    task, attempts = asyncio.current_task(), list[int]()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    await deliver(store, await register(store, OTHER), fresh())

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.id)
        if len(attempts) == 1:
            raise SystemExit
        if len(attempts) == 2:
            await hang(delivery)
        raise permanent()

    worker = Worker(store, handle, stop_timeout=0)
    with pytest.raises(HandlerExitError):
        await worker.drain()
    await worker.drain()
    assert attempts == [1, 2, 2]
    assert (worker.counts["to be retried"], worker.counts["dead letter"]) == (1, 1)


async def test_the_last_failure_is_an_error(store: MemoryStore, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged at ERROR with the delivery, its webhook and the exception; those before it are warnings."""
    error = LookupError("away")
    worker = Worker(store, raising(error), attempts=3)
    for _ in range(3):
        await worker.drain()
        clock.now += HOUR

    assert [(record.levelname, record.exc_info and record.exc_info[1]) for record in caplog.records] == [
        ("WARNING", error),
        ("WARNING", error),
        ("ERROR", error),
    ]
    assert "delivery 1 of webhook '43214': attempt 3 of 3 failed; dead letter" in caplog.records[-1].getMessage()


async def test_stale_deliveries_are_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The first is warned of at once, the others together a minute later, and the rest when the run ends."""
    store, now = MemoryStore(clock=clock), time.monotonic
    registration = await register(store)
    for _ in range(5):
        await deliver(store, registration, body(event(created_at="2027-01-14T06:00:00.000Z")))

    async def handle(delivery: Delivery) -> None:
        if delivery.id == 3:
            patch.setattr(time, "monotonic", lambda: now() + 60)

    with pytest.MonkeyPatch.context() as patch:
        await Worker(store, handle, concurrency=1, lease=600).drain()

    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "stale deliveries: 1 since the last warning, the latest is delivery 1 of webhook '43214'",
        "stale deliveries: 3 since the last warning, the latest is delivery 4 of webhook '43214'",
        "stale deliveries: 1 since the last warning, the latest is delivery 5 of webhook '43214'",
    ]


async def test_stale_deliveries_are_told_though_no_more_arrive(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A minute after the first warning the running worker tells of the others."""
    store, now = MemoryStore(clock=clock), time.monotonic
    registration = await register(store)
    for _ in range(5):
        await deliver(store, registration, body(event(created_at="2027-01-14T06:00:00.000Z")))

    worker = Worker(store, good, lease=0.03, poll=600)
    running = asyncio.create_task(worker.run())
    while worker.counts["done"] < 5:
        await later(0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now() + 60)
        while "stale deliveries: 4 since the last warning" not in caplog.text:
            await later(0.001)
    worker.stop()
    await running


# Handlers that hang


async def swallow(delivery: Delivery) -> None:
    """Hang, and return when cancelled."""
    try:
        await hang(delivery)
    except asyncio.CancelledError:
        return


async def replace(delivery: Delivery) -> None:
    """Hang, and raise something else when cancelled."""
    try:
        await hang(delivery)
    except asyncio.CancelledError:
        raise RuntimeError("rolled back") from None


@pytest.mark.parametrize("handle", [hang, swallow, replace])
async def test_handler_timeout(store: MemoryStore, handle: Callable[[Delivery], Awaitable[None]]) -> None:
    """A handler that takes longer is cancelled, and the attempt has failed, however the handler ends."""
    await Worker(store, handle, handler_timeout=0.01, attempts=1).drain()

    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert letter.error == "TimeoutError: the handler took longer than 0.01 seconds (handler_timeout)"


async def test_within_handler_timeout(store: MemoryStore, clock: Clock) -> None:
    """A timeout changes neither a handler's own failure, nor stopping, nor success."""
    backoff = Backoff(first_wait=1, longest_wait=1)
    await Worker(store, raising(TimeoutError("mine")), handler_timeout=60, backoff=backoff).drain()
    started = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        started.set()
        await hang(delivery)

    clock.now += 1
    worker = Worker(store, handle, handler_timeout=60, stop_timeout=0)
    running = asyncio.create_task(worker.run())
    await started.wait()
    worker.stop()
    await running
    assert sum(worker.counts.values()) == 0

    worker = Worker(store, good, handler_timeout=60)
    await worker.drain()
    assert worker.counts["done"] == 1


async def test_a_handler_that_runs_for_three_leases(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """One warning names the delivery, while the handler runs."""
    extend, extended = store.extend, 0

    async def counted(*arguments: Any, **options: Any) -> bool:
        nonlocal extended
        extended += 1
        return await extend(*arguments, **options)

    store.extend = counted  # type: ignore[method-assign]

    async def handle(_: Delivery) -> None:
        while not re.search(r"delivery 1 of webhook '43214': its handler has run for \d+\.\d s", caplog.text):
            await later(0.001)
        seen = extended
        while extended < seen + 2:
            await later(0.001)

    await Worker(store, handle, lease=0.01).drain()
    assert caplog.text.count("its handler has run for") == 1


async def test_a_handler_that_blocks_the_loop(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """The warning comes afterwards, because nothing else runs meanwhile."""

    async def handle(_: Delivery) -> None:
        time.sleep(0.031)  # noqa: ASYNC251 - that is the mistake

    await Worker(store, handle, lease=0.01).drain()
    assert caplog.text.count("it may hang or block the event loop") == 1


async def test_health(store: MemoryStore) -> None:
    """It says whether the worker runs, what it handles, for how long, and when it last claimed."""
    started, go = asyncio.Event(), asyncio.Event()

    async def handle(_: Delivery) -> None:
        started.set()
        await go.wait()

    worker, before = Worker(store, handle, poll=0.001), time.time()
    health = worker.health()
    assert (health.running, health.handling, health.oldest_attempt_seconds, health.last_claim_at) == (
        *(False, 0),
        *(None, None),
    )
    async with worker:
        running = asyncio.create_task(worker.run())
        await started.wait()
        health = worker.health()
        assert (health.running, health.handling) == (True, 1)
        assert health.oldest_attempt_seconds is not None
        assert 0 <= health.oldest_attempt_seconds <= time.time() - before
        assert health.last_claim_at is not None
        assert before <= health.last_claim_at <= time.time()
        while worker.health().last_claim_at == health.last_claim_at:  # a claim that finds nothing counts, too
            await later(0.001)
        go.set()
    await running
    health = worker.health()
    assert (health.running, health.handling, health.oldest_attempt_seconds) == (False, 0, None)


async def test_health_tells_of_the_oldest(store: MemoryStore) -> None:
    """Of several handlers it says how long the first one runs."""
    other, started = await register(store, OTHER), asyncio.Queue[int]()

    async def handle(delivery: Delivery) -> None:
        started.put_nowait(delivery.id)
        await hang(delivery)

    worker = Worker(store, handle, poll=0.001, stop_timeout=0)
    running = asyncio.create_task(worker.run())
    assert await started.get() == 1
    await later(0.05)
    await deliver(store, other, fresh())
    assert await started.get() == 2
    health = worker.health()
    assert health.handling == 2
    assert health.oldest_attempt_seconds is not None
    assert health.oldest_attempt_seconds >= 0.05
    worker.stop()
    await running
