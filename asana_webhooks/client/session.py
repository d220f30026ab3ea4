"""`AsanaSession`: gets the token, sends requests, reads the answers, and retries where that is safe."""

import asyncio
import logging
import os
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from copy import copy
from typing import Any, Final, Self, TypeVar

import aiohttp
from attrs import define, field
from yarl import URL

from asana_webhooks._checks import check_headers, check_seconds, check_url
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.auth import FixedToken, TokenProvider, ask_token, token_provider
from asana_webhooks.client.requests import CreateWebhookRequest, Request
from asana_webhooks.client.responses import error_of, unknown_outcome
from asana_webhooks.client.retry import SUCCEEDED, Decision, Outcome, RetryPolicy, decide
from asana_webhooks.client.throttle import Pause, Throttle
from asana_webhooks.client.time_limit import TimeLimit, TimeLimits
from asana_webhooks.client.token_endpoint import asking_for_token
from asana_webhooks.client.transport import DEFAULT_HEADERS, HttpSettings, SendLog, Transport
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    DeadlineExceededError,
    NetworkError,
    RateLimitedError,
    ServerError,
)
from asana_webhooks.models import Secret

__all__ = ["AsanaSession"]

_BASE_URL: Final = "https://app.asana.com/api/1.0"
"""Source: https://developers.asana.com/docs/overview"""
_CLOSED: Final = "this AsanaSession is closed; create a new one"

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


class AsanaSession:
    """A session with Asana's API, for any number of concurrent calls in one event loop.

    It opens on ``async with`` or with the first call, in the running event loop. Without ``async with``, call `aclose`.
    Calls go through the five functions (`get_webhook` and so on) or through `send`. Cancelling a call closes its
    connection and leaves the session usable.

    All calls share rate limiting. After a 429, no call is sent until the pause Asana asked for ends. Retries share one
    budget (see `RetryPolicy`). The number of requests in flight is limited (*max_reads*, *max_writes*).

    Args:
        token: the access token, or an async callable that returns one and is called before every attempt. By default
            the environment's ``ASANA_ACCESS_TOKEN``.
        base_url: by default the environment's ``ASANA_BASE_URL``, else Asana's own. https; http only to loopback.
        timeout: seconds one call may take from when it gets its slot, with all its attempts, the waits between them,
            and reading of answers. What counts against *slot_timeout* does not count here.
        slot_timeout: seconds one call may wait, all in all, for slots (*max_reads*, *max_writes*), for the *limiter*,
            and for pauses after a 429.
        retry: retry limits and backoff.
        limiter: an async context manager to enter for every attempt, such as ``aiolimiter.AsyncLimiter(150, 60)``.
        max_reads: how many GET requests may be in flight at once. Asana allows a token 50.
        max_writes: the same for POST, PUT and DELETE requests. Asana allows a token 15.
        http: an ``aiohttp.ClientSession`` to use as it is; it is never closed.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification cannot be switched off.
        trust_env: whether to take proxies from the environment, as aiohttp does. Calls raise `ConfigurationError` if a
            ``.netrc`` file has an entry for Asana's host.
        headers: extra headers of every request. They may replace ``User-Agent``, ``Accept``, ``X-Asana-Client-Lib``.
            ``Asana-Enable`` and ``Asana-Disable`` opt in to and out of changes that Asana announces. Other changes that
            affect these requests are logged as warnings, once each.

    Raises:
        ConfigurationError: an argument is invalid.

    Sources: https://developers.asana.com/docs/authentication, https://developers.asana.com/docs/rate-limits,
    https://developers.asana.com/docs/deprecations
    """

    def __init__(
        self,
        token: str | TokenProvider | None = None,
        *,
        base_url: str | None = None,
        # Time and retries
        timeout: float = 60.0,
        slot_timeout: float = 600.0,
        retry: RetryPolicy | None = None,
        # Throttle
        limiter: AbstractAsyncContextManager[Any] | None = None,
        max_reads: int = 50,
        max_writes: int = 15,
        # HTTP
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        trust_env: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._token = token_provider(token)
        self._settings = HttpSettings.of(http, proxy, ssl, trust_env=trust_env)
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise ConfigurationError(f"retry must be a RetryPolicy, not {type(retry).__name__}")
        if base_url is None:
            base_url = os.environ.get("ASANA_BASE_URL") or _BASE_URL
        self._base_url = check_url("base_url", base_url, example=_BASE_URL).rstrip("/")
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._slot_timeout = check_seconds("slot_timeout", slot_timeout, zero=False)
        self._retry = RetryPolicy() if retry is None else retry
        self._throttle = Throttle(self._retry, limiter=limiter, max_reads=max_reads, max_writes=max_writes)
        self._http = http
        self._owns_http = http is None
        self._headers = check_headers(headers, DEFAULT_HEADERS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limits = TimeLimits()
        self._transport: Transport | None = None
        self._closed = False

    @property
    def base_url(self) -> str:
        """The base URL of requests, without a slash at the end."""
        return self._base_url

    @property
    def timeout(self) -> float:
        """Seconds one call may take from when it gets its slot."""
        return self._timeout

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session; closing twice is fine. A session passed as *http* stays open.

        Calls end at once with `ConfigurationError`, in flight or waiting. A create request that Asana may have
        executed ends with `CreateOutcomeUnknownError`.

        Raises:
            ConfigurationError: the session belongs to another event loop, which still runs.
        """
        if self._loop is not None and self._loop.is_running() and self._loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                "this AsanaSession belongs to another event loop, which still runs; close it there"
            )
        self._closed = True
        if self._loop is asyncio.get_running_loop():  # otherwise its loop has ended, and the calls with it
            self._limits.close()
        if self._owns_http and self._http is not None:
            await self._http.close()

    def _open(self) -> Transport:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError(_CLOSED)
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError("this AsanaSession belongs to another event loop; create one in each loop")
        if self._transport is None:
            self._transport = self._make_transport()
        if self._transport.http.closed:
            raise ConfigurationError("the session passed as http= is closed; pass an open one")
        return self._transport

    def _make_transport(self) -> Transport:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # max_reads and max_writes are the limit
                # Cookies would link unrelated calls.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._settings.trust_env,
            )
        limit = self._retry.connect_timeout
        # With a session passed as http=, calls may queue for a connection; that is no connect timeout.
        connect = limit if self._owns_http else None
        return Transport(
            http=self._http,
            base_url=URL(self._base_url),
            headers=self._headers,
            proxy=self._settings.proxy,
            ssl=self._settings.ssl,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=limit),
            lent=not self._owns_http,
        )

    async def send(
        self,
        request: Request[AnswerT],
        *,
        prepare: Callable[[], Awaitable[Request[AnswerT]]] | None = None,
        discard: Callable[[], Awaitable[None]] | None = None,
    ) -> AnswerT:
        """Send *request*, retry where that is safe, and return its answer.

        Awaits a slot, the limiter and pauses after a 429, together for at most the session's *slot_timeout*; and the
        token, the network and the waits between attempts, together for at most its *timeout*. If the next wait would
        take longer, the last error is raised at once. Cancelling drops the attempt in flight; Asana may still have
        executed a create request.

        Args:
            request: what to send.
            prepare: awaited as the last step before each attempt, with the slot, the limiter and the token in hand. The
                attempt sends the request it returns, which must be of the same kind. Its time counts as the attempt's,
                and its errors end the call unchanged.
            discard: awaited if there will be another attempt, before the wait for it: what *prepare* returned is not
                sent any more. No time limit ends it. Its errors end the call unchanged.

        Raises:
            ResponseError: Asana answered with an error; the subclass says which.
            UnexpectedResponseError: Asana's answer does not match its documentation.
            ConnectionFailedError: connecting failed, or no complete answer arrived.
            DeadlineExceededError: the call's *timeout* or *slot_timeout* passed.
            CreateOutcomeUnknownError: a create request may or may not have been executed.
            ConfigurationError: the session is closed (before or during the call) or belongs to another loop, its
                token is invalid, its token provider fails, a proxy wants a password, or aiohttp fails unexpectedly.
            AsanaError: any other error of this package that a token provider raises, such as `TokenRefreshError`.
        """
        self._open()
        policy, throttle = self._retry, self._throttle
        state = CallState(request, policy.clock(), prepare, discard)
        while True:
            outcome = throttle.paused(state.waited_out) or await self._attempt(state)
            if self._closed and outcome.kind in {"not_sent", "lost"}:  # ended by aclose(), or by aiohttp before it
                raise self._closed_during(state, outcome)
            time_left = state.time_left(self._timeout, policy.clock())
            decision = SUCCEEDED if outcome.kind == "answered" else self._decide(state, outcome, time_left)
            throttle.record(decision, outcome)
            match decision.action:
                case "succeeded":
                    answer: AnswerT = outcome.answer
                    return answer
                case "unknown":
                    raise unknown_outcome(state.request, outcome, attempts=state.attempts, sent_at=state.sends.sent_at)
                case "raise":
                    if decision.reason:
                        _log.info("%s: %s; not retrying: %s", request.operation, outcome.problem, decision.reason)
                    raise error_of(
                        state.request,
                        outcome,
                        attempts=state.attempts,
                        timeout=self._timeout,
                        time_left=time_left,
                        base_url=self._base_url,
                    )
                case "renew":
                    _log.info("%s: %s; retrying with another token", request.operation, outcome.problem)
                    state.renew(outcome)
                case "again":
                    _log.info("%s: %s; retrying in %.2f s", request.operation, outcome.problem, decision.wait)
            state.maybe_done = state.maybe_done or outcome.maybe_done
            await self._wait(state, decision)

    def _decide(self, state: "CallState", outcome: Outcome, time_left: float) -> Decision:
        state.count(outcome)
        return decide(
            state.request.operation,
            outcome,
            attempt=state.attempts - state.refusals - (state.rejected is not None),
            refusals=state.refusals,
            maybe_done=state.maybe_done or outcome.repeated,
            renewable=state.rejected is None and not isinstance(self._token, FixedToken),
            pause_left=self._throttle.pause_left(),
            budget=self._throttle.budget,
            time_left=time_left,
            slot_time_left=self._slot_timeout - state.waited,
            policy=self._retry,
        )

    async def _attempt(self, state: "CallState") -> Outcome:
        loop, clock = asyncio.get_running_loop(), self._retry.clock
        since = clock()
        state.sends.maybe_sent = state.has_turn = False
        state.waiting_for = "a slot"
        try:
            with self._limits.until(loop.time() + max(self._slot_timeout - state.waited, 0)) as limit:
                async with self._throttle.slot(state.request):
                    # A 429 may have arrived meanwhile, and a paused call must not use up the limiter.
                    if paused := self._throttle.paused(state.waited_out):
                        state.waited += clock() - since
                        return paused
                    state.waiting_for = "the limiter"
                    async with self._throttle.limiter:
                        if not limit.expired:  # it may have swallowed our cancellation
                            state.waited += clock() - since
                            return await self._send_once(state, limit)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            who = "prepare" if state.waiting_for == "prepare" else "the limiter"
            raise ConfigurationError(f"{who} failed with CancelledError") from None
        except TimeoutError:
            if not limit.expired:  # raised by the limiter itself, not caused by our cancellation
                raise
        if state.has_turn or self._closed:
            return state.timed_out(limit.end)
        raise self._no_turn(state, clock() - since)

    async def _send_once(self, state: "CallState", limit: TimeLimit) -> Outcome:
        loop = asyncio.get_running_loop()
        state.has_turn = True
        now = loop.time()
        state.waiting_for, state.waiting_since = "the token provider", now
        limit.move_to(now + max(state.time_left(self._timeout, self._retry.clock()), 0))
        # A fixed token was checked when it was created; a subclass may do anything.
        try:
            if type(self._token) is FixedToken:
                token = self._token.token
            else:
                with asking_for_token(self._settings):
                    token = await ask_token(self._token, state.rejected if state.renewal_due else None)
                state.renewal_due = False
        except (NetworkError, RateLimitedError, ServerError) as error:
            # A copy: a provider may raise the same object every time, and its traceback would keep all these frames.
            retry_after = getattr(error, "retry_after", None)
            return Outcome(kind="not_sent", problem=f"{error}", cause=copy(error), retry_after=retry_after)
        if stopped := self._stopped(state, limit):
            return stopped
        if state.rejection is not None and token == state.rejected:
            return state.rejection
        state.token = token
        # The attempt's timeout starts here: waiting for a slot or a token is no failure of Asana's.
        now = loop.time()
        creating = isinstance(state.request, CreateWebhookRequest)
        attempt_timeout = self._retry.create_attempt_timeout if creating else self._retry.attempt_timeout
        state.waiting_since = now
        limit.move_to(min(limit.end, now + attempt_timeout))
        if state.prepare is not None:
            state.waiting_for, state.prepared = "prepare", True
            state.request = await state.prepare()
            if stopped := self._stopped(state, limit):
                return stopped
        state.waiting_for = "an answer"
        return await self._open().exchange(state.request, token, state.sends, end=limit.end)

    def _stopped(self, state: "CallState", limit: TimeLimit) -> Outcome | None:
        # What the attempt awaited swallowed our cancellation, or another call got a 429 meanwhile.
        return state.timed_out(limit.end) if limit.expired else self._throttle.paused(state.waited_out)

    async def _wait(self, state: "CallState", decision: Decision) -> None:
        with self._limits.until() as limit:  # only aclose() ends it
            if state.prepared and state.discard is not None:
                state.prepared = False
                await state.discard()
            if decision.action == "again":
                state.waited_out = await self._throttle.wait(decision)
                state.waited += decision.paused
        if limit.expired:
            raise ConfigurationError(_CLOSED)

    def _no_turn(self, state: "CallState", seconds: float) -> DeadlineExceededError:
        waiting_for = state.waiting_for
        if waiting_for == "a slot":
            waiting_for += " of max_reads" if state.request.method == "GET" else " of max_writes"
        earlier = f", after earlier waits of {state.waited:.1f} seconds" if state.waited else ""
        return DeadlineExceededError(
            operation=state.request.operation,
            attempts=state.attempts,
            problem=f"waited {seconds:.1f} seconds for {waiting_for}{earlier}",
            timeout=self._slot_timeout,
            advice="Give the session a longer slot_timeout, more max_reads or max_writes, or make fewer calls at once.",
        )

    def _closed_during(self, state: "CallState", outcome: Outcome) -> AsanaError:
        if isinstance(state.request, CreateWebhookRequest) and outcome.kind == "lost":
            lost = Outcome(kind="lost", problem="the session was closed before an answer arrived")
            return unknown_outcome(state.request, lost, attempts=state.attempts + 1, sent_at=state.sends.sent_at)
        return ConfigurationError(_CLOSED)


@define
class CallState:
    """The state of one `AsanaSession.send` call across its attempts."""

    request: Request[Any]
    """What the latest attempt sends."""
    start: float
    """When the call began, by the policy's clock."""
    prepare: Callable[[], Awaitable[Request[Any]]] | None
    discard: Callable[[], Awaitable[None]] | None
    prepared: bool = False
    """Whether *prepare* was called, and *discard* was not called since."""
    waited: float = 0.0
    """Seconds waited for slots, for the limiter and for pauses after a 429."""
    sends: SendLog = field(factory=SendLog)
    attempts: int = 0
    refusals: int = 0
    """How many attempts were answered 429."""
    maybe_done: bool = False
    """Whether Asana may have executed an earlier attempt."""
    token: Secret | None = None
    """The token that was sent last."""
    rejected: Secret | None = None
    """The token Asana rejected, after which another one is requested."""
    renewal_due: bool = False
    """Whether the provider's ``renew`` is still to be called with *rejected*."""
    rejection: Outcome | None = None
    """The outcome of the attempt with *rejected*."""
    waited_out: Pause | None = None
    """The pause of the session that this call has already waited for."""
    has_turn: bool = False
    """Whether the attempt in flight has its slot and has passed the limiter."""
    waiting_for: str = ""
    """What the attempt in flight waits for, for error messages."""
    waiting_since: float = 0.0
    """By the event loop's clock."""

    def time_left(self, timeout: float, now: float) -> float:
        """Return the seconds left of *timeout*, which *waited* does not count against."""
        return timeout - (now - self.start - self.waited)

    def count(self, outcome: Outcome) -> None:
        """Count an attempt, unless nothing was tried."""
        if outcome.kind != "paused" and outcome is not self.rejection:
            self.attempts += 1
            self.refusals += outcome.kind == "refused" and outcome.status == 429

    def renew(self, rejection: Outcome) -> None:
        """Make the next attempt request another token."""
        self.rejected, self.rejection, self.renewal_due = self.token, rejection, True

    def timed_out(self, end: float) -> Outcome:
        """Return the outcome of an attempt that was cancelled at *end*."""
        problem = f"timed out waiting for {self.waiting_for} after {max(end - self.waiting_since, 0):.1f} seconds"
        return Outcome(kind="lost" if self.sends.maybe_sent else "not_sent", problem=problem)
