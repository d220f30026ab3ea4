"""Lists in pages: the limit, the offsets that lead from page to page, and the link to the next page.

Source: https://developers.asana.com/docs/pagination
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from attrs import frozen
from yarl import URL

from asana_webhooks.testing.validation import ApiError
from asana_webhooks.testing.world import World

__all__ = ["Offsets", "check_limit", "next_page"]

_LIFETIME: Final = timedelta(minutes=15)
_REMEMBERED: Final = 10_000


@frozen
class _Offset:
    """Where a page begins: after the webhook with gid *after*, even if that was deleted."""

    after: int
    list_of: tuple[str, ...]
    expires: datetime


class Offsets:
    """Issues offsets, and reads them again. Each is valid for one list, for 15 minutes of the fake's clock.

    Args:
        world: provides the clock, and the randomness.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._issued: dict[str, _Offset] = {}

    def issue(self, after: int, list_of: tuple[str, ...]) -> str:
        """Return a new offset of the list *list_of*: its page begins after the webhook with gid *after*."""
        offset = f"{self._world.rng.getrandbits(256):064x}"
        self._issued[offset] = _Offset(after, list_of, self._world.clock.now() + _LIFETIME)
        if len(self._issued) > _REMEMBERED:
            del self._issued[next(iter(self._issued))]
        return offset

    def read(self, text: str | None, list_of: tuple[str, ...]) -> int:
        """Return the gid after which the page begins; 0 without an offset.

        Raises:
            ApiError: 400, the offset was not issued for this list, or has expired.
        """
        if text is None:
            return 0
        offset = self._issued.get(text)
        if offset is None or offset.list_of != list_of:
            raise ApiError(400, "offset: Your pagination token is invalid.")
        if self._world.clock.now() >= offset.expires:
            raise ApiError(400, "offset: Your pagination token has expired.")
        return offset.after


def check_limit(text: str | None) -> int | None:
    """Read ``limit``: 1 to 100, or ``None``.

    Raises:
        ApiError: 400, the limit is invalid.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= 100:
        raise ApiError(400, "limit: Must be between 1 and 100")
    return int(text)


def next_page(base_url: str, path: str, query: Mapping[str, str], offset: str) -> dict[str, str]:
    """Return the member ``next_page``: the request's own parameters first, then the limit and the offset."""
    own = {name: value for name, value in query.items() if name not in ("limit", "offset")}
    relative = str(URL(path).with_query({**own, "limit": query["limit"], "offset": offset}))
    return {"offset": offset, "path": relative, "uri": base_url + relative}
