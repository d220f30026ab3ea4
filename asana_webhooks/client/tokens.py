"""Tokens: which can be sent, what to ask for a new one, and what the answer means. No await, no socket.

Source: https://developers.asana.com/docs/oauth
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import frozen

from asana_webhooks import errors, wire
from asana_webhooks.client.responses import clean
from asana_webhooks.models import Secret

__all__ = ["REFRESH", "RefreshRequest", "TokenSet", "check_token"]

REFRESH: Final = "refreshToken"
"""What errors call the request for a new access token; Asana has no operation id for it."""

_USUAL_LIFETIME: Final = 3600.0
"""Seconds an access token lasts, says Asana; for answers that do not say it themselves."""
_LONGEST_LIFETIME: Final = 365 * 86400.0
"""Seconds. What lasts longer is asked for again before, and no date grows too large for a calendar."""


def check_token(token: object, name: str = "the access token") -> str:
    """Return *token* if it can be sent in a header.

    Args:
        token: an access token, or one of the other texts that are copied from Asana.
        name: what it is called, for the error.

    Raises:
        ConfigurationError: it is empty, no text, or has a space, a line break or a character outside ASCII.
    """
    problem = _problem(token)
    if not problem:
        return str(token)
    del token  # not even a traceback shows it
    raise errors.ConfigurationError(f"{name} {problem}")


def _problem(token: object) -> str:
    if not isinstance(token, str):
        return f"must be a text, not {type(token).__name__}"
    if _is_sendable(token):
        return ""
    problem = "is empty" if not token else "holds a space, a line break or a character outside ASCII"
    return f"{problem}; copy it again from Asana's developer console"


def _is_sendable(token: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]+", token) is not None


@frozen(kw_only=True)
class TokenSet:
    """The tokens that are good after a refresh: what to keep for the next start of the program."""

    access_token: Secret
    refresh_token: Secret
    """A new one if Asana sent one, and the old one is no good any more; else the old one."""
    expires_at: datetime
    """When the access token ends, in UTC."""


@frozen(kw_only=True)
class RefreshRequest:
    """The request for a new access token, and how to read its answer."""

    client_id: str
    client_secret: Secret
    refresh_token: Secret
    sent_at: float
    """Seconds since 1970. A new token's lifetime is counted from here: it may end a little later, but never sooner."""

    def form(self) -> dict[str, str]:
        """Return what is sent, as a form. Source: https://www.rfc-editor.org/rfc/rfc6749#section-6"""
        return {
            "grant_type": "refresh_token",
            "client_id": self.client_id,
            "client_secret": self.client_secret.reveal(),
            "refresh_token": self.refresh_token.reveal(),
        }

    def answer(
        self, status: int, body: bytes | None, *, retry_after: float | None = None
    ) -> TokenSet | errors.ResponseError:
        """Read an answer. An error is returned, not raised, so that its traceback does not show what stands here.

        Args:
            status: the answer's HTTP status.
            body: its whole body, or ``None`` if it was cut off or too long.
            retry_after: seconds it asks to wait.
        """
        if status == 429 or 500 <= status < 600:
            kind = errors.RateLimitedError if status == 429 else errors.ServerError
            return kind(operation=REFRESH, status=status, retry_after=retry_after)
        try:
            if 200 <= status < 300:
                return self._tokens(wire.decode_token_answer(body or b""))
            if 400 <= status < 500:
                return self._refusal(status, wire.decode_token_refusal(body or b""))
            problem = "it is a redirect, which is never followed" if status < 400 else "HTTP has no such status"
        except errors.PayloadError as error:
            problem = str(error)
        return errors.UnexpectedResponseError(operation=REFRESH, status=status, problem=problem)

    def _tokens(self, answer: wire.TokenAnswer) -> TokenSet:
        refresh_token = answer.refresh_token or self.refresh_token
        if not _is_sendable(answer.access_token.reveal()) or not _is_sendable(refresh_token.reveal()):
            raise errors.PayloadError(problem="a token in it is empty, or holds what cannot be sent")
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
            operation=REFRESH,
            status=status,
            code=clean(refusal.error, secrets) or "no code",
            messages=(description,) if description else (),
        )
