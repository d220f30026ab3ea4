"""Decide whether a request to a webhook's target is a handshake, a delivery, or refused with a status. Pure functions.

A handshake is anonymous: anyone can send one. It is accepted only while its registration is pending, and it only
proposes a secret; Asana's own 201 decides. A delivery is accepted only if its signature verifies over the raw body.
That check comes before any decoding.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import enum
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, Self

from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import verify_signature
from asana_webhooks.store.base import NewDelivery, Registration, RegistrationState, candidate_id

__all__ = [
    "MAX_BODY",
    "Handshake",
    "Headers",
    "HookHeaders",
    "InvalidDelivery",
    "ReceiveResult",
    "RefusedError",
    "Reply",
    "Signed",
    "check_length",
    "is_heartbeat",
    "plain_signature",
    "read_headers",
    "verify_delivery",
]

MAX_BODY: Final = 8 * 1024 * 1024
"""The default size limit of a body, in bytes. 1,000 events of the longest kind are about 0.5 MB."""

Headers = Iterable[tuple[bytes, bytes]]
"""Raw header names and values in the order received, as in ASGI and aiohttp's ``raw_headers``."""

_NAMES: Final = {b"content-encoding", b"content-length", b"transfer-encoding", b"x-hook-signature", b"x-hook-secret"}
_SECRET: Final = re.compile(r"[!-~]{1,256}")  # visible ASCII: it can neither split a header nor lose its ends
_HEADERS: Final = 'headers must be pairs of bytes, such as [(b"X-Hook-Signature", b"…")], not a mapping or text'
_HEARTBEAT: Final = re.compile(rb' \{ "events" : \[ \] \} '.replace(b" ", rb"[ \t\r\n]*"))


@frozen(kw_only=True)
class Reply:
    """The reply to send. Its repr hides the headers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Raw. The reply to a handshake repeats its secret here, so keep headers out of logs."""
    body: bytes = b""
    """For Asana a fixed short text, shown to others as ``last_failure_content``; for `Receiver.health` JSON."""
    close: bool = False
    """Whether to close the connection after this reply instead of reading the rest of a refused request."""


class ReceiveResult(enum.StrEnum):
    """The outcome of a request: a key of `Receiver.counts`, and the reason in the log."""

    status: int
    """The HTTP status of the reply; a 503 asks Asana to resend."""

    def __new__(cls, text: str, status: int) -> Self:
        """Create a member from its text and status."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.status = status
        return member

    ECHOED = "handshake echoed", 200
    STORED = "stored", 200
    QUARANTINED = "quarantined", 200  # stored, but deleted if the 201 names another secret
    DUPLICATE = "duplicate", 200
    HEARTBEAT = "heartbeat", 200
    UNKNOWN = "unknown endpoint", 404
    CLOSED = "closed registration", 404
    ENCODED = "unsupported Content-Encoding", 415
    AMBIGUOUS_LENGTH = "both Content-Length and chunked", 400
    TOO_LARGE = "body too large", 413
    TOO_SLOW = "body timed out", 408
    CUT_OFF = "body cut off", 400
    MALFORMED = "malformed handshake", 400
    NOT_ACCEPTED = "handshake too late, or too many", 401  # no longer pending, or 4 candidates already
    UNSIGNED = "no signature", 401
    SEVERAL_SIGNATURES = "several signatures", 401
    NO_SECRET = "no secret yet", 401
    INVALID_SIGNATURE = "invalid signature", 401
    STOPPING = "stopping", 503
    OVERLOADED = "too many requests or bytes in flight", 503
    FULL = "store full", 503
    UNAVAILABLE = "store unavailable", 503
    LATE = "not stored in time", 503


@frozen(kw_only=True)
class InvalidDelivery:
    """A delivery whose signature is invalid, for the log to explain. Its repr shows neither signature nor body."""

    registration: Registration
    signature: bytes = field(repr=False)
    body: bytes = field(repr=False)
    """Empty if the body has been freed."""
    length: int
    """That of the body, in bytes."""


class RefusedError(Exception):
    """A request is refused. The receiver catches this, replies with the status, and logs the reason."""

    def __init__(
        self,
        result: ReceiveResult,
        delivery: InvalidDelivery | None = None,
        *,
        registration: Registration | None = None,
    ) -> None:
        super().__init__(f"refused with {result.status}: {result}")
        self.result: Final = result
        self.delivery: Final = delivery
        self.registration = registration
        """What the request was for, as far as it is known; for the log."""


@frozen
class Handshake:
    """A well-formed handshake for a pending registration. Echo its secret only if `Store.add_candidate` accepts it."""

    secret: Secret


@frozen
class Signed:
    """A request with one signature: read its body, then call `verify_delivery`."""

    signature: bytes = field(repr=False)


@frozen(kw_only=True)
class HookHeaders:
    """All values of the relevant headers, repeated ones included. No repr or dump of it shows a secret."""

    encodings: tuple[bytes, ...]
    lengths: tuple[bytes, ...]
    is_chunked: bool
    """Whether there is a Transfer-Encoding header."""
    signatures: tuple[bytes, ...] = field(repr=False)
    secrets: tuple[Secret, ...]
    """Every X-Hook-Secret, well formed or not."""

    @property
    def length(self) -> float:
        """The largest Content-Length in bytes: 0 without one, infinite if one is malformed."""
        return max(map(_length, self.lengths), default=0)

    @classmethod
    def of(cls, headers: Headers) -> "HookHeaders":
        """Extract the relevant headers of a request.

        Raises:
            ConfigurationError: *headers* is not pairs of bytes.
        """
        values: dict[bytes, list[bytes]] = {}
        try:
            for raw_name, value in headers:
                name = bytes.lower(raw_name)  # a TypeError if it is text, which raw_name.lower() would not raise
                if name in _NAMES:
                    values.setdefault(name, []).append(bytes.strip(value, b" \t"))
        except (TypeError, ValueError):  # ValueError: not pairs
            raise ConfigurationError(_HEADERS) from None
        if not values and isinstance(headers, Mapping):  # an empty one
            raise ConfigurationError(_HEADERS)
        return cls(
            encodings=tuple(values.get(b"content-encoding", ())),
            lengths=tuple(values.get(b"content-length", ())),
            is_chunked=b"transfer-encoding" in values,
            signatures=tuple(values.get(b"x-hook-signature", ())),
            secrets=tuple([Secret(value.decode("latin-1")) for value in values.get(b"x-hook-secret", ())]),
        )


def _length(text: bytes) -> float:
    return int(text) if text.isdigit() and len(text) < 20 else math.inf


def read_headers(registration: Registration, headers: HookHeaders, *, max_body: int = MAX_BODY) -> Handshake | Signed:
    """Return whether a request is a handshake or a delivery, before its body is read.

    Args:
        registration: the store's record of the endpoint.
        headers: the request's headers.
        max_body: the largest body allowed, in bytes.

    Raises:
        RefusedError: 404 closed registration, 415 unsupported Content-Encoding, 413 Content-Length too large or
            malformed, 400 malformed handshake or both Content-Length and chunked, 401 no signature or several.
    """
    if registration.state is RegistrationState.CLOSED:
        raise RefusedError(ReceiveResult.CLOSED)
    if headers.encodings and not {b"", b"identity"}.issuperset(map(bytes.lower, headers.encodings)):
        # Servers may decode silently. The signature would then be checked over other bytes than Asana signed.
        raise RefusedError(ReceiveResult.ENCODED)
    if headers.lengths and headers.is_chunked:
        # Request smuggling: a proxy in front may use the length while the server uses the chunks.
        raise RefusedError(ReceiveResult.AMBIGUOUS_LENGTH)
    check_length(headers.length, max_body=max_body)
    signatures = headers.signatures
    if headers.secrets and not signatures and registration.state is RegistrationState.PENDING:
        if len(headers.secrets) != 1 or not _SECRET.fullmatch(headers.secrets[0].reveal()):
            raise RefusedError(ReceiveResult.MALFORMED)
        return Handshake(headers.secrets[0])
    if len(signatures) != 1:
        raise RefusedError(ReceiveResult.SEVERAL_SIGNATURES if signatures else ReceiveResult.UNSIGNED)
    return Signed(signatures[0])


def plain_signature(headers: Headers, *, max_body: int = MAX_BODY) -> Signed | None:
    """Return what `read_headers` would for a confirmed registration if nothing about the headers is unusual.

    That is a tenth of a delivery cheaper. ``None``: let `HookHeaders.of` and `read_headers` decide.

    Args:
        headers: the raw headers, as pairs of bytes.
        max_body: the largest body allowed, in bytes.
    """
    if not isinstance(headers, list | tuple):
        return None
    signature = None
    try:
        for raw_name, value in headers:
            name = bytes.lower(raw_name)
            if name not in _NAMES:
                continue
            if name == b"x-hook-signature" and signature is None:
                signature = bytes.strip(value, b" \t")
            elif name != b"content-length" or _length(bytes.strip(value, b" \t")) > max_body:
                return None
    except (TypeError, ValueError):
        return None
    return None if signature is None else Signed(signature)


def check_length(length: float, *, max_body: int) -> None:
    """Refuse a body of more than *max_body* bytes.

    Raises:
        RefusedError: 413.
    """
    if length > max_body:
        raise RefusedError(ReceiveResult.TOO_LARGE)


def verify_delivery(registration: Registration, signed: Signed, body: bytes) -> NewDelivery:
    """Verify a signature and return the delivery to store.

    While the registration is pending, each candidate's secret is tried. The delivery is marked for quarantine under
    the one that matches.

    Raises:
        RefusedError: 401, the signature matches none of the registration's secrets.
    """
    confirmed = registration.secret
    secrets = registration.candidates if confirmed is None else (confirmed,)
    for secret in secrets:
        # `verify_signature` raises for an empty secret. Only a broken store can hold one: refuse the delivery instead.
        if secret.reveal() and verify_signature(body, signed.signature, secret=secret):
            return NewDelivery(
                registration=registration.id,
                signature=signed.signature.decode("ascii").lower(),
                body=body,
                candidate=candidate_id(secret) if confirmed is None else None,
            )
    if not secrets:
        raise RefusedError(ReceiveResult.NO_SECRET)
    invalid = InvalidDelivery(registration=registration, signature=signed.signature, body=body, length=len(body))
    raise RefusedError(ReceiveResult.INVALID_SIGNATURE, invalid)


def is_heartbeat(body: bytes) -> bool:
    """Return whether a verified delivery is a heartbeat: it contains no events."""
    return _HEARTBEAT.fullmatch(body) is not None
