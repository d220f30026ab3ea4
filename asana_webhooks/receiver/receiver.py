"""The receiver: looks up the registration, asks `inbound` what the request means, stores, and replies."""

import asyncio
import logging
import re
from collections.abc import AsyncIterable
from typing import Final

from attrs import field, frozen

from asana_webhooks.errors import AsanaError, RejectedError
from asana_webhooks.receiver.inbound import (
    MAX_BODY,
    Handshake,
    Headers,
    HookHeaders,
    check_length,
    is_heartbeat,
    prove,
    read_headers,
)
from asana_webhooks.store.base import NewDelivery, Registration, Store, registration_id

__all__ = ["Receiver", "Reply"]

_ENDPOINT: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Reply:
    """What to answer Asana. Its repr shows no headers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """What to send, raw: to a handshake the answer is its secret, so keep them out of logs."""
    body: bytes = b""
    """A fixed short text: Asana shows it to others as ``last_failure_content``."""
    close: bool = False
    """Whether the connection ends with this answer: what a refused peer goes on sending is not worth reading."""


class Receiver:
    """Answers Asana's handshakes and deliveries for every registration of a store; knows no web framework.

    The doors `asana_webhooks.receiver.web` (aiohttp) and `asana_webhooks.receiver.asgi` put it on a port. One receiver
    serves any number of requests at once; several, in several processes, may share a store.

    A delivery is answered 200 only after the store has committed it. What cannot be proven is answered 401, always
    with the same empty body; what cannot be stored in time 503, and Asana sends it again.

    Args:
        store: where registrations are looked up and deliveries kept.
        max_body: bytes a body may have; more is 413.
        max_unproven: bytes of all bodies under way that are not proven yet; more is 503. Anyone can send those.
        body_timeout: seconds a peer may take to send its body; more is 408.
        timeout: seconds until the answer, reading and storing together; more is 503. Asana gives up after 10.

    Source: https://developers.asana.com/docs/webhooks-guide
    """

    def __init__(
        self,
        store: Store,
        *,
        # Limits
        max_body: int = MAX_BODY,
        max_unproven: int = 64 * 1024 * 1024,
        # Timeouts
        body_timeout: float = 5.0,
        timeout: float = 8.0,
    ) -> None:
        self._store = store
        self._max_body = max_body
        self._max_unproven = max_unproven
        self._unproven = 0
        self._body_timeout = body_timeout
        self._timeout = timeout

    async def receive(self, endpoint: str, headers: Headers, body: bytes | AsyncIterable[bytes]) -> Reply:
        """Answer one POST.

        Awaits the body and the store. Cancelling it drops the answer; a delivery the store has begun to write is
        kept all the same, and Asana's next try is then a duplicate.

        Args:
            endpoint: the last segment of the request's path.
            headers: the raw headers.
            body: the raw body; chunk by chunk if it should be refused before it is read. An iterator may raise
                ``OSError`` when the peer goes away.
        """
        registration = registration_id(endpoint)
        is_possible = _ENDPOINT.fullmatch(endpoint) is not None
        try:
            hook_headers = HookHeaders.of(headers)
            del endpoint, headers  # error trackers show the locals of every frame a cancellation passes
            async with asyncio.timeout(self._timeout):
                found = await self._store.find(registration) if is_possible else None
                return await self._answer(found, hook_headers, body)
        except RejectedError as refusal:
            # A true delivery that is too long would cost the webhook after 24 hours.
            level = logging.ERROR if refusal.status == 413 else logging.WARNING
            _log.log(
                level, "refused with %d: %.200r (registration %.12s)", refusal.status, refusal.reason, registration
            )
            return Reply(status=refusal.status, close=True)
        except Exception as error:  # noqa: BLE001 - whatever a store does, Asana shall send again
            # Only our own texts are known to hold no secret.
            problem = str(error) if isinstance(error, AsanaError) else type(error).__name__
            _log.error("answered 503: %.200r (registration %.12s)", problem, registration)
            return Reply(status=503, body=b"store unavailable")

    async def _answer(
        self, registration: Registration | None, headers: HookHeaders, body: bytes | AsyncIterable[bytes]
    ) -> Reply:
        if registration is None:
            raise RejectedError(status=404, reason="unknown endpoint")
        meaning = read_headers(registration, headers, max_body=self._max_body)
        if isinstance(meaning, Handshake):
            return await self._accept_handshake(registration, meaning)
        return await self._accept_delivery(prove(registration, meaning, await self._read(body)))

    async def _accept_handshake(self, registration: Registration, handshake: Handshake) -> Reply:
        if not await self._store.offer(registration.id, handshake.secret):
            raise RejectedError(status=401, reason="handshake not taken: too late, or too many")
        _log.info("handshake echoed (registration %.12s)", registration.id)
        return Reply(status=200, headers=((b"X-Hook-Secret", handshake.secret.reveal().encode()),))

    async def _accept_delivery(self, delivery: NewDelivery) -> Reply:
        if is_heartbeat(delivery.body):
            await self._store.heartbeat(delivery.registration)
            return Reply(status=200)
        result = await self._store.put(delivery)
        if result == "refused":
            raise RejectedError(status=404, reason="the registration ended meanwhile")
        _log.debug("delivery %s, %d bytes (registration %.12s)", result, len(delivery.body), delivery.registration)
        return Reply(status=200)

    async def _read(self, body: bytes | AsyncIterable[bytes]) -> bytes:
        if isinstance(body, bytes):
            check_length(len(body), max_body=self._max_body)
            return body
        read = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                async for chunk in body:
                    read += chunk
                    self._unproven += len(chunk)
                    check_length(len(read), max_body=self._max_body)
                    if self._unproven > self._max_unproven:
                        raise RejectedError(status=503, reason="too many bytes under way")
        except TimeoutError:
            raise RejectedError(status=408, reason=f"body not sent within {self._body_timeout:g} seconds") from None
        except OSError:
            raise RejectedError(status=400, reason="body cut off") from None
        finally:
            self._unproven -= len(read)
        return bytes(read)
