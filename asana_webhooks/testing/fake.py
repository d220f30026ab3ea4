"""FakeAsana: a server that plays Asana, for tests, demos and programs without an Asana account."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, Self

from aiohttp import web

from asana_webhooks.client.auth import check_token
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.testing.clock import FakeClock, check_advance, make_clock
from asana_webhooks.testing.faults import Fault, FaultScript, Hold
from asana_webhooks.testing.oauth import DEFAULT_TOKEN, TOKEN_PATH, AppRecord, FakeTokenEndpoint
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.rest import BASE_PATH, HeartbeatMoment, RestApi, error_answer, send
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.serving import LoopbackServer, RequestHandler
from asana_webhooks.testing.world import DEFAULT_USER, Value, World, WorldChange

__all__ = ["FakeAsana"]


class FakeAsana:
    """A server on 127.0.0.1 that plays Asana's API for webhooks and sends handshakes and deliveries.

    Below `url` it answers the five operations, ``GET /projects``, and ``GET /tasks/<gid>``, likewise for other types.
    It sends handshakes to targets, and signed deliveries after each `change`. `script` and `hold` make it fail on
    request. It connects to this machine only. For any other target it says "could not be reached" without trying.

    ::

        async with FakeAsana() as fake:
            ...  # create a webhook on fake.projects[0] through fake.url with fake.token
            fake.change(fake.add_task(), field="due_on")
            await fake.settle()

    Use it in one event loop, with ``async with`` or with `start` and `aclose`.

    Args:
        token: the access token it accepts; assign to `token` later to simulate a token that expires.
        workspace: gid of the only workspace.
        projects: gids of projects in it.
        webhooks: how many webhooks exist at the start, each on a separate project. Their targets are never contacted.
            They are of user 11, through any app.
        portfolio_whitelist: True to hold webhooks on portfolios to the filters that Asana allows on workspaces and
            teams. Whether Asana does is unknown; in any case they need filters, without fields.
        max_per_resource: how many webhooks one resource may have, of all users and apps; another is refused with 403.
        max_per_user: how many webhooks a user may have through one app; another is refused with 403.

        port: the port on 127.0.0.1 to listen on; 0 for any free port.
        allow_loopback: False to refuse targets on this machine with 403, as Asana does.

        heartbeat: when to send a new webhook's first heartbeat: ``before`` the 201, ``after`` it, or ``None`` to skip
            it. The next ones follow every 8 hours of the fake's clock in any case.
        retries_grow: True to add new events to a delivery that is resent, so that its bytes change.
        gone_deletes: True to delete a webhook at once when its target answers a delivery with 410. Asana documents
            nothing of the kind; one user reported it.
        answer_timeout: seconds of real time a target has to answer.

        clock: ``frozen`` (moved by `advance`, and by up to a millisecond per change), ``running`` (at the speed of
            the real clock), or your own `FakeClock`. The first two start at the present.
        seed: seed of everything random: secrets, offsets, the order of members and events.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    workspace: str
    """The gid of the only workspace."""
    clock: FakeClock
    """The fake's clock; `advance` moves it."""
    webhooks: dict[str, WebhookRecord]
    """Every existing webhook, by gid."""
    requests: list[RequestRecord]
    """The last 10,000 requests to the API and the token endpoint, in order of arrival."""
    handshakes: list[HandshakeRecord]
    """The last 10,000 handshakes, including forged ones."""
    deliveries: list[DeliveryRecord]
    """The last 10,000 delivery attempts, including heartbeats and forgeries."""
    faults: FaultScript
    """The scripted faults; see `script`."""

    def __init__(
        self,
        *,
        # The account
        token: str = DEFAULT_TOKEN,
        workspace: str = "1331",
        projects: Sequence[str] = ("8675309",),
        webhooks: int = 0,
        portfolio_whitelist: bool = False,
        max_per_resource: int = 1_000,
        max_per_user: int = 10_000,
        # HTTP
        port: int = 0,
        allow_loopback: bool = True,
        # Sending
        heartbeat: HeartbeatMoment = "before",
        retries_grow: bool = False,
        gone_deletes: bool = False,
        answer_timeout: float = 10.0,
        # Time and randomness
        clock: FakeClock | Literal["frozen", "running"] = "frozen",
        seed: int = 0,
    ) -> None:
        self._world = world = World(clock=make_clock(clock), seed=seed)
        self.workspace, self.clock, self.webhooks = workspace, world.clock, world.webhooks
        self.requests, self.handshakes, self.deliveries = world.requests, world.handshakes, world.deliveries
        self.faults = faults = FaultScript()
        self._sender = Sender(
            world, faults, answer_timeout=answer_timeout, retries_grow=retries_grow, gone_deletes=gone_deletes
        )
        self._tokens = FakeTokenEndpoint(world=world, token=check_token(token))
        self._rest = RestApi(
            world=world,
            sender=self._sender,
            tokens=self._tokens,
            faults=faults,
            heartbeat=heartbeat,
            allow_loopback=allow_loopback,
            portfolio_whitelist=portfolio_whitelist,
            max_per_resource=max_per_resource,
            max_per_user=max_per_user,
        )
        self._handlers: dict[str, RequestHandler] = {BASE_PATH: self._rest.handle, TOKEN_PATH: self._rest.handle}
        self._server = LoopbackServer(self._handle, port=port)
        self._state: Literal["new", "running", "closed"] = "new"
        self._ticker: asyncio.Task[None] | None = None
        self._projects: list[str] = []
        self._populate(projects, webhooks)

    def _populate(self, projects: Sequence[str], webhooks: int) -> None:
        self._world.add("workspace", self.workspace, name="Workspace")
        for gid in projects:
            self.add_project(gid)
        if webhooks < 0:
            raise ConfigurationError(f"webhooks must be 0 or more, not {webhooks!r:.80}")
        for _ in range(webhooks):
            self.add_quiet_webhook()

    # Running

    async def start(self) -> None:
        """Start listening. ``async with`` does this.

        Raises:
            ConfigurationError: it was started before, or it cannot listen on the port.
        """
        if self._state != "new":
            raise ConfigurationError("a FakeAsana can be started once; create a new one")
        self._rest.base_url = await self._server.start() + BASE_PATH
        self._state = "running"
        self._sender.start_sending()
        if self.clock.running:
            self._ticker = asyncio.create_task(self._sender.follow_clock(), name="FakeAsana follows its clock")

    async def aclose(self) -> None:
        """Stop the server and cancel everything in flight, held requests too. A second call does nothing more."""
        self._state = "closed"
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self._server.aclose()
        await self._sender.aclose()
        self.faults.activity.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<FakeAsana {self._state}, {len(self.webhooks)} webhooks>"

    def serve_also(self, path: str, handle: RequestHandler) -> None:
        """Answer requests below *path* on the same port with *handle*; see `asana_webhooks.testing.control`."""
        self._handlers[path] = handle

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        for path, handle in self._handlers.items():
            if f"{request.path}/".startswith(f"{path}/"):
                return await handle(request)
        return await send(request, error_answer(404))

    @property
    def url(self) -> str:
        """The base URL of the API, such as ``http://127.0.0.1:54321/api/1.0``.

        Raises:
            ConfigurationError: the fake has not been started.
        """
        if not self._rest.base_url:
            raise ConfigurationError("FakeAsana is not running: use async with, or await start()")
        return self._rest.base_url

    @property
    def token_url(self) -> str:
        """The URL of the token endpoint, where apps refresh their access tokens.

        Raises:
            ConfigurationError: the fake has not been started.
        """
        return self.url.removesuffix(BASE_PATH) + TOKEN_PATH

    @property
    def token(self) -> str:
        """The access token the API accepts; assign another one to simulate a token that expires."""
        return self._tokens.token

    @token.setter
    def token(self, token: str) -> None:
        self._tokens.token = token

    def register_app(
        self,
        client_id: str = "12345",
        *,
        user: str = DEFAULT_USER,
        scopes: Sequence[str] | None = None,
        rotate: bool = False,
    ) -> AppRecord:
        """Add an app that a user has authorized, with a new client secret, refresh token and access token.

        Its access tokens are accepted in addition to `token`, which is user 11's own, for an hour of the fake's clock
        each. With them an app sees only the webhooks it created for this user; for others the fake answers 403.

        Args:
            client_id: the app's id; the same one for each user of an app.
            user: gid of the user.
            scopes: what the user authorized it for, such as ``webhooks:read``; ``None`` for everything.
            rotate: True to replace the refresh token with every access token, which Asana does not do.

        Raises:
            ConfigurationError: a value is invalid, or this user has authorized this app before.
        """
        return self._tokens.register(client_id, user=user, scopes=scopes, rotate=rotate)

    def revoke_token(self, access_token: str) -> None:
        """Revoke an access token issued to an app; the next request with it is answered with 401.

        Raises:
            ConfigurationError: the token was not issued to an app.
        """
        self._tokens.revoke(access_token)

    # The workspace

    @property
    def projects(self) -> tuple[str, ...]:
        """The gids of all projects that were passed or added, without those of quiet webhooks."""
        return tuple(self._projects)

    def add_project(
        self,
        gid: str | None = None,
        *,
        name: str | None = None,
        team: str | None = None,
        archived: bool = False,
        accessible: bool = True,
    ) -> str:
        """Add a project to the workspace, or to a *team* of it, and return its gid; see `add_resource`."""
        parents = [team or self.workspace]
        return self.add_resource("project", gid, parents=parents, name=name, accessible=accessible, archived=archived)

    def add_quiet_webhook(self) -> str:
        """Add a webhook of user 11 on a new project and return its gid. Its target is never contacted."""
        return self._world.add_quiet_webhook(self.workspace).gid

    def add_task(self, gid: str | None = None, *, parent: str | None = None, name: str | None = None) -> str:
        """Add a task and return its gid. This sends no event.

        Args:
            gid: a string of digits; a new one by default.
            parent: gid of the project, section or task it is in; the first project by default.
            name: the task's name.
        """
        if parent is None and not self._projects:
            raise ConfigurationError("the fake has no project for the task: pass its parent")
        return self.add_resource("task", gid, parents=[parent or self._projects[0]], name=name)

    def add_resource(
        self,
        resource_type: str,
        gid: str | None = None,
        *,
        parents: Sequence[str] | None = None,
        name: str | None = None,
        resource_subtype: str | None = None,
        accessible: bool = True,
        archived: bool = False,
    ) -> str:
        """Add a resource of any type and return its gid. This sends no event.

        Args:
            resource_type: ``story``, ``section``, ``team``, ``portfolio``, ``goal`` …
            gid: a string of digits; a new one by default.
            parents: gids of its parents, whose webhooks report its changes too; the workspace, unless it is one itself.
            name: the resource's name.
            resource_subtype: such as ``milestone``; by default the type's usual one, if it has one.
            accessible: False to refuse reading it and webhooks on it with 403, and to leave it out of lists.
            archived: of a project: whether it is archived.
        """
        if parents is None:
            parents = [] if resource_type == "workspace" else [self.workspace]
        added = self._world.add(
            resource_type,
            gid,
            parents=parents,
            name=name,
            resource_subtype=resource_subtype,
            accessible=accessible,
            archived=archived,
        )
        if resource_type == "project":
            self._projects.append(added.gid)
        return added.gid

    def change(
        self,
        resource: str,
        *,
        action: str = "changed",
        field: str | None = None,
        change_action: str | None = None,
        new_value: Value | None = None,
        added_value: Value | None = None,
        removed_value: Value | None = None,
        user: str | None = DEFAULT_USER,
        parent: str | None = None,
        resource_type: str | None = None,
        resource_subtype: str | None = None,
    ) -> dict[str, Any]:
        """Change a resource and start sending the event to the webhooks; `settle` waits until it is delivered.

        No two changes have the same ``created_at``: see `FakeClock.tick`.

        Args:
            resource: gid of the changed resource. An unknown one is created below *parent*.
            action: ``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``.
            field: for ``changed``: the changed field. Without it the event has no ``change``.
            change_action: ``changed``, ``added`` or ``removed``; by default the one that fits the value.
            new_value: the field's new value, if that is a resource: the gid of a known one, or
                ``{"gid": …, "resource_type": …}``.
            added_value: the resource added to the field, in the same form.
            removed_value: the resource removed from the field, in the same form.
            user: gid of the user who made the change; ``None`` for the system.
            parent: gid of the resource it was added to or removed from; the first of its parents by default.
            resource_type: type of a resource that is created; ``task`` by default.
            resource_subtype: subtype of a resource that is created; by default the type's usual one, if it has one.

        Returns:
            The event, as it is sent.

        Raises:
            ConfigurationError: the change is impossible; the message says why.
        """
        event = self._world.apply(
            WorldChange(
                resource=resource,
                action=action,
                field=field,
                change_action=change_action,
                new_value=new_value,
                added_value=added_value,
                removed_value=removed_value,
                user=user,
                parent=parent,
                resource_type=resource_type,
                resource_subtype=resource_subtype,
            )
        )
        self._sender.start_due()
        return event

    # Time

    async def settle(self) -> None:
        """Send everything that is due, and return once nothing is in flight, except held requests.

        Do not await it in a target's request handler: the delivery in flight waits for that handler's answer.
        """
        self._sender.start_due()
        await self.faults.activity.settled()

    async def advance(self, seconds: float) -> None:
        """Advance the clock, and do everything that falls due on the way, one after another.

        Retries, heartbeats and deletions of webhooks fall due. A delivery takes real time, and none of this clock's.

        Args:
            seconds: by how much, up to 366 days.

        Raises:
            ConfigurationError: *seconds* is not a number, or negative, or too large.
        """
        end = self.clock.now() + check_advance(seconds)
        await self.settle()
        while (due := self._sender.next_due()) is not None and due[0] <= end:
            self.clock.move_to(due[0])
            self._sender.start(due[1])
            await self.faults.activity.settled()
        self.clock.move_to(end)
        self._sender.wake()
        await self.settle()

    # Faults

    def script(self, *faults: Fault) -> None:
        """Add faults, to happen in this order, after those scripted before."""
        self.faults.add(*faults)

    def hold(self, at: str, *, when: str = "before", times: int | None = 1, webhook: str | None = None) -> Hold:
        """Hold requests at one moment until `Hold.release` is called.

        Args:
            at: an operation id, ``*``, ``oauth_token``, ``handshake``, ``delivery`` or ``heartbeat``.
            when: ``before`` anything is done; for operations and ``oauth_token`` also ``before_answer``; for
                ``createWebhook`` also ``after_handshake``; for ``handshake`` also ``after``.
            times: how many requests; ``None`` for all until the release.
            webhook: only requests about the webhook with this gid.
        """
        return self.faults.hold(at, when=when, times=times, webhook=webhook)

    async def forge_delivery(
        self, gid: str, *, body: bytes | None = None, secret: Secret | str | None = None
    ) -> int | None:
        """Send a forged delivery to a webhook's target, and return the status of the answer.

        Args:
            gid: gid of the webhook.
            body: the body; by default an event that the webhook's resource was deleted.
            secret: the secret to sign it with, which may be empty; a random one by default.

        Returns:
            The status, or ``None`` if there was no answer.
        """
        return await self._sender.forge(self.webhook(gid), body=body, secret=self._world.secret(secret))

    async def stranger_handshake(self, target: str, *, secret: Secret | str | None = None) -> int | None:
        """Post a forged handshake to *target*, and return the status of the answer.

        Args:
            target: any URL on this machine.
            secret: the secret it proposes; a random one by default.

        Returns:
            The status, or ``None`` if there was no answer. `HandshakeRecord.echoed` says whether the secret was echoed.
        """
        record, _ = await self._sender.post_handshake(target, self._world.secret(secret), stranger=True)
        return record.status

    # Records

    def webhook(self, gid: str) -> WebhookRecord:
        """Return the record of one webhook.

        Raises:
            ConfigurationError: no webhook has this gid, or it was deleted.
        """
        if gid not in self.webhooks:
            raise ConfigurationError(f"the fake has no webhook {gid!r:.80}; number of webhooks: {len(self.webhooks)}")
        return self.webhooks[gid]

    def secret(self, gid: str) -> Secret:
        """Return the secret of one webhook; raises as `webhook` does."""
        return self.webhook(gid).secret
