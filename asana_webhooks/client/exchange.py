"""One request over aiohttp: sent, counted, its answer read, and whatever aiohttp raises turned into an outcome."""

import ssl as ssl_module
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from attrs import define, field, frozen
from yarl import URL

from asana_webhooks.client.answers import hide, outcome_of, secrets_of
from asana_webhooks.client.requests import DeleteWebhookRequest, Request
from asana_webhooks.client.retry import Outcome
from asana_webhooks.errors import ConfigurationError

__all__ = ["Line", "Sendings", "exchange"]

_MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of an answer's body, decompressed. A page of 100 full webhooks is about 0.1 MB."""


@frozen(kw_only=True)
class Line:
    """Where a session's requests go, and how."""

    http: aiohttp.ClientSession
    base_url: str
    headers: Mapping[str, str]
    proxy: str | None
    ssl: ssl_module.SSLContext | bool
    connect_timeout: float


@define
class Sendings:
    """How often the requests of one call went out."""

    count: int = 0
    last: datetime = field(factory=lambda: datetime.now(UTC))
    """When the last one did; before there is one, when the call began."""

    def note(self) -> None:
        """Count one more, now."""
        self.count += 1
        self.last = datetime.now(UTC)


class _Body(aiohttp.BytesPayload):
    """A body that counts how often it is sent.

    aiohttp asks for it once there is a connection, and again when it silently repeats a PUT or DELETE because a
    kept-alive connection broke. So nothing was sent while the count stands still, on lent sessions too.
    """

    def __init__(self, body: bytes, sendings: Sendings) -> None:
        super().__init__(body)
        self._sendings = sendings

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._sendings.note()
        await super().write_with_length(writer, content_length)


async def exchange(line: Line, request: Request[Any], token: str, sendings: Sendings) -> Outcome:
    """Send *request* once, as far as we can see, and return what it came to.

    Raises:
        ConfigurationError: aiohttp refuses to send it.
    """
    body = _body(request, sendings)
    content_type = {"Content-Type": "application/json"} if body is not None and body.size else {}
    before = sendings.count
    try:
        async with line.http.request(
            request.method,
            URL(line.base_url + request.path).with_query(request.query()),
            data=body,
            headers={**line.headers, "Authorization": f"Bearer {token}", **content_type},
            skip_auto_headers=("Content-Type",),  # an empty body has none
            allow_redirects=False,  # a redirect could carry headers and body to another host
            raise_for_status=False,  # its error would hold the token
            proxy=line.proxy,
            ssl=line.ssl,
            timeout=aiohttp.ClientTimeout(total=None, connect=line.connect_timeout),
        ) as response:
            content = await _read(response)
    except (aiohttp.ClientError, OSError) as error:
        return Outcome(kind="lost" if sendings.count > before else "not_sent", problem=_problem(error))
    except (ValueError, RuntimeError, TypeError) as error:
        if sendings.count > before:
            return Outcome(kind="lost", problem=_problem(error))
        raise ConfigurationError(_refusal(error)) from None
    outcome = outcome_of(
        request,
        response.status,
        content,
        retry_after=response.headers.getall("Retry-After", ()),
        date=response.headers.get("Date"),
    )
    return hide(outcome, secrets_of(request, token))


def _body(request: Request[Any], sendings: Sendings) -> _Body | None:
    content = request.body()
    if content is None and isinstance(request, DeleteWebhookRequest):
        content = b""  # written like any other, and so counted; a GET is repeated whatever came of it
    return None if content is None else _Body(content, sendings)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the whole body, or ``None`` if it was cut off or is too long; such a connection is not used again."""
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_ANSWER:
                return None  # what is left unread ends the connection
    except (aiohttp.ClientError, OSError):
        return None
    return bytes(body)


def _problem(error: Exception) -> str:
    # Only what names host and port is quoted: other errors of aiohttp hold the whole request, token included.
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error}"[:300]
    return {
        aiohttp.ServerDisconnectedError: "the connection was closed before an answer came",
        aiohttp.ClientOSError: "the connection was reset",
        aiohttp.ConnectionTimeoutError: "no connection could be made in time",
        aiohttp.ClientHttpProxyError: "the proxy refused the connection",
    }.get(type(error), f"the exchange failed with {type(error).__name__}")


def _refusal(error: Exception) -> str:
    # aiohttp's own words are not shown: they may quote what was to be sent.
    if "AUTHORIZATION" in str(error):
        return (
            "the token cannot go with other credentials for the same host: remove the host from the .netrc file, or "
            "do without trust_env (proxy= names a proxy)"
        )
    return (
        f"aiohttp refused to send the request ({type(error).__name__}); a lent http session must be open, and made in "
        "the event loop that uses it"
    )
