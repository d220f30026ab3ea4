"""The fake's clock: frozen, running, or one's own."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import FakeAsana, FakeClock
from tests.testing.fake_play import PROJECT, playing


def test_frozen() -> None:
    """A frozen clock shows the same time in every run, until it is moved; it never goes back."""
    clock = FakeClock()
    start = clock.now()
    assert start == clock.now() == FakeClock().now()
    clock.move_to(start + timedelta(seconds=5))
    assert clock.now() == start + timedelta(seconds=5)
    clock.move_to(start)
    assert clock.now() == start + timedelta(seconds=5)
    assert clock.time() == clock.now().timestamp()
    assert repr(clock) == "<FakeClock frozen at 2026-01-02T03:04:10.678Z>"


def test_running() -> None:
    """A running clock goes beside the real one, from the present on, and can be put forward."""
    clock = FakeClock(running=True)
    first = clock.now()
    assert abs(datetime.now(UTC) - first) < timedelta(seconds=1)
    assert clock.now() >= first
    clock.move_to(first + timedelta(hours=1))
    assert timedelta(0) <= clock.now() - first - timedelta(hours=1) < timedelta(seconds=1)
    assert "running" in repr(clock)


def test_start_needs_a_zone() -> None:
    """A start without a time zone is refused."""
    with pytest.raises(ConfigurationError, match="time zone"):
        FakeClock(start=datetime(2026, 1, 1))  # noqa: DTZ001


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
            with pytest.raises(ConfigurationError, match="goes forward"):
                await fake.advance(seconds)


async def test_everything_in_order() -> None:
    """What falls due on the way happens one after another, each at its own time."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.root + "/first")
        await fake.advance(3600)
        await api.create_gid(target.root + "/second")
        target.fail(times=2)
        fake.change(PROJECT, field="name")
        await fake.advance(16 * 3600)
        assert [one.sent_at for one in fake.deliveries] == sorted(one.sent_at for one in fake.deliveries)
        assert fake.clock.now() - FakeClock().now() == timedelta(hours=17)


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
