"""How well the webhooks are: what Asana says about them, joined with what has come through them.

Asana deletes a webhook whose deliveries have failed for 24 hours, and tells nobody. `watch_webhooks` tells what
changes, and with *repair* it ensures the wanted ones again.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from attrs import define, evolve, field, frozen

from asana_webhooks._checks import check_seconds, check_session_and_store, kind_of
from asana_webhooks._tasks import for_each, is_being_cancelled
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    NetworkError,
    NotAuthorizedError,
    PaginationError,
    ResponseError,
    SecretUnavailableError,
    StoreError,
)
from asana_webhooks.models import Webhook
from asana_webhooks.store.base import Registration, RegistrationState, Store, registration_id
from asana_webhooks.store.rules import check_label, last_sign
from asana_webhooks.subscriptions.ensure import EnsuredWebhook, ensure_webhook, look_at
from asana_webhooks.subscriptions.establish import Wanted, live_registrations
from asana_webhooks.subscriptions.plan import WantedWebhook, check_wanted
from asana_webhooks.subscriptions.rules import (
    LONGEST_WAIT,
    Verdict,
    endpoint_below,
    split_public_url,
    verdict_of,
    verdict_of_stranger,
)

__all__ = ["Gap", "WebhookChange", "WebhookHealth", "check_webhooks", "watch_webhooks"]

_FAILURES: Final = (ResponseError, NetworkError, PaginationError)
"""What it means that Asana could not be asked."""
_AT_ONCE: Final = 10
"""How many webhooks are asked for, or repaired, at the same time."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class WebhookHealth:
    """How well one webhook is. Its `str` is a line to show."""

    verdict: Verdict
    """``ok``: its last delivery or heartbeat was accepted. ``new``: nothing has come through it yet. ``failing``: its
    deliveries fail. ``silent``: for hours nothing of it was stored. ``deaf``: it posts below the public URL, but the
    store cannot verify what it sends. ``gone``: the store has it, and Asana has not. ``inactive``: Asana sends nothing.
    ``unknown``: Asana could not be asked, or this token may not see it."""
    reason: str
    """Why, in words."""
    webhook_gid: str
    resource: str
    """The gid of the resource it watches."""
    label: str
    last_sign_at: datetime
    """When a delivery or heartbeat of it was last stored, or else when it was created. If it is ``deaf``: when Asana
    says that one last succeeded."""
    deleted_at: datetime | None = None
    """When Asana deletes it, unless a delivery succeeds before; ``None``: its deliveries do not fail."""
    last_failure: str = field(default="", repr=False)
    """What its target said when a delivery failed last. It may be the page of a proxy and show the target's path."""

    def __str__(self) -> str:
        label = f" (label {self.label!r:.40})" if self.label else ""
        return f"{self.verdict}: webhook {self.webhook_gid:.40} on {self.resource:.40}{label}: {self.reason}"


async def check_webhooks(
    asana: AsanaSession,
    store: Store,
    *,
    public_url: str,
    workspace: str,
    label: str = "",
    silent_after: float = LONGEST_WAIT,
) -> tuple[WebhookHealth, ...]:
    """Return how well each webhook with *label* is. Nothing is changed.

    It sends one list call per 100 webhooks, and one GET for each webhook of the store that the list lacks. If Asana
    cannot be asked, every webhook is ``unknown``; this is no error, but for a token that is refused. Webhooks with
    another label are left out, and so are those of other programs, and one that was replaced and is gone.

    ::

        for health in await check_webhooks(asana, store, public_url=url, workspace=workspace):
            print(health)

    Args:
        asana: the session to ask with.
        store: the store the receivers use.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`. A webhook that posts below it
            and that the store cannot verify is ``deaf``.
        workspace: the workspace whose webhooks are listed.
        label: their label; see `ensure_webhook`.
        silent_after: seconds without a delivery or heartbeat after which a webhook is ``silent``. Asana sends a
            heartbeat every eight hours.

    Returns:
        One for each webhook, sorted by resource.

    Raises:
        NotAuthorizedError: the token was refused.
        ConfigurationError: an argument is invalid, or the session or the store is closed.
        StoreError: the store failed.
    """
    found, error = await _look_at_all(
        asana, store, public_url=public_url, workspace=workspace, label=label, silent_after=silent_after
    )
    if isinstance(error, NotAuthorizedError):
        raise error
    return tuple(sorted(found, key=lambda one: (one.resource, one.webhook_gid)))


async def _look_at_all(
    asana: AsanaSession, store: Store, *, public_url: str, workspace: str, label: str, silent_after: float
) -> tuple[list[WebhookHealth], AsanaError | None]:
    """Return what `check_webhooks` does, and why Asana could not be asked; ``None``: it could."""
    check_session_and_store(asana, store)
    base, query = split_public_url(public_url)
    check_seconds("silent_after", silent_after, zero=False)
    pager = get_webhooks(asana, workspace=workspace)  # checks it
    check = _Check(asana, store, f"{base}{query}", check_label(label), silent_after)
    live = await live_registrations(store, label=label)
    ours = {one.webhook_gid: one for one in live if one.state is RegistrationState.CONFIRMED}
    listed = dict[str, Webhook]()
    try:
        async for webhook in pager:
            listed[webhook.gid] = webhook
    except _FAILURES as error:
        for one in ours.values():
            check.add(one, None, "unknown", f"Asana could not be asked: {error}")
        return check.found, error
    replaced = {one.replaces for one in ours.values()}
    known = [(one, listed.pop(gid or "", None), one.id in replaced) for gid, one in ours.items()]
    await for_each(known, check.look, at_once=_AT_ONCE)
    await for_each(listed.values(), check.look_at_stranger, at_once=_AT_ONCE)
    return check.found, None


@define
class _Check:
    """What a check needs to look at one webhook after another, and what it has found."""

    asana: AsanaSession
    store: Store = field(repr=False)
    public_url: str = field(repr=False)
    label: str
    silent_after: float
    found: list[WebhookHealth] = field(factory=list)

    async def look(self, known: tuple[Registration, Webhook | None, bool]) -> None:
        """Look at a webhook of the store, as it is listed, that may have been replaced."""
        one, webhook, replaced = known
        try:
            webhook = webhook or await look_at(self.asana, one)
        except _FAILURES as error:
            self.add(one, None, "unknown", str(error))
            return
        if webhook is None:
            state = RegistrationState.CONFIRMED  # it may have been removed meanwhile
            if replaced or not await self.store.list_registrations(webhook_gid=one.webhook_gid, state=state):
                return
        self.add(one, webhook, *verdict_of(one, webhook, now=time.time(), silent_after=self.silent_after))

    async def look_at_stranger(self, webhook: Webhook) -> None:
        """Look whether a webhook that is none of the label's live ones is deaf."""
        endpoint = endpoint_below(webhook.target, self.public_url)
        if endpoint is None:
            return
        try:
            one = await self.store.find_registration(registration_id(endpoint))
        except SecretUnavailableError:  # only a live one has a secret, and this label's are known
            return
        if (judged := verdict_of_stranger(one, webhook, label=self.label, now=time.time())) is not None:
            self.add(None, webhook, *judged)

    def add(self, one: Registration | None, webhook: Webhook | None, verdict: Verdict, reason: str) -> None:
        """Note what was found about a webhook that is live in the store, or listed by Asana, or both."""
        if one is not None:
            seen = datetime.fromtimestamp(last_sign(one), UTC)
        else:
            seen = (webhook and (webhook.last_success_at or webhook.created_at)) or datetime.fromtimestamp(0, UTC)
        resource = "" if one is None else one.resource
        health = WebhookHealth(
            verdict=verdict,
            reason=reason,
            webhook_gid=webhook.gid if webhook is not None else (one and one.webhook_gid) or "",
            resource=webhook.resource.gid if webhook is not None and webhook.resource is not None else resource,
            label=self.label,
            last_sign_at=seen,
            deleted_at=webhook.failure_deletion_timestamp if webhook is not None else None,
            last_failure=(webhook.last_failure_content or "") if webhook is not None else "",
        )
        self.found.append(health)


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
        return text if self.error is None else f"{text}; repairing it failed: {self.error}"


async def watch_webhooks(
    asana: AsanaSession,
    store: Store,
    wanted: Iterable[WantedWebhook],
    *,
    public_url: str,
    workspace: str,
    label: str = "",
    every: float | None = 300.0,
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
        every: seconds between two checks; ``None`` to check, and repair, once and return. Each check is one list call
            per 100 webhooks.
        on_change: a plain or an async function. Checks and repairs wait for it, so give it a timeout. What it raises is
            logged.
        repair: whether to repair.

    Raises:
        ConfigurationError: an argument is invalid, or the session or the store is closed.
        StoreError: the store failed, and *every* is ``None``.
    """
    if every is not None:
        check_seconds("every", every, zero=False)
    if on_change is not None and not callable(on_change):
        raise ConfigurationError(f"on_change must be a function, not {kind_of(on_change)}")
    todo = check_wanted(asana, store, wanted, public_url=public_url, workspace=workspace, label=label)
    watch = _Watch(todo if repair else {}, on_change)
    where = {"public_url": public_url, "workspace": workspace, "label": label}
    while True:
        try:
            healths, error = await _look_at_all(asana, store, **where, silent_after=LONGEST_WAIT)
            await watch.tell_changes(healths, complete=error is None)
            if error is None:
                await watch.repair_all()
        except StoreError as error:
            if every is None:
                raise
            _log.error("checking the webhooks failed; retrying in %g s: %s", every, error)
        if every is None:
            return
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
