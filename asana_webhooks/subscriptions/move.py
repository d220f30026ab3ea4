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

from attrs import define, evolve, frozen

from asana_webhooks._checks import check_seconds, check_session_and_store
from asana_webhooks.client.operations import get_webhook
from asana_webhooks.client.requests import WEBHOOK_FIELDS, GetWebhookRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Webhook
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.subscriptions.ensure import Run, delete_webhook_of, look_at
from asana_webhooks.subscriptions.establish import EstablishedWebhook, Wanted, create_established
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

_POLL_SECONDS: Final = 30.0
"""How often Asana is asked about both webhooks, at most."""
_ACCEPT_SECONDS: Final = 60.0
"""How long deliveries are accepted that Asana sent before it deleted the old webhook."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class ReplacedWebhook(EstablishedWebhook):
    """The webhook that has taken the place of another one."""

    old_webhook_gid: str
    """The gid of the webhook that was deleted."""
    lost_since: datetime | None = None
    """Events from then until `webhook` was created may be lost; ``None``: none are. It is set with *now*, if
    *longest_wait* was over, or if Asana had deleted the old webhook."""


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

    If this is cancelled or its process is killed, both webhooks stay. Call it again with the same *webhook_gid*, or
    call `ensure_webhook`: both go on. It waits for another process that is creating a webhook for the same resource and
    label, as `ensure_webhook` does.

    Args:
        asana: the session to ask and create with.
        store: the store with its registration.
        webhook_gid: the gid of the webhook to replace.
        public_url: where Asana reaches the receivers; ``None``: where it reaches them now. Receivers must listen at
            both.
        overlap: seconds for which both exist at least. Asana delivers most events within ten minutes.
        longest_wait: seconds after which the old one is deleted in any case. A heartbeat comes every eight hours.
        now: delete the old one at once, because its secret has leaked. `ReplacedWebhook.lost_since` says what may be
            lost.

    Returns:
        The new webhook.

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
    move = _Move(wanted, old, overlap, longest_wait, now, Run(wanted))
    while (replaced := await move.step()) is None:
        _log.debug("%s is still being moved", named(old))
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

    wanted: Wanted
    old: Registration
    overlap: float
    longest_wait: float
    now: bool
    waiting: Run

    async def step(self) -> ReplacedWebhook | None:
        """Take one step. Return the new webhook when the old one is gone; ``None`` to look again."""
        live = await self.wanted.live()
        for one in live:
            if one.state is RegistrationState.PENDING:
                await self.waiting.wait(one)
                return None
        if len(live) > 1:
            old, new = as_pair(live)
            if old.id == self.old.id:
                return await self.settle(old, new)
            raise ConfigurationError(f"{named(self.old)} is replacing another one; retry when that is done")
        if live and live[0].id == self.old.id:
            await self.create()
            return None
        if live and live[0].replaces == self.old.id:  # another process has finished the move
            webhook = await look_at(self.wanted.asana, live[0])
            return None if webhook is None else self.replaced(live[0], webhook, lost_since=None)
        raise ConfigurationError(f"{named(self.old)} is not live any more: it was removed, or Asana deleted it")

    async def create(self) -> None:
        """Create the new webhook, with the filters of the old one."""
        asana, store = self.wanted.asana, self.wanted.store
        webhook = await get_webhook(asana, self.old.webhook_gid or "", opt_fields=WEBHOOK_FIELDS)
        # Before and after: if this is killed in between, no other process takes it for done, nor for too short.
        await store.retire_registration(self.old.id, after=self.overlap)
        new = await create_established(evolve(self.wanted, filters=webhook.filters or ()), replaces=self.old.id)
        await store.retire_registration(self.old.id, after=self.overlap)
        _log.info("%s is being replaced by webhook %.40s", named(self.old), new.webhook_gid)

    async def settle(self, old: Registration, new: Registration) -> ReplacedWebhook | None:
        """Delete the old webhook if it may go; else wait."""
        asana, store = self.wanted.asana, self.wanted.store
        webhook = await look_at(asana, new)
        if webhook is None:
            _log.warning("%s is gone: Asana or someone has deleted it; closing its registration", named(new))
            await store.close_registration(new.id)
            return None
        if not reaches(new, webhook.target, self.wanted.public_url):
            raise ConfigurationError(f"{named(old)} is being moved to another public_url; finish that, with that one")
        old_webhook = await look_at(asana, old)
        since = created_at(new, webhook)
        now, longest = time.time(), self.longest_wait
        may_go = (
            self.now or old_webhook is None or may_retire(old, old_webhook, since=since, now=now, longest_wait=longest)
        )
        if not may_go:
            await asyncio.sleep(min(_POLL_SECONDS, max(1.0, (old.retire_after or 0.0) - now)))
            return None
        await delete_webhook_of(asana, old)
        if not self.now:
            await asyncio.sleep(_ACCEPT_SECONDS)
        await store.close_registration(old.id)
        lost = lost_since(old, old_webhook, since=since, forced=self.now)
        _log.info("%s has been replaced by %s; events may be lost: %s", named(old), named(new), lost or "none")
        return self.replaced(new, webhook, lost_since=lost)

    def may_go(self, old: Registration, webhook: Webhook, *, since: float, now: float) -> bool:
        """Return whether the old webhook may be deleted; see `may_retire`."""
        return may_retire(old, webhook, since=since, now=now, longest_wait=self.longest_wait)

    def replaced(self, new: Registration, webhook: Webhook, *, lost_since: datetime | None) -> ReplacedWebhook:
        """Return the result."""
        return ReplacedWebhook(
            webhook=webhook,
            webhook_gid=webhook.gid,
            registration=new.id,
            old_webhook_gid=self.old.webhook_gid or "",
            lost_since=lost_since,
        )
