"""Walking the pages of getWebhooks.

Asana hands out an offset with each page, and the next page can be asked only with it. Offsets expire (15 minutes, as
seen), and no snapshot is promised: what is created or deleted during a walk may or may not be in it.

Source: https://developers.asana.com/docs/pagination
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final, Literal, Self

from attrs import define, evolve, field, frozen

from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import BadRequestError, ConfigurationError, PaginationError
from asana_webhooks.models import Webhook
from asana_webhooks.wire import WebhookList

__all__ = ["WebhookPage", "WebhookPager"]

_MAX_STALE_PAGES: Final = 100
"""Pages in a row with no webhook that is new, after which a walk is given up. Some come empty; so many do not."""
_MAX_PAGES: Final = 100_000
"""Pages of one walk. Asana lets an app have 10,000 webhooks of a user, so even one by one they end long before.

Source: https://developers.asana.com/docs/webhooks-guide
"""
_LEFT: Final = "a pager with prefetch=True works only inside its 'async with', which was left; walk again in a new one"


@frozen(kw_only=True)
class WebhookPage:
    """One page of a walk."""

    items: tuple[Webhook, ...]
    """Its webhooks, without those an earlier page of the walk had; may be empty though more follow."""
    next_offset: str | None = field(repr=False)
    """Where the next page begins, to resume there; ``None`` on the last page."""


class WebhookPager:
    """The webhooks of a workspace, page by page, as they are asked for; what `get_webhooks` returns.

    ``async for webhook in pager`` yields webhooks, ``async for page in pager.pages()`` pages. Each loop is a walk of
    its own from the start (or from *offset*). No webhook comes twice in a walk. Leaving a loop early, or being
    cancelled in it, leaves nothing behind, and a cancelled step can be taken again. A walk belongs to one task at a
    time.

    With prefetch the next page is fetched while the last one is being worked on. That is a task, and tasks need an
    owner: ``async with pager`` is required then, and cancels what is still being fetched on the way out; the walks
    begun in it end there.

    Raises, while it is walked, whatever `AsanaSession.send` does, and:
        PaginationError: an offset became too old, or the walk would never end; its ``reason`` says which.
        ConfigurationError: two tasks walk on with one iterator, or it is used after its ``async with``.
    """

    def __init__(self, session: AsanaSession, request: GetWebhooksRequest, *, prefetch: bool = False) -> None:
        self._session = session
        self._request = request
        self._prefetch = prefetch
        self._prefetching: _Prefetching | None = None

    async def __aenter__(self) -> Self:
        if self._prefetching is None:
            self._prefetching = _Prefetching()
        return self

    async def __aexit__(self, *_: object) -> None:
        prefetching, self._prefetching = self._prefetching, None
        if prefetching is not None:
            await prefetching.end()

    def __aiter__(self) -> AsyncIterator[Webhook]:
        return _Items(self.pages())

    def pages(self) -> AsyncIterator[WebhookPage]:
        """Return an iterator over the pages of a new walk."""
        if self._prefetch and self._prefetching is None:
            raise ConfigurationError("a pager with prefetch=True needs 'async with pager:' around its loops")
        return _Pages(self._session, self._request, self._prefetching if self._prefetch else None)


@define
class _Prefetching:
    """The pages that are fetched ahead within one ``async with``, each in a task."""

    tasks: set["asyncio.Task[WebhookList]"] = field(factory=set)
    ended: bool = False

    def begin(self, fetching: Coroutine[Any, Any, WebhookList]) -> "asyncio.Task[WebhookList]":
        task = asyncio.create_task(fetching)
        self.tasks.add(task)
        return task

    def take(self, task: "asyncio.Task[WebhookList]") -> WebhookList:
        self.tasks.discard(task)
        if task.cancelled():
            raise ConfigurationError(_LEFT)
        return task.result()

    async def end(self) -> None:
        self.ended = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class _Pages:
    """One walk over pages. An object and no generator: a loop left early leaves no suspended frame behind."""

    def __init__(self, session: AsanaSession, request: GetWebhooksRequest, prefetching: _Prefetching | None) -> None:
        self._session = session
        self._request = request
        self._prefetching = prefetching
        self._ahead: asyncio.Task[WebhookList] | None = None
        self._page: WebhookPage | None = None  # one that has come, in case the step that takes it is cancelled
        self._busy = False
        self._offset = request.offset  # of the page to ask for next
        self._finished = False
        self._offsets_used: set[str | None] = set()
        self._gids: set[str] = set()
        self._stale_pages = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WebhookPage:
        if self._busy:
            raise ConfigurationError("two tasks walk on with one iterator; give each a walk of its own")
        if self._prefetching is not None and self._prefetching.ended:
            raise ConfigurationError(_LEFT)
        self._busy = True
        try:
            if self._page is None:
                self._page = await self._next()
            if self._ahead is not None:
                await asyncio.sleep(0)  # puts its request on the wire, even if the loop's body never awaits
        finally:
            self._busy = False
        page, self._page = self._page, None
        return page

    async def _next(self) -> WebhookPage:
        if self._finished:
            raise StopAsyncIteration
        if (reason := self._endless()) is not None:
            raise self._error(reason)
        try:
            fetched = await self._fetch_next()
        except BadRequestError as error:
            if not self._has_expired(error):
                raise
            raise self._error("expired") from None
        return self._take(fetched)

    async def _fetch_next(self) -> WebhookList:
        # A step that is cancelled or fails changes nothing, so it can be taken again.
        prefetching, ahead = self._prefetching, self._ahead
        if prefetching is None or ahead is None:
            return await self._fetch()
        await asyncio.wait({ahead})  # unlike awaiting the task itself, this leaves it alone when cancelled
        self._ahead = None
        return prefetching.take(ahead)

    async def _fetch(self) -> WebhookList:
        return await self._session.send(evolve(self._request, offset=self._offset))

    def _take(self, fetched: WebhookList) -> WebhookPage:
        new = []
        for webhook in fetched.data:
            if webhook.gid not in self._gids:
                self._gids.add(webhook.gid)
                new.append(webhook)
        self._stale_pages = 0 if new else self._stale_pages + 1
        self._offsets_used.add(self._offset)
        # Only next_page tells whether more follow; a short page says nothing.
        self._finished = fetched.next_page is None
        self._offset = None if fetched.next_page is None else fetched.next_page.offset
        page = WebhookPage(items=tuple(new), next_offset=self._offset)
        prefetching = self._prefetching
        if prefetching is not None and not prefetching.ended and not self._finished and self._endless() is None:
            self._ahead = prefetching.begin(self._fetch())
        return page

    def _endless(self) -> Literal["repeated", "endless"] | None:
        """Why the next page must not be asked for, although there is one: the walk would never end."""
        if self._offset in self._offsets_used:
            return "repeated"
        if self._stale_pages >= _MAX_STALE_PAGES or len(self._offsets_used) >= _MAX_PAGES:
            return "endless"
        return None

    def _has_expired(self, error: BadRequestError) -> bool:
        # The other text Asana has, "Your pagination token is invalid.", is about offsets that never were any. Where no
        # text has come through it can only be the offset, if all else was good for the page before.
        expired = any("pagination token has expired" in message for message in error.messages)
        return self._offset is not None and (expired or (not error.messages and bool(self._offsets_used)))

    def _error(self, reason: Literal["expired", "repeated", "endless"]) -> PaginationError:
        return PaginationError(reason=reason, items_so_far=len(self._gids), offset=self._offset)


class _Items:
    """One walk over webhooks: the items of its pages."""

    def __init__(self, pages: AsyncIterator[WebhookPage]) -> None:
        self._pages = pages
        self._items: Iterator[Webhook] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Webhook:
        while True:
            for webhook in self._items:
                return webhook
            self._items = iter((await anext(self._pages)).items)
