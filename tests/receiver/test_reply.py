"""What can become of a request, and with which status it is answered."""

import pytest

from asana_webhooks import RejectedError, Reply
from asana_webhooks.receiver.reply import Outcome, refusal

STATUSES = {
    "handshake echoed": 200,
    "stored": 200,
    "quarantined": 200,
    "duplicate": 200,
    "heartbeat": 200,
    "unknown endpoint": 404,
    "closed registration": 404,
    "encoded body": 415,
    "length and chunks both": 400,
    "body too long": 413,
    "body too slow": 408,
    "body cut off": 400,
    "malformed handshake": 400,
    "handshake too late, or one of too many": 401,
    "no signature": 401,
    "several signatures": 401,
    "no secret yet": 401,
    "wrong signature": 401,
    "stopping": 503,
    "too much under way": 503,
    "store full": 503,
    "store unavailable": 503,
    "not stored in time": 503,
}


def test_every_outcome_has_its_status() -> None:
    """Success is 200, what cannot be proven is 401, and what Asana shall send again is 503."""
    assert {str(one): one.status for one in Outcome} == STATUSES


@pytest.mark.parametrize("outcome", [one for one in Outcome if one.status != 200])
def test_a_refusal_says_why(outcome: Outcome) -> None:
    """The error carries the status, and the outcome as its reason."""
    error = refusal(outcome)

    assert isinstance(error, RejectedError)
    assert (error.status, error.reason) == (STATUSES[outcome], outcome)


def test_a_reply_shows_no_headers() -> None:
    """They may hold a secret."""
    assert "s3cret" not in repr(Reply(status=200, headers=((b"X-Hook-Secret", b"s3cret"),)))
