"""How well the webhooks are: what Asana says about them, joined with what has come through them.

Asana deletes a webhook whose deliveries have failed for 24 hours, and tells nobody.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import time
from datetime import UTC, datetime
from typing import Final

from attrs import define, field, frozen

from asana_webhooks._checks import check_seconds, check_session_and_store
from asana_webhooks._tasks import for_each
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, NetworkError, PaginationError, ResponseError, SecretUnavailableError
from asana_webhooks.models import Webhook
from asana_webhooks.store.base import Registration, RegistrationState, Store, registration_id
from asana_webhooks.store.rules import check_label, last_sign
from asana_webhooks.subscriptions.ensure import look_at
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import (
    LONGEST_WAIT,
    Verdict,
    check_public_url,
    endpoint_below,
    verdict_of,
    verdict_of_stranger,
)

__all__ = ["WebhookHealth", "check_webhooks", "look_at_all"]

_FAILURES: Final = (ResponseError, NetworkError, PaginationError)
"""What it means that Asana could not be asked."""
_AT_ONCE: Final = 10
"""How many webhooks are asked for at the same time."""


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
    cannot be asked, every webhook is ``unknown``; this is no error. Webhooks with another label are left out, and so
    are those of other programs, and one that was replaced and is gone.

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
        ConfigurationError: an argument is invalid, or the session or the store is closed.
        StoreError: the store failed.
    """
    found, _ = await look_at_all(
        asana, store, public_url=public_url, workspace=workspace, label=label, silent_after=silent_after
    )
    return tuple(sorted(found, key=lambda one: (one.resource, one.webhook_gid)))


async def look_at_all(
    asana: AsanaSession, store: Store, *, public_url: str, workspace: str, label: str, silent_after: float
) -> tuple[list[WebhookHealth], AsanaError | None]:
    """Return what `check_webhooks` does, and why Asana could not be asked; ``None``: it could."""
    check_session_and_store(asana, store)
    base, query = check_public_url(public_url)
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
