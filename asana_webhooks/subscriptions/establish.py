"""Establishing a webhook: where asking and being called meet.

A registration is opened before the create request is sent, the receiver lets Asana's handshake in while the request
is open, and Asana's authenticated 201 decides which of the secrets that came is the true one. A create request has no
idempotency key: when no answer tells what became of it, its registration is closed, and another one is tried.

Source: https://developers.asana.com/reference/createwebhook
"""

import asyncio
import logging
import secrets
from collections.abc import Iterable
from typing import Final, Self

from attrs import define, evolve, field, frozen
from yarl import URL

from asana_webhooks._checks import parse_url
from asana_webhooks._tasks import finish
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DuplicateWebhookError,
    HandshakeMismatchError,
)
from asana_webhooks.models import CreatedWebhook, Webhook, WebhookFilter
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.subscriptions.orphans import delete_orphaned_webhooks, delete_orphans, ensure_deleted

__all__ = ["EstablishedWebhook", "establish_webhook"]

_SLACK_SECONDS: Final = 60.0
"""How long a pending registration outlives the longest create call."""
_ORPHANS_SECONDS: Final = 10.0
"""How long deleting the orphans of earlier processes may take."""
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
    """Webhooks of an earlier attempt of the same call that may exist and could not be found. Their deliveries are
    answered 404, and Asana deletes them after 24 hours."""


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

    With *workspace* it first calls `delete_orphaned_webhooks`, for at most 10 seconds, and goes on whatever the result.
    Then it awaits the store and one create call. If the outcome of that stays unknown, it also awaits a second create
    call, and the calls that find and delete what became of the first: it looks twice at most, for 30 seconds each.

    It is all or nothing. If this raises or is cancelled, no delivery of a webhook it may have created is accepted: the
    registration is closed again, and a webhook that is known by then is deleted. One of which no answer tells is
    answered 404, until Asana deletes it after 24 hours. Closing may take 5 seconds and deleting 15, so being cancelled
    takes up to 20 seconds. If the first attempt may have left a webhook and the second one fails, in whatever way, the
    first one's error is the ``__cause__`` of what is raised.

    Args:
        asana: the session to create it with.
        store: the store the receivers use.
        public_url: where Asana reaches them; a random endpoint is appended as the last segment of its path.
        resource: the gid of the task, project, portfolio, … to watch.
        filters: which events to let pass; by default all.
        workspace: the resource's workspace. With it, a webhook of which no answer tells can be found and deleted, of
            this call or of a process that was killed.

    Raises:
        TargetRejectedError: Asana could not reach *public_url*, or got a wrong answer to its handshake.
        HandshakeMismatchError: the handshake came through somebody who changed it; the webhook is deleted again.
        CreateOutcomeUnknownError: twice no answer told whether the webhook was created, or once, and the store could
            not close its registration, which then ends by itself with its deadline.
        DuplicateWebhookError: the same, if the last answer was that there is such a webhook already. As its endpoint
            was never used before, that is this call's own: something on the way has sent the request twice.
        StoreError: the store failed; a webhook that was created by then is deleted again, or named in the log.
        ConfigurationError: an argument cannot work.
        AsanaError: whatever else `create_webhook` raises.
    """
    base = _check_public_url(public_url)
    if not isinstance(filters, Iterable):
        raise ConfigurationError(f"filters must be a list of WebhookFilter objects, not {type(filters).__name__}")
    request = CreateWebhookRequest(resource=resource, target=str(base), filters=tuple(filters))
    if workspace is not None:
        GetWebhooksRequest(workspace=workspace, resource=resource)  # checks it before anything is sent or stored
        await _delete_earlier_orphans(asana, store, workspace=workspace)
    unclear: set[str] = set()
    first: AsanaError | None = None
    for last in (False, True):
        attempt = _Attempt.at(base, request)
        try:
            established = await _create(asana, store, attempt)
            break
        except AsanaError as error:
            # A duplicate of an endpoint that was never used before can only be our own webhook.
            may_exist = isinstance(error, (CreateOutcomeUnknownError, DuplicateWebhookError))
            # Never echoed and closed: Asana has not seen its handshake answered, and cannot finish this creation.
            if may_exist and attempt.echoed is not False:
                unclear.add(attempt.id)
                unclear = await delete_orphans(asana, unclear, resource=resource, workspace=workspace)
            # Creating again is safe only after the registration is closed: no late handshake is echoed then.
            if last or not may_exist or attempt.echoed is None:
                if unclear - {attempt.id}:
                    raise error from first
                raise
            first = error
    if unclear and workspace is not None:
        # What had not shown up in the workspace yet may be there by now.
        try:
            unclear = await delete_orphans(asana, unclear, resource=resource, workspace=workspace)
        except BaseException:
            await _undo(asana, store, attempt)
            raise
    return evolve(established, orphans=len(unclear))


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


async def _delete_earlier_orphans(asana: AsanaSession, store: Store, *, workspace: str) -> None:
    try:
        async with asyncio.timeout(_ORPHANS_SECONDS):
            await delete_orphaned_webhooks(asana, store, workspace=workspace)
    except (AsanaError, TimeoutError) as error:
        # What has expired is answered 404 until Asana deletes it, and what has not is for the next one.
        _log.warning("deleting orphaned webhooks of earlier processes failed: %s", str(error) or "it took too long")


@define
class _Attempt:
    """One create request, with a fresh endpoint, and what became of it. No ``repr`` shows the endpoint."""

    id: str
    """Of its registration."""
    request: CreateWebhookRequest
    created: CreatedWebhook | None = field(default=None, repr=False)
    echoed: bool | None = None
    """Once it is undone: whether a handshake had been echoed. ``None`` while nobody knows."""
    deleted: bool = False
    """Once it is undone: whether the webhook that was created is gone."""

    @classmethod
    def at(cls, base: URL, request: CreateWebhookRequest) -> Self:
        endpoint = secrets.token_urlsafe(32)
        return cls(id=registration_id(endpoint), request=evolve(request, target=str(base / endpoint)))


async def _create(asana: AsanaSession, store: Store, attempt: _Attempt) -> EstablishedWebhook:
    """Create a webhook and let the 201 decide; undo it all unless that confirms the registration."""
    confirmed = False
    try:
        await store.open(attempt.id, resource=attempt.request.resource, ttl=asana.timeout + _SLACK_SECONDS)
        attempt.created = created = await asana.send(attempt.request)
        gid = created.webhook.gid
        if created.secret is not None:
            confirmed = await store.confirm(attempt.id, webhook_gid=gid, secret=created.secret)
    finally:
        if not confirmed:
            await _undo(asana, store, attempt)
    if not confirmed:
        raise HandshakeMismatchError(webhook_gid=gid, deleted=attempt.deleted)
    return EstablishedWebhook(webhook=created.webhook, webhook_gid=gid, registration=attempt.id)


async def _undo(asana: AsanaSession, store: Store, attempt: _Attempt) -> None:
    """Close the registration, so that nothing is accepted any more, and delete the webhook if one is known."""
    try:
        attempt.echoed = await finish(store.close(attempt.id))
    finally:
        if attempt.created is not None:
            gid = attempt.created.webhook.gid
            attempt.deleted = await finish(ensure_deleted(asana, gid), seconds=_DELETE_SECONDS) is True
            if not attempt.deleted:
                _log.warning("webhook %.40r is left over: it could be neither confirmed nor deleted", gid)
