"""Access tokens: the apps and users they belong to, their scopes, and the endpoint that issues them.

Sources: https://developers.asana.com/docs/oauth and https://www.rfc-editor.org/rfc/rfc6749#section-5.2
"""

import hmac
import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import define, field, frozen

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.world import DEFAULT_USER, World, check_text

__all__ = ["DEFAULT_TOKEN", "TOKEN_PATH", "AppRecord", "Caller", "FakeTokenEndpoint"]

DEFAULT_TOKEN: Final = "2/1331/8675309:0123456789abcdef0123456789abcdef"  # noqa: S105 (not a real token)
"""The default access token of `FakeAsana`; it has the form of a personal access token."""

TOKEN_PATH: Final = "/-/oauth_token"  # noqa: S105 (a path)
_LIFETIME: Final = timedelta(hours=1)
_FORM: Final = "application/x-www-form-urlencoded"
_REQUIRED: Final = ("grant_type", "client_id", "client_secret", "refresh_token")
# https://developers.asana.com/docs/oauth-scopes: "Each scope is in the form <resource>:<action>"
_SCOPE: Final = re.compile(r"[a-z_.]+:(?:read|write|delete)")


@frozen
class Caller:
    """Who makes a request: a user, through an app or with a token of their own."""

    user: str = DEFAULT_USER
    app: str | None = None
    """The app's client id; ``None`` for the user's own token."""
    scopes: tuple[str, ...] | None = None
    """What the token is good for; ``None`` for everything."""


@define(kw_only=True, eq=False)
class AppRecord:
    """An app that one user has authorized."""

    client_id: str
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)
    """The refresh token accepted now; assign to it to change it."""
    access_token: str = field(repr=False)
    """Its first access token, issued when the user authorized it."""
    user: str = DEFAULT_USER
    """The user's gid."""
    scopes: tuple[str, ...] | None = None
    """What the user authorized it for, such as ``webhooks:read``; ``None`` for everything."""
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
        self._apps: list[AppRecord] = []
        self._issued: dict[str, tuple[Caller, datetime]] = {}
        """Whose each access token is, and when it expires."""

    def register(self, client_id: str, *, user: str, scopes: Sequence[str] | None, rotate: bool) -> AppRecord:
        """Add an app that a user has authorized, which may then request tokens.

        Raises:
            ConfigurationError: a value is invalid, or this user has authorized this app before.
        """
        if not client_id:
            raise ConfigurationError("client_id must not be empty")
        check_text("client_id", client_id)
        if not (user.isascii() and user.isdigit()):
            raise ConfigurationError(f"user must be a gid, a string of digits, not {user!r:.80}")
        granted = _check_scopes(scopes)
        same = [app for app in self._apps if app.client_id == client_id]
        if any(app.user == user for app in same):
            raise ConfigurationError(f"the fake already has an app {client_id!r:.80} of user {user}")
        caller = Caller(user, client_id, granted)
        app = AppRecord(
            client_id=client_id,
            client_secret=same[0].client_secret if same else self._world.secret().reveal(),
            refresh_token=self._new_token(user),
            access_token=self._issue(caller),
            user=user,
            scopes=granted,
            rotate=rotate,
        )
        self._apps.append(app)
        return app

    def caller(self, access_token: str) -> Caller | None:
        """Return who makes a request with this access token; ``None`` if it is not valid now."""
        if hmac.compare_digest(access_token.encode(errors="replace"), self.token.encode()):
            return Caller()
        caller, expires = self._issued.get(access_token, (None, self._world.clock.now()))
        return caller if self._world.clock.now() < expires else None

    def revoke(self, access_token: str) -> None:
        """Expire an access token now.

        Raises:
            ConfigurationError: the token was not issued here.
        """
        if access_token not in self._issued:
            raise ConfigurationError("this access token was not issued to an app; only such tokens can be revoked")
        self._issued[access_token] = (self._issued[access_token][0], self._world.clock.now())

    def answer(self, content_type: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON that answer one request."""
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True)) if content_type == _FORM else None
        app = self._admit(form)
        if not isinstance(app, AppRecord):
            code, description = app
            why = {"error": code, "error_description": description}
            return 400, why | {"error_uri": "https://developers.asana.com/docs/oauth"}
        app.refreshes += 1
        tree: dict[str, Any] = {
            "access_token": self._issue(Caller(app.user, app.client_id, app.scopes)),
            "token_type": "bearer",
            "expires_in": int(_LIFETIME.total_seconds()),
            "data": {"id": app.user, "gid": app.user, "name": "User", "email": "user@example.com"},
        }
        if app.rotate:
            app.refresh_token = tree["refresh_token"] = self._new_token(app.user)
        return 200, tree

    def _issue(self, caller: Caller) -> str:
        """Return a new access token for *caller*."""
        access_token = self._new_token(caller.user)
        self._issued[access_token] = (caller, self._world.clock.now() + _LIFETIME)
        return access_token

    def _new_token(self, user: str) -> str:
        """Return a new token in Asana's form."""
        return f"2/{user}/{next(self._numbers)}:{self._world.secret().reveal()}"

    def _admit(self, form: Mapping[str, str] | None) -> AppRecord | tuple[str, str]:
        """Return the app that may have a token, or OAuth's error code and its description."""
        if form is None:
            return "invalid_request", "The request must be form-encoded."
        for name in _REQUIRED:
            if not form.get(name):
                return "invalid_request", f"The `{name}` parameter is required."
        if form["grant_type"] != "refresh_token":
            return "unsupported_grant_type", "The `grant_type` provided is not supported."
        known = (form["client_id"], form["client_secret"])
        apps = [app for app in self._apps if (app.client_id, app.client_secret) == known]
        if not apps:
            return "invalid_client", "The `client_id` or `client_secret` provided was invalid."
        for app in apps:
            if app.refresh_token == form["refresh_token"]:
                return app
        return "invalid_grant", "The `refresh_token` provided was invalid."


def _check_scopes(scopes: Any) -> tuple[str, ...] | None:
    if scopes is None:
        return None
    if not isinstance(scopes, list | tuple):  # a string would be split into characters
        raise ConfigurationError(f"scopes must be a list of scopes such as ['webhooks:read'], not {scopes!r:.80}")
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise ConfigurationError(f"a scope must have the form 'webhooks:read', not {scope!r:.80}")
    return tuple(scopes)
