"""Anyone can send anything to a port: every byte that an attacker may write, through every door, and what comes of it.

Nothing comes of it: an answer below 500, nothing kept, nothing echoed that is not what came, no traceback in a log.
"""

import gzip
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asana_webhooks import Delivery, MemoryStore, Secret, SQLiteStore, Worker, sign_body
from asana_webhooks.store.base import DeliveryState, Store
from tests.helpers.hostile import (
    FORGED,
    FRONTS,
    PENDING,
    SHAKEN,
    Answer,
    Site,
    accidents,
    chunked,
    connected,
    delivery,
    raw_request,
    signature,
    site,
)
from tests.helpers.raw import until
from tests.helpers.stores import ENDPOINT, SECRET, body, event

KEY = SHAKEN.partition(b": ")[2].decode()
"""A secret of the attacker's."""
REFUSED = {400, 401}
"""400 where the server's own parser is the first to refuse, 401 where it is the receiver."""
INTACT = body(event(note="the body of these tests"))

in_one_server = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""One server answers all the examples of a test: an example that harms it is found out by a later one."""


@pytest.fixture(params=["aiohttp", "aiohttp in Python", "asgi"])
async def door(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A receiver behind each of the doors."""
    async with MemoryStore() as store, site(request.param, store, caplog) as served:
        yield served


@pytest.fixture
async def the_401(door: Site) -> bytes:
    """The answer to a plain forgery."""
    answer = await door.say(raw_request(FORGED, content=INTACT))
    assert answer.status == 401
    assert answer.body == b""
    return answer.undated


# Signatures


@st.composite
def forgeries(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a signature and a body that do not belong together, each a little beside what would."""
    content = draw(st.sampled_from([INTACT, b'{"events":[]}', b"\x00"]))
    true = sign_body(content, secret=SECRET)
    place = draw(st.integers(0, 10_000))
    turned = bytearray(content)
    turned[place % len(content)] ^= 1 << draw(st.integers(0, 7))
    wrong_digit = format(int(true[place % 64], 16) ^ draw(st.integers(1, 15)), "x")
    text = SECRET.reveal()
    other = text[: place % 32] + draw(st.sampled_from("ghijklmnop")) + text[place % 32 + 1 :]
    return draw(
        st.sampled_from(
            [
                (true, bytes(turned)),
                (true, content[: place % len(content)]),
                (true, content + draw(st.binary(min_size=1, max_size=8))),
                (true[: place % 64] + wrong_digit + true[place % 64 + 1 :], content),
                (true[: place % 64], content),
                (true + wrong_digit, content),
                (sign_body(content, secret=Secret(other)), content),
                (hmac.new(bytes.fromhex(text), content, "sha256").hexdigest(), content),
                (hmac.new(b"", content, "sha256").hexdigest(), content),
            ]
        )
    )


@given(forgery=forgeries())
@in_one_server
async def test_every_forgery_gets_the_same_answer(door: Site, the_401: bytes, forgery: tuple[str, bytes]) -> None:
    """A body, signature or secret with anything changed is a 401 that does not tell which, to the byte."""
    claimed, content = forgery

    answer = await door.say(raw_request(b"X-Hook-Signature: " + claimed.encode(), content=content))

    assert answer.undated == the_401
    assert await door.taken() == []


async def test_hostile_signature_headers(door: Site, the_401: bytes) -> None:
    """Whatever stands in the header, it is no signature: 401, or 400 where the server cannot read it."""
    true = sign_body(INTACT, secret=SECRET).encode()
    values = {
        "empty": b"",
        "blank": b" \t ",
        "cut off": true[:63],
        "with one digit more": true + b"0",
        "twice in one header": true + b"," + true,
        "with its algorithm": b"sha256=" + true,
        "quoted": b'"' + true + b'"',
        "folded in the middle": true[:32] + b"\r\n " + true[32:],
        "with a blank inside": true[:32] + b" " + true[32:],
        "NUL at the end": true + b"\x00",
        "NUL inside": true[:32] + b"\x00" + true[33:],
        "CR inside": true[:32] + b"\r" + true[32:],
        "LF inside": true[:32] + b"\n" + true[32:],
        "escape": b"\x1b[31m" + true,
        "not ASCII": "é".encode() * 32,
        "digits of another script": "٣".encode() * 64,
        "high bytes": b"\xff" * 64,
        "8 kB": b"a" * 8_000,
        "70 kB": b"a" * 70_000,
    }
    requests = {name: raw_request(b"X-Hook-Signature: " + value, content=INTACT) for name, value in values.items()}
    requests |= {
        "missing": raw_request(content=INTACT),
        "two that differ": raw_request(signature(INTACT), FORGED, content=INTACT),
        "two that agree": raw_request(signature(INTACT), signature(INTACT), content=INTACT),
        "two in two cases": raw_request(signature(INTACT), signature(INTACT).lower(), content=INTACT),
        "under another name": raw_request(signature(INTACT).replace(b"Hook-", b"Hook_"), content=INTACT),
        "with a blank before the colon": raw_request(signature(INTACT).replace(b":", b" :"), content=INTACT),
        "without a colon": raw_request(b"X-Hook-Signature", content=INTACT),
        "in a trailer": raw_request(
            b"Transfer-Encoding: chunked",
            content=chunked(INTACT, trailer=signature(INTACT) + b"\r\n"),
            length=False,
        ),
    }
    answers = {name: await door.say(one) for name, one in requests.items()}

    assert {name: answer.status for name, answer in answers.items() if answer.status not in REFUSED} == {}
    unequal = [name for name, answer in answers.items() if answer.status == 401 and answer.undated != the_401]
    assert unequal == []
    await door.assert_unharmed()


@given(value=st.binary(max_size=100).filter(lambda value: b"\n" not in value))
@example(value=bytes(range(128, 256)))
@in_one_server
async def test_any_bytes_as_a_signature(door: Site, the_401: bytes, value: bytes) -> None:
    """There are no bytes that make more of a forgery than a 400 or the 401."""
    answer = await door.say(raw_request(b"X-Hook-Signature: " + value, content=INTACT))

    assert answer.status == 400 or answer.undated == the_401
    assert await door.taken() == []
    assert accidents(door.log.records) == []


@given(line=st.binary(min_size=1, max_size=60).filter(lambda line: b"\n" not in line))
@in_one_server
async def test_any_bytes_beside_a_signature(door: Site, line: bytes) -> None:
    """A strange header line makes a delivery unreadable, or does not matter to it; there is nothing between."""
    content = body(event())

    answer = await door.say(delivery(line, content=content))

    assert (answer.status, await door.taken()) in [(200, [content]), (400, [])]
    assert accidents(door.log.records) == []


async def test_what_http_lets_a_signature_look_like(door: Site) -> None:
    """Hex digits in upper case are accepted, and blanks around a header's value are not part of it."""
    for write in (bytes.upper, b"  \t%b \t".__mod__, b"%b".__mod__):
        content = body(event())
        value = write(sign_body(content, secret=SECRET).encode())

        assert (await door.say(raw_request(b"X-Hook-Signature:" + value, content=content))).status == 200
        assert await door.taken() == [content]


async def test_without_a_secret_nothing_is_proven(door: Site, the_401: bytes) -> None:
    """Before any handshake every delivery is the same 401, even one signed with an empty key; elsewhere it is 404."""
    unkeyed = b"X-Hook-Signature: " + hmac.new(b"", INTACT, "sha256").hexdigest().encode()
    for line in (unkeyed, signature(INTACT)):
        pending = await door.say(raw_request(line, content=INTACT, target=f"/asana/{PENDING}"))
        unknown = await door.say(raw_request(line, content=INTACT, target=f"/asana/{'x' * 43}"))

        assert pending.undated == the_401
        assert (unknown.status, unknown.body) == (404, b"")
    await door.assert_unharmed()


# Handshakes


def shake(*values: bytes) -> bytes:
    return raw_request(*(b"X-Hook-Secret: " + value for value in values), target=f"/asana/{PENDING}")


async def test_no_byte_outside_its_alphabet_is_part_of_a_secret(door: Site) -> None:
    """Each byte but the visible ones makes a handshake a 400; none is dropped, replaced, or taken for a line's end."""
    others = [byte for byte in range(256) if not 0x21 <= byte <= 0x7E]
    secrets = {byte: KEY[:15].encode() + bytes([byte]) + KEY[15:].encode() for byte in others}
    answers = {byte: await door.say(shake(secret)) for byte, secret in secrets.items()}

    assert {byte: answer.status for byte, answer in answers.items() if answer.status != 400} == {}
    assert not any(b"x-hook-secret" in head(answer) for answer in answers.values())
    await door.assert_unharmed()


async def test_hostile_handshakes(door: Site) -> None:
    """Too long, empty, folded or doubled secrets are refused and not echoed, in whole or in part."""
    key = KEY.encode()
    requests = {
        "empty": shake(b""),
        "9 kB": shake(b"a" * 9_000),
        "70 kB": shake(b"a" * 70_000),
        "two that differ": shake(b"1" * 16, b"2" * 16),
        "two that agree": shake(b"1" * 16, b"1" * 16),
        "two in one header": shake(key + b", " + key),
        "folded": shake(key[:20] + b"\r\n " + key[20:]),
        "CR and a header": shake(key + b"\rSet-Cookie: a=b"),
        "UTF-8": shake("ü".encode() * 16),
    }
    answers = {name: await door.say(one) for name, one in requests.items()}

    assert {name: answer.status for name, answer in answers.items() if answer.status != 400} == {}
    for answer in answers.values():
        assert b"x-hook-secret" not in head(answer)
        assert b"set-cookie" not in head(answer)
    await door.assert_unharmed()


async def test_a_secret_cannot_split_the_answer(door: Site) -> None:
    """A bare line feed ends a header for some servers; then the rest is another header, and is never echoed."""
    answer = await door.say(shake(KEY.encode() + b"\nSet-Cookie: a=b"))

    assert b"set-cookie" not in head(answer)
    assert answer.status == 400 or answer.echoes(Secret(KEY))
    assert accidents(door.log.records) == []


def head(answer: Answer) -> bytes:
    return answer.raw.partition(b"\r\n\r\n")[0].lower()


# Bodies


ENCODED = {
    "gzip": [b"Content-Encoding: gzip"],
    "deflate": [b"Content-Encoding: deflate"],
    "br": [b"Content-Encoding: br"],
    "zstd": [b"Content-Encoding: zstd"],
    "upper case": [b"CONTENT-ENCODING: GZIP"],
    "not ASCII": [b"Content-Encoding: \xff"],
    "two headers": [b"Content-Encoding: identity", b"Content-Encoding: gzip"],
    "a list": [b"Content-Encoding: identity, gzip"],
}
PLAIN = {
    "identity": [b"Content-Encoding: identity"],
    "identity in upper case": [b"content-encoding: IDENTITY"],
    "empty": [b"Content-Encoding:"],
}


@pytest.mark.parametrize("door", FRONTS, indirect=True)
async def test_encoded_bodies(door: Site) -> None:
    """No door decodes: what claims to be encoded is a 415, well packed or not, though its signature is right."""
    contents = (INTACT, gzip.compress(INTACT), b"\x1f\x8b\x08 and no more of it")
    for content in contents:
        requests = {name: delivery(*lines, content=content) for name, lines in ENCODED.items()}
        assert set((await door.statuses(requests)).values()) <= {415, 400}  # 400: aiohttp decodes, and does not know br
    packed_handshake = raw_request(b"Content-Encoding: gzip", SHAKEN, target=f"/asana/{PENDING}")
    assert (await door.say(packed_handshake)).status == 415
    await door.assert_unharmed()

    assert await door.statuses({name: delivery(*lines) for name, lines in PLAIN.items()}) == dict.fromkeys(PLAIN, 200)


CHUNKED = b"Transfer-Encoding: chunked"


def framed(*lines: bytes, content: bytes = INTACT) -> bytes:
    """Return a request with a true signature of `INTACT`, and the framing a test gives it."""
    return raw_request(signature(INTACT), *lines, content=content, length=False)


HOSTILE_FRAMES = {
    "10 GB": framed(b"Content-Length: 10000000000"),
    "more digits than any number": framed(b"Content-Length: " + b"9" * 40),
    "negative": framed(b"Content-Length: -1"),
    "with a sign": framed(b"Content-Length: +%d" % len(INTACT)),
    "hexadecimal": framed(b"Content-Length: 0x10"),
    "with an underscore": framed(b"Content-Length: 1_0"),
    "with a blank inside": framed(b"Content-Length: 1 2"),
    "digits of another script": framed("Content-Length: ٣".encode()),
    "no number": framed(b"Content-Length: many"),
    "two that differ": framed(b"Content-Length: %d" % len(INTACT), b"Content-Length: 5"),
    "two that differ, in a list": framed(b"Content-Length: %d, 5" % len(INTACT)),
    "unknown transfer coding": framed(b"Transfer-Encoding: xchunked", content=chunked(INTACT)),
    "chunked and something after it": framed(b"Transfer-Encoding: chunked, identity", content=chunked(INTACT)),
    "chunk of negative size": framed(CHUNKED, content=b"-1\r\n%b\r\n0\r\n\r\n" % INTACT),
    "chunk size with 0x": framed(CHUNKED, content=b"0x5\r\n%b\r\n0\r\n\r\n" % INTACT[:5]),
    "chunk size with an underscore": framed(CHUNKED, content=b"1_0\r\n%b\r\n0\r\n\r\n" % INTACT[:16]),
    "chunk size with a sign": framed(CHUNKED, content=b"+5\r\n%b\r\n0\r\n\r\n" % INTACT[:5]),
    "chunk without a size": framed(CHUNKED, content=b"\r\n%b\r\n0\r\n\r\n" % INTACT),
    "chunk longer than its size": framed(CHUNKED, content=b"5\r\n%b\r\n0\r\n\r\n" % INTACT),
    "chunk of 8 EB": framed(CHUNKED, content=b"7fffffffffffffff\r\n" + bytes(9 * 1024 * 1024)),
    "chunk of more bytes than any number": framed(CHUNKED, content=b"f" * 30 + b"\r\n" + bytes(9 * 1024 * 1024)),
}


async def test_hostile_frames(door: Site) -> None:
    """Lengths and chunks that make no sense are a 400 or 413, and the bytes they hide are never taken for a body."""
    statuses = await door.statuses(HOSTILE_FRAMES)

    assert {name: status for name, status in statuses.items() if status not in {400, 413}} == {}
    await door.assert_unharmed()


def unusual_frames(content: bytes) -> dict[str, bytes]:
    """Return true deliveries of *content* in frames that HTTP allows and nobody uses."""
    size, packed = b"Content-Length: %d" % len(content), chunked(content)
    frames = {
        "two equal lengths": ([size, size], content),
        "equal lengths in a list": ([size + b", %d" % len(content)], content),
        "chunk with an extension": ([CHUNKED], chunked(content, extension=b";name=value")),
        "chunk with a long extension": ([CHUNKED], chunked(content, extension=b";" + b"a" * 100_000)),
        "chunk size with leading zeros": ([CHUNKED], b"0000" + packed),
        "a trailer": ([CHUNKED], chunked(content, trailer=b"X-Hook-Signature: 0\r\nContent-Length: 1\r\n")),
        "chunked twice": ([b"Transfer-Encoding: chunked, chunked"], packed),
        "a coding before the chunks": ([b"Transfer-Encoding: gzip, chunked"], packed),
        "upper case": ([b"TRANSFER-ENCODING: CHUNKED"], packed),
    }
    requests = {
        name: raw_request(signature(content), *lines, content=framed, length=False)
        for name, (lines, framed) in frames.items()
    }
    return requests | {"HTTP/1.0": delivery(content=content, start=b"POST %b HTTP/1.0")}


async def test_unusual_frames(door: Site) -> None:
    """What HTTP allows and nobody does is a delivery of just the bytes that were signed, or it is refused."""
    for name in unusual_frames(INTACT):
        content = body(event())
        answer = await door.say(unusual_frames(content)[name])

        assert (answer.status, await door.taken()) in [(200, [content]), (400, [])], name
    await door.assert_unharmed()


async def test_two_ways_to_tell_the_length(door: Site) -> None:
    """A request with a length and chunks both is refused: a proxy before us may have believed the other one."""
    content = chunked(INTACT)
    requests = {
        str(length): framed(b"Content-Length: %d" % length, CHUNKED, content=content)
        for length in (0, len(INTACT), len(content), 10**10)
    }
    statuses = await door.statuses(requests)

    assert set(statuses.values()) <= {400, 413}
    await door.assert_unharmed()


# Connections


FRONT_ENDS = {
    "a forgery": raw_request(FORGED, content=b"{}"),
    "an unsigned body": raw_request(content=b"{}"),
    "an unknown endpoint": raw_request(content=b"{}", target=f"/asana/{'x' * 43}"),
    "an encoded body": raw_request(b"Content-Encoding: gzip", signature(b"{}"), content=b"{}"),
    "a malformed handshake": shake(b"no secret"),
    "a body that is too long": framed(b"Content-Length: 10000000000", content=b""),
    "a chunk without a size": framed(CHUNKED, content=b"x\r\n"),
    "a body that ends too early": framed(b"Content-Length: 0", content=b""),
}


async def test_nothing_behind_a_refused_request_is_served(door: Site) -> None:
    """A refusal is the last answer of its connection: a request that follows, smuggled in or not, is not heard."""
    for name, refused in FRONT_ENDS.items():
        answer = await door.say(refused.replace(b"Connection: close", b"Connection: keep-alive") + delivery())

        assert 400 <= answer.status < 500, name
        assert answer.raw.count(b"HTTP/1.") == 1, name
    await door.assert_unharmed()


async def test_a_request_inside_a_body_is_no_request(door: Site) -> None:
    """Whether a body is read, as a forgery's, or skipped, as a handshake's: what is in it stays in it."""
    inner = delivery()
    for outer in (
        raw_request(FORGED, content=inner),
        raw_request(SHAKEN, content=inner, target=f"/asana/{PENDING}"),
        raw_request(SHAKEN, CHUNKED, content=chunked(inner), length=False),
        raw_request(content=inner, start=b"PUT %b HTTP/1.1"),
    ):
        answer = await door.say(outer)
        assert answer.raw.count(b"HTTP/1.") == 1

    assert await door.taken() == []
    assert accidents(door.log.records) == []


async def test_a_peer_that_goes_away_is_no_error_of_ours(door: Site) -> None:
    """Whoever leaves in the middle of a body is not answered, and no server makes a traceback of it."""
    asks = b"Expect: 100-continue"
    for head in (framed(asks, b"Content-Length: 1000"), framed(asks, CHUNKED, content=b"1000\r\n" + INTACT)):
        door.log.clear()
        async with connected(door.url) as ear:
            ear.mouth.write(head)
            await ear.answered.wait()  # 100: the body is being read
        await until(lambda: "body cut off" in door.log.text)
        assert accidents(door.log.records) == []
    await door.assert_unharmed()


async def test_other_methods(door: Site) -> None:
    """Only POST is answered: anything else is told so, and signed bodies make no difference."""
    for method in (b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE"):
        answer = await door.say(delivery(start=method + b" %b HTTP/1.1"))
        assert answer.status == 405, method
        assert b"\r\nallow: post" in head(answer), method
    for method in (b"post", b"FOO", b"P\xffST", b"PO ST", b"CONNECT", b""):
        answer = await door.say(raw_request(content=INTACT, target="/asana/unknown", start=method + b" %b HTTP/1.1"))
        assert 400 <= answer.status < 500, method
    await door.assert_unharmed()


TARGETS = {
    "no endpoint": "/asana/",
    "outside": "/elsewhere",
    "a NUL": "/asana/%00",
    "a NUL as it is": "/asana/\x00",
    "parents": "/asana/../../../etc/passwd",
    "encoded parents": "/asana/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "10 kB": "/asana/" + "a" * 10_000,
    "100 kB": "/asana/" + "a" * 100_000,
    "high bytes": "/asana/" + "\xff" * 43,
    "encoded high bytes": "/asana/" + "%ff" * 43,
    "half an escape": "/asana/%z",
    "a surrogate": "/asana/%ed%a0%80",
    "line breaks": "/asana/%0d%0aSet-Cookie:%20a=b",
    "markup": "/asana/<script>alert(1)</script>",
    "a blank": "/asana/a b",
    "every server": "*",
    "a host": "localhost:443",
    "somebody else's address": "http://asana.invalid:99999/asana/" + "x" * 43,
    "a broken address": "http://[::/asana/" + "x" * 43,
    "nothing": "",
}


async def test_hostile_targets(door: Site) -> None:
    """What was never minted is a 404, or a 400 if it is no path at all; nothing of it comes back in a header."""
    for name, target in TARGETS.items():
        answer = await door.say(delivery(target=target))
        assert answer.status in {400, 404}, name
        assert b"set-cookie" not in head(answer), name
    await door.assert_unharmed()


async def test_other_ways_to_write_a_target(door: Site) -> None:
    """An endpoint is found whole or not at all, however a server reads the path before it."""
    targets = [
        f"http://localhost/asana/{ENDPOINT}",
        f"/asana/%{ord(ENDPOINT[0]):x}{ENDPOINT[1:]}",
        f"/asana/x/../{ENDPOINT}",
        f"/asana%2F{ENDPOINT}",
        f"//asana//{ENDPOINT}",
        f"/asana/{ENDPOINT}?app=1",
        f"/asana/{ENDPOINT}?app=/{'x' * 43}",
        f"/asana/{ENDPOINT}/",
        f"/asana/{ENDPOINT};v=1",
        f"/asana/{ENDPOINT.lower()}",
        f"/asana/{ENDPOINT}%00",
        f"/asana/{ENDPOINT[:-1]}",
    ]
    for target in targets:
        content = body(event())
        answer = await door.say(delivery(content=content, target=target))
        assert (answer.status, await door.taken()) in [(200, [content]), (404, [])], target
    await door.assert_unharmed()


async def test_what_is_hardly_http(door: Site) -> None:
    """Other protocols, missing and doubled hosts, a thousand headers: an answer below 500, or none."""
    lines = [b"X-%d: 1" % number for number in range(1_000)]
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /\r\n\r\n",
        b"\r\n\r\n\r\nno HTTP at all\r\n\r\n",
        b"\x00" * 1_000 + b"\r\n\r\n",
        raw_request(content=INTACT).replace(b"Host: localhost\r\n", b""),
        raw_request(b"Host: elsewhere", content=INTACT),
        raw_request(*lines, content=INTACT),
        raw_request(b": no name", content=INTACT),
        raw_request(b"Expect: 200-maybe", content=INTACT),
        raw_request(content=INTACT, start=b"POST / HTTP/2.0"),
        raw_request(content=INTACT, start=b"POST / HTTP/9.9"),
        raw_request(content=INTACT, start=b"POST / HTTP/x"),
        raw_request(content=INTACT, start=b"POST /"),
    ):
        answer = await door.say(raw)
        assert not answer.raw or 400 <= answer.status < 500, raw[:40]
    await door.assert_unharmed()


@pytest.mark.reveals("aiohttp's log quotes the line its parser refuses")
@pytest.mark.parametrize("front", ["aiohttp", "aiohttp of a user"])
async def test_aiohttps_own_log_quotes_what_its_parser_refuses(front: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is the one place where a part of a request is logged, so ``aiohttp.server`` is nobody else's to read."""
    async with MemoryStore() as store, site(front, store, caplog) as door:
        assert (await door.say(raw_request(start=b"POST %b HTTP/x"))).status == 400

    [error] = [record.exc_info[1] for record in caplog.records if record.name == "aiohttp.server" and record.exc_info]
    assert ENDPOINT in str(error)


# Signed bodies that are no deliveries

DEEP = 100_000
EVENT = json.dumps(event()).encode()
UNREADABLE = {
    "empty": b"",
    "no JSON": b"events=1",
    "an array": b"[]",
    "an object without events": b"{}",
    "null": b"null",
    "events: null": b'{"events":null}',
    "events: text": b'{"events":"abc"}',
    "cut off": b'{"events":[' + EVENT,
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"events":' * DEEP + b"[]" + b"}" * DEEP,
    "deep event": b'{"events":[' + EVENT[:-1] + b',"new":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "5,000 digits in a gid": b'{"events":[{"action":"a","resource":{"gid":' + b"9" * 5_000 + b"}}]}",
    "NaN": b'{"events":[NaN]}',
    "Infinity": b'{"events":[-Infinity]}',
    "1e400 as a gid": b'{"events":[{"action":"a","resource":{"gid":1e400}}]}',
    "a lone surrogate in UTF-8": b'{"events":["\xed\xa0\x80"]}',
    "an escaped lone surrogate": b'{"events":["\\ud800"]}',
    "not UTF-8": b'{"events":["\xff"]}',
    "a byte order mark": b"\xef\xbb\xbf" + INTACT,
    "UTF-16": INTACT.decode().encode("utf-16"),
    "UTF-32": INTACT.decode().encode("utf-32-le"),
    "NUL": b"\x00",
    "a heartbeat and more": b'{"events":[]} {"events":[]}',
    "a trailing comma": b'{"events":[],}',
    "the last events are null": b'{"events":[' + EVENT + b'],"events":null}',
}
READABLE = {
    "an unknown action": (body(event(action="exploded")), 1),
    "members nobody knows": (body(event(more={"a": [1, None, 1e300]})), 1),
    "nulls": (body(event(user=None, parent=None, change=None)), 1),
    "the last events count": (b'{"events":null,"events":[' + EVENT + b"]}", 1),
    "the last action counts": (b'{"events":[' + EVENT[:-1] + b',"action":"undeleted"}]}', 1),
    "a number beside them": (b'{"n":18446744073709551616,"events":[' + EVENT + b"]}", 1),
    "blanks around it": (b"\r\n\t " + body(event()) + b" \r\n\r\n", 1),
    "no events and more": (b'{"events":[],"more":1}', 0),
    "an event that is null": (b'{"events":[null]}', 0),
    "a gid of 2**64": (b'{"events":[{"action":"a","resource":{"gid":18446744073709551616}},' + EVENT + b"]}", 1),
    "a thousand events": (body(*(event() for _ in range(1_000))), 1_000),
}


@pytest.fixture(params=["aiohttp", "asgi"])
async def lasting_door(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Site]:
    """A receiver behind each of the doors, over a file."""
    async with SQLiteStore(tmp_path / "asana.db") as store, site(request.param, store, caplog) as served:
        yield served


async def handled(store: Store) -> list[Delivery]:
    """Let a worker go through all that waits; return what reached its handler."""
    got: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        got.append(delivery)

    await Worker(store, handle).drain()
    return got


async def test_signed_bodies_that_nobody_can_read(lasting_door: Site) -> None:
    """They are proven, so they are answered 200 and kept to the byte; the worker makes dead letters of them at once."""
    requests = {name: delivery(content=content) for name, content in UNREADABLE.items()}

    assert await lasting_door.statuses(requests) == dict.fromkeys(UNREADABLE, 200)
    assert await handled(lasting_door.store) == []
    letters = await lasting_door.store.deliveries(state=DeliveryState.DEAD)
    assert [letter.body for letter in letters] == list(UNREADABLE.values())
    assert {(letter.attempts, letter.error.partition(":")[0]) for letter in letters} == {(1, "unreadable")}
    await lasting_door.assert_unharmed()


async def test_signed_bodies_that_are_only_strange(lasting_door: Site) -> None:
    """What Asana has not documented yet reaches the handler, with the raw bytes."""
    requests = {name: delivery(content=content) for name, (content, _) in READABLE.items()}

    assert await lasting_door.statuses(requests) == dict.fromkeys(READABLE, 200)
    got = await handled(lasting_door.store)
    assert [(one.body, len(one.events)) for one in got] == list(READABLE.values())
    assert list(await lasting_door.store.deliveries(state=DeliveryState.DEAD)) == []
