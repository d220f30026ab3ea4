"""Whatever bytes come for an answer, a call ends in the right result or the right error."""

import copy
import gzip
import json
import logging
import re
import subprocess
import sys
import textwrap
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asana_webhooks.errors import (
    AsanaError,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    ResponseError,
    ServerError,
    UnexpectedResponseError,
)
from asana_webhooks.models import CreatedWebhook, Webhook
from asana_webhooks.wire import WebhookList
from tests.helpers.raw import (
    CALLS,
    CREATE,
    DELETE,
    GET,
    LIST,
    PUT,
    TARGET,
    TOKEN,
    Call,
    assert_nothing_left,
    framed,
    head_length,
    raw_server,
    saying,
    session,
    writing_for_ever,
)

GONE = framed(b'{"errors":[{"message":"webhook: Unknown object: 43214"}]}', status=404)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    assert_nothing_left()


async def send(call: Call, *answers: bytes, **options: Any) -> tuple[Any, int]:
    """Make *call* against a server that says *answers*; return what came of it, result or error, and how many requests
    the server saw.
    """
    async with raw_server(saying(*answers)) as server, session(server.url, **options) as asana:
        try:
            result = await asana.send(call.request)
        except AsanaError as error:
            assert_presentable(error)
            result = error
    return result, len(server.requests)


def assert_presentable(error: AsanaError) -> None:
    """An error is one printable line of bearable length, names no secret, and drags no library's error along."""
    assert str(error).isprintable()
    assert len(str(error)) < 10_000
    for secret in (TOKEN, TARGET, TARGET.rpartition("/")[2]):
        assert secret not in f"{error}{error!r}"
    assert error.__suppress_context__ or error.__context__ is None


def assert_good(call: Call, result: Any) -> None:
    """The result is what the good answer of *call* says."""
    match result:
        case Webhook(gid=gid) | CreatedWebhook(webhook=Webhook(gid=gid)) | WebhookList(data=(Webhook(gid=gid),)):
            assert gid == "43214"
        case _:
            assert call is DELETE
            assert result is None


def expect_unusable(call: Call, result: Any, sent: int, *, again: bool = True) -> None:
    """A 2xx that cannot be used: asked again or not, then an error; success for a delete; unknown for a create."""
    if call is DELETE:
        assert (result, sent) == (None, 1)
    elif call is CREATE:
        assert isinstance(result, CreateOutcomeUnknownError)
        assert sent == 1
    else:
        assert isinstance(result, UnexpectedResponseError)
        assert sent == result.attempts == (4 if again else 1)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_answers_cut_off_at_every_byte(call: Call, framing: str) -> None:
    """What can be asked again is; a delete whose status came has worked; what became of a create is unknown."""
    whole = framed(call.good, status=call.status, framing=framing)
    for end in range(len(whole)):
        result, sent = await send(call, whole[:end], GONE if call is DELETE else whole)
        if call is CREATE:
            assert isinstance(result, CreateOutcomeUnknownError)
            assert sent == 1
        else:
            assert_good(call, result)
            assert (sent == 1) == (call is DELETE and end >= head_length(whole))


@pytest.mark.parametrize("call", [GET, LIST, CREATE], ids=str)
async def test_compressed_answers_cut_off_at_every_byte(call: Call) -> None:
    """Half of what was compressed is never taken for the whole."""
    whole = framed(gzip.compress(call.good), "Content-Encoding: gzip", status=call.status, framing="close")
    for end in range(head_length(whole), len(whole)):
        result, sent = await send(call, whole[:end], whole)
        if isinstance(result, AsanaError):
            assert call is CREATE
            assert isinstance(result, CreateOutcomeUnknownError)
        else:
            assert_good(call, result)
            assert sent <= 2


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_whole_answers(call: Call, framing: str) -> None:
    """However its end is told and whatever it is packed in, a good answer is one."""
    for coding, body in {
        "identity": call.good,
        "gzip": gzip.compress(call.good),
        "deflate": zlib.compress(call.good),
        "x-nobody-knows": call.good,
    }.items():
        answer = framed(body, f"Content-Encoding: {coding}", status=call.status, framing=framing)
        result, sent = await send(call, answer)

        assert_good(call, result)
        assert sent == 1


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"\x1f\x8b" + b"\xff" * 40),
        ("gzip", GET.good),
        ("gzip", gzip.compress(GET.good)[:-8] + bytes(8)),
        ("gzip", b""),
        ("deflate", GET.good),
        ("gzip, gzip", gzip.compress(gzip.compress(GET.good))),
    ],
    ids=["bad", "named only", "checksum", "empty", "not deflate", "twice"],
)
async def test_packing_that_cannot_be_undone(coding: str, body: bytes) -> None:
    """It counts as a body cut off."""
    for call in CALLS:
        result, sent = await send(call, framed(body, f"Content-Encoding: {coding}", status=call.status))

        expect_unusable(call, result, sent)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("body", [b"", b"\xff" * 20], ids=["short", "long"])
async def test_packing_nobody_asked_for(call: Call, body: bytes) -> None:
    """Not even its status is believed, so a delete is sent again as well."""
    result, sent = await send(call, framed(b"\xff" + body, "Content-Encoding: br", status=call.status), GONE)

    if call is DELETE:
        assert result is None
    elif call is CREATE:
        assert isinstance(result, CreateOutcomeUnknownError)
        assert sent == 1
    else:
        assert isinstance(result, NotFoundError)  # that of the second answer


@pytest.mark.parametrize(
    ("status", "body", "header"),
    [
        (200, b"<html>Sign in to the hotel's network</html>", "Content-Type: text/html"),
        (200, b"", "Content-Type: application/json"),
        (204, b"", "X: y"),
        (205, b"", "X: y"),
        (200, GET.good.decode().encode("utf-16"), "Content-Type: application/json; charset=utf-16"),
        (200, '{"data":{"gid":"43214","target":"é"}}'.encode("latin-1"), "Content-Type: text/json; charset=latin-1"),
        (200, b"\xef\xbb\xbf" + GET.good, "X: y"),
        (200, b'{"data":{"gid":"1","delivery_retry_count":NaN}}', "X: y"),
        (200, b'{"data":{"gid":"1","target":"\\ud800"}}', "X: y"),
        (200, b"[" * 100_000, "X: y"),
        (200, b'{"data":{"gid":"1","new":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "X: y"),
        (200, GET.good + b"{}", "X: y"),
    ],
    ids=["html", "empty", "204", "205", "utf-16", "latin-1", "bom", "nan", "surrogate", "open", "deep", "two"],
)
async def test_bodies_that_are_no_json(status: int, body: bytes, header: str) -> None:
    """They are asked for again, and then an error."""
    for call in CALLS:
        result, sent = await send(call, framed(body, header, status=status, framing="close"))

        expect_unusable(call, result, sent)


@pytest.mark.parametrize("call", [GET, PUT, CREATE], ids=str)
async def test_numbers_no_machine_can_hold(call: Call) -> None:
    """5,000 digits are a wrong value, not a crash; in a member that nobody knows most answers skip them unread."""
    for number in (b"9" * 5000, b"1e400"):
        body = b'{"data":{"gid":"43214","delivery_retry_count":%b}}' % number
        expect_unusable(call, *await send(call, framed(body)), again=False)

        result, sent = await send(call, framed(b'{"data":{"gid":"43214","new":%b}}' % number))
        if call is CREATE:  # read as a whole, for what stands beside its data
            expect_unusable(call, result, sent)
        else:
            assert_good(call, result)


@pytest.mark.parametrize(
    "header", ["X: y", "Content-Type: application/json; charset=bogus", "Content-Type: ,;=", "Link: <"]
)
async def test_headers_that_mean_nothing(header: str) -> None:
    """JSON is UTF-8 whatever they say; of members named twice the last one counts."""
    result, _ = await send(GET, framed(b'{"data":{"gid":"1"},"data":{"gid":"43214"}}', header))

    assert_good(GET, result)


FULL: dict[str, Any] = {
    "gid": "43214",
    "resource_type": "webhook",
    "active": True,
    "resource": {"gid": "8675309", "resource_type": "project", "name": "Bugs"},
    "target": "https://example.com/asana/7654",
    "created_at": "2026-01-02T03:04:05.678Z",
    "last_success_at": None,
    "last_failure_at": "2026-01-02T03:04:05.678Z",
    "last_failure_content": "502 Bad Gateway",
    "delivery_retry_count": 3,
    "next_attempt_after": None,
    "failure_deletion_timestamp": None,
    "filters": [{"resource_type": "task", "action": "changed", "fields": ["due_on"]}],
}
ANSWERS = [
    (GET, {"data": FULL}),
    (LIST, {"data": [FULL], "next_page": {"offset": "eyJ0", "path": "/x", "uri": "https://example.com/x"}}),
    (CREATE, {"data": FULL, "X-Hook-Secret": "0123456789abcdef"}),
]


def places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in *tree*, itself included."""
    yield before
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*before, key))


@st.composite
def misshapen(draw: st.DrawFn) -> tuple[Call, Any]:
    """Draw an answer that has any JSON at all in one of its places."""
    call, whole = draw(st.sampled_from(ANSWERS))
    *path, last = draw(st.sampled_from([("top",), *(("top", *place) for place in places(whole) if place)]))
    tree = {"top": copy.deepcopy(whole)}
    at: Any = tree
    for key in path:
        at = at[key]
    at[last] = draw(JSON)
    return call, tree["top"]


def assert_well_typed(webhook: Webhook) -> None:
    """What came through has the types its class promises."""
    assert isinstance(webhook.gid, str)
    for name, kind in {
        "active": bool,
        "target": str,
        "created_at": datetime,
        "last_failure_content": str,
        "delivery_retry_count": int,
        "filters": tuple,
    }.items():
        assert isinstance(getattr(webhook, name), kind | None)


@settings(max_examples=60)
@given(misshapen())
async def test_any_json_in_any_place(case: tuple[Call, Any]) -> None:
    """It is read as the types say, or is an error that names the place."""
    call, tree = case
    result, _ = await send(call, framed(json.dumps(tree).encode(), status=call.status))

    match result:
        case UnexpectedResponseError() | CreateOutcomeUnknownError():
            assert (call is CREATE) == isinstance(result, CreateOutcomeUnknownError)
            assert "@ $" in str(result)
        case WebhookList(data=webhooks):
            for webhook in webhooks:
                assert_well_typed(webhook)
        case CreatedWebhook(webhook=webhook, secret=secret):
            assert_well_typed(webhook)
            assert secret is None or isinstance(secret.reveal(), str)
        case Webhook() as webhook:
            assert_well_typed(webhook)
        case _:
            pytest.fail(f"{call} came to {result!r}")


@pytest.mark.parametrize("secret", [0, 7, False, [], {}, ["0123456789abcdef"]], ids=repr)
async def test_secrets_that_are_no_text(secret: Any) -> None:
    """None of them is taken for a secret, or for none."""
    tree = {"data": FULL, "X-Hook-Secret": secret}
    result, _ = await send(CREATE, framed(json.dumps(tree).encode(), status=201))

    assert isinstance(result, CreateOutcomeUnknownError)
    assert "$.X-Hook-Secret" in str(result)


@settings(max_examples=60)
@given(
    st.sampled_from(CALLS),
    st.sampled_from(["length", "chunked", "close"]),
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4),
)
async def test_damaged_bytes(call: Call, framing: str, damages: list[tuple[int, int, bytes]]) -> None:
    """Whatever is left out of an answer, put in or changed, only our own errors come of it, and none costs a secret."""
    answer = framed(call.good, "Date: Fri, 02 Jan 2026 03:04:05 GMT", status=call.status, framing=framing)
    for start, width, instead in damages:
        answer = answer[:start] + instead + answer[start + width :]
    result, sent = await send(call, answer, timeout=5)

    if isinstance(result, AsanaError):
        assert isinstance(result, ResponseError | ConnectionFailedError | CreateOutcomeUnknownError)
        assert call is not CREATE or sent == 1 or isinstance(result, RateLimitedError)


@settings(max_examples=40)
@given(JSON, st.sampled_from([400, 403, 404, 500]))
async def test_any_json_for_errors(errors: Any, status: int) -> None:
    """The status says enough when Asana's words cannot be read."""
    result, _ = await send(GET, framed(json.dumps({"errors": errors}).encode(), status=status), attempts=1)

    assert isinstance(result, ResponseError)
    assert result.status == status


@pytest.mark.parametrize(
    "body", [b'{"errors":null}', b'{"errors":[]}', b"[1,2]", b'{"errors":[3,"x",null]}', b"\xff", b""]
)
async def test_errors_without_words(body: bytes) -> None:
    """They are said to have no message."""
    result, _ = await send(GET, framed(body, status=404))

    assert isinstance(result, NotFoundError)
    assert result.messages == ()


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_errors_with_too_many_words(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    """More messages than anybody reads, with whatever in them, are a few printable lines, in errors and in logs."""
    caplog.set_level(logging.DEBUG)
    secret = f"{TOKEN} {TARGET}" if call is CREATE else TOKEN
    word = f"a\nb\r\n\x1b[31mred\u2028x\u202ey\x00 {secret}" + "z" * 1000
    body = json.dumps({"errors": [{"message": word, "help": word, "phrase": word}] * 15}).encode()
    result, _ = await send(call, framed(body, status=500), attempts=2)

    assert isinstance(result, CreateOutcomeUnknownError if call is CREATE else ServerError)
    assert re.search(r"a b +\[31mred x y", str(result))
    for record in caplog.records:
        if record.name.startswith("asana_webhooks"):
            assert record.getMessage().isprintable()


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_answers_without_end(call: Call, framing: str) -> None:
    """They are given up, and the connection with them."""
    body = b"10000\r\n" + b" " * 0x10000 + b"\r\n" if framing == "chunked" else b" " * 0x10000
    head = framed(b"", framing=framing).removesuffix(b"0\r\n\r\n")
    async with raw_server(writing_for_ever(head, body), keep=True) as server:
        async with session(server.url, attempts=1) as asana:
            if call is DELETE:
                await asana.send(call.request)
            else:
                with pytest.raises((UnexpectedResponseError, CreateOutcomeUnknownError), match="too long"):
                    await asana.send(call.request)

        assert len(server.requests) == 1


JSON_BOMB = """
    import asyncio, gzip, re, sys
    from pathlib import Path
    from tests.helpers.raw import GET, LIST, framed, raw_server, saying, session
    from asana_webhooks.errors import AsanaError

    status, member = int(sys.argv[1]), sys.argv[2]
    body = gzip.compress(b'{"' + member.encode() + b'":[' + b"{}," * 10_000_000 + b"{}]}")

    def peak():
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

    async def main():
        bomb = framed(body, "Content-Encoding: gzip", status=status)
        async with raw_server(saying(framed(GET.good), bomb)) as server, session(server.url, attempts=1) as asana:
            await asana.send(GET.request)
            before = peak()
            try:
                await asana.send(LIST.request)
            except AsanaError as error:
                print(peak() - before, getattr(error, "status", None))

    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")
@pytest.mark.parametrize(("status", "member"), [(200, "data"), (500, "errors")])
def test_bombs_of_json(status: int, member: str) -> None:
    """Ten million empty objects in a few kB are never made objects of, and the status stays what it was."""
    command = [sys.executable, "-c", textwrap.dedent(JSON_BOMB), str(status), member]
    child = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    grown, said = child.stdout.split()

    assert int(grown) < 50 * 1024
    assert said == str(status)


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_refusals_that_are_far_too_long(call: Call) -> None:
    """What Asana says is left unread, and what its status says holds."""
    body = json.dumps({"errors": [{"message": "no"}], "more": "x" * 100_000}).encode()
    result, _ = await send(call, framed(body, status=403))

    assert isinstance(result, ForbiddenError)
    assert result.messages == ()


BOMB = """
    import asyncio, re, zlib
    from pathlib import Path
    from tests.helpers.raw import CREATE, GET, framed, raw_server, saying, session
    from asana_webhooks.errors import CreateOutcomeUnknownError, UnexpectedResponseError

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head, million = packer.compress(b" ") + packer.flush(zlib.Z_FULL_FLUSH), bytes(1_000_000)
    packed = packer.compress(million) + packer.flush(zlib.Z_FULL_FLUSH)
    bombs = [framed(head + packed * 600, "Content-Encoding: gzip", framing=name) for name in ("length", "close")]

    def peak():  # of this process alone: getrusage() counts its parent's too
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

    async def main():
        async with raw_server(saying(framed(GET.good), *bombs)) as server, session(server.url, attempts=1) as asana:
            await asana.send(GET.request)  # what is only loaded with the first call
            before = peak()
            for call, kind in ((GET, UnexpectedResponseError), (CREATE, CreateOutcomeUnknownError)):
                try:
                    await asana.send(call.request)
                except kind as error:
                    assert "too long" in str(error)
            print(peak() - before)

    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")
def test_bombs() -> None:
    """600 MB of zeros in 0.6 MB of gzip cost less than 50 MiB."""
    script = textwrap.dedent(BOMB)
    child = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=50)

    assert int(child.stdout) < 50 * 1024
