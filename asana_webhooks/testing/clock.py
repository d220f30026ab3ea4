"""The fake's clock: frozen until a test turns it, or running beside the real one."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from asana_webhooks.errors import ConfigurationError

__all__ = ["FakeClock", "check_advance", "format_time"]

_LONGEST_ADVANCE = timedelta(days=366)
_MILLISECOND = timedelta(milliseconds=1)


class FakeClock:
    """The time in `FakeAsana`: for its timestamps, retries, heartbeats and offsets.

    Turn it with `FakeAsana.advance`, which also does everything that falls due on the way. A test that advances it
    past a lease or a retention period of the store lends it to the store: ``MemoryStore(clock=fake.clock.time)``.

    Args:
        start: the time it begins with, with a time zone; by default the present, in whole milliseconds.
        running: True to run at the speed of the real clock; False to stand still, but for the milliseconds of `tick`.
    """

    def __init__(self, *, start: datetime | None = None, running: bool = False) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigurationError("start must have a time zone: datetime(2026, 1, 2, tzinfo=UTC)")
        self.running = running
        self._shown = start or _whole_milliseconds(datetime.now(UTC))
        self._seen = time.monotonic()
        self._last_tick: datetime | None = None

    def now(self) -> datetime:
        """The time it shows."""
        if not self.running:
            return self._shown
        return self._shown + timedelta(seconds=time.monotonic() - self._seen)

    def time(self) -> float:
        """The same in seconds since 1970, to lend to whatever takes a function such as `time.time`."""
        return self.now().timestamp()

    def tick(self) -> datetime:
        """Return a millisecond of its own for one change: now, or the first one after that of the change before.

        A frozen clock moves on to it. A running one does not, so it never gets ahead of the real one: after many
        changes in one millisecond, the last ones lie a little in its future.
        """
        moment = _whole_milliseconds(self.now())
        if self._last_tick is not None:
            moment = max(moment, self._last_tick + _MILLISECOND)
        self._last_tick = moment
        if not self.running:
            self.move_to(moment)
        return moment

    def move_to(self, moment: datetime) -> None:
        """Turn it forward to *moment*; it never goes back. Nothing falls due by this alone: see `FakeAsana.advance`."""
        self._shown = max(moment, self.now())
        self._seen = time.monotonic()

    def __repr__(self) -> str:
        return f"<FakeClock {'running' if self.running else 'frozen'} at {format_time(self.now())}>"


def _whole_milliseconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


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
