"""The token endpoint: the apps, and the access tokens issued to them.

Sources: https://developers.asana.com/docs/oauth and https://www.rfc-editor.org/rfc/rfc6749#section-5.2
"""

import hmac
import itertools
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import define, field

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.world import DEFAULT_USER, World

__all__ = ["DEFAULT_TOKEN", "TOKEN_PATH", "AppRecord", "FakeTokenEndpoint"]

DEFAULT_TOKEN: Final = "2/1331/8675309:0123456789abcdef0123456789abcdef"  # noqa: S105 (not a real token)
"""The default access token of `FakeAsana`; it has the form of a personal access token."""

TOKEN_PATH: Final = "/-/oauth_token"  # noqa: S105 (a path)
_LIFETIME: Final = timedelta(hours=1)
_FORM: Final = "application/x-www-form-urlencoded"
_REQUIRED: Final = ("grant_type", "client_id", "client_secret", "refresh_token")


@define(kw_only=True, eq=False)
class AppRecord:
    """An app that one user has authorized."""

    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    """The refresh token accepted now; assign to it to change it."""
    rotate: bool = False
    """True to replace the refresh token with every access token, which Asana does not do."""
    refreshes: int = 0
    """How many access tokens were issued to it."""


class FakeTokenEndpoint:
    """Issues access tokens for refresh tokens, and checks access tokens.

    Args:
        world: provides the clock that expires tokens, and the random secrets in them.
        token: an additional access token to accept; assign to `token` to change it.
    """

    def __init__(self, *, world: World, token: str) -> None:
        self.token = token
        self._world = world
        self._numbers = itertools.count(1)
        self._apps: dict[str, AppRecord] = {}
        self._issued: dict[str, datetime] = {}
        """When each access token expires."""

    def register(self, client_id: str, *, rotate: bool) -> AppRecord:
        """Add an app, which may then request tokens.

        Raises:
            ConfigurationError: an app with this id exists.
        """
        if client_id in self._apps:
            raise ConfigurationError(f"the fake already has an app {client_id!r:.80}")
        self._apps[client_id] = AppRecord(
            client_id=client_id,
            client_secret=self._world.secret().reveal(),
            refresh_token=self._new_token(),
            rotate=rotate,
        )
        return self._apps[client_id]

    def accepts(self, access_token: str) -> bool:
        """Return whether an access token is valid now."""
        if hmac.compare_digest(access_token.encode(errors="replace"), self.token.encode()):
            return True
        return access_token in self._issued and self._world.clock.now() < self._issued[access_token]

    def revoke(self, access_token: str) -> None:
        """Expire an access token now.

        Raises:
            ConfigurationError: the token was not issued here.
        """
        if access_token not in self._issued:
            raise ConfigurationError("this access token was not issued to an app; only such tokens can be revoked")
        self._issued[access_token] = self._world.clock.now()

    def answer(self, content_type: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON that answer one request."""
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True)) if content_type == _FORM else None
        app = self._admit(form)
        if not isinstance(app, AppRecord):
            code, description = app
            why = {"error": code, "error_description": description}
            return 400, why | {"error_uri": "https://developers.asana.com/docs/oauth"}
        app.refreshes += 1
        access_token = self._new_token()
        self._issued[access_token] = self._world.clock.now() + _LIFETIME
        tree: dict[str, Any] = {
            "access_token": access_token,
            "token_type": "bearer",
            "expires_in": int(_LIFETIME.total_seconds()),
            "data": {"id": DEFAULT_USER, "gid": DEFAULT_USER, "name": "User", "email": "user@example.com"},
        }
        if app.rotate:
            app.refresh_token = tree["refresh_token"] = self._new_token()
        return 200, tree

    def _new_token(self) -> str:
        """Return a new token in Asana's form."""
        return f"2/{DEFAULT_USER}/{next(self._numbers)}:{self._world.secret().reveal()}"

    def _admit(self, form: Mapping[str, str] | None) -> AppRecord | tuple[str, str]:
        """Return the app that may have a token, or OAuth's error code and its description."""
        if form is None:
            return "invalid_request", "The request must be form-encoded."
        for name in _REQUIRED:
            if not form.get(name):
                return "invalid_request", f"The `{name}` parameter is required."
        if form["grant_type"] != "refresh_token":
            return "unsupported_grant_type", "The `grant_type` provided is not supported."
        app = self._apps.get(form["client_id"])
        if app is None or app.client_secret != form["client_secret"]:
            return "invalid_client", "The `client_id` or `client_secret` provided was invalid."
        if app.refresh_token != form["refresh_token"]:
            return "invalid_grant", "The `refresh_token` provided was invalid."
        return app
