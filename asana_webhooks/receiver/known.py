"""The registrations a receiver has seen confirmed, so that it can prove their deliveries without asking the store."""

from collections import OrderedDict
from typing import Final

from asana_webhooks.store.base import Registration, RegistrationState

__all__ = ["KnownRegistrations"]

MAX_KNOWN: Final = 10_000
"""Each takes about a kilobyte."""


class KnownRegistrations:
    """A bounded memory of confirmed registrations, secrets included; those that were not asked for longest go first.

    A confirmed registration never changes its secret; it can only end, and perhaps has. So this is good for proving a
    delivery, and for nothing else: the store decides in `Store.put` whether the registration still stands. Whatever
    cannot be proven with it is for the store to judge.

    Args:
        size: how many it remembers.
    """

    def __init__(self, size: int = MAX_KNOWN) -> None:
        self._size = size
        self._known: OrderedDict[str, Registration] = OrderedDict()

    def __repr__(self) -> str:
        return f"<KnownRegistrations {len(self._known)} of {self._size}>"

    def get(self, id: str) -> Registration | None:
        """Return what was seen under this id last, if it is remembered."""
        found = self._known.get(id)
        if found is not None:
            self._known.move_to_end(id)
        return found

    def note(self, found: Registration) -> None:
        """Remember what the store has found, if it is confirmed; else forget it."""
        if found.state is not RegistrationState.CONFIRMED:
            self.forget(found.id)
            return
        self._known[found.id] = found
        self._known.move_to_end(found.id)
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def forget(self, id: str) -> None:
        """Have the store asked the next time."""
        self._known.pop(id, None)
