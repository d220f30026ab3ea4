"""What Asana answers: the envelopes and the real sentences.

Sources: https://developers.asana.com/docs/errors and https://developers.asana.com/docs/inputoutput-options
"""

import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from asana_webhooks import wire
from asana_webhooks.testing.texts import merge_headers

__all__ = ["JSON_TYPE", "STATUS_MESSAGES", "Answer", "ApiError", "error_answer"]

JSON_TYPE = "application/json; charset=UTF-8"

HELP = (
    "For more information on API status codes and how to handle them, read the docs on errors: "
    "https://developers.asana.com/docs/errors"
)

STATUS_MESSAGES: Mapping[int, str] = {
    400: "Bad request",
    401: "Not Authorized",
    402: "This feature is not available in the plan of this workspace.",
    403: "Forbidden",
    404: "No matching route for request",
    429: "You've made too many requests and hit a rate limit. Please retry after the given amount of time.",
    500: "Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
"""What an error says when nothing else is given."""


@frozen(kw_only=True)
class Answer:
    """One answer, ready to be sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=lambda: {"Content-Type": JSON_TYPE})

    @classmethod
    def of(cls, status: int, tree: Any, *, pretty: bool = False, headers: Mapping[str, str] | None = None) -> "Answer":
        """An answer with the JSON *tree* as its body."""
        body = json.dumps(tree, indent=2, ensure_ascii=False).encode() if pretty else wire.encode(tree)
        return cls(status=status, body=body, headers=merge_headers({"Content-Type": JSON_TYPE}, headers or {}))


class ApiError(Exception):
    """Asana's no to a request: raised wherever it is found out, answered in one place."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def error_answer(
    status: int, message: str, *, phrase: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Asana's error envelope with one entry."""
    detail = {"message": message, "help": HELP} | ({"phrase": phrase} if phrase is not None else {})
    return Answer.of(status, {"errors": [detail]}, headers=headers)
