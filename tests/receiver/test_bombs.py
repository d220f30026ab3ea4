"""What strangers can make a receiver hold in memory, measured in a process of its own."""

import asyncio
import sys
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from tests.helpers.hostile import (
    FORGED,
    PENDING,
    SHAKEN,
    TIMEOUT,
    Answer,
    Ear,
    OwnProcess,
    connected,
    delivery,
    own_process,
    raw_request,
    say,
)
from tests.helpers.stores import ENDPOINT

MIB = 1024 * 1024
UNPROVEN = 64 * MIB
"""The default of ``max_unproven``."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory")


def bomb(mebibytes: int) -> bytes:
    """Return so many MiB of zeros as gzip, in a thousandth of the bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    more = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)  # from here on every MiB looks the same
    return first + more * (mebibytes - 1)


async def pour(url: str, head: bytes, unit: bytes = bytes(64 * 1024)) -> int | None:
    """Send *head*, then *unit*, if any, until the server closes the connection; return the status it gave.

    None: whoever goes on sending to a closed connection may lose the answer.
    """
    async with connected(url) as ear, asyncio.timeout(TIMEOUT):
        ear.mouth.write(head)
        while unit and not ear.over.is_set():
            await ear.room()
            ear.mouth.write(unit)
        await ear.over.wait()
        return Answer(bytes(ear.heard)).status if ear.heard else None


CHUNKED = b"Transfer-Encoding: chunked"
TEN_GB = b"Content-Length: 10000000000"


def head(*lines: bytes, endpoint: str = ENDPOINT) -> bytes:
    return raw_request(*lines, length=False, target=f"/asana/{endpoint}")


async def send_bombs_of_gzip(url: str) -> None:
    """600 MiB in 600 kB, well signed or as the body of a handshake, are refused and never unpacked."""
    packed = bomb(600)
    assert len(packed) < MIB
    for encoding in (b"gzip", b"deflate"):
        line = b"Content-Encoding: " + encoding
        shaken = raw_request(line, SHAKEN, content=packed, target=f"/asana/{PENDING}")
        assert await pour(url, delivery(line, content=packed), b"") in {415, None}
        assert await pour(url, shaken, b"") in {415, None}


async def send_10_gb(url: str) -> None:
    """What announces ten gigabytes is refused by its head."""
    for line in (FORGED, SHAKEN):
        assert await pour(url, head(line, TEN_GB)) in {413, None}
    assert await pour(url, head(SHAKEN, TEN_GB, endpoint=PENDING)) in {413, None}


async def send_endless_chunks(url: str) -> None:
    """What announces nothing is read up to the limit of a body if it claims to be signed, and else not at all."""
    chunk = b"10000\r\n" + bytes(64 * 1024) + b"\r\n"
    assert await pour(url, head(FORGED, CHUNKED), chunk) in {413, None}
    assert await pour(url, head(CHUNKED), chunk) in {401, None}


async def send_endless_heads(url: str) -> None:
    """A line or a head without an end is a 400 of the server's own."""
    for unit in (b"a" * 64 * 1024, b"a: a\r\n" * 1024):
        assert await pour(url, head(FORGED)[:-2], unit) in {400, None}


async def send_endless_extensions(url: str) -> None:
    """The extension of a chunk, which nobody reads, ends with the time for the body at the latest."""
    assert await pour(url, head(FORGED, CHUNKED) + b"1;", b"a" * 64 * 1024) in {400, 408, None}


async def send_endless_trailers(url: str) -> None:
    """So do trailers."""
    assert await pour(url, head(FORGED, CHUNKED) + b"0\r\n", b"a: a\r\n" * 1024) in {400, 401, 408, None}


async def send_tiny_chunks(url: str) -> None:
    """A body in chunks of one byte is a body like any other."""
    assert await pour(url, head(FORGED, CHUNKED), b"1\r\na\r\n" * 1024) in {408, 413, None}


Attack = Callable[[str], Awaitable[None]]
QUICK: list[Attack] = [send_bombs_of_gzip, send_10_gb, send_endless_chunks, send_endless_heads]
LASTING: list[Attack] = [send_endless_extensions, send_endless_trailers, send_tiny_chunks]


async def assert_bounded(process: OwnProcess, attack: Attack, limit: int) -> None:
    """What *attack* does makes the receiver larger by less than *limit* bytes, and it serves on."""
    before = process.memory("VmRSS")
    await attack(process.url)
    grown = process.memory("VmHWM") - before
    assert grown < limit, f"{attack}: {grown / MIB:.1f} MiB"
    assert (await say(process.url, delivery())).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("front", ["aiohttp of a user", "asgi"])
async def test_no_single_request_makes_a_receiver_large(front: str) -> None:
    """Bombs of gzip, ten gigabytes, endless chunks and endless heads each cost less than 20 MiB."""
    async with own_process(front) as process:
        for attack in QUICK:
            await assert_bounded(process, attack, 20 * MIB)


@pytest.mark.long
@pytest.mark.parametrize("front", ["aiohttp", "aiohttp in Python", "asgi"])
async def test_nothing_at_all_makes_a_receiver_large(front: str) -> None:
    """Nor does what takes all the time there is for a body, behind any parser."""
    async with own_process(front, body_timeout=1.0) as process:
        for attack in [*QUICK, *LASTING]:
            await assert_bounded(process, attack, 20 * MIB)


async def send_all_but_a_byte(ear: Ear, length: int) -> None:
    """Claim a body of *length* bytes, send what the server takes of it, and wait for its end."""
    ear.mouth.write(head(FORGED, b"Content-Length: %d" % length))
    left = length - 1
    while left and not ear.over.is_set():
        ear.mouth.write(bytes(min(left, 64 * 1024)))
        left -= min(left, 64 * 1024)
        await ear.room()
    await ear.over.wait()


async def send_a_crowd(url: str, *, peers: int) -> None:
    """Let *peers* each send a body of 7 MiB that lacks its last byte."""
    async with AsyncExitStack() as stack, asyncio.timeout(2 * TIMEOUT):
        ears = [await stack.enter_async_context(connected(url)) for _ in range(peers)]
        await asyncio.gather(*(send_all_but_a_byte(ear, 7 * MIB) for ear in ears))
    statuses = [bytes(ear.heard[9:12]) for ear in ears]
    assert set(statuses) <= {b"503", b"408", b""}
    assert statuses.count(b"408") < peers  # these were waited for


@pytest.mark.long
@pytest.mark.parametrize("front", ["aiohttp of a user", "asgi"])
@pytest.mark.parametrize(("peers", "buffers"), [(14, 20 * MIB), (200, 120 * MIB)])
async def test_a_crowd_of_long_bodies(front: str, peers: int, buffers: int) -> None:
    """All bodies together are bounded, whatever the number of connections; each of those costs its buffers.

    A server reads up to 256 KiB of a connection at once, and keeps about as much until it is asked for.
    """
    async with own_process(front, body_timeout=2.0) as process:
        await assert_bounded(process, partial(send_a_crowd, peers=peers), UNPROVEN + buffers)
