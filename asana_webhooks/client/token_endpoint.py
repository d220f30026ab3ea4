"""The token endpoint of OAuth 2: the tokens, the request for them, and how its answer is read.

Source: https://developers.asana.com/docs/oauth
"""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Final

import aiohttp
from attrs import frozen

from asana_webhooks import errors, wire
from asana_webhooks.client.auth import is_sendable
from asana_webhooks.client.responses import clean
from asana_webhooks.client.retry import parse_retry_after
from asana_webhooks.client.transport import (
    DEFAULT_HEADERS,
    PROXY_REFUSAL,
    HttpSettings,
    is_proxy_refusal,
    problem_of,
    read_body,
    refusal_of,
)
from asana_webhooks.errors import AsanaError, ConfigurationError, ConnectionFailedError
from asana_webhooks.models import Secret

__all__ = [
    "OPERATION",
    "RefreshRequest",
    "TokenSet",
    "asking_for_token",
    "open_http",
    "send_refresh",
    "settings_of_session",
]

OPERATION: Final = "refreshToken"
"""The refresh's operation name in errors; Asana has no operation id for it."""

_HEADERS: Final = {name: DEFAULT_HEADERS[name] for name in ("User-Agent", "Accept")}
_MAX_ANSWER: Final = 64 * 1024
"""Largest body of an answer, in bytes."""
_USUAL_LIFETIME: Final = 3600.0
"""Seconds an access token lasts, as documented; used for answers without ``expires_in``."""
_LONGEST_LIFETIME: Final = 365 * 86400.0
"""Longest lifetime in seconds that is accepted; longer ones are cut, so that `datetime` can hold the date."""

_NO_SETTINGS: Final = HttpSettings()
settings_of_session: ContextVar[HttpSettings] = ContextVar("settings_of_session", default=_NO_SETTINGS)
"""The settings of the session that asks for the token, or the defaults if none does."""


@contextmanager
def asking_for_token(settings: HttpSettings) -> Iterator[None]:
    """Let a provider called in this block find the *settings* of the session that calls it.

    They are in the context, not in an argument, so an `OAuthToken` also finds them inside a user's own provider.
    """
    before = settings_of_session.set(settings)
    try:
        yield
    finally:
        settings_of_session.reset(before)


@frozen(kw_only=True)
class TokenSet:
    """The valid tokens after a refresh; save them for the program's next start and for other processes."""

    access_token: Secret
    refresh_token: Secret
    """The new one if Asana sent one (the old one is then invalid); otherwise the old one."""
    expires_at: datetime
    """When the access token expires, with a time zone: UTC in what `on_refresh` gets."""


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
            return kind(operation=OPERATION, status=status, retry_after=retry_after)
        try:
            if 200 <= status < 300:
                return self._tokens(wire.decode_token_answer(body or b""))
            if 400 <= status < 500:
                return self._refusal(status, wire.decode_token_refusal(body or b""))
            problem = "it is a redirect; redirects are not followed" if status < 400 else "not a final HTTP status"
        except errors.PayloadError as error:
            problem = str(error)
        return errors.UnexpectedResponseError(operation=OPERATION, status=status, problem=problem)

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
            operation=OPERATION,
            status=status,
            code=clean(refusal.error, secrets) or "no code",
            messages=(description,) if description else (),
        )


def open_http(settings: HttpSettings) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """Return the lent http session, or a new one that closes at the end of the block."""
    if settings.http is not None:
        return nullcontext(settings.http)
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=settings.trust_env)


async def send_refresh(
    http: aiohttp.ClientSession, request: RefreshRequest, settings: HttpSettings, *, url: str, seconds: float
) -> TokenSet | AsanaError:
    """Send *request* once; return the new tokens or the error, within *seconds*."""
    # Errors are returned, not raised: their context would be aiohttp's error, which holds the whole request.
    try:
        async with (
            asyncio.timeout(seconds) as limit,
            http.post(
                url,
                data=request.form(),
                headers=_HEADERS,
                allow_redirects=False,
                raise_for_status=False,
                proxy=settings.proxy,
                ssl=settings.ssl,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response,
        ):
            body = await read_body(response, most=_MAX_ANSWER)
    except (aiohttp.ClientError, OSError) as error:
        if is_proxy_refusal(error):
            return ConfigurationError(PROXY_REFUSAL)
        late = isinstance(error, TimeoutError) and limit.expired()
        problem = f"the token endpoint did not answer within {seconds:g} seconds" if late else problem_of(error)
        return ConnectionFailedError(operation=OPERATION, attempts=1, problem=problem)
    except (ValueError, RuntimeError, TypeError) as error:
        return ConfigurationError(refusal_of(error, lent=settings.http is not None))
    if response.status == 407:
        return ConfigurationError(PROXY_REFUSAL)
    retry_after = parse_retry_after(response.headers.getall("Retry-After", ()), response.headers.get("Date"))
    return request.answer(response.status, body, retry_after=retry_after)
