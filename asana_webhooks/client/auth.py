"""Where access tokens come from: a fixed one, the environment, OAuth 2, or whatever async callable a user brings.

Sources: https://developers.asana.com/docs/personal-access-token and https://developers.asana.com/docs/oauth
"""

import asyncio
import logging
import math
import os
import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable
from copy import copy
from datetime import datetime
from typing import Any, Final, Protocol

import aiohttp

from asana_webhooks._checks import check_seconds
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.options import check_proxy, check_url
from asana_webhooks.client.single_flight import SingleFlight
from asana_webhooks.client.token_endpoint import TokenEndpoint
from asana_webhooks.client.tokens import RefreshRequest, TokenSet, check_token
from asana_webhooks.client.transport import check_lent, check_ssl
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.models import Secret

__all__ = ["FixedToken", "OAuthToken", "RenewingTokenProvider", "TokenProvider", "check_token", "token_provider"]

TokenProvider = Callable[[], Awaitable[str]]
"""An async callable that returns the access token; it is asked before every attempt.

After a 401 it is asked once more in the same call: if it gives another token then, the request is sent with that, and
if not, the 401 stands. One that has to be told which token was refused is a `RenewingTokenProvider`.

A provider may raise `NetworkError`, `RateLimitedError` or `ServerError` to say that it has no token for the moment:
nothing is sent then, and the session asks again by its policy. Its other errors end the call.
"""

_TOKEN_URL: Final = "https://app.asana.com/-/oauth_token"  # noqa: S105 - an address
_MARGIN: Final = 60.0
"""Seconds before its end from which an access token is replaced."""
_AGAIN: Final = 10.0
"""Seconds after which a refresh that failed is tried again, as long as the old token is good."""
_HOOK_TIMEOUT: Final = 5.0
"""Seconds `on_refresh` may take."""
_ENDING: Final = 1.0
"""Seconds a refresh may take to end when nobody waits for it any more; at once, unless a hook ignores cancellation."""

_log = logging.getLogger(__name__)


class RenewingTokenProvider(Protocol):
    """A `TokenProvider` that is told when Asana refuses a token: before it is asked again after a 401.

    Both methods are cancelled when the call's time is over, and raise what a `TokenProvider` may.
    """

    async def __call__(self) -> str:
        """Return the access token."""
        ...

    async def renew(self, rejected: str) -> None:
        """Get another token, unless the one in use is not *rejected* any more.

        Many calls at once may have sent the same token, and each says so; only the first has something to do.

        Args:
            rejected: the token Asana answered 401 to.
        """
        ...


class FixedToken:
    """A provider of one token that never changes, such as a personal access token."""

    def __init__(self, token: str) -> None:
        try:
            self.token = Secret(check_token(token))
        finally:
            del token  # so that no traceback shows it

    async def __call__(self) -> str:
        """Return the token."""
        return self.token.reveal()


class OAuthToken:
    """A provider of OAuth 2 access tokens, which last an hour: it gets a new one with the refresh token in time.

    Give it to any number of sessions in one event loop. However many calls need a new token, one request is sent for
    all of them: before the old one ends, and when Asana refuses it. There is nothing to close.

    A call that is cancelled while it waits leaves the request to the others that wait for it; the last one drops it.
    What has been answered is kept even then. If that was while *on_refresh* was at work, it is cancelled too, and
    called again with the same tokens before a token is next given out. A program that ends before that has not saved
    them, which matters only if the refresh token has changed.

    ::

        token = OAuthToken(client_id="…", client_secret="…", refresh_token="…", on_refresh=save)
        async with AsanaSession(token) as asana: ...

    Args:
        client_id: the app's, from Asana's developer console.
        client_secret: the app's.
        refresh_token: what Asana answered when the user authorized the app.
        access_token: one that may still be good, from an earlier run. Without it one is asked for at once.
        expires_at: when that ends, with a time zone. Without it, it is used until Asana refuses it.

        on_refresh: awaited with the new tokens after every refresh, before the first of them is used: to save them.
            It has 5 seconds; if it fails, a warning is logged, and the tokens are good until the program ends. In
            those seconds it may be called again with the same tokens, if it was cancelled.

        token_url: the token endpoint, by default the environment's ``ASANA_TOKEN_URL``, else Asana's own. https; http
            only to loopback.
        timeout: seconds one request to it may take. It is not repeated; a session asks again by its policy.
        http: a lent ``aiohttp.ClientSession``; it is used as it is and never closed. By default each request has its
            own connection, which is closed at once.
        proxy: the URL of an HTTP proxy.
        ssl: how to verify Asana's certificate; verification itself cannot be switched off.
        clock: tells the time in seconds since 1970.

    Raises:
        ConfigurationError: an argument cannot work.

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
        has_access_token = access_token is not None
        try:
            self._client_secret = Secret(check_token(client_secret, "client_secret"))
            self._refresh_token = Secret(check_token(refresh_token, "refresh_token"))
            self._access_token = Secret("" if access_token is None else check_token(access_token, "access_token"))
        finally:
            del client_secret, refresh_token, access_token  # so that no traceback shows them
        if http is not None:
            check_lent(http)
        if on_refresh is not None and not callable(on_refresh):
            raise ConfigurationError(f"on_refresh must be an async callable, not {type(on_refresh).__name__}")
        self._client_id = check_token(client_id, "client_id")
        end = math.inf if expires_at is None else _timestamp(expires_at)
        self._expires_at = end if has_access_token else -math.inf
        self._margin = _MARGIN
        self._again_at = -math.inf  # while the old token is good, a failure is not repeated before
        self._on_refresh = on_refresh
        if token_url is None:
            token_url = os.environ.get("ASANA_TOKEN_URL") or _TOKEN_URL
        token_url = check_url("token_url", token_url, example=_TOKEN_URL)
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._endpoint = TokenEndpoint(url=token_url, http=http, proxy=check_proxy(proxy), ssl=check_ssl(ssl))
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unsaved: TokenSet | None = None
        self._save_until = 0.0  # by the loop's clock
        self._refresh = SingleFlight(self._refresh_once, ending=_ENDING)

    async def __call__(self) -> str:
        """Return an access token that is good, as far as we know.

        Awaits a refresh if it ends within a minute. As long as the old one is good, only the call that begins the
        refresh waits for it; if it fails, the old one is returned, and the next refresh is not tried for 10 seconds.

        Raises:
            TokenRefreshError: Asana refuses to issue another one.
            ConnectionFailedError: the token endpoint could not be reached, or did not answer in time.
            RateLimitedError: it was asked too often.
            ServerError: it failed.
            UnexpectedResponseError: its answer cannot be used.
            ConfigurationError: this is another event loop than before, or aiohttp refuses to send.
        """
        self._enter_loop()
        if self._refresh.is_inside():  # on_refresh may use the token it is to save
            return self._access_token.reveal()
        if self._unsaved is not None or (not self._lasts(self._margin) and not self._may_wait()):
            error = copy(await self._refresh())  # many calls may raise it, each for itself
            if error is not None and not self._lasts(0):
                raise error
        return self._access_token.reveal()

    async def renew(self, rejected: str) -> None:
        """Get another access token if *rejected* still is the one in use.

        Awaits and raises what calling the provider does.

        Args:
            rejected: the token Asana answered 401 to.
        """
        refused = Secret(rejected)
        del rejected  # a traceback shows what has a name
        self._enter_loop()
        if refused == self._access_token:
            self._expires_at = -math.inf
            if self._refresh.is_inside():  # its on_refresh has met the 401, and cannot wait for itself
                return
            error = copy(await self._refresh())
            if error is not None:
                raise error

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError("this OAuthToken belongs to another event loop; make one in each loop")

    def _lasts(self, seconds: float) -> bool:
        return self._clock() + seconds < self._expires_at

    def _may_wait(self) -> bool:
        return self._lasts(0) and self._clock() < self._again_at

    async def _refresh_once(self) -> AsanaError | None:
        """Refresh, and return the error if there was one; or save what a cancelled run has left unsaved."""
        if self._unsaved is not None:
            await self._save(self._unsaved)
            if self._lasts(self._margin) or self._may_wait():
                return None
        self._again_at = self._clock() + _AGAIN
        request = RefreshRequest(
            client_id=self._client_id,
            client_secret=self._client_secret,
            refresh_token=self._refresh_token,
            sent_at=self._clock(),
        )
        async with self._endpoint.asking(request, seconds=self._timeout) as answer:
            if not isinstance(answer, TokenSet):
                _log.info("refreshing the access token failed with %s", type(answer).__name__)
                self._again_at = self._clock() + _AGAIN
                return answer
            self._access_token = answer.access_token
            self._refresh_token = answer.refresh_token
            self._expires_at = answer.expires_at.timestamp()
            self._margin = min(_MARGIN, (self._expires_at - request.sent_at) / 2)
            self._save_until = asyncio.get_running_loop().time() + _HOOK_TIMEOUT
            await self._save(answer)
            return None

    async def _save(self, tokens: TokenSet) -> None:
        self._unsaved = tokens  # and so it stays if this is cancelled
        try:
            async with asyncio.timeout_at(self._save_until):
                if self._on_refresh is not None:
                    await self._on_refresh(tokens)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            _log.warning("on_refresh failed with CancelledError: the new tokens are not saved")
        except Exception as error:  # noqa: BLE001 - a hook may raise anything, and its text may hold the tokens
            _log.warning("on_refresh failed with %s: the new tokens are not saved", type(error).__name__)
        self._unsaved = None


def _timestamp(moment: Any) -> float:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ConfigurationError("expires_at must be a datetime with a time zone, such as datetime.now(UTC)")
    seconds: float = moment.timestamp()
    return seconds


def token_provider(token: str | TokenProvider | None) -> TokenProvider:
    """Return the provider for a session's *token* argument; ``None`` reads ``ASANA_ACCESS_TOKEN``.

    Raises:
        ConfigurationError: the token cannot be used, or there is none.
    """
    if token is None:
        token = os.environ.get("ASANA_ACCESS_TOKEN")
        if token is None:
            raise ConfigurationError("no access token: pass token= to AsanaSession, or set ASANA_ACCESS_TOKEN")
    if callable(token):
        return token
    try:
        return FixedToken(token)
    finally:
        del token  # so that no traceback shows it
