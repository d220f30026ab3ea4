"""FakeAsana: a server that plays Asana, for tests, demos and programs without an account."""

import asyncio
import hmac
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from aiohttp import web

from asana_webhooks.client.auth import check_token
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import schedule
from asana_webhooks.testing.answers import STATUS_MESSAGES, error_answer
from asana_webhooks.testing.api import BASE_PATH, Api, send
from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.control import CONTROL_PATH, Control
from asana_webhooks.testing.oauth import TOKEN_PATH, AppRecord, TokenEndpoint
from asana_webhooks.testing.operations import HeartbeatMoment, Operations
from asana_webhooks.testing.records import Kept, RequestRecord, WebhookRecord
from asana_webhooks.testing.server import Server
from asana_webhooks.testing.signing import new_secret
from asana_webhooks.testing.steering import Steering

__all__ = ["DEFAULT_TOKEN", "FakeAsana"]

DEFAULT_TOKEN = "2/1331/8675309:0123456789abcdef0123456789abcdef"  # noqa: S105 (it opens nothing)
"""The access token of a `FakeAsana` that is given none; it looks like a personal access token."""


class FakeAsana(Steering):
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

        clock: ``frozen`` (it moves by `advance` only), ``running`` (beside the real one), or a clock of yours.
        seed: of everything random: secrets, the order of members, offsets.

        keep: how many of `requests`, `deliveries` and `handshakes` are remembered, of each; the oldest go first.

    Raises:
        ConfigurationError: an argument makes no sense.
    """

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
        # The same in every run
        clock: FakeClock | Literal["frozen", "running"] = "frozen",
        seed: int = 0,
        # Memory
        keep: int = 10_000,
    ) -> None:
        if heartbeat not in ("before", "after", None):
            raise ConfigurationError(f"heartbeat must be 'before', 'after' or None, not {heartbeat!r:.80}")
        if clock not in ("frozen", "running") and not isinstance(clock, FakeClock):
            raise ConfigurationError(f"clock must be 'frozen', 'running' or a FakeClock, not {clock!r:.80}")
        if webhooks < 0:
            raise ConfigurationError(f"webhooks must be 0 or more, not {webhooks!r:.80}")
        if keep < 1:
            raise ConfigurationError(f"keep must be 1 or more, not {keep!r:.80}")
        super().__init__(
            workspace=workspace,
            clock=clock if isinstance(clock, FakeClock) else FakeClock(running=clock == "running"),
            seed=seed,
            answer_timeout=answer_timeout,
            retries_grow=retries_grow,
            keep=keep,
        )
        self.token = check_token(token)
        self.requests: list[RequestRecord] = Kept(keep)
        """Every request to the API and the token endpoint, in the order they came in; of more than `keep`, the last
        ones."""

        for gid in projects:
            self.add_project(gid)
        for number in range(1, webhooks + 1):
            self._add_quiet_webhook(number)
        self._heartbeat = heartbeat
        self._tokens = TokenEndpoint(clock=self.clock, rng=self._rng)
        self._api = self._make_api(allow_loopback=allow_loopback)
        self._control = Control(self)
        self._server = Server(self._handle, port=port)
        self._state: Literal["new", "running", "closed"] = "new"
        self._url = ""
        self._ticker: asyncio.Task[None] | None = None

    def _add_quiet_webhook(self, number: int) -> None:
        now = self.clock.now()
        project = self._world.add("project", parents=[self.workspace], name=f"Quiet project {number}")
        gid = self._world.new_gid()
        self.webhooks[gid] = WebhookRecord(
            gid=gid,
            resource=project,
            target=f"https://example.com/receive-webhook/{number}",
            filters=(),
            secret=new_secret(self._rng),
            created_at=now,
            last_success_at=now,
            next_heartbeat=now + schedule.HEARTBEAT_EVERY,
            quiet=True,
        )

    def _make_api(self, *, allow_loopback: bool) -> Api:
        operations = Operations(
            world=self._world,
            webhooks=self.webhooks,
            clock=self.clock,
            handshaker=self._handshaker,
            sender=self._sender,
            rng=self._rng,
            allow_loopback=allow_loopback,
            heartbeat=self._heartbeat,
            change=self.change,
        )
        return Api(
            operations=operations,
            tokens=self._tokens,
            faults=self.faults,
            activity=self._activity,
            records=self.requests,
            is_good=self._is_good,
            base_url=lambda: self.url,
            answered=self._after_created,
        )

    @property
    def url(self) -> str:
        """The base URL of the API, such as ``http://127.0.0.1:54321/api/1.0``.

        Raises:
            ConfigurationError: it has not been started.
        """
        if not self._url:
            raise ConfigurationError("FakeAsana is not running: use async with, or await start()")
        return self._url

    @property
    def token_url(self) -> str:
        """The URL of the token endpoint, where apps refresh their access tokens.

        Raises:
            ConfigurationError: it has not been started.
        """
        return self.url.removesuffix(BASE_PATH) + TOKEN_PATH

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

    def _is_good(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode()) or self._tokens.accepts(token)

    async def start(self) -> None:
        """Listen. Done by ``async with``.

        Raises:
            ConfigurationError: it has been started before, or the port cannot be had.
        """
        if self._state != "new":
            raise ConfigurationError("a FakeAsana can be started once; make another one")
        self._url = await self._server.start() + BASE_PATH
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
        self._activity.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<FakeAsana {self._state}, {len(self.webhooks)} webhooks>"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith(f"{CONTROL_PATH}/"):
            return await send(request, await self._control.handle(request))
        if request.path.startswith(f"{BASE_PATH}/") or request.path == TOKEN_PATH:
            return await self._api.handle(request)
        return await send(request, error_answer(404, STATUS_MESSAGES[404]))

    def _after_created(self, webhook: WebhookRecord) -> None:
        if self._heartbeat == "after":
            webhook.ready.append(schedule.make_batch())
            self._sender.start(webhook)
        self._sender.wake()
