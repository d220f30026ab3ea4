"""Secrets stay secret: in reprs, dumps, pickles and copies, and in what logs and errors say.

The canary of `tests.helpers.watching` looks over the shoulder of every test; here is what each class promises.
"""

import copy
import io
import json
import logging
import pickle
import re
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import cattrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    CreatedWebhook,
    CreateOutcomeUnknownError,
    CreateWebhookRequest,
    Delivery,
    EstablishedWebhook,
    MemoryStore,
    PayloadError,
    Receiver,
    Reply,
    Secret,
    SQLiteStore,
    Store,
    StoredDelivery,
    StoreUnavailableError,
    Webhook,
    Worker,
    wire,
)
from asana_webhooks.client.auth import FixedToken
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.store.base import (
    DeliveryState,
    Lease,
    NewDelivery,
    Registration,
    RegistrationState,
    registration_id,
)
from tests.helpers.stores import ENDPOINT as REGISTERED
from tests.helpers.stores import body, event, register

TEXT = "s3cr3t_0123456789_abcdefghijklmnopqrstuvwxyz"
ENDPOINT = "endp0int_0123456789_abcdefghijklmnopqrstuvw"
TARGET = f"https://example.com/asana/{ENDPOINT}"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HANDSHAKE = [(b"X-Hook-Secret", TEXT.encode())]


async def sealed() -> list[object]:
    """Return what holds a secret and must not show it, however it is dumped."""
    store = MemoryStore()
    assert await store.open_registration(
        registration_id(ENDPOINT), resource="1", public_url="https://example.com/asana", ttl=60
    )
    await store.add_candidate(registration_id(ENDPOINT), Secret(TEXT))
    found = await store.find_registration(registration_id(ENDPOINT))
    assert found is not None
    assert found.candidates == (Secret(TEXT),)
    return [
        Secret(TEXT),
        FixedToken(TEXT),
        AsanaSession(TEXT),
        CreatedWebhook(webhook=Webhook(gid="1"), secret=Secret(TEXT)),
        found,
        Registration(
            id="r", resource="1", state=RegistrationState.CONFIRMED, deadline=0.0, secret=Secret(TEXT), candidates=()
        ),
        store,
        Receiver(store),
        ReceiverApp(Receiver(store)),
        Worker(store, store.ack),  # type: ignore[arg-type]
    ]


# What carries a target because that is what it is for: dumps have it, texts do not.
CARRIERS: list[Any] = [
    Webhook(gid="1", target=TARGET),
    CreateWebhookRequest(resource="1", target=TARGET),
    CreateOutcomeUnknownError(operation="createWebhook", attempts=1, problem="lost", target=TARGET, sent_at=NOON),
]
LEASED: dict[str, Any] = {"id": 1, "registration": "r", "webhook_gid": "1", "resource": "1", "body": TEXT.encode()}
# What holds an answer to send, or a delivery: bodies and signatures are in no text.
KEPT: list[object] = [
    CreatedWebhook(webhook=Webhook(gid="1", target=TARGET), secret=None),
    EstablishedWebhook(webhook=Webhook(gid="1", target=TARGET), webhook_gid="1", registration="r"),
    Reply(status=200, headers=((b"X-Hook-Secret", ENDPOINT.encode()),)),
    NewDelivery(registration="r", signature=TEXT, body=TEXT.encode()),
    Lease(**LEASED, fence=1, attempt=1, received_at=0.0, expires_at=1.0),
    StoredDelivery(**LEASED, state=DeliveryState.DEAD, received_at=0.0, attempts=1, error="no"),
    Delivery(**LEASED, received_at=NOON, attempt=1, events=()),
]


def shows(text: str) -> bool:
    return TEXT in text or ENDPOINT in text


def texts_of(value: object) -> list[str]:
    """Return whatever makes a text of an object."""
    log = io.StringIO()
    logger = logging.Logger("user")  # noqa: LOG001 - one of its own, with a handler of its own
    logger.addHandler(logging.StreamHandler(log))
    logger.warning("%s %r %a", value, value, value, extra={"value": value})
    return [f"{value}", f"{value!r}", ascii([value]), "{} {!r}".format(value, {"a": value}), log.getvalue()]


def copied(value: object) -> object:
    try:
        return copy.deepcopy(value)
    except TypeError:  # locks, loops and the like
        return copy.copy(value)


async def test_no_text_shows_it() -> None:
    """Neither str, repr, format nor a log line shows a secret, an endpoint or a body, of a copy neither."""
    for value in [*await sealed(), *CARRIERS, *KEPT]:
        assert not any(map(shows, [*texts_of(value), *texts_of(copied(value))])), type(value)


async def test_no_dump_of_a_secret_shows_it() -> None:
    """Nor does anything that makes plain data of an object: what is left in it is a `Secret`, or it refuses."""
    dumps: list[Any] = [
        *[attrs.asdict, attrs.astuple, vars, cattrs.unstructure, wire.encode],
        *[msgspec.json.encode, msgspec.to_builtins],
        lambda value: json.dumps(value, default=repr),
        lambda value: json.dumps(value, default=vars),
        *(lambda value, protocol=protocol: pickle.dumps(value, protocol) for protocol in range(6)),
    ]
    for value in await sealed():
        for dump in dumps:
            try:
                made = dump(value)
            except Exception as error:  # noqa: BLE001 - some refuse, each in its way
                made = repr(error)
            assert not shows(made.decode("latin-1") if isinstance(made, bytes) else repr(made)), (value, dump)
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(value)


def test_what_carries_a_target_carries_it() -> None:
    """The attribute, dumps and pickles have the whole target: that is what these are for."""
    for value in CARRIERS:
        assert value.target == TARGET
        assert pickle.loads(pickle.dumps(value)).target == TARGET
        assert attrs.asdict(value)["target"] == TARGET


def test_shown_targets() -> None:
    """A webhook's repr shows short segments; long ones, users and passwords become three stars, whatever the text."""
    for target, shown in {
        None: "None",
        "": "''",
        TARGET: "'https://example.com/asana/***'",
        "https://example.com/receive-webhook/7654": "'https://example.com/receive-webhook/7654'",
        "https://a-very-long-host-name.example.com/x": "'https://a-very-long-host-name.example.com/x'",
        f"{TARGET}/": "'https://example.com/asana/***/'",
        f"{TARGET}?a=1": "'https://example.com/asana/***?***'",
        f"{TARGET}?code=k3y/?==#a": "'https://example.com/asana/***?***#a'",
        f"https://example.com/{ENDPOINT}/asana": "'https://example.com/***/asana'",
        f"https://example.com?key={ENDPOINT}": "'https://example.com?***'",
        f"https://example.com/a#{ENDPOINT}": "'https://example.com/a#***'",
        "https://ada:pw@example.com/a": "'https://***@example.com/a'",
        "HTTPS://ada:p\nw@example.com/a": "'HTTPS://***@example.com/a'",
        f"https://ada:{ENDPOINT}@example.com/a": "'https://***@example.com/a'",
        f"//example.com/{ENDPOINT}": "'//example.com/***'",
        f"no url {ENDPOINT}": "'***'",
        "https://example.com/a\n\x1b[31m": r"'https://example.com/a\n\x1b[31m'",
    }.items():
        assert f"target={shown}," in repr(Webhook(gid="1", target=target))


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.sampled_from(["/", "?", "#", "/x/"]))
def test_no_target_shows_its_end(start: str, before: str) -> None:
    """Whatever a path begins with, the endpoint at its end is in no repr, and the repr is one line."""
    text = repr(Webhook(gid="1", target=f"https://example.com/{start}{before}{ENDPOINT}"))

    assert ENDPOINT not in text
    assert text.isprintable()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of each kind."""
    opened: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "asana.db")
    async with opened:
        yield opened


async def test_secrets_no_store_can_keep(store: Store) -> None:
    """Half a surrogate pair makes encoders raise errors that hold the whole text; ours holds nothing."""
    assert await store.open_registration("r", resource="1", public_url="https://example.com/asana", ttl=60)
    bad = Secret(TEXT + "\ud800")

    for call in (store.add_candidate("r", bad), store.confirm_registration("r", webhook_gid="1", secret=bad)):
        with pytest.raises(AsanaError) as caught:
            await call
        assert not shows("".join(traceback.format_exception(caught.value)))


# Logs: whatever comes from outside, a record is one short line

NASTY = st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "L", "Cs"]), max_size=40) | st.sampled_from(
    ["\r\nWARNING forged", "\x1b[31mred\x1b[0m", "\u2028\u2029\x85\x0b\x0c", "\ud800", "x" * 10_000, "%s%n%d"]
)
LABELS = NASTY.map(lambda text: text.encode("utf-8", "ignore").decode()[:200])
"""Those that a store can save."""


class Records(logging.Handler):
    """What the package logs while the block runs, at DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self._logger = logging.getLogger("asana_webhooks")
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self.messages

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        assert self.messages
        assert all(message.isprintable() and len(message) < 500 for message in self.messages)


@given(NASTY, NASTY.map(lambda text: text.encode("utf-8", "surrogatepass")))
async def test_paths_and_headers_in_the_log(endpoint: str, value: bytes) -> None:
    """An attacker's path and headers write no line of their own."""
    store = MemoryStore()
    assert await store.open_registration(
        registration_id(ENDPOINT), resource="1", public_url="https://example.com/asana", ttl=60
    )
    receiver = Receiver(store)
    names = [b"x-hook-secret", b"x-hook-signature", b"content-length", b"content-encoding", value]
    with Records():
        await receiver.receive(endpoint, [(b"x-hook-secret", TEXT.encode())], b"")
        for name in names:
            await receiver.receive(ENDPOINT, [(name, value)], value)


class Saying(MemoryStore):
    """A store, by somebody else, that fails with given words: once in claim, always in find_registration and ack."""

    words = ""
    fails = True

    async def find_registration(self, id: str) -> Registration | None:
        raise StoreUnavailableError(problem=self.words)

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> list[Lease]:
        fails, self.fails = self.fails, False
        if fails:
            raise StoreUnavailableError(problem=self.words)
        return list(await super().claim(limit, lease=lease, ordered=ordered, halt=halt))

    async def ack(self, lease: Lease) -> bool:
        raise StoreUnavailableError(problem=self.words)


@given(NASTY)
async def test_what_stores_say_in_the_log(words: str) -> None:
    """Whatever the text of a store's error, the receiver's and the worker's records are one line."""
    store = Saying()
    store.words = words
    await store.put(NewDelivery(registration=await register(store), signature="s", body=body(event())))

    async def stop(_: Delivery) -> None:
        worker.stop()

    worker = Worker(store, stop, poll=1e-9)
    with Records() as messages:
        await Receiver(store).receive(ENDPOINT, HANDSHAKE, b"")
        await worker.run()
    said = " ".join(messages)
    assert "claiming deliveries failed" in said
    assert "result not recorded" in said


@given(LABELS)
async def test_labels_in_the_log(label: str) -> None:
    """Whatever label and gid a webhook has, the receiver's and the worker's records are one line."""
    store = MemoryStore()
    id = await register(store, label=label, gid=label)
    await store.put(NewDelivery(registration=id, signature="s", body=body(event())))

    async def fail(_: Delivery) -> None:
        raise LookupError

    with Records():
        await Receiver(store).receive(REGISTERED, [], b"")
        await Worker(store, fail, attempts=1).drain()


@given(NASTY)
async def test_what_handlers_and_events_say_in_the_log(words: str) -> None:
    """A handler's error is told in its traceback alone, and an event's text is told nowhere."""
    store = MemoryStore()
    id = await register(store)
    bodies = [
        body(event(action=words)),
        body({words: words}),
        json.dumps({"events": words}).encode(),
        b'"\xff' + words.encode("utf-8", "replace") + b'"',
    ]
    for number, content in enumerate(bodies):
        await store.put(NewDelivery(registration=id, signature=f"{number}", body=content))

    async def fail(_: Delivery) -> None:
        raise LookupError(words)

    with Records() as messages:
        await Worker(store, fail, attempts=1).drain()
    assert len([message for message in messages if "unreadable" in message]) >= 2


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


def test_every_log_call_quotes_texts() -> None:
    """In a format of the rooms below ``%s`` stands only for one of a few words; other texts are quoted and cut.

    ``%.12s`` is the beginning of a hash.
    """
    package = Path(wire.__file__).parent
    files = [file for room in ("store", "receiver", "worker") for file in (package / room).rglob("*.py")]
    calls = [call for file in files for call in LOG_CALL.findall(file.read_text())]

    assert len(calls) >= 13
    assert [call for call in calls if "%s" in call and "result" not in call] == []
