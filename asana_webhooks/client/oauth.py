"""OAuth 2 access tokens, refreshed before they expire; concurrent calls share one refresh.

Source: https://developers.asana.com/docs/oauth
"""

import asyncio
import logging
import math
import os
import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
from attrs import frozen

from asana_webhooks import errors, wire
from asana_webhooks._checks import check_proxy, check_seconds, check_url
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.auth import check_token, is_sendable
from asana_webhooks.client.responses import clean
from asana_webhooks.client.retry import parse_retry_after
from asana_webhooks.client.transport import DEFAULT_HEADERS, check_http, check_ssl, problem_of, read_body, refusal_of
from asana_webhooks.errors import AsanaError, ConfigurationError, ConnectionFailedError
from asana_webhooks.models import Secret

__all__ = ["OAuthToken", "RefreshRequest", "TokenSet"]

_OPERATION: Final = "refreshToken"
"""The refresh's operation name in errors; Asana has no operation id for it."""

_TOKEN_URL: Final = "https://app.asana.com/-/oauth_token"  # noqa: S105 - an address
_HEADERS: Final = {name: DEFAULT_HEADERS[name] for name in ("User-Agent", "Accept")}
_MAX_ANSWER: Final = 64 * 1024
"""Largest body of an answer, in bytes."""
_MARGIN: Final = 60.0
"""Seconds before an access token expires at which a refresh is due."""
_RETRY_AFTER: Final = 10.0
"""Seconds between a failed refresh and the next one, while the old token is valid."""
_HOOK_TIMEOUT: Final = 5.0
"""Seconds `on_refresh` may take."""
_USUAL_LIFETIME: Final = 3600.0
"""Seconds an access token lasts, as documented; used for answers without ``expires_in``."""
_LONGEST_LIFETIME: Final = 365 * 86400.0
"""Longest lifetime in seconds that is accepted; longer ones are cut, so that `datetime` can hold the date."""

_refreshing: ContextVar["OAuthToken | None"] = ContextVar("refreshing", default=None)
"""The `OAuthToken` whose refresh the current task belongs to."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class TokenSet:
    """The valid tokens after a refresh; save them for the program's next start."""

    access_token: Secret
    refresh_token: Secret
    """The new one if Asana sent one (the old one is then invalid); otherwise the old one."""
    expires_at: datetime
    """When the access token expires, in UTC."""


@frozen(kw_only=True)
class RefreshRequest:
    """The request for a new access token, and how to read its answer."""

    client_id: str
    client_secret: Secret
    refresh_token: Secret
    sent_at: float
    """Seconds since the epoch. The new token's lifetime counts from here, so it never expires before ``expires_at``."""

    def form(self) -> dict[str, str]:
        """Return the form fields to send. Source: https://www.rfc-editor.org/rfc/rfc6749#section-6"""
        return {
            "grant_type": "refresh_token",
            "client_id": self.client_id,
            "client_secret": self.client_secret.reveal(),
            "refresh_token": self.refresh_token.reveal(),
        }

    def answer(
        self, status: int, body: bytes | None, *, retry_after: float | None = None
    ) -> TokenSet | errors.ResponseError:
        """Return the tokens in an answer, or the error to raise.

        Args:
            status: the answer's HTTP status.
            body: its whole body, or ``None`` if it was cut off or too long.
            retry_after: seconds it asks to wait.
        """
        if status == 429 or 500 <= status < 600:
            kind = errors.RateLimitedError if status == 429 else errors.ServerError
            return kind(operation=_OPERATION, status=status, retry_after=retry_after)
        try:
            if 200 <= status < 300:
                return self._tokens(wire.decode_token_answer(body or b""))
            if 400 <= status < 500:
                return self._refusal(status, wire.decode_token_refusal(body or b""))
            problem = "it is a redirect; redirects are not followed" if status < 400 else "not a final HTTP status"
        except errors.PayloadError as error:
            problem = str(error)
        return errors.UnexpectedResponseError(operation=_OPERATION, status=status, problem=problem)

    def _tokens(self, answer: wire.TokenAnswer) -> TokenSet:
        refresh_token = answer.refresh_token or self.refresh_token
        if not is_sendable(answer.access_token.reveal()) or not is_sendable(refresh_token.reveal()):
            raise errors.PayloadError(problem="a token is empty or has a character that cannot be sent")
        lifetime = _USUAL_LIFETIME if answer.expires_in is None else min(answer.expires_in, _LONGEST_LIFETIME)
        if lifetime <= 0:
            raise errors.PayloadError(problem="the access token has expired already", path="$.expires_in")
        return TokenSet(
            access_token=answer.access_token,
            refresh_token=refresh_token,
            expires_at=datetime.fromtimestamp(self.sent_at, UTC) + timedelta(seconds=lifetime),
        )

    def _refusal(self, status: int, refusal: wire.TokenRefusal) -> errors.TokenRefreshError:
        secrets = (self.client_secret.reveal(), self.refresh_token.reveal())
        description = clean(refusal.error_description, secrets)
        return errors.TokenRefreshError(
            operation=_OPERATION,
            status=status,
            code=clean(refusal.error, secrets) or "no code",
            messages=(description,) if description else (),
        )


class OAuthToken:
    """A token provider for OAuth 2 that refreshes the access token, which lasts an hour, before it expires.

    Any number of sessions in one event loop can share it. Concurrent calls share one refresh, which starts shortly
    before the old token expires, or when Asana rejects it. There is nothing to close.

    The refresh runs in a separate task. Cancelling a call that waits for it does not cancel it. It ends within
    *timeout* plus 5 seconds for *on_refresh*, and keeps the new tokens for the next call even if no call waits.

    ::

        token = OAuthToken(client_id="…", client_secret="…", refresh_token="…", on_refresh=save)
        async with AsanaSession(token) as asana: ...

    Args:
        client_id: the app's client id, from Asana's developer console.
        client_secret: the app's client secret.
        refresh_token: the refresh token Asana issued when the user authorized the app.
        access_token: an access token from an earlier run that may still be valid. Without it the first call refreshes.
        expires_at: when *access_token* expires, with a time zone. Without it the token is used until Asana rejects it.

        on_refresh: awaited with the new tokens after every refresh, before they are used; save them in it. It may
            take 5 seconds. If it fails, a warning is logged, and the tokens stay in use until the program ends. It may
            use the new access token itself.

        token_url: the token endpoint, by default the environment's ``ASANA_TOKEN_URL``, else Asana's own. https; http
            only to loopback.
        timeout: seconds one refresh request may take. It is not retried here; a session retries by its policy.
        http: an ``aiohttp.ClientSession`` to use as it is; it is never closed. By default each request opens and
            closes a connection.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification cannot be switched off.
        clock: returns the time in seconds since the epoch.

    Raises:
        ConfigurationError: an argument is invalid.

    Source: https://developers.asana.com/docs/oauth
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        access_token: str | None = None,
        expires_at: datetime | None = None,
        on_refresh: Callable[[TokenSet], Awaitable[None]] | None = None,
        # HTTP
        token_url: str | None = None,
        timeout: float = 10.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        # Time
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client_id = check_token(client_id, "client_id")
        self._client_secret = Secret(check_token(client_secret, "client_secret"))
        self._refresh_token = Secret(check_token(refresh_token, "refresh_token"))
        self._access_token = Secret("" if access_token is None else check_token(access_token, "access_token"))
        end = math.inf if expires_at is None else _timestamp(expires_at)
        self._expires_at = -math.inf if access_token is None else end
        if on_refresh is not None and not callable(on_refresh):
            raise ConfigurationError(f"on_refresh must be an async callable, not {type(on_refresh).__name__}")
        self._on_refresh = on_refresh
        if token_url is None:
            token_url = os.environ.get("ASANA_TOKEN_URL") or _TOKEN_URL
        self._token_url = check_url("token_url", token_url, example=_TOKEN_URL)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        if http is not None:
            check_http(http)
        self._http = http
        self._proxy = check_proxy(proxy)
        self._ssl = check_ssl(ssl)
        self._clock = clock
        self._margin = _MARGIN
        self._retry_at = -math.inf  # no refresh before this time while the old token is valid
        self._saving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[AsanaError | None] | None = None

    async def __call__(self) -> str:
        """Return an access token; refresh it first if it expires soon.

        Awaits a refresh if the token expires within a minute (or half its lifetime, if less). While the old token is
        valid, only the call that starts the refresh waits for it, others only for *on_refresh*. If the refresh fails,
        the old token is returned, and the next refresh starts after 10 seconds at the earliest.

        Raises:
            TokenRefreshError: Asana refuses to issue another token.
            ConnectionFailedError: the token endpoint could not be reached, or did not answer in time.
            RateLimitedError: the token endpoint answered 429.
            ServerError: the token endpoint answered 5xx.
            UnexpectedResponseError: the token endpoint's answer cannot be used.
            ConfigurationError: called from another event loop than before, or aiohttp refuses to send the request.
        """
        self._enter_loop()
        due = not self._lasts(self._margin) and not (self._lasts(0) and self._clock() < self._retry_at)
        if (due or self._saving) and not self._is_hook():
            error = await self._refresh()
            if error is not None and not self._lasts(0):
                raise error
        return self._access_token.reveal()

    async def renew(self, rejected: str) -> None:
        """Refresh the access token if *rejected* is still in use.

        Awaits the refresh, and raises the same errors as `__call__`.

        Args:
            rejected: the token Asana answered 401 to.
        """
        self._enter_loop()
        if Secret(rejected) != self._access_token:
            return
        self._expires_at = -math.inf
        if not self._is_hook():
            error = await self._refresh()
            if error is not None:
                raise error

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError("this OAuthToken belongs to another event loop; create one in each loop")

    def _lasts(self, seconds: float) -> bool:
        return self._clock() + seconds < self._expires_at

    def _is_hook(self) -> bool:
        # on_refresh and tasks it starts may use the new token; waiting for the refresh would be a deadlock.
        return self._saving and _refreshing.get() is self

    async def _refresh(self) -> AsanaError | None:
        """Await the refresh in flight, or start one; return its error, a copy for each caller."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._refresh_once())
        task = self._task
        await asyncio.wait({task})  # unlike `await task`, does not cancel the task when cancelled
        if task.cancelled():
            problem = "the refresh task was cancelled"
            return ConnectionFailedError(operation=_OPERATION, attempts=1, problem=problem)
        return copy(task.result())

    async def _refresh_once(self) -> AsanaError | None:
        _refreshing.set(self)
        self._retry_at = self._clock() + _RETRY_AFTER
        request = RefreshRequest(
            client_id=self._client_id,
            client_secret=self._client_secret,
            refresh_token=self._refresh_token,
            sent_at=self._clock(),
        )
        # Keep and save the tokens before the connection closes, so that a failing close cannot lose them.
        async with self._open_http() as http:
            answer = await self._ask(http, request)
            if not isinstance(answer, TokenSet):
                _log.info("refreshing the access token failed with %s", type(answer).__name__)
                self._retry_at = self._clock() + _RETRY_AFTER
                return answer
            self._access_token = answer.access_token
            self._refresh_token = answer.refresh_token
            self._expires_at = answer.expires_at.timestamp()
            self._margin = min(_MARGIN, (self._expires_at - request.sent_at) / 2)
            if self._on_refresh is not None:
                await self._save(answer, self._on_refresh)
        return None

    def _open_http(self) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        if self._http is not None:
            return nullcontext(self._http)
        return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def _ask(self, http: aiohttp.ClientSession, request: RefreshRequest) -> TokenSet | AsanaError:
        # Errors are returned, not raised: their context would be aiohttp's error, which holds the whole request.
        try:
            async with (
                asyncio.timeout(self._timeout) as limit,
                http.post(
                    self._token_url,
                    data=request.form(),
                    headers=_HEADERS,
                    allow_redirects=False,
                    raise_for_status=False,
                    proxy=self._proxy,
                    ssl=self._ssl,
                    timeout=aiohttp.ClientTimeout(total=None),
                ) as response,
            ):
                body = await read_body(response, most=_MAX_ANSWER)
        except (aiohttp.ClientError, OSError) as error:
            late = isinstance(error, TimeoutError) and limit.expired()
            problem = f"the token endpoint did not answer within {self._timeout:g} seconds"
            return ConnectionFailedError(
                operation=_OPERATION, attempts=1, problem=problem if late else problem_of(error)
            )
        except (ValueError, RuntimeError, TypeError) as error:
            return ConfigurationError(refusal_of(error))
        retry_after = parse_retry_after(response.headers.getall("Retry-After", ()), response.headers.get("Date"))
        return request.answer(response.status, body, retry_after=retry_after)

    async def _save(self, tokens: TokenSet, on_refresh: Callable[[TokenSet], Awaitable[None]]) -> None:
        self._saving = True
        try:
            async with asyncio.timeout(_HOOK_TIMEOUT):
                await on_refresh(tokens)
        except (asyncio.CancelledError, Exception) as error:
            # Errors of on_refresh stop here, even during cancellation: their text may contain the tokens.
            if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                raise
            _log.warning("on_refresh failed with %s; the new tokens may not be saved", type(error).__name__)
        finally:
            self._saving = False


def _timestamp(moment: Any) -> float:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ConfigurationError("expires_at must be a datetime with a time zone, such as datetime.now(UTC)")
    seconds: float = moment.timestamp()
    return seconds
