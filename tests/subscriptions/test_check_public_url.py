"""Checking a public URL: real proxies that break one thing each in front of a receiver, and what is said of each."""

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from tempfile import NamedTemporaryFile
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict

from asana_webhooks import (
    ConfigurationError,
    MemoryStore,
    PublicUrlReport,
    Receiver,
    SQLiteStore,
    Store,
    StoreUnavailableError,
    check_public_url,
    check_webhooks,
    plan_webhooks,
)
from asana_webhooks.store.base import RegistrationState
from asana_webhooks.testing import serve_receiver
from tests.helpers.cancelling import cancel_at_every_step
from tests.helpers.doors import DOORS
from tests.helpers.ports import free_port
from tests.subscriptions.scenes import Dawdling, LoopClock, Remembering, scene, troubled


class Proxy:
    """Passes requests on to a receiver; `spoil` says how it breaks them."""

    def __init__(self, public_url: str, spoil: "Spoil") -> None:
        self.origin = "http://" + urlsplit(public_url).netloc
        self.spoil = spoil
        self.lock = asyncio.Lock()
        self.clock = LoopClock()
        self.secrets: set[str] = set()
        """What it has seen that no text may show."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.content_length is not None, "Asana sends no chunks"
        self.secrets |= {request.path.rpartition("/")[2], request.headers.get("X-Hook-Secret", "")} - {""}
        return await self.spoil(self, request)

    async def passed(
        self,
        request: web.Request,
        *,
        path: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        without: str = "",
        answer_without: str = "",
        status: int | None = None,
    ) -> web.Response:
        body = await request.read() if body is None else body
        given = CIMultiDict(request.headers)
        for name in ("Content-Length", "Transfer-Encoding", without):
            given.popall(name, None)
        given.extend(headers or {})
        url = self.origin + (path or request.raw_path)
        async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=given) as answer:
            kept = {name: value for name, value in answer.headers.items() if name == "X-Hook-Secret" != answer_without}
            return web.Response(status=status or answer.status, body=await answer.read(), headers=kept)

    async def hold(self) -> None:
        """Never go on; time passes at once."""
        self.clock.turn(10)
        await asyncio.Event().wait()


Spoil = Callable[[Proxy, web.Request], Awaitable[web.StreamResponse]]


def answering(status: int, text: str = "<h1>Hello</h1>", **headers: str) -> Spoil:
    async def answer(_: Proxy, __: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return answer


def passing(**changes: Any) -> Spoil:
    return lambda proxy, request: proxy.passed(request, **changes)


def saying(answer: bytes) -> Spoil:
    """Send these bytes, and close the connection."""

    async def say(_: Proxy, request: web.Request) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.Transport)
        request.transport.write(answer)
        request.transport.close()
        return web.Response()

    return say


async def rewrites_json(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    return await proxy.passed(request, body=json.dumps(json.loads(await request.read())).encode())


async def compresses(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    body = gzip.compress(await request.read())
    return await proxy.passed(request, body=body, headers={"Content-Encoding": "gzip"})


async def redirects(_: Proxy, request: web.Request) -> web.StreamResponse:
    return web.Response(status=308, headers={"Location": f"https://example.com{request.raw_path}/\x9b31m?code=k3y"})


async def cuts_path(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    return await proxy.passed(request, path=request.raw_path.removeprefix("/asana"))


async def echoes(_: Proxy, request: web.Request) -> web.StreamResponse:
    return web.Response(headers={"X-Hook-Secret": request.headers.get("X-Hook-Secret", "")})


async def endless(_: Proxy, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"<p>Hello" * 1000)


async def cuts_secret(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    answer = await proxy.passed(request)
    if secret := answer.headers.get("X-Hook-Secret"):
        answer.headers["X-Hook-Secret"] = secret[:-1]
    return answer


async def limits_bodies(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    long = (request.content_length or 0) > 128 * 1024
    return web.Response(status=403) if long else await proxy.passed(request)


async def one_at_a_time(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    if proxy.lock.locked():
        proxy.clock.turn(4)
    async with proxy.lock:
        return await proxy.passed(request)


async def one_and_no_more(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    if proxy.lock.locked():
        return web.Response(status=503)
    async with proxy.lock:
        return await proxy.passed(request)


async def hangs(proxy: Proxy, _: web.Request) -> web.StreamResponse:
    await proxy.hold()
    return web.Response()


async def loses_answers(proxy: Proxy, request: web.Request) -> web.StreamResponse:
    await proxy.passed(request)
    await proxy.hold()
    return web.Response()


@asynccontextmanager
async def behind(public_url: str, spoil: Spoil, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, Proxy]]:
    """Put a proxy in front of a receiver; yields its public URL."""
    proxy = Proxy(public_url, spoil)
    app = web.Application(client_max_size=2**20)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/asana", proxy
    finally:
        await runner.cleanup()


def failed(report: PublicUrlReport) -> dict[str, str]:
    """Return the causes of what failed, by name."""
    assert report.ok == ("failed" not in [one.verdict for one in report.findings])
    return {one.name: one.cause for one in report.findings if one.verdict == "failed"}


async def closed(store: Remembering) -> bool:
    """Return whether something was registered, and all of it is closed."""
    return set(await store.states()) == {RegistrationState.CLOSED}


@pytest.mark.parametrize("door", ["aiohttp", "fastapi"])
async def test_all_is_well(door: str, tmp_path: Any) -> None:
    """All checks pass, several at once too, on a server of its own and in an app; a slash or a query is no matter."""
    async with SQLiteStore(tmp_path / "asana.db") as store, DOORS[door](Receiver(store)) as url:
        reports = await asyncio.gather(*(check_public_url(store, f"{url}{end}") for end in ("", "/", "?code=k3y%2F")))

        assert [failed(one) for one in reports] == [{}, {}, {}]
        names = ["address", "handshake", "signed body", "long body", "time", "two at once"]
        assert [one.name for one in reports[0].findings] == names
        text = str(reports[0])
        assert "\nok: handshake: answered 200 in " in text
        assert text.startswith("warning: address: on this machine or in a private network; Asana cannot reach it: ")
        found = await store.list_registrations()
        assert [one.state for one in found] == [RegistrationState.CLOSED] * 3
        assert (await store.health()).quarantined == 0


GATEWAY = "a login page, gateway or firewall refuses requests: let the path through"
ELSEWHERE = "another server or page answers, or the path is changed on the way"
STORE = "the receiver uses another store than this check, or something on the way changes the end of the path"
BROKEN: dict[str, tuple[Spoil, str, str]] = {
    "request header": (passing(without="X-Hook-Secret"), "handshake", "removes X-Hook-Secret from the request"),
    "repeated header": (passing(headers={"X-Hook-Secret": "x"}), "handshake", "changes or repeats the request's"),
    "answer header": (passing(answer_without="X-Hook-Secret"), "handshake", "removes X-Hook-Secret in the answer"),
    "cut header": (cuts_secret, "handshake", "something on the way changes X-Hook-Secret in the answer"),
    "answer status": (passing(status=202), "handshake", "something on the way changes its status"),
    "redirect": (redirects, "handshake", r"to 'https://example.com/asana/***/\x9b31m', and Asana follows none"),
    "path": (cuts_path, "handshake", ELSEWHERE),
    "query": (answering(403), "handshake", f"{GATEWAY}; if the key in the query is asked for, it is wrong, or cut on"),
    "end of the path": (passing(path="/asana/webhook"), "handshake", STORE),
    "login": (answering(401, "", **{"WWW-Authenticate": "Basic"}), "handshake", GATEWAY),
    "default page": (answering(200), "handshake", ELSEWHERE),
    "endless page": (endless, "handshake", ELSEWHERE),
    "another site": (answering(404), "handshake", ELSEWHERE),
    "garbled page": (answering(404, "no gzip", **{"Content-Encoding": "gzip"}), "handshake", ELSEWHERE),
    "another program": (echoes, "handshake", "another program answers handshakes there"),
    "nothing behind it": (answering(502), "handshake", "the receiver is not running"),
    "compressed": (compresses, "handshake", "something on the way compresses requests"),
    "closed": (saying(b""), "handshake", "the receiver or something on the way drops the connection"),
    "no HTTP": (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "handshake", "no web server listens there"),
    "hanging": (hangs, "handshake", "the receiver is slow or hangs, or something on the way holds requests back"),
    "lost answer": (loses_answers, "handshake", "the receiver got it, but its answer was lost: the receiver is slow"),
    "JSON": (rewrites_json, "signed body", "changes bodies, such as by writing JSON anew: pass on the raw bytes"),
    "signature": (passing(without="X-Hook-Signature"), "signed body", "removes or changes X-Hook-Signature, or"),
    "size": (limits_bodies, "long body", "something on the way refuses or delays long bodies: let 1 MB through"),
    "one at a time": (one_at_a_time, "two at once", "a single-threaded server, which cannot answer the handshake"),
    "one and no more": (one_and_no_more, "two at once", "the receiver is not running, overloaded, or"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_each_cause(what: str) -> None:
    """Each thing that breaks is found alone, with its own cause, and no text shows an endpoint, a secret or the key."""
    spoil, name, cause = BROKEN[what]
    async with Remembering() as store, serve_receiver(Receiver(store)) as receiver, behind(receiver, spoil) as at:
        url, proxy = at
        report = await check_public_url(store, url + ("?code=k3y" if what == "query" else ""))

        assert [*failed(report)] == [name], str(report)
        assert cause in failed(report)[name]
        assert f"\nfailed: {name}: " in str(report)
        assert proxy.secrets
        assert not [one for one in (*proxy.secrets, "k3y") if one in f"{report}{report!r}"]
        assert await closed(store)


async def test_another_store() -> None:
    """Receivers that use another store are told from another server; theirs is not touched."""
    async with Remembering() as store, MemoryStore() as other, serve_receiver(Receiver(other)) as url:
        report = await check_public_url(store, url)

        assert failed(report)["handshake"].startswith("the receiver uses another store than this check")
        assert await closed(store)
        assert await other.list_registrations() == []


async def test_slow_answers_are_a_warning() -> None:
    """From a third of the time on, it says how long they took, and takes the server for no single-threaded one."""

    async def slow(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        proxy.clock.turn(4)
        return await proxy.passed(request)

    async with MemoryStore() as store, serve_receiver(Receiver(store)) as receiver, behind(receiver, slow) as (url, _):
        report = await check_public_url(store, url)

        assert report.ok, str(report)
        assert str(report.findings[-1]).startswith("warning: time: the slowest answer took 4.")


async def test_connections_may_be_closed_after_each_answer() -> None:
    """A server that does so, and does not announce it, is well."""

    async def closes(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        answer = await proxy.passed(request)
        await answer.prepare(request)
        await answer.write_eof()
        assert request.transport is not None
        request.transport.close()
        return answer

    async with (
        MemoryStore() as store,
        serve_receiver(Receiver(store)) as receiver,
        behind(receiver, closes) as (url, _),
    ):
        assert failed(await check_public_url(store, url)) == {}


# Connections


class NoDns(AbstractResolver):
    """A resolver that knows no host."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise OSError(None, f"no address for {host}")

    async def close(self) -> None:
        """Nothing is open."""


async def test_no_connection() -> None:
    """A port where nothing listens, and hosts that DNS does not know; a session that is lent stays open."""
    async with MemoryStore() as store, aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=NoDns())) as http:
        report = await check_public_url(store, f"http://127.0.0.1:{free_port()}/asana")
        assert failed(report)["handshake"].startswith("the receiver or the proxy in front of it is not running")
        assert "Connect call failed" in str(report) or "refused" in str(report)

        report = await check_public_url(store, "https://asana.example.com/asana", http=http)
        assert [one.name for one in report.findings] == ["handshake"]
        assert failed(report)["handshake"].startswith("the host has no public DNS record")
        assert not http.closed

        report = await check_public_url(store, f"https://{'a' * 64}.example.com/asana")
        assert failed(report) == {"handshake": "the host is misspelt"}


class NoNetwork(aiohttp.TCPConnector):
    """A connector that reaches no address."""

    async def connect(self, *_: Any, **__: Any) -> Any:
        raise OSError(101, "Network is unreachable")


async def test_private_addresses() -> None:
    """A warning says that Asana cannot reach them, whatever else is found."""
    hosts = ("10.0.0.8", "[fd00::8]", "100.64.0.8", "asana.local", "LOCALHOST.", "example.com", "8.8.8.8")
    async with MemoryStore() as store, aiohttp.ClientSession(connector=NoNetwork()) as http:
        reports = [await check_public_url(store, f"http://{host}/asana", http=http) for host in hosts]
    found = [[one.verdict for one in report.findings] for report in reports]
    assert found == [["warning", "failed"]] * 5 + [["failed"]] * 2


def serving(certificate: trustme.LeafCert, *, chain: bool = True) -> ssl.SSLContext:
    """Return what a server needs to show a certificate, with or without those of the authorities between."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates = certificate.cert_chain_pems if chain else certificate.cert_chain_pems[:1]
    with NamedTemporaryFile() as file:
        file.write(b"".join(one.bytes() for one in (certificate.private_key_pem, *certificates)))
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def test_certificates() -> None:
    """Each fault of a certificate is named; with a good one all is well."""
    ca, past = trustme.CA(), datetime(2020, 1, 1, tzinfo=UTC)
    between = ca.create_child_ca()
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    expired = ca.issue_cert("127.0.0.1", not_before=past, not_after=past + timedelta(1))
    cases: list[tuple[ssl.SSLContext, bool, str]] = [
        (serving(between.issue_cert("127.0.0.1")), True, ""),
        (serving(between.issue_cert("127.0.0.1"), chain=False), True, "unable to get local issuer certificate"),
        (serving(ca.issue_cert("127.0.0.2")), True, "IP address mismatch"),
        (serving(expired), True, "certificate has expired"),
        (serving(ca.issue_cert("127.0.0.1")), False, "unable to get local issuer certificate"),
    ]
    async with MemoryStore() as store, serve_receiver(Receiver(store)) as receiver:
        for tls, trusted, seen in cases:
            connector = aiohttp.TCPConnector(ssl=trusting if trusted else True)
            async with behind(receiver, passing(), tls) as (url, _), aiohttp.ClientSession(connector=connector) as http:
                report = await check_public_url(store, url, http=http)
                assert report.ok == (seen == ""), str(report)
                assert seen in str(report)
                assert ("the server sends no intermediate certificates (conf" in str(report)) == (seen != "")
        async with behind(receiver, passing()) as (url, _):  # which speaks no TLS
            report = await check_public_url(store, url.replace("http:", "https:"))
            assert failed(report)["handshake"].startswith("the port does not speak TLS")


# What it leaves behind


async def test_nobody_sees_it() -> None:
    """While it runs, no plan, check or health of the service shows it, and ensuring creates what is wanted."""

    async def stop_at_the_body(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        if "X-Hook-Signature" in request.headers:
            reached.set()
            await asyncio.Event().wait()
        return await proxy.passed(request)

    reached = asyncio.Event()
    async with scene(Remembering()) as here, behind(here.public_url, stop_at_the_body) as (url, _):
        checking = asyncio.create_task(check_public_url(here.store, url))
        await reached.wait()
        [pending] = await here.store.list_registrations(state=RegistrationState.PENDING)
        assert pending.echoed

        where: dict[str, Any] = {"public_url": here.public_url, "workspace": here.fake.workspace}
        for label in ("", pending.label):
            plan = await plan_webhooks(here.asana, here.store, [], prune=True, label=label, **where)
            assert (plan.steps, plan.problems, plan.warnings) == ((), {}, ())
            assert await check_webhooks(here.asana, here.store, label=label, **where) == ()
        assert (await here.store.health()).webhooks == 0
        assert (await here.ensure()).action == "created"

        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        assert await here.store.list_registrations(state=RegistrationState.PENDING) == []


async def test_it_may_be_cancelled_at_every_step() -> None:
    """Wherever it is cancelled, the registration is closed; also if opening it was just under way."""
    async with MemoryStore() as store, serve_receiver(Receiver(store)) as url:
        dawdling = Dawdling(store)
        reports: list[PublicUrlReport] = []

        async def check() -> None:
            reports.append(await check_public_url(cast("Store", dawdling), url))

        async def nothing_left() -> None:
            assert await dawdling.open_now() == []

        assert await cancel_at_every_step(check, nothing_left) > 50
        assert [one.ok for one in reports] == [True]


async def test_the_store_fails() -> None:
    """The store's error is raised, and the registration closed if that works."""
    async with Remembering() as store, serve_receiver(Receiver(store)) as url:
        with pytest.raises(StoreUnavailableError, match="disk I/O error"):
            await check_public_url(troubled(store, "list_registrations"), url)
        assert await closed(store)


async def test_wrong_arguments() -> None:
    """Nothing is opened or sent then."""
    url = "http://127.0.0.1:9/asana"
    async with Remembering() as store:
        for call in (
            check_public_url(url, url),  # type: ignore[arg-type]
            check_public_url(store, "example.com"),
            check_public_url(store, url, timeout=0),
        ):
            with pytest.raises(ConfigurationError):
                await call
        assert store.opened == []
        async with aiohttp.ClientSession() as http:
            """It is closed from here on."""
        with pytest.raises(RuntimeError, match="closed"):
            await check_public_url(store, url, http=http)
        assert await closed(store)
