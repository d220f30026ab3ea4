"""The bodies of requests: read once at most, in time, and within bounds, those of strangers together included."""

import asyncio
from collections.abc import AsyncIterable
from typing import Final

from asana_webhooks.errors import RejectedError
from asana_webhooks.receiver.inbound import check_length
from asana_webhooks.receiver.reply import Outcome, refusal

__all__ = ["Body", "Intake"]


class Intake:
    """Reads bodies.

    Args:
        max_body: bytes a body may have.
        max_unproven: bytes of all bodies together that are being read.
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
                        raise refusal(Outcome.CROWDED)
        except TimeoutError:
            raise refusal(Outcome.TOO_SLOW) from None
        except OSError:
            raise refusal(Outcome.CUT_OFF) from None
        finally:
            self._unproven -= len(read)
        return bytes(read)


class Body:
    """The body of one request: whoever asks again gets the same answer. Its repr shows nothing of it.

    Args:
        content: all of it, or where it comes from, chunk by chunk.
        intake: reads what is still to come.
    """

    def __init__(self, content: bytes | AsyncIterable[bytes], intake: Intake) -> None:
        self.is_here: Final = isinstance(content, bytes)
        """Whether all of it was here from the start."""
        self._content = content
        self._intake = intake
        self._refused: Outcome | None = None

    async def read(self) -> bytes:
        """Return it. Awaits what is still to come; cancelling that leaves a body that cannot be read any more.

        Raises:
            RejectedError: 413 too long, 408 too slow, 400 cut off, 503 too much is being read.
        """
        if self._refused is not None:
            raise refusal(self._refused)
        try:
            if isinstance(self._content, bytes):
                check_length(len(self._content), max_body=self._intake.max_body)
            else:
                self._content = await self._intake.read(self._content)
        except RejectedError as error:
            self._refused = Outcome(error.reason)
            raise
        return self._content
