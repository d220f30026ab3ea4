"""Lists in pages: the limit, the offsets that lead from page to page, and the link to the next page.

Source: https://developers.asana.com/docs/pagination
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from attrs import frozen
from yarl import URL

from asana_webhooks.testing.records import Resource, WebhookRecord
from asana_webhooks.testing.validation import ApiError
from asana_webhooks.testing.world import World

__all__ = ["Offsets"]

_LIFETIME: Final = timedelta(minutes=15)
_REMEMBERED: Final = 10_000
_LONGEST_LIST: Final = 1000
"""Longer lists must be requested in pages."""


_ListedT = TypeVar("_ListedT", Resource, WebhookRecord)


@frozen
class _Offset:
    """Where a page begins: after the webhook or project with gid *after*, even if that was deleted."""

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

    def page(
        self,
        items: Iterable[_ListedT],
        query: Mapping[str, str],
        *,
        base_url: str,
        path: str,
        list_of: tuple[str, ...],
    ) -> tuple[list[_ListedT], dict[str, Any]]:
        """Return the page of a list that *query* asks for, and the member ``next_page`` if it asks with a limit.

        Args:
            items: the whole list, in any order.
            query: the query of the request.
            base_url: the base URL of the API.
            path: the path of the list below it.
            list_of: on what else the list depends; an offset is valid for one list.

        Raises:
            ApiError: 400, the limit or the offset is invalid, or the list is too long without a limit.
        """
        limit = _check_limit(query.get("limit"))
        after = self._read(query.get("offset"), (path, *list_of))
        found = sorted((one for one in items if int(one.gid) > after), key=lambda one: int(one.gid))
        if limit is None:
            if len(found) > _LONGEST_LIST:
                raise ApiError(
                    400, "The result is too large. You should use pagination (may require specifying a workspace)!"
                )
            return found, {}
        following = None
        if len(found) > limit:
            offset = self._issue(int(found[limit - 1].gid), (path, *list_of))
            # The request's own parameters come first, then the limit and the offset.
            own = {name: value for name, value in query.items() if name not in ("limit", "offset")}
            relative = str(URL(path).with_query({**own, "limit": query["limit"], "offset": offset}))
            following = {"offset": offset, "path": relative, "uri": base_url + relative}
        return found[:limit], {"next_page": following}

    def _issue(self, after: int, list_of: tuple[str, ...]) -> str:
        offset = f"{self._world.rng.getrandbits(256):064x}"
        self._issued[offset] = _Offset(after, list_of, self._world.clock.now() + _LIFETIME)
        if len(self._issued) > _REMEMBERED:
            del self._issued[next(iter(self._issued))]
        return offset

    def _read(self, text: str | None, list_of: tuple[str, ...]) -> int:
        """Return the gid after which the page begins; 0 without an offset."""
        if text is None:
            return 0
        offset = self._issued.get(text)
        if offset is None or offset.list_of != list_of:
            raise ApiError(400, "offset: Your pagination token is invalid.")
        if self._world.clock.now() >= offset.expires:
            raise ApiError(400, "offset: Your pagination token has expired.")
        return offset.after


def _check_limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= 100:
        raise ApiError(400, "limit: Must be between 1 and 100")
    return int(text)
