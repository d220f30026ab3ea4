"""Webhooks that nobody waits for any more: what may be left of a create request whose answer never came.

The store tells whether there can be one. A registration is opened before its create request is sent. If it ended
without a handshake having been echoed, Asana cannot have finished that request, and cannot any more. If one was
echoed, the webhook may exist: its deliveries are answered 404, Asana deletes it after 24 hours of that, and here it is
deleted at once, if it can be found.

Sources: https://developers.asana.com/reference/getwebhooks, https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection
from typing import Final

from asana_webhooks.client.operations import delete_webhook, get_webhooks
from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, NotFoundError
from asana_webhooks.store.base import Store, registration_id

__all__ = ["delete_orphaned_webhooks", "delete_orphans", "ensure_deleted"]

_SEARCH_SECONDS: Final = 30.0
"""How long the webhooks of a resource are looked through."""

_log = logging.getLogger(__name__)


async def delete_orphaned_webhooks(asana: AsanaSession, store: Store, *, workspace: str | None = None) -> int:
    """End what a process left open that died while it was creating webhooks, and delete those webhooks.

    `establish_webhook` does this first if it is told the workspace; this is for services that may start without
    establishing anything. A registration is left alone until its deadline, a minute behind the longest create call:
    whoever opened it may be alive. Then nothing is accepted for it any more.

    Awaits the store, and for each resource with something to look for a walk over its webhooks, of at most 30 seconds,
    and a delete call for each one found. Cancelling it leaves those webhooks to Asana, for what has ended is not found
    again; so does ``workspace=None``.

    Args:
        asana: the session to look for webhooks with.
        store: the store to sweep.
        workspace: where to look. Webhooks in other workspaces, or all if it is ``None``, are left to Asana.

    Returns:
        How many webhooks may be left over, each of them named in the log by its resource. Their deliveries are
        answered 404, and Asana deletes them after 24 hours. Only webhooks in *workspace* that the user of this
        session's token can see can be found: what is not found counts, and so does what goes wrong at Asana.

    Raises:
        StoreError: the store failed.
        ConfigurationError: *workspace* is no gid, or the store is closed.
    """
    if workspace is not None:
        GetWebhooksRequest(workspace=workspace)  # checks it before anything is ended
    echoed: defaultdict[str, set[str]] = defaultdict(set)
    for overdue in await store.sweep():
        _log.warning("registration %.12s on %s expired without being confirmed", overdue.id, overdue.resource)
        if overdue.echoed:
            echoed[overdue.resource].add(overdue.id)
    left = 0
    for resource, ids in echoed.items():
        left += len(await delete_orphans(asana, ids, resource=resource, workspace=workspace))
    return left


async def delete_orphans(
    asana: AsanaSession, ids: Collection[str], *, resource: str, workspace: str | None
) -> set[str]:
    """Delete the webhooks of registrations that have ended; return which of these may have one still.

    Whatever goes wrong at Asana is logged and no more: nobody gets deliveries of such a webhook anyway. What is not
    found may still appear, or be where this token's user cannot see it; without a workspace nothing is looked for.
    """
    if workspace is None:
        return _left_over(ids, resource, "without a workspace it cannot be looked for")
    try:
        async with asyncio.timeout(_SEARCH_SECONDS):
            found = await _find(asana, ids, workspace=workspace, resource=resource)
    except TimeoutError:
        return _left_over(ids, resource, f"looking for it took longer than {_SEARCH_SECONDS:.0f} seconds")
    except AsanaError as error:
        return _left_over(ids, resource, f"looking for it failed: {error}")
    left = _left_over(set(ids) - set(found.values()), resource, "it was not to be found")
    for gid, id in found.items():
        try:
            await ensure_deleted(asana, gid)
        except AsanaError as error:
            left |= _left_over([id], resource, f"deleting it failed: {error}")
    return left


async def ensure_deleted(asana: AsanaSession, gid: str) -> bool:
    """Delete a webhook; that there is none is fine too. Always True: it is gone."""
    try:
        await delete_webhook(asana, gid)
    except NotFoundError:
        _log.info("webhook %.40r was gone already", gid)
    return True


async def _find(asana: AsanaSession, ids: Collection[str], *, workspace: str, resource: str) -> dict[str, str]:
    """Return the gids of the webhooks of these registrations, with the id of each."""
    found: dict[str, str] = {}
    async for webhook in get_webhooks(asana, workspace=workspace, resource=resource, opt_fields=("target",)):
        id = _registration_of(webhook.target or "")
        if id in ids:
            found[webhook.gid] = id
    return found


def _registration_of(target: str) -> str:
    """Return the id of the registration that *target* belongs to if it is one of ours.

    Endpoints are stored nowhere, so they are compared by their hashes. Other people's targets have none of ours.
    """
    path = target.partition("#")[0].partition("?")[0]
    return registration_id(path.rstrip("/").rpartition("/")[2])


def _left_over(ids: Collection[str], resource: str, why: str) -> set[str]:
    for id in ids:
        _log.warning(
            "a webhook on %s may be left over (registration %.12s); %s. Asana deletes it after 24 hours of 404s",
            resource,
            id,
            why,
        )
    return set(ids)
