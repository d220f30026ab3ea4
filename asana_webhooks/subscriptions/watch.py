"""Watching the webhooks: what changes is told, and with *repair* the wanted ones are ensured again.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from attrs import define, evolve, field, frozen

from asana_webhooks._checks import check_seconds, kind_of
from asana_webhooks._tasks import for_each, is_being_cancelled
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreError
from asana_webhooks.store.base import Store
from asana_webhooks.subscriptions.ensure import EnsuredWebhook, ensure_webhook
from asana_webhooks.subscriptions.establish import Wanted
from asana_webhooks.subscriptions.health import Check, WebhookHealth
from asana_webhooks.subscriptions.plan import WantedWebhook
from asana_webhooks.subscriptions.rules import LONGEST_WAIT, Verdict

__all__ = ["Gap", "WebhookChange", "watch_webhooks"]

_AT_ONCE: Final = 10
"""How many webhooks are repaired at the same time."""
_FINE: Final = (Verdict.OK, Verdict.NEW)
_BROKEN: Final = (Verdict.GONE, Verdict.DEAF)
"""What a repair can mend."""

_log = logging.getLogger(__name__)


@frozen
class Gap:
    """The time in which a resource had no webhook, so that its events may be missing. Ask Asana for what changed.

    Asana sends most events within ten minutes, so look a little further back, too.
    """

    resource: str
    """The gid of the resource."""
    since: datetime
    """When a delivery or heartbeat of the old webhook was last stored, in UTC."""
    until: datetime
    """When the new webhook was created, in UTC."""


@frozen(kw_only=True)
class WebhookChange:
    """A change that `watch_webhooks` tells. Its `str` is a line to show."""

    health: WebhookHealth
    """How well the webhook is now; if it was *removed*, how well it was."""
    before: Verdict | None = None
    """Its verdict before; ``None`` if there is none."""
    removed: bool = False
    """Whether it is no longer there: it was removed, replaced or repaired, perhaps by another process."""
    ensured: EnsuredWebhook | None = None
    """If it was repaired: the webhook that its resource has now."""
    gap: Gap | None = None
    """If it was repaired: the time in which events may be missing; ``None``: there is none."""
    error: AsanaError | None = None
    """Why repairing it failed; it is tried again in each round, and told when it has succeeded."""

    @property
    def resolved(self) -> bool:
        """Whether nothing is left to do: the webhook is ok or new, was repaired, or is no longer there."""
        return self.health.verdict in _FINE or self.removed or self.ensured is not None

    def __str__(self) -> str:
        text = f"no longer there: {self.health}" if self.removed else str(self.health)
        if self.ensured is not None:
            text += f"; repaired: {self.ensured.action} webhook {self.ensured.webhook_gid:.40}"
        if self.gap is not None:
            text += (
                f"; events may be missing from {self.gap.since:%Y-%m-%d %H:%M} to {self.gap.until:%Y-%m-%d %H:%M} UTC"
            )
        return text if self.error is None else f"{text}; repairing it failed, retrying: {self.error}"


async def watch_webhooks(
    asana: AsanaSession,
    store: Store,
    wanted: Iterable[WantedWebhook],
    *,
    public_url: str,
    workspace: str,
    label: str = "",
    every: float = 300.0,
    on_change: Callable[[WebhookChange], object] | None = None,
    repair: bool = False,
) -> None:
    """Check the webhooks again and again, until this is cancelled; log each change, and call *on_change* with it.

    The first check comes at once, and tells of all webhooks that are neither ok nor new. From then on each change of a
    verdict is told once. While Asana or the store fails, it goes on; it never repairs while Asana cannot be asked.

    With *repair*, it calls `ensure_webhook` for each webhook in *wanted* that is gone or deaf, and for no other.
    Then `WebhookChange.gap` tells in which time events may be missing.

    ::

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_webhooks(asana, store, wanted, public_url=url, workspace=workspace, repair=True))
            await worker.run()

    Cancelling ends it at once, except while it creates a webhook: then it may take 20 seconds; see `ensure_webhook`.

    Args:
        asana: the session to ask and create with.
        store: the store the receivers use.
        wanted: the webhooks to repair, with their filters. Webhooks of other resources are checked, too.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`.
        workspace: the workspace whose webhooks are listed. All wanted resources must be in it.
        label: their label; see `ensure_webhook`.
        every: seconds between two checks. Each check is one list call per 100 webhooks.
        on_change: a plain or an async function. The next check waits for it. What it raises is logged.
        repair: whether to repair.

    Raises:
        ConfigurationError: an argument is invalid, or the session or the store is closed.
    """
    check_seconds("every", every, zero=False)
    if on_change is not None and not callable(on_change):
        raise ConfigurationError(f"on_change must be a function, not {kind_of(on_change)}")
    check = Check.checked(
        asana, store, public_url=public_url, workspace=workspace, label=label, silent_after=LONGEST_WAIT
    )
    todo = dict[str, WantedWebhook]()
    for one in wanted:
        if not isinstance(one, WantedWebhook):
            raise ConfigurationError(f"wanted must be WantedWebhook objects, not {kind_of(one)}")
        options = {"public_url": public_url, "workspace": workspace, "label": label}
        Wanted.checked(asana, store, resource=one.resource, filters=one.filters, **options)
        todo[one.resource] = one
    watch = _Watch(check, todo if repair else {}, on_change)
    while True:
        try:
            await watch.look()
        except StoreError as error:
            _log.error("checking the webhooks failed; retrying in %g s: %s", every, error)
        await asyncio.sleep(every)


@define
class _Watch:
    """What a watch knows from one round to the next. The keys are gids of webhooks."""

    check: Check
    wanted: Mapping[str, WantedWebhook]
    """What to repair, by resource."""
    on_change: Callable[[WebhookChange], object] | None
    seen: dict[str, WebhookHealth] = field(factory=dict)
    """What the last check found."""
    resolved: set[str] = field(factory=set)
    """Webhooks about which there is nothing to tell if they are no longer there: repaired ones."""
    broken: dict[str, WebhookChange] = field(factory=dict)
    """Those to repair: what is to tell about them, or was told if it has an error."""
    turn: asyncio.Lock = field(factory=asyncio.Lock)
    """Held while *on_change* runs."""

    async def look(self) -> None:
        """Check once; tell what has changed, and repair."""
        await self.check.run()
        before, self.seen = self.seen, {one.webhook_gid: one for one in self.check.healths}
        if self.check.error is not None:
            self.seen = before | self.seen  # which webhooks are deaf, only Asana knows
        changes = list[WebhookChange]()
        for gid in before.keys() - self.seen.keys() - self.resolved:
            # What a failed repair has closed is no longer there, either; but that is still to be repaired.
            if before[gid].verdict not in _FINE and gid not in self.broken:
                changes.append(WebhookChange(health=before[gid], before=before[gid].verdict, removed=True))
        for gid, health in self.seen.items():
            old = before[gid].verdict if gid in before else None
            if health.verdict is old:
                continue
            change = WebhookChange(health=health, before=old)
            self.broken.pop(gid, None)
            self.resolved.discard(gid)
            if health.verdict in _BROKEN and health.resource in self.wanted:
                self.broken[gid] = change
            elif old is not None or health.verdict not in _FINE:
                changes.append(change)
        for change in changes:
            await self.tell(change)
        if self.check.error is None:
            await for_each(tuple(self.broken), self.repair, at_once=_AT_ONCE)

    async def repair(self, gid: str) -> None:
        """Ensure the webhook of a resource again; tell that, or once that it failed."""
        change, check = self.broken[gid], self.check
        wanted = self.wanted[change.health.resource]
        try:
            ensured = await ensure_webhook(
                check.asana,
                check.store,
                resource=wanted.resource,
                public_url=check.public_url,
                filters=wanted.filters,
                label=check.label,
                workspace=check.workspace,
            )
        except AsanaError as error:
            first, self.broken[gid] = change.error is None, evolve(change, error=error)
            if first:
                await self.tell(self.broken[gid])
            return
        del self.broken[gid]
        self.resolved.add(gid)
        since, until = change.health.last_sign_at, ensured.webhook.created_at or datetime.now(UTC)
        gap = Gap(wanted.resource, since, until) if since < until else None
        await self.tell(evolve(change, ensured=ensured, gap=gap, error=None))

    async def tell(self, change: WebhookChange) -> None:
        """Log a change, and call *on_change*, once at a time."""
        harmless = change.removed or change.health.verdict in _FINE
        _log.log(logging.INFO if harmless else logging.WARNING, "%s", change)
        if self.on_change is None:
            return
        async with self.turn:
            try:
                result = self.on_change(change)
                if inspect.isawaitable(result):
                    await result
            except asyncio.CancelledError:
                if is_being_cancelled():
                    raise
                _log.exception("on_change was cancelled; the watch goes on")
            except Exception:  # noqa: BLE001 - it may raise anything, and the watch goes on
                _log.exception("on_change failed; the watch goes on")
