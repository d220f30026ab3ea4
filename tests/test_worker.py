"""The worker on a real store: handling, failing, dead letters, leases, stopping, purging."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import (
    Backoff,
    ConfigurationError,
    Delivery,
    DeliveryState,
    MemoryStore,
    Retention,
    SQLiteStore,
    Store,
    StoreUnavailableError,
    Worker,
    sign_body,
)
from asana_webhooks.store.base import Lease, NewDelivery
from asana_webhooks.wire import decode_delivery
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.raw import later
from tests.helpers.stores import SECRET, Clock, body, deliver, event, register
from tests.store.sqlite_help import in_writer


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of each kind."""
    opened: Store = (
        MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(tmp_path / "asana.db", clock=clock)
    )
    async with opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    """The store's clock."""
    return Clock()


class Handler:
    """A handler that writes down what it got, and can be told to fail or to wait."""

    def __init__(self, *, failures: int = 0) -> None:
        self.got: list[Delivery] = []
        self.failures = failures
        self.running = 0
        self.most = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if len(self.got) <= self.failures:
            raise LookupError("the other service is away")


async def deliver_some(store: Store, number: int) -> None:
    id = await register(store)
    for _ in range(number):
        await deliver(store, id, body(event()))


async def run_until(worker: Worker, event: asyncio.Event) -> None:
    """Run a worker and stop it then."""
    running = asyncio.create_task(worker.run())
    await event.wait()
    worker.stop()
    await running


async def nothing_leased(store: Store) -> None:
    """Wait until the store has taken back what a cancelled claim had leased."""
    while (await store.health()).leased:
        await later(0.001)


def failing(store: Store, method: str, *errors: BaseException) -> asyncio.Event:
    """Have the next calls of a method raise these; the event is set by the first call that does not."""
    asked, left, well = getattr(store, method), list(errors), asyncio.Event()

    async def fail(*args: Any, **options: Any) -> Any:
        if left:
            raise left.pop(0)
        answer = await asked(*args, **options)
        well.set()
        return answer

    setattr(store, method, fail)
    return well


AWAY = StoreUnavailableError(problem="disk I/O error")
RUDE = RuntimeError("secret connection string")  # what no store should raise


def ageing(store: Store, clock: Clock) -> asyncio.Event:
    """Let a third of a lease pass with each extension; the event is set after more than a whole lease."""
    extend, calls, enough = store.extend, 0, asyncio.Event()

    async def extended(lease: Lease, *, seconds: float) -> bool:
        nonlocal calls
        kept = await extend(lease, seconds=seconds)
        clock.now += seconds / 3
        calls += 1
        if calls == 5:
            enough.set()
        return kept

    store.extend = extended  # type: ignore[method-assign]
    return enough


async def test_a_handler_gets_the_delivery_and_acknowledges_by_returning(store: Store) -> None:
    """Everything a handler needs is in the delivery; afterwards nothing is left in the store."""
    registration = await register(store, label="tenant-a")
    content = body(event(), event(action="deleted", user=None))
    await deliver(store, registration, content)
    handler = Handler()

    await Worker(store, handler).drain()

    [delivery] = handler.got
    assert delivery.events == decode_delivery(content).events
    assert (delivery.registration, delivery.webhook_gid, delivery.resource) == (registration, "43214", "8675309")
    assert (delivery.label, delivery.attempt, delivery.done, delivery.body) == ("tenant-a", 1, (), content)
    assert [one.action for one in delivery.events] == ["changed", "deleted"]
    assert len({one.fingerprint for one in delivery.events}) == 2
    assert delivery.received_at.timestamp() == 1_800_000_000.0
    health = await store.health()
    assert (health.waiting, health.leased, health.dead) == (0, 0, 0)


async def test_a_failure_is_tried_again_after_its_backoff(store: Store, clock: Clock) -> None:
    """Not before the wait is over, with the attempt counted, and the second wait is twice as long as the first."""
    await deliver(store, await register(store), body(event()))
    handler = Handler(failures=2)
    worker = Worker(store, handler, backoff=Backoff(first_wait=10, random=lambda: 1.0))
    for wait, attempts in ((0, 1), (9.9, 1), (0.2, 2), (19.8, 2), (0.3, 3)):
        clock.now += wait
        await worker.drain()
        assert [delivery.attempt for delivery in handler.got] == list(range(1, attempts + 1))

    assert (await store.health()).waiting == 0


async def test_a_failure_may_be_tried_again_at_once(store: Store) -> None:
    """A worker may claim a delivery again as soon as it has recorded the failure."""
    await deliver(store, await register(store), body(event()))
    handler = Handler(failures=2)
    worker = Worker(store, handler, backoff=Backoff(first_wait=1e-9, longest_wait=1e-9))
    while (await store.health()).waiting:
        await worker.drain()
    assert (await store.health()).leased == 0
    assert [delivery.attempt for delivery in handler.got] == [1, 2, 3]


async def test_poison_becomes_a_dead_letter_and_the_rest_goes_on(store: Store, clock: Clock) -> None:
    """After attempts the delivery is set aside with its error; a new one is handled meanwhile."""
    registration = await register(store)
    await deliver(store, registration, body(event()))
    handler = Handler(failures=3)
    worker = Worker(store, handler, attempts=3)
    for _ in range(3):
        await worker.drain()
        clock.now += 3600
    await deliver(store, registration, body(event()))
    await worker.drain()

    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert letter.attempts == 3
    assert letter.error == "LookupError: the other service is away"
    assert [delivery.attempt for delivery in handler.got] == [1, 2, 3, 1]

    assert await store.requeue(letter.id)
    await worker.drain()
    assert handler.got[-1].body == letter.body
    assert list(await store.deliveries(state=DeliveryState.DEAD)) == []


async def test_attempts_without_an_answer_count(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """When no worker lived to tell, a delivery becomes a dead letter all the same, and an error is logged."""
    await deliver(store, await register(store), body(event()))
    for _ in range(2):
        assert len(await store.claim(1, lease=60)) == 1
        clock.now += 61
    handler = Handler()

    await Worker(store, handler, attempts=2).drain()

    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert "attempts exhausted: 2 made, 2 allowed" in letter.error
    assert handler.got == []
    said = "delivery 1 of webhook '43214': making it a dead letter: 'attempts exhausted: 2 made"
    assert [said in record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_unreadable_bodies_are_dead_letters_at_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """No handler sees them, and no attempt is wasted on them. Each is logged as an error."""
    contents = [b"no json", b"[]", b"{}", b'{"events":null}', b'{"events":{}}', b"\xff"]
    id = await register(store)
    for content in contents:
        await deliver(store, id, content)
    handler = Handler()

    await Worker(store, handler).drain()

    letters = await store.deliveries(state=DeliveryState.DEAD)
    assert [letter.body for letter in letters] == contents
    assert all(letter.error.startswith("unreadable") for letter in letters)
    assert handler.got == []
    assert "delivery 1 of webhook '43214': unreadable; making it a dead letter: " in caplog.text
    assert [record.levelname for record in caplog.records] == ["ERROR"] * len(contents)


async def test_one_unreadable_event_does_not_cost_its_neighbours(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler gets what can be read, and the rest as JSON. The log has the places, once and without values."""
    odd = [event(resource=None), event(created_at="canary"), event(user={"canary": "canary"})]
    contents = [body(event(), *odd, event(action="deleted")), body(*odd)]
    id = await register(store)
    for content in contents:
        await deliver(store, id, content)
    handler = Handler(failures=2)

    await Worker(store, handler).drain()
    clock.now += 10
    await Worker(store, handler).drain()

    assert len(handler.got) == 4
    assert {one.body: [event.action for event in one.events] for one in handler.got} == {
        contents[0]: ["changed", "deleted"],
        contents[1]: [],
    }
    assert all([one.raw for one in delivery.unreadable] == odd for delivery in handler.got)
    logged = [record for record in caplog.records if "unreadable" in record.getMessage()]
    assert [record.levelname for record in logged] == ["ERROR", "ERROR"]
    assert "3 of 5 events are unreadable; the handler gets them" in logged[0].getMessage()
    for place in ("$.events[1].resource", "$.events[2].created_at", "$.events[3].user"):
        assert place in logged[0].getMessage()
    assert "canary" not in logged[0].getMessage()


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_as_many_handlers_run_at_once_as_allowed(store: Store, concurrency: int) -> None:
    """Concurrency is used fully and never exceeded."""
    await deliver_some(store, 7)
    handler = Handler()
    handler.go.clear()
    full = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if handler.running + 1 == concurrency:
            full.set()
        await handler(delivery)

    working = asyncio.create_task(Worker(store, handle, concurrency=concurrency).drain())
    await full.wait()
    handler.go.set()
    await working

    assert handler.most == concurrency
    assert len(handler.got) == 7


async def test_acknowledging_and_leasing_share_transactions(tmp_path: Path, clock: Clock) -> None:
    """The next deliveries are leased in the transaction that acknowledges those before them, also in order."""
    commits: list[str] = []
    async with SQLiteStore(tmp_path / "asana.db", clock=clock) as store:
        for number in range(3):
            registration = await register(store, f"Endpoint_0123456789_{number}", gid=str(number))
            for _ in range(8):
                await deliver(store, registration, body(event()))
        await in_writer(store, lambda db: db.set_trace_callback(commits.append))
        handler = Handler()
        await Worker(store, handler, concurrency=3, ordered=True).drain()
    assert len(handler.got) == 24
    assert handler.most <= 3
    assert commits.count("COMMIT") <= 11  # one for each round, and a few in which nothing is left


async def test_what_waits_for_its_acknowledgement_is_bounded(clock: Clock) -> None:
    """When a store takes leases but not acknowledgements, a worker ends up with twice as many as it handles at once."""

    class Slow(MemoryStore):
        acknowledging = asyncio.Event()

        async def ack(self, lease: Lease) -> bool:
            await self.acknowledging.wait()
            return await super().ack(lease)

    store, handler = Slow(clock=clock), Handler()
    registration = await register(store)
    for _ in range(20):
        await deliver(store, registration, body(event()))
    working = asyncio.create_task(Worker(store, handler, concurrency=3).drain())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (len(handler.got), (await store.health()).leased) == (6, 6)
    Slow.acknowledging.set()
    await working
    assert len(handler.got) == 20


async def test_ordered_deliveries_come_one_after_the_other(store: Store, clock: Clock) -> None:
    """With ordered=True a failing delivery holds up its own registration and no other."""
    first = await register(store)
    second = await register(store, "Another_endpoint_0123456789", gid="43215")
    for registration in (first, first, second):
        await deliver(store, registration, body(event()))
    order: list[tuple[int, int]] = []

    async def handle(delivery: Delivery) -> None:
        order.append((delivery.id, delivery.attempt))
        if order == [(delivery.id, 1)]:
            raise RuntimeError("not yet")

    worker = Worker(store, handle, ordered=True)
    await worker.drain()
    clock.now += 3600
    await worker.drain()

    ids = sorted({id for id, _ in order})
    assert order == [(ids[0], 1), (ids[2], 1), (ids[0], 2), (ids[1], 1)]


async def test_run_waits_for_work_and_stops_when_asked(store: Store) -> None:
    """Deliveries that come later are handled; stop lets the running handler finish."""
    registration = await register(store)
    handler = Handler()
    handler.go.clear()
    async with Worker(store, handler, poll=0.01) as worker:
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        await deliver(store, registration, body(event()))
        await handler.started.wait()
        worker.stop()
        assert not running.done()
        handler.go.set()
        await running

    health = await store.health()
    assert (health.waiting, health.leased) == (0, 0)


async def test_leaving_the_block_stops_and_waits(store: Store) -> None:
    """Async with ends the worker that runs in a task of the user's."""
    handler = Handler()
    async with Worker(store, handler, poll=0.01) as worker:
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)

    assert running.done()
    await running


async def test_stopping_before_running_is_fine(store: Store) -> None:
    """A signal may come early, and twice."""
    worker = Worker(store, Handler())
    worker.stop()
    worker.stop()
    await deliver(store, await register(store), body(event()))

    await worker.run()

    assert (await store.health()).waiting == 1


async def test_what_does_not_finish_in_time_is_given_back(store: Store) -> None:
    """After stop_timeout the handler is cancelled, and the delivery waits again as if it had not been tried."""
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    handler.go.clear()
    worker = Worker(store, handler, stop_timeout=0)
    await run_until(worker, handler.started)

    assert handler.running == 0
    [lease] = await store.claim(1, lease=60)
    assert lease.attempt == 1


async def test_a_handlers_own_cancellation_is_a_failure_like_any_other(store: Store) -> None:
    """CancelledError out of something the handler awaited does not stop the worker."""
    await deliver(store, await register(store), body(event()))

    async def handle(_: Delivery) -> None:
        raise asyncio.CancelledError

    await Worker(store, handle, attempts=1).drain()

    [letter] = await store.deliveries(state=DeliveryState.DEAD)
    assert letter.error == "CancelledError"


async def test_leases_are_extended_while_a_handler_runs(store: Store, clock: Clock) -> None:
    """A handler that takes longer than its lease keeps it."""
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    handler.go.clear()
    aged = ageing(store, clock)
    working = asyncio.create_task(Worker(store, handler, lease=0.03).drain())
    await aged.wait()
    assert list(await store.claim(1, lease=60)) == []
    handler.go.set()
    await working

    assert (await store.health()).waiting == 0
    assert len(handler.got) == 1


async def test_a_lost_lease_is_noticed(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """When another worker took over meanwhile, this one's acknowledgement changes nothing, says so and is counted."""
    await deliver(store, await register(store), body(event()))

    leases: list[Lease] = []

    async def handle(_: Delivery) -> None:
        clock.now += 61
        leases.extend(await store.claim(1, lease=60))

    worker = Worker(store, handle, lease=60)
    await worker.drain()

    assert "delivery 1 of webhook '43214': lease lost before the result was recorded" in caplog.text
    assert (worker.counts["lease lost"], worker.counts["done"]) == (1, 0)
    [lease] = leases
    assert await store.ack(lease)


async def test_a_store_that_fails_for_a_while_is_asked_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Run survives a store that is away, and handles what is there when it comes back."""
    failing(store, "claim", AWAY, AWAY)
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    async with Worker(store, handler, poll=0.001) as worker:
        await run_until(worker, handler.started)

    assert caplog.text.count("claiming deliveries failed; retrying in 0.001 s:") == 2


async def test_drain_reports_a_store_that_fails(store: Store) -> None:
    """Drain is for people who want to know."""
    failing(store, "claim", AWAY)
    with pytest.raises(StoreUnavailableError):
        await Worker(store, Handler()).drain()


async def test_a_delivery_that_could_not_be_acknowledged_comes_again(store: Store, clock: Clock) -> None:
    """At least once: if ack fails, the lease runs out and the delivery is handled a second time."""
    failing(store, "ack", AWAY)
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    worker = Worker(store, handler, lease=60)
    await worker.drain()
    clock.now += 61
    await worker.drain()

    assert [delivery.attempt for delivery in handler.got] == [1, 2]
    assert handler.got[0].events[0].fingerprint == handler.got[1].events[0].fingerprint


async def test_a_failed_extension_is_logged_and_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away while a handler runs does not disturb the handler."""
    extended = failing(store, "extend", AWAY)
    await deliver(store, await register(store), body(event()))
    handler = Handler()

    async def handle(delivery: Delivery) -> None:
        await extended.wait()
        await handler(delivery)

    await Worker(store, handle, lease=0.01).drain()

    assert "extending its lease failed; retrying: " in caplog.text
    assert len(handler.got) == 1


class UnsayableError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UnsayableError(), "UnsayableError: (no text)"),
        (LookupError("x" * 9999), "LookupError: " + "x" * 487),
        (
            ExceptionGroup("two", [UnsayableError(), ValueError("odd")]),
            "ExceptionGroup: two: UnsayableError: (no text); ValueError: odd",
        ),
    ],
    ids=["unsayable", "long", "group"],
)
async def test_whatever_a_handler_raises_is_a_failed_attempt(
    store: Store, error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poison that cannot say what it is, or says too much, is a dead letter like any other."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a log handler may stumble over it too
    await deliver_some(store, 2)

    async def handle(_: Delivery) -> None:
        raise error

    await Worker(store, handle, attempts=1).drain()

    assert [letter.error for letter in await store.deliveries(state=DeliveryState.DEAD)] == [text] * 2


async def test_a_cancelled_handler_that_raises_something_else_has_not_failed(store: Store) -> None:
    """Stopping costs no attempt, whatever a handler makes of its cancellation."""
    await deliver(store, await register(store), body(event()))
    started = asyncio.Event()

    async def handle(_: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("rolled back") from None

    worker = Worker(store, handle, attempts=1, stop_timeout=0)
    await run_until(worker, started)

    assert list(await store.deliveries(state=DeliveryState.DEAD)) == []
    [lease] = await store.claim(1, lease=60)
    assert lease.attempt == 1


async def test_a_store_that_misbehaves_ends_no_other_delivery(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be acknowledged comes again; the other handlers go on, and the log does not quote the store."""
    failing(store, "ack", RUDE, RUDE, RUDE)
    await deliver_some(store, 3)
    handler = Handler()
    await Worker(store, handler).drain()

    assert len(handler.got) == 3
    assert caplog.text.count("result not recorded; retrying when its lease expires: 'RuntimeError'") == 3
    assert "connection string" not in caplog.text


async def test_a_store_that_cannot_be_asked_at_all_is_reported_as_it_is(store: Store) -> None:
    """What claim raises comes out of run unwrapped, somebody's own error or a closed store; then it can run again."""
    failing(store, "claim", RUDE)
    worker = Worker(store, Handler())
    with pytest.raises(RuntimeError, match="connection"):
        await worker.run()
    await store.aclose()
    for run in (worker.run, worker.drain):
        with pytest.raises(ConfigurationError, match="closed"):
            await run()


async def test_a_release_that_fails_keeps_nobody_up(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and what else the worker held is released."""
    await deliver_some(store, 2)
    failing(store, "release", RUDE)
    handler = Handler()
    handler.go.clear()
    worker = Worker(store, handler, stop_timeout=0)
    await run_until(worker, handler.started)

    assert caplog.text.count("not released") == 1
    assert (await store.health()).leased == 1


async def test_a_worker_may_serve_two_loops_one_after_the_other(tmp_path: Path) -> None:
    """Nothing in it is bound to the loop it ran in first."""
    worker = Worker(MemoryStore(), Handler(), poll=0.001)

    def once() -> None:
        async def run() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await worker.run()

        asyncio.run(run())

    for _ in range(2):
        await asyncio.to_thread(once)


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_however_often_it_is_cancelled_the_worker_ends(store: Store, cancels: int) -> None:
    """Cancelled at every step, several times in a row, the block is left, nothing is leased, and it can run again."""
    registration = await register(store)

    async def handle(_: Delivery) -> None:
        await asyncio.sleep(0)

    for turns in range(40):
        await deliver(store, registration, body(event()))
        worker = Worker(store, handle)

        async def serve(worker: Worker = worker) -> None:
            async with worker:
                await worker.run()

        serving = asyncio.create_task(serve())
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(cancels):
            serving.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({serving}, timeout=5)

        assert serving.done()
        await nothing_leased(store)
        await worker.drain()


async def test_a_second_cancellation_interrupts_no_release(store: Store) -> None:
    """What a store is slow to take back is given back all the same."""
    await deliver_some(store, 2)
    release, releasing = store.release, asyncio.Event()

    async def release_slowly(lease: Lease) -> bool:
        releasing.set()
        await asyncio.sleep(0.01)
        return await release(lease)

    store.release = release_slowly  # type: ignore[method-assign]
    handler = Handler()
    handler.go.clear()
    running = asyncio.create_task(Worker(store, handler, stop_timeout=0).run())
    await handler.started.wait()
    running.cancel()
    await releasing.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert (await store.health()).leased == 0


async def test_one_worker_runs_once_at_a_time(store: Store) -> None:
    """Running it twice at once is a clear error."""
    async with Worker(store, Handler()) as worker:
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="already running"):
            await worker.run()
        worker.stop()
        await running


DAY = 86_400
NAN, INFINITY = float("nan"), float("inf")


def test_bad_options_are_refused() -> None:
    """A worker, a backoff or a retention that could not work is not made."""
    wrong: dict[str, list[Any]] = {
        "concurrency": [0, 2.5],
        "attempts": [0, NAN],
        "lease": [0, INFINITY],
        "poll": [0, NAN],
        "stop_timeout": [-1, "5"],
        "on_dead": ["halt", "stop", None],  # "halt" where there is no order to keep
    }
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(ConfigurationError, match=name):
            Worker(MemoryStore(), Handler(), **{name: value})
    backoffs: list[dict[str, Any]] = [{"first_wait": -1}, {"first_wait": INFINITY}, {"longest_wait": NAN}]
    for options in [*backoffs, {"longest_wait": 0}]:
        with pytest.raises(ConfigurationError, match="number of seconds"):
            Backoff(**options)
    retentions: list[tuple[dict[str, Any], str]] = [
        ({"done": 26 * 3600 - 1}, "done must be at least 93600"),
        ({"done": -1}, "done must be"),
        ({"done": None}, "done must be"),
        ({"dead": DAY}, "dead must not be less than done"),
        ({"dead": "1"}, "dead must be"),
        ({"every": 0}, "every must be"),
        ({"every": NAN}, "every must be"),
    ]
    for options, said in retentions:
        with pytest.raises(ConfigurationError, match=said):
            Retention(**options)


@given(attempt=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_the_backoff_grows_and_is_bounded(attempt: int, chance: float) -> None:
    """The wait lies between half and all of the doubled time, and never above the longest."""
    full = min(3600.0, 2.0 ** min(attempt - 1, 60))

    assert full / 2 <= Backoff(random=lambda: chance).after(attempt) <= full


async def test_a_worker_may_be_cancelled_at_every_step(store: Store) -> None:
    """Wherever it is cancelled, nothing stays leased and no attempt is lost; in the end everything was handled."""
    registration = await register(store)
    handled: set[int] = set()
    for _ in range(5):
        await deliver(store, registration, body(event()))

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0)
        assert delivery.attempt == 1
        handled.add(delivery.id)
        await asyncio.sleep(0)

    async def check() -> None:
        await nothing_leased(store)

    await cancel_at_every_step(lambda: Worker(store, handle, concurrency=2).drain(), check)

    assert len(handled) == 5
    health = await store.health()
    assert (health.waiting, health.dead) == (0, 0)


YESTERDAY = event(created_at="2027-01-14T06:00:00.000Z")  # 26 hours before the clock's time
OF_TODAY = event(created_at="2027-01-14T08:00:00.000Z")  # 24 hours before it


@pytest.mark.parametrize("refuse_stale", [False, True])
async def test_a_recorded_delivery(store: Store, caplog: pytest.LogCaptureFixture, *, refuse_stale: bool) -> None:
    """What is older than Asana's 24 hours is logged, counted, and handled as stale, or a dead letter if that is asked
    for; what has a newer event is neither.
    """
    id = await register(store)
    for content in (body(YESTERDAY), body(YESTERDAY, OF_TODAY)):
        await deliver(store, id, content)
    handler = Handler()
    worker = Worker(store, handler, refuse_stale=refuse_stale)

    await worker.drain()

    handled = {len(delivery.events): delivery.stale for delivery in handler.got}
    assert handled == ({2: False} if refuse_stale else {1: True, 2: False})
    letters = [(letter.error, letter.body) for letter in await store.deliveries(state=DeliveryState.DEAD)]
    said = ("stale: its newest event is more than 25 hours old", body(YESTERDAY))
    assert letters == ([said] if refuse_stale else [])
    assert caplog.text.count("stale") == 1
    counts = [worker.counts[end] for end in ("stale", "dead letter", "done")]
    assert counts == ([1, 1, 1] if refuse_stale else [1, 0, 2])


async def test_attempts_are_counted(store: Store, clock: Clock) -> None:
    """By how they ended; all kinds are there from the start, for metrics."""
    id = await register(store)
    worker = Worker(store, Handler(failures=4), attempts=2, concurrency=1)
    counts = worker.counts
    assert dict(counts) == dict.fromkeys(counts, 0)
    for content in (*(body(OF_TODAY, event()) for _ in range(3)), b"no JSON"):
        await deliver(store, id, content)

    await worker.drain()  # three fail
    clock.now += 3600
    await worker.drain()  # one fails again

    assert counts == {"done": 2, "to be retried": 3, "dead letter": 1, "unreadable": 1, "stale": 0, "lease lost": 0}
    with pytest.raises(TypeError):
        counts["done"] = 0  # type: ignore[index]


@pytest.mark.parametrize(("on_dead", "handled"), [("skip", 2), ("halt", 0)])
async def test_a_dead_letter_may_hold_up_the_others(store: Store, on_dead: Any, handled: int) -> None:
    """In order, a dead letter lets the next ones pass, or not, as one likes; requeued, it comes first."""
    id = await register(store)
    await deliver(store, id, b"no JSON")
    for _ in range(2):
        await deliver(store, id, body(event()))
    handler = Handler()

    await Worker(store, handler, ordered=True, on_dead=on_dead).drain()

    assert len(handler.got) == handled


async def test_a_running_worker_purges(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """At its start and again and again, also when the store fails meanwhile."""
    id = await register(store)
    content = body(event())
    await deliver(store, id, content)
    await Worker(store, Handler()).drain()
    clock.now += 3 * DAY + 1
    purged = failing(store, "purge", AWAY)
    async with Worker(store, Handler(), retention=Retention(every=0.001)) as worker:
        await run_until(worker, purged)

    assert "purging the store failed; retrying in 0.001 s" in caplog.text
    await deliver(store, id, content)  # no duplicate any more


@pytest.mark.parametrize("how", ["drain", "retention=None"])
async def test_purging_is_for_running_workers(store: Store, clock: Clock, how: str) -> None:
    """One that only drains the store, or is told so, purges nothing."""
    store.purge = None  # type: ignore[assignment, method-assign]
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    if how == "drain":
        await Worker(store, handler).drain()
        return
    worker = Worker(store, handler, retention=None)
    await run_until(worker, handler.started)


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_lease_is_kept_while_a_cancelled_handler_cleans_up(store: Store, clock: Clock, how: str) -> None:
    """However long that takes: nobody else begins with the delivery before it is given back."""
    await deliver(store, await register(store), body(event()))
    started, cleaning, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(_: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await cleaned.wait()

    worker = Worker(store, handle, lease=0.03, stop_timeout=0, retention=None)
    running = asyncio.create_task(worker.run())
    await started.wait()
    worker.stop() if how == "stop" else running.cancel()
    await cleaning.wait()
    await ageing(store, clock).wait()
    assert list(await store.claim(1, lease=60)) == []
    cleaned.set()
    await asyncio.gather(running, return_exceptions=True)

    (lease,) = await store.claim(1, lease=60)
    assert lease.attempt == 1


async def test_what_is_leased_while_it_stops_is_given_back(store: Store) -> None:
    """A worker that is stopped while it asks for work begins with none of it."""
    await deliver(store, await register(store), body(event()))
    handler = Handler()
    worker = Worker(store, handler)
    claim = store.claim

    async def stopping(limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        leases = await claim(limit, lease=lease, ordered=ordered, halt=halt)
        worker.stop()
        return leases

    store.claim = stopping  # type: ignore[method-assign]
    await worker.run()

    assert handler.got == []
    (lease,) = await claim(1, lease=60)
    assert lease.attempt == 1


@pytest.mark.parametrize("method", ["claim", "extend", "purge"])
async def test_a_store_that_is_interrupted_is_asked_again(
    method: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own cancellation ends neither the worker nor the care for leases."""
    await deliver(store, await register(store), body(event()))
    again = failing(store, method, asyncio.CancelledError())

    async def handle(_: Delivery) -> None:
        await again.wait()

    worker = Worker(store, handle, poll=0.001, lease=0.01, retention=Retention(every=0.001))
    await run_until(worker, again)

    assert "a store operation was cancelled" in caplog.text


async def test_each_kind_has_its_age() -> None:
    """Duplicate keys go after three days, dead letters after their own time or never, waiting deliveries never."""
    assert Retention() == Retention(done=3 * DAY, dead=None, every=600)
    for dead, age, purged, letters in [
        (None, 3 * DAY - 1, 0, 1),
        (None, 3 * DAY + 1, 3, 1),
        (None, 300 * DAY, 3, 1),
        (5 * DAY, 5 * DAY - 1, 3, 1),
        (5 * DAY, 5 * DAY + 1, 4, 0),
    ]:
        clock = Clock()
        store = MemoryStore(clock=clock)
        id = await register(store)
        done = body(event())
        for content in (done, body(event())):
            await deliver(store, id, content)
        first, second = await store.claim(2, lease=60)
        await store.ack(first)
        await store.fail(second, error="", retry_in=None)
        await deliver(store, id, body(event()))
        clock.now += age

        assert await Retention(dead=dead).apply(store) == purged
        assert len(await store.deliveries(state=DeliveryState.DEAD)) == letters
        assert (await store.health()).waiting == 1
        again = await store.put(NewDelivery(registration=id, signature=sign_body(done, secret=SECRET), body=done))
        assert again == ("stored" if purged else "duplicate")
