"""Sources of access tokens: a fixed string, the environment, or any async callable.

The provider for OAuth 2 is in `asana_webhooks.client.oauth`.

Source: https://developers.asana.com/docs/personal-access-token
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from asana_webhooks._checks import check_handler
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.models import Secret

__all__ = [
    "FixedToken",
    "RenewingTokenProvider",
    "TokenProvider",
    "ask_token",
    "check_token",
    "is_sendable",
    "token_provider",
]

TokenProvider = Callable[[], Awaitable[str]]
"""An async callable that returns the access token; it is called before every attempt.

After a 401 the session calls it once more. If it returns another token, the request is sent with that; if not, the 401
is raised. A provider that needs to know which token Asana rejected is a `RenewingTokenProvider`.

A provider may raise `NetworkError`, `RateLimitedError` or `ServerError` if it has no token at the moment. Then nothing
is sent, and the session retries by its policy. Other errors end the call.
"""


class RenewingTokenProvider(Protocol):
    """A `TokenProvider` with `renew`, which is awaited after a 401 before the provider is called again.

    Both methods are cancelled at the call's deadline, and may raise the same errors as a `TokenProvider`.
    """

    async def __call__(self) -> str:
        """Return the access token."""
        ...

    async def renew(self, rejected: str) -> None:
        """Get another token, unless *rejected* has already been replaced.

        Concurrent calls may have sent the same token, and each calls this; only the first needs to act.

        Args:
            rejected: the token Asana answered 401 to.
        """
        ...


class FixedToken:
    """A provider of one token that never changes, such as a personal access token."""

    def __init__(self, token: str) -> None:
        self.token = Secret(check_token(token))

    async def __call__(self) -> str:
        """Return the token."""
        return self.token.reveal()


def token_provider(token: str | TokenProvider | None) -> TokenProvider:
    """Return the provider for a session's *token* argument; ``None`` reads ``ASANA_ACCESS_TOKEN``.

    Raises:
        ConfigurationError: the token is invalid or missing, or is a class or a callable that is not async.
    """
    if token is None:
        token = os.environ.get("ASANA_ACCESS_TOKEN")
        if token is None:
            raise ConfigurationError("no access token: pass token= to AsanaSession, or set ASANA_ACCESS_TOKEN")
    if not callable(token):
        return FixedToken(token)
    check_handler("token", token)
    return token


async def ask_token(provider: TokenProvider, rejected: Secret | None) -> Secret:
    """Return a token from *provider*; if *rejected* is given, await its ``renew`` first.

    Args:
        provider: the provider.
        rejected: a token that Asana answered 401 to.

    Raises:
        AsanaError: the provider raises an error of this package.
        ConfigurationError: the provider raises anything else, or its token cannot be sent.
    """
    try:
        renew = getattr(provider, "renew", None)
        if rejected is not None and renew is not None:
            await renew(rejected.reveal())
        return Secret(check_token(await provider()))
    except AsanaError:
        raise
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
        problem = "CancelledError"
    except Exception as error:  # noqa: BLE001 - a provider may raise anything, with the token in it
        problem = type(error).__name__
    raise ConfigurationError(f"the token provider failed with {problem}")


def check_token(token: object, name: str = "the access token") -> str:
    """Return *token* if it can be sent in a header.

    Args:
        token: an access token, or another credential copied from Asana.
        name: the credential's name, for the error.

    Raises:
        ConfigurationError: *token* is not a string, is empty, begins with "Bearer", or has a space, line break or
            character outside ASCII.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"{name} must be a string, not {type(token).__name__}")
    if re.match(r"\s*bearer\s", token, re.IGNORECASE):
        raise ConfigurationError(f"{name} begins with the word Bearer; leave that word out")
    if not is_sendable(token):
        problem = "is empty" if not token else "has a space, a line break or a character outside ASCII"
        raise ConfigurationError(f"{name} {problem}; copy it again from Asana's developer console")
    return token


def is_sendable(token: str) -> bool:
    """Return whether *token* can be sent in a header."""
    return re.fullmatch(r"[\x21-\x7e]+", token) is not None
