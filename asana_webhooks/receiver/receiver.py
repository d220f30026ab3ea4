"""The receiver: looks up the registration, lets `protocol` decide, stores the delivery, and replies."""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from types import MappingProxyType
from typing import Final, Self

from asana_webhooks._checks import check_count, check_seconds, check_store, kind_of
from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.errors import ConfigurationError, StoreFullError, describe
from asana_webhooks.receiver.body import SHORT_BODY, Body, BodyReader, Chunks, Content
from asana_webhooks.receiver.health import HealthCheck, health_reply
from asana_webhooks.receiver.pending import PendingDeliveries
from asana_webhooks.receiver.protocol import (
    MAX_BODY,
    Handshake,
    Headers,
    HookHeaders,
    InvalidDelivery,
    ReceiveResult,
    RefusedError,
    Reply,
    Signed,
    is_heartbeat,
    plain_signature,
    read_headers,
)
from asana_webhooks.receiver.signature import explain_signature
from asana_webhooks.store.base import NewDelivery, PutResult, Registration, RegistrationState, Store, registration_id

__all__ = ["Receiver", "Reply", "check_receiver"]

_LONGEST_ENDPOINT: Final = 128
"""In characters. Ours have 43, but a webhook that was made elsewhere may have any."""

_OK: Final = Reply(status=200)

_EXPLAINED_SECRETS: Final = 100
"""How many secrets of other webhooks an explanation tries."""
_EXPLAINED_EVERY: Final = 60.0
"""Seconds between two explanations for one webhook."""

_AT_ONCE: Final = {ReceiveResult.STOPPING, ReceiveResult.OVERLOADED, ReceiveResult.TOO_SLOW, ReceiveResult.CUT_OFF}
"""What is answered without reading the rest of a short body."""

_ERRORS: Final = {ReceiveResult.TOO_LARGE, ReceiveResult.FULL, ReceiveResult.UNAVAILABLE, ReceiveResult.LATE}

_log = logging.getLogger(__name__)


class RegistrationCache:
    """An LRU cache of confirmed registrations, secrets included.

    A confirmed registration never changes its secret, but it may have been closed since. So the cache serves only to
    verify deliveries; `Store.put` checks that the registration is still open. If verification with a cached
    registration fails, the store decides.

    Args:
        size: how many registrations it holds at most. Each takes about a kilobyte.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._found: OrderedDict[str, Registration] = OrderedDict()
        self._explained_at: dict[str, float] = {}

    def get(self, id: str) -> Registration | None:
        """Return the cached registration with this id, or ``None``."""
        found = self._found.get(id)
        if found is not None:
            self._found.move_to_end(id)
        return found

    def add(self, found: Registration) -> None:
        """Cache a registration that the store returned if it is confirmed; else drop its entry."""
        if found.state is not RegistrationState.CONFIRMED:
            self.forget(found.id)
            return
        self._found[found.id] = found
        self._found.move_to_end(found.id)
        if len(self._found) > self._size:
            self.forget(next(iter(self._found)))

    def forget(self, id: str) -> Registration | None:
        """Drop an entry, so that the store is asked next time, and return it."""
        self._explained_at.pop(id, None)
        return self._found.pop(id, None)

    def explain(self, invalid: InvalidDelivery, *, now: float) -> str:
        """Return the likely cause of an invalid signature, or an empty string.

        A body over 64 KiB, which is freed by now, and a registration that is not cached are not explained, nor is a
        second one within a minute. It blocks the event loop for up to 30 milliseconds.

        Args:
            invalid: the delivery.
            now: the monotonic time in seconds.
        """
        id, secret = invalid.registration.id, invalid.registration.secret
        is_recent = now - self._explained_at.get(id, -math.inf) < _EXPLAINED_EVERY
        if id not in self._found or is_recent or invalid.length > SHORT_BODY:
            return ""
        if secret is None or not secret.reveal():  # only a broken store holds an empty one
            return ""
        self._explained_at[id] = now
        others = [one for one in islice(reversed(self._found.values()), _EXPLAINED_SECRETS + 1) if one.id != id]
        secrets = {one.webhook_gid: one.secret for one in others if one.webhook_gid and one.secret}
        return explain_signature(invalid.body, invalid.signature, secret=secret, others=secrets)


class Receiver:
    """Answers Asana's handshakes and deliveries for all registrations of a store, independent of any web framework.

    `asana_webhooks.receiver.web` (aiohttp) and `asana_webhooks.receiver.asgi` connect it to a server. One receiver
    handles many requests concurrently. Several receivers, in one process or more, may share a store.

    It caches up to 10,000 confirmed registrations with their secrets, to verify deliveries without asking the store.
    A closed registration still accepts no delivery, even if another process closed it: the store checks again in the
    transaction that stores the delivery. Heartbeats and requests that fail verification are always answered from the
    store's current state. Cached secrets may stay in memory as long as the receiver. A request for a closed
    registration may be read before it is refused.

    A delivery is answered 200 only after the store has committed it. A request that fails verification is answered
    401, always with the same empty body. A delivery not stored within *timeout* is answered 503. While too much is in
    flight, any request is answered 503 at once. Asana resends both. Every refusal logs one line, with ``extra`` fields
    for structured logging: ``asana_status``, ``asana_outcome``, ``asana_registration``, ``asana_webhook`` and
    ``asana_label``. The line shows the webhook and its label if they are known, and for an invalid signature also the
    length of the body and, once a minute, the likely cause.

    To shut down, close the receiver (`aclose`), then the server, then the store. Requests in flight then finish.

    Args:
        store: where registrations are looked up and deliveries stored.
        max_body: largest body in bytes; a larger one is answered 413.
        max_unproven: bytes that all bodies being read may have together. Anyone can send these. Above that, the largest
            is dropped, and its request answered 503; so long bodies cannot keep short ones out. A body that arrived
            complete with its headers is not counted (the aiohttp adapter: up to 64 KiB).
        max_pending: requests in flight at once, and also deliveries being written by the store; above that, 503. A
            request that is decided, and whose body is only being dropped, is not counted.
        max_pending_bytes: bytes that verified bodies may have together until they are stored; above that, 503.
        body_timeout: seconds a peer may take to send its body; after that, 408.
        timeout: seconds for reading and storing together; after that, 503. Asana gives up after 10.

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
        check_store(store)
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
        self._body_timeout = body_timeout
        self._in_flight = 0
        self._dropping = 0
        """Requests that are decided, and whose bodies are being dropped."""
        self._ended = asyncio.Event()
        """A request has ended."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests ended with each outcome since this receiver was created; for metrics. A live view.

        The keys are the values of `asana_webhooks.receiver.protocol.ReceiveResult`, all present from the start. A
        request that is cancelled before it is decided is not counted.
        """
        return self._counts_view

    def stop(self) -> None:
        """Stop accepting requests: new ones are answered 503 at once, and those in flight finish.

        Safe to call from a signal handler of the loop, and twice. A stopped receiver cannot be restarted.
        """
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()

    async def aclose(self) -> None:
        """Stop, and wait for requests in flight, at most until *timeout* seconds after the stop.

        Short bodies are read to their end, so *body_timeout* counts too if it is longer than *timeout*. Writes still
        running then are cancelled, which may take 2 seconds more. Those deliveries were not acknowledged,
        so Asana resends them. The store stays open. Closing twice is fine. Cancelling this cancels no request.
        """
        self.stop()
        while self._in_flight or self._dropping:
            self._ended.clear()
            await self._ended.wait()  # bounded: each request has a timeout
        stopped_for = time.monotonic() - (self._stopped_at or 0.0)
        late = await self._pending.drain(max(0.0, self._timeout - stopped_for))
        if late:
            _log.warning("%d deliveries could not be stored before shutdown; Asana resends them", late)
        await self._health.aclose()

    async def health(self) -> Reply:
        """Return 200 if this receiver can take deliveries and 503 if not, with the store's health as JSON.

        The adapters serve this to load balancers. The store is asked at most once a second, however many callers there
        are, and has two seconds to answer. It tries a write, and opens secrets, to find out.
        The JSON always has the same members, and ``problems`` says why it is 503; see the guide.
        """
        health, problems = (None, ()) if self._stopped_at is not None else await self._health.ask()
        full = self._in_flight >= self._max_pending or not self._pending.has_room(1)
        overload = f"{ReceiveResult.OVERLOADED}; raise max_pending or max_pending_bytes" if full else ""
        return health_reply(health, problems, overload=overload, stopping=self._stopped_at is not None)

    async def receive(self, endpoint: str, headers: Headers, body: Content) -> Reply:
        """Answer one POST.

        Awaits the body and the store. The rest of a body up to 64 KiB is read and dropped before this returns, until
        *body_timeout*, because some servers and proxies drop a connection that is answered earlier; not if the reply
        is a 503 for stopping or overload. Cancelling this drops the reply. A delivery that the store has begun to
        write is stored anyway; when Asana resends it, it is a duplicate.

        Args:
            endpoint: the last segment of the request's path.
            headers: the raw headers, as pairs of bytes.
            body: the raw body, or its chunks, so that a request can be refused before its body is read. The iterator
                may raise ``OSError`` when the peer disconnects.

        Raises:
            ConfigurationError: an argument has another type. Nothing is stored or counted then.
        """
        if not isinstance(endpoint, str):
            raise ConfigurationError(f"endpoint must be the path's last segment as text, not {type(endpoint).__name__}")
        id = registration_id(endpoint)
        known, content = self._cache.get(id), Body(body, self._reader)
        signed = None if known is None else plain_signature(headers, max_body=self._max_body)
        hook_headers = HookHeaders.of(headers) if signed is None else None
        unread = content.chunks
        self._in_flight += 1
        try:
            self._admit(endpoint)
            delivery = None
            if known is not None and signed is not None and self._pending.has_room(0) and content.is_here():
                delivery = self._verify_cached(known, signed, content)
            if delivery is not None:
                # Objects of waiting requests are most of what the garbage collector tracks. Without these, and with
                # no extra coroutine, it runs a quarter as often at 50 requests in flight: p99 falls by a fifth.
                del content, signed
                # No timeout here: a pending put has its own.
                return self._acknowledge(delivery, await self._pending.put(delivery))
            hook_headers = hook_headers or HookHeaders.of(headers)
            async with asyncio.timeout(self._timeout):
                reply = await self._answer(id, hook_headers, content)
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            reply = self._refuse(error, id)  # the store was cancelled, not this request
        except Exception as error:  # any failure of a store is a 503, so that Asana resends
            if unread is not None and error is unread.misuse:
                raise
            reply = self._refuse(error, id)
            if isinstance(error, RefusedError) and error.result in _AT_ONCE:
                return reply
        finally:
            self._in_flight -= 1
            self._ended.set()
        if unread is not None and not unread.is_over:
            await self._drop_rest(unread, hook_headers or HookHeaders.of(headers))
        return reply

    async def _drop_rest(self, chunks: Chunks, headers: HookHeaders) -> None:
        self._dropping += 1
        try:
            await chunks.drop_rest(headers, seconds=self._body_timeout)
        finally:
            self._dropping -= 1
            self._ended.set()

    def _refuse(self, error: BaseException, id: str) -> Reply:
        problem, known, invalid = "", self._cache.get(id), None
        if isinstance(error, RefusedError):
            result, invalid = error.result, error.delivery
            known = error.registration or known
            if invalid is not None:
                problem = self._cache.explain(invalid, now=asyncio.get_running_loop().time())
        elif isinstance(error, TimeoutError):
            result = ReceiveResult.LATE
        else:
            result = ReceiveResult.FULL if isinstance(error, StoreFullError) else ReceiveResult.UNAVAILABLE
            problem = describe(error)
        self._counts[result] += 1
        where, values = _where(known, id)
        _log.log(
            # Errors may affect a genuine delivery, and after 24 hours of failures Asana deletes the webhook.
            logging.ERROR if result in _ERRORS else logging.WARNING,
            "request refused with %d: %.300r; " + where + (", %d bytes" if invalid else ""),
            *(result.status, f"{result}: {problem}" if problem else str(result), *values),
            *((invalid.length,) if invalid else ()),
            extra={
                "asana_status": result.status,
                "asana_outcome": str(result),
                "asana_registration": id,
                "asana_webhook": known and known.webhook_gid,
                "asana_label": known and known.label,
            },
        )
        if result.status != 503:
            return Reply(status=result.status, close=True)
        must_close = result in {ReceiveResult.STOPPING, ReceiveResult.OVERLOADED}
        return Reply(status=503, body=result.encode(), close=must_close)

    def _admit(self, endpoint: str) -> None:
        if self._stopped_at is not None:
            raise RefusedError(ReceiveResult.STOPPING)
        if self._in_flight > self._max_pending:
            raise RefusedError(ReceiveResult.OVERLOADED)
        if not 1 <= len(endpoint) <= _LONGEST_ENDPOINT:
            raise RefusedError(ReceiveResult.UNKNOWN)

    async def _answer(self, id: str, headers: HookHeaders, body: Body) -> Reply:
        delivery = None
        known = self._cache.get(id)
        if known is not None:
            with suppress(RefusedError):  # the store decides
                meaning = await self._read(known, headers, body)
                delivery = self._verify_cached(known, meaning, body) if isinstance(meaning, Signed) else None
        if delivery is None:
            found = await self._find(id)
            try:
                meaning = await self._read(found, headers, body)
                if isinstance(meaning, Handshake):
                    return await self._accept_handshake(found, meaning)
                delivery = body.verify(found, meaning)
            except RefusedError as error:
                error.registration = found
                raise
            if is_heartbeat(delivery.body):
                return await self._accept_heartbeat(delivery)
        return self._acknowledge(delivery, await self._pending.put(delivery))

    def _verify_cached(self, known: Registration, signed: Signed, body: Body) -> NewDelivery | None:
        """Verify a delivery that has been read with the cached registration. Return ``None`` if that does not do.

        The store must decide every refusal, as a closed registration is refused differently. It must also decide for
        heartbeats, whose 200 keeps the webhook alive at Asana. For other deliveries, `Store.put` checks.
        """
        try:
            delivery = body.verify(known, signed)
        except RefusedError:
            return None
        return None if is_heartbeat(delivery.body) else delivery

    async def _find(self, id: str) -> Registration:
        found = await self._store.find_registration(id)
        if found is None:
            self._cache.forget(id)
            raise RefusedError(ReceiveResult.UNKNOWN)
        self._cache.add(found)
        return found

    async def _read(self, registration: Registration, headers: HookHeaders, body: Body) -> Handshake | Signed:
        """Read the body unless the headers say that it is not needed."""
        meaning = read_headers(registration, headers, max_body=self._max_body)
        if isinstance(meaning, Signed):
            self._pending.check_room()  # do not read a body that cannot be stored
            await body.read()
        return meaning

    async def _accept_handshake(self, registration: Registration, handshake: Handshake) -> Reply:
        if not await self._store.add_candidate(registration.id, handshake.secret):
            raise RefusedError(ReceiveResult.NOT_ACCEPTED)
        where, values = _where(registration, registration.id)
        _log.info("handshake echoed; " + where, *values)
        self._counts[ReceiveResult.ECHOED] += 1
        return Reply(status=200, headers=((b"X-Hook-Secret", handshake.secret.reveal().encode()),))

    async def _accept_heartbeat(self, heartbeat: NewDelivery) -> Reply:
        if heartbeat.candidate is None:  # a heartbeat proves nothing until the 201 decides
            await self._store.record_heartbeat(heartbeat.registration)
        self._counts[ReceiveResult.HEARTBEAT] += 1
        return _OK

    def _acknowledge(self, delivery: NewDelivery, result: PutResult) -> Reply:
        if result == "refused":  # closed since the check, or the 201 named another secret
            known = self._cache.forget(delivery.registration)
            refused = ReceiveResult.CLOSED if delivery.candidate is None else ReceiveResult.INVALID_SIGNATURE
            raise RefusedError(refused, registration=known)
        stored = ReceiveResult.STORED if delivery.candidate is None else ReceiveResult.QUARANTINED
        self._counts[stored if result == "stored" else ReceiveResult.DUPLICATE] += 1
        if _log.isEnabledFor(logging.DEBUG):
            where, values = _where(self._cache.get(delivery.registration), delivery.registration)
            _log.debug("delivery %s, %d bytes; " + where, result, len(delivery.body), *values)
        return _OK


def _where(known: Registration | None, id: str) -> tuple[str, tuple[object, ...]]:
    """Return the part of a log line that says what a request was for, and its values."""
    if known is None:
        return "registration %.12s", (id,)
    webhook = known.webhook_gid or "not confirmed yet"
    if not known.label:
        return "webhook %.40r, registration %.12s", (webhook, id)
    return "webhook %.40r (label %.40r), registration %.12s", (webhook, known.label, id)


def check_receiver(receiver: object) -> None:
    """Check that *receiver* is a `Receiver`.

    Raises:
        ConfigurationError: it is anything else, such as a store.
    """
    if not isinstance(receiver, Receiver):
        raise ConfigurationError(f"receiver must be a Receiver, not {kind_of(receiver)}: pass Receiver(store)")
