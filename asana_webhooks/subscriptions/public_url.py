"""Checking a public URL before any webhook is created: requests as Asana sends them, to a registration of their own.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import nullcontext
from ipaddress import ip_address
from typing import Final, Literal

import aiohttp
from attrs import define, field, frozen
from yarl import URL

from asana_webhooks._checks import check_seconds, check_store
from asana_webhooks._tasks import finish
from asana_webhooks.client.transport import DEFAULT_HEADERS, problem_of
from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import Store, registration_id
from asana_webhooks.subscriptions.rules import split_public_url

__all__ = ["PublicUrlFinding", "PublicUrlReport", "check_public_url"]

_LABEL: Final = "check of the public URL"
"""Plans and health look at one label only. Receivers show it in their logs."""
_SLOW: Final = 0.3
"""The part of the timeout from which an answer is slow, and for which a request is held back."""

_ODD: Final = b'{ "events" :\t[ ],  "note" : "\\u00e9 \\/", "number":1.0 }\r\n'
"""No program that parses JSON writes it like this."""
_PLAIN: Final = b"{}"
"""Every program that parses JSON writes it like this."""
_LONG: Final = b'{"events":[],"note":"%b"}' % (b"x" * 500_000)
"""As long as a delivery of 1,000 events can be. Firewalls often stop at 8 to 128 kB."""

_STATUSES: Final = {
    **dict.fromkeys((401, 403, 429), "a login page, gateway or firewall refuses requests: let the path through"),
    415: "something on the way compresses requests, which breaks signatures: switch that off",
    **dict.fromkeys(range(500, 600), "the receiver is not running, overloaded, or cannot use its store: see its log"),
}
"""Likely causes of a status."""
_REFUSED: Final = {
    **_STATUSES,
    400: "something on the way changes or repeats the request's header X-Hook-Secret: let it through as it is",
    401: "something on the way removes X-Hook-Secret from the request, or a gateway refuses it: let it through",
    404: "the receiver uses another store than this check, or something on the way changes the end of the path",
}
"""Likely causes of a status that comes as from a receiver: with an empty body, and without asking for a login."""
_ANOTHER: Final = "another server or page answers, or the path is changed on the way: look where host and path lead"
_NO_ANSWER: Final[dict[type[Exception], str]] = {
    aiohttp.ClientConnectorCertificateError: (
        "the server sends no intermediate certificates (configure the full chain), or its certificate is out of date, "
        "another host's, or from no public authority"
    ),
    aiohttp.ClientSSLError: "the port does not speak TLS, or only versions that are too old",
    aiohttp.ClientConnectorDNSError: "the host has no public DNS record, or is misspelt",
    UnicodeError: "the host is misspelt",
    aiohttp.ConnectionTimeoutError: "a firewall drops connections, or the host is down",
    aiohttp.ClientConnectorError: "the receiver or the proxy in front of it is not running, or the port is wrong",
    TimeoutError: "the receiver is slow or hangs, or something on the way holds requests back",
    aiohttp.ClientResponseError: "no web server listens there, or one that expects https: look at scheme and port",
    Exception: "the receiver or something on the way drops the connection: see the logs of both",
}
"""Likely causes of errors; the first that fits counts."""
_LIMIT: Final = (
    "something on the way refuses or delays long bodies: let 1 MB through (nginx: client_max_body_size, AWS WAF: "
    "SizeRestrictions_BODY, the receiver: max_body)"
)
_ONE_THREAD: Final = (
    "a single-threaded server, which cannot answer the handshake while it creates a webhook: give it several threads "
    "or workers"
)


@frozen(kw_only=True)
class PublicUrlFinding:
    """What one part of `check_public_url` has found. Its text has no endpoint, no secret and no query."""

    name: str
    """``address``, ``handshake``, ``signed body``, ``long body``, ``time``, or ``two at once``."""
    verdict: Literal["ok", "warning", "failed"]
    seen: str
    """Such as ``answered 302 in 0.01 s``."""
    cause: str = ""
    """The likely cause, and what to do; empty if all is well."""

    def __str__(self) -> str:
        text = f"{self.verdict}: {self.name}: {self.seen}"
        return f"{text}; {'likely cause: ' * (self.verdict == 'failed')}{self.cause}" if self.cause else text


@frozen(kw_only=True)
class PublicUrlReport:
    """What `check_public_url` has found: its text is a line for each finding."""

    findings: tuple[PublicUrlFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed. Warnings do not count."""
        return all(one.verdict != "failed" for one in self.findings)

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
    label and a resource of its own, so it blocks no webhook, and plans and health do not show it. Then it sends a
    handshake, signed bodies, and two requests at once: at most five requests, and it awaits each. If the handshake or
    the first body fails, that is the last finding.

    At the end it closes the registration, also if it raises or is cancelled; that may take 5 seconds. A killed process
    leaves one that expires. What the receiver stored for it is dropped.

    Asana may still see something else: a firewall may treat its addresses in another way than yours. A proxy that reads
    whole requests before it passes them on hides a single-threaded server.

    Args:
        store: the store the receivers use.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`.
        timeout: seconds for each request. Asana gives up after 10.
        http: an ``aiohttp.ClientSession`` to use, such as one with a proxy; it stays open. It needs two connections.

    Raises:
        ConfigurationError: an argument is invalid.
        StoreError: the store failed.
        RuntimeError: *http* is closed, or another event loop's.
    """
    check_store(store)
    base, query = split_public_url(public_url)
    check_seconds("timeout", timeout, zero=False)
    endpoint, resource = secrets.token_urlsafe(32), f"{10**17 + secrets.randbelow(10**17)}"
    id, url = registration_id(endpoint), URL(f"{base / endpoint}{query}", encoded=True)
    # A kept connection may be closed by the other end, which would fail the next request.
    connector, jar = None if http else aiohttp.TCPConnector(force_close=True), aiohttp.DummyCookieJar()
    session = http or aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False)
    async with session if http is None else nullcontext():
        check = _Check(store, session, url, resource, timeout)
        try:
            ttl = 8 * timeout  # for all requests
            await store.open_registration(id, resource=resource, public_url=f"{base}{query}", label=_LABEL, ttl=ttl)
            await check.run()
        finally:
            await finish(store.close_registration(id))
    return PublicUrlReport(findings=tuple(check.findings))


@frozen(kw_only=True)
class _Answer:
    status: int = 0
    """0: there is none."""
    echo: str | None = field(default=None, repr=False)
    """Its ``X-Hook-Secret``."""
    seen: str
    cause: str = ""
    """Why Asana would not take it for a success; empty if it would."""


@define
class _Check:
    store: Store
    http: aiohttp.ClientSession
    url: URL = field(repr=False)
    resource: str
    timeout: float
    secret: Secret = field(factory=lambda: Secret(secrets.token_hex(32)))
    findings: list[PublicUrlFinding] = field(factory=list)
    slowest: float = 0.0
    """Seconds that the slowest answer took."""

    async def run(self) -> None:
        """Check one thing after another. What needs the handshake or an intact body is left out if it fails."""
        if _is_private(self.url.host or ""):
            cause = "Asana cannot reach it: start a tunnel, such as cloudflared or ngrok, and use its https URL"
            self.add("address", "on this machine or in a private network", cause, warn=True)
        if not await self.check_handshake() or not await self.check_body():
            return
        long = await self.post(_LONG)
        self.add("long body", f"{len(_LONG) // 1000} kB, {long.seen}", long.cause and _LIMIT)
        seen, slow = f"the slowest answer took {self.slowest:.2f} s of {self.timeout:g}", _SLOW * self.timeout
        if self.slowest < slow:
            self.add("time", seen)
            await self.check_two_at_once(slow=slow)
        else:  # so it cannot be told whether one request has to wait for another
            cause = "the store or the host is slow, or was asleep: check again, to check two at once, too"
            self.add("time", seen, cause, warn=True)

    def add(self, name: str, seen: str, cause: str = "", *, warn: bool = False) -> bool:
        """Note a finding. Return whether all is well, which it is without a cause."""
        verdict: Literal["ok", "warning", "failed"] = "ok" if not cause else "warning" if warn else "failed"
        self.findings.append(PublicUrlFinding(name=name, verdict=verdict, seen=seen, cause=cause))
        return not cause

    async def check_handshake(self) -> bool:
        answer = await self.post(_PLAIN, handshake=True)
        found = await self.store.list_registrations(label=_LABEL, resource=self.resource)  # needs no key
        arrived, same = any(one.echoed for one in found), answer.echo == self.secret.reveal()
        cause = answer.cause
        if not arrived:
            program = "another program answers handshakes there, not a receiver with this store"
            cause = cause or (program if same else _ANOTHER)
        elif cause:
            why = "something on the way changes its status, or the receiver's log says why" if answer.status else cause
            cause = f"the receiver got it, but its answer was lost: {why}"
        elif not same:
            changes = "removes" if answer.echo is None else "changes"
            cause = f"something on the way {changes} X-Hook-Secret in the answer: let it through as it is"
        return self.add("handshake", answer.seen, cause)

    async def check_body(self) -> bool:
        """Send a body whose signature no longer fits if anything writes its JSON anew."""
        answer = await self.post(_ODD)
        cause = answer.cause
        if answer.status == 401:
            plain = await self.post(_PLAIN)
            cause = (
                "something on the way removes or changes X-Hook-Signature, or changes bodies: pass both on as they are"
            )
            if not plain.cause:
                cause = "something on the way changes bodies, such as by writing JSON anew: pass on the raw bytes"
        return self.add("signed body", answer.seen, cause)

    async def check_two_at_once(self, *, slow: float) -> None:
        """Hold a request back half way. Another one must be answered meanwhile."""
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def halves() -> AsyncIterator[bytes]:
            yield _ODD[:20]
            begun.set()
            await go_on.wait()
            yield _ODD[20:]

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.post(_ODD, parts=halves())).add_done_callback(lambda _: begun.set())
            await begun.wait()
            other = tasks.create_task(self.post(_PLAIN))
            in_time, _ = await asyncio.wait({other}, timeout=slow)
            go_on.set()
        answer = other.result()
        cause = answer.cause if in_time or not answer.status else _ONE_THREAD
        self.add("two at once", f"while another one was under way, {answer.seen}", cause)

    async def post(self, body: bytes, *, handshake: bool = False, parts: AsyncIterator[bytes] | None = None) -> _Answer:
        """Send one request: a handshake, or a signed body, which may come in parts."""
        secret = self.secret.reveal()
        headers = {"X-Hook-Secret": secret} if handshake else {"X-Hook-Signature": sign_body(body, secret=secret)}
        headers |= {"Content-Type": "application/json", "User-Agent": DEFAULT_HEADERS["User-Agent"]}
        headers["Content-Length"] = f"{len(body)}"  # or parts would be sent in chunks
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self.http.post(
                    self.url,
                    data=parts or body,
                    headers=headers,
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeout / 2),
                ) as response,
            ):
                is_bare = await response.content.read(1) == b"" and "WWW-Authenticate" not in response.headers
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            seen = f"no answer within {self.timeout:g} s" if type(error) is TimeoutError else problem_of(error)
            causes = (cause for kind, cause in _NO_ANSWER.items() if isinstance(error, kind))
            return _Answer(seen=seen, cause=next(causes))
        seconds = clock() - begun
        self.slowest = max(self.slowest, seconds)
        status, cause = response.status, ""
        if 300 <= status < 400:
            where = re.split("[?#;]", response.headers.get("Location", ""))[0].replace(self.url.name, "***")
            cause = f"a redirect to {where[:200]!a}, and Asana follows none: use a URL that leads there at once"
        elif status not in (200, 204):
            cause = (_REFUSED if is_bare else _STATUSES).get(status, _ANOTHER)
            if self.url.query_string and status in (401, 403):
                cause += "; if the key in the query is asked for, it is wrong, or cut on the way"
        seen, echo = f"answered {status} in {seconds:.2f} s", response.headers.get("X-Hook-Secret")
        return _Answer(status=status, echo=echo, seen=seen, cause=cause)


def _is_private(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return f".{host}".rstrip(".").endswith((".localhost", ".local", ".internal"))
