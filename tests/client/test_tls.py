"""TLS that is not as it should be: refused with words that say why, and the token never leaves."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import trustme

from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConnectionFailedError
from tests.helpers.raw import (
    CALLS,
    CREATE,
    GET,
    TOKEN,
    Call,
    assert_nothing_left,
    framed,
    raw_server,
    saying,
    session,
)

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """Return the authority that is trusted here."""
    return trustme.CA()


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    """Return what a client needs to trust it."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    assert_nothing_left()


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def fail(asana: AsanaSession, call: Call) -> ConnectionFailedError:
    """Make a call that cannot be made, and return its error, which is in words."""
    with pytest.raises(ConnectionFailedError) as caught:
        await asana.send(call.request)
    text = str(caught.value)
    assert text.isprintable()
    assert TOKEN not in text
    assert "object at 0x" not in text
    assert "[None]" not in text
    return caught.value


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("lent", [False, True])
async def test_a_certificate_of_an_own_authority(
    call: Call, lent: bool, ca: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """It is trusted by whoever says so with ssl=, on a lent session too."""
    answer = saying(framed(call.good, status=call.status))
    async with raw_server(answer, tls=serving(ca.issue_cert(HOST))) as server, aiohttp.ClientSession() as http:
        async with session(server.url, ssl=trusting, http=http if lent else None) as asana:
            await asana.send(call.request)

        assert [one.method for one in server.requests] == [call.request.method]


WRONG = {
    "unknown authority": "local issuer certificate",
    "self-signed": "signed certificate",
    "wrong host": "not valid for '127.0.0.1'",
    "expired": "expired",
    "not yet valid": "not yet valid",
}


def wrong(kind: str, ca: trustme.CA) -> ssl.SSLContext:
    """Serve a certificate that is refused."""
    now, day = datetime.now(UTC), timedelta(days=1)
    match kind:
        case "unknown authority":
            return serving(trustme.CA().issue_cert(HOST))
        case "self-signed":
            return self_signed()
        case "wrong host":
            return serving(ca.issue_cert("asana.example"))
        case "expired":
            return serving(ca.issue_cert(HOST, not_before=now - 2 * day, not_after=now - day))
    return serving(ca.issue_cert(HOST, not_before=now + day, not_after=now + 2 * day))


@pytest.mark.parametrize("call", [GET, CREATE], ids=str)
@pytest.mark.parametrize("kind", WRONG)
async def test_certificates_that_are_refused(kind: str, call: Call, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    """They are tried again as any connection that cannot be made, and not for ever; the error says what is wrong."""
    async with raw_server(saying(framed(GET.good)), tls=wrong(kind, ca)) as server:
        async with session(server.url, ssl=trusting) as asana:
            error = await fail(asana, call)

        assert error.attempts == (2 if call is CREATE else 4)
        assert "certificate" in str(error)
        assert WRONG[kind] in str(error)
        assert server.heard == b""


async def test_an_own_authority_is_trusted_by_nobody_unasked(ca: trustme.CA) -> None:
    """Without ssl= the authorities of the machine count."""
    async with raw_server(saying(framed(GET.good)), tls=serving(ca.issue_cert(HOST))) as server:
        async with session(server.url) as asana:
            error = await fail(asana, GET)

        assert "local issuer certificate" in str(error)
        assert server.heard == b""


def self_signed() -> ssl.SSLContext:
    """Serve the certificate of an authority itself."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with authority.private_key_pem.tempfile() as key, authority.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("call", [GET, CREATE], ids=str)
async def test_tls_1_1(call: Call, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    """A server that speaks nothing newer is refused before it hears anything."""
    old = serving(ca.issue_cert(HOST))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with raw_server(saying(framed(GET.good)), tls=old) as server, session(server.url, ssl=trusting) as asana:
        await fail(asana, call)

        assert server.requests == []
        assert server.heard == b""


@pytest.mark.parametrize(
    "first_words", [framed(b"", status=400), b"220 mail.example.com ESMTP\r\n", b""], ids=["http", "smtp", "nothing"]
)
async def test_no_tls_where_it_should_be(first_words: bytes, trusting: ssl.SSLContext) -> None:
    """A plain server on the port is no server of ours, and hears nothing but a greeting."""
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(4096))
        writer.write(first_words)
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        async with session(f"https://{HOST}:{port}", ssl=trusting) as asana:
            for call in CALLS:
                assert f"{HOST}:{port}" in str(await fail(asana, call))

    assert TOKEN.encode() not in heard


async def test_plain_http_to_tls(ca: trustme.CA) -> None:
    """The other way round is a broken connection as well."""
    async with raw_server(saying(framed(GET.good)), tls=serving(ca.issue_cert(HOST))) as server:
        async with session(server.url.replace("https:", "http:")) as asana:
            with pytest.raises(ConnectionFailedError):
                await asana.send(GET.request)

        assert server.requests == []


@pytest.mark.parametrize("limits", [{"connect_timeout": 0.1}, {"attempt_timeout": 0.1, "create_attempt_timeout": 0.1}])
async def test_handshakes_that_never_end(limits: dict[str, float], trusting: ssl.SSLContext) -> None:
    """Either limit ends one; nothing was sent, so a create is tried again as well."""
    over = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        await over.wait()
        writer.close()

    async with await asyncio.start_server(hang, HOST, 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        async with session(f"https://{HOST}:{port}", ssl=trusting, **limits) as asana:
            error = await fail(asana, CREATE)
        over.set()

    assert error.attempts == 2


async def test_an_answer_cut_off_without_goodbye(ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    """A connection that ends without TLS's own farewell has not told the end of an answer without a length."""
    half = framed(GET.good[:10], framing="close")

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(half if len(server.requests) == 1 else framed(GET.good))
        await writer.drain()
        writer.transport.abort()

    async with raw_server(talk, tls=serving(ca.issue_cert(HOST))) as server:
        async with session(server.url, ssl=trusting) as asana:
            assert (await asana.send(GET.request)).gid == "43214"

        assert len(server.requests) >= 2
