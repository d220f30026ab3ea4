"""The command ``listen``: print events as they come, and forward deliveries to a target of your own.

Each public URL has a store of its own in the user's state directory. So it takes no deliveries of a service, and a
start finds the webhooks that a killed process left.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import signal
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
from attrs import define, field
from cyclopts import Parameter
from cyclopts.validators import Number
from yarl import URL

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    Backoff,
    ConfigurationError,
    Delivery,
    Event,
    PayloadError,
    Receiver,
    Reply,
    Secret,
    SQLiteStore,
    Store,
    StoredDelivery,
    StoreError,
    Worker,
    ensure_webhook,
    remove_webhook,
    remove_webhooks,
    sign_body,
)
from asana_webhooks.cli import common
from asana_webhooks.client.transport import problem_of
from asana_webhooks.receiver.web import serve
from asana_webhooks.store.base import RegistrationState
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import split_public_url
from asana_webhooks.wire import decode_delivery

__all__ = ["Listening", "listen"]

_LABEL: Final = "listen"
_PROOF: Final = "X-Listen-Proof"
"""The header by which this process recognizes its own answer."""
_POLL: Final = 0.2
_REMOVE_SECONDS: Final = 30.0
_FINISH_SECONDS: Final = 3.0
"""How long the deliveries that have arrived may still take at the end."""
_HTTP_SECONDS: Final = 10.0
"""How long an answer may take, as at Asana."""

_Seconds = Annotated[float, Parameter(parse=False)]


@define(kw_only=True, repr=False, eq=False)
class Listening:
    """The options of ``listen``, and one run of it."""

    resource: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), help="The gids of what to watch.")
    ]
    public_url: common.PublicUrl
    filters: common.Filters = ()
    forward_to: Annotated[str, Parameter(help="A URL to post each verified delivery to.")] = ""
    host: Annotated[str, Parameter(show_default=True, help="The address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Parameter(show_default=True, validator=Number(gte=0, lte=65535), help="The port to listen on.")
    ] = 8080
    keep: Annotated[bool, Parameter(negative=(), help="Keep the webhooks for the next start with --keep.")] = False
    workspace: common.Workspace = ""
    base_url: common.BaseUrl = None
    reveal: common.Reveal = False
    json: common.Json = False
    probe_every: _Seconds = 30.0
    give_up_after: _Seconds = 300.0

    out: common.Output = field(init=False)
    asana: AsanaSession = field(init=False)
    store: Store = field(init=False)
    http: aiohttp.ClientSession = field(init=False)
    secret: Secret = field(init=False)
    """Signs what is forwarded."""
    shook_hands: bool = field(default=False, init=False)
    printed: set[int] = field(factory=set, init=False)
    """The ids of the deliveries whose events are printed."""
    ending: "asyncio.Future[int]" = field(init=False)
    """The exit status, once it is known."""

    async def run(self) -> int:
        """Listen until a signal, and return the exit status.

        Raises:
            SystemExit: there is no token.
            ConfigurationError: an option is invalid, the port is taken, or another process has the store.
            AsanaError: Asana refused something, or the store failed.
        """
        self.out, self.asana = common.Output(json=self.json), common.session(self.base_url)
        split_public_url(self.public_url)
        store = _state_file(self.public_url.rstrip("/"), ".db")
        if self.forward_to:
            self.secret = _kept_secret(self.forward_to)
        loop = asyncio.get_running_loop()
        self.ending = loop.create_future()
        for number, status in ((signal.SIGINT, common.INTERRUPTED), (signal.SIGTERM, 0)):
            with suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels this task instead
                loop.add_signal_handler(number, self._end, status)
        timeout, connector = aiohttp.ClientTimeout(total=_HTTP_SECONDS), aiohttp.TCPConnector(force_close=True)
        with _quiet(), _locked(store.with_suffix(".lock")):
            async with (
                self.asana,
                SQLiteStore(store) as self.store,
                aiohttp.ClientSession(timeout=timeout, connector=connector) as self.http,
            ):
                return await self._serve()

    def _end(self, status: int) -> None:
        """End with *status*. A Ctrl-C while it ends leaves the rest as it is."""
        if not self.ending.done():
            self.ending.set_result(status)
        elif status == common.INTERRUPTED:
            self.out.talk("ended at once; the next start deletes the webhooks that are left")
            os._exit(status)

    async def _serve(self) -> int:
        """Receive and handle deliveries until the end. Then delete the webhooks, and handle what has arrived."""
        receiver, path = _Receiver(self.store), split_public_url(self.public_url)[0].raw_path
        # As Asana does, it goes on sending what the target did not take, and the webhook's later deliveries wait.
        backoff = Backoff(longest_wait=30.0)
        worker = Worker(
            self.store, self._handle, ordered=True, attempts=100, backoff=backoff, poll=_POLL, stop_timeout=1.0
        )
        async with worker:
            async with serve(receiver, host=self.host, port=self.port, path=path) as local:
                self.out.talk(f"listening on {local}")
                handling, watching = asyncio.create_task(worker.run()), asyncio.create_task(self._watch(receiver))
                try:
                    futures: set[asyncio.Future[Any]] = {handling, watching, self.ending}
                    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                    done.pop().result()
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                    is_clean = self.keep or await self._remove()
            for _ in range(int(_FINISH_SECONDS / _POLL)):
                health = await self.store.health()
                if not health.waiting and not health.leased:
                    break
                await asyncio.sleep(_POLL)
        if left := (await self.store.health()).waiting:
            self.out.talk(f"deliveries left for the next start: {left}")
        return self.ending.result() if is_clean else common.FAILED

    async def _watch(self, receiver: "_Receiver") -> None:
        for one in await live_registrations(self.store, label=_LABEL):
            if not self.keep or one.resource not in self.resource or one.state is RegistrationState.PENDING:
                await remove_webhook(self.asana, self.store, resource=one.resource, label=_LABEL)
                self.out.talk(f"deleted the webhook on {one.resource} that an earlier run left")
        if self.forward_to:
            if self.reveal:
                self.out.talk(f"forwarded deliveries are signed with the secret {self.secret.reveal()}")
            with suppress(ConnectionError):  # the first delivery tries again
                await self._shake_hands()
        for resource in self.resource:
            ensured = await ensure_webhook(
                self.asana,
                self.store,
                resource=resource,
                public_url=self.public_url,
                filters=common.parse_filters(self.filters),
                label=_LABEL,
                workspace=self.workspace or None,
            )
            self.out.talk(f"{ensured.action} webhook {ensured.webhook_gid} on {resource}")
        self.out.talk(f"ready; Ctrl-C ends and {'keeps' if self.keep else 'deletes'} the webhooks")
        await asyncio.gather(self._probe(receiver), self._peek())

    async def _remove(self) -> bool:
        try:
            async with asyncio.timeout(_REMOVE_SECONDS):
                removed = await remove_webhooks(self.asana, self.store, label=_LABEL)
        except (AsanaError, TimeoutError) as error:
            self.out.talk(f"webhooks are left, which the next start deletes: {str(error) or 'Asana is too slow'}")
            return False
        if removed:
            self.out.talk(f"deleted webhooks: {removed}")
        return True

    async def _probe(self, receiver: "_Receiver") -> None:
        """Look again and again whether the public URL leads to this process; end if it does not for long."""
        base, query = split_public_url(self.public_url)
        clock, failures, since = asyncio.get_running_loop().time, 0, 0.0
        while True:
            status, answer = await self._post(f"{base / receiver.endpoint}{query}", {}, b"")
            if answer.get(_PROOF) == receiver.proof:
                if failures >= 2:
                    self.out.talk(f"{base} reaches this process again")
                failures = 0
            else:
                since, failures = since if failures else clock(), failures + 1
                if failures == 2:
                    problem = f"something else answered {status}" if isinstance(status, int) else status
                    self.out.talk(f"{base} does not reach this process: {problem}; is the tunnel up?")
                if clock() - since >= self.give_up_after:
                    minutes = f"{self.give_up_after / 60:g} minutes"
                    self.out.talk(f"{base} has not reached this process for {minutes}: giving up")
                    self._end(common.FAILED)
            await asyncio.sleep(self.probe_every)

    async def _peek(self) -> None:
        """Print the events of deliveries that wait until an earlier one is forwarded."""
        last = 0
        while True:
            with suppress(StoreError, PayloadError):  # the worker meets them, too, and logs them
                for one in await self.store.deliveries(state="waiting", after=last):
                    last = one.id
                    self._print(one)
            await asyncio.sleep(_POLL)

    def _print(self, delivery: Delivery | StoredDelivery) -> None:
        """Print the events of a delivery, once. Standard output being closed ends the run."""
        if delivery.id in self.printed:
            return
        self.printed.add(delivery.id)
        events = delivery.events if isinstance(delivery, Delivery) else decode_delivery(delivery.body).events
        try:
            for event in events:
                self.out.show({"webhook_gid": delivery.webhook_gid, **event.to_dict()}, _text(event))
        except SystemExit:
            self._end(0)

    async def _handle(self, delivery: Delivery) -> None:
        self._print(delivery)
        if not self.forward_to:
            return
        if not self.shook_hands:
            await self._shake_hands()
        signed = {"X-Hook-Signature": sign_body(delivery.body, secret=self.secret)}
        status, _ = await self._forward(f"delivery {delivery.id}", signed, delivery.body)
        if status not in (200, 204):
            raise ConnectionError("the target did not take the delivery")

    async def _shake_hands(self) -> None:
        """Send the target its secret. Raise `ConnectionError` if it is not there yet."""
        secret = self.secret.reveal()
        status, answer = await self._forward("handshake", {"X-Hook-Secret": secret}, b"{}")
        if not isinstance(status, int) or status >= 500:
            raise ConnectionError("the target did not answer the handshake")
        self.shook_hands = True
        if status not in (200, 204) or answer.get("X-Hook-Secret") != secret:
            self.out.talk("the target did not echo X-Hook-Secret, as Asana demands; deliveries are forwarded anyway")

    async def _forward(self, what: str, headers: Mapping[str, str], body: bytes) -> "_Answer":
        base, query = split_public_url(self.forward_to)
        status, answer = await self._post(f"{base}{query}", headers, body)
        shown = self.forward_to if self.reveal else f"{base.origin()}/***"
        said = f"{status} POST {shown}" if isinstance(status, int) else f"POST {shown}: {status}"
        self.out.talk(f"-> {said} ({what})")
        return status, answer

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> "_Answer":
        try:
            async with self.http.post(
                URL(url, encoded=True),
                data=body,
                headers={"Content-Type": "application/json", **headers},
                allow_redirects=False,
            ) as answer:
                return answer.status, answer.headers
        except TimeoutError:
            return f"no answer within {_HTTP_SECONDS:g} seconds", {}
        except (aiohttp.ClientError, OSError) as error:
            return problem_of(error), {}


_Answer = tuple[int | str, Mapping[str, str]]
"""The status, or why there is none, and the headers."""


async def listen(options: Annotated[Listening, Parameter(name="*")]) -> int:
    """Print the events of resources as they come, until Ctrl-C.

    A tunnel, such as cloudflared or ngrok, must lead from the public URL to the port. Each resource gets a webhook,
    which is deleted at the end. What a killed process left is deleted at the next start with the same public URL.

    With --forward-to each delivery is posted to your service, its body unchanged. It is signed with a secret that your
    service first gets in a handshake, as from Asana; --reveal shows it. It stays the same over restarts. A delivery
    that is not answered 200 or 204 is sent again, and later ones of its webhook wait for it.

    The exit status is 130 after Ctrl-C, 0 after SIGTERM or when standard output is closed, and 1 if the public URL
    does not reach this process for five minutes. A second Ctrl-C ends at once.

    ```text
    asana-webhooks listen --resource 8675309
        --public-url https://example.com/asana
        --filter task:changed:due_on
        --forward-to http://localhost:3000/hooks
    ```
    """
    return await options.run()


class _Receiver(Receiver):
    """A receiver that this process can recognize through the public URL."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.endpoint, self.proof = secrets.token_urlsafe(32), secrets.token_urlsafe(32)

    async def receive(self, endpoint: str, headers: Any, body: Any) -> Reply:
        if endpoint == self.endpoint:
            return Reply(status=200, headers=((_PROOF.encode(), self.proof.encode()),))
        return await super().receive(endpoint, headers, body)


def _text(event: Event) -> str:
    """Return an event as a line: ``2026-11-30 12:00:00 changed task 12 due_on by 7``."""
    parts = [f"{event.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} {event.action:<9}"]
    parts += [event.resource.resource_type or "resource", event.resource.gid, event.field or ""]
    if event.parent is not None:
        where = {"added": "to", "removed": "from"}.get(event.action, "in")
        parts += [where, event.parent.resource_type or "", event.parent.gid]
    if event.user is not None:
        parts += ["by", event.user.gid]
    return " ".join(filter(None, parts))


def _state_file(name: str, suffix: str) -> Path:
    """Return the file for *name* in a folder that only this user can look into."""
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".local" / "state"
    folder = Path(base, "asana-webhooks")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used ({error.strerror}); set XDG_STATE_HOME") from None
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"


def _kept_secret(forward_to: str) -> Secret:
    """Return the secret for a target, the same at each start."""
    try:
        split_public_url(forward_to)
    except ConfigurationError:
        raise ConfigurationError("--forward-to must be an http(s) URL without user, password or fragment") from None
    file = _state_file(forward_to, ".secret")
    if not file.exists():
        descriptor, new = tempfile.mkstemp(dir=file.parent)  # only its owner can use it
        os.write(descriptor, secrets.token_hex(16).encode())
        os.close(descriptor)
        Path(new).replace(file)
    return Secret(file.read_text())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock while the block runs; it ends with the process. SQLite has one on every platform."""
    connection = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ConfigurationError(f"another `listen` with this public URL holds {file} ({error})") from None
        yield
    finally:
        connection.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Log no retries, which this command tells itself, and nothing of aiohttp's server, which quotes endpoints."""
    levels = {"asana_webhooks.worker.processing": logging.ERROR, "aiohttp.server": logging.CRITICAL}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
