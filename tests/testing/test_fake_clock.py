"""The fake's clock: frozen, running, or one's own."""

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asana_webhooks import MemoryStore
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import FakeAsana, FakeClock
from asana_webhooks.testing.clock import format_time
from tests.subscriptions.scenes import arrived, scene
from tests.testing.fake_play import PROJECT, fixed_clock, playing

MILLISECOND = timedelta(milliseconds=1)


def test_frozen() -> None:
    """A frozen clock stands still at the present, in whole milliseconds, until it is moved; it never goes back."""
    clock = FakeClock()
    start = clock.now()
    assert start == clock.now() == datetime.fromisoformat(format_time(start))
    assert abs(datetime.now(UTC) - start) < timedelta(seconds=5)
    clock.move_to(start + timedelta(seconds=5))
    assert clock.now() == start + timedelta(seconds=5)
    clock.move_to(start)
    assert clock.now() == start + timedelta(seconds=5)
    assert clock.time() == clock.now().timestamp()
    assert repr(fixed_clock()) == "<FakeClock frozen at 2026-01-02T03:04:05.678Z>"


def test_running() -> None:
    """A running clock goes beside the real one, from the present on, and can be put forward."""
    clock = FakeClock(running=True)
    first = clock.now()
    assert abs(datetime.now(UTC) - first) < timedelta(minutes=1)
    assert clock.now() >= first
    clock.move_to(first + timedelta(hours=1))
    assert timedelta(0) <= clock.now() - first - timedelta(hours=1) < timedelta(minutes=1)
    assert "running" in repr(clock)


def test_start_needs_a_zone() -> None:
    """A start without a time zone is refused."""
    with pytest.raises(ConfigurationError, match="time zone"):
        FakeClock(start=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("microseconds", [0, 678_000, 678_901])
def test_each_tick_is_a_millisecond_of_its_own(microseconds: int) -> None:
    """The first is the time shown, the next are later, and a frozen clock moves on to them, never back."""
    start = datetime(2026, 1, 2, microsecond=microseconds, tzinfo=UTC)
    clock, first = FakeClock(start=start), start.replace(microsecond=microseconds // 1000 * 1000)
    assert clock.tick() == first
    assert clock.now() == start
    assert [clock.tick(), clock.tick()] == [first + MILLISECOND, first + 2 * MILLISECOND]
    assert clock.now() == first + 2 * MILLISECOND
    clock.move_to(start + timedelta(seconds=1))
    assert clock.tick() == first + timedelta(seconds=1)


def test_time_goes_on_when_summer_time_ends() -> None:
    """A clock that starts in a zone with daylight saving time neither goes back nor skips an hour."""
    for minute, fold in ((30, 1), (59, 0)):
        start = datetime(2026, 10, 25, 2, minute, 59, 999_000, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        clock, first = FakeClock(start=start), start.astimezone(UTC)
        shown = [datetime.fromisoformat(format_time(clock.tick())) for _ in range(3)]
        assert shown == [first, first + MILLISECOND, first + 2 * MILLISECOND]


def test_ticks_of_a_running_clock() -> None:
    """They are ahead of it by no more than they need, and do not put it forward."""
    clock = FakeClock(running=True)
    assert clock.tick() <= clock.now()
    ticks = [clock.tick() for _ in range(10_000)]
    assert all(later - sooner >= MILLISECOND for sooner, later in itertools.pairwise(ticks))
    assert all(tick.microsecond % 1000 == 0 for tick in ticks)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    clock.move_to(ticks[-1] + timedelta(seconds=1))
    assert clock.tick() - ticks[-1] >= timedelta(seconds=1)


async def test_first_deliveries() -> None:
    """With a store on the real clock they are not stale, and equal changes are different events, in their order."""
    async with scene(MemoryStore()) as here:
        await here.establish()
        changes = [here.fake.change(here.fake.projects[0], field="name") for _ in range(3)]
        await here.fake.settle()
        deliveries = await arrived(here.store)
        assert not any(delivery.stale for delivery in deliveries)
        events = [event for delivery in deliveries for event in delivery.events]
        assert [format_time(event.created_at) for event in events] == [change["created_at"] for change in changes]
        times = [event.created_at for event in events]
        assert [later - sooner for sooner, later in itertools.pairwise(times)] == [MILLISECOND] * 2
        assert len({event.fingerprint for event in events}) == 3


async def test_one_change_has_one_time() -> None:
    """All webhooks that hear of a change are told the same."""
    async with playing(heartbeat=None) as (fake, api, target):
        for path in ("/first", "/second"):
            await api.create_gid(target.root + path)
        change = fake.change(PROJECT)
        await fake.settle()
        assert [json.loads(got.body)["events"] for got in target.deliveries] == [[change], [change]]


@pytest.mark.parametrize(("failures", "seconds"), [(1, 10), (0, 8 * 3600)])
async def test_changes_until_something_falls_due(failures: int, seconds: float) -> None:
    """What falls due while changes move the clock on is done then: a retry, or a heartbeat."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        due_at = fake.clock.now() + timedelta(seconds=seconds)
        target.fail(times=failures)
        fake.change(PROJECT)
        await fake.advance(seconds - 0.002)
        sent = []
        for _ in range(3):
            fake.change(PROJECT)
            await fake.settle()
            sent.append([one.sent_at == due_at and (one.retry or one.heartbeat) for one in fake.deliveries])
        assert [any(one) for one in sent] == [False, False, True]
        assert fake.clock.now() == due_at


async def test_own_clock() -> None:
    """The fake takes its times from the clock it is given."""
    clock = FakeClock(start=datetime(2020, 2, 3, tzinfo=UTC))
    async with FakeAsana(clock=clock) as fake:
        await fake.advance(60)
        assert fake.change(PROJECT)["created_at"] == "2020-02-03T00:01:00.000Z"
        assert clock.now() == datetime(2020, 2, 3, 0, 1, tzinfo=UTC)


async def test_advance_refuses() -> None:
    """The clock goes forward only, by a number of seconds, and not by more than a year at once."""
    refused: list[Any] = [-1, float("nan"), float("inf"), 367 * 86400, 10**400, "1", None, True, [1]]
    async with FakeAsana() as fake:
        for seconds in refused:
            with pytest.raises(ConfigurationError, match=r"^advance by 0 to 31622400 seconds \(366 days\), not by"):
                await fake.advance(seconds)


async def test_everything_in_order() -> None:
    """What falls due on the way happens one after another, each at its own time."""
    async with playing() as (fake, api, target):
        start = fake.clock.now()
        await api.create_gid(target.root + "/first")
        await fake.advance(3600)
        await api.create_gid(target.root + "/second")
        target.fail(times=2)
        fake.change(PROJECT, field="name")
        await fake.advance(16 * 3600)
        assert [one.sent_at for one in fake.deliveries] == sorted(one.sent_at for one in fake.deliveries)
        assert fake.clock.now() - start == timedelta(hours=17)


async def test_running_clock_sends_by_itself() -> None:
    """On a running clock retries come without anyone turning it, and turning it works as well."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    async with playing(clock=FakeClock(start=start, running=True), heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail()
        fake.change(PROJECT, field="name")
        await fake.settle()
        retry_at = fake.webhook(gid).next_attempt_after
        assert retry_at is not None
        retried = fake.hold("delivery")
        # Just before the retry; the clock goes the rest of the way alone.
        await fake.advance((retry_at - fake.clock.now()).total_seconds() - 0.02)
        async with asyncio.timeout(2):
            await retried.reached()
        retried.release()
        await fake.settle()
        assert fake.webhook(gid).next_attempt_after is None
        await fake.advance(8 * 3600)
        assert fake.deliveries[-1].heartbeat


async def test_running_fake_starts_with_the_present() -> None:
    """FakeAsana(clock="running") shows the real time."""
    async with FakeAsana(clock="running") as fake:
        assert abs(datetime.now(UTC) - fake.clock.now()) < timedelta(seconds=5)
