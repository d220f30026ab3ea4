"""What a request to a webhook's target means: a handshake, a delivery, or a refusal with its status. Decisions only.

A handshake is anonymous: anyone can send one. It is heard only while its registration is pending, and even then it
only proposes a secret; Asana's own 201 decides. A delivery counts when its signature verifies, over the raw body,
before anything is decoded.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import enum
import re
from collections.abc import Iterable
from typing import Final, Self

from attrs import field, frozen

from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import verify_signature
from asana_webhooks.store.base import NewDelivery, Registration, RegistrationState, candidate_id

__all__ = [
    "MAX_BODY",
    "Handshake",
    "Headers",
    "HookHeaders",
    "ReceiveResult",
    "RefusedError",
    "Reply",
    "Signed",
    "check_length",
    "is_heartbeat",
    "read_headers",
    "verify_delivery",
]

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of a body that are accepted by default. 1,000 events of the longest kind are about 0.5 MB."""

Headers = Iterable[tuple[bytes, bytes]]
"""Raw header names and values in the order they came, as ASGI and aiohttp's ``raw_headers`` have them."""

_NAMES: Final = {b"content-encoding", b"content-length", b"transfer-encoding", b"x-hook-signature", b"x-hook-secret"}
_SECRET: Final = re.compile(r"[0-9A-Za-z_-]{16,256}")
_HEARTBEAT: Final = re.compile(rb' \{ "events" : \[ \] \} '.replace(b" ", rb"[ \t\r\n]*"))


@frozen(kw_only=True)
class Reply:
    """What to answer Asana. Its repr shows no headers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """What to send, raw: to a handshake the answer is its secret, so keep them out of logs."""
    body: bytes = b""
    """A fixed short text: Asana shows it to others as ``last_failure_content``."""
    close: bool = False
    """Whether the connection ends with this answer: what a refused peer goes on sending is not worth reading."""


class ReceiveResult(enum.StrEnum):
    """What became of a request: the keys of `Receiver.counts`, and the reasons in the log."""

    status: int
    """The HTTP status it is answered with; after a 503 Asana sends it again."""

    def __new__(cls, text: str, status: int) -> Self:
        """Make a member of its text and its status."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.status = status
        return member

    ECHOED = "handshake echoed", 200
    STORED = "stored", 200
    QUARANTINED = "quarantined", 200  # stored, and dropped again if the 201 names another secret
    DUPLICATE = "duplicate", 200
    HEARTBEAT = "heartbeat", 200
    UNKNOWN = "unknown endpoint", 404
    CLOSED = "closed registration", 404
    ENCODED = "encoded body", 415
    MISFRAMED = "length and chunks both", 400
    TOO_LONG = "body too long", 413
    TOO_SLOW = "body too slow", 408
    CUT_OFF = "body cut off", 400
    MALFORMED = "malformed handshake", 400
    NOT_TAKEN = "handshake too late, or one of too many", 401
    UNSIGNED = "no signature", 401
    AMBIGUOUS = "several signatures", 401
    UNREADY = "no secret yet", 401
    FORGED = "wrong signature", 401
    STOPPING = "stopping", 503
    CROWDED = "too much under way", 503
    FULL = "store full", 503
    UNAVAILABLE = "store unavailable", 503
    LATE = "not stored in time", 503


class RefusedError(Exception):
    """A request is refused. It never leaves the receiver: the peer gets the status, the log the reason."""

    def __init__(self, result: ReceiveResult) -> None:
        super().__init__(f"refused with {result.status}: {result}")
        self.result: Final = result


@frozen
class Handshake:
    """A well-formed handshake for a pending registration: offer the secret to the store, and echo it if it is kept."""

    secret: Secret


@frozen
class Signed:
    """A request that claims to be a delivery: read its body, then `verify_delivery`."""

    signature: bytes = field(repr=False)


@frozen(kw_only=True)
class HookHeaders:
    """The values of the headers that count, each as often as it came. No repr or dump of it shows a secret."""

    encodings: tuple[bytes, ...]
    lengths: tuple[bytes, ...]
    is_chunked: bool
    """Whether there is a Transfer-Encoding."""
    signatures: tuple[bytes, ...] = field(repr=False)
    secrets: tuple[Secret, ...]
    """Whatever stood there, well formed or not."""

    @classmethod
    def of(cls, headers: Headers) -> "HookHeaders":
        """Pick them out of a request's headers."""
        values: dict[bytes, list[bytes]] = {}
        for raw_name, value in headers:
            name = raw_name.lower()
            if name in _NAMES:
                values.setdefault(name, []).append(value.strip(b" \t"))
        return cls(
            encodings=tuple(values.get(b"content-encoding", ())),
            lengths=tuple(values.get(b"content-length", ())),
            is_chunked=b"transfer-encoding" in values,
            signatures=tuple(values.get(b"x-hook-signature", ())),
            secrets=tuple([Secret(value.decode("latin-1")) for value in values.get(b"x-hook-secret", ())]),
        )


def read_headers(registration: Registration, headers: HookHeaders, *, max_body: int = MAX_BODY) -> Handshake | Signed:
    """Decide what a request is, before its body is read.

    Args:
        registration: what the store knows of the endpoint.
        headers: those of the request.
        max_body: bytes a body may have.

    Raises:
        RefusedError: 404 closed registration, 415 encoded body, 413 announced body too long, 400 malformed
            handshake or both a length and chunks, 401 no usable signature.
    """
    if registration.state is RegistrationState.CLOSED:
        raise RefusedError(ReceiveResult.CLOSED)
    if any(encoding.lower() not in (b"", b"identity") for encoding in headers.encodings):
        # Front ends decode silently, and the signature would be checked over other bytes than Asana signed.
        raise RefusedError(ReceiveResult.ENCODED)
    if headers.lengths and headers.is_chunked:
        # Some servers believe the chunks, and a proxy in front may have believed the length.
        raise RefusedError(ReceiveResult.MISFRAMED)
    for length in headers.lengths:
        check_length(int(length) if length.isdigit() and len(length) < 20 else max_body + 1, max_body=max_body)
    signatures = headers.signatures
    if headers.secrets and not signatures and registration.state is RegistrationState.PENDING:
        if len(headers.secrets) != 1 or not _SECRET.fullmatch(headers.secrets[0].reveal()):
            raise RefusedError(ReceiveResult.MALFORMED)
        return Handshake(headers.secrets[0])
    if len(signatures) != 1:
        raise RefusedError(ReceiveResult.AMBIGUOUS if signatures else ReceiveResult.UNSIGNED)
    return Signed(signatures[0])


def check_length(length: int, *, max_body: int) -> None:
    """Refuse a body of *length* bytes if that is more than *max_body*.

    Raises:
        RefusedError: 413.
    """
    if length > max_body:
        raise RefusedError(ReceiveResult.TOO_LONG)


def verify_delivery(registration: Registration, signed: Signed, body: bytes) -> NewDelivery:
    """Check a delivery's signature; return what to store.

    While the registration is pending, the signature is tried with each candidate's secret, and the delivery is
    marked for quarantine under the one that fits.

    Raises:
        RefusedError: 401, none of the registration's secrets made the signature.
    """
    confirmed = registration.secret
    secrets = registration.candidates if confirmed is None else (confirmed,)
    for secret in secrets:
        if verify_signature(body, signed.signature, secret=secret):
            return NewDelivery(
                registration=registration.id,
                signature=signed.signature.decode("ascii").lower(),
                body=body,
                candidate=candidate_id(secret) if confirmed is None else None,
            )
    raise RefusedError(ReceiveResult.FORGED if secrets else ReceiveResult.UNREADY)


def is_heartbeat(body: bytes) -> bool:
    """Tell whether a verified delivery carries no events: Asana only wants to know that somebody listens."""
    return _HEARTBEAT.fullmatch(body) is not None
