"""What a store keeps and promises: registrations (whose secret is it?) and the inbox (what has not been handled yet?).

`Store` is one protocol in two groups of methods. Every method is one short transaction; when it returns, its effect
survives the process (a store in memory excepted), and when it raises, nothing was changed. Times are seconds of the
store's own clock.

Every method raises `StoreUnavailableError` when the store cannot be reached, and those that add something, heartbeats
included, raise `StoreFullError` when it takes no more for the moment.
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
"""How many handshakes a pending registration remembers."""

PutResult = Literal["stored", "duplicate", "refused"]


def registration_id(endpoint: str) -> str:
    """Return the id a registration is stored under: the hash of its endpoint, in hex.

    Whoever reads the store or a log cannot tell the endpoint from it.
    """
    return hashlib.sha256(endpoint.encode("utf-8", "surrogatepass")).hexdigest()


def candidate_id(secret: Secret) -> str:
    """Return the name a candidate's quarantined deliveries are kept under: the hash of its secret, in hex."""
    return hashlib.sha256(secret.reveal().encode()).hexdigest()


class RegistrationState(enum.Enum):
    """Where a registration stands; it only ever moves down this list.

    A pending registration whose deadline has passed counts as closed in all that a store answers, whether `Store.sweep`
    has ended it yet or not: whoever opened it may be gone.
    """

    PENDING = "pending"
    """The create call is open: handshakes are remembered as candidates and echoed, until the deadline."""
    CONFIRMED = "confirmed"
    """Asana's 201 named the secret: deliveries are verified with it."""
    CLOSED = "closed"
    """Over: everything is answered with 404."""


@frozen(kw_only=True)
class Registration:
    """The record behind one target: which webhook it belongs to and how its deliveries are verified."""

    id: str
    """`registration_id` of the target's endpoint."""
    resource: str
    """The gid of the resource the webhook watches."""
    state: RegistrationState
    deadline: float
    """When a pending registration is over, in seconds since the epoch."""
    candidates: tuple[Secret, ...] = ()
    """While pending: the secrets of the handshakes so far, oldest first."""
    echoed: bool = False
    """Whether a handshake was ever remembered for it, and so may have been echoed; True for ever then."""
    secret: Secret | None = None
    """Once confirmed: the secret."""
    webhook_gid: str | None = None
    """Once confirmed: the webhook's gid."""
    last_heartbeat_at: float | None = None
    """When Asana last sent a signed heartbeat, in seconds since the epoch."""


@frozen(kw_only=True)
class NewDelivery:
    """A verified delivery on its way into the store."""

    registration: str
    signature: str = field(repr=False)
    """Lower-case hex; with the registration it tells duplicates."""
    body: bytes = field(repr=False)
    candidate: str | None = None
    """`candidate_id` of the secret it was verified with, if the registration was still pending: it is quarantined."""


@frozen(kw_only=True)
class Lease:
    """A delivery that one worker holds until `expires_at`."""

    id: int
    """The delivery's number in the store."""
    fence: int
    """Which lease of the delivery this is; what an older one says later is ignored."""
    attempt: int
    """1 when the delivery is handled for the first time."""
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
    """What the last attempt said."""
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class StoreHealth:
    """How a store is doing."""

    waiting: int
    """Deliveries nobody holds, those waiting for another attempt included."""
    leased: int
    """Deliveries a worker holds."""
    quarantined: int
    """Deliveries that wait for the 201 of their webhook; until then nobody can handle them."""
    dead: int
    """Dead letters."""
    oldest_age: float | None
    """Seconds since the oldest unfinished delivery came in; ``None`` if there is none. Quarantine does not count."""
    writable: bool
    """Whether a delivery would be taken now: it can be written, and there is room for it."""
    heartbeats: dict[str, float | None]
    """The gid of each confirmed webhook, with the time of its last heartbeat in seconds since the epoch. Asana sends
    one every eight hours, so a webhook silent for longer deserves a look."""
    log_bytes: int | None = None
    """How long the store's write-ahead log is; ``None`` for a store without one."""
    problems: tuple[str, ...] = ()
    """What an operator should see to, in words; no secret is in them. If there is no room, it says which."""


class Store(Protocol):
    """Where registrations and deliveries are kept. Open it with ``async with``, or let the first call do it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def aclose(self) -> None:
        """Finish what is being written and close. Closing twice is fine; using a closed store is an error."""

    # Registrations

    async def open(self, id: str, *, resource: str, ttl: float) -> None:
        """Add a pending registration, before its create request is sent.

        Args:
            id: `registration_id` of a fresh endpoint; one that is known already is a `ConfigurationError`.
            resource: the gid the webhook will watch.
            ttl: seconds until its deadline; it counts as closed from then on, unless it was confirmed before.
        """

    async def offer(self, id: str, secret: Secret) -> bool:
        """Remember the secret of a handshake. True: it is committed and may be echoed.

        False, and nothing changed, unless the registration is pending, within its deadline, and has this secret
        already or room for it (`MAX_CANDIDATES`).
        """

    async def confirm(self, id: str, *, webhook_gid: str, secret: Secret) -> bool:
        """Let Asana's 201 decide. True: the registration is confirmed.

        True only if it was pending, within its deadline, with *secret* among its candidates (or is confirmed with
        this very gid and secret). The other candidates go; the deliveries quarantined under *secret* are released in
        the order they came, the others dropped.
        """

    async def close(self, id: str) -> bool:
        """End a registration, whatever its state. True if a handshake had ever been remembered for it.

        Its secrets are forgotten. Deliveries in quarantine are dropped; those that were already waiting stay. Nothing
        is accepted afterwards.
        """

    async def find(self, id: str) -> Registration | None:
        """Return the registration, or ``None`` if there never was one.

        A pending one whose deadline has passed is returned as closed, without candidates.
        """

    async def sweep(self) -> Sequence[Registration]:
        """End all pending registrations whose deadline has passed, and drop what they have in quarantine.

        Returns:
            What was ended, as it was: pending, with its candidates, but for those that cannot be opened.
            Asana may have created a webhook for one that was `Registration.echoed`.
        """

    async def heartbeat(self, id: str) -> None:
        """Note that a signed heartbeat came for the registration just now; a closed or unknown one is left alone."""

    # Inbox

    def put(self, delivery: NewDelivery) -> Awaitable[PutResult]:
        """Keep a delivery; what this returns is done only when the delivery is durable. Usually a coroutine function.

        One that returns a future instead spares the receiver a task for each delivery. Cancelling that future must stop
        the waiting only, and not the writing.

        ``"duplicate"``: this registration has, or had, a delivery with the same signature. ``"refused"``: the
        registration is closed or unknown by now, or it was confirmed with another secret than *delivery.candidate*.
        """

    async def claim(self, limit: int, *, lease: float, ordered: bool = False, halt: bool = False) -> Sequence[Lease]:
        """Lease up to *limit* waiting deliveries for *lease* seconds, oldest first; it does not wait for any.

        A delivery whose lease ran out is waiting again. So is one whose lease or delay began more than a minute from
        now, for then the clock was set back, and its end may be years away. With *ordered*, a registration's delivery
        is leased only when all its earlier ones are done or dead; with *halt*, too, only when they are done: a dead
        letter holds up those behind it until it is requeued or purged.
        """

    async def extend(self, lease: Lease, *, seconds: float) -> bool:
        """Hold the delivery for *seconds* from now. False: the lease was lost, nothing changed.

        A lease that ran out is lost, whether anybody else has claimed the delivery since or not; so is one that began
        more than a minute from now.
        """

    async def done(self, lease: Lease) -> bool:
        """Finish the delivery. False: the lease was lost, nothing changed."""

    async def fail(self, lease: Lease, *, error: str, retry_in: float | None) -> bool:
        """Give up this attempt: try again in *retry_in* seconds, or make it a dead letter if ``None``.

        False: the lease was lost, nothing changed.
        """

    async def release(self, lease: Lease) -> bool:
        """Give the delivery back untried: it is waiting at once, and the attempt does not count.

        False: the lease was lost, nothing changed.
        """

    async def health(self) -> StoreHealth:
        """Say how the store is doing.

        It does not raise when the store cannot be written or is full: ``writable`` is False.
        """

    # Maintenance

    async def dead_letters(self, *, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """Return up to *limit* dead letters with ids above *after*, in the order of their ids."""

    async def requeue(self, id: int) -> bool:
        """Make a dead letter wait again, with its attempts counted from the start. False if there is none."""

    async def purge(self, *, older_than: float, dead: bool = False) -> int:
        """Forget finished deliveries that came in more than *older_than* seconds ago; return how many.

        Until then they are known as duplicates. With *dead*, dead letters of that age go too. Registrations that were
        closed or swept, whose deadline is so long past, and of which nothing is left, are forgotten along with them,
        uncounted. A store may do it in several transactions, so that others get their turn; when it raises, some may
        be forgotten already.
        """
