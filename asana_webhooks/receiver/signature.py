"""How Asana signs deliveries, how to verify and read one without a store, and why a signature may be wrong.

A signature is the HMAC-SHA256 of the raw body, keyed with the secret's text, as hex. The functions take text or bytes,
as web frameworks and environment variables provide them. They raise `ConfigurationError` for the caller's mistakes: a
wrong type, an empty secret, or text that UTF-8 cannot encode.

Source: https://developers.asana.com/docs/webhooks-guide (the text itself is the key; it is not hex-decoded)
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import product
from typing import Any, Final

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError, InvalidSignatureError
from asana_webhooks.models import ParsedDelivery, Secret

__all__ = ["explain_signature", "parse_delivery", "sign_body", "verify_signature"]

_SIGNATURE: Final = re.compile(rb"[0-9a-fA-F]{64}")

_MISMATCH: Final = "the signature does not match the body"

_Bytes = bytes | bytearray | memoryview
_BODY: Final = "body must be the raw body of the request, before anything decodes it, as bytes or text"
_HEADER: Final = "signature must be the value of the X-Hook-Signature header as text or bytes, or None if it is missing"
_SECRET: Final = "secret must be the webhook's X-Hook-Secret as a str, bytes or a Secret"  # noqa: S105 (a message)


def parse_delivery(
    body: str | _Bytes, signature: str | _Bytes | None, *, secret: str | bytes | Secret
) -> ParsedDelivery:
    """Verify a delivery and return its events, without a store.

    ::

        delivery = parse_delivery(request.get_data(), request.headers.get("X-Hook-Signature"), secret=secret)
        for event in delivery.events:
            print(event.action, event.resource.gid)

    A heartbeat is a delivery without events.

    Args:
        body: the raw body, before anything decodes it; text is encoded as UTF-8.
        signature: the value of the ``X-Hook-Signature`` header, ``None`` if the request has none.
        secret: the webhook's secret: `CreatedWebhook.secret`, or the ``X-Hook-Secret`` of its handshake.

    Raises:
        InvalidSignatureError: the signature is missing or wrong; answer 401.
        PayloadError: the body is signed, but is not JSON or has no list of events.
        ConfigurationError: an argument has the wrong type or cannot be encoded, or the secret is empty.

    Source: https://developers.asana.com/docs/webhooks-guide
    """
    content = _bytes(_BODY, body)
    problem = _problem(content, signature, secret)
    if problem:
        raise InvalidSignatureError(
            f"{problem}. Check that the body is the raw one, before anything decodes it, and that the secret is the "
            "one of this webhook. If both are right, the request is not Asana's."
        )
    return wire.decode_delivery(content)


def verify_signature(body: str | _Bytes, signature: str | _Bytes | None, *, secret: str | bytes | Secret) -> bool:
    """Return whether *signature* is valid for *body*. A missing or malformed signature is not valid.

    Args:
        body: the raw body, before anything decodes it; text is encoded as UTF-8.
        signature: the value of the ``X-Hook-Signature`` header, ``None`` if the request has none.
        secret: the webhook's secret.

    Raises:
        ConfigurationError: an argument has the wrong type or cannot be encoded, or the secret is empty.
    """
    return not _problem(_bytes(_BODY, body), signature, secret)


def sign_body(body: str | _Bytes, *, secret: str | bytes | Secret) -> str:
    """Return the ``X-Hook-Signature`` of *body*: 64 lower-case hex digits.

    Args:
        body: the body to sign; text is encoded as UTF-8.
        secret: the webhook's secret.

    Raises:
        ConfigurationError: an argument has the wrong type or cannot be encoded, or the secret is empty.
    """
    return hmac.new(_key(secret), _bytes(_BODY, body), hashlib.sha256).hexdigest()


def explain_signature(
    body: str | _Bytes,
    signature: str | _Bytes | None,
    *,
    secret: str | bytes | Secret,
    others: Mapping[str, Secret] | None = None,
) -> str:
    """Return the likely cause why *signature* is not valid for *body*; an empty string if it is valid or none is found.

    ::

        >>> explain_signature(body, signature, secret=secret, others={"43214": other.secret})
        'it was signed with the secret of webhook 43214; two webhooks or their URLs are mixed up'

    It finds a signature made with another known secret, a last newline that was added or removed on the way, JSON that
    was parsed and written anew on the way, and a secret that the signer decoded from hex. The result contains nothing
    of the arguments but a webhook's gid. It hashes the body once for each secret and about ten times more.

    Args:
        body: the raw body, as it arrived; text is encoded as UTF-8.
        signature: the value of the ``X-Hook-Signature`` header, ``None`` if the request has none.
        secret: the secret of the webhook that the delivery came for.
        others: the secrets of other webhooks, by the webhook's gid.

    Raises:
        ConfigurationError: an argument has the wrong type or cannot be encoded, or *secret* is empty.
    """
    content = _bytes(_BODY, body)
    problem = _problem(content, signature, secret)
    if problem != _MISMATCH or signature is None:
        return problem
    given = signature.encode() if isinstance(signature, str) else bytes(signature)
    for cause, key, original in _suspects(content, secret, others or {}):
        if _fits(key, original, given):
            return cause
    return ""


def _suspects(
    body: bytes, secret: str | bytes | Secret, others: Mapping[str, Secret]
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield likely causes, with the key and the body that the signer had if it is the true one."""
    key = _key(secret)
    for gid, other in others.items():
        mixed_up = f"it was signed with the secret of webhook {gid}; two webhooks or their URLs are mixed up"
        yield mixed_up, other.reveal().encode(), body
    for newline in (b"\r\n", b"\n"):
        yield "a last newline of the body was removed on the way", key, body + newline
        if body.endswith(newline):
            yield "a last newline was added to the body on the way", key, body.removesuffix(newline)
    if re.fullmatch(rb"(?:[0-9a-fA-F]{2})+", key):
        decoded = "the signer decoded the secret from hex, but the key is the secret's text itself"
        yield decoded, bytes.fromhex(key.decode()), body
    for form in _json_forms(body):
        yield "a proxy or framework parsed the body on the way and wrote its JSON anew; keep the raw bytes", key, form


def _json_forms(body: bytes) -> Iterable[bytes]:
    """Return the usual ways to write the JSON of *body*; none if it is not JSON."""
    forms: dict[str, None] = {}
    # Deep nesting raises RecursionError, and a number of thousands of digits ValueError.
    with suppress(ValueError, RecursionError):
        tree = json.loads(body)
        for escape, separators in product((False, True), ((",", ":"), (", ", ": "))):
            text = json.dumps(tree, ensure_ascii=escape, separators=separators)
            forms |= {text: None, text.replace("/", "\\/"): None}  # PHP escapes slashes
    return [form.encode(errors="surrogatepass") for form in forms]


def _problem(body: bytes, signature: str | _Bytes | None, secret: str | bytes | Secret) -> str:
    """Return what is wrong with *signature*, or an empty string."""
    # A character outside ASCII becomes a question mark, which is no hex digit.
    given = signature.encode("ascii", "replace") if isinstance(signature, str) else signature
    given = b"" if given is None else _bytes(_HEADER, given)
    key = _key(secret)  # from here on nothing is raised: error trackers show local variables
    if not given:
        return "the request has no X-Hook-Signature"
    if not _SIGNATURE.fullmatch(given):
        return "the signature is not 64 hex digits"
    return "" if _fits(key, body, given) else _MISMATCH


def _fits(key: bytes, body: bytes, signature: bytes) -> bool:
    # Bytes, because compare_digest raises TypeError for text outside ASCII.
    true = hmac.digest(key, body, "sha256").hex().encode()
    return hmac.compare_digest(true, signature.lower())


def _key(secret: str | bytes | Secret) -> bytes:
    key = _bytes(_SECRET, secret.reveal() if isinstance(secret, Secret) else secret)
    if not key:
        raise ConfigurationError("secret must not be empty: anyone can sign with an empty key")
    return key


def _bytes(rule: str, value: Any) -> bytes:
    """Return *value* as bytes; *rule* says what it must be."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str | bytearray | memoryview):
        raise ConfigurationError(f"{rule}, not {type(value).__name__}")
    try:
        return value.encode() if isinstance(value, str) else bytes(value)
    except ValueError:  # its text may show the secret, so do not chain it
        problem = "has a lone surrogate" if isinstance(value, str) else "was released"
    raise ConfigurationError(f"{rule}; this {type(value).__name__} {problem}")
