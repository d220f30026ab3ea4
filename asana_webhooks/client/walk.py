"""A walk over the pages of a list: which page to ask for next, what in it is new, when to start over, when to end.

Decisions only. `asana_webhooks.client.pages` asks for the pages.
"""

from typing import Final

from attrs import define, field

from asana_webhooks.errors import BadRequestError, PaginationExpiredError, PaginationRepeatedError
from asana_webhooks.models import Webhook
from asana_webhooks.wire import WebhookList

__all__ = ["Walk"]

_MOST_RESTARTS: Final = 2
"""How often a walk starts over; one that expires again and again would never come to its end."""

_MOST_STALE_PAGES: Final = 100
"""Pages in a row with no webhook that is new, after which a walk is given up. Some come empty; so many do not."""

_MOST_PAGES: Final = 100_000
"""Pages of one pass. Asana lets an app have 10,000 webhooks of a user, so even one by one they end long before.

Source: https://developers.asana.com/docs/webhooks-guide
"""


@define(eq=False)
class _Pass:
    """One way from page to page. A walk that starts over begins another: its pages show what the last one did."""

    offsets_used: set[str | None] = field(factory=set)
    stale_pages: int = 0


class Walk:
    """Where one walk stands.

    Ask for the page at `offset`, then call `take` with what came, or `refused` if Asana refused to give it, until
    `finished`. A page that failed otherwise can be asked for again: nothing has changed.

    Args:
        offset: where it begins; ``None`` at the start of the list.
        restart: whether it starts over, at most twice, when an offset has expired.
    """

    def __init__(self, offset: str | None, *, restart: bool = False) -> None:
        self.offset = offset
        """Of the page to ask for next; ``None`` for the first of the list."""
        self.finished = False
        """Whether the last page has been taken."""
        self._restarts_left = _MOST_RESTARTS if restart else 0
        self._pass = _Pass()
        # Each gid of the whole walk (none comes twice, however often it starts over), and the last pass that brought it
        self._gids: dict[str, _Pass] = {}

    @property
    def problem(self) -> PaginationRepeatedError | None:
        """Why the next page must not be asked for, although there is one: the walk would never end."""
        if self.finished:
            return None
        if self.offset in self._pass.offsets_used:
            return PaginationRepeatedError(items_so_far=len(self._gids))
        if self._pass.stale_pages >= _MOST_STALE_PAGES:
            problem = f"the server sent {self._pass.stale_pages} pages in a row with nothing new"
            return PaginationRepeatedError(items_so_far=len(self._gids), problem=problem)
        if len(self._pass.offsets_used) >= _MOST_PAGES:
            problem = f"the server sent {_MOST_PAGES} pages, and more are to follow"
            return PaginationRepeatedError(items_so_far=len(self._gids), problem=problem)
        return None

    def take(self, page: WebhookList) -> tuple[Webhook, ...]:
        """Go on behind the page that was asked for; return its webhooks without those that had come before."""
        gids, this_pass = self._gids, self._pass
        new, is_stale = [], True
        for webhook in page.data:
            last_pass = gids.get(webhook.gid)
            if last_pass is not this_pass:
                # New to this pass, not to the walk: after a start over many pages bring only what had come before.
                is_stale = False
                gids[webhook.gid] = this_pass
            if last_pass is None:
                new.append(webhook)
        this_pass.stale_pages = this_pass.stale_pages + 1 if is_stale else 0
        this_pass.offsets_used.add(self.offset)
        # Only next_page tells whether more follow; a short page says nothing.
        self.finished = page.next_page is None
        self.offset = None if page.next_page is None else page.next_page.offset
        return tuple(new)

    def refused(self, error: BadRequestError) -> None:
        """Go back to the start of the list, if Asana refused the page because its offset has expired.

        Raises:
            PaginationExpiredError: it has, and the walk may not start over (again).
            BadRequestError: *error* itself; it is about something else.
        """
        # The other text Asana has, "Your pagination token is invalid.", is about offsets that never were any. Where no
        # text has come through it can only be the offset, if all else was good for the page before.
        expired = any("pagination token has expired" in message for message in error.messages)
        expired |= not error.messages and bool(self._pass.offsets_used)
        if self.offset is None or not expired:
            raise error
        if self._restarts_left == 0:
            raise PaginationExpiredError(offset=self.offset, items_so_far=len(self._gids)) from None
        self._restarts_left -= 1
        self.offset = None
        self._pass = _Pass()
