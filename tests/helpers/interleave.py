"""Try every order in which calls that share a store and Asana can take their steps, and kill them at any step.

Before each step (see `stepping`), a call waits for its turn, and `explore` decides who goes on. It runs a scenario
again and again, each time with other choices, until none is left. It goes no further where it has been before. Nothing
is random, and time passes only where a schedule says so. So the schedule of a failure always fails.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from attrs import define, frozen

from asana_webhooks import AsanaSession, MemoryStore, Receiver
from asana_webhooks.store.base import Registration, RegistrationState
from asana_webhooks.store.rules import as_found
from tests.helpers.stepping import Actor, MemoryAsana, SteppingSession, SteppingStore, StillLoop, Turn, endpoint_of

__all__ = ["Call", "Explored", "Scenario", "World", "explore"]

_START = 1000.0
_LONGEST = 500
"""A schedule with more steps counts as endless."""

Call = Callable[[AsanaSession, Any], Coroutine[Any, Any, Any]]
"""A call to explore. It takes a session and a store."""


@frozen(kw_only=True)
class Scenario:
    """What to explore, and what must be true of it."""

    calls: Sequence[Call]
    before: Callable[["World"], Coroutine[Any, Any, Any]] | None = None
    """Sets the scene. It takes no steps: it uses `World.store` and `World.asana`."""
    after_kill: Call | None = None
    """A call that begins when another one is killed."""
    always: Callable[["World"], None] = lambda _: None
    """Checks each state."""
    at_end: Callable[["World"], None] = lambda _: None
    """Checks each state in which all has ended."""
    store: Callable[..., MemoryStore] = MemoryStore
    kills: int = 0
    faults: int = 0
    """How many requests may fail, webhooks vanish, and deadlines pass while somebody works."""
    naps: int = 0
    """How often a sleeper may wake up while others work."""


class World:
    """A store, Asana, and the calls that share them, in one schedule."""

    def __init__(self, scenario: Scenario, loop: StillLoop) -> None:
        self.scenario, self.loop = scenario, loop
        self.kills, self.faults, self.naps = scenario.kills, scenario.faults, scenario.naps
        self.store = scenario.store(clock=loop.time)
        self.asana = MemoryAsana(Receiver(self.store))
        self.calls: list[Actor] = []
        self.returned: Actor | None = None
        """The last call that returned since the last kill."""
        self.schedule: list[str] = []
        self._endpoints = 0
        loop.now = _START

    def start(self) -> None:
        """Set the scene, and begin all calls: each waits for its first turn then."""
        if self.scenario.before is not None:
            before = Actor("before", None).begin(self.scenario.before(self), self.loop)
            self.loop.settle()
            before.task.result()
        for call in self.scenario.calls:
            self._begin(call)

    def _begin(self, call: Call) -> None:
        actor = Actor("ABCDEFGH"[len(self.calls)], call)
        self.calls.append(actor.begin(call(SteppingSession(self.asana), SteppingStore(self.store)), self.loop))
        self.loop.settle()

    def endpoint(self, _: int = 32) -> str:
        """Stand in for `secrets.token_urlsafe`."""
        self._endpoints += 1
        return endpoint_of(self._endpoints)

    @property
    def live(self) -> list[Registration]:
        """The registrations that are pending within their deadlines, or confirmed."""
        found = [as_found(one, now=self.loop.now) for one in self.store._registrations.values()]
        return [one for one in found if one.state is not RegistrationState.CLOSED]

    @property
    def alive(self) -> list[Registration]:
        """The registrations that are confirmed, and whose webhooks exist."""
        return [one for one in self.live if one.webhook_gid in self.asana.webhooks]

    def choices(self) -> dict[str, Callable[[], None]]:
        """Return all that may happen next."""
        running = [one for one in (*self.calls, *self.asana.working) if one.runs]
        turns = [(f"{one.name}: {waiting.step}", waiting) for one in running for waiting in one.turns]
        found: dict[str, Callable[[], None]] = {what: partial(self._go_on, waiting) for what, waiting in turns}
        deadlines = [one.deadline for one in self.live if one.state is RegistrationState.PENDING]
        if (self.naps or not turns) and any(one.runs and one.sleeps for one in self.calls):
            found["time passes"] = partial(self._wake, min(deadlines, default=0.0), alone=not turns)
        if self.kills:  # to kill a sleeper is to kill it before its next step
            killable = [one for one in self.calls if one.runs and not one.sleeps]
            found |= {f"kill {one.name}": partial(self._kill, one) for one in killable}
        if self.faults:
            found |= {f"{what}: {one}": partial(self._fail, it, one) for what, it in turns for one in it.faults}
            found |= {f"Asana deletes {gid}": partial(self._delete, gid) for gid in self.asana.webhooks}
            if turns and deadlines:
                found["a deadline passes"] = partial(self._miss, min(deadlines))
        return found

    def _go_on(self, waiting: Turn, fault: str = "") -> None:
        waiting.chosen.set_result(fault)

    def _fail(self, waiting: Turn, fault: str) -> None:
        self.faults -= 1
        self._go_on(waiting, fault)

    def _delete(self, gid: str) -> None:
        self.faults -= 1
        del self.asana.webhooks[gid]

    def _miss(self, deadline: float) -> None:
        self.faults -= 1
        self.loop.pass_time(deadline - self.loop.now)

    def _wake(self, deadline: float, *, alone: bool) -> None:
        self.naps -= not alone
        # If all sleep, they sleep until a deadline, or each of their looks at what is pending would be explored.
        self.loop.pass_time(max(self.loop.next_timer or 0.0, deadline - self.loop.now if alone else 0.0))

    def _kill(self, actor: Actor) -> None:
        self.kills -= 1
        self.returned = None
        actor.kill()
        self.loop.settle()
        if self.scenario.after_kill is not None:
            self._begin(self.scenario.after_kill)

    def choose(self, choice: str) -> None:
        """Let it happen."""
        self.schedule.append(choice)
        unfinished = [one for one in self.calls if not one.returned]
        self.choices()[choice]()
        self.loop.settle()
        self.returned = next((one for one in unfinished if one.returned), self.returned)
        assert len(self.schedule) < _LONGEST, "it does not end"

    def end(self) -> None:
        """Check the end, in which nothing more can happen."""
        assert not any(one.runs for one in self.calls), "some wait forever"
        self.scenario.at_end(self)

    def key(self) -> int:
        """Return a hash of the state, and of what may still happen to it."""
        actors = Counter(one.key() for one in (*self.calls, *(one for one in self.asana.working if one.runs)))
        stored, existing = self.store._registrations.values(), self.asana.webhooks.values()
        left = (self.kills, self.faults, self.naps, self.loop.now, self.returned and self.returned.role)
        return hash((frozenset(actors.items()), frozenset(stored), frozenset(existing), left))

    def close(self) -> None:
        for one in (*self.calls, *self.asana.working):
            one.kill()
        self.loop.settle()


@define
class Explored:
    """How much was explored."""

    runs: int = 0
    """How often the scenario ran, to its end or to a state that was seen before."""
    ends: int = 0
    states: int = 0


def explore(scenario: Scenario) -> Explored:
    """Explore *scenario*; an `AssertionError` has the schedule that led to it as a note."""
    explored, seen, left = Explored(), set[int](), [list[str]()]
    with _quiet(), closing(StillLoop()) as loop, mock.patch.multiple(time, time=loop.time, monotonic=loop.time):
        while left:
            with _world(scenario, loop, left.pop()) as world:
                explored.runs += 1
                while (key := world.key()) not in seen:
                    seen.add(key)
                    scenario.always(world)
                    first, *others = world.choices() or [""]
                    left.extend([*world.schedule, other] for other in others)
                    if not first:
                        world.end()
                        explored.ends += 1
                        break
                    world.choose(first)
    explored.states = len(seen)
    return explored


@contextmanager
def _world(scenario: Scenario, loop: StillLoop, schedule: Iterable[str] = ()) -> Iterator[World]:
    world = World(scenario, loop)
    try:
        with mock.patch.object(secrets, "token_urlsafe", world.endpoint):
            world.start()
            for choice in schedule:
                world.choose(choice)
            yield world
    except AssertionError as error:
        error.add_note("\n".join(world.schedule))
        raise
    finally:
        world.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: thousands of runs end badly on purpose."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)
