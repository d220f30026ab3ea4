"""What is fuzzed: functions of any bytes, which say what must hold whatever the bytes are.

Anything a target raises is a find. `tests.fuzz.fuzzer` runs them under atheris; the plain suite runs them over the
corpus.
"""

import hashlib
import hmac
import json
import math
from datetime import UTC, datetime
from json.decoder import JSONDecoder
from json.scanner import py_make_scanner  # type: ignore[attr-defined]  # undocumented, see _Json
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from asana_webhooks.errors import PayloadError
from asana_webhooks.models import Delivery, ParsedDelivery, Secret
from asana_webhooks.receiver.protocol import (
    Handshake,
    HookHeaders,
    RefusedError,
    Signed,
    is_heartbeat,
    read_headers,
    verify_delivery,
)
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import Registration, RegistrationState, candidate_id
from asana_webhooks.wire import decode_delivery, encode

__all__ = ["bodies", "headers", "planted"]

SECRETS: Final = tuple(Secret(letter * 32) for letter in "abcd")
ID: Final = "0" * 64
DEEPEST: Final = 100
"""What nests deeper may be refused; Asana's events have five levels."""
AROUND: Final[dict[str, Any]] = {
    "id": 1,
    "registration": ID,
    "webhook_gid": "43",
    "resource": "21",
    "attempt": 1,
    "body": b"",
    "received_at": datetime(2026, 1, 2, tzinfo=UTC),
}
"""The rest of a delivery."""


def _registration(state: RegistrationState, *candidates: Secret, secret: Secret | None = None) -> Registration:
    return Registration(id=ID, resource="21", state=state, deadline=0.0, candidates=candidates, secret=secret)


REGISTRATIONS: Final = (
    _registration(RegistrationState.PENDING),
    _registration(RegistrationState.PENDING, SECRETS[0]),
    _registration(RegistrationState.PENDING, *SECRETS),
    _registration(RegistrationState.CONFIRMED, secret=SECRETS[0]),
    _registration(RegistrationState.CONFIRMED, secret=Secret("")),
    _registration(RegistrationState.CLOSED),
)
"""One of each kind, and one that no store should hold: its secret is empty."""


def headers(data: bytes) -> None:
    """Read a request as the receiver does, from its headers to its proof.

    The first byte chooses the registration, the rest of its line is free. Lines of headers follow, with percent
    escapes for what a line cannot hold, and ``<signature>`` for what no fuzzer guesses: the body's true signature, made
    with the first secret. After an empty line comes the body.
    """
    known = REGISTRATIONS[data[0] % len(REGISTRATIONS)] if data else REGISTRATIONS[0]
    head, _, body = data.partition(b"\n\n")
    signature = sign_body(body, secret=SECRETS[0]).encode()
    pairs = [_pair(line, signature) for line in head.split(b"\n")[1:]]
    try:
        meaning = read_headers(known, HookHeaders.of(pairs))
    except RefusedError as refusal:
        _check_status(refusal, {400, 401, 404, 413, 415})
        return
    assert known.state is not RegistrationState.CLOSED
    if isinstance(meaning, Handshake):
        _check_handshake(meaning, known, pairs)
    else:
        assert _values(pairs, b"x-hook-signature") == [meaning.signature]
        _check_proof(known, meaning, body)


def _pair(line: bytes, signature: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return unquote_to_bytes(name), unquote_to_bytes(value).replace(b"<signature>", signature)


def _values(pairs: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value.strip(b" \t") for name, value in pairs if name.lower() == wanted]


def _check_status(refusal: RefusedError, statuses: set[int]) -> None:
    assert refusal.result.status in statuses


def _check_handshake(handshake: Handshake, known: Registration, pairs: list[tuple[bytes, bytes]]) -> None:
    """It is echoed, so it stands in the request as it is, alone, and cannot hold a second header."""
    echoed = handshake.secret.reveal().encode()
    assert known.state is RegistrationState.PENDING
    assert _values(pairs, b"x-hook-secret") == [echoed]
    assert not _values(pairs, b"x-hook-signature")
    assert 1 <= len(echoed) <= 256
    assert all(0x21 <= byte <= 0x7E for byte in echoed)


def _check_proof(known: Registration, signed: Signed, body: bytes) -> None:
    """A signature proves if it is the one that the standard library makes of the body, and never otherwise."""
    tried = known.candidates if known.secret is None else (known.secret,)
    makers = {
        hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest(): secret
        for secret in tried
        if secret.reveal()
    }
    maker = makers.get(signed.signature.decode("latin-1").lower())
    try:
        delivery = verify_delivery(known, signed, body)
    except RefusedError as refusal:
        assert maker is None
        _check_status(refusal, {401})
        return
    assert maker is not None
    assert delivery.registration == ID
    assert delivery.body is body
    assert delivery.signature == sign_body(body, secret=maker)
    assert delivery.candidate == (candidate_id(maker) if known.secret is None else None)


def bodies(data: bytes) -> None:
    """Take a signed body as the receiver does, and read it as the worker does."""
    for known, secret in ((REGISTRATIONS[2], SECRETS[3]), (REGISTRATIONS[3], SECRETS[0])):
        assert verify_delivery(known, Signed(sign_body(data, secret=secret).encode()), data).body is data
    tree = _plain_json(data)
    if is_heartbeat(data):
        assert tree == {"events": []}
        assert decode_delivery(data) == ParsedDelivery(events=())
    try:
        parsed = decode_delivery(data)
    except PayloadError as error:
        problem = error
    else:
        _check_events(parsed, tree)
        return
    assert problem.path.startswith("$")
    assert tree is None or not problem.malformed  # what the standard library reads is no bad JSON


def _check_events(parsed: ParsedDelivery, tree: Any) -> None:
    """They are what the standard library reads, and a second writing and reading changes no fingerprint."""
    events = parsed.events
    assert Delivery(events=events, **AROUND).stale in {True, False}
    fingerprints = [event.fingerprint for event in events]
    again = decode_delivery(encode({"events": events})).events
    assert [event.fingerprint for event in again] == fingerprints
    if tree is not None:
        unreadable = [one.raw for one in parsed.unreadable]
        assert len(events) + len(unreadable) == len(tree["events"])
        shown = [event for event in tree["events"] if event not in unreadable]
        assert [(event.action, event.resource.gid) for event in events] == [
            (one["action"], one["resource"]["gid"]) for one in shown
        ]
        assert all(isinstance(one["created_at"], str) for one in shown)


def planted(data: bytes) -> None:
    """Fail for bytes that chance alone would not bring in hours: shows that the fuzzer learns, and tells its finds."""
    if data[:1] == b"F" and data[1:2] == b"I" and data[2:3] == b"N":
        assert data[3:4] != b"D", "the planted fault"


class _Json(JSONDecoder):
    """The standard library's decoder in its Python form: its branches show the fuzzer what msgspec, in C, hides."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_refuse, parse_float=_finite)
        self.scan_once = py_make_scanner(self)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_json: Final = _Json()


def _plain_json(data: bytes) -> Any:
    """Return what every decoder must be able to read; ``None`` if there may be two minds about it."""
    if b"\\u" in data or data.count(b"[") + data.count(b"{") > DEEPEST:  # lone surrogates; deep nesting
        return None
    try:
        json.loads(data)  # in C it takes no digits of other scripts, as its Python form does
        return _json.decode(data.decode())
    except ValueError:
        return None
