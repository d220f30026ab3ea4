"""Workers that are stopped, killed and held up at random, and handlers that fail: nothing is lost or mixed up.

Handlers wait until a rule tells them how to end, and all clocks stand still until a rule moves them; so each step is
checked against what the protocol promises, lease by lease.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asana_webhooks import (
    Backoff,
    Delivery,
    DeliveryState,
    HandlerExitError,
    MemoryStore,
    PermanentFailure,
    SQLiteStore,
    StoreUnavailableError,
    Worker,
)
from asana_webhooks.store.base import Lease, NewDelivery, Store
from tests.helpers.stores import Clock, body, event, register

LEASE = 60.0
WAITS = {1: 10.0, 2: 20.0}
"""Seconds to wait after each attempt but the last."""
ATTEMPTS = 3
CONCURRENCY = 2
UNREADABLE = b"no json"
FAILURES: dict[str, type[BaseException]] = {"fail": LookupError, "give up": PermanentFailure, "exit": SystemExit}


@define(eq=False)
class Fate:
    """What must become of a delivery, from what was said of it."""

    registration: str
    body: bytes
    state: str = "open"
    """open, done or dead."""
    attempts: int = 0
    fence: int = 0
    free_at: float = 0.0
    """Nobody can have it before: it is leased, or waits for its next attempt."""
    is_leased: bool = False
    """Whoever has claimed it last may answer, also when the lease has run out."""
    unanswered: int = 0
    """How many of its last attempts ended without an answer, the present one included."""
    error: str = ""


@define(eq=False)
class Attempt:
    """A handler that runs until it is told how to end."""

    delivery: Delivery
    end: "asyncio.Future[str]"


@define(eq=False)
class Life:
    """One worker, and all that passes between it and the store."""

    store: Store
    said: "list[tuple[Life, str, Any, Any]]"
    """Worker, method, arguments and answer of every call that reached the store, shared by all."""
    is_killed: bool = False
    dies_in_claim: bool = False
    pending: "set[asyncio.Future[Any]]" = field(factory=set)
    """Calls that the store has not answered."""
    attempts: list[Attempt] = field(factory=list)
    """Handlers that run."""
    started: list[tuple[int, int]] = field(factory=list)
    """Delivery and attempt of every handler call."""
    ended: dict[tuple[int, int], str] = field(factory=dict)
    """How each of them ended."""
    holds: dict[int, int] = field(factory=dict)
    """The deliveries it has claimed and not said the end of, each with the attempt it began with."""
    due: "Counter[tuple[int, int]]" = field(factory=Counter)
    """The handler calls it must make, by delivery and attempt."""
    suspect: int | None = None
    """One of these that may have killed its processes. Until it has ended, nothing else is claimed."""
    beats: "asyncio.Queue[None]" = field(factory=asyncio.Queue)
    """Each one lets the worker extend its leases once."""
    task: "asyncio.Task[None]" = field(init=False)
    worker: Worker = field(init=False)

    async def run(self) -> None:
        LIFE.set(self)
        await self.worker.drain()

    async def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self.is_killed:
            raise StoreUnavailableError(problem="nothing of a dead process arrives")
        asked = asyncio.ensure_future(getattr(self.store, method)(*arguments, **options))
        self.pending.add(asked)
        asked.add_done_callback(self.pending.discard)
        answer = await asked
        self.said.append((self, method, (*arguments, options), answer))
        return answer

    async def claim(self, limit: int, **options: Any) -> Sequence[Lease]:
        leases = await self._ask("claim", limit, **options)
        if self.dies_in_claim:
            self.is_killed = True
            raise StoreUnavailableError(problem="the process died before it read the answer")
        return cast("Sequence[Lease]", leases)

    async def extend(self, lease: Lease, **options: Any) -> Any:
        return await self._ask("extend", lease, **options)

    async def ack(self, lease: Lease) -> Any:
        return await self._ask("ack", lease)

    async def fail(self, lease: Lease, **options: Any) -> Any:
        return await self._ask("fail", lease, **options)

    async def release(self, lease: Lease) -> Any:
        return await self._ask("release", lease)

    async def handle(self, delivery: Delivery) -> None:
        attempt = Attempt(delivery, asyncio.get_running_loop().create_future())
        call = (delivery.id, delivery.attempt)
        self.started.append(call)
        self.attempts.append(attempt)
        how = "was cancelled"
        try:
            how = await attempt.end
        finally:
            self.ended[call] = how
            self.attempts.remove(attempt)
        if how in FAILURES:
            raise FAILURES[how](f"{delivery.id}.{delivery.attempt}")


LIFE: ContextVar[Life] = ContextVar("LIFE")
_sleep = asyncio.sleep


async def sleep(seconds: float) -> None:
    """Stand in for `asyncio.sleep`: between two extensions of its leases, a worker waits for a beat."""
    if seconds == LEASE / 3:
        await LIFE.get().beats.get()
    else:
        await _sleep(seconds)


class MemoryMachine(RuleBasedStateMachine):
    """Workers on one store, as `Worker.drain` runs them, and a fate for every delivery."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = patch.object(asyncio, "sleep", sleep)
        self.patch.start()
        self.runner = asyncio.Runner()
        self.store = self.make_store()
        self.fates: dict[int, Fate] = {}
        self.lives: list[Life] = []
        self.registrations: list[str] = []
        self.said: list[tuple[Life, str, Any, Any]] = []
        self.heard: Counter[tuple[Life, str]] = Counter()
        """How often each worker said what in the last step."""
        self.ordered = self.halt = False
        self.has_failed = False

    def make_store(self) -> Store:
        return MemoryStore(clock=self.clock)

    def teardown(self) -> None:
        try:
            if not self.has_failed:
                self.come_to_an_end()
        finally:
            for life in self.lives:
                life.task.cancel()
            self.runner.run(self.quiet())
            self.runner.run(self.store.aclose())
            self.runner.close()
            self.patch.stop()

    @initialize(order=st.sampled_from(["none", "skip", "halt"]), number=st.integers(1, 4))
    def begin(self, order: str, number: int) -> None:
        self.ordered, self.halt = order != "none", order == "halt"
        for name in ("A", "B"):
            id = self.runner.run(register(self.store, name * 20, gid=name))
            self.registrations.append(id)
        for _ in range(number):
            self.put(0, is_readable=True)

    # What happens

    @rule(which=st.integers(0, 1), is_readable=st.sampled_from([True, True, True, False]))
    def put(self, which: int, is_readable: bool) -> None:
        number = len(self.fates) + 1
        content = body(event()) if is_readable else UNREADABLE
        new = NewDelivery(registration=self.registrations[which], signature=f"{number:064x}", body=content)

        async def stored() -> bool:
            return await self.store.put(new) == "stored"

        assert self.runner.run(stored())
        self.fates[number] = Fate(new.registration, content)

    @precondition(lambda self: len(self.lives) < 3)
    @rule(dies_in_claim=st.sampled_from([False, False, False, True]))
    def start(self, dies_in_claim: bool) -> None:
        """Another worker looks for something to do."""
        life = Life(self.store, self.said, dies_in_claim=dies_in_claim)
        life.worker = Worker(
            cast("Store", life),
            life.handle,
            concurrency=CONCURRENCY,
            ordered=self.ordered,
            on_dead="halt" if self.halt else "skip",
            lease=LEASE,
            attempts=ATTEMPTS,
            backoff=Backoff(first_wait=WAITS[1], random=lambda: 1.0),
            stop_timeout=0,
        )
        self.lives.append(life)

        async def run() -> None:
            life.task = asyncio.ensure_future(life.run())

        self.runner.run(run())
        self.see()

    @property
    def running(self) -> list[tuple[Life, Attempt]]:
        return [(life, attempt) for life in self.lives for attempt in life.attempts]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["succeed", "succeed", *FAILURES]), late=st.booleans())
    def end_one(self, data: st.DataObject, end: str, *, late: bool) -> None:
        """A handler returns or raises, after its lease if it is late. If it exits, its worker stops."""
        self.clock.now += LEASE if late else 0
        life, attempt = data.draw(st.sampled_from(self.running))
        held = len(life.holds)
        attempt.end.set_result(end)
        self.see()
        if end == "exit":
            assert life not in self.lives
            assert self.heard[life, "release"] == held - 1

    @precondition(lambda self: self.running)
    @rule()
    def fail_all(self) -> None:
        """All that they need is away."""
        for _, attempt in self.running:
            attempt.end.set_result("fail")
        self.see()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def handle_and_die(self, data: st.DataObject) -> None:
        """A worker is killed after its handler has returned, before the store hears of it."""
        life, attempt = data.draw(st.sampled_from(self.running))
        life.is_killed = True
        attempt.end.set_result("succeed")
        life.task.cancel()
        self.see()

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), how=st.sampled_from(["stopped", "cancelled", "killed", "killed"]))
    def end_a_life(self, data: st.DataObject, how: str) -> None:
        """A worker ends; if it is killed, its leases have run out when we look again."""
        life = data.draw(st.sampled_from(self.lives))
        held = len(life.holds)
        life.is_killed = how == "killed"
        if how == "stopped":
            life.worker.stop()
        else:
            life.task.cancel()
        self.see()
        assert self.heard[life, "release"] == (0 if life.is_killed else held)
        self.clock.now += LEASE if life.is_killed else 0

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        """A third of the lease has passed."""
        life = data.draw(st.sampled_from(self.lives))
        held = len(life.holds)
        life.beats.put_nowait(None)
        self.see()
        assert self.heard[life, "extend"] == held

    @rule(seconds=st.sampled_from([1.0, WAITS[1], LEASE - 1, LEASE]))
    def tick(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def requeue(self) -> None:
        for id, fate in self.fates.items():
            if fate.state == "dead":
                assert self.runner.run(self.store.requeue(id))
                fate.state, fate.attempts, fate.free_at = "open", 0, 0.0

    # What must hold

    async def quiet(self) -> None:
        """Let everything happen that can happen without us."""
        still = 0
        for _ in range(3_000):
            still += 1
            await asyncio.sleep(0)
            if pending := [call for life in self.lives for call in life.pending]:
                await asyncio.wait(pending)
                still = 0
            if still == 30:
                return
        raise AssertionError("the workers do not come to rest")

    def see(self) -> None:
        """Let the workers go on, and judge all they said to the store in the order they said it."""
        self.has_failed = True
        self.runner.run(self.quiet())
        self.judge()
        for life in self.lives:
            self.check_calls(life)
            assert len(life.attempts) <= CONCURRENCY
        for life in [life for life in self.lives if life.task.done()]:
            error = None if life.task.cancelled() else life.task.exception()
            assert isinstance(error, HandlerExitError | None) or life.is_killed
            assert isinstance(error, HandlerExitError) is ("exit" in life.ended.values()) or life.is_killed
            assert not life.attempts
            self.lives.remove(life)
        self.has_failed = False

    def check_calls(self, life: Life) -> None:
        """A worker has made all its calls, but for that of a suspect, as long as others run."""
        suspect = (life.suspect or 0, life.holds.get(life.suspect or 0, 0))
        waits = life.due[suspect] if len(life.holds) > 1 else 0
        expected = Counter() if life.dies_in_claim else life.due - Counter({suspect: waits})
        assert Counter(life.started) == expected
        life.due -= expected
        life.started.clear()

    def judge(self) -> None:
        """Judge what each worker has said since, and note the handler calls that it must make."""
        self.heard.clear()
        for life, method, arguments, answer in self.said:
            self.heard[life, method] += 1
            if method == "claim":
                assert life.suspect is None
                assert len(answer) == 1 or not any(lease.alone for lease in answer)
                for lease in answer:
                    self.judge_claim(lease)
                    life.suspect = lease.id if lease.alone else None
                    if lease.id in life.holds:
                        continue  # its handler goes on, with the new lease
                    life.holds[lease.id] = lease.attempt
                    if lease.attempt <= ATTEMPTS and lease.body != UNREADABLE:
                        life.due[lease.id, lease.attempt] += 1
            else:
                self.judge_report(life, method, *arguments)
                self.judge_answer(life, method, *arguments, answer)
                if method != "extend":
                    self.judge_end(life, arguments[0].id)
        self.said.clear()

    def judge_end(self, life: Life, id: int) -> None:
        attempt = life.holds.pop(id)
        if life.suspect == id:
            life.suspect = None
            if (id, attempt) not in life.ended:
                life.due.pop((id, attempt), None)  # it was released while others ran

    def judge_claim(self, lease: Lease) -> None:
        fate = self.fates[lease.id]
        assert fate.state == "open"
        assert fate.free_at <= self.clock.now
        fate.attempts += 1
        assert (lease.attempt, lease.fence != fate.fence, lease.body) == (fate.attempts, True, fate.body)
        assert lease.alone is (fate.unanswered >= 2)
        fate.unanswered += 1
        fate.fence, fate.free_at, fate.is_leased = lease.fence, self.clock.now + LEASE, True
        if self.ordered:
            settled = {"done"} if self.halt else {"done", "dead"}
            others = [one for one in self.fates.items() if one[1].registration == fate.registration and one[1] != fate]
            assert {one.state for id, one in others if id < lease.id} <= settled
            assert not [id for id, one in others if one.is_leased and one.free_at > self.clock.now]

    def judge_report(self, life: Life, method: str, lease: Lease, *options: Any) -> None:
        """What a worker says of a delivery is what its handler did, and not said before."""
        attempt = life.holds[lease.id]
        handled = life.ended.get((lease.id, attempt))
        if method == "ack":
            assert handled == "succeed"
        elif method == "release":
            assert handled == "was cancelled" or life.suspect == lease.id
        elif method == "fail":
            assert (handled in FAILURES) is (lease.body != UNREADABLE and attempt <= ATTEMPTS)
            if handled in FAILURES:
                assert options[0]["error"] == f"{FAILURES[handled].__name__}: {lease.id}.{attempt}"

    def judge_answer(self, life: Life, method: str, lease: Lease, *options: Any) -> None:
        """Whoever lost its lease is told so, and what it says changes nothing."""
        *_, said, answer = options
        fate = self.fates[lease.id]
        is_holder = fate.is_leased and fate.fence == lease.fence
        assert answer is is_holder
        if not is_holder:
            return
        if method == "extend":
            fate.free_at = self.clock.now + LEASE
            return
        fate.is_leased, fate.free_at = False, 0.0
        if method == "ack":
            fate.state = "done"
        elif method == "release":
            fate.attempts -= 1
            fate.unanswered -= 1
        else:
            fate.error, fate.unanswered = said["error"], 0
            self.judge_failure(fate, lease, said["retry_in"], attempt=life.holds[lease.id])

    def judge_failure(self, fate: Fate, lease: Lease, retry_in: float | None, *, attempt: int) -> None:
        """A delivery is given up at its last attempt and not before, unless it never could be read."""
        if attempt > ATTEMPTS:
            assert fate.error.startswith("attempts exhausted")
        elif fate.body == UNREADABLE:
            assert fate.error.startswith("unreadable")
        else:
            assert fate.error.endswith(f": {lease.id}.{attempt}")
        is_over = fate.body == UNREADABLE or fate.attempts >= ATTEMPTS or fate.error.startswith("PermanentFailure")
        assert retry_in == (None if is_over else WAITS[fate.attempts])
        fate.state = "dead" if is_over else "open"
        fate.free_at = self.clock.now + (retry_in or 0)

    @invariant()
    def the_store_says_the_same(self) -> None:
        """Deliveries are where their fates say, dead letters with their last error and all their attempts."""
        health = self.runner.run(self.store.health())
        fates = self.fates.values()
        leased = sum(fate.is_leased and self.clock.now < fate.free_at for fate in fates)
        assert (health.leased, health.waiting) == (leased, sum(fate.state == "open" for fate in fates) - leased)
        letters = self.runner.run(self.store.deliveries(state=DeliveryState.DEAD))
        assert [(one.id, one.error, one.attempts) for one in letters] == [
            (id, fate.error, fate.attempts) for id, fate in self.fates.items() if fate.state == "dead"
        ]

    def let_all_succeed(self) -> None:
        for _ in range(4 * len(self.fates) + 4):
            if not self.running:
                return
            for _, attempt in self.running:
                attempt.end.set_result("succeed")
            self.see()
        raise AssertionError("deliveries that were handled well come again and again")

    def come_to_an_end(self) -> None:
        """When all goes well from now on, every delivery is done, or a dead letter that nobody waits for."""
        for _ in range(4 * len(self.fates) + 4):
            self.let_all_succeed()
            if all(fate.state != "open" for fate in self.fates.values()):
                break
            if not self.running:  # else its lease would run out each time it is about to succeed
                self.clock.now += LEASE
            if self.halt:
                self.requeue()
            if not self.lives:
                self.start(dies_in_claim=False)
        dead = {fate.registration for fate in self.fates.values() if fate.state == "dead"} if self.halt else set()
        assert {fate.registration for fate in self.fates.values() if fate.state == "open"} <= dead
        self.the_store_says_the_same()


class SQLiteMachine(MemoryMachine):
    """The same on disk."""

    def make_store(self) -> Store:
        self.directory = tempfile.mkdtemp()
        return SQLiteStore(Path(self.directory) / "store.db", clock=self.clock)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.directory)


class LongMachine(SQLiteMachine):
    """The same for longer."""


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
TestForLong = pytest.mark.long(pytest.mark.timeout(300)(LongMachine.TestCase))
TestForLong.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
