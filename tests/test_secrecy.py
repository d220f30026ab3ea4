"""Secrets stay secret: in reprs, dumps, pickles and copies, in the locals of tracebacks, and in what logs say.

The canary of `tests.helpers.watching` looks over the shoulder of every test; here is what each class promises.
"""

import asyncio
import copy
import io
import json
import logging
import pickle
import re
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import cattrs
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    CreateOutcomeUnknownError,
    CreateWebhookRequest,
    Delivery,
    EstablishedWebhook,
    MemoryStore,
    PayloadError,
    Receiver,
    RejectedError,
    Secret,
    SQLiteStore,
    StoreUnavailableError,
    Webhook,
    Worker,
    establish_webhook,
    sign_body,
    wire,
)
from asana_webhooks.client.auth import FixedToken
from asana_webhooks.models import CreatedWebhook
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.protocol import Handshake, HookHeaders, read_headers
from asana_webhooks.receiver.receiver import Reply
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import (
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    Store,
    registration_id,
)
from asana_webhooks.testing import FakeAsana
from asana_webhooks.testing.serving import serve_receiver
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.stores import body, event

TEXT = "s3cr3t_0123456789_abcdefghijklmnopqrstuvwxyz"
ENDPOINT = "endp0int_0123456789_abcdefghijklmnopqrstuvw"
TARGET = f"https://example.com/asana/{ENDPOINT}"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HANDSHAKE = [(b"X-Hook-Secret", TEXT.encode())]


def registration(state: RegistrationState = RegistrationState.PENDING) -> Registration:
    return Registration(
        id=registration_id(ENDPOINT),
        resource="1",
        state=state,
        deadline=0.0,
        candidates=(Secret(TEXT),),
        secret=Secret(TEXT),
    )


def session() -> AsanaSession:
    return AsanaSession(TEXT)


def filled_store() -> MemoryStore:
    store = MemoryStore()
    store._registrations["r"] = registration()
    return store


async def _nothing(_: Delivery) -> None:
    """Handle nothing."""


# What holds a secret, and must not show it, however it is dumped.
SEALED: dict[str, Callable[[], object]] = {
    "Secret": lambda: Secret(TEXT),
    "FixedToken": lambda: FixedToken(TEXT),
    "AsanaSession": session,
    "CreatedWebhook": lambda: CreatedWebhook(webhook=Webhook(gid="1"), secret=Secret(TEXT)),
    "Registration": registration,
    "Handshake": lambda: Handshake(Secret(TEXT)),
    "HookHeaders": lambda: HookHeaders.of(HANDSHAKE),
    "MemoryStore": filled_store,
    "Receiver": lambda: Receiver(filled_store()),
    "ReceiverApp": lambda: ReceiverApp(Receiver(filled_store())),
    "Worker": lambda: Worker(filled_store(), _nothing),
}

# What carries a target, or an answer to send, because that is what it is for: dumps have it, texts do not.
CARRIERS: dict[str, Callable[[], object]] = {
    "Webhook": lambda: Webhook(gid="1", target=TARGET),
    "CreatedWebhook": lambda: CreatedWebhook(webhook=Webhook(gid="1", target=TARGET), secret=None),
    "EstablishedWebhook": lambda: EstablishedWebhook(
        webhook=Webhook(gid="1", target=TARGET), webhook_gid="1", registration="r"
    ),
    "CreateWebhookRequest": lambda: CreateWebhookRequest(resource="1", target=TARGET),
    "CreateOutcomeUnknownError": lambda: CreateOutcomeUnknownError(
        operation="createWebhook", attempts=1, problem="it was lost", target=TARGET, sent_at=NOON
    ),
    "Reply": lambda: Reply(status=200, headers=((b"X-Hook-Secret", ENDPOINT.encode()),)),
}

# What is kept of a delivery: bodies and signatures are in no text.
KEPT: dict[str, Callable[[], object]] = {
    "NewDelivery": lambda: NewDelivery(registration="r", signature=TEXT, body=TEXT.encode()),
    "Lease": lambda: Lease(
        id=1,
        fence=1,
        attempt=1,
        registration="r",
        webhook_gid="1",
        resource="1",
        received_at=0.0,
        expires_at=1.0,
        body=TEXT.encode(),
    ),
    "DeadLetter": lambda: DeadLetter(
        id=1,
        registration="r",
        webhook_gid="1",
        resource="1",
        received_at=0.0,
        attempts=1,
        error="no",
        body=TEXT.encode(),
    ),
    "Delivery": lambda: Delivery(
        id=1,
        registration="r",
        webhook_gid="1",
        resource="1",
        received_at=NOON,
        attempt=1,
        events=(),
        body=TEXT.encode(),
    ),
}

ALL = {**SEALED, **{f"{name} with a target": make for name, make in CARRIERS.items()}, **KEPT}


def shows(text: str) -> bool:
    return TEXT in text or ENDPOINT in text


def texts_of(value: object) -> list[str]:
    """Return whatever makes a text of an object."""
    log = io.StringIO()
    logger = logging.Logger("user")  # noqa: LOG001 - one of its own, with a handler of its own
    logger.addHandler(logging.StreamHandler(log))
    logger.warning("%s %r %a", value, value, value, extra={"value": value})
    made = [f"{value}", f"{value!r}", ascii([value]), "{} {!r}".format(value, {"a": value}), log.getvalue()]
    try:
        local = value
        raise ValueError(local)  # noqa: TRY301 - so that there is a traceback
    except ValueError as error:
        made += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    return made


def dumps_of(value: Any) -> list[object]:
    """Return whatever makes plain data of an object, as far as it can be made."""
    tries: list[Callable[[], object]] = [
        lambda: attrs.asdict(value),
        lambda: attrs.astuple(value),
        lambda: vars(value),
        lambda: cattrs.unstructure(value),
        lambda: wire.encode(value),
        lambda: msgspec.json.encode(value),
        lambda: msgspec.to_builtins(value),
        lambda: json.dumps(value, default=repr),
        lambda: json.dumps(value, default=vars),
        *(lambda protocol=protocol: pickle.dumps(value, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    ]
    return [made for one in tries if (made := _made(one)) is not None]


def _made(make: Callable[[], object]) -> object:
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - some refuse, each in its way
        assert not shows(repr(error))  # noqa: PT017 - any error will do
        return None


@pytest.mark.parametrize("name", ALL)
def test_no_text_shows_it(name: str) -> None:
    """Neither str, repr, format, a log line nor a traceback with its locals shows a secret, an endpoint or a body."""
    value = ALL[name]()

    for made in [*texts_of(value), *texts_of(_copied(value))]:
        assert not shows(made)


def _copied(value: object) -> object:
    try:
        return copy.deepcopy(value)
    except TypeError:  # locks, loops and the like
        return copy.copy(value)


@pytest.mark.parametrize("name", SEALED)
def test_no_dump_shows_it(name: str) -> None:
    """Nor does anything that makes plain data of the object; what is left in it is a `Secret`, or it refuses."""
    for made in dumps_of(SEALED[name]()):
        assert not shows(made.decode("latin-1") if isinstance(made, bytes) else repr(made))


@pytest.mark.parametrize("name", SEALED)
def test_no_pickle_holds_it(name: str) -> None:
    """What holds a secret cannot be pickled, and the refusal does not show it."""
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as caught:
        pickle.dumps(SEALED[name]())

    assert not shows(repr(caught.value))


@pytest.mark.parametrize("name", ["Webhook", "CreateWebhookRequest", "CreateOutcomeUnknownError"])
def test_what_carries_a_target_carries_it(name: str) -> None:
    """The attribute, dumps and pickles have the whole target: that is what these are for."""
    value: Any = CARRIERS[name]()

    assert value.target == TARGET
    assert pickle.loads(pickle.dumps(value)).target == TARGET
    assert attrs.asdict(value)["target"] == TARGET


def test_what_a_webhook_shows_of_its_target() -> None:
    """Enough to tell whose it is, and nothing that tells whose secret it has."""
    assert "target='https://example.com/asana/***'" in repr(Webhook(gid="1", target=TARGET))


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (None, "None"),
        ("", "''"),
        ("https://example.com/receive-webhook/7654", "'https://example.com/receive-webhook/7654'"),
        ("https://a-very-long-host-name.example.com/x", "'https://a-very-long-host-name.example.com/x'"),
        (f"{TARGET}/", "'https://example.com/asana/***/'"),
        (f"{TARGET}?a=1", "'https://example.com/asana/***?a=1'"),
        (f"https://example.com/{ENDPOINT}/asana", "'https://example.com/***/asana'"),
        (f"https://example.com?key={ENDPOINT}", "'https://example.com?***'"),
        (f"https://example.com/a#{ENDPOINT}", "'https://example.com/a#***'"),
        ("https://ada:pw@example.com/a", "'https://***@example.com/a'"),
        ("HTTPS://ada:p\nw@example.com/a", "'HTTPS://***@example.com/a'"),
        (f"https://ada:{ENDPOINT}@example.com/a", "'https://***@example.com/a'"),
        (f"//example.com/{ENDPOINT}", "'//example.com/***'"),
        (f"no url {ENDPOINT}", "'***'"),
        ("https://example.com/a\n\x1b[31m", r"'https://example.com/a\n\x1b[31m'"),
    ],
)
def test_shown_targets(target: str | None, shown: str) -> None:
    """Short segments stay; long ones, users and passwords become three stars, whatever the text."""
    assert f"target={shown}," in repr(Webhook(gid="1", target=target))


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.sampled_from(["/", "?", "#", "/x/"]))
def test_no_target_shows_its_end(start: str, before: str) -> None:
    """Whatever a path begins with, the endpoint at its end is in no repr, and the repr is one line."""
    text = repr(Webhook(gid="1", target=f"https://example.com/{start}{before}{ENDPOINT}"))

    assert ENDPOINT not in text
    assert text.isprintable()


# Tracebacks: the canary looks at every exception that pytest.raises catches


async def _cancelled(step: asyncio.Event, answering: "asyncio.Task[Any]") -> None:
    await step.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering


class Hanging(MemoryStore):
    """A store in which whatever matters never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def offer(self, id: str, secret: Secret) -> bool:
        self.reached.set()
        await asyncio.Event().wait()
        raise AssertionError(id, secret)

    async def put(self, delivery: NewDelivery) -> PutResult:
        self.reached.set()
        await asyncio.Event().wait()
        raise AssertionError(delivery)


async def _hanging() -> Hanging:
    store = Hanging()
    await store.open(registration_id(ENDPOINT), resource="1", ttl=60)
    return store


async def test_a_cancelled_handshake() -> None:
    """Cancellation passes the receiver, which shows neither the endpoint nor the secret in its locals."""
    store = await _hanging()

    await _cancelled(store.reached, asyncio.create_task(Receiver(store).receive(ENDPOINT, HANDSHAKE, b"")))


async def test_a_handshake_cancelled_in_the_asgi_app() -> None:
    """Nor does the ASGI app, though the scope has both."""
    store = await _hanging()
    scope = {"type": "http", "method": "POST", "path": f"/asana/{ENDPOINT}", "headers": HANDSHAKE}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_: Any) -> None:
        raise AssertionError

    await _cancelled(store.reached, asyncio.create_task(ReceiverApp(Receiver(store))(scope, receive, send)))


async def test_an_answer_that_cannot_be_sent() -> None:
    """An ASGI server that fails at the echo gets its own error back, and no local of ours holds the headers."""
    store = MemoryStore()
    await store.open(registration_id(ENDPOINT), resource="1", ttl=60)
    scope = {"type": "http", "method": "POST", "path": f"/asana/{ENDPOINT}", "headers": HANDSHAKE}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_: Any) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        await ReceiverApp(Receiver(store))(scope, receive, send)


@pytest.mark.parametrize("framing", ["Content-Length: 0", "Transfer-Encoding: chunked"])
async def test_a_handshake_cancelled_in_aiohttp(framing: str) -> None:
    """Aiohttp cancels the handler of a peer that goes away, if it is told to; the request is in none of our locals.

    The body may be here already, or still to come.
    """
    store = await _hanging()
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except BaseException as error:
            ended.set_result(error)
            raise
        return response

    application = web.Application(middlewares=[note])
    application.add_routes(webhook_routes(Receiver(store)))
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(
            f"POST /asana/{ENDPOINT} HTTP/1.1\r\nHost: a\r\nX-Hook-Secret: {TEXT}\r\n{framing}\r\n\r\n".encode()
        )
        await store.reached.wait()
        writer.close()
        error = await ended
    finally:
        await runner.cleanup()

    with pytest.raises(asyncio.CancelledError):
        raise error


async def test_the_answers_repr_in_aiohttp() -> None:
    """A prepared response of aiohttp's shows the path, and would do so as a local variable of ours; ours does not."""
    seen: list[str] = []

    async def note(_: web.Request, response: web.StreamResponse) -> None:
        seen.append(repr(response))

    application = web.Application()
    application.on_response_prepare.append(note)
    application.add_routes(webhook_routes(Receiver(MemoryStore())))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(f"POST /asana/{ENDPOINT} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()
    finally:
        await runner.cleanup()

    assert seen == ["<Response 404>"]


@pytest.mark.parametrize("headers", [HANDSHAKE, HANDSHAKE * 2], ids=["one", "two"])
@pytest.mark.parametrize("state", list(RegistrationState), ids=lambda state: state.value)
def test_refused_handshakes(state: RegistrationState, headers: list[tuple[bytes, bytes]]) -> None:
    """A refusal does not have the secret in its locals either."""
    if state is RegistrationState.PENDING and len(headers) == 1:
        assert isinstance(read_headers(registration(state), HookHeaders.of(headers)), Handshake)
        return
    with pytest.raises(RejectedError):
        read_headers(registration(state), HookHeaders.of(headers))


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of each kind."""
    opened: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "asana.db")
    async with opened:
        yield opened


async def test_secrets_no_store_can_keep(store: Store) -> None:
    """Half a surrogate pair makes encoders raise errors that hold the whole text; ours holds nothing."""
    await store.open("r", resource="1", ttl=60)
    bad = Secret(TEXT + "\ud800")

    for call in (store.offer("r", bad), store.confirm("r", webhook_gid="1", secret=bad)):
        with pytest.raises(AsanaError) as caught:
            await call
        assert not shows("".join(traceback.format_exception(caught.value)))


def test_signing_what_is_no_body() -> None:
    """Somebody who signs a text instead of bytes finds no key in the traceback."""
    with pytest.raises(TypeError):
        sign_body("text", secret=Secret(TEXT))  # type: ignore[arg-type]


@pytest.mark.slow
async def test_establishing_cancelled_at_every_step(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever cancellation strikes, no frame of ours on its way out shows token, secret or endpoint."""
    store = MemoryStore()
    async with FakeAsana() as fake, serve_receiver(Receiver(store)) as url:

        async def establish() -> None:
            async with AsanaSession(fake.token, base_url=fake.url) as asana:
                try:
                    await establish_webhook(asana, store, public_url=url, resource=fake.projects[0])
                except asyncio.CancelledError as error:
                    with pytest.raises(asyncio.CancelledError):
                        raise error  # noqa: TRY201 - once more, for the canary
                    raise

        async def check() -> None:
            await fake.settle()

        assert await cancel_at_every_step(establish, check) > 5


# Logs: whatever comes from outside, a record is one short line

NASTY = st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "L", "Cs"]), max_size=40) | st.sampled_from(
    ["\r\nWARNING forged", "\x1b[31mred\x1b[0m", "\u2028\u2029\x85\x0b\x0c", "\ud800", "x" * 10_000, "%s%n%d"]
)


def check_lines(records: list[logging.LogRecord], logger: str = "asana_webhooks") -> None:
    """Check that each record of ours is one line, printable, and not long."""
    messages = [record.getMessage() for record in records if record.name.startswith(logger)]
    assert messages
    for message in messages:
        assert message.isprintable()
        assert len(message) < 400


class Records(logging.Handler):
    """What the package logs while the block runs, at DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> list[logging.LogRecord]:
        self._logger = logging.getLogger("asana_webhooks")
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self.records

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


@given(NASTY, NASTY.map(lambda text: text.encode("utf-8", "surrogatepass")))
async def test_paths_and_headers_in_the_log(endpoint: str, value: bytes) -> None:
    """An attacker's path and headers write no line of their own."""
    store = MemoryStore()
    await store.open(registration_id(ENDPOINT), resource="1", ttl=60)
    receiver = Receiver(store)
    names = [b"x-hook-secret", b"x-hook-signature", b"content-length", b"content-encoding", value]
    with Records() as records:
        await receiver.receive(endpoint, [(b"x-hook-secret", TEXT.encode())], b"")
        for name in names:
            await receiver.receive(ENDPOINT, [(name, value)], value)

    check_lines(records)


class Saying(MemoryStore):
    """A store, by somebody else, that fails with the words it is given."""

    def __init__(self, error: AsanaError) -> None:
        super().__init__()
        self.error: AsanaError | None = error

    async def find(self, id: str) -> Registration | None:
        raise self._error()

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> list[Lease]:
        if self.error is None:
            return list(await super().claim(limit, lease=lease, ordered=ordered, halt=halt))
        raise self._error()

    async def done(self, lease: Lease) -> bool:
        raise StoreUnavailableError(problem=self.words)

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        raise StoreUnavailableError(problem=self.words)

    def _error(self) -> AsanaError:
        assert self.error is not None
        error, self.error = self.error, None
        return error

    words = ""


@given(NASTY)
async def test_what_stores_say_in_the_log(words: str) -> None:
    """Whatever the text of a store's error, the receiver's and the worker's records are one line."""
    with Records() as records:
        for error in (StoreUnavailableError(problem=words), RejectedError(status=401, reason=words)):
            await Receiver(Saying(error)).receive(ENDPOINT, HANDSHAKE, b"")
        store = Saying(StoreUnavailableError(problem=words))
        store.words = words
        await store.open("r", resource="1", ttl=60)
        await store.offer("r", Secret(TEXT))
        await store.confirm("r", webhook_gid="1", secret=Secret(TEXT))
        await store.put(NewDelivery(registration="r", signature="s", body=body(event())))

        async def stop(_: Delivery) -> None:
            await worker._extend(next(iter(worker._held.values())))
            worker.stop()

        worker = Worker(store, stop, poll=1e-9)
        await worker.run()

    check_lines(records)
    said = " ".join(record.getMessage() for record in records)
    assert "could not be extended" in said
    assert "nothing could be leased" in said
    assert "not acknowledged" in said


@given(NASTY)
async def test_what_handlers_and_events_say_in_the_log(words: str) -> None:
    """A handler's error is told in its traceback alone, and an event's text is told nowhere."""
    store = MemoryStore()
    await store.open("r", resource="1", ttl=60)
    await store.offer("r", Secret(TEXT))
    await store.confirm("r", webhook_gid="1", secret=Secret(TEXT))
    bodies = [
        body(event(action=words)),
        body({words: words}),
        json.dumps({"events": words}).encode(),
        b'"\xff' + words.encode("utf-8", "replace") + b'"',
    ]
    for number, content in enumerate(bodies):
        await store.put(NewDelivery(registration="r", signature=f"{number}", body=content))

    async def fail(_: Delivery) -> None:
        raise LookupError(words)

    with Records() as records:
        await Worker(store, fail, attempts=1).drain()

    check_lines(records)
    assert len([record for record in records if "unreadable" in record.getMessage()]) >= 2


@given(NASTY)
def test_what_wrong_json_says(words: str) -> None:
    """The text of a payload's error is one line too, and does not quote what it is about."""
    content = json.dumps({words: [words], "data": {words: words, "gid": [words]}}, ensure_ascii=False)
    written = content.encode("utf-8", "replace")

    for wrong in (written, written[:-1] + b',"\xff":1}', b'"\xff' + b"x" * 900 + b'"'):
        with pytest.raises(PayloadError) as caught:
            wire.decode_webhook(wrong)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200


LOG_CALL = re.compile(r"_log\.(?:debug|info|warning|error|exception|critical|log)\((.*?)\n? *\)(?=\n)", re.DOTALL)
OF_OURS = ["store", "receiver", "worker.py", "settling.py"]


def test_every_log_call_quotes_texts() -> None:
    """In a format of ours ``%s`` stands only for one of a few words; texts from outside are quoted and cut.

    ``%.12s`` is the beginning of a hash.
    """
    package = Path(wire.__file__).parent
    files = [file for name in OF_OURS for file in ([package / name] if "." in name else (package / name).rglob("*.py"))]
    calls = [call for file in files for call in LOG_CALL.findall(file.read_text())]

    assert len(calls) >= 13
    assert [call for call in calls if "%s" in call and "result" not in call] == []
