"""What every peer does with a delivery first."""

import hashlib
import hmac
from typing import Final

from benchmarks.bodies import SECRET

__all__ = ["is_signed"]

_KEY: Final = SECRET.encode()


def is_signed(body: bytes, signature: str) -> bool:
    return hmac.compare_digest(hmac.new(_KEY, body, hashlib.sha256).hexdigest(), signature)
