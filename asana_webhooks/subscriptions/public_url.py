"""Checking a public URL before any webhook is created: requests as Asana sends them, to a registration of their own.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

import aiohttp
from attrs import define, field, frozen
from yarl import URL

from asana_webhooks._checks import check_reachable, check_seconds, check_store
from asana_webhooks._tasks import finish
from asana_webhooks.client.transport import DEFAULT_HEADERS, problem_of
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.subscriptions.rules import split_public_url

__all__ = ["PublicUrlFinding", "PublicUrlReport", "check_public_url"]

_LABEL: Final = "check of the public URL"
"""Plans and checks of webhooks look at one label only. Receivers show it in their logs."""
_LONGEST: Final = 8
"""How many requests, each as long as the timeout, the registration lasts for."""
_HOLD: Final = 0.3
"""The part of the timeout for which a request is held back while another one is under way."""

_ODD: Final = b'{ "events" :\t[ ],  "note" : "\\u00e9 \\/", "number":1.0 }\r\n'
"""No program that parses JSON writes it like this."""
_PLAIN: Final = b"{}"
"""Every program that parses JSON writes it like this."""
_EVENT: Final = (
    b'{"user":{"gid":"1204619611402340","resource_type":"user"},"created_at":"2026-01-02T03:04:05.678Z","type":"task",'
    b'"action":"changed","resource":{"gid":"1204619611402341","resource_type":"task","resource_subtype":"default_task"'
    b'},"parent":null,"change":{"field":"custom_fields","action":"changed","new_value":{"gid":"1204619611402342",'
    b'"resource_type":"custom_field","resource_subtype":"multi_enum"}}}'
)
_LONG: Final = b'{"events":[' + b",".join([_EVENT] * 1000) + b"]}"
"""About as long as Asana's longest delivery: 0.4 MB."""

_CHAIN: Final = (
    "the server does not send the intermediate certificates, which browsers may have: configure the full chain; or its "
    "authority is not a public one"
)
_NAMES: Final = "it is another host's: look at the names in it, and at which site the proxy serves by default"
_CERTIFICATES: Final = {
    9: "it is not valid yet: look at the server's clock",
    10: "it has expired: renew it",
    18: "it is signed by itself: get one from a public authority",
    19: "its authority is not a public one: get one from a public authority",
    20: _CHAIN,
    21: _CHAIN,
    62: _NAMES,
    64: _NAMES,
}
"""Likely causes by OpenSSL's number of the error."""

_STATUSES: Final = {
    401: "a login page, gateway or firewall refuses requests: let the path through",
    403: "a login page, gateway or firewall refuses requests: let the path through",
    404: "the path is cut or changed on the way, or another server answers: look where host and path lead",
    405: "the path is another program's, which takes no POST: look where host and path lead",
    408: "the body came too slowly: something on the way delays it",
    413: "something on the way limits bodies: let 1 MB through, in nginx by client_max_body_size",
    415: "something on the way compresses requests, which breaks signatures: switch that off",
    429: "a gateway limits requests: let this path through",
}
"""Likely causes of a status, whatever was sent."""
_EMPTY_404: Final = (
    "a receiver does not know the endpoint: it uses another store than this check; or the end of the path is cut or "
    "changed on the way"
)
_5XX: Final = (
    "the receiver is not running, stopping or overloaded, or cannot use its store: see the log of it or the proxy"
)
_KEY: Final = "; if it asks for the key in the query, that is wrong, or cut on the way"
_ONE_THREAD: Final = (
    "a single-threaded server: while it creates a webhook, it cannot answer the handshake; run it with several threads "
    "or workers"
)
_ANOTHER: Final = "another server answers, such as a login or default page: look where host and path lead"
_REFUSED: Final = {
    400: "something on the way changes or repeats the request's header X-Hook-Secret",
    401: "something on the way removes X-Hook-Secret from the request: let it through",
}
"""Likely causes of a status with which the receiver, and nothing before it, refused the handshake."""


@frozen(kw_only=True)
class PublicUrlFinding:
    """What one part of `check_public_url` has found. Its text has no endpoint, no secret and no query."""

    name: str
    """``handshake``, ``signed body``, ``long body``, ``two at once``, ``time``, or ``address``."""
    ok: bool
    seen: str
    """What was seen, such as ``answered 302 in 0.01 s``."""
    cause: str = ""
    """The likely cause, and what to do. If it is ok, a warning; usually empty then."""

    def __str__(self) -> str:
        verdict = "failed" if not self.ok else "warning" if self.cause else "ok"
        cause = f"; likely cause: {self.cause}" if not self.ok else self.cause and f"; {self.cause}"
        return f"{verdict}: {self.name}: {self.seen}{cause}"


@frozen(kw_only=True)
class PublicUrlReport:
    """What `check_public_url` has found: its text is a line for each finding."""

    findings: tuple[PublicUrlFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether all is well. Warnings do not count."""
        return all(one.ok for one in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


async def check_public_url(
    store: Store,
    public_url: str,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109 - of each request
    http: aiohttp.ClientSession | None = None,
) -> PublicUrlReport:
    """Play Asana against the service's own URL, before any webhook is created, and say what is wrong on the way.

    A receiver must be listening at *public_url*, with the same store. This opens a pending registration there, under a
    label and a resource of its own: it blocks no webhook, and plans, checks and health do not show it. Then it sends a
    handshake, signed bodies of several kinds, and two requests at once. It follows no redirect.

    ::

        report = await check_public_url(store, "https://example.com/asana")
        print(report)

    It awaits the store, and at most six requests. The registration is closed at the end, also if this raises or is
    cancelled, which may take 5 seconds; a killed process leaves one that expires. What the receiver stored for it is
    dropped. Asana may still see something else: a firewall may know its addresses from yours.

    Args:
        store: the store the receivers use.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`.
        timeout: seconds for each request. Asana gives up after 10.
        http: an ``aiohttp.ClientSession`` to use as it is, such as one with a proxy; it needs two connections at once,
            and is never closed. By default a new one, without cookies.

    Returns:
        The report. If the handshake did not arrive, that is the last finding.

    Raises:
        ConfigurationError: an argument is invalid, or *http* is closed.
        StoreError: the store failed.
    """
    check_store(store)
    base, query = split_public_url(public_url)
    check_seconds("timeout", timeout, zero=False)
    if http is not None and http.closed:
        raise ConfigurationError("the session passed as http= is closed; pass an open one")
    async with _session(http) as session:
        check = _Check(store, session, base, query, timeout)
        try:
            await check.run(f"{base}{query}")
        finally:
            await finish(store.close_registration(registration_id(check.endpoint)))
    return PublicUrlReport(findings=tuple(check.findings))


def _session(http: aiohttp.ClientSession | None) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    if http is not None:
        return nullcontext(http)
    # A kept connection may be closed by the other end, which would fail the next request.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


@frozen(kw_only=True)
class _Answer:
    """An answer, or why there is none."""

    status: int = 0
    """0: no answer."""
    secret: str | None = field(default=None, repr=False)
    """Its ``X-Hook-Secret``."""
    has_body: bool = False
    seen: str
    cause: str = ""
    """Why there is none, or where a redirect leads."""

    @property
    def is_good(self) -> bool:
        """Whether Asana takes it for a success."""
        return self.status in (200, 204)


@define
class _Check:
    store: Store
    http: aiohttp.ClientSession
    base: URL = field(repr=False)
    query: str = field(repr=False)
    timeout: float
    endpoint: str = field(factory=lambda: secrets.token_urlsafe(32), repr=False)
    secret: Secret = field(factory=lambda: Secret(secrets.token_hex(32)))
    resource: str = field(factory=lambda: f"{10**17 + secrets.randbelow(10**17)}")
    findings: list[PublicUrlFinding] = field(factory=list)
    slowest: float = 0.0
    """Seconds that the slowest answer took."""

    async def run(self, public_url: str) -> None:
        """Open the registration, and check one thing after another."""
        await self.store.open_registration(
            registration_id(self.endpoint),
            resource=self.resource,
            public_url=public_url,
            label=_LABEL,
            ttl=_LONGEST * self.timeout,
        )
        try:
            check_reachable("public_url", public_url, base_url="https://app.asana.com")
        except ConfigurationError as error:
            self.add("address", "on this machine", f"{error}", ok=True)
        if not await self.check_handshake():
            return
        if await self.check_body():
            long = await self.post(_LONG, self.signature(_LONG))
            self.add("long body", f"{len(_LONG) // 1000} kB, {long.seen}", self.why(long))
        self.add("time", f"the slowest answer took {self.slowest:.2f} s of {self.timeout:g}", self.why_slow(), ok=True)
        await self.check_two_at_once()

    def add(self, name: str, seen: str, cause: str, *, ok: bool = False) -> None:
        """Note a finding. Without a cause it is ok."""
        self.findings.append(PublicUrlFinding(name=name, ok=ok or not cause, seen=seen, cause=cause))

    # What is checked

    async def check_handshake(self) -> bool:
        """Shake hands. Return whether more can be checked: the receiver has the secret, and its answers come back."""
        answer = await self.post(_PLAIN, {"X-Hook-Secret": self.secret.reveal()})
        found = await self.store.list_registrations(label=_LABEL, resource=self.resource)
        arrived = any(one.echoed for one in found)
        same = answer.secret == self.secret.reveal()
        cause = _why_not_echoed(answer, same=same) if arrived else await self.why_not_arrived(answer, same=same)
        self.add("handshake", answer.seen, cause)
        return arrived and answer.is_good and (same or answer.secret is None)

    async def why_not_arrived(self, answer: _Answer, *, same: bool) -> str:
        """Return why the receiver did not get the handshake, or refused it."""
        if answer.status in _REFUSED:
            other = await self.post(_PLAIN, {}, endpoint=secrets.token_urlsafe(32))
            if other.status == 404:  # so the receiver looked into this store, and refused what came to our endpoint
                return _REFUSED[answer.status]
        if answer.is_good and same:
            return "another program answers handshakes there, not a receiver with this store"
        if 200 <= answer.status < 300:
            return _ANOTHER
        return self.why(answer)

    async def check_body(self) -> bool:
        """Send a body whose signature no longer fits if anything writes its JSON anew. Return whether it does fit."""
        answer = await self.post(_ODD, self.signature(_ODD))
        cause = self.why(answer)
        if answer.status == 401:
            plain = await self.post(_PLAIN, self.signature(_PLAIN))
            cause = "something on the way removes X-Hook-Signature from the request, or changes every body"
            if plain.is_good:
                cause = "something on the way changes bodies, such as by writing JSON anew: pass on the raw bytes"
        self.add("signed body", answer.seen, cause)
        return answer.is_good

    async def check_two_at_once(self) -> None:
        """Hold a request back half way. Another one must be answered meanwhile."""
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def halves() -> AsyncIterator[bytes]:
            yield _ODD[:20]
            begun.set()
            await go_on.wait()
            yield _ODD[20:]

        headers = {**self.signature(_ODD), "Content-Length": f"{len(_ODD)}"}  # without it, it would be sent in chunks
        async with asyncio.TaskGroup() as tasks:
            held = tasks.create_task(self.post(halves(), headers))
            waiting = tasks.create_task(begun.wait())
            await asyncio.wait({held, waiting}, return_when=asyncio.FIRST_COMPLETED)
            begun.set()
            other = tasks.create_task(self.post(_PLAIN, self.signature(_PLAIN)))
            in_time, _ = await asyncio.wait({other}, timeout=_HOLD * self.timeout)
            go_on.set()
        answer, cause = other.result(), other.result().cause
        if not in_time and answer.status:
            cause = _ONE_THREAD
        self.add("two at once", f"while another one was under way, {answer.seen}", cause)

    # Likely causes

    def why_slow(self) -> str:
        """Return a warning if half of the time was needed."""
        if self.slowest < self.timeout / 2:
            return ""
        return "the store or the host is slow, or it sleeps until the first request. Asana gives up after 10 s"

    def why(self, answer: _Answer) -> str:
        """Return why a request failed, from its answer alone; an empty string if it did not."""
        if answer.is_good or answer.cause:
            return answer.cause
        if answer.status >= 500:
            return _5XX
        if answer.status == 404 and not answer.has_body:
            return _EMPTY_404
        key = _KEY if self.query and answer.status in (401, 403) else ""
        return _STATUSES.get(answer.status, _ANOTHER) + key

    # Requests

    def signature(self, body: bytes) -> dict[str, str]:
        return {"X-Hook-Signature": sign_body(body, secret=self.secret)}

    async def post(
        self, body: bytes | AsyncIterator[bytes], headers: Mapping[str, str], *, endpoint: str = ""
    ) -> _Answer:
        """Send one request to our endpoint, or to another one."""
        url = URL(f"{self.base / (endpoint or self.endpoint)}{self.query}", encoded=True)
        own = {"Content-Type": "application/json", "User-Agent": DEFAULT_HEADERS["User-Agent"]}
        begun = time.monotonic()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self.http.post(
                    url,
                    data=body,
                    headers={**own, **headers},
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeout / 2),
                ) as response,
            ):
                has_body = await response.content.read(1) != b""
        except Exception as error:  # noqa: BLE001 - what stands in for the network may raise anything
            seen, cause = _why_no_answer(error, self.timeout)
            return _Answer(seen=seen, cause=cause)
        seconds = time.monotonic() - begun
        self.slowest = max(self.slowest, seconds)
        seen, cause = f"answered {response.status} in {seconds:.2f} s", ""
        if 300 <= response.status < 400:
            cause = f"a redirect to {_masked(url, response.headers.get('Location', ''))}, and Asana follows none"
        secret = response.headers.get("X-Hook-Secret")
        return _Answer(status=response.status, secret=secret, has_body=has_body, seen=seen, cause=cause)


def _why_not_echoed(answer: _Answer, *, same: bool) -> str:
    """Return why the answer is wrong, although the receiver got the handshake; an empty string if it is right."""
    if not answer.status:
        return f"the receiver got it, but its answer was lost: {answer.cause}"
    if not answer.is_good:
        return "the receiver got it: something on the way changes its answer's status, or the receiver's log says why"
    if answer.secret is None:
        return "the receiver got it: something on the way removes X-Hook-Secret from its answer; let it through"
    return "" if same else "something on the way changes X-Hook-Secret, or answers from a cache"


def _why_no_answer(error: Exception, timeout: float) -> tuple[str, str]:
    """Return what was seen, and its likely cause."""
    seen = problem_of(error)
    match error:
        case aiohttp.ClientConnectorCertificateError(certificate_error=refused):
            cause = _CERTIFICATES.get(getattr(refused, "verify_code", 0), "look at it: Asana refuses it, too")
        case aiohttp.ClientSSLError():
            cause = "the port does not speak TLS, or only versions that are too old"
        case aiohttp.ClientConnectorDNSError():
            cause = "the host has no public DNS record: look for a typing error, and ask another resolver"
        case aiohttp.ConnectionTimeoutError():
            cause = "a firewall drops connections, or the host is down"
        case aiohttp.ClientConnectorError():
            cause = "nothing listens there: the receiver or the proxy in front is not running, or the port is wrong"
        case TimeoutError():
            seen = f"no answer within {timeout:g} s"
            cause = "the receiver is slow or hangs, or something on the way holds requests back"
        case _:
            cause = (
                "something on the way drops the connection: a body that is too long, http in place of https, or a crash"
            )
    return seen, cause


def _masked(url: URL, location: str) -> str:
    """Return where a redirect leads, without the endpoint and the query."""
    try:
        target = url.join(URL(location))
        origin = f"{target.origin()}"
    except ValueError:
        return "no valid URL"
    path = re.sub("[^/]{16,}", "***", target.raw_path)
    return f"{origin}{path}{'?***' if target.raw_query_string else ''}"[:300]
