"""Token providers on the fake."""

from typing import Any

from asana_webhooks import OAuthToken
from asana_webhooks.testing import FakeAsana
from asana_webhooks.testing.oauth import AppRecord


def oauth_token(fake: FakeAsana, app: AppRecord, **changes: Any) -> OAuthToken:
    """Return the provider a program would make, on the fake's clock."""
    arguments: dict[str, Any] = {
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "refresh_token": app.refresh_token,
        "token_url": fake.token_url,
        "clock": fake.clock.time,
    }
    return OAuthToken(**(arguments | changes))
