"""Orphaned webhooks: those that a create request may have created although its answer never arrived.

A registration is opened before its create request is sent. If it was closed before any handshake was echoed, Asana
cannot have created the webhook, and cannot do so later. If a handshake was echoed, the webhook may exist. Its
deliveries are answered 404, and Asana deletes it after 24 hours. This module deletes it at once, if it can be found.

Sources: https://developers.asana.com/reference/getwebhooks, https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection
from typing import Final

from asana_webhooks._checks import check_session_and_store
from asana_webhooks.client.operations import delete_webhook, get_webhooks
from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, NotFoundError
from asana_webhooks.store.base import Store, registration_id

__all__ = ["delete_orphaned_webhooks", "delete_orphans", "ensure_deleted"]

_SEARCH_SECONDS: Final = 30.0
"""How long one search of a resource's webhooks may take."""

_log = logging.getLogger(__name__)


async def delete_orphaned_webhooks(asana: AsanaSession, store: Store, *, workspace: str | None = None) -> int:
    """Delete webhooks that processes left behind when they died while creating them, and close their registrations.

    `establish_webhook` does this first if *workspace* is given. Call it in services that may start without establishing
    a webhook. A registration is not touched before its deadline, one minute after the longest create call: the process
    that opened it may be alive. After that, nothing is accepted for it.

    Awaits the store. For each resource that may have orphans, it also awaits a search of its webhooks, at most 30
    seconds, and a delete call for each one found. If it is cancelled, or *workspace* is ``None``, the webhooks not
    deleted are left to Asana: a second call does not find their registrations again.

    Args:
        asana: the session to search and delete with.
        store: the store with the registrations.
        workspace: the workspace to search. Webhooks in others, or all if it is ``None``, are left to Asana.

    Returns:
        How many webhooks may be left. Each is logged with its resource. Their deliveries are answered 404, and Asana
        deletes them after 24 hours. Asana lists only webhooks of the token's own app and user, in *workspace*. Webhooks
        that are not found count as left, and so do failed searches and failed deletions.

    Raises:
        StoreError: the store failed.
        ConfigurationError: *workspace* is not a gid, or *store* is no store or closed.
    """
    check_session_and_store(asana, store)
    if workspace is not None:
        GetWebhooksRequest(workspace=workspace)  # checks it before any registration is closed
    echoed: defaultdict[str, set[str]] = defaultdict(set)
    for overdue in await store.expire_registrations():
        _log.warning("registration %.12s on resource %s expired before it was confirmed", overdue.id, overdue.resource)
        if overdue.echoed:
            echoed[overdue.resource].add(overdue.id)
    left = 0
    for resource, ids in echoed.items():
        left += len(await delete_orphans(asana, ids, resource=resource, workspace=workspace))
    return left


async def delete_orphans(
    asana: AsanaSession, ids: Collection[str], *, resource: str, workspace: str | None
) -> set[str]:
    """Delete the webhooks of closed registrations; return the registrations that may still have one.

    Failures at Asana are only logged, because deliveries of these webhooks are refused anyway. A webhook that is not
    found may be listed later, or belong to another app or user. Without a workspace, there is no search.
    """
    if workspace is None:
        return _log_orphans(ids, resource, "no workspace to search was given")
    try:
        async with asyncio.timeout(_SEARCH_SECONDS):
            found = await _find(asana, ids, workspace=workspace, resource=resource)
    except TimeoutError:
        return _log_orphans(ids, resource, f"the search took longer than {_SEARCH_SECONDS:.0f} seconds")
    except AsanaError as error:
        return _log_orphans(ids, resource, f"the search failed: {error}")
    left = _log_orphans(set(ids) - set(found.values()), resource, "the search did not find it")
    for gid, id in found.items():
        try:
            await ensure_deleted(asana, gid)
        except AsanaError as error:
            left |= _log_orphans([id], resource, f"deleting it failed: {error}")
    return left


async def ensure_deleted(asana: AsanaSession, gid: str) -> bool:
    """Delete a webhook, if it exists. Always returns True."""
    try:
        await delete_webhook(asana, gid)
    except NotFoundError:
        _log.info("webhook %.40r was already deleted", gid)
    return True


async def _find(asana: AsanaSession, ids: Collection[str], *, workspace: str, resource: str) -> dict[str, str]:
    """Return the webhooks of these registrations: a dict from webhook gid to registration id."""
    found: dict[str, str] = {}
    async for webhook in get_webhooks(asana, workspace=workspace, resource=resource, opt_fields=("target",)):
        id = _registration_of(webhook.target or "")
        if id in ids:
            found[webhook.gid] = id
    return found


def _registration_of(target: str) -> str:
    """Return the id that the registration of *target* has if it is one of ours.

    Endpoints are not stored, so their hashes are compared. Targets of other services match none.
    """
    path = target.partition("#")[0].partition("?")[0]
    return registration_id(path.rstrip("/").rpartition("/")[2])


def _log_orphans(ids: Collection[str], resource: str, why: str) -> set[str]:
    for id in ids:
        _log.warning(
            "an orphaned webhook may remain on resource %s (registration %.12s); "
            "Asana deletes it after 24 hours of 404 replies. Reason: %s",
            *(resource, id, why),
        )
    return set(ids)
