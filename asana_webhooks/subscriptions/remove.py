"""Removing webhooks: deleting them at Asana, and closing their registrations.

Source: https://developers.asana.com/reference/deletewebhook
"""

import logging
from typing import Final

from asana_webhooks._checks import check_session_and_store
from asana_webhooks._tasks import for_each
from asana_webhooks.client.requests import GetWebhookRequest, GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, ConfigurationError, NotAuthorizedError, StoreError
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.store.rules import check_label
from asana_webhooks.subscriptions.ensure import delete_and_close
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import named

__all__ = ["remove_webhook", "remove_webhooks"]

_AT_ONCE: Final = 10
"""How many webhooks `remove_webhooks` removes at the same time."""

_log = logging.getLogger(__name__)


async def remove_webhook(
    asana: AsanaSession,
    store: Store,
    *,
    resource: str | None = None,
    webhook_gid: str | None = None,
    label: str = "",
) -> bool:
    """Delete the webhook of a resource and label at Asana, and close its registration. It needs no secret.

    If one is replacing another, both are removed. If another process is creating it, its registration is closed; that
    process then deletes its webhook and raises `RegistrationClosedError`. If this is cancelled or killed half way, call
    it again. Deliveries that are stored already are still handled.

    ::

        await remove_webhook(asana, store, resource=project, label=tenant)

    Args:
        asana: the session to delete with.
        store: the store with the registration.
        resource: the gid of the resource it watches. Give either this or *webhook_gid*.
        webhook_gid: the gid of the webhook.
        label: its label. A webhook with another label is left alone.

    Returns:
        Whether there was one. One that Asana has deleted already counts.

    Raises:
        WebhookNotVisibleError: this token may not see the webhook. Its registration stays.
        ConfigurationError: not exactly one of *resource* and *webhook_gid* is given, or an argument is invalid.
        StoreError: the store failed.
        AsanaError: any other error of `delete_webhook`.
    """
    check_session_and_store(asana, store)
    check_label(label)
    if webhook_gid is None and resource is not None:
        GetWebhooksRequest(workspace="1", resource=resource)  # checks it
        return await _remove(asana, store, resource=resource, label=label) > 0
    if webhook_gid is None or resource is not None:
        raise ConfigurationError("remove_webhook takes either resource or webhook_gid")
    GetWebhookRequest(webhook_gid=webhook_gid)  # checks it
    removed = False
    for one in await store.list_registrations(webhook_gid=webhook_gid, label=label):
        if one.state is RegistrationState.CLOSED:
            # An earlier call may have been killed after it closed this one.
            await delete_and_close(asana, store, one)
        else:
            removed |= await _remove(asana, store, resource=one.resource, label=label) > 0
    return removed


async def remove_webhooks(asana: AsanaSession, store: Store, *, label: str) -> int:
    """Remove all webhooks with a label, such as those of a tenant that leaves; see `remove_webhook`.

    Ten are removed at the same time. One that fails does not stop the others; call this again for those that are left.

    Args:
        asana: the session to delete with.
        store: the store with the registrations.
        label: the label; ``""`` is a label like any other.

    Returns:
        How many live registrations were removed.

    Raises:
        NotAuthorizedError: the token was refused; the rest is left.
        AsanaError: the first of the errors of `remove_webhook`, after all others have been removed. Each is logged.
        ConfigurationError, StoreError: as `remove_webhook`; the rest is left.
    """
    check_session_and_store(asana, store)
    check_label(label)
    resources = {one.resource for one in await live_registrations(store, label=label)}
    removed, failures = list[int](), list[AsanaError]()

    async def remove(resource: str) -> None:
        try:
            removed.append(await _remove(asana, store, resource=resource, label=label))
        except (NotAuthorizedError, StoreError, ConfigurationError):
            raise
        except AsanaError as error:
            _log.warning("removing the webhook on resource %.40s failed: %s", resource, error)
            failures.append(error)

    await for_each(sorted(resources), remove, at_once=_AT_ONCE)
    if failures:
        raise failures[0]
    return sum(removed)


async def _remove(asana: AsanaSession, store: Store, *, resource: str, label: str) -> int:
    """Remove all that is live for a resource and label; return how many registrations that was."""
    removed: set[str] = set()
    while live := await live_registrations(store, resource=resource, label=label):
        for one in live:
            await _remove_one(asana, store, one)
            removed.add(one.id)
    return len(removed)


async def _remove_one(asana: AsanaSession, store: Store, one: Registration) -> None:
    if one.state is RegistrationState.PENDING:
        await store.close_registration(one.id)
        # If it was confirmed just before that, its creator does not delete the webhook.
        found = await store.find_registration(one.id)
        if found is None or found.webhook_gid is None:
            _log.info("closed the registration of the %s (registration %.12s)", named(one), one.id)
            return
        one = found
    await delete_and_close(asana, store, one)
    _log.info("removed %s", named(one))
