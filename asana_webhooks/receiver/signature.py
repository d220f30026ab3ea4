"""How Asana signs deliveries: HMAC-SHA256 of the raw body, keyed with the secret's text, as hex.

Source: https://developers.asana.com/docs/webhooks-guide (the text itself is the key; it is not hex-decoded)
"""

import hashlib
import hmac
import re
from typing import Final

from asana_webhooks.models import Secret

__all__ = ["sign_body", "verify_signature"]

_SIGNATURE: Final = re.compile(rb"[0-9a-fA-F]{64}")


def sign_body(body: bytes, *, secret: Secret) -> str:
    """Return the ``X-Hook-Signature`` of *body*: 64 lower-case hex digits.

    Raises:
        ValueError: the secret is empty, so anyone could make the signature.
    """
    if not secret.reveal():
        raise ValueError("the secret must not be empty: pass the webhook's X-Hook-Secret")
    return hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()


def verify_signature(body: bytes, signature: bytes, *, secret: Secret) -> bool:
    """Return whether *signature* is valid for *body*. A malformed signature is not valid; it raises no error.

    Args:
        body: the raw bytes of the request, not decoded.
        signature: the raw value of the ``X-Hook-Signature`` header.
        secret: the webhook's secret; with an empty one, no signature is valid.
    """
    if not _SIGNATURE.fullmatch(signature) or not secret.reveal():
        return False
    # Bytes, because compare_digest raises TypeError for text outside ASCII.
    return hmac.compare_digest(sign_body(body, secret=secret).encode(), signature.lower())
