"""Walking the pages of getWebhooks.

Asana hands out an offset with each page, and the next page can be asked only with it. Offsets expire (15 minutes, as
seen), and no snapshot is promised: what is created or deleted during a walk may or may not be in it. Which page comes
next is decided in `asana_webhooks.client.walk`; here the pages are fetched, ahead of time if wanted.

Source: https://developers.asana.com/docs/pagination
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Self

from attrs import evolve, field, frozen

from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.client.walk import Walk
from asana_webhooks.errors import BadRequestError, ConfigurationError
from asana_webhooks.models import Webhook
from asana_webhooks.wire import WebhookList

__all__ = ["WebhookPage", "WebhookPager"]

_LEFT: Final = "a pager with prefetch=True works only inside its 'async with', which was left; walk again in a new one"

_log = logging.getLogger(__name__)


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

    With restart a walk whose offset has expired starts over from the start of the list, at most twice, also one that
    began at an *offset*. What it had come by already does not come again, so its pages may be empty for a while.

    Raises, while it is walked, whatever `AsanaSession.send` does, and:
        PaginationExpiredError: an offset became too old, with restart for the third time.
        PaginationRepeatedError: the server sent an offset a second time, 100 pages in a row with nothing new, or
            100,000 pages.
        ConfigurationError: two tasks walk on with one iterator, or it is used after its ``async with``.
    """

    def __init__(
        self, session: AsanaSession, request: GetWebhooksRequest, *, prefetch: bool = False, restart: bool = False
    ) -> None:
        self._session = session
        self._request = request
        self._prefetch = prefetch
        self._restart = restart
        self._visit: object | None = None  # stands for one 'async with'; its walks end with it
        self._tasks: set[asyncio.Task[WebhookList]] = set()

    async def __aenter__(self) -> Self:
        self._visit = object()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._visit = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[Webhook]:
        return _Items(self.pages())

    def pages(self) -> AsyncIterator[WebhookPage]:
        """Return an iterator over the pages of a new walk."""
        walk = Walk(self._request.offset, restart=self._restart)
        if not self._prefetch:
            return _Pages(walk, fetch=self._fetch)
        visit = self._visit
        if visit is None:
            raise ConfigurationError("a pager with prefetch=True needs 'async with pager:' around its loops")
        return _Pages(walk, fetch=self._fetch, spawn=self._spawn, may_go_on=lambda: self._visit is visit)

    async def _fetch(self, offset: str | None) -> WebhookList:
        return await self._session.send(evolve(self._request, offset=offset))

    def _spawn(self, fetching: Coroutine[Any, Any, WebhookList]) -> "asyncio.Task[WebhookList]":
        task = asyncio.get_running_loop().create_task(fetching)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[WebhookList]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a loop that was left early never asks for it


class _Pages:
    """One walk over pages. An object and no generator: a loop left early leaves no suspended frame behind."""

    def __init__(
        self,
        walk: Walk,
        *,
        fetch: Callable[[str | None], Coroutine[Any, Any, WebhookList]],
        spawn: Callable[[Coroutine[Any, Any, WebhookList]], "asyncio.Task[WebhookList]"] | None = None,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._walk = walk
        self._fetch = fetch
        self._spawn = spawn
        self._may_go_on = may_go_on
        self._ahead: asyncio.Task[WebhookList] | None = None
        self._page: WebhookPage | None = None
        self._busy = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WebhookPage:
        if self._busy:
            raise ConfigurationError("two tasks walk on with one iterator; give each a walk of its own")
        self._busy = True
        try:
            return await self._next()
        finally:
            self._busy = False

    async def _next(self) -> WebhookPage:
        # Whatever is cancelled here, the next call goes on where this one stood: a page that has come is kept.
        if not self._may_go_on():
            raise ConfigurationError(_LEFT)
        if self._page is None:
            self._page = await self._take_next()
            self._fetch_ahead()
        if self._ahead is not None:
            await asyncio.sleep(0)  # puts the request on the wire even if the loop's body never awaits
        page, self._page = self._page, None
        return page

    async def _take_next(self) -> WebhookPage:
        while not self._walk.finished:
            if (problem := self._walk.problem) is not None:
                raise problem
            try:
                fetched = await self._fetch_next()
            except BadRequestError as error:
                self._walk.refused(error)
                _log.info("getWebhooks: the offset has expired; the walk starts over")
            else:
                return WebhookPage(items=self._walk.take(fetched), next_offset=self._walk.offset)
        raise StopAsyncIteration

    async def _fetch_next(self) -> WebhookList:
        if self._ahead is None:
            return await self._fetch(self._walk.offset)
        await asyncio.wait({self._ahead})  # unlike awaiting the task itself, this leaves it alone when cancelled
        ahead, self._ahead = self._ahead, None
        if ahead.cancelled():
            raise ConfigurationError(_LEFT)
        return ahead.result()

    def _fetch_ahead(self) -> None:
        if self._spawn is None or not self._may_go_on():
            return
        if not self._walk.finished and self._walk.problem is None:
            self._ahead = self._spawn(self._fetch(self._walk.offset))


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
