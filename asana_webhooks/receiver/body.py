"""Request bodies: read and verified at most once. Limits on time and size apply before verification too."""

import asyncio
from collections.abc import AsyncIterable
from typing import Final

from asana_webhooks.models import Secret
from asana_webhooks.receiver.protocol import (
    InvalidDelivery,
    ReceiveResult,
    RefusedError,
    Signed,
    check_length,
    verify_delivery,
)
from asana_webhooks.store.base import NewDelivery, Registration

__all__ = ["Body", "BodyReader"]


class BodyReader:
    """Reads bodies chunk by chunk, within limits.

    Args:
        max_body: largest body in bytes.
        max_unproven: bytes that all bodies being read may have together. A body that arrived complete with its headers
            is not counted (the aiohttp adapter: up to 64 KiB).
        timeout: seconds a peer may take to send a body.
    """

    def __init__(self, *, max_body: int, max_unproven: int, timeout: float) -> None:
        self.max_body: Final = max_body
        self._max_unproven = max_unproven
        self._timeout = timeout
        self._unproven = 0

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """Return a body, joined from its chunks. Raises as `Body.read` does."""
        read = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                async for chunk in chunks:
                    read += chunk
                    self._unproven += len(chunk)
                    check_length(len(read), max_body=self.max_body)
                    if self._unproven > self._max_unproven:
                        raise RefusedError(ReceiveResult.OVERLOADED)
        except TimeoutError:
            raise RefusedError(ReceiveResult.TOO_SLOW) from None
        except OSError:
            raise RefusedError(ReceiveResult.CUT_OFF) from None
        finally:
            self._unproven -= len(read)
        return bytes(read)


class Body:
    """The body of one request. It is read once; later calls get the same result. Its repr shows no content.

    Args:
        content: the complete body, or its chunks.
        reader: reads the chunks.
    """

    def __init__(self, content: bytes | AsyncIterable[bytes], reader: BodyReader) -> None:
        self.is_complete: Final = isinstance(content, bytes)
        """Whether the complete body was given."""
        self._content = content
        self._reader = reader
        self._refused: ReceiveResult | None = None
        self._tried: Secret | None = None
        self._verified: NewDelivery | None = None
        """The delivery, if its signature matches the secret that was tried."""

    async def read(self) -> bytes:
        """Return the body. Awaits the remaining chunks; if that is cancelled, the body can no longer be read.

        Raises:
            RefusedError: 413 too large, 408 timed out, 400 cut off, 503 too many bytes being read.
        """
        if self._refused is not None:
            raise RefusedError(self._refused)
        try:
            if isinstance(self._content, bytes):
                check_length(len(self._content), max_body=self._reader.max_body)
            else:
                self._content = await self._reader.read(self._content)
        except RefusedError as error:
            self._refused = error.result
            raise
        return self._content

    async def verify(self, registration: Registration, signed: Signed) -> NewDelivery:
        """Read the body and verify its signature.

        A confirmed secret is tried only once, because hashing a long body blocks the event loop.

        Raises:
            RefusedError: as `read`, or 401, the signature matches none of the registration's secrets.
        """
        content = await self.read()
        if registration.secret is None:
            return verify_delivery(registration, signed, content)
        if registration.secret != self._tried:
            self._tried, self._verified = registration.secret, None
            self._verified = verify_delivery(registration, signed, content)
        if self._verified is None:
            invalid = InvalidDelivery(registration=registration, signature=signed.signature, body=content)
            raise RefusedError(ReceiveResult.INVALID_SIGNATURE, invalid)
        return self._verified
