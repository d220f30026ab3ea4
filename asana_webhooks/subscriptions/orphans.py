"""Orphaned webhooks: those of closed registrations. Their deliveries are answered 404.

A killed process, or a create request whose answer never arrived, may leave one. Asana deletes it after 24 hours of 404
replies. This module finds it by its target's endpoint, and deletes it at once.

Sources: https://developers.asana.com/reference/getwebhooks, https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from asana_webhooks.client.operations import delete_webhook, get_webhooks
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, NotFoundError, SecretUnavailableError, StoreError
from asana_webhooks.store.base import RegistrationState, Store, registration_id
from asana_webhooks.subscriptions.rules import endpoint_below

__all__ = ["close_overdue", "delete_orphans", "ensure_deleted", "is_orphan"]

_SEARCH_SECONDS: Final = 30.0
"""How long one search of a resource's webhooks may take."""

_log = logging.getLogger(__name__)


async def close_overdue(store: Store) -> None:
    """Close the registrations that no one confirmed before their deadline, and log each."""
    for overdue in await store.expire_registrations():
        _log.warning("registration %.12s on resource %s expired before it was confirmed", overdue.id, overdue.resource)


async def delete_orphans(
    asana: AsanaSession,
    store: Store,
    *,
    resource: str,
    workspace: str | None,
    public_url: str,
    expected: Collection[str] = (),
) -> set[str]:
    """Delete the orphaned webhooks of a resource that Asana lists; return the registrations that may still have one.

    One list call per 100 webhooks. A target that is not below *public_url* is never touched. A webhook whose endpoint
    this store does not know is only logged. Failures at Asana are only logged too, because deliveries of orphans are
    refused anyway. A webhook that is not found may be listed later, or belong to another app or user.

    Args:
        asana: the session to search and delete with.
        store: the store whose closed registrations count.
        resource: the gid of the resource.
        workspace: the workspace to search. ``None``: there is no search.
        public_url: the URL below which targets are looked at.
        expected: the ids of closed registrations that may have a webhook.

    Raises:
        StoreError: the store failed.
    """
    if workspace is None:
        return _log_left(expected, resource, "no workspace to search was given")
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(_SEARCH_SECONDS):
            pager = get_webhooks(asana, workspace=workspace, resource=resource, opt_fields=("target",))
            async for webhook in pager:
                if (endpoint := endpoint_below(webhook.target, public_url)) is not None:
                    found[webhook.gid] = registration_id(endpoint)
    except TimeoutError:
        return _log_failed(expected, resource, f"the search took longer than {_SEARCH_SECONDS:.0f} seconds")
    except StoreError:
        raise
    except AsanaError as error:
        return _log_failed(expected, resource, f"the search failed: {error}")
    orphans = {gid: id for gid, id in found.items() if id in expected or await is_orphan(store, gid, id)}
    left = _log_left(set(expected) - set(orphans.values()), resource, "the search did not find it")
    for gid, id in orphans.items():
        try:
            await ensure_deleted(asana, gid)
            _log.info("deleted orphaned webhook %.40s on resource %s (registration %.12s)", gid, resource, id)
        except AsanaError as error:
            left |= _log_left([id], resource, f"deleting it failed: {error}")
    return left


async def is_orphan(store: Store, gid: str, id: str, *, label: str | None = None) -> bool | None:
    """Return whether a webhook's registration is closed, and has *label*. ``None``, logged: the store has none."""
    try:
        known = await store.find_registration(id)
    except SecretUnavailableError:  # only one that is not closed has a secret
        return False
    if known is None:
        _log.warning(
            "webhook %.40s posts below this public_url, but this store does not know it: another store does, or this "
            "one was restored from a backup; it is left alone, and its deliveries here are answered 404",
            gid,
        )
        return None
    return known.state is RegistrationState.CLOSED and label in (None, known.label)


async def ensure_deleted(asana: AsanaSession, gid: str) -> bool:
    """Delete a webhook, if it exists. Always returns True."""
    try:
        await delete_webhook(asana, gid)
    except NotFoundError as error:
        if error.base_url:  # a wrong base URL, or a proxy's page: the webhook may exist
            raise
        _log.info("webhook %.40r was already deleted", gid)
    return True


def _log_failed(expected: Collection[str], resource: str, why: str) -> set[str]:
    if not expected:
        _log.warning("looking for orphaned webhooks on resource %s: %s", resource, why)
    return _log_left(expected, resource, why)


def _log_left(ids: Collection[str], resource: str, why: str) -> set[str]:
    for id in ids:
        _log.warning(
            "an orphaned webhook may remain on resource %s (registration %.12s); "
            "Asana deletes it after 24 hours of 404 replies. Reason: %s",
            *(resource, id, why),
        )
    return set(ids)
