"""The fake's clock: frozen until a test advances it, or running beside the real one."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from asana_webhooks.errors import ConfigurationError

__all__ = ["FakeClock", "check_advance", "format_time", "make_clock"]

_LONGEST_ADVANCE = 366 * 86_400
_MILLISECOND = timedelta(milliseconds=1)


class FakeClock:
    """The clock of `FakeAsana`: for its timestamps, retries, heartbeats, tokens and offsets.

    Advance it with `FakeAsana.advance`, which also does everything that falls due on the way. To advance the store's
    leases and retention with it, give both the same clock: ``MemoryStore(clock=fake.clock.time)``.

    Args:
        start: the first time it shows, with a time zone; by default the present, in whole milliseconds.
        running: True to run at the speed of the real clock. False to stand still, except for `tick`.
    """

    def __init__(self, *, start: datetime | None = None, running: bool = False) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigurationError("start must have a time zone, such as datetime(2026, 1, 2, tzinfo=UTC)")
        self.running = running
        # In UTC: arithmetic in a zone with daylight saving time could go back, or skip an hour.
        self._shown = start.astimezone(UTC) if start else _whole_milliseconds(datetime.now(UTC))
        self._seen = time.monotonic()
        self._last_tick = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """Return the time it shows."""
        if not self.running:
            return self._shown
        return self._shown + timedelta(seconds=time.monotonic() - self._seen)

    def time(self) -> float:
        """Return the same in seconds since the epoch, as `time.time` does; pass this method as a *clock*."""
        return self.now().timestamp()

    def tick(self) -> datetime:
        """Return the time of one change, in whole milliseconds: now, or 1 ms after the previous tick if that is later.

        A frozen clock moves forward to this time. A running one keeps the pace of the real clock, so a burst of
        changes gets times slightly in its future.
        """
        self._last_tick = max(_whole_milliseconds(self.now()), self._last_tick + _MILLISECOND)
        if not self.running:
            self.move_to(self._last_tick)
        return self._last_tick

    def move_to(self, moment: datetime) -> None:
        """Move it forward to *moment*, never back. This alone sends nothing that is due: see `FakeAsana.advance`."""
        self._shown = max(moment, self.now())
        self._seen = time.monotonic()

    def __repr__(self) -> str:
        return f"<FakeClock {'running' if self.running else 'frozen'} at {format_time(self.now())}>"


def _whole_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def make_clock(clock: FakeClock | str) -> FakeClock:
    """Return the clock that `FakeAsana` is given, or a new one of the kind it is given.

    Raises:
        ConfigurationError: *clock* is neither a clock nor ``frozen`` or ``running``.
    """
    if isinstance(clock, FakeClock):
        return clock
    if clock not in ("frozen", "running"):
        raise ConfigurationError(f"clock must be 'frozen', 'running' or a FakeClock, not {clock!r:.80}")
    return FakeClock(running=clock == "running")


def check_advance(seconds: Any) -> timedelta:
    """Check by how many seconds to advance a clock, and return the duration.

    Raises:
        ConfigurationError: *seconds* is not a number, or negative, or more than 366 days.
    """
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _LONGEST_ADVANCE:
        raise ConfigurationError(f"advance by 0 to {_LONGEST_ADVANCE} seconds (366 days), not by {seconds!r:.80}")
    return timedelta(seconds=seconds)


def format_time(moment: datetime) -> str:
    """Format *moment* as Asana does: UTC, milliseconds, ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
