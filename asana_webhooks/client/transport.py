"""One request over aiohttp: sent, counted, its answer read, and whatever aiohttp raises turned into an outcome."""

import asyncio
import io
import re
import ssl as ssl_module
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from attrs import define, field, frozen
from yarl import URL

from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.requests import DeleteWebhookRequest, Request
from asana_webhooks.client.responses import hide, outcome_of, secrets_of
from asana_webhooks.client.retry import Outcome
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

__all__ = ["Line", "Sendings", "check_lent", "check_ssl", "exchange", "problem_of", "read_body", "refusal_of"]

_MAX_ANSWER: Final = 2 * 1024 * 1024
"""Bytes of an answer's body, decompressed. A page of 100 full webhooks is about 0.1 MB; reading 2 MiB of the worst JSON
(filters without members, and an error at the end) holds the event loop up for a second or two."""
_MAX_REFUSAL: Final = 64 * 1024
"""Bytes of the body of an answer that says no."""
_REFUSAL_SECONDS: Final = 5.0
"""How long to wait for such a body, and never more than half of the time that is left: the status has said no."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/_-]*")
"""What looks in a URL as it looks here."""


@frozen(kw_only=True)
class Line:
    """Where a session's requests go, and how."""

    http: aiohttp.ClientSession
    base_url: URL
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    """It may hold a password."""
    ssl: ssl_module.SSLContext | bool
    timeout: aiohttp.ClientTimeout
    note_changes: Callable[[Sequence[str]], None]
    """Told the ``Asana-Change`` headers of an answer that has some."""


@define
class Sendings:
    """How often the requests of one call went out."""

    count: int = 0
    last: datetime = _NEVER
    """When the last body did, or was about to; a request without one leaves no trace here."""

    def note(self) -> None:
        """Count one more, now."""
        self.count += 1
        self.last = datetime.now(UTC)


class _Body(aiohttp.BytesPayload):
    """A body that counts how often it is sent.

    aiohttp asks for it once there is a connection, and again when it silently repeats a PUT or DELETE because a
    kept-alive connection broke. So nothing was sent while the count stands still, on lent sessions too.
    """

    def __init__(self, body: bytes, sendings: Sendings) -> None:
        super().__init__(body)
        self._sendings = sendings
        self._sendings.last = datetime.now(UTC)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._sendings.note()
        await super().write_with_length(writer, content_length)


async def exchange(line: Line, request: Request[Any], token: Secret, sendings: Sendings, *, end: float) -> Outcome:
    """Send *request* once, as far as we can see, and return what it came to.

    No text that must stay secret is bound to a name here, where a traceback would show it.

    Args:
        line: where and how to send it.
        request: what to send.
        token: the access token.
        sendings: where to count how often it goes out.
        end: when it will be cancelled, in seconds of the event loop's clock.

    Raises:
        ConfigurationError: aiohttp refuses to send it.
    """
    body = _body(request, sendings)
    before = sendings.count
    try:
        async with line.http.request(
            request.method,
            _url(line.base_url, request),
            data=body,
            headers=_headers(line, body, token),
            skip_auto_headers=None if body is None else ("Content-Type",),  # an empty body has none
            allow_redirects=False,  # a redirect could carry headers and body to another host
            raise_for_status=False,  # its error would hold the token
            proxy=line.proxy,
            ssl=line.ssl,
            timeout=line.timeout,
        ) as response:
            content = await _content(request, response, end)
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        # aiohttp does this to those who wait for a connection when their session is closed.
        return Outcome(kind="lost" if sendings.count > before else "not_sent", problem="the http session was closed")
    except (aiohttp.ClientError, OSError) as error:
        return Outcome(kind="lost" if sendings.count > before else "not_sent", problem=problem_of(error))
    except (ValueError, RuntimeError, TypeError) as error:
        if sendings.count > before:
            return Outcome(kind="lost", problem=problem_of(error))
        refusal = refusal_of(error)
    else:
        return _outcome(line, request, token, response, content)
    raise ConfigurationError(refusal)  # out here, or aiohttp's error would hang on it as its context


def _url(base_url: URL, request: Request[Any]) -> URL:
    query, path = request.query(), request.path
    if not _PLAIN_PATH.fullmatch(path):  # only those of somebody's own need more
        return URL(f"{base_url}".rstrip("/") + path).with_query(query)
    # An offset is asked for once, and no cache needs to hold it.
    asked = base_url.with_query(query) if "offset" in query else _asked(base_url, tuple(query.items()))
    return asked.with_path(base_url.raw_path.rstrip("/") + path, encoded=True, keep_query=True)


@lru_cache(maxsize=64)
def _asked(base_url: URL, query: tuple[tuple[str, str], ...]) -> URL:
    # To encode the query and take the host apart for every request took 10 µs of CPU time, and this takes 2.
    return base_url.with_query(query)


def _headers(line: Line, body: "_Body | None", token: Secret) -> dict[str, str]:
    content_type = {"Content-Type": "application/json"} if body is not None and body.size else {}
    return {**line.headers, "Authorization": f"Bearer {token.reveal()}", **content_type}


def _outcome(
    line: Line, request: Request[Any], token: Secret, response: aiohttp.ClientResponse, content: io.BytesIO | None
) -> Outcome:
    changes = response.headers.getall("Asana-Change", ())
    if changes:
        line.note_changes(changes)
    outcome = outcome_of(
        request,
        response.status,
        None if content is None else content.getvalue(),
        retry_after=response.headers.getall("Retry-After", ()),
        date=response.headers.get("Date"),
    )
    return hide(outcome, secrets_of(request, token.reveal())) if outcome.details else outcome


def _body(request: Request[Any], sendings: Sendings) -> _Body | None:
    content = request.body()
    if content is None and isinstance(request, DeleteWebhookRequest):
        content = b""  # written like any other, and so counted; a GET is repeated whatever came of it
    return None if content is None else _Body(content, sendings)


async def read_body(response: aiohttp.ClientResponse, *, most: int | None = None) -> io.BytesIO | None:
    """Return the whole body, or ``None`` if it was cut off or is too long; such a connection is not used again.

    Args:
        response: the answer.
        most: bytes it may have, decompressed; by default what any answer of the API may.
    """
    most = _MAX_ANSWER if most is None else most
    body = io.BytesIO()  # unlike bytes, it shows no secret in a traceback's locals
    try:
        while not response.content.at_eof():
            body.write(await response.content.readany())
            if body.tell() > most:
                return None  # what is left unread ends the connection
    except (aiohttp.ClientError, OSError, RuntimeError):  # the last if the session is closed meanwhile
        return None
    return body


async def _content(request: Request[Any], response: aiohttp.ClientResponse, end: float) -> io.BytesIO | None:
    # What the status alone says, a body that never ends must not call into question.
    if not 200 <= response.status < 300:
        try:
            left = end - asyncio.get_running_loop().time()
            async with asyncio.timeout(min(_REFUSAL_SECONDS, left / 2)):
                return await read_body(response, most=_MAX_REFUSAL)
        except TimeoutError:
            return None
    if isinstance(request, DeleteWebhookRequest):
        return io.BytesIO()
    return await read_body(response)


def problem_of(error: Exception) -> str:
    """Say what went wrong in words of our own: aiohttp's errors hold the whole request, token included."""
    match error:
        case aiohttp.ClientConnectorCertificateError(host=host, port=port, certificate_error=refusal):
            reason = getattr(refusal, "verify_message", None) or type(refusal).__name__
            return f"the certificate of {host}:{port} was refused: {reason}"[:300]
        case aiohttp.ClientConnectorError(host=host, port=port, os_error=failure):
            proxy = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
            reason = failure.strerror or f"{failure}" or type(failure).__name__
            return f"cannot connect to {proxy}{host}:{port}: {reason}"[:300]
        case aiohttp.ClientHttpProxyError(status=status):
            return f"the proxy answered {status} instead of connecting"
    return {
        aiohttp.ServerDisconnectedError: "the connection was closed before an answer came",
        aiohttp.ClientOSError: "the connection was reset",
        aiohttp.ConnectionTimeoutError: "no connection could be made in time",
        aiohttp.ClientResponseError: "what came back is not HTTP",
    }.get(type(error), f"the exchange failed with {type(error).__name__}")


def refusal_of(error: Exception) -> str:
    """Say why aiohttp refuses to send. Its own words are not shown: they may quote what was to be sent."""
    if "AUTHORIZATION" in str(error):
        return (
            "the token cannot go with other credentials for the same host: remove the host from the .netrc file, or "
            "do without trust_env (proxy= names a proxy)"
        )
    return (
        f"aiohttp refused to send the request ({type(error).__name__}); a lent http session must be open, and made in "
        "the event loop that uses it"
    )


def check_lent(http: object) -> None:
    """Check an http session that somebody lends us.

    Raises:
        ConfigurationError: it is none, or we could not work with it.
    """
    if not isinstance(http, aiohttp.ClientSession):
        raise ConfigurationError(f"http must be an aiohttp.ClientSession, not {type(http).__name__}")
    if http.auth is not None:
        raise ConfigurationError("the lent http session has auth=, which cannot go with a token; lend one without")
    if not http.auto_decompress:
        raise ConfigurationError("the lent http session has auto_decompress=False: answers could not be read")


def check_ssl(ssl: object) -> ssl_module.SSLContext | bool:
    """Return what aiohttp wants for a session's *ssl* argument.

    Raises:
        ConfigurationError: it is neither ``None`` nor a context.
    """
    if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
        raise ConfigurationError("ssl must be an ssl.SSLContext; verification cannot be switched off")
    return True if ssl is None else ssl
