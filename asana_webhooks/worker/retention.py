"""How long a store keeps what is finished: duplicate keys, dead letters and closed registrations."""

from typing import Final

from attrs import frozen

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import Store

__all__ = ["Retention"]

_DAY: Final = 86_400.0
_SHORTEST_RETENTION: Final = 26 * 3_600.0
"""Longer than the 25 hours after which a replay is `Delivery.stale`, with a margin for clock differences."""


@frozen(kw_only=True)
class Retention:
    """How long a store keeps the duplicate keys of deliveries, dead letters and closed registrations.

    A running `Worker` applies it. Without a worker, await `apply` regularly.
    """

    done: float = 3 * _DAY
    """Seconds for which a delivery is recognized as a duplicate, counted from its arrival or, if that is later, from
    the time of its first event; at least 26 hours. A delivery replayed later is accepted, and is `Delivery.stale`. A
    closed registration without deliveries goes as long after its deadline."""
    dead: float | None = None
    """Seconds after arrival for which a dead letter and its body are kept, at least *done*; ``None``: until purged."""
    every: float = 600.0
    """Seconds between purges."""

    def __attrs_post_init__(self) -> None:
        check_seconds("every", self.every, zero=False)
        if check_seconds("done", self.done) < _SHORTEST_RETENTION:
            raise ConfigurationError(
                f"done must be at least {_SHORTEST_RETENTION:.0f} seconds: Asana resends a delivery for 24 hours"
            )
        if self.dead is not None and check_seconds("dead", self.dead) < self.done:
            raise ConfigurationError("dead must not be less than done: a purge forgets keys of the same age, too")

    async def apply(self, store: Store) -> int:
        """Purge what is old enough from *store*. Return how many duplicate keys and dead letters were purged.

        Raises:
            StoreError: the store failed; some may already be purged.
        """
        purged = await store.purge(older_than=self.done)
        if self.dead is not None:
            purged += await store.purge(older_than=self.dead, dead=True)
        return purged
