"""What strangers can make a receiver wait for: slow bodies end, and half-open connections keep nobody else waiting."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from asana_webhooks import MemoryStore
from tests.helpers.hostile import (
    FORGED,
    PENDING,
    SHAKEN,
    Site,
    connected,
    delivery,
    raw_request,
    site,
)
from tests.helpers.raw import later
from tests.helpers.stores import body, event

HALF_OPEN = 500
LENGTH = 100_000
SLOW = {
    "with a length": raw_request(FORGED, b"Content-Length: %d" % LENGTH, length=False),
    "in chunks": raw_request(FORGED, b"Transfer-Encoding: chunked", length=False) + b"%x\r\n" % LENGTH,
    "kept alive": raw_request(FORGED, b"Content-Length: %d" % LENGTH, length=False).replace(b"close", b"keep-alive"),
}


@pytest.fixture(params=["aiohttp", "asgi"])
async def hasty(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A receiver behind each of the doors that waits 0.3 seconds for a body."""
    async with MemoryStore() as store, site(request.param, store, caplog, body_timeout=0.3) as served:
        yield served


@pytest.fixture(params=["aiohttp", "asgi"])
async def patient(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A receiver that would wait for longer than a test takes."""
    async with MemoryStore() as store, site(request.param, store, caplog, body_timeout=600, timeout=900) as served:
        yield served


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have both ends of all those connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * HALF_OPEN + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def drip(site: Site, head: bytes) -> bytes:
    """Send *head* and then a byte every few milliseconds, until the server closes; return what it said.

    aiohttp alone would go on reading for ten seconds after its answer.
    """
    async with connected(site.url) as ear, asyncio.timeout(8):
        ear.mouth.write(head)
        while not ear.over.is_set():
            ear.mouth.write(b"x")
            await later(0.02)
        return bytes(ear.heard)


async def test_a_slow_body_is_given_up(hasty: Site) -> None:
    """However steadily it drips, after body_timeout it is a 408, and the connection is closed for the rest of it."""
    heard = await asyncio.gather(*(drip(hasty, head) for head in SLOW.values()))

    assert [one[:12] for one in heard] == [b"HTTP/1.1 408"] * len(SLOW)
    assert all(b"connection: close" in one.lower() for one in heard)
    await hasty.assert_unharmed()


async def test_a_body_that_stops_is_given_up(hasty: Site) -> None:
    """Silence is no different."""
    answers = await asyncio.gather(*(hasty.say(head + b"x") for head in SLOW.values()))

    assert [answer.status for answer in answers] == [408] * len(SLOW)
    await hasty.assert_unharmed()


async def test_a_body_that_is_not_needed_is_not_waited_for_any_longer(hasty: Site) -> None:
    """A handshake is echoed, and the unsigned refused, after body_timeout although the body never comes.

    Then the connection is closed, even if the peer would keep it.
    """
    late = b"Content-Length: 1000"
    shaken = await hasty.say(raw_request(SHAKEN, late, length=False, target=f"/asana/{PENDING}", keep_alive=True))
    assert (shaken.status, b"connection: close" in shaken.raw.lower()) == (200, True)
    assert (await hasty.say(raw_request(late, length=False, keep_alive=True))).status == 401


HALVES = {
    "heads": [b"P", delivery()[:40], raw_request(FORGED)[:-2]],
    "bodies": [head + b"x" for head in SLOW.values()],
}


@pytest.mark.slow
@pytest.mark.parametrize("halves", HALVES)
async def test_half_open_connections_do_not_delay_the_others(patient: Site, many_files: None, halves: str) -> None:
    """While 500 peers have sent half a request each, 20 true deliveries are answered; the others still wait then.

    No door has a timeout for heads: only a proxy in front of the receiver can end those.
    """
    kinds = HALVES[halves]
    async with AsyncExitStack() as stack:
        ears = [await stack.enter_async_context(connected(patient.url)) for _ in range(HALF_OPEN)]
        for number, ear in enumerate(ears):
            ear.mouth.write(kinds[number % len(kinds)])
        for _ in range(20):
            content = body(event())
            assert (await patient.say(delivery(content=content))).status == 200
            assert await patient.taken() == [content]

        assert not any(ear.over.is_set() or ear.heard for ear in ears)
        await patient.assert_unharmed()
