"""What a receiver answers, and the short list of what can become of a request. Values only."""

import enum
from typing import Final

from attrs import field, frozen

from asana_webhooks.errors import RejectedError

__all__ = ["Outcome", "Reply", "refusal"]


@frozen(kw_only=True)
class Reply:
    """What to answer Asana. Its repr shows no headers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """What to send, raw: to a handshake the answer is its secret, so keep them out of logs."""
    body: bytes = b""
    """A fixed short text: Asana shows it to others as ``last_failure_content``."""
    close: bool = False
    """Whether the connection ends with this answer: what a refused peer goes on sending is not worth reading."""


class Outcome(enum.StrEnum):
    """What became of a request: the keys of `Receiver.counts`, and the reasons in the log."""

    ECHOED = "handshake echoed"
    STORED = "stored"
    QUARANTINED = "quarantined"
    """Stored, and dropped again if the 201 names another secret."""
    DUPLICATE = "duplicate"
    HEARTBEAT = "heartbeat"
    # Refused
    UNKNOWN = "unknown endpoint"
    CLOSED = "closed registration"
    ENCODED = "encoded body"
    MISFRAMED = "length and chunks both"
    TOO_LONG = "body too long"
    TOO_SLOW = "body too slow"
    CUT_OFF = "body cut off"
    MALFORMED = "malformed handshake"
    NOT_TAKEN = "handshake too late, or one of too many"
    UNSIGNED = "no signature"
    AMBIGUOUS = "several signatures"
    UNREADY = "no secret yet"
    FORGED = "wrong signature"
    # Asana shall send it again
    STOPPING = "stopping"
    CROWDED = "too much under way"
    FULL = "store full"
    UNAVAILABLE = "store unavailable"
    LATE = "not stored in time"

    @property
    def status(self) -> int:
        """The HTTP status it is answered with."""
        return _STATUSES.get(self, 200)


_STATUSES: Final = {
    Outcome.UNKNOWN: 404,
    Outcome.CLOSED: 404,
    Outcome.ENCODED: 415,
    Outcome.MISFRAMED: 400,
    Outcome.TOO_LONG: 413,
    Outcome.TOO_SLOW: 408,
    Outcome.CUT_OFF: 400,
    Outcome.MALFORMED: 400,
    Outcome.NOT_TAKEN: 401,
    Outcome.UNSIGNED: 401,
    Outcome.AMBIGUOUS: 401,
    Outcome.UNREADY: 401,
    Outcome.FORGED: 401,
    Outcome.STOPPING: 503,
    Outcome.CROWDED: 503,
    Outcome.FULL: 503,
    Outcome.UNAVAILABLE: 503,
    Outcome.LATE: 503,
}


def refusal(outcome: Outcome) -> RejectedError:
    """Return what to raise to refuse a request; 503 also means that Asana shall send it again."""
    return RejectedError(status=outcome.status, reason=outcome)
