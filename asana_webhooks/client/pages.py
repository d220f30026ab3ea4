"""Pagination of getWebhooks, getProjects and getWorkspaces.

Each page carries an offset, the only way to request the next page. Offsets expire (after 15 minutes, as observed).
There is no snapshot: items created or deleted during an iteration may or may not appear in it.

Source: https://developers.asana.com/docs/pagination
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final, Generic, Literal, Self, TypeVar

from attrs import define, evolve, field, frozen

from asana_webhooks.client.requests import GetWebhooksRequest, ListRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import BadRequestError, ConfigurationError, PaginationError
from asana_webhooks.models import ResourceRef, Webhook
from asana_webhooks.wire import ListPage

__all__ = ["WebhookPage", "WebhookPager", "iterate_resources"]

ItemT = TypeVar("ItemT")
PageT = TypeVar("PageT", bound="_Page[Any]")

_MAX_STALE_PAGES: Final = 100
"""An iteration fails after this many pages in a row without a new item. A few empty pages are normal."""
_MAX_PAGES: Final = 100_000
"""Maximum pages of one iteration. An app may have 10,000 webhooks per user, so even pages of one webhook end earlier.

Source: https://developers.asana.com/docs/webhooks-guide"""
_LEFT: Final = "a pager with prefetch=True works only inside 'async with', which has ended; start a new 'async with'"


@frozen(kw_only=True)
class _Page(Generic[ItemT]):
    items: tuple[ItemT, ...]
    """Its items, without those of earlier pages; may be empty although more pages follow."""
    next_offset: str | None = field(repr=False)
    """The offset of the next page, to resume from; ``None`` on the last page."""


@frozen(kw_only=True)
class WebhookPage(_Page[Webhook]):
    """One page of webhooks."""


@frozen(kw_only=True)
class _ResourcePage(_Page[ResourceRef]):
    pass


class WebhookPager:
    """An async iterator over the webhooks of a workspace, fetched page by page; returned by `get_webhooks`.

    ``async for webhook in pager`` yields webhooks, ``async for page in pager.pages()`` pages. Each loop is a new
    iteration from the start (or from *offset*) and yields no webhook twice. Without prefetch, leaving or cancelling a
    loop leaves nothing running. A cancelled step can be repeated. One task at a time may use an iterator.

    With prefetch, a task fetches the next page while the current one is processed. This requires
    ``async with pager``. Its end cancels fetches in flight and ends the iterations started in it.

    Raises, while iterating, the errors of `AsanaSession.send`, and:
        PaginationError: an offset has expired, or the iteration would never end; its ``reason`` says which.
        ConfigurationError: two tasks use one iterator at once, or prefetch is used outside ``async with``.
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
        """Return a new async iterator over the pages."""
        if self._prefetch and self._prefetching is None:
            raise ConfigurationError("a pager with prefetch=True needs 'async with pager:' around its loops")
        return _Pages(WebhookPage, self._session, self._request, self._prefetching if self._prefetch else None)


def iterate_resources(session: AsanaSession, request: ListRequest[ResourceRef]) -> AsyncIterator[ResourceRef]:
    """Return an async iterator over projects or workspaces, fetched page by page."""
    return _Items(_Pages(_ResourcePage, session, request))


@define
class _Prefetching:
    """The tasks that prefetch pages within one ``async with``."""

    tasks: set["asyncio.Task[ListPage[Any]]"] = field(factory=set)
    ended: bool = False

    def begin(self, fetching: Coroutine[Any, Any, ListPage[Any]]) -> "asyncio.Task[ListPage[Any]]":
        task = asyncio.create_task(fetching)
        self.tasks.add(task)
        return task

    def take(self, task: "asyncio.Task[ListPage[Any]]") -> ListPage[Any]:
        self.tasks.discard(task)
        if task.cancelled():
            raise ConfigurationError(_LEFT)
        return task.result()

    async def end(self) -> None:
        self.ended = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class _Pages(Generic[PageT]):
    """One iteration over pages. Not a generator, because a loop left early would leave a suspended frame behind."""

    def __init__(
        self,
        page: type[PageT],
        session: AsanaSession,
        request: ListRequest[Any],
        prefetching: _Prefetching | None = None,
    ) -> None:
        self._new_page = page
        self._session = session
        self._request = request
        self._prefetching = prefetching
        self._ahead: asyncio.Task[ListPage[Any]] | None = None
        self._page: PageT | None = None  # fetched, kept in case the step is cancelled before returning it
        self._busy = False
        self._offset = request.offset  # of the next page
        self._finished = False
        self._offsets_used: set[str | None] = set()
        self._gids: set[str] = set()
        self._stale_pages = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PageT:
        if self._busy:
            raise ConfigurationError("two tasks use one iterator at once; give each task its own")
        if self._prefetching is not None and self._prefetching.ended:
            raise ConfigurationError(_LEFT)
        self._busy = True
        try:
            if self._page is None:
                self._page = await self._next()
            if self._ahead is not None:
                await asyncio.sleep(0)  # sends the prefetch request, even if the loop's body never awaits
        finally:
            self._busy = False
        page, self._page = self._page, None
        return page

    async def _next(self) -> PageT:
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

    async def _fetch_next(self) -> ListPage[Any]:
        # A cancelled or failed step changes nothing, so it can be repeated.
        prefetching, ahead = self._prefetching, self._ahead
        if prefetching is None or ahead is None:
            return await self._fetch()
        await asyncio.wait({ahead})  # unlike `await ahead`, does not cancel the task when cancelled
        self._ahead = None
        return prefetching.take(ahead)

    async def _fetch(self) -> ListPage[Any]:
        return await self._session.send(evolve(self._request, offset=self._offset))

    def _take(self, fetched: ListPage[Any]) -> PageT:
        new = []
        for item in fetched.data:
            if item.gid not in self._gids:
                self._gids.add(item.gid)
                new.append(item)
        self._stale_pages = 0 if new else self._stale_pages + 1
        self._offsets_used.add(self._offset)
        # Only next_page says whether more pages follow; a short page need not be the last.
        self._finished = fetched.next_page is None
        self._offset = None if fetched.next_page is None else fetched.next_page.offset
        page = self._new_page(items=tuple(new), next_offset=self._offset)
        prefetching = self._prefetching
        if prefetching is not None and not prefetching.ended and not self._finished and self._endless() is None:
            self._ahead = prefetching.begin(self._fetch())
        return page

    def _endless(self) -> Literal["repeated", "endless"] | None:
        """Return why the iteration would never end, or ``None`` if the next page may be fetched."""
        if self._offset in self._offsets_used:
            return "repeated"
        if self._stale_pages >= _MAX_STALE_PAGES or len(self._offsets_used) >= _MAX_PAGES:
            return "endless"
        return None

    def _has_expired(self, error: BadRequestError) -> bool:
        # Asana's other text, "Your pagination token is invalid.", is for offsets it never issued. Without any text,
        # the offset must be the cause if the page before it worked.
        expired = any("pagination token has expired" in message for message in error.messages)
        return self._offset is not None and (expired or (not error.messages and bool(self._offsets_used)))

    def _error(self, reason: Literal["expired", "repeated", "endless"]) -> PaginationError:
        return PaginationError(
            operation=self._request.operation, reason=reason, items_so_far=len(self._gids), offset=self._offset
        )


class _Items(Generic[ItemT]):
    """One iteration over the items of the pages."""

    def __init__(self, pages: AsyncIterator[_Page[ItemT]]) -> None:
        self._pages = pages
        self._items: Iterator[ItemT] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        while True:
            for item in self._items:
                return item
            self._items = iter((await anext(self._pages)).items)
