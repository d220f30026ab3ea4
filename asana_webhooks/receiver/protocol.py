"""What a request to a webhook's target means: a handshake, a delivery, or a refusal with its status. Decisions only.

A handshake is anonymous: anyone can send one. It is heard only while its registration is pending, and even then it
only proposes a secret; Asana's own 201 decides. A delivery counts when its signature proves it, over the raw bytes,
before anything is decoded.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import field, frozen

from asana_webhooks.models import Secret
from asana_webhooks.receiver.reply import Outcome, refusal
from asana_webhooks.receiver.signature import verify_signature
from asana_webhooks.store.base import NewDelivery, Registration, RegistrationState, candidate_id

__all__ = [
    "MAX_BODY",
    "Handshake",
    "Headers",
    "HookHeaders",
    "Signed",
    "check_length",
    "is_heartbeat",
    "prove",
    "read_headers",
]

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of a body that are accepted by default. 1,000 events of the longest kind are about 0.5 MB."""

Headers = Iterable[tuple[bytes, bytes]]
"""Raw header names and values in the order they came, as ASGI and aiohttp's ``raw_headers`` have them."""

_NAMES: Final = {b"content-encoding", b"content-length", b"transfer-encoding", b"x-hook-signature", b"x-hook-secret"}
_SECRET: Final = re.compile(r"[0-9A-Za-z_-]{16,256}")
_HEARTBEAT: Final = re.compile(rb' \{ "events" : \[ \] \} '.replace(b" ", rb"[ \t\r\n]*"))


@frozen
class Handshake:
    """A well-formed handshake for a pending registration: offer the secret to the store, and echo it if it is kept."""

    secret: Secret


@frozen
class Signed:
    """A request that claims to be a delivery: read its body, then `prove` it."""

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
        RejectedError: 404 closed registration, 415 encoded body, 413 announced body too long, 400 malformed
            handshake or both a length and chunks, 401 no usable signature.
    """
    if registration.state is RegistrationState.CLOSED:
        raise refusal(Outcome.CLOSED)
    if any(encoding.lower() not in (b"", b"identity") for encoding in headers.encodings):
        # Front ends decode silently, and the signature would be checked over other bytes than Asana signed.
        raise refusal(Outcome.ENCODED)
    if headers.lengths and headers.is_chunked:
        # Some servers believe the chunks, and a proxy in front may have believed the length.
        raise refusal(Outcome.MISFRAMED)
    for length in headers.lengths:
        check_length(int(length) if length.isdigit() and len(length) < 20 else max_body + 1, max_body=max_body)
    signatures = headers.signatures
    if headers.secrets and not signatures and registration.state is RegistrationState.PENDING:
        return Handshake(_the_secret(headers.secrets))
    if len(signatures) != 1:
        raise refusal(Outcome.AMBIGUOUS if signatures else Outcome.UNSIGNED)
    return Signed(signatures[0])


def _the_secret(secrets: Sequence[Secret]) -> Secret:
    if len(secrets) != 1 or not _SECRET.fullmatch(secrets[0].reveal()):
        raise refusal(Outcome.MALFORMED)
    return secrets[0]


def check_length(length: int, *, max_body: int) -> None:
    """Refuse a body of *length* bytes if that is more than *max_body*.

    Raises:
        RejectedError: 413.
    """
    if length > max_body:
        raise refusal(Outcome.TOO_LONG)


def prove(registration: Registration, signed: Signed, body: bytes) -> NewDelivery:
    """Check a delivery's signature; return what to store.

    While the registration is pending, the signature is tried with each candidate's secret, and the delivery is
    marked for quarantine under the one that fits.

    Raises:
        RejectedError: 401, none of the registration's secrets made the signature.
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
    raise refusal(Outcome.FORGED if secrets else Outcome.UNREADY)


def is_heartbeat(body: bytes) -> bool:
    """Tell whether a proven delivery carries no events: Asana only wants to know that somebody listens."""
    return _HEARTBEAT.fullmatch(body) is not None
