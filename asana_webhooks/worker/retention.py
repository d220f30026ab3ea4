"""How long a store remembers what is over, and who makes it forget."""

from typing import Final

from attrs import frozen

from asana_webhooks._checks import check_seconds
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.store.base import Store

__all__ = ["Retention"]

_DAY: Final = 86_400.0
_LEAST: Final = 26 * 3_600.0
"""What comes again behind it is `Delivery.stale`: later than 25 hours, with room for clocks."""


@frozen(kw_only=True)
class Retention:
    """How long a store remembers finished deliveries, dead letters and closed registrations.

    A running `Worker` applies it; who runs none awaits `apply` from time to time.
    """

    done: float = 3 * _DAY
    """Seconds after its arrival for which a finished delivery is known as a duplicate, at least 26 hours. Its body goes
    as soon as it is done. A captured delivery that somebody sends again after that is let in, as `Delivery.stale`."""
    dead: float | None = None
    """Seconds after its arrival for which a dead letter is kept, with its body, if at least *done*; ``None``: until
    somebody purges it."""
    every: float = 600.0
    """Seconds between one look and the next."""

    def __attrs_post_init__(self) -> None:
        check_seconds("every", self.every, zero=False)
        if check_seconds("done", self.done) < _LEAST:
            raise ConfigurationError(
                f"done must be at least {_LEAST:.0f} seconds: Asana sends for 24 hours, and what comes later is stale"
            )
        if self.dead is not None and check_seconds("dead", self.dead) < self.done:
            raise ConfigurationError("dead must not be less than done: dead letters are known as duplicates, too")

    async def apply(self, store: Store) -> int:
        """Have *store* forget what is due, in small batches; return how many deliveries that were.

        Raises:
            StoreError: the store failed; some may be forgotten already.
        """
        forgotten = await store.purge(older_than=self.done)
        if self.dead is not None:
            forgotten += await store.purge(older_than=self.dead, dead=True)
        return forgotten
