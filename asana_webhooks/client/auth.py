"""Where access tokens come from: a fixed one, the environment, or whatever async callable a user brings.

`asana_webhooks.client.oauth` has the one for OAuth 2.

Source: https://developers.asana.com/docs/personal-access-token
"""

import os
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

__all__ = ["FixedToken", "RenewingTokenProvider", "TokenProvider", "check_token", "is_sendable", "token_provider"]

TokenProvider = Callable[[], Awaitable[str]]
"""An async callable that returns the access token; it is asked before every attempt.

After a 401 it is asked once more in the same call: if it gives another token then, the request is sent with that, and
if not, the 401 stands. One that has to be told which token was refused is a `RenewingTokenProvider`.

A provider may raise `NetworkError`, `RateLimitedError` or `ServerError` to say that it has no token for the moment:
nothing is sent then, and the session asks again by its policy. Its other errors end the call.
"""


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
        self.token = Secret(check_token(token))

    async def __call__(self) -> str:
        """Return the token."""
        return self.token.reveal()


def token_provider(token: str | TokenProvider | None) -> TokenProvider:
    """Return the provider for a session's *token* argument; ``None`` reads ``ASANA_ACCESS_TOKEN``.

    Raises:
        ConfigurationError: the token cannot be used, or there is none.
    """
    if token is None:
        token = os.environ.get("ASANA_ACCESS_TOKEN")
        if token is None:
            raise ConfigurationError("no access token: pass token= to AsanaSession, or set ASANA_ACCESS_TOKEN")
    return token if callable(token) else FixedToken(token)


def check_token(token: object, name: str = "the access token") -> str:
    """Return *token* if it can be sent in a header.

    Args:
        token: an access token, or one of the other texts that are copied from Asana.
        name: what it is called, for the error.

    Raises:
        ConfigurationError: it is empty, no text, or has a space, a line break or a character outside ASCII.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"{name} must be a text, not {type(token).__name__}")
    if not is_sendable(token):
        problem = "is empty" if not token else "holds a space, a line break or a character outside ASCII"
        raise ConfigurationError(f"{name} {problem}; copy it again from Asana's developer console")
    return token


def is_sendable(token: str) -> bool:
    """Tell whether a header can carry *token*."""
    return re.fullmatch(r"[\x21-\x7e]+", token) is not None
