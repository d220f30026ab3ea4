"""The receiver: looks up the registration, asks `inbound` what the request means, stores, and replies."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

from asana_webhooks._checks import check_count, check_seconds
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import AsanaError, ConfigurationError, RejectedError, StoreFullError
from asana_webhooks.receiver.body import Body, Intake
from asana_webhooks.receiver.health import HealthCheck, health_reply
from asana_webhooks.receiver.known import KnownRegistrations
from asana_webhooks.receiver.pending import HandOff
from asana_webhooks.receiver.protocol import (
    MAX_BODY,
    Handshake,
    Headers,
    HookHeaders,
    is_heartbeat,
    read_headers,
)
from asana_webhooks.receiver.reply import Outcome, Reply, refusal
from asana_webhooks.store.base import NewDelivery, PutResult, Registration, Store, registration_id

__all__ = ["Receiver", "Reply"]

_ENDPOINT: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")

_DONE: Final = Reply(status=200)

_GRAVE: Final = {Outcome.TOO_LONG, Outcome.FULL, Outcome.UNAVAILABLE, Outcome.LATE}

_log = logging.getLogger(__name__)


class Receiver:
    """Answers Asana's handshakes and deliveries for every registration of a store; knows no web framework.

    The doors `asana_webhooks.receiver.web` (aiohttp) and `asana_webhooks.receiver.asgi` put it on a port. One receiver
    serves any number of requests at once; several, in several processes, may share a store.

    It remembers the secrets of up to 10,000 confirmed registrations, and the store is not asked for these again to
    prove a delivery. A registration that has ended, here or in another process, takes no more deliveries all the same,
    for the store looks again in the transaction that would keep one; whatever is not proven, and every heartbeat, is
    answered by what the store says at that moment. These secrets stay in its memory as long as it does, and a request
    for a registration that has ended may be read before it is refused.

    A delivery is answered 200 only after the store has committed it. What cannot be proven is answered 401, always
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
        max_pending_bytes: how many bytes proven bodies may have together until they are stored.
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
        self._intake = Intake(
            max_body=max_body,
            max_unproven=check_count("max_unproven", max_unproven),
            timeout=check_seconds("body_timeout", body_timeout, zero=False),
        )
        self._timeout = check_seconds("timeout", timeout, zero=False)
        self._max_pending = check_count("max_pending", max_pending)
        self._handoff = HandOff(
            store,
            max_deliveries=max_pending,
            max_bytes=check_count("max_pending_bytes", max_pending_bytes),
            timeout=timeout,
        )
        if max_body > min(max_unproven, max_pending_bytes):
            raise ConfigurationError("max_body must not be more than max_unproven or max_pending_bytes")
        self._known = KnownRegistrations()
        self._check = HealthCheck(store)
        self._counts: dict[str, int] = dict.fromkeys(Outcome, 0)
        self._seen = MappingProxyType(self._counts)
        self._stopped_at: float | None = None
        self._under_way = 0
        self._idle = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests ended in which way since this receiver was made; for metrics. A live view.

        The keys are the values of `asana_webhooks.receiver.reply.Outcome`, all of them from the start. A request whose
        answer was cancelled counts nowhere.
        """
        return self._seen

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
        late = await self._handoff.empty(max(0.0, self._timeout - stopped_for))
        if late:
            _log.warning("%d deliveries could not be stored before the end; Asana sends them again", late)
        await self._check.aclose()

    async def health(self) -> Reply:
        """Answer whoever asks whether this receiver can take deliveries: 200, or 503, with what is known as JSON.

        The doors give it to a load balancer with ``health=True``. The store is asked at most once a second, however
        many want to know, and waited for two seconds. The store writes to find out.
        """
        is_stopping = self._stopped_at is not None
        health = None if is_stopping else await self._check.ask()
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
        is_possible = _ENDPOINT.fullmatch(endpoint) is not None
        self._under_way += 1
        try:
            hook_headers, content = HookHeaders.of(headers), Body(body, self._intake)
            del endpoint, headers, body  # error trackers show the locals of every frame a cancellation passes
            self._let_in(is_possible=is_possible)
            if content.is_here:  # then recognizing waits for nothing, and handing off has a time of its own
                delivery = await self._recognize(id, hook_headers, content)
                if delivery is not None:
                    # What waits for the disk is all the garbage collector finds: with this, and no coroutine more than
                    # needed, it looks a quarter as often while 50 are under way, and p99 falls by a fifth.
                    del hook_headers, content
                    return self._acknowledge(delivery, await self._handoff.put(delivery))
            async with asyncio.timeout(self._timeout):
                return await self._answer(id, hook_headers, content)
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            return self._refuse(*_explained(error), id)  # the store's own
        except Exception as error:  # noqa: BLE001 - whatever a store does, Asana shall send again
            return self._refuse(*_explained(error), id)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _refuse(self, outcome: Outcome, problem: str, registration: str) -> Reply:
        self._counts[outcome] += 1
        status = outcome.status
        _log.log(
            # These may concern a true delivery, and cost the webhook after 24 hours.
            logging.ERROR if outcome in _GRAVE else logging.WARNING,
            "refused with %d: %.200r (registration %.12s)",
            status,
            f"{outcome}: {problem}" if problem else str(outcome),
            registration,
            extra={"asana_status": status, "asana_outcome": str(outcome), "asana_registration": registration},
        )
        if status != 503:
            return Reply(status=status, close=True)
        return Reply(status=status, body=outcome.encode(), close=outcome in {Outcome.STOPPING, Outcome.CROWDED})

    def _let_in(self, *, is_possible: bool) -> None:
        if self._stopped_at is not None:
            raise refusal(Outcome.STOPPING)
        if self._under_way > self._max_pending:
            raise refusal(Outcome.CROWDED)
        if not is_possible:
            raise refusal(Outcome.UNKNOWN)

    async def _answer(self, id: str, headers: HookHeaders, body: Body) -> Reply:
        delivery = None if body.is_here else await self._recognize(id, headers, body)
        if delivery is None:
            meaning = await self._judge(await self._find(id), headers, body)
            if isinstance(meaning, Handshake):
                return await self._accept_handshake(id, meaning)
            if is_heartbeat(meaning.body):
                return await self._accept_heartbeat(meaning)
            delivery = meaning
        return self._acknowledge(delivery, await self._handoff.put(delivery))

    async def _recognize(self, id: str, headers: HookHeaders, body: Body) -> NewDelivery | None:
        """Prove a delivery with what is known of its registration; ``None``: the store must be asked what to answer.

        It must be for every refusal, which is another one if the registration has ended, and for heartbeats, whose
        200 tells Asana that it still stands. For the rest `Store.put` looks itself.
        """
        known = self._known.get(id)
        if known is None:
            return None
        try:
            meaning = await self._judge(known, headers, body)
        except RejectedError:
            return None
        return None if isinstance(meaning, Handshake) or is_heartbeat(meaning.body) else meaning

    async def _find(self, id: str) -> Registration:
        found = await self._store.find(id)
        if found is None:
            self._known.forget(id)
            raise refusal(Outcome.UNKNOWN)
        self._known.note(found)
        return found

    async def _judge(self, registration: Registration, headers: HookHeaders, body: Body) -> Handshake | NewDelivery:
        meaning = read_headers(registration, headers, max_body=self._max_body)
        if isinstance(meaning, Handshake):
            return meaning
        self._handoff.check_room()  # there is no use in reading what cannot be kept
        return await body.prove(registration, meaning)

    async def _accept_handshake(self, id: str, handshake: Handshake) -> Reply:
        if not await self._store.offer(id, handshake.secret):
            raise refusal(Outcome.NOT_TAKEN)
        _log.info("handshake echoed (registration %.12s)", id)
        self._counts[Outcome.ECHOED] += 1
        return Reply(status=200, headers=((b"X-Hook-Secret", handshake.secret.reveal().encode()),))

    async def _accept_heartbeat(self, heartbeat: NewDelivery) -> Reply:
        if heartbeat.candidate is None:  # until the 201 decides, nobody knows whose heartbeat it is
            await self._store.heartbeat(heartbeat.registration)
        self._counts[Outcome.HEARTBEAT] += 1
        return _DONE

    def _acknowledge(self, delivery: NewDelivery, result: PutResult) -> Reply:
        if result == "refused":  # the registration ended meanwhile, or the 201 named another secret
            self._known.forget(delivery.registration)
            raise refusal(Outcome.CLOSED if delivery.candidate is None else Outcome.FORGED)
        stored = Outcome.STORED if delivery.candidate is None else Outcome.QUARANTINED
        self._counts[stored if result == "stored" else Outcome.DUPLICATE] += 1
        _log.debug("delivery %s, %d bytes (registration %.12s)", result, len(delivery.body), delivery.registration)
        return _DONE


def _explained(error: BaseException) -> tuple[Outcome, str]:
    """Return what an error means for the request, and what more the log says of it."""
    if isinstance(error, RejectedError) and isinstance(error.reason, Outcome):
        return error.reason, ""
    if isinstance(error, TimeoutError):
        return Outcome.LATE, ""
    # Only our own texts are known to hold no secret.
    problem = str(error) if isinstance(error, AsanaError) else type(error).__name__
    return (Outcome.FULL if isinstance(error, StoreFullError) else Outcome.UNAVAILABLE), problem
