"""Establishing a webhook: where asking and being called meet.

A registration is opened before the create request is sent, the receiver lets Asana's handshake in while the request
is open, and Asana's authenticated 201 decides which of the secrets that came is the true one.

Source: https://developers.asana.com/reference/createwebhook
"""

import logging
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from attrs import define, field, frozen
from yarl import URL

from asana_webhooks.cleanup import finish
from asana_webhooks.client.operations import create_webhook, delete_webhook, get_webhooks
from asana_webhooks.client.options import parse_url
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    HandshakeMismatchError,
    NotFoundError,
)
from asana_webhooks.models import CreatedWebhook, Webhook, WebhookFilter
from asana_webhooks.store.base import Store, registration_id

__all__ = ["EstablishedWebhook", "establish_webhook"]

_SLACK_SECONDS: Final = 60.0
"""How long a pending registration outlives the longest create call."""
_DELETE_SECONDS: Final = 15.0
"""How long deleting a webhook that cannot be confirmed may take."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class EstablishedWebhook:
    """A webhook that is live: Asana sends, and its deliveries can be verified."""

    webhook: Webhook = field(repr=False)
    """Asana's record of it; its target holds the endpoint."""
    webhook_gid: str
    registration: str
    """The id of its registration in the store; ``store.close`` it after deleting the webhook."""
    orphans: int = 0
    """Webhooks of an earlier attempt that may exist and could not be found. Their deliveries are answered 404, and
    Asana deletes them after 24 hours."""


async def establish_webhook(
    asana: AsanaSession,
    store: Store,
    *,
    public_url: str,
    resource: str,
    filters: Iterable[WebhookFilter] = (),
    workspace: str | None = None,
) -> EstablishedWebhook:
    """Create a webhook whose deliveries the receivers on *store* will accept.

    A receiver must be listening at *public_url* already, in this process or another with the same store. So this
    cannot be awaited from an application's start-up hook, where the port is not open yet.

    Awaits the store and one create call; if its outcome stays unknown, also a list and a delete call to clear it up,
    and a second create call. On failure or cancellation the registration is closed again, so a handshake that is
    still under way comes to nothing. Registrations that an earlier process left open beyond their time are ended
    first.

    Args:
        asana: the session to create it with.
        store: the store the receivers use.
        public_url: where Asana reaches them; a random endpoint is appended as the last segment of its path.
        resource: the gid of the task, project, portfolio, … to watch.
        filters: which events to let pass; by default all.
        workspace: the resource's workspace. With it, a webhook of which no answer tells can be found and deleted.

    Raises:
        TargetRejectedError: Asana could not reach *public_url*, or got a wrong answer to its handshake.
        HandshakeMismatchError: the handshake came through somebody who changed it; the webhook is deleted again.
        CreateOutcomeUnknownError: twice no answer told whether the webhook was created, or once, and the store could
            not close its registration.
        StoreError: the store failed; a webhook that was created by then is deleted again, or named in the log.
        ConfigurationError: an argument cannot work.
        AsanaError: whatever else `create_webhook` raises.
    """
    base = _check_public_url(public_url)
    wanted = _check_arguments(resource=resource, filters=filters, workspace=workspace)
    await _sweep(store)
    unclear: list[_Pending] = []
    for last in (False, True):
        pending = _Pending.at(base)
        try:
            async with _registration(store, pending, resource=resource, ttl=asana.timeout + _SLACK_SECONDS):
                created = await create_webhook(asana, resource=resource, target=pending.target, filters=wanted)
                await _confirm(asana, store, pending, created)
        except CreateOutcomeUnknownError:
            if not await _clear(asana, pending, resource=resource, workspace=workspace):
                unclear.append(pending)
            # Creating again is safe only after the registration is closed: no late handshake is echoed then.
            if last or pending.echoed is None:
                raise
        else:
            break
    # What had not shown up in the workspace yet may be there by now.
    orphans = [one for one in unclear if not await _clear(asana, one, resource=resource, workspace=workspace)]
    return EstablishedWebhook(
        webhook=created.webhook, webhook_gid=created.webhook.gid, registration=pending.id, orphans=len(orphans)
    )


def _check_public_url(public_url: str) -> URL:
    url, text = parse_url(public_url), str(public_url)
    is_plain = text.isprintable() and " " not in text
    has_extras = url.query_string or url.fragment or url.user or url.password
    if not is_plain or url.scheme not in ("http", "https") or not url.host or has_extras:
        # The value is not shown: it may hold a password.
        raise ConfigurationError(
            "public_url must be an absolute URL without user, query and fragment, such as https://example.com/asana"
        )
    return url


def _check_arguments(
    *, resource: str, filters: Iterable[WebhookFilter], workspace: str | None
) -> tuple[WebhookFilter, ...]:
    """Have the requests check what they will be made of, before anything is sent or stored."""
    if not isinstance(filters, Iterable):
        raise ConfigurationError(f"filters must be a list of WebhookFilter objects, not {type(filters).__name__}")
    wanted = tuple(filters)
    CreateWebhookRequest(resource=resource, target="https://example.com/", filters=wanted)
    if workspace is not None:
        GetWebhooksRequest(workspace=workspace, resource=resource)
    return wanted


async def _sweep(store: Store) -> None:
    """End what an earlier process left open; if Asana has a webhook for it, its deliveries are answered 404 now."""
    for overdue in await store.sweep():
        _log.warning("registration %.12s on %s was never confirmed, and has ended", overdue.id, overdue.resource)


@define
class _Pending:
    """One attempt: a fresh endpoint and what became of its registration."""

    id: str
    target: str
    confirmed: bool = False
    echoed: bool | None = None
    """Once the registration is closed: whether a handshake had been echoed. ``None`` while nobody knows."""

    @classmethod
    def at(cls, base: URL) -> "_Pending":
        endpoint = secrets.token_urlsafe(32)
        return cls(id=registration_id(endpoint), target=str(base / endpoint))


@asynccontextmanager
async def _registration(store: Store, pending: _Pending, *, resource: str, ttl: float) -> AsyncIterator[None]:
    """Keep a registration open inside, and close it on the way out unless it was confirmed."""
    try:
        await store.open(pending.id, resource=resource, ttl=ttl)
        yield
    finally:
        if not pending.confirmed:
            pending.echoed = await finish(store.close(pending.id))


async def _confirm(asana: AsanaSession, store: Store, pending: _Pending, created: CreatedWebhook) -> None:
    """Let the 201 decide; a webhook that cannot be confirmed is deleted again, whatever the reason."""
    gid = created.webhook.gid
    deleted = False
    try:
        if created.secret is not None:
            pending.confirmed = await store.confirm(pending.id, webhook_gid=gid, secret=created.secret)
    finally:
        if not pending.confirmed:
            deleted = await finish(_delete(asana, gid), seconds=_DELETE_SECONDS) is True
            if not deleted:
                _log.warning("webhook %s is left over: it could be neither confirmed nor deleted", gid)
    if not pending.confirmed:
        raise HandshakeMismatchError(webhook_gid=gid, deleted=deleted)


async def _delete(asana: AsanaSession, gid: str) -> bool:
    try:
        await delete_webhook(asana, gid)
    except NotFoundError:
        _log.info("webhook %s was gone already", gid)
    return True


async def _clear(asana: AsanaSession, pending: _Pending, *, resource: str, workspace: str | None) -> bool:
    """Undo a create request of unknown outcome. Return whether certainly nothing is left of it."""
    if pending.echoed is False:
        # The registration is closed, and Asana has not seen its handshake answered: it cannot finish this creation.
        return True
    if workspace is None:
        _log.warning("a webhook on %s may be left over; without a workspace it cannot be looked for", resource)
        return False
    try:
        pager = get_webhooks(asana, workspace=workspace, resource=resource, opt_fields=("target",))
        found = [webhook.gid async for webhook in pager if webhook.target == pending.target]
        for gid in found:
            await _delete(asana, gid)
    except AsanaError as error:
        _log.warning("a webhook on %s may be left over; looking for it failed: %s", resource, error)
        return False
    if not found:
        _log.warning("a webhook on %s may still appear; it was not to be found", resource)
    return bool(found)
