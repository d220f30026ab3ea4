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
from asana_webhooks.errors import AsanaError, ConfigurationError, SecretUnavailableError, StoreError
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

__all__ = ["Check", "WebhookHealth", "check_webhooks"]

_AT_ONCE: Final = 10
"""How many webhooks are asked for at the same time."""


@frozen(kw_only=True)
class WebhookHealth:
    """How well one webhook is. Its `str` is a line to show."""

    verdict: Verdict
    reason: str
    """Why, in words."""
    webhook_gid: str
    resource: str
    """The gid of the resource it watches."""
    label: str
    registration: str
    """The id of its registration in the store; empty if the store has none."""
    last_sign_at: datetime
    """When a delivery or heartbeat of it was last stored, or else when it was created."""
    deleted_at: datetime | None = None
    """If it is failing: when Asana deletes it, unless a delivery succeeds before."""
    last_failure: str = field(default="", repr=False)
    """If it is failing: what its target said last, which may be the page of a proxy and show the target's path."""

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
    """Return how well each webhook with *label* is: one `Verdict` each. Nothing is changed.

    It sends one list call per 100 webhooks, and one GET for each webhook of the store that the list lacks. If Asana
    cannot be asked, every webhook is ``unknown``; this is no error. Webhooks with another label, and those that post
    elsewhere, are left out. So is one that was replaced and is gone.

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
    check = Check.checked(
        asana, store, public_url=public_url, workspace=workspace, label=label, silent_after=silent_after
    )
    await check.run()
    return check.healths


@define
class Check:
    """The arguments of a check, and what it found. It can run again."""

    asana: AsanaSession
    store: Store = field(repr=False)
    public_url: str = field(repr=False)
    workspace: str
    label: str
    silent_after: float
    error: AsanaError | None = None
    """Why Asana could not be asked."""
    _found: list[WebhookHealth] = field(factory=list)

    @classmethod
    def checked(
        cls, asana: AsanaSession, store: Store, *, public_url: str, workspace: str, label: str, silent_after: float
    ) -> "Check":
        """Check the arguments before anything is sent; raise `ConfigurationError` if one is invalid."""
        check_session_and_store(asana, store)
        base, query = check_public_url(public_url)
        get_webhooks(asana, workspace=workspace)  # checks it
        check_seconds("silent_after", silent_after, zero=False)
        return cls(asana, store, f"{base}{query}", workspace, check_label(label), silent_after)

    @property
    def healths(self) -> tuple[WebhookHealth, ...]:
        """What was found."""
        return tuple(sorted(self._found, key=lambda one: (one.resource, one.webhook_gid)))

    async def run(self) -> None:
        """Look at every webhook."""
        live = await live_registrations(self.store, label=self.label)
        ours = {one.webhook_gid or "": one for one in live if one.state is RegistrationState.CONFIRMED}
        listed = dict[str, Webhook]()
        self._found, self.error = [], None
        try:
            async for webhook in get_webhooks(self.asana, workspace=self.workspace):
                listed[webhook.gid] = webhook
        except (ConfigurationError, StoreError):
            raise
        except AsanaError as error:
            self.error = error
            for one in ours.values():
                self.add(one, None, (Verdict.UNKNOWN, f"Asana could not be asked: {error}"))
            return
        replaced = {one.replaces for one in ours.values()}

        async def look(one: Registration) -> None:
            webhook = listed.get(one.webhook_gid or "")
            try:
                webhook = webhook or await look_at(self.asana, one)
            except (ConfigurationError, StoreError):
                raise
            except AsanaError as error:
                self.add(one, None, (Verdict.UNKNOWN, str(error)))
                return
            if webhook is None and (one.id in replaced or not await self.is_live(one)):
                return
            self.add(one, webhook, verdict_of(one, webhook, now=time.time(), silent_after=self.silent_after))

        await for_each(ours.values(), look, at_once=_AT_ONCE)
        strangers = [one for gid, one in listed.items() if gid not in ours]
        await for_each(strangers, self.look_at_stranger, at_once=_AT_ONCE)

    async def is_live(self, one: Registration) -> bool:
        """Return whether the registration of a webhook that is gone was not closed meanwhile, as when it is removed."""
        state = RegistrationState.CONFIRMED
        found = await self.store.list_registrations(webhook_gid=one.webhook_gid, label=self.label, state=state)
        return one.id in {other.id for other in found}

    async def look_at_stranger(self, webhook: Webhook) -> None:
        """Look whether a webhook that is none of ours is deaf."""
        endpoint = endpoint_below(webhook.target, self.public_url)
        if endpoint is None:
            return
        try:
            known = await self.store.find_registration(registration_id(endpoint))
        except SecretUnavailableError:  # only a live one has a secret, and this label's are known
            return
        verdict = verdict_of_stranger(known, webhook, label=self.label)
        if verdict is not None:
            closed = known is not None and known.state is RegistrationState.CLOSED
            self.add(known if closed else None, webhook, verdict)

    def add(self, one: Registration | None, webhook: Webhook | None, verdict: tuple[Verdict, str]) -> None:
        """Note what was found about a webhook that the store knows, or Asana, or both."""
        seen = last_sign(one) if one is not None else 0.0
        resource, gid = (one.resource, one.webhook_gid or "") if one is not None else ("", "")
        if webhook is not None:
            resource, gid = webhook.resource.gid if webhook.resource is not None else resource, webhook.gid
            if one is None:
                known = webhook.last_success_at or webhook.created_at
                seen = known.timestamp() if known is not None else 0.0
        failing = webhook if verdict[0] is Verdict.FAILING else None
        self._found.append(
            WebhookHealth(
                verdict=verdict[0],
                reason=verdict[1],
                webhook_gid=gid,
                resource=resource,
                label=self.label,
                registration=one.id if one is not None else "",
                last_sign_at=datetime.fromtimestamp(seen, UTC),
                deleted_at=failing.failure_deletion_timestamp if failing is not None else None,
                last_failure=(failing.last_failure_content or "") if failing is not None else "",
            )
        )
