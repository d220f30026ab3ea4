"""The way to Asana's token endpoint: one request sent, its answer read, and whatever went wrong returned as an error.

Source: https://developers.asana.com/docs/oauth
"""

import asyncio
import ssl as ssl_module
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

import aiohttp
from attrs import field, frozen

from asana_webhooks import __version__
from asana_webhooks.client.retry import parse_retry_after
from asana_webhooks.client.tokens import REFRESH, RefreshRequest, TokenSet
from asana_webhooks.client.transport import problem_of, read_body, refusal_of
from asana_webhooks.errors import AsanaError, ConfigurationError, ConnectionFailedError

__all__ = ["TokenEndpoint"]

_HEADERS: Final = {"User-Agent": f"asana-webhooks/{__version__}", "Accept": "application/json"}
_MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer's body."""


@frozen(kw_only=True)
class TokenEndpoint:
    """Where access tokens are refreshed, and how to get there."""

    url: str
    http: aiohttp.ClientSession | None
    """A lent session. Without one each request has its own connection."""
    proxy: str | None = field(repr=False)
    """It may hold a password."""
    ssl: ssl_module.SSLContext | bool

    @asynccontextmanager
    async def asking(self, request: RefreshRequest, *, seconds: float) -> AsyncIterator[TokenSet | AsanaError]:
        """Send *request*, give what came of it, and close the connection afterwards if it is our own.

        So nothing comes between an answer and what is done with it. Errors are returned, not raised: aiohttp's, being
        their context, would hold the whole request.
        """
        async with self._open_http() as http:
            yield await self._send(http, request, seconds)

    def _open_http(self) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        if self.http is not None:
            return nullcontext(self.http)
        return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def _send(
        self, http: aiohttp.ClientSession, request: RefreshRequest, seconds: float
    ) -> TokenSet | AsanaError:
        try:
            async with (
                asyncio.timeout(seconds) as scope,
                http.post(
                    self.url,
                    data=request.form(),
                    headers=_HEADERS,
                    allow_redirects=False,
                    raise_for_status=False,
                    proxy=self.proxy,
                    ssl=self.ssl,
                    timeout=aiohttp.ClientTimeout(total=None),
                ) as response,
            ):
                body = await read_body(response, most=_MAX_ANSWER)
        except (aiohttp.ClientError, OSError) as error:
            late = isinstance(error, TimeoutError) and scope.expired()
            problem = f"the token endpoint did not answer within {seconds:g} seconds" if late else problem_of(error)
            return ConnectionFailedError(operation=REFRESH, attempts=1, problem=problem)
        except (ValueError, RuntimeError, TypeError) as error:
            return ConfigurationError(refusal_of(error))
        retry_after = parse_retry_after(response.headers.getall("Retry-After", ()), response.headers.get("Date"))
        return request.answer(response.status, None if body is None else body.getvalue(), retry_after=retry_after)
