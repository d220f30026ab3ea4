"""The token endpoint: which apps there are, and the access tokens it issues to them.

Sources: https://developers.asana.com/docs/oauth and https://www.rfc-editor.org/rfc/rfc6749#section-5.2
"""

import itertools
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import define, field

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.answers import Answer
from asana_webhooks.testing.changes import DEFAULT_USER
from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.signing import new_secret

__all__ = ["TOKEN_PATH", "AppRecord", "TokenEndpoint"]

TOKEN_PATH: Final = "/-/oauth_token"  # noqa: S105 (a path)
_LIFETIME: Final = timedelta(hours=1)
_FORM: Final = "application/x-www-form-urlencoded"
_REQUIRED: Final = ("grant_type", "client_id", "client_secret", "refresh_token")


@define(kw_only=True, eq=False)
class AppRecord:
    """An app, and the one user who has authorized it."""

    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    """The one that is good now; settable."""
    rotate: bool = False
    """True to send a new refresh token with every access token and refuse the old one, which Asana does not do."""
    refreshes: int = 0
    """How many access tokens it got."""


class _RefusedError(Exception):
    """The endpoint's no, found anywhere, answered in one place."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(code, description)
        self.code = code
        self.description = description


class TokenEndpoint:
    """Issues access tokens for refresh tokens.

    Args:
        clock: what time it is.
        rng: where the tokens come from.
    """

    def __init__(self, *, clock: FakeClock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._numbers = itertools.count(1)
        self._apps: dict[str, AppRecord] = {}
        self._issued: dict[str, datetime] = {}
        """When which access token ends."""

    def register(self, client_id: str, *, rotate: bool) -> AppRecord:
        """Let a new app ask for tokens.

        Raises:
            ConfigurationError: there is one with this id.
        """
        if client_id in self._apps:
            raise ConfigurationError(f"there is an app {client_id!r:.80} already")
        self._apps[client_id] = AppRecord(
            client_id=client_id,
            client_secret=new_secret(self._rng).reveal(),
            refresh_token=self._new_token(),
            rotate=rotate,
        )
        return self._apps[client_id]

    def accepts(self, access_token: str) -> bool:
        """Tell whether an access token was issued here and is still good."""
        return access_token in self._issued and self._clock.now() < self._issued[access_token]

    def revoke(self, access_token: str) -> None:
        """Let an access token end now.

        Raises:
            ConfigurationError: it was not issued here.
        """
        if access_token not in self._issued:
            raise ConfigurationError("no app got this access token from the fake")
        self._issued[access_token] = self._clock.now()

    def answer(self, content_type: str, body: bytes) -> Answer:
        """Answer one request."""
        try:
            app = self._admit(_read_form(content_type, body))
        except _RefusedError as refusal:
            why = {"error": refusal.code, "error_description": refusal.description}
            return Answer.of(400, why | {"error_uri": "https://developers.asana.com/docs/oauth"})
        app.refreshes += 1
        access_token = self._new_token()
        self._issued[access_token] = self._clock.now() + _LIFETIME
        tree: dict[str, Any] = {
            "access_token": access_token,
            "token_type": "bearer",
            "expires_in": int(_LIFETIME.total_seconds()),
            "data": {"id": DEFAULT_USER, "gid": DEFAULT_USER, "name": "User", "email": "user@example.com"},
        }
        if app.rotate:
            app.refresh_token = tree["refresh_token"] = self._new_token()
        return Answer.of(200, tree)

    def _new_token(self) -> str:
        """A text that looks like a token of Asana's."""
        return f"2/{DEFAULT_USER}/{next(self._numbers)}:{new_secret(self._rng).reveal()}"

    def _admit(self, form: Mapping[str, str]) -> AppRecord:
        for name in _REQUIRED:
            if not form.get(name):
                raise _RefusedError("invalid_request", f"The `{name}` parameter is required.")
        if form["grant_type"] != "refresh_token":
            raise _RefusedError("unsupported_grant_type", "The `grant_type` provided is not supported.")
        app = self._apps.get(form["client_id"])
        if app is None or app.client_secret != form["client_secret"]:
            raise _RefusedError("invalid_client", "The `client_id` or `client_secret` provided was invalid.")
        if app.refresh_token != form["refresh_token"]:
            raise _RefusedError("invalid_grant", "The `refresh_token` provided was invalid.")
        return app


def _read_form(content_type: str, body: bytes) -> dict[str, str]:
    if content_type != _FORM:
        raise _RefusedError("invalid_request", "The request must be form-encoded.")
    return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
