"""How Asana signs deliveries, and how to verify and read one without a store.

A signature is the HMAC-SHA256 of the raw body, keyed with the secret's text, as hex. The three functions take text
or bytes, as web frameworks and environment variables provide them. They raise `ConfigurationError` for the caller's
mistakes: a wrong type, an empty secret, or text that UTF-8 cannot encode.

Source: https://developers.asana.com/docs/webhooks-guide (the text itself is the key; it is not hex-decoded)
"""

import hashlib
import hmac
import re
from typing import Any, Final

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError, InvalidSignatureError
from asana_webhooks.models import ParsedDelivery, Secret

__all__ = ["parse_delivery", "sign_body", "verify_signature"]

_SIGNATURE: Final = re.compile(rb"[0-9a-fA-F]{64}")

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
    # Bytes, because compare_digest raises TypeError for text outside ASCII.
    true = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return "" if hmac.compare_digest(true, given.lower()) else "the signature does not match the body"


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
