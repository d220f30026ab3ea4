"""Where access tokens come from: a fixed one, the environment, or whatever async callable a user brings.

Source: https://developers.asana.com/docs/personal-access-token
"""

import os
import re
from collections.abc import Awaitable, Callable

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

__all__ = ["FixedToken", "TokenProvider", "check_token", "token_provider"]

TokenProvider = Callable[[], Awaitable[str]]
"""An async callable that returns the access token; it is asked before every attempt."""


def check_token(token: object) -> str:
    """Return *token* if it can be sent in a header.

    Raises:
        ConfigurationError: it is empty, no text, or has a space, a line break or a character outside ASCII.
    """
    if not isinstance(token, str):
        raise ConfigurationError(f"the access token must be a text, not {type(token).__name__}")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        problem = "is empty" if not token else "holds a space, a line break or a character outside ASCII"
        raise ConfigurationError(f"the access token {problem}; copy it again from Asana's developer console")
    return token


class FixedToken:
    """A provider of one token that never changes, such as a personal access token."""

    def __init__(self, token: str) -> None:
        self._token = Secret(check_token(token))

    async def __call__(self) -> str:
        """Return the token."""
        return self._token.reveal()


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
    return FixedToken(token)
