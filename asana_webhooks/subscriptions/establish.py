"""Establishing a webhook: create it, echo its handshake, and confirm its registration with Asana's 201.

A registration is opened as the last step before the create request is sent, after all waiting for its turn. While the
request is open, the receiver echoes handshakes and stores their secrets as candidates. Asana's authenticated 201
decides which candidate is the webhook's secret. If Asana refuses the request for now (429), its registration is closed,
and the next attempt opens another. A create request has no idempotency key. If its outcome is unknown, its registration
is closed and a second one is tried. The store opens no second registration for a resource and label, except to replace
the first, so several processes may try at once.

Source: https://developers.asana.com/reference/createwebhook
"""

import logging
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final, Self

from attrs import define, evolve, field, frozen

from asana_webhooks._checks import check_reachable, check_session_and_store
from asana_webhooks._tasks import finish
from asana_webhooks.client.requests import CreateWebhookRequest, GetWebhooksRequest, filters_of
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DuplicateWebhookError,
    HandshakeMismatchError,
    RegistrationClosedError,
    StoreError,
    StoreUnavailableError,
    TargetRejectedError,
    WebhookExistsError,
)
from asana_webhooks.models import CreatedWebhook, Webhook, WebhookFilter
from asana_webhooks.store.base import Registration, RegistrationState, Store, registration_id
from asana_webhooks.store.rules import check_label
from asana_webhooks.subscriptions.orphans import delete_orphans, ensure_deleted
from asana_webhooks.subscriptions.rules import split_public_url

__all__ = [
    "EstablishedWebhook",
    "Wanted",
    "create_established",
    "establish_webhook",
    "live_registrations",
]

_SLACK_SECONDS: Final = 15.0
"""How long a registration stays pending after the longest create call: time to confirm it in a busy store."""
_DELETE_SECONDS: Final = 15.0
"""How long deleting the webhook of a failed attempt may take."""
_OPEN_ATTEMPTS: Final = 3
"""How often opening a registration is tried if another one is in the way and ends before it can be named."""

_PAGE: Final = 100
"""How many registrations are asked for at once."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class EstablishedWebhook:
    """A live webhook: Asana sends deliveries, and the receivers can verify them."""

    webhook: Webhook = field(repr=False)
    """Asana's record of it; its target contains the endpoint."""
    webhook_gid: str
    registration: str
    """The id of its registration in the store. Pass it to ``store.close_registration`` after deleting the webhook."""
    orphans: int = 0
    """How many webhooks may exist that this call could not delete: of its own first attempt and, in `ensure_webhook`
    with *workspace*, of killed processes. Their deliveries are answered 404, and Asana deletes them after 24 hours."""


async def establish_webhook(
    asana: AsanaSession,
    store: Store,
    *,
    public_url: str,
    resource: str,
    filters: Iterable[WebhookFilter] = (),
    workspace: str | None = None,
    label: str = "",
    replaces: str | None = None,
) -> EstablishedWebhook:
    """Create a webhook whose deliveries the receivers on *store* accept. One is live at most for a resource and label.

    A receiver must already be listening at *public_url*, in this process or in another with the same store. So do not
    await this in an application's startup hook: the port is not open yet.

    `ensure_webhook` is built on this, and is what a service needs at its start. This only creates.

    It first awaits the store; where a webhook is live already, it raises `WebhookExistsError` and sends nothing. Then
    it awaits the store and one create call. If its outcome is unknown, it awaits a second create call. With
    *workspace*, it then also searches for the webhook of the first one, at most twice (30 seconds each), to delete it.

    It is all or nothing. If this raises or is cancelled, no delivery of a webhook it may have created is accepted. The
    registration is closed, which may take 5 seconds, and a webhook whose gid is known is deleted, which may take 15. So
    cancelling may take 20 seconds. Deliveries of a webhook whose gid is unknown are answered 404, and Asana deletes it
    after 24 hours. If the first attempt may have left a webhook and the second attempt fails, the first error is the
    ``__cause__`` of the second.

    Args:
        asana: the session to create it with.
        store: the store the receivers use.
        public_url: the URL where Asana reaches the receivers. A random endpoint is appended as the last segment of its
            path. A query is kept as written, for gateways that demand a key:
            ``https://example.com/asana?code=k3y`` becomes ``https://example.com/asana/<endpoint>?code=k3y``. Like the
            endpoint, it is in no log and no error.
        resource: the gid of the task, project, portfolio, … to watch.
        filters: the events Asana sends; all by default.
        workspace: the resource's workspace. It is needed to find and delete a webhook whose create call got no answer.
        label: your own word for the webhook, such as a tenant; at most 200 characters. It comes back with every
            delivery, in `Delivery.label`. To have several webhooks on one resource, give them different labels.
        replaces: the id of the registration of the webhook that this one replaces. It must be the only live one for
            *resource* and *label*. It stays live: delete its webhook and close it when you no longer need it.

    Raises:
        WebhookExistsError: the store has a live webhook for *resource* and *label* already, or another process is
            creating it. With *replaces*: it has another one than that.
        TargetRejectedError: Asana could not reach *public_url*, or got a wrong answer to its handshake.
        HandshakeMismatchError: the 201 has no secret, or one that matches no handshake: something on the way may have
            answered it. The error says whether the webhook was deleted.
        RegistrationClosedError: the registration was closed, or its deadline passed, before the 201 arrived. The error
            says whether the webhook was deleted.
        CreateOutcomeUnknownError: the outcome of two create calls is unknown; or of one, and its registration could not
            be closed and expires at its deadline.
        DuplicateWebhookError: the same, but the last answer was that the webhook exists already. The endpoint is new,
            so that webhook is this call's own: something on the way sent the request twice.
        StoreError: the store failed. A webhook created by then is deleted, or named in the log.
        ConfigurationError: an argument is invalid; or *replaces* is not live, or has another resource or label.
        AsanaError: any other error of `create_webhook`.
    """
    wanted = Wanted.checked(
        asana, store, public_url=public_url, resource=resource, filters=filters, workspace=workspace, label=label
    )
    await wanted.check_free(replaces)
    return await create_established(wanted, replaces=replaces)


@frozen
class Wanted:
    """One webhook that a caller wants: its arguments, checked. Its resource and label have one live webhook at most."""

    asana: AsanaSession
    store: Store = field(repr=False)
    resource: str
    public_url: str = field(repr=False)
    filters: tuple[WebhookFilter, ...]
    workspace: str | None
    label: str
    left: set[str] = field(factory=set, eq=False)
    """The closed registrations that may still have a webhook, as the latest search for orphans left them."""

    @classmethod
    def checked(
        cls,
        asana: AsanaSession,
        store: Store,
        *,
        public_url: str,
        resource: str,
        filters: Iterable[WebhookFilter],
        workspace: str | None,
        label: str,
    ) -> Self:
        """Check the arguments before anything is sent or stored; raise `ConfigurationError` if one is invalid."""
        check_session_and_store(asana, store)
        base, query = split_public_url(public_url)
        check_reachable("public_url", public_url, base_url=asana.base_url)
        checked = filters_of(filters)
        CreateWebhookRequest(resource=resource, target=str(base), filters=checked)
        if workspace is not None:
            GetWebhooksRequest(workspace=workspace, resource=resource)
        return cls(asana, store, resource, f"{base}{query}", checked, workspace, check_label(label))

    async def live(self) -> list[Registration]:
        """Return the live registrations: those that are pending first, at most two."""
        return await live_registrations(self.store, resource=self.resource, label=self.label)

    async def check_free(self, replaces: str | None) -> None:
        """Raise the error that says why no registration can be opened now, if none can."""
        live = {one.id: one for one in await self.live()}
        replaced = live.pop(replaces, None) if replaces is not None else None
        if live:
            one = list(live.values())[-1]  # a confirmed one, if there is one
            raise WebhookExistsError(registration=one.id, webhook_gid=one.webhook_gid)
        if replaces is not None and replaced is None:
            raise ConfigurationError(
                "replaces must be the id of a live registration for this resource and label; this one is closed, "
                "unknown, or has another resource or label"
            )

    async def open(self, id: str, *, replaces: str | None) -> None:
        """Open a registration; raise the error that says why none can be opened."""
        ttl = self.asana.timeout + _SLACK_SECONDS
        for _ in range(_OPEN_ATTEMPTS):
            if await self.store.open_registration(
                id, resource=self.resource, public_url=self.public_url, label=self.label, ttl=ttl, replaces=replaces
            ):
                return
            await self.check_free(replaces)
        raise StoreUnavailableError(
            problem="others keep opening and closing registrations for this resource and label", advice="Retry later."
        )

    async def delete_orphans(self, expected: Collection[str] = ()) -> set[str]:
        """Delete orphaned webhooks if there is a workspace to search; see `orphans.delete_orphans`."""
        left = await delete_orphans(
            self.asana,
            self.store,
            resource=self.resource,
            workspace=self.workspace,
            public_url=self.public_url,
            expected=self.left.union(expected),
        )
        self.left.clear()
        self.left.update(left)
        return left


async def live_registrations(store: Store, *, label: str, resource: str | None = None) -> list[Registration]:
    """Return the live registrations of a label, or of a resource and label, without secrets: pending ones first."""
    live: dict[str, Registration] = {}
    # In this order, one that is confirmed in between is found.
    for state in (RegistrationState.PENDING, RegistrationState.CONFIRMED):
        after: str | None = ""
        while after is not None:
            page = await store.list_registrations(resource=resource, label=label, state=state, after=after, limit=_PAGE)
            live |= {one.id: one for one in page}
            after = page[-1].id if len(page) == _PAGE else None
    return list(live.values())


async def create_established(wanted: Wanted, *, replaces: str | None) -> EstablishedWebhook:
    """Create the webhook; if the outcome is unknown, once more. See `establish_webhook` for the errors."""
    uncertain: set[str] = set()
    first: AsanaError | None = None
    for last in (False, True):
        call = _Create(wanted, replaces)
        try:
            established = await _create(call)
            uncertain |= call.refused
            break
        except AsanaError as error:
            # The endpoint is new, so a duplicate can only be this call's own webhook.
            may_exist = isinstance(error, (CreateOutcomeUnknownError, DuplicateWebhookError))
            # Closed with no handshake echoed: Asana has not created the webhook, and no longer can.
            found = call.refused | ({call.id} if may_exist and call.echoed is not False else set())
            if found:
                uncertain = await wanted.delete_orphans(uncertain | found)
            # Create again only after the registration is closed: it echoes no late handshake then.
            if last or not may_exist or call.echoed is None:
                if uncertain - {call.id}:
                    raise error from first
                raise
            first = error
    if uncertain and wanted.workspace is not None:
        # Search again: Asana may list the webhook of the first attempt by now.
        try:
            uncertain = await wanted.delete_orphans(uncertain)
        except BaseException:
            await _undo(call)
            raise
    return evolve(established, orphans=len(uncertain))


@define
class _Create:
    """One create call and its outcome. Each request it sends has a fresh endpoint, and a registration of its own.

    No ``repr`` shows an endpoint.
    """

    wanted: Wanted
    replaces: str | None
    id: str = ""
    """The id of the latest registration; empty before the first."""
    created: CreatedWebhook | None = field(default=None, repr=False)
    echoed: bool | None = None
    """Set when the latest registration is closed: whether a handshake was echoed; ``None`` if unknown."""
    refused: set[str] = field(factory=set)
    """The ids of registrations whose handshake was echoed, although Asana answered that it did not create."""
    deleted: bool = False
    """Set by `_undo`: whether the webhook that was created is deleted."""

    async def open(self) -> CreateWebhookRequest:
        """Open a registration for a fresh endpoint, and return the request to send for it.

        The session awaits this when only the request itself is missing, so the registration's deadline does not run
        while the call waits for its turn, and a process that is killed meanwhile leaves nothing pending.
        """
        endpoint = secrets.token_urlsafe(32)
        self.id, self.echoed = registration_id(endpoint), None
        await self.wanted.open(self.id, replaces=self.replaces)
        # Joined as text: yarl drops the query of a URL that grows, and would encode it anew.
        base, query = split_public_url(self.wanted.public_url)
        return evolve(self.request, target=f"{base / endpoint}{query}")

    @property
    def request(self) -> CreateWebhookRequest:
        """The request to send, before `open` gives it its endpoint."""
        base, _ = split_public_url(self.wanted.public_url)
        return CreateWebhookRequest(resource=self.wanted.resource, target=str(base), filters=self.wanted.filters)

    async def close(self) -> None:
        """Close the latest registration, so that nothing more is accepted for it."""
        if self.id:
            self.echoed = await finish(self.wanted.store.close_registration(self.id))

    async def is_closed(self) -> bool:
        """Return whether somebody has closed the latest registration, or it has expired."""
        found = await self.wanted.store.find_registration(self.id)
        return found is None or found.state is RegistrationState.CLOSED

    async def discard(self) -> None:
        """Close the registration of a request that created nothing; the next attempt opens another."""
        # An error ends the call: while this one may be live, no other can be opened.
        self.echoed = await self.wanted.store.close_registration(self.id)
        if self.echoed:
            self.refused.add(self.id)


async def _create(call: _Create) -> EstablishedWebhook:
    """Create a webhook and confirm its registration with the 201's secret; undo both if that fails."""
    store, confirmed, closed = call.wanted.store, False, False
    try:
        call.created = created = await call.wanted.asana.send(call.request, prepare=call.open, discard=call.discard)
        webhook = created.webhook
        if created.secret is not None:
            first = webhook.last_success_at
            confirmed = await store.confirm_registration(
                call.id,
                webhook_gid=webhook.gid,
                secret=created.secret,
                heartbeat_at=None if first is None else first.timestamp(),
            )
            if not confirmed:
                closed = await call.is_closed()
    except TargetRejectedError as error:
        with suppress(StoreError):  # the error at hand says more
            if await call.is_closed():  # so the receiver refused the handshake
                raise RegistrationClosedError(webhook_gid=None, deleted=True) from error
        raise
    finally:
        if not confirmed:
            await _undo(call)
    if not confirmed:
        raise (RegistrationClosedError if closed else HandshakeMismatchError)(
            webhook_gid=webhook.gid, deleted=call.deleted
        )
    return EstablishedWebhook(webhook=webhook, webhook_gid=webhook.gid, registration=call.id)


async def _undo(call: _Create) -> None:
    """Close the registration, so that nothing more is accepted, and delete the webhook if its gid is known."""
    try:
        await call.close()
    finally:
        if call.created is not None:
            gid = call.created.webhook.gid
            call.deleted = await finish(ensure_deleted(call.wanted.asana, gid), seconds=_DELETE_SECONDS) is True
            if not call.deleted:
                _log.warning("deleting webhook %.40r failed; Asana deletes it after 24 hours of 404 replies", gid)
