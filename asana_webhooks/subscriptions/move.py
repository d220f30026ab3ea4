"""Moving a webhook to another URL, or to a new secret, without losing an event.

The new webhook is created beside the old one, and both are accepted until the old one may go. A killed or cancelled
move leaves both live, and the next call of `replace_webhook` or `ensure_webhook` goes on.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import logging
import time
from datetime import datetime
from typing import Final

from attrs import define, evolve, field, frozen

from asana_webhooks._checks import check_seconds, check_session_and_store
from asana_webhooks.client.operations import get_webhook
from asana_webhooks.client.requests import WEBHOOK_FIELDS, GetWebhookRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError, ForbiddenError
from asana_webhooks.models import Webhook
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.subscriptions.ensure import (
    Run,
    create_beside,
    delete_webhook_of,
    log_moved,
    look_at,
    not_visible,
)
from asana_webhooks.subscriptions.establish import EstablishedWebhook, Wanted
from asana_webhooks.subscriptions.rules import (
    LONGEST_WAIT,
    as_pair,
    created_at,
    lost_since,
    may_retire,
    named,
    reaches,
)

__all__ = ["ReplacedWebhook", "replace_webhook"]

_POLL_SECONDS: Final = 300.0
"""How often Asana is asked about both webhooks, once the overlap is over."""
_ACCEPT_SECONDS: Final = 60.0
"""How long deliveries are accepted that Asana sent before it deleted the old webhook."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class ReplacedWebhook(EstablishedWebhook):
    """The webhook that has taken the place of another one."""

    lost_since: datetime | None = None
    """Events from then until `webhook` was created may be lost, and those of a few minutes before; ``None``: none are.
    It may be set with *now*, if *longest_wait* was over, or if Asana or someone had deleted the old webhook."""


async def replace_webhook(
    asana: AsanaSession,
    store: Store,
    *,
    webhook_gid: str,
    public_url: str | None = None,
    overlap: float = 900.0,
    longest_wait: float = LONGEST_WAIT,
    now: bool = False,
) -> ReplacedWebhook:
    """Move a webhook to another URL, or give it a new secret, without losing an event. It usually takes hours.

    It creates a second webhook with the same resource, label and filters. Both are accepted, so an event may arrive
    through both, with the same `Event.fingerprint`. The old one is deleted when *overlap* is over, Asana has nothing of
    it to send again, and a delivery or heartbeat of it has succeeded since the new one was created. Its registration is
    closed a minute later.

    If this raises or is cancelled, or its process is killed, both webhooks stay. Call it again with the same
    *webhook_gid*, or call `ensure_webhook`: both go on, and `ensure_webhook` does not wait. If another process is
    creating a webhook for the same resource and label, this waits for it, as `ensure_webhook` does.

    ::

        replaced = await replace_webhook(asana, store, webhook_gid=gid, public_url="https://new.example.com/asana")

    Args:
        asana: the session to ask and create with.
        store: the store with its registration.
        webhook_gid: the gid of the webhook to replace.
        public_url: where Asana reaches the receivers; ``None``: where it reaches them now. Receivers must listen at
            both.
        overlap: seconds for which both exist at least. Asana delivers most events within ten minutes.
        longest_wait: seconds from the creation of the new one after which the old one is deleted in any case, if
            *overlap* is over. A heartbeat comes every eight hours.
        now: delete the old one as soon as there is a new one, because its secret has leaked: first its registration is
            closed, so that no more deliveries with that secret are accepted. `ReplacedWebhook.lost_since` says what may
            be lost.

    Returns:
        The new webhook. If another call or `ensure_webhook` has replaced it already, that one.

    Raises:
        NotFoundError: Asana has deleted the webhook already: use `ensure_webhook`.
        WebhookNotVisibleError: this token may not see one of the two.
        ConfigurationError: an argument is invalid; the store has no live webhook with this gid; or it is being moved to
            another URL, or is itself replacing another one.
        StoreError: the store failed.
        AsanaError: any other error of `establish_webhook` or `get_webhook`.
    """
    check_session_and_store(asana, store)
    GetWebhookRequest(webhook_gid=webhook_gid)  # checks it
    check_seconds("overlap", overlap)
    check_seconds("longest_wait", longest_wait)
    old = await _find(store, webhook_gid)
    wanted = Wanted.checked(
        asana,
        store,
        resource=old.resource,
        public_url=old.public_url if public_url is None else public_url,
        filters=(),
        workspace=None,
        label=old.label,
    )
    move = _Move(Run(wanted), old, public_url, overlap, longest_wait, now)
    while (replaced := await move.step()) is None:
        _log.debug("%s is still being replaced", named(old))
    return replaced


async def _find(store: Store, webhook_gid: str) -> Registration:
    """Return the registration of a webhook, live or already replaced."""
    found = await store.list_registrations(webhook_gid=webhook_gid)
    if not found:
        raise ConfigurationError(f"this store has no webhook {webhook_gid:.40}; adopt_webhook takes over one")
    return min(found, key=lambda one: one.state is RegistrationState.CLOSED)


@define
class _Move:
    """One run of `replace_webhook`. Each step looks at the live registrations anew, and does one thing about them."""

    run: Run
    old: Registration
    public_url: str | None = field(repr=False)
    """What the caller gave; ``None``: a move goes on, wherever it leads."""
    overlap: float
    longest_wait: float
    now: bool
    orphans: int = 0
    last: Webhook | None = None
    """Asana's last record of the old webhook."""

    async def step(self) -> ReplacedWebhook | None:
        """Take one step. Return the new webhook when the old one is gone; ``None`` to look again."""
        live = await self.run.wanted.live()
        for one in live:
            if one.state is RegistrationState.PENDING:
                await self.run.wait(one)
                return None
        if len(live) > 1:
            old, new = as_pair(live)
            if old.id != self.old.id:
                raise ConfigurationError(f"{named(self.old)} is replacing another one; retry when that is done")
            await self.settle(old, new)
            return None
        if live and live[0].id == self.old.id:
            await self.create()
            return None
        if live and live[0].replaces == self.old.id:
            return await self.finish(live[0])
        raise ConfigurationError(f"{named(self.old)} is not live any more: it was removed, or Asana deleted it")

    async def create(self) -> None:
        """Create the new webhook, with the filters of the old one."""
        webhook = await self.get(self.old)
        await self.keep_both()  # before, too: or `ensure_webhook` in another process deletes the old one at once
        new = await create_beside(evolve(self.run.wanted, filters=webhook.filters or ()), self.old)
        if new is not None:
            await self.keep_both()
            self.orphans = new.orphans
            _log.info("%s is being replaced by webhook %.40s", named(self.old), new.webhook_gid)

    async def keep_both(self) -> None:
        """Let the overlap begin now."""
        if not self.now:
            await self.run.wanted.store.retire_registration(self.old.id, after=self.overlap)

    async def settle(self, old: Registration, new: Registration) -> None:
        """Delete the old webhook and close its registration if it may go; else wait."""
        asana, store, now = self.run.wanted.asana, self.run.wanted.store, time.time()
        if self.public_url is not None and not reaches(new, None, self.public_url):
            raise ConfigurationError(f"{named(old)} is being moved to another public_url; finish that, with that one")
        if not self.now and old.retire_after is None:
            await self.keep_both()  # the pair was not made by this function
        elif not self.now and now < (old.retire_after or 0.0):
            await asyncio.sleep(min((old.retire_after or 0.0) - now, _POLL_SECONDS))
        elif (webhook := await self.run.look_at(new)) is None:
            pass  # its registration is closed now
        elif self.now:
            await store.close_registration(old.id)
        else:
            self.last, since = await look_at(asana, old), created_at(new, webhook)
            if self.last is not None and not may_retire(
                old, self.last, since=since, now=now, longest_wait=self.longest_wait
            ):
                await asyncio.sleep(_POLL_SECONDS)
                return
            await delete_webhook_of(asana, old)
            await asyncio.sleep(_ACCEPT_SECONDS)
            await store.close_registration(old.id)

    async def finish(self, new: Registration) -> ReplacedWebhook:
        """Return the new webhook when the old registration is closed, by this call or by another one."""
        asana, store = self.run.wanted.asana, self.run.wanted.store
        webhook, old = await self.get(new), await _find(store, self.old.webhook_gid or "")
        if (left := await look_at(asana, old)) is not None:
            self.last = left
            await delete_webhook_of(asana, old)
        lost = lost_since(old, self.last, since=created_at(new, webhook), now=time.time())
        log_moved(old, new, lost)
        return ReplacedWebhook(
            webhook=webhook, webhook_gid=webhook.gid, registration=new.id, orphans=self.orphans, lost_since=lost
        )

    async def get(self, one: Registration) -> Webhook:
        """Return Asana's record of a webhook that must exist."""
        try:
            return await get_webhook(self.run.wanted.asana, one.webhook_gid or "", opt_fields=WEBHOOK_FIELDS)
        except ForbiddenError as error:
            raise not_visible(error, one) from error
