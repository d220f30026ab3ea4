"""The receiver: looks up the registration, asks `protocol` what the request means, stores, and replies."""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, Mapping
from types import MappingProxyType
from typing import Final, Self

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import AsanaError, ConfigurationError, StoreFullError
from asana_webhooks.receiver.body import Body, BodyReader
from asana_webhooks.receiver.health import HealthCheck, health_reply
from asana_webhooks.receiver.pending import PendingDeliveries
from asana_webhooks.receiver.protocol import (
    MAX_BODY,
    Handshake,
    Headers,
    HookHeaders,
    ReceiveResult,
    RefusedError,
    Reply,
    is_heartbeat,
    read_headers,
)
from asana_webhooks.store.base import (
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    Store,
    registration_id,
)

__all__ = ["Receiver", "Reply"]

_ENDPOINT: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")

_DONE: Final = Reply(status=200)

_GRAVE: Final = {ReceiveResult.TOO_LONG, ReceiveResult.FULL, ReceiveResult.UNAVAILABLE, ReceiveResult.LATE}

_log = logging.getLogger(__name__)


class RegistrationCache:
    """The confirmed registrations a receiver has seen, secrets included; the least recently used go first.

    A confirmed registration never changes its secret; it can only end, and perhaps has. So this is good for verifying a
    delivery, and for nothing else: the store decides in `Store.put` whether the registration still stands. Whatever
    cannot be verified with it is for the store to judge.

    Args:
        size: how many it remembers. Each takes about a kilobyte.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._found: OrderedDict[str, Registration] = OrderedDict()

    def get(self, id: str) -> Registration | None:
        """Return what was seen under this id last, if it is remembered."""
        found = self._found.get(id)
        if found is not None:
            self._found.move_to_end(id)
        return found

    def add(self, found: Registration) -> None:
        """Remember what the store has found, if it is confirmed; else forget it."""
        self.forget(found.id)
        if found.state is RegistrationState.CONFIRMED:
            self._found[found.id] = found
            if len(self._found) > self._size:
                self._found.popitem(last=False)

    def forget(self, id: str) -> None:
        """Have the store asked the next time."""
        self._found.pop(id, None)


class Receiver:
    """Answers Asana's handshakes and deliveries for every registration of a store; knows no web framework.

    The doors `asana_webhooks.receiver.web` (aiohttp) and `asana_webhooks.receiver.asgi` put it on a port. One receiver
    serves any number of requests at once; several, in several processes, may share a store.

    It remembers the secrets of up to 10,000 confirmed registrations, and the store is not asked for these again to
    verify a delivery. A registration that has ended, here or in another process, takes no more deliveries all the same,
    for the store looks again in the transaction that would keep one; whatever is not verified, and every heartbeat, is
    answered by what the store says at that moment. These secrets stay in its memory as long as it does, and a request
    for a registration that has ended may be read before it is refused.

    A delivery is answered 200 only after the store has committed it. What cannot be verified is answered 401, always
    with the same empty body; what cannot be stored in time, or at once if too much is waiting already, 503, and Asana
    sends it again. Every refusal is one line in the log, with ``extra`` fields for those who log structures:
    ``asana_status``, ``asana_outcome`` and ``asana_registration``.

    To end a service: `aclose`, then the server, then the store, so that what runs can finish.

    Args:
        store: where registrations are looked up and deliveries kept.
        max_body: bytes a body may have; more is 413.
        max_unproven: bytes that all bodies which are still being read may have together; more is 503. Anyone can send
            those. One that is here with its head, as the aiohttp door hands over up to 64 KiB, is not counted.
        max_pending: how many requests may be under way, those included whose deliveries the store is still writing;
            more is 503 at once.
        max_pending_bytes: how many bytes verified bodies may have together until they are stored.
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
        max_pending: int = 10_000,
        max_pending_bytes: int = 64 * 1024 * 1024,
        # Timeouts
        body_timeout: float = 5.0,
        timeout: float = 8.0,
    ) -> None:
        self._store = store
        self._max_body = check_count("max_body", max_body)
        self._reader = BodyReader(
            max_body=max_body,
            max_unproven=check_count("max_unproven", max_unproven),
            timeout=check_seconds("body_timeout", body_timeout, zero=False),
        )
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._max_pending = check_count("max_pending", max_pending)
        self._pending = PendingDeliveries(
            store,
            max_deliveries=max_pending,
            max_bytes=check_count("max_pending_bytes", max_pending_bytes),
            timeout=timeout,
        )
        if max_body > min(max_unproven, max_pending_bytes):
            raise ConfigurationError("max_body must not be more than max_unproven or max_pending_bytes")
        self._cache = RegistrationCache()
        self._health = HealthCheck(store)
        self._counts: dict[str, int] = dict.fromkeys(ReceiveResult, 0)
        self._counts_view = MappingProxyType(self._counts)
        self._stopped_at: float | None = None
        self._under_way = 0
        self._idle = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests ended in which way since this receiver was made; for metrics. A live view.

        The keys are the values of `asana_webhooks.receiver.protocol.ReceiveResult`, all of them from the start. A
        request whose answer was cancelled counts nowhere.
        """
        return self._counts_view

    def stop(self) -> None:
        """Take no more requests: new ones are answered 503 at once, and those under way may finish.

        Safe to call from a signal handler of the loop, and twice; a stopped receiver stays stopped.
        """
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()

    async def aclose(self) -> None:
        """Stop, and wait for what is under way, until *timeout* seconds after the stop at most.

        What could not be stored by then was not acknowledged, so Asana sends it again. The store is left open. Closing
        twice is fine. Cancelling this leaves the rest under way.
        """
        self.stop()
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()  # each request ends within its own time
        stopped_for = time.monotonic() - (self._stopped_at or 0.0)
        late = await self._pending.drain(max(0.0, self._timeout - stopped_for))
        if late:
            _log.warning("%d deliveries could not be stored before the end; Asana sends them again", late)
        await self._health.aclose()

    async def health(self) -> Reply:
        """Answer whoever asks whether this receiver can take deliveries: 200, or 503, with what is known as JSON.

        The doors give it to a load balancer with ``health=True``. The store is asked at most once a second, however
        many want to know, and waited for two seconds. The store writes to find out.
        """
        is_stopping = self._stopped_at is not None
        health = None if is_stopping else await self._health.ask()
        return health_reply(health, stopping=is_stopping)

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
        id = registration_id(endpoint)
        self._under_way += 1
        try:
            self._let_in(endpoint)
            hook_headers, content = HookHeaders.of(headers), Body(body, self._reader)
            if content.is_here:  # verifying awaits nothing then, and pending deliveries have a timeout of their own
                delivery = await self._verify_cached(id, hook_headers, content)
                if delivery is not None:
                    # What waits for the disk is all the garbage collector finds: with this, and no coroutine more than
                    # needed, it looks a quarter as often while 50 are under way, and p99 falls by a fifth.
                    del hook_headers, content
                    return self._acknowledge(delivery, await self._pending.put(delivery))
            async with asyncio.timeout(self._timeout):
                return await self._answer(id, hook_headers, content)
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            return self._refuse(error, id)  # the store's own
        except Exception as error:  # noqa: BLE001 - whatever a store does, Asana should send again
            return self._refuse(error, id)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _refuse(self, error: BaseException, registration: str) -> Reply:
        problem = ""
        if isinstance(error, RefusedError):
            result = error.result
        elif isinstance(error, TimeoutError):
            result = ReceiveResult.LATE
        else:
            result = ReceiveResult.FULL if isinstance(error, StoreFullError) else ReceiveResult.UNAVAILABLE
            # Only our own texts are known to hold no secret.
            problem = str(error) if isinstance(error, AsanaError) else type(error).__name__
        self._counts[result] += 1
        _log.log(
            # These may concern a true delivery, and cost the webhook after 24 hours.
            logging.ERROR if result in _GRAVE else logging.WARNING,
            "refused with %d: %.200r (registration %.12s)",
            result.status,
            f"{result}: {problem}" if problem else str(result),
            registration,
            extra={"asana_status": result.status, "asana_outcome": str(result), "asana_registration": registration},
        )
        if result.status != 503:
            return Reply(status=result.status, close=True)
        is_final = result in {ReceiveResult.STOPPING, ReceiveResult.CROWDED}
        return Reply(status=503, body=result.encode(), close=is_final)

    def _let_in(self, endpoint: str) -> None:
        if self._stopped_at is not None:
            raise RefusedError(ReceiveResult.STOPPING)
        if self._under_way > self._max_pending:
            raise RefusedError(ReceiveResult.CROWDED)
        if not _ENDPOINT.fullmatch(endpoint):
            raise RefusedError(ReceiveResult.UNKNOWN)

    async def _answer(self, id: str, headers: HookHeaders, body: Body) -> Reply:
        delivery = None if body.is_here else await self._verify_cached(id, headers, body)
        if delivery is None:
            meaning = await self._interpret(await self._find(id), headers, body)
            if isinstance(meaning, Handshake):
                return await self._accept_handshake(id, meaning)
            if is_heartbeat(meaning.body):
                return await self._accept_heartbeat(meaning)
            delivery = meaning
        return self._acknowledge(delivery, await self._pending.put(delivery))

    async def _verify_cached(self, id: str, headers: HookHeaders, body: Body) -> NewDelivery | None:
        """Verify a delivery with the cached registration; ``None``: the store must be asked what to answer.

        It must be for every refusal, which is another one if the registration has ended, and for heartbeats, whose
        200 tells Asana that it still stands. For the rest `Store.put` looks itself.
        """
        known = self._cache.get(id)
        if known is None:
            return None
        try:
            meaning = await self._interpret(known, headers, body)
        except RefusedError:
            return None
        return None if isinstance(meaning, Handshake) or is_heartbeat(meaning.body) else meaning

    async def _find(self, id: str) -> Registration:
        found = await self._store.find(id)
        if found is None:
            self._cache.forget(id)
            raise RefusedError(ReceiveResult.UNKNOWN)
        self._cache.add(found)
        return found

    async def _interpret(self, registration: Registration, headers: HookHeaders, body: Body) -> Handshake | NewDelivery:
        meaning = read_headers(registration, headers, max_body=self._max_body)
        if isinstance(meaning, Handshake):
            return meaning
        self._pending.check_room()  # there is no use in reading what cannot be kept
        return await body.verify(registration, meaning)

    async def _accept_handshake(self, id: str, handshake: Handshake) -> Reply:
        if not await self._store.offer(id, handshake.secret):
            raise RefusedError(ReceiveResult.NOT_TAKEN)
        _log.info("handshake echoed (registration %.12s)", id)
        self._counts[ReceiveResult.ECHOED] += 1
        return Reply(status=200, headers=((b"X-Hook-Secret", handshake.secret.reveal().encode()),))

    async def _accept_heartbeat(self, heartbeat: NewDelivery) -> Reply:
        if heartbeat.candidate is None:  # until the 201 decides, nobody knows whose heartbeat it is
            await self._store.heartbeat(heartbeat.registration)
        self._counts[ReceiveResult.HEARTBEAT] += 1
        return _DONE

    def _acknowledge(self, delivery: NewDelivery, result: PutResult) -> Reply:
        if result == "refused":  # the registration ended meanwhile, or the 201 named another secret
            self._cache.forget(delivery.registration)
            raise RefusedError(ReceiveResult.CLOSED if delivery.candidate is None else ReceiveResult.FORGED)
        stored = ReceiveResult.STORED if delivery.candidate is None else ReceiveResult.QUARANTINED
        self._counts[stored if result == "stored" else ReceiveResult.DUPLICATE] += 1
        _log.debug("delivery %s, %d bytes (registration %.12s)", result, len(delivery.body), delivery.registration)
        return _DONE
