"""A receiver is asked to end: what runs finishes, nothing new is taken, and it is over soon."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from asana_webhooks import sign_body
from tests.helpers.receiving import ReceiverProcess, locked, prepare, receiver_process, sending, stored
from tests.helpers.stores import ENDPOINT, SECRET, body, event

ENDS = {"aiohttp": 0, "asgi": -signal.SIGTERM}
"""How the process ends: uvicorn cleans up, and then dies of the signal it got."""
IN_TIME = 15.0


class Delivery:
    """A POST that a server has begun to handle, and whose body is still to come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> None:
        self.content = content
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, url: str) -> "Delivery":
        """Send a head, and wait until the server asks for the body."""
        parts, content = urlsplit(url), body(event())
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = [
            f"POST {parts.path}/{ENDPOINT} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"X-Hook-Signature: {sign_body(content, secret=SECRET)}",
            f"Content-Length: {len(content)}",
            "Expect: 100-continue",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode())
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer, content)

    def complete(self) -> None:
        """Send the body."""
        self._writer.write(self.content)

    async def answer(self) -> bytes:
        """Return the answer's first line."""
        answer = await self._reader.readuntil(b"\r\n")
        self._writer.close()
        await self._writer.wait_closed()
        return answer


async def turned_away(url: str) -> None:
    """Wait until the receiver takes nothing new; what is asked without a signature is a 401 before that."""
    async with aiohttp.ClientSession() as http:
        status = 401
        while status == 401:
            try:
                async with http.post(f"{url}/{ENDPOINT}") as response:
                    status = response.status
            except aiohttp.ClientError:  # nobody listens
                return
    assert status == 503


async def assert_it_ends_well(receiver: ReceiverProcess, *, since: float) -> None:
    """The process ends in time, in order, and without a complaint."""
    status = await receiver.wait()
    assert time.monotonic() - since < IN_TIME
    assert status == ENDS[receiver.door]
    assert receiver.said == "stopped\n"
    assert "Traceback" not in receiver.log


@pytest.mark.slow
@pytest.mark.parametrize("door", ENDS)
async def test_sigterm_under_load(tmp_path: Path, door: str) -> None:
    """SIGTERM under 20 senders: answers are 200 or 503, each 200 is true, and then nobody listens."""
    path = tmp_path / "store.db"
    await prepare(path)
    async with receiver_process(path, door=door) as receiver, sending(receiver.url) as load:
        await load.acknowledge(200)
        terminated_at = time.monotonic()
        receiver.terminate()
        await assert_it_ends_well(receiver, since=terminated_at)
        await load.until(lambda: load.broken)
        await load.stop()
    assert set(load.statuses) <= {200, 503}
    assert load.acknowledged == set(stored(path).bodies)


@pytest.mark.slow
@pytest.mark.parametrize("door", ENDS)
async def test_what_runs_at_sigterm_finishes(tmp_path: Path, door: str) -> None:
    """Deliveries that wait for the store when SIGTERM arrives, or whose bodies are still to come, are answered 200."""
    path = tmp_path / "store.db"
    await prepare(path)
    patient = {"timeout": 60, "body_timeout": 60}
    async with receiver_process(path, door=door, receiver=patient, store={"busy_timeout": 60}) as receiver:
        with locked(path) as lock:
            begun = [await Delivery.begin(receiver.url) for _ in range(6)]
            for delivery in begun[:3]:
                delivery.complete()
            terminated_at = time.monotonic()
            receiver.terminate()
            await turned_away(receiver.url)
            lock.execute("ROLLBACK")
        answers = [await delivery.answer() for delivery in begun[:3]]
        for delivery in begun[3:]:
            delivery.complete()
        answers += [await delivery.answer() for delivery in begun[3:]]
        await assert_it_ends_well(receiver, since=terminated_at)
    assert all(b" 200 " in answer for answer in answers)
    assert sorted(stored(path).bodies) == sorted(delivery.content for delivery in begun)


async def end_while_the_store_hangs(path: Path, **options: Any) -> None:
    """Send SIGTERM while deliveries hang in a locked database."""
    await prepare(path)
    async with receiver_process(path, **options) as receiver:
        with locked(path):
            begun = [await Delivery.begin(receiver.url) for _ in range(5)]
            for delivery in begun:
                delivery.complete()
            terminated_at = time.monotonic()
            receiver.terminate()
            answers = [await delivery.answer() for delivery in begun]
            await assert_it_ends_well(receiver, since=terminated_at)
    assert all(b" 503 " in answer for answer in answers)
    assert stored(path).bodies == []


@pytest.mark.slow
async def test_sigterm_while_the_store_hangs(tmp_path: Path) -> None:
    """Deliveries that hang in a locked database are answered 503, and the process ends without waiting for the lock."""
    await end_while_the_store_hangs(
        tmp_path / "store.db", door="asgi", receiver={"timeout": 0.8}, store={"busy_timeout": 0.5}
    )


@pytest.mark.long
@pytest.mark.parametrize("door", ENDS)
async def test_the_defaults_end_in_time(tmp_path: Path, door: str) -> None:
    """Nobody needs to set a timeout for the process to end in 15 seconds, whatever holds the store up."""
    await end_while_the_store_hangs(tmp_path / "store.db", door=door)
