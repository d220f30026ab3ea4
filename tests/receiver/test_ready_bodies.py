"""A body that is here is verified at once; one that is not is waited for, however much of it was read before."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from asana_webhooks import MemoryStore, Receiver, sign_body
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

CONTENT = body(event())
HEADERS = [(b"X-Hook-Signature", sign_body(CONTENT, secret=SECRET).encode())]
HALVES = (CONTENT[:99], CONTENT[99:])


@pytest.fixture
async def receiver() -> Receiver:
    """A receiver that has its only registration in its cache."""
    store = MemoryStore()
    await register(store)
    receiver = Receiver(store)
    heartbeat = b'{"events":[]}'
    headers = [(b"X-Hook-Signature", sign_body(heartbeat, secret=SECRET).encode())]
    assert (await receiver.receive(ENDPOINT, headers, heartbeat)).status == 200
    return receiver


async def arriving(*parts: bytes | None) -> AsyncIterator[bytes]:
    """Yield chunks, and wait for the loop at each ``None``, in both ways there are."""
    for part in parts:
        if part is None:
            await asyncio.sleep(0)
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, None)
            await future
        else:
            yield part


@pytest.mark.parametrize(
    ("parts", "timers"),
    [
        ((CONTENT,), 1),
        (HALVES, 1),
        ((b"", *HALVES, b""), 1),
        ((None, CONTENT), 3),
        ((CONTENT, None), 3),
        ((HALVES[0], None, HALVES[1]), 3),
        ((None, HALVES[0], None, HALVES[1], None), 3),
    ],
)
async def test_any_arrival_is_the_same_body(
    receiver: Receiver, parts: Sequence[bytes | None], timers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the wait counts, in its place. Without a wait, the only timer is that of the write."""
    loop, set_timers = asyncio.get_running_loop(), list[Callable[..., object]]()
    call_at = loop.call_at

    def noting(when: float, callback: Callable[..., object], *args: Any, **context: Any) -> asyncio.TimerHandle:
        set_timers.append(callback)
        return call_at(when, callback, *args, **context)

    monkeypatch.setattr(loop, "call_at", noting)
    reply = await receiver.receive(ENDPOINT, HEADERS, arriving(*parts))

    assert (reply.status, receiver.counts["stored"]) == (200, 1)
    assert len(set_timers) == timers


@pytest.mark.parametrize("at", range(2))
async def test_whoever_waits_for_a_body_is_told_of_the_end(receiver: Receiver, at: int) -> None:
    """A cancelled request cancels the read that it waits for, which may still await something."""
    waiting, ended = asyncio.Event(), list[str]()

    async def hanging() -> AsyncIterator[bytes]:
        for chunk in HALVES[:at]:
            yield chunk
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("cancelled")
            raise

    request = asyncio.create_task(receiver.receive(ENDPOINT, HEADERS, hanging()))
    await waiting.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert ended == ["cancelled"]
    assert receiver.counts["stored"] == 0


async def test_a_broken_body_that_is_here(receiver: Receiver) -> None:
    """One that ends with an error is cut off, also if that is known at once; nothing of it is stored."""

    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionResetError

    assert (await receiver.receive(ENDPOINT, HEADERS, broken())).status == 400
    assert receiver.counts["body cut off"] == 1
