"""Taking over a live webhook that was made elsewhere, and whose secret is known.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import logging
import re
from typing import Final

from asana_webhooks._checks import check_session_and_store
from asana_webhooks.client.operations import get_webhook
from asana_webhooks.client.requests import WEBHOOK_FIELDS
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError, WebhookExistsError
from asana_webhooks.models import Secret
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.store.rules import check_label
from asana_webhooks.subscriptions.ensure import EnsuredWebhook
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import split_target

__all__ = ["adopt_webhook"]

_LONGEST_ENDPOINT: Final = 128
"""Receivers answer 404 to longer ones."""

_SECRET: Final = re.compile(r"[!-~]{1,256}")

_log = logging.getLogger(__name__)


async def adopt_webhook(
    asana: AsanaSession, store: Store, *, webhook_gid: str, secret: Secret | str, label: str = ""
) -> EnsuredWebhook:
    """Take over a live webhook that was made elsewhere, and whose secret is known. Nothing changes at Asana.

    The last segment of its target's path becomes its endpoint, whatever it is (1 to 128 characters): for
    ``https://example.com/receive-webhook/7654`` the receiver must be mounted at ``/receive-webhook``. From then on
    `ensure_webhook` with the rest as *public_url* (``https://example.com/receive-webhook``) finds it.

    It awaits one GET and one transaction of the store. Killed or cancelled half way, it can be called again.

    ::

        await adopt_webhook(asana, store, webhook_gid="12345", secret=os.environ["ASANA_WEBHOOK_SECRET"])

    Args:
        asana: the session to ask with.
        store: the store the receivers use.
        webhook_gid: the webhook's gid.
        secret: the ``X-Hook-Secret`` of its handshake. It cannot be checked before a delivery arrives: with a wrong one
            every delivery is answered 401. Then call `remove_webhook` and `ensure_webhook`, which creates another one.
        label: your own word for the webhook; at most 200 characters.

    Returns:
        The webhook; `EnsuredWebhook.action` is ``"adopted"``, also if it was adopted before.

    Raises:
        WebhookExistsError: the store has another live webhook for its resource and label.
        NotFoundError: there is no such webhook.
        ConfigurationError: an argument is invalid, the target's path has no segment of 1 to 128 characters, or another
            registration of this store has the same one.
        StoreError: the store failed.
        AsanaError: any other error of `get_webhook`.
    """
    check_session_and_store(asana, store)
    check_label(label)
    text: object = secret.reveal() if isinstance(secret, Secret) else secret
    if not isinstance(text, str) or not _SECRET.fullmatch(text):
        raise ConfigurationError("secret must be the webhook's X-Hook-Secret: 1 to 256 visible ASCII characters")
    webhook = await get_webhook(asana, webhook_gid, opt_fields=WEBHOOK_FIELDS)
    public_url, endpoint = split_target(webhook.target) or ("", "")
    if not 1 <= len(endpoint) <= _LONGEST_ENDPOINT or webhook.resource is None:
        raise ConfigurationError(
            f"webhook {webhook_gid} cannot be adopted: the path of its target must end with a segment of 1 to "
            f"{_LONGEST_ENDPOINT} characters, in UTF-8 and without an encoded slash, which tells it from others"
        )
    id, resource = registration_id(endpoint), webhook.resource.gid
    adopted = await store.adopt_registration(
        id, resource=resource, public_url=public_url, label=label, webhook_gid=webhook_gid, secret=Secret(text)
    )
    if not adopted:
        live = await live_registrations(store, resource=resource, label=label)
        raise WebhookExistsError(
            registration=live[-1].id if live else id, webhook_gid=live[-1].webhook_gid if live else None
        )
    _log.info("adopted webhook %.40s on resource %.40s", webhook_gid, resource)
    return EnsuredWebhook(webhook=webhook, webhook_gid=webhook.gid, registration=id, action="adopted")
