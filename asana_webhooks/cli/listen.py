"""The command ``listen``: print events as they come, and forward deliveries to a service of your own.

Each run has a directory with a store of its own, and with a lock that ends with its process. So it takes no deliveries
of a service, and the next start finds what a killed process left, although a tunnel's URL may be another one then.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import shutil
import signal
import sqlite3
from collections.abc import Container, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import aiohttp
from attrs import define
from cyclopts import Parameter
from cyclopts.validators import Number
from yarl import URL

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    Delivery,
    Receiver,
    Reply,
    Secret,
    SQLiteStore,
    Store,
    Worker,
    delete_webhook,
    ensure_webhook,
    get_webhooks,
    get_workspaces,
    remove_webhook,
    remove_webhooks,
    sign_body,
)
from asana_webhooks._checks import parse_url
from asana_webhooks._tasks import stop_on_signals
from asana_webhooks.cli import common
from asana_webhooks.client.transport import problem_of
from asana_webhooks.receiver.web import serve
from asana_webhooks.store.base import registration_id
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import split_public_url, split_target

__all__ = ["Listening", "listen"]

_POLL: Final = 0.2
_FINISH_SECONDS: Final = 3.0
"""How long it goes on forwarding at the end."""
_ANSWER_SECONDS: Final = 10.0
"""How long an answer may take, as at Asana."""

_Headers = Mapping[str, str]


class _Receiver(Receiver):
    """A receiver that notices whether a request to its own endpoint came."""

    endpoint = secrets.token_urlsafe(32)
    is_reached = False

    async def receive(self, endpoint: str, headers: Any, body: Any) -> Reply:
        if endpoint != self.endpoint:
            return await super().receive(endpoint, headers, body)
        self.is_reached = True
        return Reply(status=200)


@define(kw_only=True, repr=False, eq=False, slots=False)
class Listening:
    """The options of ``listen``, and one run of it."""

    resource: Annotated[tuple[str, ...], Parameter(consume_multiple=True, help="The gids to watch.")]
    public_url: common.PublicUrl
    filters: common.Filters = ()
    forward_to: Annotated[str, Parameter(help="A URL to post each verified delivery to.")] = ""
    port: Annotated[int, Parameter(show_default=True, validator=Number(gte=0, lte=65535), help="A local port.")] = 8080
    keep: Annotated[bool, Parameter(help="Keep the webhooks for the next start with --keep.")] = False
    base_url: common.BaseUrl = None
    reveal: common.Reveal = False
    json: common.Json = False
    probe_every: ClassVar = 30.0
    give_up_after: ClassVar = 300.0

    async def run(self) -> int:
        """Listen until a signal, and return the exit status."""
        self.out, self.asana = common.Output(json=self.json), common.session(self.base_url)
        path = split_public_url(self.public_url)[0].raw_path
        # It signs what is forwarded. Made from the token, it is the same at each start, and kept nowhere.
        self.secret = Secret(sign_body(f"listen {self.forward_to}".encode(), secret=os.environ["ASANA_ACCESS_TOKEN"]))
        if self.forward_to and parse_url(self.forward_to).scheme not in ("http", "https"):
            raise ConfigurationError("--forward-to must be an http(s) URL, such as http://localhost:3000/hooks")
        self.queue = asyncio.Queue[Delivery]()  # to forward
        self.ending: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # the exit status
        self.wanted = common.parse_filters(self.filters)
        folder = _state_folder(self.asana.base_url)
        kept, own = folder / f"kept-{_digest(self.public_url.rstrip('/'))}", folder / f"run-{secrets.token_hex(8)}"
        timeout, connector = aiohttp.ClientTimeout(total=_ANSWER_SECONDS), aiohttp.TCPConnector(force_close=True)
        async with self.asana, aiohttp.ClientSession(timeout=timeout, connector=connector) as self.http:
            for directory in (*folder.glob("run-*"), *(() if self.keep else folder.glob(kept.name))):
                await self._sweep(directory)
            directory = kept if self.keep else own
            with _locked(directory) as is_ours:
                if not is_ours:
                    raise ConfigurationError("another `listen --keep` with this public URL is running")
                async with SQLiteStore(directory / "store.db") as self.store:
                    status = await self._serve(path)
        if not self.keep:
            shutil.rmtree(directory, ignore_errors=True)
        return status

    async def _sweep(self, directory: Path) -> None:
        """Delete the webhooks that a process left, and its directory, unless it is running."""
        try:
            with _locked(directory) as is_ours:
                if not is_ours:
                    return
                async with SQLiteStore(directory / "store.db") as store:
                    await self._clean(store)
            shutil.rmtree(directory, ignore_errors=True)
        except AsanaError as error:
            self.out.talk(f"webhooks of an earlier run are left: {error}; to forget them, delete {directory}")

    async def _clean(self, store: Store, *, keep: Container[str] = ()) -> None:
        """Delete the webhooks that a process left, but not those on the resources to *keep*."""
        known = await store.list_registrations(limit=1000)
        unknown = {one.id for one in known if one.echoed and one.webhook_gid is None}
        if unknown:  # it was killed while Asana created them
            async for workspace in get_workspaces(self.asana):
                async for webhook in get_webhooks(self.asana, workspace=workspace.gid):
                    _, endpoint = split_target(webhook.target) or ("", "")
                    if registration_id(endpoint) in unknown:
                        await delete_webhook(self.asana, webhook.gid)
        for one in await live_registrations(store, label=""):
            if one.resource not in keep:
                await remove_webhook(self.asana, store, resource=one.resource)
                self.out.talk(f"deleted the webhook on {one.resource} that an earlier run left")

    async def _serve(self, path: str) -> int:
        """Receive, print and forward until the end; then delete the webhooks, and deal with what has arrived."""
        receiver = _Receiver(self.store)
        async with (
            Worker(self.store, self._handle, poll=_POLL) as worker,
            serve(receiver, port=self.port, path=path) as local,
        ):
            self.out.talk(f"listening on {local}")
            coroutines = (self._watch(receiver), self._forward(), worker.run())
            watching, forwarding, working = map(asyncio.ensure_future, coroutines)
            ends: set[asyncio.Future[Any]] = {watching, forwarding, working, self.ending}
            try:
                with (
                    stop_on_signals([signal.SIGINT], partial(self._end, common.INTERRUPTED)),
                    stop_on_signals([signal.SIGTERM], partial(self._end, 0)),
                ):
                    done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                return int(done.pop().result())
            finally:
                watching.cancel()
                await asyncio.wait([watching])
                if not self.keep and await live_registrations(self.store, label=""):
                    self.out.talk("deleting the webhooks; another Ctrl-C leaves that to the next start")
                    await remove_webhooks(self.asana, self.store, label="")
                await asyncio.sleep(2 * _POLL)  # by then the worker has claimed what came last
                try:
                    await asyncio.wait_for(self.queue.join(), _FINISH_SECONDS)
                except TimeoutError:
                    self.out.talk("not all deliveries were forwarded")
                forwarding.cancel()

    def _end(self, status: int) -> None:
        if not self.ending.done():
            self.ending.set_result(status)

    async def _watch(self, receiver: _Receiver) -> int:
        """Ensure the webhooks, and return the exit status when the public URL has led elsewhere for too long."""
        await self._clean(self.store, keep=self.resource)
        ensure = partial(ensure_webhook, self.asana, self.store, public_url=self.public_url, filters=self.wanted)
        for resource in self.resource:
            ensured = await ensure(resource=resource)
            self.out.talk(f"{ensured.action} webhook {ensured.webhook_gid} on {resource}")
        self.out.talk(f"ready; Ctrl-C ends and {'keeps' if self.keep else 'deletes'} the webhooks")
        base, query = split_public_url(self.public_url)
        url, clock = URL(f"{base / receiver.endpoint}{query}", encoded=True), asyncio.get_running_loop().time
        failures, good_at = 0, clock()
        while clock() - good_at < self.give_up_after:
            receiver.is_reached = False
            answer, _ = await self._post(url, {}, b"")
            if receiver.is_reached and answer == 200:
                if failures >= 2:
                    self.out.talk(f"{base} reaches this process again")
                failures, good_at = 0, clock()
            elif (failures := failures + 1) == 2:
                problem = f"something else answered {answer}" if isinstance(answer, int) else answer
                self.out.talk(f"{base} does not reach this process: {problem}; is the tunnel up?")
            await asyncio.sleep(self.probe_every)
        self.out.talk(f"{base} has not reached this process for {self.give_up_after / 60:g} minutes: giving up")
        return common.FAILED

    async def _handle(self, delivery: Delivery) -> None:
        for event in delivery.events:
            try:
                self.out.show({"webhook_gid": delivery.webhook_gid, **event.to_dict()}, common.event_text(event))
            except SystemExit:  # standard output was closed
                self._end(0)
        if self.forward_to:
            self.queue.put_nowait(delivery)

    async def _forward(self) -> None:
        """Shake hands with the target, and post each delivery to it, in order."""
        if self.forward_to:
            secret = self.secret.reveal()
            if self.reveal:
                self.out.talk(f"forwarded deliveries are signed with the secret {secret}")
            answer = await self._send("handshake", {"X-Hook-Secret": secret}, b"{}", until=range(200, 500))
            if answer.get("X-Hook-Secret") != secret:
                self.out.talk("the target did not echo X-Hook-Secret, as Asana demands; it gets the deliveries anyway")
        while True:
            delivery = await self.queue.get()
            signed = {"X-Hook-Signature": sign_body(delivery.body, secret=self.secret)}
            await self._send(f"delivery {delivery.id}", signed, delivery.body, until=(200, 204))
            self.queue.task_done()

    async def _send(self, what: str, headers: _Headers, body: bytes, *, until: Container[object]) -> _Headers:
        """Post to the target, again and again until it answers one of some statuses. Return its headers."""
        for wait in chain((1, 2, 4, 8, 16), repeat(30)):
            status, answer = await self._post(URL(self.forward_to), headers, body)
            if status in until:
                break
            self.out.talk(f"-> {what}: {status}; again in {wait} s")
            await asyncio.sleep(wait)
        self.out.talk(f"-> {what}: {status}")
        return answer

    async def _post(self, url: URL, headers: _Headers, body: bytes) -> tuple[int | str, _Headers]:
        """Return the status, or why there is none, and the headers."""
        headers = {"Content-Type": "application/json", **headers}
        try:
            async with self.http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status, answer.headers
        except TimeoutError:
            return f"no answer within {_ANSWER_SECONDS:g} seconds", {}
        except (aiohttp.ClientError, OSError) as error:
            return problem_of(error), {}


async def listen(options: Annotated[Listening, Parameter(name="*")]) -> int:
    r"""Print the events of resources as they come, until Ctrl-C.

    A tunnel, such as cloudflared or ngrok, must lead from the public URL to the port. Each resource gets a webhook. It
    is deleted at the end, or at the next start if the process was killed.

    With --forward-to each delivery is also posted to your service, its body unchanged. It is signed with a secret that
    your service gets first, in a handshake as from Asana. The secret stays the same over restarts; --reveal shows it.
    What your service does not answer with 200 or 204 is sent again, and what comes later waits for it.

    The exit status is 130 after Ctrl-C, 0 after SIGTERM or when standard output is closed, and 1 if the public URL
    does not reach this process for five minutes.

    ```text
    asana-webhooks listen --resource 8675309 \
        --public-url https://example.com/asana \
        --filter task:changed:due_on \
        --forward-to http://localhost:3000/hooks
    ```
    """
    log = logging.getLogger("aiohttp.server")
    log.disabled = True  # it quotes what strangers send
    try:
        return await options.run()
    finally:
        log.disabled = False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _state_folder(asana: str) -> Path:
    """Return the folder for runs with one Asana; only this user can look into it."""
    try:
        base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".local" / "state"
        folder = Path(base, "asana-webhooks", _digest(asana))
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise ConfigurationError(f"there is no place for the state: {error}; set XDG_STATE_HOME") from None
    return folder


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Lock a directory while the block runs, or the process. Yield whether it was free. SQLite locks everywhere."""
    directory.mkdir(exist_ok=True)
    with closing(sqlite3.connect(directory / "lock", timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            yield False
        else:
            yield True
