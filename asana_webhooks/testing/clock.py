"""The fake's clock: it stands still until a test turns it, or runs beside the real one."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from asana_webhooks.errors import ConfigurationError

__all__ = ["FakeClock", "check_advance", "format_time"]

FROZEN_START = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
_LONGEST_ADVANCE = timedelta(days=366)


class FakeClock:
    """What time it is for `FakeAsana`: for its timestamps, retries, heartbeats and offsets.

    Turn it with `FakeAsana.advance`, which also does everything that falls due on the way. Lend it to the store, too:
    ``MemoryStore(clock=fake.clock.time)``. By a store's own clock the events of a frozen one are old, and deliveries
    are `Delivery.stale`.

    Args:
        start: the time it begins with, with a time zone; by default a fixed date when frozen, so that every run of a
            test sees the same timestamps, and the present when running.
        running: whether it goes on by itself, at the speed of the real one, or stands still.
    """

    def __init__(self, *, start: datetime | None = None, running: bool = False) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigurationError("start must have a time zone: datetime(2026, 1, 2, tzinfo=UTC)")
        self.running = running
        self._shown = start or (datetime.now(UTC) if running else FROZEN_START)
        self._seen = time.monotonic()

    def now(self) -> datetime:
        """The time it shows."""
        if not self.running:
            return self._shown
        return self._shown + timedelta(seconds=time.monotonic() - self._seen)

    def time(self) -> float:
        """The same in seconds since 1970, to lend to whatever takes a function such as `time.time`."""
        return self.now().timestamp()

    def move_to(self, moment: datetime) -> None:
        """Turn it forward to *moment*; it never goes back. Nothing falls due by this alone: see `FakeAsana.advance`."""
        self._shown = max(moment, self.now())
        self._seen = time.monotonic()

    def __repr__(self) -> str:
        return f"<FakeClock {'running' if self.running else 'frozen'} at {format_time(self.now())}>"


def check_advance(seconds: Any) -> timedelta:
    """How far a clock is to be turned.

    Raises:
        ConfigurationError: that is no number of seconds, or backwards, or more than a year.
    """
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _LONGEST_ADVANCE.total_seconds():
        raise ConfigurationError(f"the clock goes forward by up to a year of seconds, not by {seconds!r:.80}")
    return timedelta(seconds=seconds)


def format_time(moment: datetime) -> str:
    """Write *moment* as Asana does: UTC, milliseconds, ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
