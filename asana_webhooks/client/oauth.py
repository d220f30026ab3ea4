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
from contextvars import ContextVar
from copy import copy
from datetime import datetime
from typing import Any, Final, TypeVar

import aiohttp

from asana_webhooks._checks import check_handler, check_seconds, check_url
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.auth import check_token
from asana_webhooks.client.token_endpoint import (
    OPERATION,
    RefreshRequest,
    TokenSet,
    open_http,
    send_refresh,
    settings_of_session,
)
from asana_webhooks.client.transport import HttpSettings
from asana_webhooks.errors import AsanaError, ConfigurationError, ConnectionFailedError, TokenRefreshError
from asana_webhooks.models import Secret

__all__ = ["OAuthToken", "TokenSet"]

_TOKEN_URL: Final = "https://app.asana.com/-/oauth_token"  # noqa: S105 - an address
_MARGIN: Final = 60.0
"""Seconds before an access token expires at which a refresh is due."""
_RETRY_AFTER: Final = 10.0
"""Seconds between a failed refresh and the next one, while the old token is valid."""
_HOOK_TIMEOUT: Final = 5.0
"""Seconds `load` and `on_refresh` may take, each."""
_LOOKS: Final = (0.0, 1.0, 2.0)
"""Seconds before each `load` after ``invalid_grant``: another process may have the new tokens, and be saving them."""

_refreshing: ContextVar["OAuthToken | None"] = ContextVar("refreshing", default=None)
"""The `OAuthToken` whose refresh the current task belongs to."""

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class OAuthToken:
    """A token provider for OAuth 2 that refreshes the access token, which lasts an hour, before it expires.

    Any number of sessions in one event loop can share it. Concurrent calls share one refresh, which starts shortly
    before the old token expires, or when Asana rejects it. There is nothing to close. Once its loop is closed, it can
    be used in another one, so it may live in a module whose functions each run ``asyncio.run``.

    The refresh runs in a separate task. Cancelling a call that waits for it does not cancel it, and it keeps the new
    tokens for the next call even if no call waits. The end of the event loop cancels it. Tokens that had arrived are
    kept; if *on_refresh* had not ended, it is called with them again by the first call in the next loop.

    Several processes can share one authorization if *on_refresh* saves the tokens where *load* finds them. Then only
    one of them needs to refresh, also if Asana replaces the refresh token each time.

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
        load: awaited before every refresh; returns the tokens saved last, by any process, or ``None``. If they expire
            later than the ones in use, they are used, and nothing is refreshed while they last. If Asana answers that
            the refresh token is invalid (``invalid_grant``), another process may have just used it: *load* is awaited
            again at once, 1 second and 3 seconds later, until it returns another refresh token. If it returns none,
            *refresh_token* is tried last: the user may have authorized the app again. It may take 5 seconds each time.
            If it fails, a warning is logged, and the tokens in use stay. It must not use this `OAuthToken`.

        token_url: the token endpoint, by default the environment's ``ASANA_TOKEN_URL``, else Asana's own. https; http
            only to loopback.
        timeout: seconds one refresh request may take. It is not retried here; a session retries by its policy.
        http: an ``aiohttp.ClientSession`` to use as it is; it is never closed. By default each request opens and
            closes a connection.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification cannot be switched off.
        trust_env: whether to take proxies from the environment, as aiohttp does.
        clock: returns the time in seconds since the epoch.

    Without *http*, *proxy*, *ssl* and *trust_env*, a refresh uses those of the session whose call starts it. If that
    session has a lent *http*, its headers and middlewares apply to the refresh too; its ``base_url`` does not.

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
        # Saved tokens
        on_refresh: Callable[[TokenSet], Awaitable[None]] | None = None,
        load: Callable[[], Awaitable[TokenSet | None]] | None = None,
        # HTTP
        token_url: str | None = None,
        timeout: float = 10.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        trust_env: bool = False,
        # Time
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client_id = check_token(client_id, "client_id")
        self._client_secret = Secret(check_token(client_secret, "client_secret"))
        self._refresh_token = self._given = Secret(check_token(refresh_token, "refresh_token"))
        self._access_token = Secret("" if access_token is None else check_token(access_token, "access_token"))
        end = math.inf if expires_at is None else _timestamp(expires_at)
        self._expires_at = -math.inf if access_token is None else end
        self._issued_until = self._expires_at if expires_at is not None else -math.inf  # stays if Asana rejects it
        if on_refresh is not None:
            check_handler("on_refresh", on_refresh, "tokens")
        if load is not None:
            check_handler("load", load)
        self._on_refresh, self._load = on_refresh, load
        if token_url is None:
            token_url = os.environ.get("ASANA_TOKEN_URL") or _TOKEN_URL
        self._token_url = check_url("token_url", token_url, example=_TOKEN_URL)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        settings = HttpSettings.of(http, proxy, ssl, trust_env=trust_env)
        self._settings = None if settings == HttpSettings() else settings  # None: those of the session
        self._clock = clock
        self._margin = _MARGIN
        self._retry_at = -math.inf  # no refresh before this time while the old token is valid
        self._unsaved: TokenSet | None = None  # new tokens until on_refresh has ended
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
            ConfigurationError: the proxy refused its user or password (407), aiohttp refuses to send the request, or
                another event loop that is not closed has used this object (with *http*: any other event loop).
        """
        self._enter_loop()
        due = not self._lasts(self._margin) and not (self._lasts(0) and self._clock() < self._retry_at)
        if due or self._unsaved is not None:
            await self._refresh()
        return self._access_token.reveal()

    async def renew(self, rejected: str) -> None:
        """Refresh the access token if *rejected* is still in use.

        Awaits the refresh, and raises the same errors as `__call__`.

        Args:
            rejected: the token Asana answered 401 to.
        """
        self._enter_loop()
        if Secret(rejected) == self._access_token:
            self._expires_at = -math.inf
            await self._refresh()

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigurationError(
                "this OAuthToken belongs to another event loop, which is not closed: create one OAuthToken in each "
                "loop; or use one loop after another, each closed before the next, as asyncio.run does"
            )
        if self._loop is not None and self._settings is not None and self._settings.http is not None:
            raise ConfigurationError(
                "the session passed as http= to this OAuthToken belongs to an event loop that is closed: leave http= "
                "out, or create an OAuthToken with a new session in each loop"
            )
        self._loop, self._task = loop, None  # the tokens stay; a refresh ended with its loop

    def _lasts(self, seconds: float) -> bool:
        return self._clock() + seconds < self._expires_at

    async def _refresh(self) -> None:
        """Await the refresh in flight, or start one; raise its error, a copy for each caller, if no token lasts."""
        if self._unsaved is not None and _refreshing.get() is self:
            return  # on_refresh and tasks it starts may use the new token; waiting for the refresh would be a deadlock
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._refresh_once(self._settings or settings_of_session.get()))
        task = self._task
        await asyncio.wait({task})  # unlike `await task`, does not cancel the task when cancelled
        if task.cancelled():
            problem = "the refresh task was cancelled"
            error: AsanaError | None = ConnectionFailedError(operation=OPERATION, attempts=1, problem=problem)
        else:
            error = copy(task.result())
        if error is not None and not self._lasts(0):
            raise error

    async def _refresh_once(self, settings: HttpSettings) -> AsanaError | None:
        _refreshing.set(self)
        self._retry_at = self._clock() + _RETRY_AFTER
        if self._unsaved is not None:  # the last loop ended before on_refresh did
            await self._save()
        else:
            saved = await self._find_saved()
            if saved is not None and saved.expires_at.timestamp() > self._issued_until:  # else saving ours had failed
                self._use_saved(saved)
        if self._lasts(self._margin):
            return None
        error = await self._request(settings)
        if isinstance(error, TokenRefreshError) and error.code == "invalid_grant" and await self._replaced():
            error = None if self._lasts(self._margin) else await self._request(settings)
        if error is not None:
            _log.info("refreshing the access token failed with %s", type(error).__name__)
            self._retry_at = self._clock() + _RETRY_AFTER
        return error

    async def _request(self, settings: HttpSettings) -> AsanaError | None:
        """Send one refresh request, and use and save the new tokens."""
        request = RefreshRequest(
            client_id=self._client_id,
            client_secret=self._client_secret,
            refresh_token=self._refresh_token,
            sent_at=self._clock(),
        )
        # Keep and save the tokens before the connection closes, so that a failing close cannot lose them.
        async with open_http(settings) as http:
            answer = await send_refresh(http, request, settings, url=self._token_url, seconds=self._timeout)
            if not isinstance(answer, TokenSet):
                return answer
            self._access_token, self._refresh_token = answer.access_token, answer.refresh_token
            self._expires_at = self._issued_until = answer.expires_at.timestamp()
            self._margin = min(_MARGIN, (self._expires_at - request.sent_at) / 2)
            self._unsaved = answer if self._on_refresh is not None else None
            await self._save()
        return None

    def _use_saved(self, tokens: TokenSet) -> None:
        self._refresh_token = tokens.refresh_token
        if tokens.access_token != self._access_token:  # the one in use may be rejected already
            self._access_token = tokens.access_token
            self._expires_at = self._issued_until = tokens.expires_at.timestamp()

    async def _replaced(self) -> bool:
        """Return whether there is another refresh token to try; then use it."""
        if self._load is None:
            return False
        for seconds in _LOOKS:
            await asyncio.sleep(seconds)
            saved = await self._find_saved()
            if saved is not None and saved.refresh_token != self._refresh_token:
                self._use_saved(saved)
                return True
        refused, self._refresh_token = self._refresh_token, self._given
        return self._given != refused  # the user may have authorized the app again after the last save

    async def _find_saved(self) -> TokenSet | None:
        if self._load is None:
            return None
        tokens = await _limited("load", "the tokens in use stay", self._load)
        try:
            return _check_saved(tokens)
        except ConfigurationError as error:  # unlike those of *load*, its text is known
            _log.warning("load returned tokens that cannot be used: %r", f"{error}")
            return None

    async def _save(self) -> None:
        if self._on_refresh is not None and self._unsaved is not None:
            await _limited("on_refresh", "the new tokens may not be saved", self._on_refresh, self._unsaved)
        self._unsaved = None  # not if cancelled above, with the loop: then the next one saves them


async def _limited(
    name: str, consequence: str, hook: Callable[..., Awaitable[ResultT]], *tokens: TokenSet
) -> ResultT | None:
    """Await *hook* with *tokens* for 5 seconds at most; if it fails, log a warning."""
    try:
        async with asyncio.timeout(_HOOK_TIMEOUT):
            return await hook(*tokens)
    except (asyncio.CancelledError, Exception) as error:
        # Its errors stop here, even during cancellation: their text may contain the tokens.
        if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
            raise
        _log.warning("%s failed with %s; %s", name, type(error).__name__, consequence)
        return None


def _check_saved(tokens: Any) -> TokenSet | None:
    if tokens is None:
        return None
    if not isinstance(tokens, TokenSet):
        raise ConfigurationError(f"load must return a TokenSet or None, not {type(tokens).__name__}")
    for name, token in (("access_token", tokens.access_token), ("refresh_token", tokens.refresh_token)):
        if not isinstance(token, Secret):
            raise ConfigurationError(f"{name} must be a Secret, not {type(token).__name__}")
        check_token(token.reveal(), name)
    _timestamp(tokens.expires_at)
    return tokens


def _timestamp(moment: Any) -> float:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ConfigurationError("expires_at must be a datetime with a time zone, such as datetime.now(UTC)")
    seconds: float = moment.timestamp()
    return seconds
