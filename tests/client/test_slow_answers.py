"""Answers that drip, never begin, never end, or are no HTTP at all: every call ends in time, and as it should."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    DeadlineExceededError,
    ForbiddenError,
    NetworkError,
    NotFoundError,
    RateLimitedError,
    UnexpectedResponseError,
)
from tests.helpers.raw import (
    CALLS,
    CREATE,
    DELETE,
    GET,
    LIST,
    PUT,
    Call,
    RawServer,
    assert_nothing_left,
    dripping,
    framed,
    head_length,
    raw_server,
    saying,
    session,
    writing_for_ever,
)
from tests.helpers.virtual import jumping_clock

LIMIT = 0.15


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    assert_nothing_left()


async def expect_deadline(asana: AsanaSession, call: Call, server: RawServer) -> None:
    """The call ends by the session's timeout, with the error that says so."""
    now = asyncio.get_running_loop().time
    began = now()
    with pytest.raises((CreateOutcomeUnknownError, DeadlineExceededError), match="no answer") as caught:
        await asana.send(call.request)
    assert now() - began >= LIMIT
    # On a busy machine a create may not even have begun.
    came = any(one.method == "POST" for one in server.requests)
    assert not (call is CREATE and came) or isinstance(caught.value, CreateOutcomeUnknownError)
    assert call is CREATE or isinstance(caught.value, DeadlineExceededError)


NEVER_ENDING = {
    "nothing": dripping(b"", b""),
    "a status line that drips": dripping(b"HTTP/1.1 200 ", b"O"),
    "a header that drips": dripping(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "half a head": dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", b""),
    "empty lines": dripping(b"", b"\r\n"),
    "100 for ever, slowly": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 for ever, fast": writing_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "103 for ever": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
}


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_the_status_of_a_refusal_counts_though_its_body_stalls(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A no is a no: it is not taken for a lost answer, and a create that was refused is not of unknown outcome."""
    monkeypatch.setattr("asana_webhooks.client.transport._REFUSAL_SECONDS", 0.05)
    for status, kind in ((403, ForbiddenError), (404, NotFoundError)):
        head = f"HTTP/1.1 {status} So\r\nContent-Length: 100\r\n\r\n{{".encode()
        async with raw_server(dripping(head, b"")) as server, session(server.url) as asana:
            with pytest.raises(kind) as caught:
                await asana.send(call.request)

            assert caught.value.attempts == len(server.requests) == 1


@pytest.mark.parametrize("call", [GET, CREATE], ids=str)
async def test_the_status_counts_though_little_time_is_left(call: Call) -> None:
    """A call whose time is short waits for such a body no longer than leaves time to say what came."""
    head = b"HTTP/1.1 403 So\r\nContent-Length: 100\r\n\r\n{"
    with jumping_clock() as clock:
        async with (
            raw_server(dripping(head, b"", every=10)) as server,
            session(server.url, timeout=0.5, clock=clock) as asana,
        ):
            with pytest.raises(ForbiddenError):
                await asana.send(call.request)


async def test_a_429_pauses_the_session_though_its_body_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asks for stands in its head."""
    monkeypatch.setattr("asana_webhooks.client.transport._REFUSAL_SECONDS", 0.05)
    head = b"HTTP/1.1 429 So\r\nRetry-After: 7000\r\nContent-Length: 100\r\n\r\n{"
    async with raw_server(dripping(head, b"")) as server, session(server.url) as asana:
        with pytest.raises(RateLimitedError) as caught:
            await asana.send(CREATE.request)
        assert caught.value.retry_after == 7000
        with pytest.raises(RateLimitedError, match="this was not sent"):
            await asana.send(GET.request)

        assert len(server.requests) == 1


NEVER_ENDING_BODIES = {
    "a body that drips": dripping(framed(b" " * 10_000)[:-10_000], b" "),
    "chunks that drip": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk's size that drips": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "a body without end that drips": dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
}


@pytest.mark.parametrize("name", [*NEVER_ENDING, *NEVER_ENDING_BODIES])
async def test_the_deadline_holds(name: str) -> None:
    """Whatever keeps coming, all five operations end at the session's timeout: at once, so they wait together."""
    talk = (NEVER_ENDING | NEVER_ENDING_BODIES)[name]
    calls = [call for call in CALLS if name in NEVER_ENDING or call is not DELETE]
    async with raw_server(talk) as server, session(server.url, timeout=LIMIT) as asana:
        await asyncio.gather(*(expect_deadline(asana, call, server) for call in calls))


@pytest.mark.parametrize("name", NEVER_ENDING_BODIES)
async def test_a_delete_does_not_wait_for_a_body(name: str) -> None:
    """Its status says all there is to know."""
    async with raw_server(NEVER_ENDING_BODIES[name]) as server, session(server.url) as asana:
        await asana.send(DELETE.request)

        assert len(server.requests) == 1


@pytest.mark.parametrize("call", [GET, LIST, PUT, DELETE], ids=str)
async def test_an_attempt_that_takes_too_long_is_made_again(call: Call) -> None:
    """The next one may be answered at once."""

    async def talk(writer: asyncio.StreamWriter) -> None:
        first = len(server.requests) == 1
        await (dripping(b"HTTP/1.1 200 OK\r\nX: ", b"y") if first else saying(framed(call.good)))(writer)

    async with raw_server(talk) as server, session(server.url, attempt_timeout=LIMIT, attempts=9) as asana:
        await asana.send(call.request)

        assert len(server.requests) >= 2


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_an_answer_in_bytes(call: Call) -> None:
    """One that comes byte by byte, each in a segment of its own, is an answer like any other."""
    answer = framed(b"", status=103) + framed(call.good, status=call.status, framing="chunked")

    async def talk(writer: asyncio.StreamWriter) -> None:
        for at in range(len(answer)):
            writer.write(answer[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with raw_server(talk) as server, session(server.url) as asana:
        await asana.send(call.request)

        assert len(server.requests) == 1


async def send(call: Call, answer: bytes) -> tuple[Any, int]:
    async with raw_server(saying(answer)) as server, session(server.url) as asana:
        try:
            result = await asana.send(call.request)
        except (NetworkError, UnexpectedResponseError) as error:
            result = error
    return result, len(server.requests)


NO_HTTP = {
    "binary": b"\0\1\2\3\r\n\r\n",
    "smtp": b"220 mail.example.com ESMTP\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "http/0.9": GET.good,
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "settings": bytes.fromhex("0000120400000000000003000000640004001000000006000000000000"),
    "http/2": b"HTTP/2 200 OK\r\nContent-Length: 24\r\n\r\n" + GET.good,
    "minus": b"HTTP/1.1 -20 OK\r\n\r\n",
    "2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "line": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "lines": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    "negative": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + GET.good,
    "lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 24\r\n\r\n" + GET.good,
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + GET.good,
    "size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + GET.good,
    "huge": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n" + GET.good,
    "name": b"HTTP/1.1 200 OK\r\nX-\xff: \xff\r\nContent-Length: 24\r\n\r\n" + GET.good,
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_HTTP)
async def test_what_is_no_answer(what: str) -> None:
    """It is a broken connection: sent again where that is safe, and the error says that it was no HTTP."""
    for call in CALLS:
        result, sent = await send(call, NO_HTTP[what])

        assert isinstance(result, CreateOutcomeUnknownError if call is CREATE else ConnectionFailedError)
        assert is_in_words(str(result))
        assert sent == 1 if call is CREATE else sent >= 4


def is_in_words(text: str) -> bool:
    """Tell whether an error says what was wrong, in words and not in class names."""
    return ("HTTP" in text or "closed before an answer arrived" in text) and "ClientResponseError" not in text


@pytest.mark.parametrize("status", ["000", "099", "101", "600", "999"])
async def test_statuses_there_are_not(status: str) -> None:
    """They are unexpected answers, and say nothing about what became of a create."""
    answer = f"HTTP/1.1 {status} So\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n".encode()
    for call in CALLS:
        result, _ = await send(call, answer)

        assert isinstance(result, CreateOutcomeUnknownError if call is CREATE else UnexpectedResponseError)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("status", [100, 102, 103])
async def test_informational_answers(call: Call, status: int) -> None:
    """They are passed over: the answer is what follows."""
    before = b"HTTP/1.1 %d So\r\nLink: </x>\r\n\r\n" % status
    result, sent = await send(call, before * 5 + framed(call.good, status=call.status))

    assert sent == 1
    assert not isinstance(result, Exception)


async def test_http_1_0() -> None:
    """It is spoken too."""
    result, _ = await send(GET, framed(GET.good, framing="close").replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert result.gid == "43214"


async def test_more_than_one_answer() -> None:
    """What follows the answer is not taken for that to the next request."""
    answer = framed(GET.good)
    stray = framed(GET.good.replace(b"43214", b"66666"))
    assert head_length(answer) < len(answer)
    async with raw_server(saying(answer + stray, answer), keep=True) as server, session(server.url) as asana:
        for _ in range(3):
            assert (await asana.send(GET.request)).gid == "43214"

        assert len(server.requests) == 3
