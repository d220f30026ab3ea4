"""Asana's five webhook operations as functions: each builds its request and sends it through a session.

All of them raise what `AsanaSession.send` raises, and `ConfigurationError` for arguments that cannot work, before
anything is sent. *opt_fields* names the fields to return: by default every documented one, so that ``None`` in a
`Webhook` means that Asana said null; ``()`` asks for Asana's compact record. *opt_pretty* makes Asana indent its
answer, for people who watch the wire.
"""

from collections.abc import Iterable

from asana_webhooks.client.pages import WebhookPager
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    UpdateWebhookRequest,
)
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import CreatedWebhook, Webhook, WebhookFilter

__all__ = ["create_webhook", "delete_webhook", "get_webhook", "get_webhooks", "update_webhook"]


def _names(opt_fields: Iterable[str] | None) -> tuple[str, ...] | None:
    if opt_fields is None:
        return None
    if isinstance(opt_fields, str) or not isinstance(opt_fields, Iterable):  # a text would be taken apart into letters
        raise ConfigurationError(f"opt_fields must be a list of names such as ['target'], not {opt_fields!r:.80}")
    return tuple(opt_fields)


def _filters(filters: Iterable[WebhookFilter]) -> tuple[WebhookFilter, ...]:
    if not isinstance(filters, Iterable):
        raise ConfigurationError(f"filters must be a list of WebhookFilter objects, not {type(filters).__name__}")
    return tuple(filters)


async def create_webhook(
    session: AsanaSession,
    *,
    resource: str,
    target: str,
    filters: Iterable[WebhookFilter] = (),
    opt_fields: Iterable[str] | None = None,
    opt_pretty: bool = False,
) -> CreatedWebhook:
    """Create a webhook; return it with the secret its deliveries will be signed with.

    While this call is open Asana sends the target a handshake: a POST with ``X-Hook-Secret`` that must be answered
    with 200 or 204 and the same header. So something must be listening already. `establish_webhook` does both halves.

    It is sent again only when nothing can have been created. On cancellation the webhook may be created all the same.

    Args:
        session: where to send it.
        resource: the gid of the task, project, portfolio, … to watch.
        target: the absolute URL Asana posts to; kept as it is, query included.
        filters: which events to let pass; by default all. Webhooks on workspaces, teams and portfolios need some.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        TargetRejectedError: the target could not be reached, or did not answer the handshake as it must.
        DuplicateWebhookError: this resource and target already have a webhook.
        CreateOutcomeUnknownError: no answer arrived; the webhook may exist.

    Source: https://developers.asana.com/reference/createwebhook
    """
    request = CreateWebhookRequest(
        resource=resource,
        target=target,
        filters=_filters(filters),
        opt_fields=_names(opt_fields),
        opt_pretty=opt_pretty,
    )
    return await session.send(request)


async def get_webhook(
    session: AsanaSession, webhook_gid: str, *, opt_fields: Iterable[str] | None = None, opt_pretty: bool = False
) -> Webhook:
    """Return the full record of one webhook.

    Args:
        session: where to send it.
        webhook_gid: which one.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: there is no such webhook (any more).

    Source: https://developers.asana.com/reference/getwebhook
    """
    request = GetWebhookRequest(webhook_gid=webhook_gid, opt_fields=_names(opt_fields), opt_pretty=opt_pretty)
    return await session.send(request)


def get_webhooks(
    session: AsanaSession,
    *,
    workspace: str,
    resource: str | None = None,
    page_size: int = 100,
    offset: str | None = None,
    prefetch: bool = False,
    opt_fields: Iterable[str] | None = None,
    opt_pretty: bool = False,
) -> WebhookPager:
    """Return an async iterator over the webhooks this app has registered for the token's user in a workspace.

    Nothing is sent until it is iterated; arguments are checked at once.

    Args:
        session: where to send it.
        workspace: the gid of the workspace.
        resource: only webhooks on this resource.
        page_size: webhooks asked for at a time, 1 to 100.
        offset: where to begin: the ``next_offset`` of a page of an earlier walk.
        prefetch: whether to fetch the next page while this one is being worked on; wants ``async with``.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Source: https://developers.asana.com/reference/getwebhooks
    """
    request = GetWebhooksRequest(
        workspace=workspace,
        resource=resource,
        page_size=page_size,
        offset=offset,
        opt_fields=_names(opt_fields),
        opt_pretty=opt_pretty,
    )
    return WebhookPager(session, request, prefetch=prefetch)


async def update_webhook(
    session: AsanaSession,
    webhook_gid: str,
    *,
    filters: Iterable[WebhookFilter],
    opt_fields: Iterable[str] | None = None,
    opt_pretty: bool = False,
) -> Webhook:
    """Replace all filters of a webhook; return its new record. Nothing else of a webhook can be changed.

    Args:
        session: where to send it.
        webhook_gid: which one.
        filters: all the filters it has from now on.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: there is no such webhook (any more).

    Source: https://developers.asana.com/reference/updatewebhook
    """
    request = UpdateWebhookRequest(
        webhook_gid=webhook_gid, filters=_filters(filters), opt_fields=_names(opt_fields), opt_pretty=opt_pretty
    )
    return await session.send(request)


async def delete_webhook(session: AsanaSession, webhook_gid: str, *, opt_pretty: bool = False) -> None:
    """Delete a webhook for good. Deliveries already under way may still arrive.

    If an attempt's answer was lost and the next one says 404, the first had worked: that is a success.

    Args:
        session: where to send it.
        webhook_gid: which one.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: there was no such webhook.

    Source: https://developers.asana.com/reference/deletewebhook
    """
    await session.send(DeleteWebhookRequest(webhook_gid=webhook_gid, opt_pretty=opt_pretty))
