"""Interpret Asana's answers: status, headers and body in, an outcome or an error out. No await, no socket."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote, unquote, unquote_plus

from attrs import evolve

from asana_webhooks import errors, wire
from asana_webhooks.client.requests import CreateWebhookRequest, Request
from asana_webhooks.client.retry import Outcome, parse_retry_after

__all__ = ["NO_ROUTE", "changes_of", "clean", "error_of", "hide", "outcome_of", "secrets_of", "unknown_outcome"]

_MOST_DETAILS: Final = 10
"""Maximum number of errors read from one answer. Asana sends one or two; thousands would flood a log."""

NO_ROUTE: Final = "No matching route for request"
"""Asana's message in a 404 for a path that does not exist for any gid."""

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
    """Return the outcome of an answer.

    Args:
        request: the request that was sent.
        status: the answer's HTTP status.
        body: its whole body, or ``None`` if it was cut off or too long.
        retry_after: all its ``Retry-After`` headers.
        date: its ``Date`` header.
    """
    if not 200 <= status < 300:
        said = _error_answer(body)
        details = said.errors[:_MOST_DETAILS]
        return Outcome(
            kind="refused",
            status=status,
            details=details,
            sync=said.sync if isinstance(said.sync, str) else None,
            retry_after=parse_retry_after(retry_after, date),
            refusal=_refusal(status, details) if isinstance(request, CreateWebhookRequest) else "",
            problem=f"Asana answered {status}",
        )
    if body is None:
        return Outcome(kind="garbled", status=status, malformed=True, problem="its body was cut off or too long")
    try:
        return Outcome(kind="answered", status=status, answer=request.answer(body))
    except errors.PayloadError as error:
        return Outcome(kind="garbled", status=status, malformed=error.malformed, problem=str(error))


def changes_of(values: Iterable[str]) -> dict[str, str]:
    """Read the ``Asana-Change`` headers of an answer, such as ``name=string_ids;info=https://…;affected=true``.

    One header may hold several, with commas between them.

    Returns:
        The name of each change that affects the request, with Asana's page about it.

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


def _error_answer(body: bytes | None) -> wire.ErrorAnswer:
    try:
        return wire.decode_error(body or b"")
    except errors.PayloadError:  # a proxy's error page, for example; the status is enough
        return wire.ErrorAnswer()


def _refusal(status: int, details: Sequence[wire.ErrorDetail]) -> Literal["", "duplicate", "target"]:
    # 403 can mean a duplicate, a bad host, no access, and more; only the text distinguishes them.
    # https://developers.asana.com/reference/createwebhook ("Invalid hostnames like localhost will receive a 403")
    text = " ".join(one.message or "" for one in details).lower()
    if status == 403 and "duplicated webhook" in text:
        return "duplicate"
    if status in (400, 403) and re.search(r"remote server|\btarget\b|hostname", text):
        return "target"
    return ""


def secrets_of(request: Request[Any], token: str) -> tuple[str, ...]:
    """Return the strings that no message about *request* may show: the token, and of a create the target and its parts.

    These are the endpoint, the query and the query's values, or names without a value. Forms of each that are decoded,
    URL-encoded, or both in turn are included.
    """
    secrets = [token]
    if isinstance(request, CreateWebhookRequest):
        path, _, query = request.target.partition("?")
        endpoint = path.rstrip("/").rpartition("/")[2]
        values = [member.partition("=")[2] or member for member in query.split("&")]
        # A short endpoint or value is no secret, and removing it would garble the message.
        secrets += [request.target, *[endpoint] * (len(endpoint) >= 16)]
        secrets += [one for one in (query, *values) if len(one) >= 5]
    texts = [form for text in secrets for form in (text, unquote(text), unquote_plus(text))]
    return tuple(form for text in texts for form in (text, quote(text, safe="")))


def hide(outcome: Outcome, secrets: Sequence[str]) -> Outcome:
    """Remove *secrets* and unprintable characters from Asana's error details."""
    details = tuple(
        wire.ErrorDetail(
            message=clean(one.message, secrets),
            help=clean(one.help, secrets),
            phrase=clean(one.phrase, secrets),
            error=clean(one.error, secrets) if isinstance(one.error, str) else None,
        )
        for one in outcome.details
    )
    return evolve(outcome, details=details) if details else outcome


def clean(text: str | None, secrets: Sequence[str]) -> str | None:
    """Remove *secrets*, in any case, and unprintable characters from *text*, and cut it to 500 characters."""
    if text is None:
        return None
    for secret in secrets:
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)  # %2f and %2F are the same
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])


def error_of(
    request: Request[Any], outcome: Outcome, *, attempts: int, timeout: float, time_left: float, base_url: str = ""
) -> errors.AsanaError:
    """Return the error for an outcome that is not a success.

    Args:
        request: the request that was sent.
        outcome: the outcome of the last attempt.
        attempts: how many attempts were made.
        timeout: the call's timeout in seconds.
        time_left: seconds until the call's deadline.
        base_url: the session's base URL.
    """
    problem = _unexpected(outcome)
    if problem:
        return errors.UnexpectedResponseError(
            operation=request.operation, status=outcome.status, attempts=attempts, problem=problem
        )
    if outcome.kind in ("refused", "paused"):
        return _response_error(request, outcome, attempts, base_url)
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
        return "it is a redirect; redirects are not followed"
    if outcome.kind == "refused" and not 200 <= outcome.status < 600:
        return "not a final HTTP status"
    return ""


def unknown_outcome(
    request: Request[Any], outcome: Outcome, *, attempts: int, sent_at: datetime
) -> errors.CreateOutcomeUnknownError:
    """Return the error for a create request that may or may not have been executed."""
    assert isinstance(request, CreateWebhookRequest)  # noqa: S101 - `decide` returns unknown for creates only
    said = "; ".join(one.message for one in outcome.details if one.message)
    return errors.CreateOutcomeUnknownError(
        operation=request.operation,
        attempts=attempts,
        problem=f"{outcome.problem}: {said}" if said else outcome.problem,
        target=request.target,
        sent_at=sent_at,
    )


def _response_error(request: Request[Any], outcome: Outcome, attempts: int, base_url: str) -> errors.ResponseError:
    messages = tuple(one.message for one in outcome.details if one.message)
    by_status = _BY_STATUS.get(outcome.status, errors.ServerError if outcome.status >= 500 else errors.ResponseError)
    kind = _BY_REFUSAL.get(outcome.refusal, by_status)
    extra: dict[str, Any] = {}
    if kind is errors.NotFoundError and (not messages or NO_ROUTE in messages):
        extra["base_url"] = base_url
    return kind(
        operation=request.operation,
        status=outcome.status,
        messages=messages,
        help=next((one.help for one in outcome.details if one.help), None),
        phrase=next((one.phrase for one in outcome.details if one.phrase), None),
        code=next((one.error for one in outcome.details if isinstance(one.error, str) and one.error), None),
        sync=outcome.sync,
        attempts=attempts,
        retry_after=outcome.retry_after,
        **extra,
    )
