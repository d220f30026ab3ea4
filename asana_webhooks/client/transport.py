"""One HTTP exchange over aiohttp: send, count, read the answer, turn aiohttp's errors into an outcome."""

import asyncio
import logging
import platform
import re
import ssl as ssl_module
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from traceback import walk_tb
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from attrs import define, field, frozen
from yarl import URL

from asana_webhooks import __version__
from asana_webhooks._checks import check_proxy
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.requests import CreateWebhookRequest, DeleteWebhookRequest, Request
from asana_webhooks.client.responses import changes_of, hide, outcome_of, secrets_of
from asana_webhooks.client.retry import Outcome
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

__all__ = [
    "DEFAULT_HEADERS",
    "PROXY_REFUSAL",
    "HttpSettings",
    "SendLog",
    "Transport",
    "is_proxy_refusal",
    "problem_of",
    "read_body",
    "refusal_of",
    "was_connecting",
]

DEFAULT_HEADERS: Final[dict[str, str]] = {
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
"""Headers sent unless the user replaces them. Asana's own clients send ``X-Asana-Client-Lib`` in this form."""

PROXY_REFUSAL: Final = (
    "the proxy answered 407: it refused the user and password, or needs them; set them in the proxy's URL, such as "
    "proxy='http://user:password@proxy.example:3128'. The request is not repeated, because that may lock the account"
)
"""Why a request ended whose proxy answered 407, and what to do."""

_TWO_LOGINS: Final = (
    "other credentials for the same host conflict with the token: remove the host from the .netrc file, or use proxy= "
    "instead of trust_env"
)
_MAX_ANSWER: Final = 2 * 1024 * 1024
"""Largest body of an answer in bytes, decompressed. A page of 100 full webhooks is about 0.1 MB. Parsing 2 MiB of the
worst JSON (filters without members, and an error at the end) blocks the event loop for 1 to 2 seconds."""
_MAX_REFUSAL: Final = 64 * 1024
"""Largest body of an answer outside 2xx, in bytes."""
_REFUSAL_SECONDS: Final = 5.0
"""Longest wait for such a body; at most half of the time left, because the status alone decides the error."""
_MAX_CHANGES: Final = 100
"""Maximum number of announced changes remembered, so that an endless series cannot fill memory and logs."""
_CHOICES: Final = ("asana-enable", "asana-disable")
"""Headers that opt in to or out of changes; the changes they name are not logged."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/_-]*")
"""Paths that need no URL encoding."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class HttpSettings:
    """How requests leave this machine: the arguments of `AsanaSession` and `OAuthToken` that have these names."""

    http: aiohttp.ClientSession | None = None
    proxy: str | None = field(default=None, repr=False)  # may contain a password
    ssl: ssl_module.SSLContext | bool = True
    trust_env: bool = False

    @classmethod
    def of(cls, http: object, proxy: str | None, ssl: object, *, trust_env: bool) -> Self:
        """Return the settings a user gives.

        Raises:
            ConfigurationError: one has the wrong type, or cannot work here.
        """
        if http is not None:
            if not isinstance(http, aiohttp.ClientSession):
                raise ConfigurationError(f"http must be an aiohttp.ClientSession, not {type(http).__name__}")
            if http.auth is not None:
                raise ConfigurationError(
                    "the session passed as http= has auth=, which conflicts with the token; remove it"
                )
            if not http.auto_decompress:
                raise ConfigurationError(
                    "the session passed as http= has auto_decompress=False; pass one that decompresses"
                )
            if trust_env:
                raise ConfigurationError("trust_env cannot be combined with http=; set it on the session passed there")
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError("ssl must be an ssl.SSLContext; verification cannot be switched off")
        return cls(http=http, proxy=check_proxy(proxy), ssl=True if ssl is None else ssl, trust_env=trust_env)


@define
class SendLog:
    """What is known about the sending of a call's latest attempt."""

    sent_at: datetime = _NEVER
    """When it was handed to aiohttp; noted of creates only."""
    maybe_sent: bool = False
    """Whether Asana may have got it."""


class CountedBody(aiohttp.BytesPayload):
    """The empty body of a DELETE, which counts how often aiohttp writes it.

    aiohttp silently sends a DELETE again when its connection breaks. The first copy may have worked, and then the
    second is answered 404.
    """

    writes = 0

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self.writes += 1
        await super().write_with_length(writer, content_length)


@define(kw_only=True)
class Transport:
    """Sends one session's requests over aiohttp."""

    http: aiohttp.ClientSession
    base_url: URL
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    """The proxy's URL; it may contain a password."""
    ssl: ssl_module.SSLContext | bool
    timeout: aiohttp.ClientTimeout
    lent: bool = False
    """Whether *http* is the user's own."""
    _logged_changes: set[str] = field(factory=set, init=False, repr=False)

    async def exchange(self, request: Request[Any], token: Secret, sends: SendLog, *, end: float) -> Outcome:
        """Send *request* once (aiohttp may silently repeat it, unless it is a create) and return the outcome.

        Args:
            request: what to send.
            token: the access token.
            sends: notes when it is sent, and whether Asana may have got it, also if this is cancelled.
            end: when it will be cancelled, in seconds of the event loop's clock.

        Raises:
            ConfigurationError: aiohttp, or what stands in for it, fails unexpectedly, or a proxy answers 407.
        """
        body = _payload(request)
        content_type = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        sends.maybe_sent = True
        if isinstance(request, CreateWebhookRequest):
            sends.sent_at = datetime.now(UTC)
        try:
            async with self.http.request(
                request.method,
                _url(self.base_url, request),
                data=body,
                headers={**self.headers, "Authorization": f"Bearer {token.reveal()}", **content_type},
                skip_auto_headers=None if body is None else ("Content-Type",),  # no Content-Type without content
                allow_redirects=False,  # a redirect could carry headers and body to another host
                raise_for_status=False,  # its error would contain the token
                proxy=self.proxy,
                ssl=self.ssl,
                timeout=self.timeout,
            ) as response:
                content = await _content(request, response, end)
        except asyncio.CancelledError as error:
            sends.maybe_sent = self._maybe_sent(body, error)
            if is_being_cancelled():
                raise
            # Closing an aiohttp session cancels requests that wait for a connection.
            problem, refusal = "the http session was closed", ""
        except Exception as error:  # noqa: BLE001 - what stands in for the network may raise anything, with the token in it
            sends.maybe_sent = self._maybe_sent(body, error)
            problem, refusal = self._failure(request, error, maybe_sent=sends.maybe_sent)
        else:
            repeated = isinstance(body, CountedBody) and body.writes > 1
            return self._outcome(request, token, response, content, repeated=repeated)
        if refusal:  # raised here, so that aiohttp's error does not become its context
            raise ConfigurationError(refusal)
        return Outcome(kind="lost" if sends.maybe_sent else "not_sent", problem=problem)

    def _maybe_sent(self, body: "bytes | CountedBody | None", error: BaseException) -> bool:
        # A middleware of the user's session may have sent the request before the one that failed to connect, and so
        # may aiohttp with a DELETE.
        if body.writes if isinstance(body, CountedBody) else self.lent and getattr(self.http, "_middlewares", False):
            return True
        return not was_connecting(error)

    def _failure(self, request: Request[Any], error: Exception, *, maybe_sent: bool) -> tuple[str, str]:
        """Return what went wrong and, if that ends the call, what the user has to mend."""
        if is_proxy_refusal(error):
            return "", PROXY_REFUSAL
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return problem_of(error), ""
        refusal = refusal_of(error, lent=self.lent)
        # Such an error ends any call, but may have come after a create was sent; a login in .netrc is found before.
        is_unknown = maybe_sent and isinstance(request, CreateWebhookRequest) and refusal != _TWO_LOGINS
        return (refusal, "") if is_unknown else ("", refusal)

    def _outcome(
        self,
        request: Request[Any],
        token: Secret,
        response: aiohttp.ClientResponse,
        content: bytes | None,
        *,
        repeated: bool,
    ) -> Outcome:
        if response.status == 407:
            raise ConfigurationError(PROXY_REFUSAL)
        announced = response.headers.getall("Asana-Change", ())
        if announced:
            self._log_changes(announced)
        said: dict[str, Any] = {}
        if not response.ok:
            said = {"retry_after": response.headers.getall("Retry-After", ()), "date": response.headers.get("Date")}
        outcome = outcome_of(request, response.status, content, **said)
        outcome.repeated = repeated
        return hide(outcome, secrets_of(request, token.reveal())) if outcome.details else outcome

    def _log_changes(self, announced: Iterable[str]) -> None:
        chosen = ",".join(value for name, value in self.headers.items() if name.lower() in _CHOICES)
        known = self._logged_changes.union(name.strip() for name in chosen.split(","))
        for name, info in changes_of(announced).items():
            if name not in known and len(self._logged_changes) < _MAX_CHANGES:
                self._logged_changes.add(name)
                _log.warning(
                    "Asana announces the change %r, which affects these requests; see %r. To opt in now, give the "
                    "session headers={'Asana-Enable': %r}; to opt out for now, use 'Asana-Disable'",
                    name,
                    info,
                    name,
                )


def _url(base_url: URL, request: Request[Any]) -> URL:
    query, path = request.query(), request.path
    if not _PLAIN_PATH.fullmatch(path):  # only a user's own requests have such paths
        return URL(f"{base_url}".rstrip("/") + path).with_query(query)
    # An offset is used once, so it is not cached.
    asked = base_url.with_query(query) if "offset" in query else _asked(base_url, tuple(query.items()))
    return asked.with_path(base_url.raw_path.rstrip("/") + path, encoded=True, keep_query=True)


@lru_cache(maxsize=64)
def _asked(base_url: URL, query: tuple[tuple[str, str], ...]) -> URL:
    # Encoding the query and parsing the host for every request took 10 µs of CPU time; the cache takes 2 µs.
    return base_url.with_query(query)


def _payload(request: Request[Any]) -> bytes | CountedBody | None:
    return CountedBody(b"") if isinstance(request, DeleteWebhookRequest) else request.body()


async def read_body(response: aiohttp.ClientResponse, *, most: int | None = None) -> bytes | None:
    """Return the whole body, or ``None`` if it was cut off or is too long; then the connection is not reused.

    Args:
        response: the answer.
        most: the largest body in bytes, decompressed; by default 2 MiB.
    """
    most = _MAX_ANSWER if most is None else most
    chunks, size = [], 0
    try:
        while not response.content.at_eof():
            chunk = await response.content.readany()
            size += len(chunk)
            if size > most:
                return None  # the unread rest closes the connection
            chunks.append(chunk)
    except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: the session was closed
        return None
    return b"".join(chunks)


async def _content(request: Request[Any], response: aiohttp.ClientResponse, end: float) -> bytes | None:
    # The status decides the error; an endless body must not turn it into a timeout.
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
    """Describe *error* in our own words: aiohttp's errors contain the whole request, token included."""
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
        aiohttp.ServerDisconnectedError: "the connection was closed before an answer arrived",
        aiohttp.ClientOSError: "the connection was reset",
        aiohttp.ConnectionTimeoutError: "connecting timed out",
        aiohttp.ClientResponseError: "the answer is not valid HTTP",
    }.get(type(error), f"the request failed with {type(error).__name__}")


def is_proxy_refusal(error: Exception) -> bool:
    """Return whether a proxy answered 407 to CONNECT. Without a tunnel, 407 is the status of the answer itself."""
    return isinstance(error, aiohttp.ClientHttpProxyError) and error.status == 407


def was_connecting(error: BaseException) -> bool:
    """Return whether *error* proves that there was no connection yet, and so nothing was sent over it.

    That is the case for aiohttp's errors of connecting, and for any error or cancellation that was raised while aiohttp
    made a connection: DNS, TCP, TLS, a proxy's answer to CONNECT, or waiting for a connection of the pool.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    # A tracer of the user's session may itself fail to connect elsewhere, after the request was sent.
    if any(frame.f_globals.get("__name__") == "aiohttp.tracing" for frame in frames):
        return False
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)):
        return True
    connect = aiohttp.BaseConnector.connect.__code__
    return any(frame.f_code is connect for frame in frames)


def refusal_of(error: Exception, *, lent: bool = False) -> str:
    """Describe an error of an unknown type that ends a request: its type, and where it was raised.

    Its own message is not shown: it may quote the request.

    Args:
        error: what was raised by aiohttp, or by what stands in for it.
        lent: whether the user passed the http session.
    """
    if f"{error}".startswith("Cannot combine AUTHORIZATION header"):
        return _TWO_LOGINS
    *_, (frame, _) = walk_tb(error.__traceback__)
    where = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    advice = "; the session passed as http= must be open, and created in the event loop that uses it" if lent else ""
    return f"sending the request failed with {type(error).__name__}, raised in {where}{advice}"
