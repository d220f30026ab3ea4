"""FakeAsana: a server that plays Asana, for tests, demos and programs without an account."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, Self

from aiohttp import web

from asana_webhooks.client.auth import check_token
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.testing.clock import FakeClock, check_advance
from asana_webhooks.testing.faults import Fault, FaultScript, Hold
from asana_webhooks.testing.oauth import DEFAULT_TOKEN, TOKEN_PATH, AppRecord, FakeTokenEndpoint
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.rest import BASE_PATH, HeartbeatMoment, RestApi, error_answer, send
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.serving import LoopbackServer, RequestHandler
from asana_webhooks.testing.world import DEFAULT_USER, Value, World, WorldChange

__all__ = ["FakeAsana"]


class FakeAsana:
    """Asana, as far as webhooks are concerned, on a port of this machine.

    It answers the five operations below `url`, shakes hands with targets, sends them signed deliveries about what
    `change` says, and makes every mistake it is asked to (`script`, `hold`). It connects to this machine only: any
    other target "could not be reached", without being tried.

    ::

        async with FakeAsana() as fake:
            ...  # create a webhook on fake.projects[0] through fake.url with fake.token
            fake.change(fake.add_task(), field="due_on")
            await fake.settle()

    Use it in one event loop, with ``async with`` or with `start` and `aclose`.

    Args:
        token: the access token that is good; settable later, to play a token that ends.
        workspace: gid of the only workspace.
        projects: gids of projects in it.
        webhooks: how many webhooks there are from the beginning, each on a project of its own; their targets are
            never contacted.

        port: where to listen on 127.0.0.1; 0 for any free port.
        allow_loopback: False to refuse targets on this machine with 403, as Asana does.

        heartbeat: when a new webhook gets its first heartbeat: ``before`` the 201, ``after`` it, or ``None`` for not
            at all. The others follow every 8 hours of the fake's clock in any case.
        retries_grow: True to let new events join a delivery that is sent again, so that its bytes change.
        answer_timeout: seconds of real time a target has to answer.

        clock: ``frozen`` (it moves by `advance` and by a millisecond for each change), ``running`` (beside the real
            one), or your own `FakeClock`. The first two start at the present.
        seed: of everything random: secrets, the order of members, offsets.

    Raises:
        ConfigurationError: an argument makes no sense.
    """

    workspace: str
    """The gid of the only workspace."""
    clock: FakeClock
    """What time it is; `advance` turns it."""
    webhooks: dict[str, WebhookRecord]
    """Every webhook there is, by gid."""
    requests: list[RequestRecord]
    """Every request to the API and the token endpoint, in the order they came in; the last 10,000 of them."""
    handshakes: list[HandshakeRecord]
    """Every handshake, strangers' too; the last 10,000 of them."""
    deliveries: list[DeliveryRecord]
    """Every attempt to deliver, heartbeats and forgeries too; the last 10,000 of them."""
    faults: FaultScript
    """The faults still to come; see `script`."""

    def __init__(
        self,
        *,
        # The account
        token: str = DEFAULT_TOKEN,
        workspace: str = "1331",
        projects: Sequence[str] = ("8675309",),
        webhooks: int = 0,
        # HTTP
        port: int = 0,
        allow_loopback: bool = True,
        # Sending
        heartbeat: HeartbeatMoment = "before",
        retries_grow: bool = False,
        answer_timeout: float = 10.0,
        # Time and randomness
        clock: FakeClock | Literal["frozen", "running"] = "frozen",
        seed: int = 0,
    ) -> None:
        if heartbeat not in ("before", "after", None):
            raise ConfigurationError(f"heartbeat must be 'before', 'after' or None, not {heartbeat!r:.80}")
        if webhooks < 0:
            raise ConfigurationError(f"webhooks must be 0 or more, not {webhooks!r:.80}")
        self._world = world = World(clock=_make_clock(clock), seed=seed)
        self.workspace, self.clock, self.webhooks = workspace, world.clock, world.webhooks
        self.requests, self.handshakes, self.deliveries = world.requests, world.handshakes, world.deliveries
        self.faults = faults = FaultScript()
        self._sender = Sender(world=world, faults=faults, answer_timeout=answer_timeout, retries_grow=retries_grow)
        self._tokens = FakeTokenEndpoint(world=world, token=check_token(token))
        self._rest = RestApi(
            world=world,
            sender=self._sender,
            tokens=self._tokens,
            faults=faults,
            heartbeat=heartbeat,
            allow_loopback=allow_loopback,
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
        for _ in range(webhooks):
            self.add_quiet_webhook()

    # Running

    async def start(self) -> None:
        """Listen. Done by ``async with``.

        Raises:
            ConfigurationError: it has been started before, or the port cannot be had.
        """
        if self._state != "new":
            raise ConfigurationError("a FakeAsana can be started once; make another one")
        self._rest.base_url = await self._server.start() + BASE_PATH
        self._state = "running"
        self._sender.start_sending()
        if self.clock.running:
            self._ticker = asyncio.create_task(self._sender.follow_clock(), name="FakeAsana follows its clock")

    async def aclose(self) -> None:
        """End everything, also what is held. May be called again."""
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
        """Let *handle* answer the requests below *path* on the same port; see `asana_webhooks.testing.control`."""
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
            ConfigurationError: it has not been started.
        """
        if not self._rest.base_url:
            raise ConfigurationError("FakeAsana is not running: use async with, or await start()")
        return self._rest.base_url

    @property
    def token_url(self) -> str:
        """The URL of the token endpoint, where apps refresh their access tokens.

        Raises:
            ConfigurationError: it has not been started.
        """
        return self.url.removesuffix(BASE_PATH) + TOKEN_PATH

    @property
    def token(self) -> str:
        """The access token that is good; set another one to play a token that ends."""
        return self._tokens.token

    @token.setter
    def token(self, token: str) -> None:
        self._tokens.token = token

    def register_app(self, client_id: str = "12345", *, rotate: bool = False) -> AppRecord:
        """Add an app that a user has authorized, with a secret and a refresh token of its own.

        The access tokens it gets with them last an hour of the fake's clock and are good beside `token`.

        Args:
            client_id: what it is known by.
            rotate: True to send a new refresh token with every access token, which Asana does not do.

        Raises:
            ConfigurationError: there is one with this id.
        """
        return self._tokens.register(client_id, rotate=rotate)

    def revoke_token(self, access_token: str) -> None:
        """Let an access token that an app got end now; the next request with it is answered with 401.

        Raises:
            ConfigurationError: no app got it.
        """
        self._tokens.revoke(access_token)

    # The workspace

    @property
    def projects(self) -> tuple[str, ...]:
        """The gids of the projects, those added later too."""
        return tuple(self._projects)

    def add_project(self, gid: str | None = None, *, name: str | None = None, accessible: bool = True) -> str:
        """Add a project to the workspace and return its gid.

        Args:
            gid: a text of digits; a new one by default.
            name: what it is called.
            accessible: False to refuse webhooks on it with 403.
        """
        gid = self.add_resource("project", gid, name=name, accessible=accessible)
        self._projects.append(gid)
        return gid

    def add_quiet_webhook(self) -> str:
        """Add a webhook on a project of its own, whose target is never contacted, and return its gid."""
        project = self._world.add("project", parents=[self.workspace])
        target = f"https://example.com/receive-webhook/{project.gid}"
        webhook = self._world.new_webhook(project, target, quiet=True)
        webhook.last_success_at = webhook.created_at
        self.webhooks[webhook.gid] = webhook
        return webhook.gid

    def add_task(self, gid: str | None = None, *, parent: str | None = None, name: str | None = None) -> str:
        """Add a task and return its gid; no event comes of it.

        Args:
            gid: a text of digits; a new one by default.
            parent: gid of the project, section or task it is in; the first project by default.
            name: what it is called.
        """
        if parent is None and not self._projects:
            raise ConfigurationError("there is no project to put the task in: name its parent")
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
    ) -> str:
        """Add a resource of any type and return its gid; no event comes of it.

        Args:
            resource_type: ``story``, ``section``, ``team``, ``portfolio``, ``goal`` …
            gid: a text of digits; a new one by default.
            parents: gids of what it is in, where its changes are heard too; the workspace by default.
            name: what it is called.
            resource_subtype: such as ``milestone``; the usual one by default.
            accessible: False to refuse webhooks on it with 403.
        """
        resource = self._world.add(
            resource_type,
            gid,
            parents=[self.workspace] if parents is None else parents,
            name=name,
            resource_subtype=resource_subtype,
            accessible=accessible,
        )
        return resource.gid

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
        """Let something change, and begin to tell the webhooks; `settle` waits until they know.

        No two changes have the same ``created_at``: see `FakeClock.tick`.

        Args:
            resource: gid of what it happens to. One nobody knows is created below *parent*.
            action: ``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``.
            field: for ``changed``: which field. Without it the event has no ``change``.
            change_action: ``changed``, ``added`` or ``removed``; by default what fits the value.
            new_value: the new value of the field, if it is a resource: the gid of one, or
                ``{"gid": …, "resource_type": …}``.
            added_value: what was added to the field, likewise.
            removed_value: what was removed from the field, likewise.
            user: gid of who did it, ``None`` for the system.
            parent: gid of where it was added to or removed from; the first of its parents by default.
            resource_type: for a resource that is created: ``task`` by default.
            resource_subtype: the same.

        Returns:
            The event, as it is sent.

        Raises:
            ConfigurationError: this cannot happen; the message says why.
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
        """Return when nothing is due or under way now, except what is held.

        Do not await it in a target's answer: the delivery waits for that answer.
        """
        self._sender.start_due()
        await self.faults.activity.settled()

    async def advance(self, seconds: float) -> None:
        """Turn the clock, and do everything that falls due on the way, one after another.

        Retries, heartbeats and deletions that is. Deliveries themselves take real time and none of the clock's.

        Args:
            seconds: how far, up to a year.
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

    # Mistakes

    def script(self, *faults: Fault) -> None:
        """Let these go wrong, in this order, after those scripted before."""
        self.faults.add(*faults)

    def hold(self, at: str, *, when: str = "before", times: int | None = 1, webhook: str | None = None) -> Hold:
        """Stop requests at one moment until they are let go.

        Args:
            at: an operation id, ``*``, ``oauth_token``, ``handshake``, ``delivery`` or ``heartbeat``.
            when: ``before`` anything is done; for operations and ``oauth_token`` also ``before_answer``; for
                ``createWebhook`` also ``after_handshake``; for ``handshake`` also ``after``.
            times: how many requests; ``None`` for all until it is released.
            webhook: only requests about the webhook with this gid.
        """
        return self.faults.hold(at, when=when, times=times, webhook=webhook)

    async def forge_delivery(
        self, gid: str, *, body: bytes | None = None, secret: Secret | str | None = None
    ) -> int | None:
        """Send a delivery that is not Asana's to the target of a webhook, and return the status it was answered with.

        Args:
            gid: the webhook.
            body: what it says; by default that the webhook's resource was deleted.
            secret: what it is signed with, which may be empty; a random one by default.

        Returns:
            The status, or ``None`` if there was no answer.
        """
        return await self._sender.forge(self.webhook(gid), body=body, secret=self._world.secret(secret))

    async def stranger_handshake(self, target: str, *, secret: Secret | str | None = None) -> int | None:
        """Post a handshake that is not Asana's to *target*, and return the status it was answered with.

        Args:
            target: any URL on this machine.
            secret: the secret it brings; a random one by default.

        Returns:
            The status, or ``None`` if there was no answer. `handshakes` tells whether the secret was echoed.
        """
        record, _ = await self._sender.post_handshake(target, self._world.secret(secret), stranger=True)
        return record.status

    # What it knows

    def webhook(self, gid: str) -> WebhookRecord:
        """Everything about one webhook.

        Raises:
            ConfigurationError: there is none with this gid, or none any more.
        """
        if gid not in self.webhooks:
            raise ConfigurationError(f"there is no webhook {gid!r:.80} in the fake; it has {len(self.webhooks)}")
        return self.webhooks[gid]

    def secret(self, gid: str) -> Secret:
        """The secret of one webhook."""
        return self.webhook(gid).secret


def _make_clock(clock: FakeClock | str) -> FakeClock:
    if isinstance(clock, FakeClock):
        return clock
    if clock not in ("frozen", "running"):
        raise ConfigurationError(f"clock must be 'frozen', 'running' or a FakeClock, not {clock!r:.80}")
    return FakeClock(running=clock == "running")
