"""The gate that a 429 shuts for all calls of a session, because Asana counts requests by token. No await, no clock.

Source: https://developers.asana.com/docs/rate-limits
"""

from collections.abc import Callable

from attrs import define, field, frozen

from asana_webhooks.client.retry import Outcome
from asana_webhooks.wire import ErrorDetail

__all__ = ["Gate", "Pause"]


@frozen(eq=False)
class Pause:
    """A time in which no call may send."""

    until: float
    details: tuple[ErrorDetail, ...]
    """What Asana said with the 429."""


@define
class Gate:
    """Open, until a 429 shuts it for a while."""

    clock: Callable[[], float]
    """Tells seconds, of any beginning."""
    pause: Pause | None = field(default=None, init=False)
    """The last one, or the one that goes on."""

    def shut(self, seconds: float, refusal: Outcome) -> None:
        """Let nothing pass for that many seconds, because of *refusal*; a longer pause that began before stands."""
        until = self.clock() + seconds
        if seconds > 0 and (self.pause is None or until > self.pause.until):
            self.pause = Pause(until, refusal.details)

    def sat_out(self, seconds: float) -> Pause | None:
        """Return the pause that is over after *seconds* from now, if one goes on."""
        return None if self.left() > seconds else self.pause

    def left(self) -> float:
        """Return the seconds that are left of the pause; 0 if there is none."""
        return 0.0 if self.pause is None else max(self.pause.until - self.clock(), 0.0)

    def holds(self, over: Pause | None = None) -> Outcome | None:
        """Return what comes of a call that wants to send now: ``None`` if it may.

        Args:
            over: a pause that the call has waited for already; it does not hold it again, whatever the clock says.
        """
        left = self.left()
        if self.pause is None or self.pause is over or not left:
            return None
        return Outcome(
            kind="held",
            status=429,
            retry_after=left,
            details=self.pause.details,
            problem="Asana answered 429 to another call of this session",
        )
