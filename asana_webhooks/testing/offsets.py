"""The offsets of pages: tokens like Asana's, which are JSON Web Tokens that live for fifteen minutes.

A token names the last record of the page, not a number of records, so it goes on at the right place whatever was
deleted in between. Source: https://developers.asana.com/docs/pagination
"""

import base64
import binascii
import hashlib
import hmac
from datetime import datetime, timedelta

from attrs import frozen

from asana_webhooks import wire
from asana_webhooks.testing.answers import ApiError

__all__ = ["OFFSET_LIFETIME", "read_offset", "write_offset"]

OFFSET_LIFETIME = timedelta(seconds=900)
"""How long an offset is good for."""


@frozen(kw_only=True)
class _Claims:
    after: int
    list_of: list[str]
    iat: float
    exp: float


def write_offset(*, after: int, list_of: list[str], now: datetime, key: bytes) -> str:
    """Make the token of the page that begins behind the record numbered *after*.

    Args:
        after: the number of the last record of this page.
        list_of: what the list was asked for (workspace and resource): a token is good for the same list only.
        now: when the page is answered.
        key: what the token is signed with.
    """
    claims = _Claims(after=after, list_of=list_of, iat=now.timestamp(), exp=(now + OFFSET_LIFETIME).timestamp())
    signed = f"{_text(wire.encode({'typ': 'JWT', 'alg': 'HS256'}))}.{_text(wire.encode(claims))}"
    return f"{signed}.{_signature(signed, key)}"


def read_offset(token: str, *, list_of: list[str], now: datetime, key: bytes) -> int:
    """Read the number of the record behind which the page begins.

    Raises:
        ApiError: 400, the token is not one of ours for this list, or is too old.
    """
    signed, _, signature = token.rpartition(".")
    if not hmac.compare_digest(_signature(signed, key).encode(), signature.encode(errors="replace")):
        raise ApiError(400, "offset: Your pagination token is invalid.")
    claims = wire.decode(_bytes(signed.rpartition(".")[2]), _Claims)
    if claims.list_of != list_of:
        raise ApiError(400, "offset: Your pagination token is invalid.")
    if now.timestamp() >= claims.exp:
        raise ApiError(400, "offset: Your pagination token has expired.")
    return claims.after


def _signature(signed: str, key: bytes) -> str:
    return _text(hmac.digest(key, signed.encode(errors="replace"), hashlib.sha256))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==")
