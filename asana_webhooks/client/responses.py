"""What Asana's answers mean: status, headers and bytes in, an outcome or an error out. No await, no socket."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from attrs import evolve

from asana_webhooks import errors, wire
from asana_webhooks.client.requests import CreateWebhookRequest, Request
from asana_webhooks.client.retry import Outcome, parse_retry_after

__all__ = ["changes_of", "clean", "error_of", "hide", "outcome_of", "secrets_of", "unknown_outcome"]

_MOST_DETAILS: Final = 10
"""Errors read of one answer. Asana sends one or two; a page of thousands would flood a log."""

_BY_STATUS: dict[int, type[errors.ResponseError]] = {
    400: errors.BadRequestError,
    401: errors.NotAuthorizedError,
    402: errors.PaymentRequiredError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    429: errors.RateLimitedError,
}
_BY_REFUSAL: dict[str, type[errors.ResponseError]] = {
    "duplicate": errors.DuplicateWebhookError,
    "target": errors.TargetRejectedError,
}


def outcome_of(
    request: Request[Any], status: int, body: bytes | None, *, retry_after: Sequence[str] = (), date: str | None = None
) -> Outcome:
    """Read an answer.

    Args:
        request: what was asked.
        status: the answer's HTTP status.
        body: its whole body, or ``None`` if it was cut off or too long.
        retry_after: all its ``Retry-After`` headers.
        date: its ``Date`` header.
    """
    if not 200 <= status < 300:
        details = _error_details(body)
        return Outcome(
            kind="refused",
            status=status,
            details=details,
            retry_after=parse_retry_after(retry_after, date),
            refusal=_refusal(status, details) if isinstance(request, CreateWebhookRequest) else "",
            problem=f"Asana answered {status}",
        )
    if body is None:
        return Outcome(kind="garbled", status=status, malformed=True, problem="its body was cut off or far too long")
    try:
        return Outcome(kind="answered", status=status, answer=request.answer(body))
    except errors.PayloadError as error:
        return Outcome(kind="garbled", status=status, malformed=error.malformed, problem=str(error))


def changes_of(values: Iterable[str]) -> dict[str, str]:
    """Read the ``Asana-Change`` headers of an answer, such as ``name=string_ids;info=https://…;affected=true``.

    One header may hold several, with commas between them.

    Returns:
        the names of the changes that affect the request, and where Asana explains each.

    Source: https://developers.asana.com/docs/deprecations
    """
    changes = {}
    for text in ",".join(values).split(","):
        members = dict(_member(part) for part in text.split(";"))
        if members.get("name") and members.get("affected") == "true":
            changes[members["name"]] = members.get("info", "")
    return changes


def _member(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip().lower(), clean(value.strip()[:200], ()) or ""


def _error_details(body: bytes | None) -> tuple[wire.ErrorDetail, ...]:
    try:
        return wire.decode_error_details(body or b"")[:_MOST_DETAILS]
    except errors.PayloadError:  # a proxy's page, say: the status still tells enough
        return ()


def _refusal(status: int, details: Sequence[wire.ErrorDetail]) -> Literal["", "duplicate", "target"]:
    # 403 means a duplicate, a bad host, no access, and more; only the words tell them apart.
    # https://developers.asana.com/reference/createwebhook ("Invalid hostnames like localhost will receive a 403")
    text = " ".join(one.message or "" for one in details).lower()
    if status == 403 and "duplicated webhook" in text:
        return "duplicate"
    if status in (400, 403) and re.search(r"remote server|\btarget\b|hostname", text):
        return "target"
    return ""


def secrets_of(request: Request[Any], token: str) -> tuple[str, ...]:
    """Return what no text about *request* may show: the token, and for a create its target and endpoint.

    All of it also as it looks in a URL.
    """
    secrets = [token]
    if isinstance(request, CreateWebhookRequest):
        endpoint = request.target.partition("?")[0].rstrip("/").rpartition("/")[2]
        # A short one is no secret, and cutting it out would spoil the message.
        secrets += [request.target, endpoint] if len(endpoint) >= 16 else [request.target]
    return tuple(form for text in secrets for form in (text, quote(text, safe="")))


def hide(outcome: Outcome, secrets: Sequence[str]) -> Outcome:
    """Cut *secrets*, and whatever cannot be printed, out of the text Asana sent back."""
    details = tuple(
        wire.ErrorDetail(
            message=clean(one.message, secrets), help=clean(one.help, secrets), phrase=clean(one.phrase, secrets)
        )
        for one in outcome.details
    )
    return evolve(outcome, details=details) if details else outcome


def clean(text: str | None, secrets: Sequence[str]) -> str | None:
    """Cut *secrets*, and whatever cannot be printed, out of *text*, and shorten it."""
    if text is None:
        return None
    for secret in secrets:
        text = text.replace(secret, "***")
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])


def error_of(
    request: Request[Any], outcome: Outcome, *, attempts: int, timeout: float, time_left: float
) -> errors.AsanaError:
    """Return the error for an outcome that is not a success.

    Args:
        request: what was asked.
        outcome: what the last attempt came to.
        attempts: how many there were.
        timeout: seconds the whole call was allowed.
        time_left: seconds of it that are left.
    """
    problem = _unexpected(outcome)
    if problem:
        return errors.UnexpectedResponseError(
            operation=request.operation, status=outcome.status, attempts=attempts, problem=problem
        )
    if outcome.kind in ("refused", "paused"):
        return _response_error(request, outcome, attempts)
    if outcome.cause is not None:
        return outcome.cause
    if time_left <= 0:
        return errors.DeadlineExceededError(
            operation=request.operation, attempts=attempts, problem=outcome.problem, timeout=timeout
        )
    return errors.ConnectionFailedError(operation=request.operation, attempts=attempts, problem=outcome.problem)


def _unexpected(outcome: Outcome) -> str:
    if outcome.kind == "garbled":
        return outcome.problem
    if outcome.kind == "refused" and 300 <= outcome.status < 400:
        return "it is a redirect, and redirects are never followed"
    if outcome.kind == "refused" and not 200 <= outcome.status < 600:
        return "HTTP has no such final status"
    return ""


def unknown_outcome(
    request: Request[Any], outcome: Outcome, *, attempts: int, sent_at: datetime
) -> errors.CreateOutcomeUnknownError:
    """Return the error for a create request of which nobody knows whether it was executed."""
    assert isinstance(request, CreateWebhookRequest)  # noqa: S101 - `decide` says unknown for no other
    said = "; ".join(one.message for one in outcome.details if one.message)
    return errors.CreateOutcomeUnknownError(
        operation=request.operation,
        attempts=attempts,
        problem=f"{outcome.problem}: {said}" if said else outcome.problem,
        target=request.target,
        sent_at=sent_at,
    )


def _response_error(request: Request[Any], outcome: Outcome, attempts: int) -> errors.ResponseError:
    messages = tuple(one.message for one in outcome.details if one.message)
    by_status = _BY_STATUS.get(outcome.status, errors.ServerError if outcome.status >= 500 else errors.ResponseError)
    kind = _BY_REFUSAL.get(outcome.refusal, by_status)
    return kind(
        operation=request.operation,
        status=outcome.status,
        messages=messages,
        help=next((one.help for one in outcome.details if one.help), None),
        phrase=next((one.phrase for one in outcome.details if one.phrase), None),
        attempts=attempts,
        retry_after=outcome.retry_after,
    )
