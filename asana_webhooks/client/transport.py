"""One exchange over aiohttp: sent, counted, its answer read, and whatever aiohttp raises turned into an outcome."""

import asyncio
import logging
import platform
import re
import ssl as ssl_module
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from attrs import define, field
from yarl import URL

from asana_webhooks import __version__
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.requests import DeleteWebhookRequest, Request
from asana_webhooks.client.responses import changes_of, hide, outcome_of, secrets_of
from asana_webhooks.client.retry import Outcome
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

__all__ = [
    "DEFAULT_HEADERS",
    "Sendings",
    "Transport",
    "check_lent",
    "check_ssl",
    "problem_of",
    "read_body",
    "refusal_of",
]

DEFAULT_HEADERS: Final = {
    "User-Agent": f"asana-webhooks/{__version__}",
    "X-Asana-Client-Lib": urlencode(
        {
            "language": "Python",
            "language_version": platform.python_version(),
            "library": "asana-webhooks",
            "version": __version__,
        }
    ),
    "Accept": "application/json",
}
"""What says who we are, unless told otherwise. Asana's own clients send ``X-Asana-Client-Lib`` in this form."""

_MAX_ANSWER: Final = 2 * 1024 * 1024
"""Bytes of an answer's body, decompressed. A page of 100 full webhooks is about 0.1 MB; reading 2 MiB of the worst JSON
(filters without members, and an error at the end) holds the event loop up for a second or two."""
_MAX_REFUSAL: Final = 64 * 1024
"""Bytes of the body of an answer that says no."""
_REFUSAL_SECONDS: Final = 5.0
"""How long to wait for such a body, and never more than half of the time that is left: the status has said no."""
_MAX_CHANGES: Final = 100
"""Announced changes remembered. Asana announces a few; a server that sends ever new ones would fill memory and logs."""
_CHOICES: Final = ("asana-enable", "asana-disable")
"""Headers that choose a side of changes; nobody needs to be told of those."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/_-]*")
"""What looks in a URL as it looks here."""

_log = logging.getLogger(__name__)


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


class CountedPayload(aiohttp.BytesPayload):
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


@define(kw_only=True)
class Transport:
    """Where a session's requests go, and how."""

    http: aiohttp.ClientSession
    base_url: URL
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    """It may hold a password."""
    ssl: ssl_module.SSLContext | bool
    timeout: aiohttp.ClientTimeout
    _logged_changes: set[str] = field(factory=set, init=False, repr=False)

    async def exchange(self, request: Request[Any], token: Secret, sendings: Sendings, *, end: float) -> Outcome:
        """Send *request* once, as far as we can see, and return what it came to.

        Args:
            request: what to send.
            token: the access token.
            sendings: where to count how often it goes out.
            end: when it will be cancelled, in seconds of the event loop's clock.

        Raises:
            ConfigurationError: aiohttp refuses to send it.
        """
        body = _payload(request, sendings)
        content_type = {"Content-Type": "application/json"} if body is not None and body.size else {}
        before = sendings.count
        try:
            async with self.http.request(
                request.method,
                _url(self.base_url, request),
                data=body,
                headers={**self.headers, "Authorization": f"Bearer {token.reveal()}", **content_type},
                skip_auto_headers=None if body is None else ("Content-Type",),  # an empty body has none
                allow_redirects=False,  # a redirect could carry headers and body to another host
                raise_for_status=False,  # its error would hold the token
                proxy=self.proxy,
                ssl=self.ssl,
                timeout=self.timeout,
            ) as response:
                content = await _content(request, response, end)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            # aiohttp does this to those who wait for a connection when their session is closed.
            problem = "the http session was closed"
            return Outcome(kind="lost" if sendings.count > before else "not_sent", problem=problem)
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(kind="lost" if sendings.count > before else "not_sent", problem=problem_of(error))
        except (ValueError, RuntimeError, TypeError) as error:
            if sendings.count > before:
                return Outcome(kind="lost", problem=problem_of(error))
            refusal = refusal_of(error)
        else:
            return self._outcome(request, token, response, content)
        raise ConfigurationError(refusal)  # out here, or aiohttp's error would hang on it as its context

    def _outcome(
        self, request: Request[Any], token: Secret, response: aiohttp.ClientResponse, content: bytes | None
    ) -> Outcome:
        announced = response.headers.getall("Asana-Change", ())
        if announced:
            self._log_changes(announced)
        outcome = outcome_of(
            request,
            response.status,
            content,
            retry_after=response.headers.getall("Retry-After", ()),
            date=response.headers.get("Date"),
        )
        return hide(outcome, secrets_of(request, token.reveal())) if outcome.details else outcome

    def _log_changes(self, announced: Iterable[str]) -> None:
        chosen = ",".join(value for name, value in self.headers.items() if name.lower() in _CHOICES)
        known = self._logged_changes.union(name.strip() for name in chosen.split(","))
        for name, info in changes_of(announced).items():
            if name not in known and len(self._logged_changes) < _MAX_CHANGES:
                self._logged_changes.add(name)
                _log.warning(
                    "Asana announces the change %r, which affects these requests; read %r. To have it already, give "
                    "the session headers={'Asana-Enable': %r}; to put it off, 'Asana-Disable'",
                    name,
                    info,
                    name,
                )


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


def _payload(request: Request[Any], sendings: Sendings) -> CountedPayload | None:
    content = request.body()
    if content is None and isinstance(request, DeleteWebhookRequest):
        content = b""  # written like any other, and so counted; a GET is repeated whatever came of it
    return None if content is None else CountedPayload(content, sendings)


async def read_body(response: aiohttp.ClientResponse, *, most: int | None = None) -> bytes | None:
    """Return the whole body, or ``None`` if it was cut off or is too long; such a connection is not used again.

    Args:
        response: the answer.
        most: bytes it may have, decompressed; by default what any answer of the API may.
    """
    most = _MAX_ANSWER if most is None else most
    chunks, size = [], 0
    try:
        while not response.content.at_eof():
            chunk = await response.content.readany()
            size += len(chunk)
            if size > most:
                return None  # what is left unread ends the connection
            chunks.append(chunk)
    except (aiohttp.ClientError, OSError, RuntimeError):  # the last if the session is closed meanwhile
        return None
    return b"".join(chunks)


async def _content(request: Request[Any], response: aiohttp.ClientResponse, end: float) -> bytes | None:
    # What the status alone says, a body that never ends must not call into question.
    if not 200 <= response.status < 300:
        try:
            left = end - asyncio.get_running_loop().time()
            async with asyncio.timeout(min(_REFUSAL_SECONDS, left / 2)):
                return await read_body(response, most=_MAX_REFUSAL)
        except TimeoutError:
            return None
    if isinstance(request, DeleteWebhookRequest):
        return b""
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
