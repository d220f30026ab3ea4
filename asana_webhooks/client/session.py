"""The one way out to Asana: a session around aiohttp that asks the token, sends, reads, and repeats by the verdict."""

import asyncio
import logging
import os
import ssl as ssl_module
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import aiohttp

from asana_webhooks.checks import check_seconds
from asana_webhooks.client.answers import error_of, unknown_outcome
from asana_webhooks.client.auth import TokenProvider, check_token, token_provider
from asana_webhooks.client.exchange import Line, Sendings, exchange
from asana_webhooks.client.options import (
    DEFAULT_BASE_URL,
    check_base_url,
    check_headers,
    check_proxy,
)
from asana_webhooks.client.requests import CreateWebhookRequest, Request
from asana_webhooks.client.retry import Outcome, RetryPolicy, verdict
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.version import __version__

__all__ = ["AsanaSession"]

_HEADERS: Final = {"User-Agent": f"asana-webhooks/{__version__}", "Accept": "application/json"}
_CLOSED: Final = "this AsanaSession is closed; make a new one"

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


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
        limiter: an async context manager to enter for every attempt, such as ``aiolimiter.AsyncLimiter(150, 60)``;
            only *timeout* bounds how long it takes.
        http: a lent ``aiohttp.ClientSession``; it is used as it is and never closed.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification itself cannot be switched off.
        trust_env: whether to take proxies from the environment, as aiohttp does; proxies only: a ``.netrc`` entry for
            Asana's host is refused.
        headers: headers to send with every request, besides ours. They may replace ``User-Agent`` and ``Accept``.

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
        if http is not None:
            _check_lent(http, trust_env=trust_env)
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError("ssl must be an ssl.SSLContext; verification cannot be switched off")
        if limiter is not None and not isinstance(limiter, AbstractAsyncContextManager):
            raise ConfigurationError(f"limiter must be an async context manager, not {type(limiter).__name__}")
        if base_url is None:
            base_url = os.environ.get("ASANA_BASE_URL") or DEFAULT_BASE_URL
        self._token = token_provider(token)
        self._base_url = check_base_url(base_url)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._retry = RetryPolicy() if retry is None else retry
        self._limiter = limiter
        self._http = http
        self._owns_http = http is None
        self._proxy = check_proxy(proxy)
        self._ssl: ssl_module.SSLContext | bool = True if ssl is None else ssl
        self._trust_env = trust_env
        self._headers = check_headers(headers, _HEADERS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Timeout] = set()
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
        """Close the session; closing twice is fine. A lent http session stays open.

        Calls that are still open end at once, wherever they wait, with `ConfigurationError`; a create request that
        was sent already with `CreateOutcomeUnknownError`.
        """
        self._closed = True
        calls, self._calls = self._calls, set()
        for call in calls:
            call.reschedule(0)  # a time long past
        if self._owns_http and self._http is not None:
            await self._http.close()

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError(_CLOSED)
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
            ConfigurationError: the session is closed (before or during the call) or belongs to another loop, its
                token cannot be used, or aiohttp refuses to send.
        """
        self._open()
        sendings = Sendings()
        try:
            async with asyncio.timeout(None) as scope:  # has no time limit until aclose() gives it one
                self._calls.add(scope)
                try:
                    return await self._send(request, sendings)
                finally:
                    self._calls.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
        if isinstance(request, CreateWebhookRequest) and sendings.count:
            lost = Outcome(kind="lost", problem="the session was closed before an answer came")
            raise unknown_outcome(request, lost, attempts=sendings.count, sent_at=sendings.last)
        raise ConfigurationError(_CLOSED)

    async def _send(self, request: Request[AnswerT], sendings: Sendings) -> AnswerT:
        policy = self._retry
        deadline = policy.clock() + self._timeout
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._attempt(request, deadline - policy.clock(), sendings)
            time_left = deadline - policy.clock()
            decision = verdict(
                request.operation,
                outcome,
                attempt=attempt,
                maybe_done=sendings.count > 1,
                time_left=time_left,
                policy=policy,
            )
            if decision.action == "succeeded":
                answer: AnswerT = outcome.answer
                return answer
            if decision.action == "unknown":
                raise unknown_outcome(request, outcome, attempts=attempt, sent_at=sendings.last)
            if decision.action == "raise":
                raise error_of(request, outcome, attempts=attempt, timeout=self._timeout, time_left=time_left)
            _log.info("%s: %s; sending again in %.2f seconds", request.operation, outcome.problem, decision.wait)
            await policy.sleep(decision.wait)

    async def _attempt(self, request: Request[Any], time_left: float, sendings: Sendings) -> Outcome:
        creating = isinstance(request, CreateWebhookRequest)
        limit = self._retry.create_attempt_timeout if creating else self._retry.attempt_timeout
        line = Line(
            http=self._open(),
            base_url=self._base_url,
            headers=self._headers,
            proxy=self._proxy,
            ssl=self._ssl,
            connect_timeout=self._retry.connect_timeout,
        )
        before = sendings.count
        now = asyncio.get_running_loop().time
        began, end = now(), now() + max(time_left, 0)
        waiting_for = "the session's limiter let nothing through"
        try:
            async with asyncio.timeout_at(end) as scope, nullcontext() if self._limiter is None else self._limiter:
                # How long a limiter takes is no sign of trouble, so only the whole call's time bounds it.
                began, end = now(), min(end, now() + limit)
                scope.reschedule(end)
                waiting_for = "the token provider gave no token"
                token = await self._ask_token()
                waiting_for = "no answer"
                outcome = await exchange(line, request, token, sendings)
        except TimeoutError:
            if not scope.expired():  # the limiter's own
                raise
            kind: Literal["lost", "not_sent"] = "lost" if sendings.count > before else "not_sent"
            outcome = Outcome(kind=kind, problem=f"{waiting_for} within {end - began:.1f} seconds")
        return outcome

    async def _ask_token(self) -> str:
        try:
            token = await self._token()
        except AsanaError:
            raise
        except Exception as error:  # noqa: BLE001 - a provider may raise anything, and in it may be the token
            raise ConfigurationError(f"the token provider failed with {type(error).__name__}") from None
        return check_token(token)


def _check_lent(http: object, *, trust_env: bool) -> None:
    if not isinstance(http, aiohttp.ClientSession):
        raise ConfigurationError(f"http must be an aiohttp.ClientSession, not {type(http).__name__}")
    if trust_env:
        raise ConfigurationError("trust_env belongs to the lent http session; set it there")
    if http.auth is not None:
        raise ConfigurationError("the lent http session has auth=, which cannot go with a token; lend one without")
