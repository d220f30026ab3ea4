"""Functions for Asana's five webhook operations, for listing projects and workspaces, and for reading one resource.

Each sends its request through a session. All of them raise the errors of `AsanaSession.send`, and `ConfigurationError`
for invalid arguments before anything is sent. *opt_fields* names the fields to return. By default Asana's answers for
one webhook are full records, and `get_webhooks` asks for every known field. ``None`` in a `Webhook` means that Asana
sent null or left the field out; if you compare a field, ask for it. ``get_webhooks(…, opt_fields=())`` asks for Asana's
compact records. *opt_pretty* makes Asana indent its answer, for people who read the traffic.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from asana_webhooks._checks import check_reachable
from asana_webhooks.client.pages import WebhookPager, iterate_resources
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetProjectsRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    GetWorkspacesRequest,
    ReadResourceRequest,
    UpdateWebhookRequest,
    filters_of,
)
from asana_webhooks.client.responses import NO_ROUTE
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError, NotFoundError
from asana_webhooks.models import CreatedWebhook, ResourceRef, Webhook, WebhookFilter

__all__ = [
    "create_webhook",
    "delete_webhook",
    "get_projects",
    "get_webhook",
    "get_webhooks",
    "get_workspaces",
    "read_resource",
    "update_webhook",
]


def _names(opt_fields: Iterable[str] | None) -> tuple[str, ...] | None:
    if opt_fields is None:
        return None
    if isinstance(opt_fields, str) or not isinstance(opt_fields, Iterable):  # a string would be split into characters
        raise ConfigurationError(f"opt_fields must be a list of names such as ['target'], not {opt_fields!r:.80}")
    return tuple(opt_fields)


async def create_webhook(
    session: AsanaSession,
    *,
    resource: str,
    target: str,
    filters: Iterable[WebhookFilter] = (),
    opt_fields: Iterable[str] | None = None,
    opt_pretty: bool = False,
) -> CreatedWebhook:
    """Create a webhook; return it with the secret that signs its deliveries.

    While this call is open, Asana sends the target a handshake: a POST with ``X-Hook-Secret``. The target must answer
    200 or 204 with the same header, so the receiver must already be running. `establish_webhook` handles both sides.

    The request is retried only if no webhook can have been created. After cancellation the webhook may still exist.

    Args:
        session: the session to send with.
        resource: the gid of the task, project, portfolio, … to watch.
        target: the absolute URL Asana posts to; sent unchanged, query included.
        filters: which events to deliver; by default all. Webhooks on workspaces, teams and portfolios need filters.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        TargetRejectedError: Asana could not reach the target, or the handshake failed.
        DuplicateWebhookError: this resource and target already have a webhook.
        CreateOutcomeUnknownError: no answer confirms the outcome; the webhook may exist.
        ConfigurationError: an argument is invalid, or the target is on localhost, which Asana cannot reach.

    Source: https://developers.asana.com/reference/createwebhook
    """
    request = CreateWebhookRequest(
        resource=resource,
        target=target,
        filters=filters_of(filters),
        opt_fields=_names(opt_fields),
        opt_pretty=opt_pretty,
    )
    check_reachable("target", target, base_url=session.base_url)
    return await session.send(request)


async def get_webhook(
    session: AsanaSession, webhook_gid: str, *, opt_fields: Iterable[str] | None = None, opt_pretty: bool = False
) -> Webhook:
    """Return the full record of one webhook.

    Args:
        session: the session to send with.
        webhook_gid: the webhook's gid.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: the webhook does not exist (any more).

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
        session: the session to send with.
        workspace: the gid of the workspace.
        resource: only webhooks on this resource.
        page_size: webhooks per page, 1 to 100.
        offset: where to start: the ``next_offset`` of an earlier page.
        prefetch: whether to fetch the next page while the current one is processed; requires ``async with``.
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
    """Replace all filters of a webhook; return its new record. Nothing else can be changed.

    Args:
        session: the session to send with.
        webhook_gid: the webhook's gid.
        filters: the complete new filters.
        opt_fields: the fields to return.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: the webhook does not exist (any more).

    Source: https://developers.asana.com/reference/updatewebhook
    """
    request = UpdateWebhookRequest(
        webhook_gid=webhook_gid, filters=filters_of(filters), opt_fields=_names(opt_fields), opt_pretty=opt_pretty
    )
    return await session.send(request)


async def delete_webhook(
    session: AsanaSession, webhook_gid: str, *, opt_fields: Iterable[str] | None = None, opt_pretty: bool = False
) -> None:
    """Delete a webhook permanently. Deliveries in flight may still arrive.

    A 404 counts as success if an earlier attempt of the same call may have deleted the webhook.

    Args:
        session: the session to send with.
        webhook_gid: the webhook's gid.
        opt_fields: accepted as in the other operations; Asana's answer has no fields.
        opt_pretty: whether Asana indents its answer.

    Raises:
        NotFoundError: the webhook does not exist.

    Source: https://developers.asana.com/reference/deletewebhook
    """
    request = DeleteWebhookRequest(webhook_gid=webhook_gid, opt_fields=_names(opt_fields), opt_pretty=opt_pretty)
    await session.send(request)


def get_projects(
    session: AsanaSession, *, workspace: str, team: str | None = None, archived: bool | None = False
) -> AsyncIterator[ResourceRef]:
    """Return an async iterator over the projects of a workspace that the token's user may see, each with its name.

    ::

        async for project in get_projects(asana, workspace="1331"):
            await ensure_webhook(asana, store, resource=project.gid, public_url=url)

    It fetches 100 projects at a time. Nothing is sent until it is iterated; arguments are checked at once. No project
    comes twice. One that is created, deleted or archived meanwhile may or may not appear. Leaving or cancelling the
    loop leaves nothing running; a cancelled step can be repeated. Asana's OAuth scope is ``projects:read``.

    Args:
        session: the session to send with.
        workspace: the gid of the workspace.
        team: only projects of this team. Asana calls this parameter deprecated; it also advises it for workspaces
            with so many projects that Asana needs too long to list them.
        archived: False for those not archived, True for archived ones, ``None`` for both.

    Raises, while iterating, the errors of `AsanaSession.send`, and:
        PaginationError: a page took longer than 15 minutes to work on, so that the offset of the next one has expired,
            or the iteration would never end; its ``reason`` says which.
        ConfigurationError: two tasks use one iterator at once.

    Source: https://developers.asana.com/reference/getprojects
    """
    return iterate_resources(session, GetProjectsRequest(workspace=workspace, team=team, archived=archived))


def get_workspaces(session: AsanaSession) -> AsyncIterator[ResourceRef]:
    """Return an async iterator over the workspaces and organizations of the token's user, each with its name.

    ::

        async for workspace in get_workspaces(asana):
            print(workspace.gid, workspace.name)

    It works, and fails, as `get_projects` does. Asana's OAuth scope is ``workspaces:read``.

    Args:
        session: the session to send with.

    Source: https://developers.asana.com/reference/getworkspaces
    """
    return iterate_resources(session, GetWorkspacesRequest())


async def read_resource(
    session: AsanaSession, ref: ResourceRef, *, opt_fields: Iterable[str] = ()
) -> dict[str, Any] | None:
    """Return the current record of a resource, such as an event's, or ``None`` if it is gone.

    ::

        task = await read_resource(asana, event.resource, opt_fields=["name", "completed", "assignee.name"])

    Args:
        session: the session to send with.
        ref: what to read: `Event.resource`, `Event.parent`, `Event.user` or a value of `Event.change`.
        opt_fields: the fields to return; by default Asana's full record.

    Raises:
        ForbiddenError: the token's user may not see the resource.
        NotFoundError: a 404 that says nothing about the resource: Asana cannot read this type, or a proxy answered.
        ConfigurationError: *ref* is not a `ResourceRef`, or has no *resource_type*.

    Source: https://developers.asana.com/reference/gettask (each type has such a page)
    """
    given: Any = ref  # callers may ignore the type hints
    if not isinstance(given, ResourceRef) or given.resource_type is None:
        raise ConfigurationError(f"ref must be a ResourceRef with a resource_type, not {given!r:.80}")
    request = ReadResourceRequest(resource_type=given.resource_type, gid=ref.gid, opt_fields=_names(opt_fields))
    try:
        return await session.send(request)
    except NotFoundError as error:
        # A missing route, or a proxy's 404 without Asana's messages, does not mean that the resource is gone.
        if not error.messages or NO_ROUTE in error.messages:
            raise
        return None
