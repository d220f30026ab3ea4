"""The one way out to Asana: a session around aiohttp that asks the token, sends, reads, and repeats by the verdict."""

import asyncio
import logging
import os
import ssl as ssl_module
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from copy import copy
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
from yarl import URL

from asana_webhooks._checks import check_seconds
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.auth import FixedToken, TokenProvider, token_provider
from asana_webhooks.client.call import Call, Patience
from asana_webhooks.client.deprecations import Deprecation, DeprecationLog, choice_headers, chosen_changes
from asana_webhooks.client.options import (
    DEFAULT_BASE_URL,
    DEFAULT_HEADERS,
    check_base_url,
    check_headers,
    check_proxy,
)
from asana_webhooks.client.requests import CreateWebhookRequest, Request
from asana_webhooks.client.responses import error_of, unknown_outcome
from asana_webhooks.client.retry import Outcome, RetryPolicy, Verdict, verdict
from asana_webhooks.client.throttle import Calm
from asana_webhooks.client.time_limit import CancelScope, CancelScopes
from asana_webhooks.client.transport import Line, check_lent, check_ssl, exchange
from asana_webhooks.errors import AsanaError, ConfigurationError, NetworkError, RateLimitedError, ServerError

__all__ = ["AsanaSession"]

_CLOSED: Final = "this AsanaSession is closed; make a new one"

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


class AsanaSession:
    """A session with Asana's API, for any number of calls at once from one event loop.

    It opens lazily with the first call, in the loop that runs then; use it with ``async with``, or call `aclose`.
    Calls go through the five functions (`get_webhook` and so on) or through `send`. Cancelling a call closes its
    connection and leaves the session usable.

    Its calls keep calm together: when Asana answers one of them with 429, none is sent until that is over; what is
    sent again comes out of one budget (see `RetryPolicy`); and no more are in flight at once than Asana allows.

    Args:
        token: the access token, or an async callable that returns one and is asked before every attempt. By default
            the environment's ``ASANA_ACCESS_TOKEN``.
        base_url: by default the environment's ``ASANA_BASE_URL``, else Asana's own. https; http only to loopback.
        timeout: seconds one whole call may take, with all its attempts, waits and reading.
        retry: how often and how patiently to send again.
        limiter: an async context manager to enter for every attempt, such as ``aiolimiter.AsyncLimiter(150, 60)``;
            only *timeout* bounds how long it takes.
        max_reads: how many GET requests may be in flight at once. Asana allows a token 50.
        max_writes: how many POST, PUT and DELETE requests may be. Asana allows a token 15.
        http: a lent ``aiohttp.ClientSession``; it is used as it is and never closed.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification itself cannot be switched off.
        trust_env: whether to take proxies from the environment, as aiohttp does; proxies only: a ``.netrc`` entry for
            Asana's host is refused.
        headers: headers to send with every request, besides ours. They may replace ``User-Agent``, ``Accept`` and
            ``X-Asana-Client-Lib``.
        enable: changes of Asana's API to have already, as its announcements name them (``Asana-Enable``).
        disable: changes not to have yet (``Asana-Disable``).
        on_deprecation: called with each change that Asana announces for these requests, once, besides a warning in
            the log; not with those in *enable* and *disable*. It runs in the middle of a call, so it must be quick.

    Raises:
        ConfigurationError: an argument cannot work.

    Sources: https://developers.asana.com/docs/authentication, https://developers.asana.com/docs/rate-limits,
    https://developers.asana.com/docs/deprecations
    """

    def __init__(
        self,
        token: str | TokenProvider | None = None,
        *,
        base_url: str | None = None,
        # Time and repetition
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        # Calm
        limiter: AbstractAsyncContextManager[Any] | None = None,
        max_reads: int = 50,
        max_writes: int = 15,
        # HTTP
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        trust_env: bool = False,
        headers: Mapping[str, str] | None = None,
        # Changes of the API
        enable: Iterable[str] = (),
        disable: Iterable[str] = (),
        on_deprecation: Callable[[Deprecation], object] | None = None,
    ) -> None:
        try:
            self._token = token_provider(token)
        finally:
            del token  # so that no traceback shows it
        if http is not None:
            check_lent(http)
            if trust_env:
                raise ConfigurationError("trust_env belongs to the lent http session; set it there")
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise ConfigurationError(f"retry must be a RetryPolicy, not {type(retry).__name__}")
        if base_url is None:
            base_url = os.environ.get("ASANA_BASE_URL") or DEFAULT_BASE_URL
        self._base_url = check_base_url(base_url)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._retry = RetryPolicy() if retry is None else retry
        self._calm = Calm(self._retry, limiter=limiter, max_reads=max_reads, max_writes=max_writes)
        self._http = http
        self._owns_http = http is None
        limit = self._retry.connect_timeout
        # A lent session may have its calls queue for connections, and that is no sign of trouble.
        self._connect_timeout = aiohttp.ClientTimeout(
            total=None, connect=limit if http is None else None, sock_connect=limit
        )
        self._proxy = check_proxy(proxy)
        self._ssl = check_ssl(ssl)
        self._trust_env = trust_env
        self._headers = check_headers(headers, DEFAULT_HEADERS)
        self._headers |= choice_headers(enable, disable, self._headers)
        self._deprecations = DeprecationLog(on_deprecation, chosen=chosen_changes(self._headers))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scopes = CancelScopes()
        self._line: Line | None = None
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

        Raises:
            ConfigurationError: it belongs to another event loop that still runs.
        """
        if self._loop is not None and self._loop.is_running() and self._loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                "this AsanaSession belongs to another event loop, which still runs; close it there"
            )
        self._closed = True
        if self._loop is asyncio.get_running_loop():  # else its loop is over, and so are the calls
            self._scopes.close()
        if self._owns_http and self._http is not None:
            await self._http.close()

    def _open(self) -> Line:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError(_CLOSED)
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError("this AsanaSession belongs to another event loop; make one in each loop")
        if self._line is None:
            self._line = self._make_line()
        if self._line.http.closed:
            raise ConfigurationError("the lent http session is closed; lend an open one")
        return self._line

    def _make_line(self) -> Line:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # max_reads and max_writes are the limit
                # Cookies would tie calls together that have nothing to do with each other.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._trust_env,
            )
        return Line(
            http=self._http,
            base_url=URL(self._base_url),
            headers=self._headers,
            proxy=self._proxy,
            ssl=self._ssl,
            timeout=self._connect_timeout,
            note_changes=self._deprecations.note,
        )

    async def send(self, request: Request[AnswerT]) -> AnswerT:
        """Send *request*, again where that is safe, and return its answer.

        Awaits its turn, the limiter, the token, the network, and the waits between attempts; all of it together takes
        at most the session's *timeout*. A wait that would take longer is not begun: the last error comes at once. On
        cancellation the attempt under way is dropped; a create request may have been executed all the same.

        Raises:
            ResponseError: Asana answered with an error; the subclass tells which.
            UnexpectedResponseError: Asana's answer is not what its documentation says.
            ConnectionFailedError: no answer could be had.
            DeadlineExceededError: the time for the whole call ran out.
            CreateOutcomeUnknownError: a create request may or may not have been executed.
            ConfigurationError: the session is closed (before or during the call) or belongs to another loop, its
                token cannot be used, or aiohttp refuses to send.
            AsanaError: whatever else of ours a token provider raises, such as `TokenRefreshError`.
        """
        self._open()
        policy = self._retry
        call = Call(policy.clock() + self._timeout)
        while True:
            outcome = self._calm.gate.holds(call.waited_for) or await self._attempt(request, call)
            if self._closed and outcome.kind in {"not_sent", "lost"}:  # by us, or by aiohttp before we could
                raise self._closed_during(request, call)
            call.count(outcome)
            time_left = call.deadline - policy.clock()
            decision = verdict(
                request.operation,
                outcome,
                attempt=call.attempts,
                maybe_done=call.maybe_done,
                renewable=call.rejected is None and not isinstance(self._token, FixedToken),
                pause_left=self._calm.gate.left(),
                budget=self._calm.budget,
                time_left=time_left,
                policy=policy,
            )
            self._calm.settle(decision, outcome)
            call.undone += outcome.not_executed
            match decision.action:
                case "succeeded":
                    answer: AnswerT = outcome.answer
                    return answer
                case "unknown":
                    raise unknown_outcome(request, outcome, attempts=call.attempts, sent_at=call.sendings.last)
                case "raise":
                    if decision.reason:
                        _log.info("%s: %s; not sent again: %s", request.operation, outcome.problem, decision.reason)
                    raise error_of(request, outcome, attempts=call.attempts, timeout=self._timeout, time_left=time_left)
                case "renew":
                    _log.info("%s: %s; asking for another token", request.operation, outcome.problem)
                    call.renew(outcome)
                case "again":
                    _log.info("%s: %s; sending in %.2f seconds", request.operation, outcome.problem, decision.wait)
                    await self._wait(request, call, decision)

    async def _attempt(self, request: Request[Any], call: Call) -> Outcome:
        before, problem = call.sendings.count, ""
        now = asyncio.get_running_loop().time()
        patience = Patience("its turn did not come (limiter, max_reads, max_writes)", began=now)
        try:
            with self._scopes.until(now + max(call.deadline - self._retry.clock(), 0)) as scope:
                async with self._calm.turn(request):
                    # Others were answered meanwhile; and who is held shall not use up what the limiter lets through.
                    if held := self._calm.gate.holds(call.waited_for):
                        return held
                    async with self._calm.limiter:
                        return await self._take_turn(request, call, patience, scope)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            problem = "the limiter failed with CancelledError"
        except TimeoutError:
            if not scope.expired:  # the limiter's own, and not what it makes of our cancellation
                raise
        except (NetworkError, RateLimitedError, ServerError) as error:  # the token provider's
            # A copy, because a provider may raise one object again and again, and would hold all these frames.
            retry_after = getattr(error, "retry_after", None)
            return Outcome(kind="not_sent", problem=f"{error}", cause=copy(error), retry_after=retry_after)
        if problem:
            raise ConfigurationError(problem)
        return patience.lost(scope.end, sent=call.sendings.count > before)

    async def _take_turn(self, request: Request[Any], call: Call, patience: Patience, scope: CancelScope) -> Outcome:
        patience.waiting_for = "the token provider gave no token"
        token = await call.ask_token(self._token)
        if held := self._calm.gate.holds(call.waited_for):
            return held
        if call.rejection is not None and token == call.rejected:
            return call.rejection
        if scope.expired:  # whoever was waited for has let no cancellation through
            return patience.lost(scope.end, sent=False)
        # How long all that took is no sign of trouble; from here on it would be.
        creating = isinstance(request, CreateWebhookRequest)
        limit = self._retry.create_attempt_timeout if creating else self._retry.attempt_timeout
        patience.waiting_for, patience.began = "no answer", asyncio.get_running_loop().time()
        scope.end_by(patience.began + limit)
        call.token = token
        return await exchange(self._open(), request, token, call.sendings, end=scope.end)

    async def _wait(self, request: Request[Any], call: Call, decision: Verdict) -> None:
        with self._scopes.until() as scope:  # only aclose() ends it
            await self._calm.wait(call, decision)
        if scope.expired:
            raise self._closed_during(request, call)

    def _closed_during(self, request: Request[Any], call: Call) -> AsanaError:
        if isinstance(request, CreateWebhookRequest) and call.sendings.count > call.undone:
            lost = Outcome(kind="lost", problem="the session was closed before an answer came")
            return unknown_outcome(request, lost, attempts=call.sendings.count, sent_at=call.sendings.last)
        return ConfigurationError(_CLOSED)
