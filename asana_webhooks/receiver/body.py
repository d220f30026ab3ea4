"""The bodies of requests: read and verified once at most, in time, and within bounds, those of strangers included."""

import asyncio
from collections.abc import AsyncIterable
from typing import Final

from asana_webhooks.models import Secret
from asana_webhooks.receiver.protocol import ReceiveResult, RefusedError, Signed, check_length, verify_delivery
from asana_webhooks.store.base import NewDelivery, Registration

__all__ = ["Body", "BodyReader"]


class BodyReader:
    """Reads bodies.

    Args:
        max_body: bytes a body may have.
        max_unproven: bytes of all bodies together that are being read, chunk by chunk. One that is here with
            its head, as the aiohttp door hands over up to 64 KiB, is not counted.
        timeout: seconds a peer may take to send one.
    """

    def __init__(self, *, max_body: int, max_unproven: int, timeout: float) -> None:
        self.max_body: Final = max_body
        self._max_unproven = max_unproven
        self._timeout = timeout
        self._unproven = 0

    async def read(self, chunks: AsyncIterable[bytes]) -> bytes:
        """Put a body together; see `Body.read`."""
        read = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                async for chunk in chunks:
                    read += chunk
                    self._unproven += len(chunk)
                    check_length(len(read), max_body=self.max_body)
                    if self._unproven > self._max_unproven:
                        raise RefusedError(ReceiveResult.CROWDED)
        except TimeoutError:
            raise RefusedError(ReceiveResult.TOO_SLOW) from None
        except OSError:
            raise RefusedError(ReceiveResult.CUT_OFF) from None
        finally:
            self._unproven -= len(read)
        return bytes(read)


class Body:
    """The body of one request: whoever asks again gets the same answer. Its repr shows nothing of it.

    Args:
        content: all of it, or where it comes from, chunk by chunk.
        reader: reads what is still to come.
    """

    def __init__(self, content: bytes | AsyncIterable[bytes], reader: BodyReader) -> None:
        self.is_here: Final = isinstance(content, bytes)
        """Whether all of it was here from the start."""
        self._content = content
        self._reader = reader
        self._refused: ReceiveResult | None = None
        self._tried: Secret | None = None
        self._verified: NewDelivery | None = None
        """What it is, if the secret that was tried made its signature."""

    async def read(self) -> bytes:
        """Return it. Awaits what is still to come; cancelling that leaves a body that cannot be read any more.

        Raises:
            RefusedError: 413 too long, 408 too slow, 400 cut off, 503 too much is being read.
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
        """Read it, and check its signature, once for a confirmed secret: that holds the event loop for a long body.

        Raises:
            RefusedError: as for `read`, or 401, none of the registration's secrets made the signature.
        """
        content = await self.read()
        if registration.secret is None:
            return verify_delivery(registration, signed, content)
        if registration.secret != self._tried:
            self._tried, self._verified = registration.secret, None
            self._verified = verify_delivery(registration, signed, content)
        if self._verified is None:
            raise RefusedError(ReceiveResult.FORGED)
        return self._verified
