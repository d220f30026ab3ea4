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
from asana_webhooks.subscriptions.health import WebhookHealth, look_at_all
from asana_webhooks.subscriptions.plan import WantedWebhook, check_wanted
from asana_webhooks.subscriptions.rules import LONGEST_WAIT, Verdict

__all__ = ["Gap", "WebhookChange", "watch_webhooks"]

_AT_ONCE: Final = 10
"""How many webhooks are repaired at the same time."""

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
        return self.health.verdict in ("ok", "new") or self.removed or self.ensured is not None

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
        on_change: a plain or an async function. Checks and repairs wait for it, so give it a timeout. What it raises is
            logged.
        repair: whether to repair.

    Raises:
        ConfigurationError: an argument is invalid, or the session or the store is closed.
    """
    check_seconds("every", every, zero=False)
    if on_change is not None and not callable(on_change):
        raise ConfigurationError(f"on_change must be a function, not {kind_of(on_change)}")
    todo = check_wanted(asana, store, wanted, public_url=public_url, workspace=workspace, label=label)
    watch = _Watch(todo if repair else {}, on_change)
    where = {"public_url": public_url, "workspace": workspace, "label": label}
    while True:
        try:
            healths, error = await look_at_all(asana, store, **where, silent_after=LONGEST_WAIT)
            await watch.tell_changes(healths, complete=error is None)
            if error is None:
                await watch.repair_all()
        except StoreError as error:
            _log.error("checking the webhooks failed; retrying in %g s: %s", every, error)
        await asyncio.sleep(every)


@define
class _Watch:
    """What a watch knows from one round to the next."""

    wanted: Mapping[str, Wanted]
    """What to repair, by resource."""
    on_change: Callable[[WebhookChange], object] | None
    last: dict[str, WebhookChange] = field(factory=dict)
    """The last change of each webhook, told or not, by its gid."""
    turn: asyncio.Lock = field(factory=asyncio.Lock)
    """Held while *on_change* runs."""

    def is_broken(self, change: WebhookChange) -> bool:
        """Return whether the webhook is to be repaired."""
        wanted = change.health.resource in self.wanted
        return wanted and change.health.verdict in ("gone", "deaf") and change.ensured is None

    async def tell_changes(self, healths: Iterable[WebhookHealth], *, complete: bool) -> None:
        """Tell what has changed, but for what is to be repaired. *complete*: whether what is missing is gone."""
        changes, found = list[WebhookChange](), set[str]()
        for health in healths:
            found.add(health.webhook_gid)
            last = self.last.get(health.webhook_gid)
            if last is not None and last.health.verdict == health.verdict:
                continue
            change = WebhookChange(health=health, before=last.health.verdict if last is not None else None)
            self.last[health.webhook_gid] = change
            if not self.is_broken(change) and (last is not None or not change.resolved):
                changes.append(change)
        for gid in self.last.keys() - found if complete else ():
            # What a failed repair has closed is missing, too; but that is still to be repaired.
            if not self.is_broken(self.last[gid]):
                last = self.last.pop(gid)
                if not last.resolved:
                    changes.append(evolve(last, before=last.health.verdict, removed=True))
        for change in changes:
            await self.tell(change)

    async def repair_all(self) -> None:
        """Repair what is broken; tell each repair, or once that it failed."""
        await for_each([one for one in self.last.values() if self.is_broken(one)], self.repair, at_once=_AT_ONCE)

    async def repair(self, change: WebhookChange) -> None:
        wanted, health = self.wanted[change.health.resource], change.health
        try:
            ensured = await ensure_webhook(
                wanted.asana,
                wanted.store,
                resource=wanted.resource,
                public_url=wanted.public_url,
                filters=wanted.filters,
                label=wanted.label,
                workspace=wanted.workspace,
            )
        except AsanaError as error:
            told, change = change.error is not None, evolve(change, error=error)
        else:
            since, until = health.last_sign_at, ensured.webhook.created_at or datetime.now(UTC)
            gap = Gap(wanted.resource, since, until) if since < until else None
            told, change = False, evolve(change, ensured=ensured, gap=gap, error=None)
        self.last[health.webhook_gid] = change
        if not told:
            await self.tell(change)

    async def tell(self, change: WebhookChange) -> None:
        """Log a change, and call *on_change*, once at a time."""
        harmless = change.removed or change.health.verdict in ("ok", "new")
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
