"""Having exactly the webhook you want: `ensure_webhook`.

The store allows one live registration for each resource and label, and a second one only while it replaces the first.
Every step here leaves a state from which the next call goes on, so a process may be killed at any time.

Sources: https://developers.asana.com/docs/webhooks-guide, https://developers.asana.com/reference/webhooks
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal

import attrs
from attrs import define, frozen

from asana_webhooks.client.operations import get_webhook, update_webhook
from asana_webhooks.client.requests import WEBHOOK_FIELDS
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    ConfigurationError,
    ForbiddenError,
    NotFoundError,
    WebhookExistsError,
    WebhookNotVisibleError,
)
from asana_webhooks.models import Webhook, WebhookFilter
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.subscriptions.establish import (
    EstablishedWebhook,
    Wanted,
    create_established,
)
from asana_webhooks.subscriptions.orphans import close_overdue, ensure_deleted
from asana_webhooks.subscriptions.rules import (
    as_pair,
    created_at,
    judge,
    judge_move,
    lost_since,
    may_retire,
    named,
    normal_filters,
)

__all__ = [
    "EnsuredWebhook",
    "Run",
    "create_beside",
    "delete_and_close",
    "delete_webhook_of",
    "ensure_wanted",
    "ensure_webhook",
    "log_moved",
    "look_at",
    "not_visible",
    "retire",
]

_POLL_SECONDS: Final = 0.25
"""How often the store is asked whether another process has finished creating."""
_RETIRE_POLL_SECONDS: Final = 2.0
"""How often Asana is asked whether the old webhook still has deliveries to send again."""
_RETIRE_SECONDS: Final = 60.0
"""How long a replaced webhook may go on to exist because it still has deliveries to send again."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class EnsuredWebhook(EstablishedWebhook):
    """The one live webhook of a resource and label, and what was done to have it."""

    action: Literal["unchanged", "created", "updated", "replaced", "adopted"]
    """``created``: there was none, or Asana had deleted it. ``updated``: it has other filters now. ``replaced``: a new
    one took the place of the old one."""


async def ensure_webhook(
    asana: AsanaSession,
    store: Store,
    *,
    resource: str,
    public_url: str,
    filters: Iterable[WebhookFilter] = (),
    label: str = "",
    workspace: str | None = None,
) -> EnsuredWebhook:
    """Have exactly one webhook for *resource* and *label*, below *public_url*, with *filters*.

    Call it at every start, from as many processes as you like. It creates the webhook if there is none or Asana has
    deleted it, updates other filters, and replaces one with another public URL. If all is as wanted, it sends one GET.
    It first finishes what a killed process left half done.

    A receiver must already be listening at *public_url*, in this process or in another with the same store. So do not
    await this in aiohttp's ``on_startup`` or in an ASGI lifespan: the port is not open yet.

    If another process is creating the webhook, this waits for it and then goes through its steps again. If that process
    was killed, this waits until its deadline, at most 15 seconds after the longest create call: 75 seconds by default
    (*timeout* of the session). A warning says so at once. One call creates at most once; twice if no answer tells
    what became of the first. To replace, the new webhook is created first. The old one is deleted when it has no
    failed delivery to send again; this waits for that for at most a minute, and then logs what may be lost.

    If it is cancelled while it creates a webhook, that one is deleted, which may take 20 seconds; if no answer has
    named it yet, its deliveries are answered 404. If it was replacing one, both may stay, and the next call deletes the
    old one.

    ::

        ensured = await ensure_webhook(asana, store, resource=project, public_url=url, filters=router.filters)
        print(ensured.action, ensured.webhook_gid)

    Args:
        asana: the session to ask and create with.
        store: the store the receivers use.
        resource: the gid of the task, project, portfolio, … to watch.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`.
        filters: the events Asana sends; all by default. They are compared as sets. Two services that ensure different
            filters for one resource and label update each other's forever: give them different labels.
        label: your own word for the webhook, such as a tenant; at most 200 characters. It comes back with every
            delivery, in `Delivery.label`.
        workspace: the resource's workspace. One more list call then finds webhooks below *public_url* whose
            registration is closed, such as those of killed processes, and deletes them. Others are left alone: a
            webhook that this store does not know is logged. Without it, Asana deletes them after 24 hours of 404s.

    Raises:
        WebhookNotVisibleError: the store has a webhook that this token may not see. No other one is created.
        SecretUnavailableError: the webhook's secret cannot be opened. Nothing is replaced, because the key service may
            only be down. If its key is lost for good, call `remove_webhook` and then this.
        RegistrationClosedError: `remove_webhook` was called while this created the webhook. The error says whether the
            webhook was deleted.
        ConfigurationError: an argument is invalid; or the webhook is being moved, and neither the old one nor the new
            one has *public_url*.
        StoreError: the store failed.
        AsanaError: any other error of `establish_webhook`, `get_webhook`, `update_webhook` or `delete_webhook`.
    """
    wanted = Wanted.checked(
        asana, store, resource=resource, public_url=public_url, filters=filters, label=label, workspace=workspace
    )
    ensured = await ensure_wanted(wanted)
    # At the end: the registration of a killed process that this waited for has expired by now.
    await close_overdue(store)
    return ensured if workspace is None else attrs.evolve(ensured, orphans=len(await wanted.delete_orphans()))


async def ensure_wanted(wanted: Wanted) -> EnsuredWebhook:
    """Do what `ensure_webhook` does before it deals with orphans."""
    run = Run(wanted)
    while (ensured := await run.step()) is None:
        _log.debug("going through the steps again for resource %s", wanted.resource)
    return ensured


async def look_at(asana: AsanaSession, registration: Registration) -> Webhook | None:
    """Return Asana's record of a registration's webhook; ``None`` if it is gone.

    Raises:
        WebhookNotVisibleError: this token may not see it.
        AsanaError: any other error of `get_webhook`, also a 404 that does not say that the webhook is missing.
    """
    gid = registration.webhook_gid or ""
    try:
        # Every field is asked for by name: what is compared must not be missing.
        return await get_webhook(asana, gid, opt_fields=WEBHOOK_FIELDS)
    except NotFoundError as error:
        if error.base_url:  # a wrong base URL, or a proxy's page: the webhook may exist
            raise
        return None
    except ForbiddenError as error:
        raise not_visible(error, registration) from error


def not_visible(error: ForbiddenError, registration: Registration) -> WebhookNotVisibleError:
    """Return a 403 for a webhook of the store as the error that says so."""
    said = attrs.asdict(error, recurse=False)
    return WebhookNotVisibleError(**said, webhook_gid=registration.webhook_gid or "", registration=registration.id)


async def retire(asana: AsanaSession, store: Store, old: Registration) -> None:
    """Delete the webhook that another one has replaced, and close its registration.

    It waits, for at most a minute, while Asana has deliveries of it to send again: deleting it would lose them.
    """
    loop = asyncio.get_running_loop()
    until, is_told = loop.time() + _RETIRE_SECONDS, False
    while (webhook := await look_at(asana, old)) is not None and webhook.next_attempt_after is not None:
        if loop.time() >= until:
            _log.warning(
                "deleting %s, which has been replaced, although Asana has deliveries of it to send again (since %s): "
                "their events may be lost if the new webhook did not bring them",
                *(named(old), webhook.last_failure_at),
            )
            break
        if not is_told:
            is_told = True
            _log.warning(
                "waiting for at most %.0f seconds to delete %s, which has been replaced: Asana has deliveries of it to "
                "send again",
                *(_RETIRE_SECONDS, named(old)),
            )
        await asyncio.sleep(_RETIRE_POLL_SECONDS)
    await delete_and_close(asana, store, old)
    _log.warning(
        "deleted %s, which has been replaced; events of the last minutes that Asana had not sent yet may be lost "
        "(replace_webhook moves a webhook without losing any)",
        named(old),
    )


async def delete_and_close(asana: AsanaSession, store: Store, registration: Registration) -> None:
    """Delete a registration's webhook at Asana, if it exists, and then close the registration.

    Killed in between, it leaves a live registration, so the next call does the rest.
    """
    await delete_webhook_of(asana, registration)
    await store.close_registration(registration.id)


async def delete_webhook_of(asana: AsanaSession, registration: Registration) -> None:
    """Delete a registration's webhook at Asana, if it exists."""
    try:
        await ensure_deleted(asana, registration.webhook_gid or "")
    except ForbiddenError as error:
        raise not_visible(error, registration) from error


async def create_beside(wanted: Wanted, replaces: Registration | None) -> EstablishedWebhook | None:
    """Create the webhook, beside the one that it replaces. ``None``: another process was faster, so look again."""
    try:
        return await create_established(wanted, replaces=replaces.id if replaces is not None else None)
    except WebhookExistsError:
        return None
    except ConfigurationError:
        if replaces is None or replaces.id in {one.id for one in await wanted.live()}:
            raise
        return None  # another process has replaced or removed it


def log_moved(old: Registration, new: Registration, lost: datetime | None) -> None:
    """Say that a move is done, and since when events may be lost."""
    _log.log(
        logging.INFO if lost is None else logging.WARNING,
        "%s has been replaced by %s; events may be lost: %s",
        *(named(old), named(new), "none" if lost is None else f"from {lost:%Y-%m-%d %H:%M:%S} UTC on"),
    )


@define
class Run:
    """One run of `ensure_webhook`. Each step looks at the live registrations anew, and does one thing about them."""

    wanted: Wanted
    waited_for: str = ""
    """The id of the registration that the log says this waits for."""

    async def step(self) -> EnsuredWebhook | None:
        """Take one step. Return the webhook if it is as wanted; ``None`` to look again."""
        live = await self.wanted.live()
        for one in live:
            if one.state is RegistrationState.PENDING:
                await self.wait(one)
                return None
        if len(live) > 1:
            return await self.settle(*as_pair(live))
        if not live:
            return await self.create("created", replaces=None)
        webhook = await self.look_at(live[0])
        return None if webhook is None else await self.compare(live[0], webhook)

    async def wait(self, pending: Registration) -> None:
        """Wait a moment for another process that is creating the webhook."""
        if self.waited_for != pending.id:
            self.waited_for = pending.id
            _log.warning(
                "another process is creating the %s (registration %.12s); waiting for it. If it was killed, its "
                "registration expires in %.0f seconds",
                *(named(pending), pending.id, max(0.0, pending.deadline - time.time())),
            )
        await asyncio.sleep(_POLL_SECONDS)

    async def look_at(self, registration: Registration) -> Webhook | None:
        """Return Asana's record of a webhook. If it is gone, close its registration and return ``None``."""
        webhook = await look_at(self.wanted.asana, registration)
        if webhook is None:
            _log.warning("%s is gone: Asana or someone has deleted it; closing its registration", named(registration))
            await self.wanted.store.close_registration(registration.id)
        return webhook

    async def compare(self, registration: Registration, webhook: Webhook) -> EnsuredWebhook | None:
        """Bring a webhook that exists to what is wanted."""
        found = await self.wanted.store.find_registration(registration.id)  # opens its secret, or raises
        if found is None or found.state is not RegistrationState.CONFIRMED:
            return None
        if webhook.active is False:
            _log.warning("%s is inactive: Asana sends no deliveries. Only Asana can change that", named(registration))
        verdict = judge(registration, webhook, public_url=self.wanted.public_url, filters=self.wanted.filters)
        if verdict == "unchanged":
            return _ensured(registration, webhook, "unchanged")
        if verdict == "updated":
            return await self.update(registration)
        return await self.create("replaced", replaces=registration)

    async def update(self, registration: Registration) -> EnsuredWebhook | None:
        """Set the filters."""
        wanted, gid = self.wanted, registration.webhook_gid or ""
        try:
            webhook = await update_webhook(wanted.asana, gid, filters=wanted.filters, opt_fields=WEBHOOK_FIELDS)
        except NotFoundError:
            if await self.look_at(registration) is not None:
                raise  # or this would go on forever
            return None
        if normal_filters(webhook.filters) != normal_filters(wanted.filters):
            # Not repeated: Asana may write filters in its own way.
            _log.warning(
                "%s: Asana keeps other filters than those it was given: %s", named(registration), webhook.filters
            )
        return _ensured(registration, webhook, "updated")

    async def create(
        self, action: Literal["created", "replaced"], *, replaces: Registration | None
    ) -> EnsuredWebhook | None:
        """Create the webhook, and delete the one it replaces."""
        if (new := await create_beside(self.wanted, replaces)) is None:
            return None
        if replaces is not None:
            # Looked up anew: `replace_webhook` may have begun meanwhile, and then both stay for a while.
            live = {one.id: one for one in await self.wanted.live()}
            if (old := live.get(replaces.id)) is not None and old.retire_after is None:
                await retire(self.wanted.asana, self.wanted.store, old)
        return EnsuredWebhook(
            webhook=new.webhook,
            webhook_gid=new.webhook_gid,
            registration=new.registration,
            orphans=new.orphans,
            action=action,
        )

    async def settle(self, old: Registration, new: Registration) -> EnsuredWebhook | None:
        """Finish a replacement that another process began; during a move, leave both if the old one may not go yet."""
        asana, store = self.wanted.asana, self.wanted.store
        if (new_webhook := await self.look_at(new)) is None:
            return None
        if old.retire_after is None:
            await retire(asana, store, old)
            return None
        if (old_webhook := await self.look_at(old)) is None:
            return None
        since, now = created_at(new, new_webhook), time.time()
        if may_retire(old, old_webhook, since=since, now=now):
            await delete_and_close(asana, store, old)
            log_moved(old, new, lost_since(old, old_webhook, since=since, now=now))
            return None
        pair = ((new, new_webhook), (old, old_webhook))
        one, webhook, _ = judge_move(pair, public_url=self.wanted.public_url, filters=self.wanted.filters)
        return await self.compare(one, webhook)


def _ensured(
    registration: Registration, webhook: Webhook, action: Literal["unchanged", "updated", "adopted"]
) -> EnsuredWebhook:
    return EnsuredWebhook(webhook=webhook, webhook_gid=webhook.gid, registration=registration.id, action=action)
