"""The one way out to Asana: a session around aiohttp that asks the token, sends, reads, and repeats by the verdict."""

import asyncio
import logging
import os
import ssl as ssl_module
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import aiohttp
from yarl import URL

from asana_webhooks.client.answers import error_of, hide, outcome_of, unknown_outcome
from asana_webhooks.client.auth import TokenProvider, check_token, token_provider
from asana_webhooks.client.requests import CreateWebhookRequest, DeleteWebhookRequest, Request
from asana_webhooks.client.retry import Outcome, RetryPolicy, verdict
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.version import __version__

__all__ = ["DEFAULT_BASE_URL", "AsanaSession"]

DEFAULT_BASE_URL: Final = "https://app.asana.com/api/1.0"
"""Source: https://developers.asana.com/docs/overview"""

_MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of an answer's body, decompressed. A page of 100 full webhooks is about 0.1 MB."""

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


def _check_base_url(text: str) -> str:
    try:
        url = URL(text)
    except (TypeError, ValueError):
        url = URL()
    if not url.host or url.query_string or url.fragment or url.user:
        raise ConfigurationError(f"base_url must look like {DEFAULT_BASE_URL}: a scheme, a host and a path, no more")
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
        raise ConfigurationError("base_url must be https, or the token could be read on the way (http: loopback only)")
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AsanaSession:
    """A session with Asana's API, for any number of calls at once from one event loop.

    It opens lazily with the first call, in the loop that runs then; use it with ``async with``, or call `aclose`.
    Calls go through the five functions (`get_webhook` and so on) or through `send`. Cancelling a call closes its
    connection and leaves the session usable.

    Args:
        token: the access token, or an async callable that returns one and is asked before every attempt. By default
            the environment's ``ASANA_ACCESS_TOKEN``.
        base_url: by default the environment's ``ASANA_BASE_URL``, else Asana's own. https; http only to loopback.
        timeout: seconds one whole call may take, with all its attempts, waits and reading.
        retry: how often and how patiently to send again.
        limiter: an async context manager to enter for every attempt, such as ``aiolimiter.AsyncLimiter(150, 60)``.
        http: a lent ``aiohttp.ClientSession``; it is used as it is and never closed.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification itself cannot be switched off.
        trust_env: whether to take proxies and credentials from the environment, as aiohttp does.
        headers: headers to send with every request, besides ours.

    Raises:
        ConfigurationError: an argument cannot work.

    Sources: https://developers.asana.com/docs/authentication, https://developers.asana.com/docs/rate-limits
    """

    def __init__(
        self,
        token: str | TokenProvider | None = None,
        *,
        base_url: str | None = None,
        # Time and repetition
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        limiter: AbstractAsyncContextManager[Any] | None = None,
        # HTTP
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        trust_env: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not timeout > 0:
            raise ConfigurationError(f"timeout must be more than 0 seconds, not {timeout!r:.80}")
        if http is not None and trust_env:
            raise ConfigurationError("trust_env belongs to the lent http session; set it there")
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError("ssl must be an ssl.SSLContext; verification cannot be switched off")
        self._token = token_provider(token)
        self._base_url = _check_base_url(base_url or os.environ.get("ASANA_BASE_URL") or DEFAULT_BASE_URL)
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._limiter = limiter
        self._http = http
        self._owns_http = http is None
        self._proxy = proxy
        self._ssl: ssl_module.SSLContext | bool = True if ssl is None else ssl
        self._trust_env = trust_env
        self._headers = {
            "User-Agent": f"asana-webhooks/{__version__}",
            "Accept": "application/json",
            **(headers or {}),
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def base_url(self) -> str:
        """Where requests go, without a slash at the end."""
        return self._base_url

    @property
    def timeout(self) -> float:
        """Seconds one whole call may take."""
        return self._timeout

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session; closing twice is fine. A lent http session stays open."""
        self._closed = True
        if self._owns_http and self._http is not None:
            await self._http.close()

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError("this AsanaSession is closed; make a new one")
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError("this AsanaSession belongs to another event loop; make one in each loop")
        if self._http is None:
            # Cookies would tie calls together that have nothing to do with each other.
            self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=self._trust_env)
        if self._http.closed:
            raise ConfigurationError("the lent http session is closed; lend an open one")
        return self._http

    async def send(self, request: Request[AnswerT]) -> AnswerT:
        """Send *request*, again where that is safe, and return its answer.

        Awaits the token, the limiter, the network, and the waits between attempts; all of it together takes at most
        the session's *timeout*. On cancellation the attempt under way is dropped; a create request may have been
        executed all the same.

        Raises:
            ResponseError: Asana answered with an error; the subclass tells which.
            UnexpectedResponseError: Asana's answer is not what its documentation says.
            ConnectionFailedError: no answer could be had.
            DeadlineExceededError: the time for the whole call ran out.
            CreateOutcomeUnknownError: a create request may or may not have been executed.
            ConfigurationError: the session is closed or belongs to another loop, or its token cannot be used.
        """
        policy = self._retry
        deadline = policy.clock() + self._timeout
        sent_at = datetime.now(UTC)
        attempt = 0
        maybe_done = False
        while True:
            attempt += 1
            outcome, sendings = await self._attempt(request, deadline - policy.clock())
            time_left = deadline - policy.clock()
            maybe_done = maybe_done or sendings > 1
            decision = verdict(
                request.operation,
                outcome,
                attempt=attempt,
                maybe_done=maybe_done,
                time_left=time_left,
                policy=policy,
            )
            if decision.action == "succeeded":
                answer: AnswerT = outcome.answer
                return answer
            if decision.action == "unknown":
                raise unknown_outcome(request, outcome, attempts=attempt, sent_at=sent_at)
            if decision.action == "raise":
                raise error_of(request, outcome, attempts=attempt, timeout=self._timeout, time_left=time_left)
            _log.info("%s: %s; sending again in %.2f seconds", request.operation, outcome.problem, decision.wait)
            maybe_done = maybe_done or outcome.kind != "not_sent"
            await policy.sleep(decision.wait)

    async def _attempt(self, request: Request[Any], time_left: float) -> tuple[Outcome, int]:
        """Send once. Return what it came to, and how often the request went out (aiohttp repeats some by itself)."""
        creating = isinstance(request, CreateWebhookRequest)
        limit = min(self._retry.create_attempt_timeout if creating else self._retry.attempt_timeout, time_left)
        http = self._open()
        sendings = _Sendings()
        try:
            async with asyncio.timeout(max(limit, 0)) as scope:
                token = await self._ask_token()
                async with self._limiter or nullcontext():
                    outcome = await self._exchange(http, request, token, sendings)
        except TimeoutError:
            if not scope.expired():  # the limiter's own
                raise
            kind: Literal["lost", "not_sent"] = "lost" if sendings.count else "not_sent"
            outcome = Outcome(kind=kind, problem=f"no answer within {limit:.1f} seconds")
        return outcome, sendings.count

    async def _ask_token(self) -> str:
        try:
            token = await self._token()
        except AsanaError:
            raise
        except Exception as error:
            raise ConfigurationError(f"the token provider failed with {type(error).__name__}") from error
        return check_token(token)

    async def _exchange(
        self, http: aiohttp.ClientSession, request: Request[Any], token: str, sendings: "_Sendings"
    ) -> Outcome:
        body = request.body()
        headers = self._headers | {"Authorization": f"Bearer {token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        # Only a DELETE's 404 depends on the count. A lent session keeps its own middlewares.
        counting = isinstance(request, DeleteWebhookRequest) and self._owns_http
        options: dict[str, Any] = {"middlewares": (sendings.note,)} if counting else {}
        sendings.count = 0 if counting else 1
        try:
            async with http.request(
                request.method,
                URL(self._base_url + request.path).with_query(request.query()),
                data=body,
                headers=headers,
                allow_redirects=False,  # a redirect could carry headers and body to another host
                raise_for_status=False,  # its error would hold the token
                proxy=self._proxy,
                ssl=self._ssl,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._retry.connect_timeout),
                **options,
            ) as response:
                outcome = outcome_of(
                    request,
                    response.status,
                    await _read(response),
                    retry_after=response.headers.getall("Retry-After", ()),
                    date=response.headers.get("Date"),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            sendings.count = 0
            return Outcome(kind="not_sent", problem=_problem(error))
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(kind="lost", problem=_problem(error))
        return hide(outcome, _secrets(request, token))


class _Sendings:
    """How often a request went out: aiohttp silently repeats some once when a kept-alive connection breaks."""

    def __init__(self) -> None:
        self.count = 0

    async def note(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        self.count += 1
        return await handler(request)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the whole body, or ``None`` if it was cut off or is too long; such a connection is not used again."""
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_ANSWER:
                response.close()
                return None
    except (aiohttp.ClientError, OSError):
        return None
    return bytes(body)


def _problem(error: Exception) -> str:
    # Only what names host and port is quoted: other errors of aiohttp hold the whole request, token included.
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error}"[:300]
    return {
        aiohttp.ServerDisconnectedError: "the connection was closed before an answer came",
        aiohttp.ClientOSError: "the connection was reset",
        aiohttp.ConnectionTimeoutError: "no connection could be made in time",
        aiohttp.ClientHttpProxyError: "the proxy refused the connection",
    }.get(type(error), f"the exchange failed with {type(error).__name__}")


def _secrets(request: Request[Any], token: str) -> tuple[str, ...]:
    if not isinstance(request, CreateWebhookRequest):
        return (token,)
    endpoint = request.target.partition("?")[0].rstrip("/").rpartition("/")[2]
    # A short one is no secret, and cutting it out would spoil the message.
    return (token, request.target, endpoint) if len(endpoint) >= 16 else (token, request.target)
