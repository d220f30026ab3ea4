"""A webhook moves while things fail at random; no event is lost."""

import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import pytest
from attrs import define, field

from asana_webhooks import AsanaError
from asana_webhooks.testing import Fault
from tests.subscriptions.moves import Door, Moving, moving
from tests.subscriptions.scenes import arrived, live
from tests.subscriptions.times import HOUR


class Killed(Exception):  # noqa: N818 - no error: the process ends
    """Ends a move wherever it waits."""


@define
class Schedule:
    """What happens at which second, at random: changes, receivers that fail, lost answers, and kills."""

    here: Moving
    random: random.Random
    todo: list[tuple[float, Callable[[], None]]] = field(factory=list)
    tasks: set[str] = field(factory=set)
    """The gids of the tasks that changed."""

    @classmethod
    def of(cls, here: Moving, seed: int) -> "Schedule":
        made = cls(here, random.Random(seed))
        chance, began = made.random, here.here.fake.clock.time()
        todo = [(chance.uniform(0, 10 * HOUR), made.change) for _ in range(chance.choice([3, 30]))]
        todo += [(chance.uniform(0, HOUR), made.change) for _ in range(10)]
        todo += [(chance.uniform(1, 4 * HOUR), made.kill) for _ in range(chance.randrange(4))]
        todo += [(chance.uniform(0, 4 * HOUR), made.lose) for _ in range(3)]
        for door in here.doors:
            # They recover an hour before the longest wait is over: Asana sends again within the hour.
            ends = sorted(chance.uniform(0, 7 * HOUR) for _ in range(2 * chance.randrange(4)))
            for number, moment in enumerate(ends):
                todo.append((moment, made.turn(door, down=number % 2 == 0)))
        made.todo = sorted(((began + after, do) for after, do in todo), key=lambda one: one[0])
        return made

    def change(self) -> None:
        task = self.here.here.fake.add_task()
        self.tasks.add(task)
        self.here.here.fake.change(task, field="name")

    def kill(self) -> None:
        raise Killed

    def lose(self) -> None:
        at = self.random.choice(["createWebhook", "getWebhook", "deleteWebhook"])
        self.here.here.fake.script(Fault(at=at, do=self.random.choice(["lose_answer", "truncate"])))
        self.here.here.fake.script(Fault(at="delivery", do=self.random.choice(["duplicate", "tamper", "forge"])))

    def turn(self, door: "Door", *, down: bool) -> Callable[[], None]:
        def turn() -> None:
            door.down = down

        return turn

    async def advance(self, seconds: float) -> None:
        clock, advance = self.here.here.fake.clock, self.here.here.fake.advance
        end = clock.time() + seconds
        while self.todo and self.todo[0][0] <= end:
            at, do = self.todo.pop(0)
            await advance(max(0.0, at - clock.time()))
            do()
        await advance(max(0.0, end - clock.time()))


@pytest.mark.parametrize("seed", range(20))
async def test_no_event_is_lost(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever fails at whichever time, each event is handled at least once; its copies have one fingerprint."""
    async with moving(monkeypatch) as here:
        schedule = Schedule.of(here, seed)
        here.time.advance = schedule.advance
        replaced = None
        while replaced is None:
            try:
                await schedule.advance(schedule.random.uniform(0, HOUR))
                replaced = await here.replace()
            except (Killed, AsanaError):
                continue
        while schedule.todo:
            with suppress(Killed):
                await schedule.advance(HOUR)
        await here.here.fake.advance(2 * HOUR)

        fingerprints = defaultdict[str, set[str]](set)
        for delivery in await arrived(here.here.store):
            for event in delivery.events:
                fingerprints[event.resource.gid].add(event.fingerprint)
        assert set(fingerprints) == schedule.tasks
        assert {len(one) for one in fingerprints.values()} == {1}
        assert replaced.lost_since is None
        assert await live(here.here.fake) == {replaced.webhook_gid}
