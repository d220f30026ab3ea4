"""The `Store` protocol: registrations (the secret of each endpoint) and the inbox (the deliveries to handle).

Every method except `Store.purge` makes its changes in one short transaction. When it returns, its changes are
durable (in `MemoryStore`, until the process ends). When it raises an error, it has changed nothing; a cancelled call
may have. Times are seconds of the store's own clock.

Every method raises `StoreUnavailableError` when the store cannot be read or written. Methods that read or add data,
heartbeats included, raise `StoreFullError` while too many calls are waiting. Only `Store.health` reports both instead,
as far as it can.
"""

import enum
import hashlib
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

from attrs import field, frozen

from asana_webhooks.models import Secret

__all__ = [
    "MAX_CANDIDATES",
    "DeadLetter",
    "Lease",
    "NewDelivery",
    "PutResult",
    "Registration",
    "RegistrationState",
    "Store",
    "StoreHealth",
    "candidate_id",
    "registration_id",
]

MAX_CANDIDATES = 4
"""Maximum number of candidates of a pending registration."""

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

    A pending registration past its deadline counts as closed in every method, even before `Store.sweep` closes it: the
    process that opened it may have ended.
    """

    PENDING = "pending"
    """The create call is in flight: until the deadline, handshakes are stored as candidates and echoed."""
    CONFIRMED = "confirmed"
    """Asana's 201 contained the secret, and deliveries are verified with it."""
    CLOSED = "closed"
    """Every request for it is answered with 404."""


@frozen(kw_only=True)
class Registration:
    """The record of one target: which webhook it belongs to, and how its deliveries are verified."""

    id: str
    """`registration_id` of the target's endpoint."""
    resource: str
    """The gid of the resource the webhook watches."""
    state: RegistrationState
    deadline: float
    """When a pending registration expires, in seconds since the epoch."""
    candidates: tuple[Secret, ...] = ()
    """While pending: the secrets of its handshakes, oldest first."""
    echoed: bool = False
    """Whether a candidate was ever stored, so that a handshake may have been echoed. Once True, it stays True."""
    secret: Secret | None = None
    """Once confirmed: the secret."""
    webhook_gid: str | None = None
    """Once confirmed: the webhook's gid."""
    last_heartbeat_at: float | None = None
    """When Asana last sent a signed heartbeat, in seconds since the epoch."""


@frozen(kw_only=True)
class NewDelivery:
    """A verified delivery to put into the store."""

    registration: str
    signature: str = field(repr=False)
    """Lower-case hex. Duplicates have the same registration and signature."""
    body: bytes = field(repr=False)
    candidate: str | None = None
    """`candidate_id` of the secret that verified it, if the registration was pending. It is then quarantined."""


@frozen(kw_only=True)
class Lease:
    """A delivery that one worker holds until `expires_at`."""

    id: int
    """The delivery's number in the store."""
    fence: int
    """The number of this lease of the delivery. Calls with an older lease change nothing."""
    attempt: int
    """1 on the first attempt."""
    registration: str
    webhook_gid: str | None
    resource: str
    received_at: float
    """Seconds since the epoch."""
    expires_at: float
    """Seconds since the epoch."""
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class DeadLetter:
    """A delivery that failed for good."""

    id: int
    registration: str
    webhook_gid: str | None
    resource: str
    received_at: float
    """Seconds since the epoch."""
    attempts: int
    error: str
    """The error text of the last attempt."""
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class StoreHealth:
    """The health of a store."""

    waiting: int
    """Deliveries that no worker holds, including those that wait for their next attempt."""
    leased: int
    """Deliveries that a worker holds."""
    quarantined: int
    """Deliveries that cannot be claimed before the 201 of their webhook."""
    dead: int
    """Dead letters."""
    oldest_age: float | None
    """Seconds since the oldest waiting or leased delivery was received; ``None`` if there is none."""
    writable: bool
    """Whether the store accepts a delivery now: writing works, and there is room."""
    secrets_readable: bool = True
    """Whether the webhooks' secrets can be opened; if one cannot, deliveries of its webhook are answered 503. True for
    a store that does not seal them. A process that only runs workers needs no secrets, and may ignore this."""
    heartbeats: dict[str, float | None]
    """The last heartbeat of each confirmed webhook, by gid, in seconds since the epoch; ``None`` before the first.
    Asana sends one every eight hours, so check a webhook that is silent for longer."""
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

    async def open(self, id: str, *, resource: str, ttl: float) -> None:
        """Add a pending registration, before its create request is sent.

        Args:
            id: `registration_id` of a fresh endpoint; a known id is a `ConfigurationError`.
            resource: the gid the webhook will watch.
            ttl: seconds until its deadline. From then on it counts as closed, unless it is confirmed.
        """

    async def offer(self, id: str, secret: Secret) -> bool:
        """Store the secret of a handshake as a candidate. True: it is committed and may be echoed.

        True only if the registration is pending, within its deadline, and either has this candidate already or has
        room for it (`MAX_CANDIDATES`). False: nothing changed.
        """

    async def confirm(self, id: str, *, webhook_gid: str, secret: Secret) -> bool:
        """Confirm a registration with the gid and secret of Asana's 201. True: it is confirmed with them.

        True only if it was pending, within its deadline, with *secret* among its candidates, or is already confirmed
        with this gid and secret. The other candidates are deleted. Deliveries quarantined under *secret* are released
        in the order they were received; the others are deleted.
        """

    async def close(self, id: str) -> bool:
        """Close a registration in any state. True if it ever had a candidate (`Registration.echoed`).

        Its secrets and its quarantined deliveries are deleted. Its other deliveries stay. It accepts no new ones.
        """

    async def find(self, id: str) -> Registration | None:
        """Return the registration, or ``None`` if it is unknown.

        A pending one past its deadline is returned as closed, without candidates.
        """

    async def sweep(self) -> Sequence[Registration]:
        """Close all pending registrations past their deadline, and delete their quarantined deliveries.

        Returns:
            The registrations as they were: pending, with the candidates that can be opened. If `Registration.echoed`
            is True, Asana may have created a webhook for the registration.
        """

    async def heartbeat(self, id: str) -> None:
        """Record that the registration received a signed heartbeat now. A closed or unknown one stays unchanged."""

    # Inbox

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """Store a delivery; the awaitable is done only when the delivery is durable. Usually a coroutine function.

        A function that returns a future saves the receiver a task for each delivery. Cancelling that future must stop
        only the waiting, not the write.

        ``"duplicate"``: the registration already has a delivery with this signature, perhaps a finished one.
        ``"refused"``: the registration is closed or unknown, or *delivery.candidate* is not one of its secrets.
        """

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """Claim up to *limit* waiting deliveries for *lease* seconds, oldest first. It does not wait for deliveries.

        A delivery whose lease expired is waiting again. So is one whose lease or delay began more than a minute in the
        future: the clock was set back, and the end may be years away. With *ordered*, a delivery is claimed only when
        all earlier ones of its registration are done or dead. With *halt* as well, they must be done: a dead letter
        blocks later deliveries until it is requeued or purged.
        """

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """Extend the lease to *seconds* from now. False: the lease was lost, nothing changed.

        An expired lease is lost, even if no other worker has claimed the delivery. So is one that began more than a
        minute in the future.
        """

    async def done(self, lease: Lease) -> bool:
        """Acknowledge the delivery. False: the lease was lost, nothing changed."""

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None) -> bool:
        """Record a failed attempt: retry in *retry_in* seconds, or make the delivery a dead letter if ``None``.

        False: the lease was lost, nothing changed.
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

    async def dead_letters(self, *, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """Return up to *limit* dead letters with ids above *after*, in the order of their ids."""

    async def requeue(self, id: int) -> bool:
        """Return a dead letter to the inbox and reset its attempts. False if no dead letter has this id."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """Delete finished deliveries received more than *older_than* seconds ago; return how many.

        Until then, their duplicates are recognized. With *dead*, dead letters of that age are deleted too. Closed
        registrations without deliveries are also deleted, uncounted, once their deadline is as long ago. A store may
        use several transactions, so that other calls run in between. If it raises, it may have deleted some already.
        """
