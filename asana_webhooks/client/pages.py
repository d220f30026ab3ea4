"""Walking the pages of getWebhooks.

Asana hands out an offset with each page, and the next page can be asked only with it. Offsets expire (15 minutes, as
seen), and no snapshot is promised: what is created or deleted during a walk may or may not be in it.

Source: https://developers.asana.com/docs/pagination
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

from attrs import evolve, field, frozen

from asana_webhooks.client.requests import GetWebhooksRequest
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    BadRequestError,
    ConfigurationError,
    PaginationExpiredError,
    PaginationRepeatedError,
)
from asana_webhooks.models import Webhook
from asana_webhooks.wire import WebhookList

__all__ = ["WebhookPage", "WebhookPager"]


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
    cancelled in it, leaves nothing behind.

    With prefetch the next page is fetched while the last one is being worked on. That is a task, and tasks need an
    owner: ``async with pager`` is required then, and cancels what is still being fetched on the way out.

    Raises, while it is walked, whatever `AsanaSession.send` does, and:
        PaginationExpiredError: an offset became too old.
        PaginationRepeatedError: the server sent an offset a second time.
    """

    def __init__(self, session: AsanaSession, request: GetWebhooksRequest, *, prefetch: bool = False) -> None:
        self._session = session
        self._request = request
        self._prefetch = prefetch
        self._entered = False
        self._tasks: set[asyncio.Task[WebhookList]] = set()

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[Webhook]:
        return _Items(self.pages())

    def pages(self) -> AsyncIterator[WebhookPage]:
        """Return an iterator over the pages of a new walk."""
        if self._prefetch and not self._entered:
            raise ConfigurationError("a pager with prefetch=True needs 'async with pager:' around its loops")
        return _Pages(self._request.offset, fetch=self._fetch, spawn=self._spawn if self._prefetch else None)

    async def _fetch(self, offset: str | None, items_so_far: int) -> WebhookList:
        try:
            return await self._session.send(evolve(self._request, offset=offset))
        except BadRequestError as error:
            if offset is not None and any("token has expired" in message for message in error.messages):
                raise PaginationExpiredError(offset=offset, items_so_far=items_so_far) from None
            raise

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
        offset: str | None,
        *,
        fetch: Callable[[str | None, int], Coroutine[Any, Any, WebhookList]],
        spawn: Callable[[Coroutine[Any, Any, WebhookList]], "asyncio.Task[WebhookList]"] | None,
    ) -> None:
        self._offset = offset
        self._fetch = fetch
        self._spawn = spawn
        self._ahead: asyncio.Task[WebhookList] | None = None
        self._offsets_used: set[str | None] = set()
        self._gids: set[str] = set()
        self._finished = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WebhookPage:
        if self._finished:
            raise StopAsyncIteration
        if self._offset in self._offsets_used:
            raise PaginationRepeatedError(items_so_far=len(self._gids))
        fetched = await self._fetch_next()
        self._offsets_used.add(self._offset)
        items = tuple(webhook for webhook in fetched.data if webhook.gid not in self._gids)
        self._gids.update(webhook.gid for webhook in items)
        # Only next_page tells whether more follow; a short page says nothing.
        self._finished = fetched.next_page is None
        self._offset = None if fetched.next_page is None else fetched.next_page.offset
        await self._fetch_ahead()
        return WebhookPage(items=items, next_offset=self._offset)

    async def _fetch_next(self) -> WebhookList:
        ahead, self._ahead = self._ahead, None
        return await (ahead or self._fetch(self._offset, len(self._gids)))

    async def _fetch_ahead(self) -> None:
        if self._spawn is None or self._finished or self._offset in self._offsets_used:
            return
        self._ahead = self._spawn(self._fetch(self._offset, len(self._gids)))
        await asyncio.sleep(0)  # puts the request on the wire even if the loop's body never awaits


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
