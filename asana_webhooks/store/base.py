"""The `Store` protocol: registrations (the secret of each endpoint) and the inbox (the deliveries to handle).

Every method except `Store.purge` makes its changes in one short transaction. When it returns, its changes are
durable (in `MemoryStore`, until the process ends). When it raises an error, it has changed nothing; a cancelled call
may have. Times are in seconds since the epoch, by the store's own clock.

A registration is *live* while it is pending within its deadline, or confirmed. At most one is live for each resource
and label; a second one may be opened only to replace the first.

Every method raises `StoreUnavailableError` when the store cannot be read or written. Methods that read or add data,
heartbeats included, raise `StoreFullError` while too many calls are waiting. Only `Store.health` reports both instead,
as far as it can.
"""

import enum
import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

from attrs import field, frozen

from asana_webhooks.models import Secret

__all__ = [
    "MAX_CANDIDATES",
    "MAX_COUNT",
    "DeliveryState",
    "Lease",
    "NewDelivery",
    "PutResult",
    "Registration",
    "RegistrationState",
    "Store",
    "StoreHealth",
    "StoredDelivery",
    "candidate_id",
    "registration_id",
]

MAX_CANDIDATES = 4
"""Maximum number of candidates of a pending registration."""

MAX_COUNT = 10_000
"""Counts in `StoreHealth` end here, so that a long backlog does not slow the health down."""

PutResult = Literal["stored", "duplicate", "refused"]


def registration_id(endpoint: str) -> str:
    """Return the id of a registration: the SHA-256 of its endpoint, in hex.

    The id does not reveal the endpoint to someone who reads the store or a log.
    """
    return hashlib.sha256(endpoint.encode("utf-8", "surrogatepass")).hexdigest()


def candidate_id(secret: Secret) -> str:
    """Return the id of a candidate: the SHA-256 of its secret, in hex. Its quarantined deliveries refer to it."""
    return hashlib.sha256(secret.reveal().encode()).hexdigest()


class RegistrationState(enum.Enum):
    """The state of a registration. It only moves down this list.

    A pending registration past its deadline counts as closed in every method, even before
    `Store.expire_registrations` closes it: the process that opened it may have ended.
    """

    PENDING = "pending"
    """The create call is in flight: until the deadline, handshakes are stored as candidates and echoed."""
    CONFIRMED = "confirmed"
    """Asana's 201 contained the secret, and deliveries are verified with it."""
    CLOSED = "closed"
    """Every request for it is answered with 404."""


class DeliveryState(enum.StrEnum):
    """The state of a stored delivery. One that is done is deleted; only its duplicate key stays."""

    QUARANTINED = "quarantined"
    """Verified with a candidate; it cannot be claimed before the registration is confirmed."""
    WAITING = "waiting"
    """Any worker may claim it now. This includes a delivery whose lease or delay has run out."""
    DELAYED = "delayed"
    """It waits for its next attempt."""
    LEASED = "leased"
    """A worker has leased it."""
    DEAD = "dead"
    """A dead letter: it failed for good."""


@frozen(kw_only=True)
class Registration:
    """The record of one target: which webhook it belongs to, and how its deliveries are verified."""

    id: str
    """`registration_id` of the target's endpoint."""
    resource: str
    """The gid of the resource the webhook watches."""
    label: str = ""
    """The application's own word for it, such as a tenant; at most 200 characters."""
    public_url: str = field(default="", repr=False)
    """The target without its endpoint. No log shows it, because its query may contain a key."""
    state: RegistrationState
    opened_at: float = 0.0
    """When it was opened or adopted."""
    deadline: float
    """When a pending registration expires."""
    candidates: tuple[Secret, ...] = ()
    """While pending: the secrets of its handshakes, oldest first."""
    echoed: bool = False
    """Whether Asana may have created a webhook for it: a candidate was stored, so a handshake may have been echoed, or
    it was adopted. Once True, it stays True."""
    secret: Secret | None = None
    """Once confirmed: the secret."""
    webhook_gid: str | None = None
    """Once confirmed: the webhook's gid."""
    last_heartbeat_at: float | None = None
    """When Asana last sent a signed heartbeat."""
    last_delivery_at: float | None = None
    """When a delivery was last stored, rounded down to the minute. A killed process may forget its last minute."""
    replaces: str | None = None
    """The id of the registration it was opened to replace."""
    retire_after: float | None = None
    """When it may be closed because another one has replaced it. The store does not do so by itself."""


@frozen(kw_only=True)
class NewDelivery:
    """A verified delivery to put into the store."""

    registration: str
    signature: str = field(repr=False)
    """Lower-case hex. Duplicates have the same registration, signature and body."""
    body: bytes = field(repr=False)
    candidate: str | None = None
    """`candidate_id` of the secret that verified it, if the registration was pending. It is then quarantined."""


@frozen(kw_only=True)
class Lease:
    """A delivery that one worker has claimed. From `expires_at` on, another worker may claim it."""

    id: int
    """The delivery's number in the store."""
    fence: int
    """The number of this lease. It changes when the delivery is claimed, released, failed or requeued; calls with an
    older lease then change nothing."""
    attempt: int
    """1 on the first attempt."""
    registration: str
    label: str = ""
    """`Registration.label`."""
    webhook_gid: str | None
    resource: str
    received_at: float
    expires_at: float
    done: tuple[int, ...] = ()
    """The indices of the events that earlier attempts handled, as given to `Store.fail`, in ascending order."""
    alone: bool = False
    """Whether the leases of its last two attempts expired, so it may have killed its process. Its claim returned
    nothing else: run it with no other beside it."""
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class StoredDelivery:
    """A delivery in the store, as shown to an operator."""

    id: int
    """Its number in the store."""
    state: DeliveryState
    registration: str
    label: str = ""
    """`Registration.label`."""
    webhook_gid: str | None
    resource: str
    received_at: float
    due_at: float | None = None
    """While leased or delayed: when that ends."""
    attempts: int
    """How many attempts have begun."""
    error: str
    """The error text of the last failed attempt; empty before that."""
    done: tuple[int, ...] = ()
    """The indices of the events that are handled."""
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class StoreHealth:
    """The health of a store. Each count ends at `MAX_COUNT`, which then means that many or more."""

    waiting: int
    """Deliveries that wait for a worker or for their next attempt."""
    leased: int
    """Deliveries that a worker has leased."""
    quarantined: int
    """Deliveries that cannot be claimed before the 201 of their webhook."""
    dead: int
    """Dead letters."""
    oldest_age: float | None
    """Seconds since the oldest waiting or leased delivery was received; ``None`` if there is none. Of those that are
    leased or wait for their next attempt, a store may look at `MAX_COUNT` only."""
    writable: bool
    """Whether the store accepts a delivery now: writing works, and there is room."""
    secrets_readable: bool = True
    """Whether the webhooks' secrets can be opened; if one cannot, deliveries of its webhook are answered 503. True for
    a store that does not seal them. A process that only runs workers needs no secrets, and may ignore this."""
    webhooks: int
    """Confirmed registrations."""
    silent: tuple[str, ...] = ()
    """The gids of webhooks from which no heartbeat or delivery came for ten hours, longest silent first; at most 100.
    Asana sends a heartbeat every eight hours: look whether these still exist."""
    log_bytes: int | None = None
    """The size of the write-ahead log in bytes; ``None`` for a store without one."""
    problems: tuple[str, ...] = ()
    """Problems for an operator to fix, in words and without secrets. If a delivery would be refused now, they say why
    and what to do, with the text of the error that the receiver would log."""


class Store(Protocol):
    """A store for registrations and deliveries. Open it with ``async with``, or let the first call open it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    async def aclose(self) -> None:
        """Finish pending writes and close. Closing twice is fine; using a closed store is a `ConfigurationError`."""

    # Registrations

    async def open_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", ttl: float, replaces: str | None = None
    ) -> bool:
        """Add a pending registration, before its create request is sent. True: it is added.

        Args:
            id: `registration_id` of a fresh endpoint; a known id is a `ConfigurationError`.
            resource: the gid the webhook will watch.
            public_url: the target without its endpoint.
            label: the application's own word for it, at most 200 characters.
            ttl: seconds until its deadline. From then on it counts as closed, unless it is confirmed.
            replaces: the id of the registration to replace.

        Returns:
            False, and nothing changed, if another one is live for this resource and label. With *replaces*, False
            unless that one is confirmed or pending, has this resource and label, and is the only live one.
        """

    async def adopt_registration(
        self, id: str, *, resource: str, public_url: str, label: str = "", webhook_gid: str, secret: Secret
    ) -> bool:
        """Add a confirmed registration for a webhook that exists and whose secret is known. True: it is confirmed so.

        It is never pending. False, and nothing changed: another one is live for this resource and label. Adopting the
        same again is True. Any other use of a known id is a `ConfigurationError`.
        """

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        """Store the secret of a handshake as a candidate. True: it is committed and may be echoed.

        True only if the registration is pending, within its deadline, and either has this candidate already or has
        room for it (`MAX_CANDIDATES`). False: nothing changed.
        """

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        """Confirm a registration with the gid and secret of Asana's 201. True: it is confirmed with them.

        True only if it was pending, within its deadline, with *secret* among its candidates, or is already confirmed
        with this gid and secret. The other candidates are deleted. Deliveries quarantined under *secret* are released
        in the order they were received; the others are deleted.

        Args:
            id: the registration.
            webhook_gid: the gid in the 201.
            secret: the secret in the 201.
            heartbeat_at: the ``last_success_at`` of the 201. It counts as a heartbeat.
        """

    async def close_registration(self, id: str) -> bool:
        """Close a registration in any state. Return `Registration.echoed`; False if it is unknown.

        Its secrets and its quarantined deliveries are deleted. Its other deliveries stay. It accepts no new ones.
        """

    async def expire_registrations(self) -> Sequence[Registration]:
        """Close all pending registrations past their deadline, and delete their quarantined deliveries.

        Returns:
            The registrations as they were: pending, with the candidates that can be opened. If `Registration.echoed`
            is True, Asana may have created a webhook for the registration.
        """

    async def find_registration(self, id: str) -> Registration | None:
        """Return the registration, or ``None`` if it is unknown.

        A pending one past its deadline is returned as closed, without candidates.
        """

    async def list_registrations(
        self,
        *,
        label: str | None = None,
        resource: str | None = None,
        webhook_gid: str | None = None,
        state: RegistrationState | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Registration]:
        """Return up to *limit* registrations that match all given arguments, in the order of their ids.

        It opens no secrets: `Registration.secret` is ``None`` and `Registration.candidates` empty. A pending one past
        its deadline is listed as closed.

        Args:
            label: only those with exactly this label.
            resource: only those that watch the resource with this gid.
            webhook_gid: only those of this webhook.
            state: only those in this state.
            after: only ids above this one. Pass the last id of a page to get the next page.
            limit: how many to return at most.
        """

    async def record_heartbeat(self, id: str) -> None:
        """Record that the registration received a signed heartbeat now. A closed or unknown one stays unchanged."""

    async def retire_registration(self, id: str, *, after: float) -> bool:
        """Set `Registration.retire_after` to *after* seconds from now. False: it is not confirmed, nothing changed."""

    # Inbox

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """Store a delivery; the awaitable is done only when the delivery is durable. Usually a coroutine function.

        A function that returns a future saves the receiver a task for each delivery. Cancelling that future must stop
        only the waiting, not the write.

        ``"duplicate"``: the registration already had this delivery, which may be finished. Identical deliveries are
        recognized until `purge` forgets them. ``"refused"``: the registration is closed or unknown, or
        *delivery.candidate* is not one of its secrets. A `StoreFullError` may also mean that the
        quarantine of a pending registration is full.
        """

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """Claim up to *limit* waiting deliveries for *lease* seconds. It does not wait for deliveries.

        Within a registration the oldest comes first. Registrations take turns, so one with many deliveries does not
        hold up the others. A store may give no turn to a registration whose oldest delivery is leased or delayed: it
        claims the other ones first come, first served. With *ordered*, a delivery is claimed only when all earlier ones
        of its registration are done, dead or discarded, and none is leased. With *halt* as well, a dead letter blocks
        later deliveries until it is requeued, discarded or purged.

        A delivery whose lease expired is waiting again. So is one whose lease or delay began more than a minute in the
        future: the clock was set back, and the end may be years away. One whose last two attempts ended by an expired
        lease has `Lease.alone`, and no other is claimed with it.
        """

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """Let the lease end *seconds* from now. False: the lease was lost, nothing changed.

        An expired lease is not lost yet. It is lost once another claim, `release`, `fail` or `requeue` has changed the
        delivery's fence, or the delivery is gone.
        """

    async def ack(self, lease: Lease) -> bool:
        """Acknowledge the delivery: delete it, and keep its duplicate key. False: the lease was lost, nothing changed.

        See `extend` for when a lease is lost; the same holds for `fail` and `release`.
        """

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None, done: Iterable[int] = ()) -> bool:
        """Record a failed attempt. False: the lease was lost, nothing changed.

        Args:
            lease: the lease of the attempt.
            error: the text to keep with the delivery.
            retry_in: seconds until the next attempt; ``None`` makes the delivery a dead letter.
            done: the indices of events that this attempt handled. They are kept with those of earlier attempts.
        """

    async def release(self, lease: Lease) -> bool:
        """Return the delivery to the inbox: it can be claimed at once, and the attempt does not count.

        False: the lease was lost, nothing changed.
        """

    async def health(self) -> StoreHealth:
        """Return the health of the store, after an attempt to write and to open secrets.

        If writing fails, there is no room or a secret cannot be opened, it does not raise: `StoreHealth.writable` or
        `StoreHealth.secrets_readable` is False, and `StoreHealth.problems` says why. It never raises `StoreFullError`.

        Raises:
            StoreUnavailableError: the store cannot be read either.
        """

    # Maintenance

    async def deliveries(self, *, state: str, after: int = 0, limit: int = 100) -> Sequence[StoredDelivery]:
        """Return up to *limit* deliveries in this state with ids above *after*, in the order of their ids.

        *state* is a `DeliveryState` or its name, such as ``"dead"``; any other is a `ConfigurationError`.
        """

    async def delivery(self, id: int) -> StoredDelivery | None:
        """Return the delivery with this id, or ``None`` if it is unknown or done."""

    async def requeue(self, id: int) -> bool:
        """Return a dead letter to the inbox and reset its attempts. False if no dead letter has this id."""

    async def discard(self, id: int) -> bool:
        """Delete a waiting, delayed, quarantined or dead delivery, and keep its duplicate key. False for any other."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """Forget what is more than *older_than* seconds old; return how many duplicate keys and dead letters went.

        A duplicate key goes when both the first event of its delivery and its arrival are that old. With *dead*, dead
        letters received that long ago go too. Closed registrations without deliveries go, uncounted, once their
        deadline is as long ago; a store may keep them for a minute after they were closed. Waiting deliveries stay. A
        store may use several transactions, so that other calls run in between. If it raises, some may be gone already.
        """
