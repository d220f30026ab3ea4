"""A caller's mistake is an error that says how to call; it is no 503, and nothing is counted or stored."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from multidict import CIMultiDict

from asana_webhooks import ConfigurationError, MemoryStore, Receiver, sign_body
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import serve, webhook_routes
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

CONTENT = body(event())
SIGNATURE = sign_body(CONTENT, secret=SECRET)
HEADERS = [(b"X-Hook-Signature", SIGNATURE.encode())]


async def chunks(*parts: Any) -> AsyncIterator[Any]:
    for part in parts:
        yield part


def mistakes() -> dict[str, tuple[Any, Any, Any, str]]:
    """Return calls with one mistake each, and what the error tells."""
    pairs = "headers must be pairs of bytes, such as "
    headers: dict[str, Any] = {
        "a dict": {"X-Hook-Signature": SIGNATURE},
        "a dict of bytes": dict(HEADERS),
        "a dict of short names": {b"ab": b"c"},
        "an empty dict": {},
        "a multidict": CIMultiDict({"X-Hook-Signature": SIGNATURE}),
        "pairs of text": [("X-Hook-Signature", SIGNATURE)],
        "values of text": [(b"X-Hook-Signature", SIGNATURE)],
        "names of text": [("X-Hook-Signature", SIGNATURE.encode())],
        "no pairs": [b"X-Hook-Signature", SIGNATURE.encode()],
        "lines": [b"X-Hook-Signature: x"],
        "text": "X-Hook-Signature: x",
        "bytes": b"X-Hook-Signature: x",
        "none": None,
    }
    bodies: dict[str, Any] = {"text": CONTENT.decode(), "none": None, "a dict": {}, "a list": [CONTENT]}
    parts: dict[str, Any] = {"text": CONTENT.decode(), "a number": 5, "numbers": [1, 2], "none": None}
    return (
        {f"headers: {name}": (ENDPOINT, value, CONTENT, pairs) for name, value in headers.items()}
        | {f"body: {name}": (ENDPOINT, HEADERS, value, "body must be bytes or an") for name, value in bodies.items()}
        | {f"chunk: {name}": (ENDPOINT, HEADERS, chunks(b"", one), "chunks of a body") for name, one in parts.items()}
        | {f"endpoint: {one!r}": (one, HEADERS, CONTENT, "endpoint must be") for one in (ENDPOINT.encode(), None, 5)}
    )


async def test_mistakes() -> None:
    """Headers, bodies, chunks and endpoints of a wrong type raise an error that says what to pass."""
    async with MemoryStore() as store:
        await register(store)
        receiver = Receiver(store, max_pending=1)
        for is_known in (False, True):
            for name, (endpoint, headers, content, text) in mistakes().items():
                with pytest.raises(ConfigurationError) as caught:
                    await receiver.receive(endpoint, headers, content)
                assert text in str(caught.value), name
                assert SIGNATURE not in str(caught.value), name
            assert sum(receiver.counts.values()) == is_known
            assert (await store.health()).waiting == is_known
            if not is_known:  # then it is cached
                assert (await receiver.receive(ENDPOINT, HEADERS, CONTENT)).status == 200
        await receiver.aclose()


@pytest.mark.parametrize("door", [webhook_routes, ReceiverApp])
def test_a_door_needs_a_receiver(door: Any) -> None:
    """A store, or the class, in place of a receiver is an error at once, not with each request."""
    wrongs: list[tuple[Any, str]] = [
        (MemoryStore(), "MemoryStore"),
        (Receiver, "the class Receiver"),
        (None, "NoneType"),
    ]
    for wrong, kind in wrongs:
        with pytest.raises(ConfigurationError, match=f"receiver must be a Receiver, not {kind}: pass Receiver"):
            door(wrong)


async def test_serve_needs_a_receiver() -> None:
    """Nothing is opened for anything else."""
    not_one: Any = MemoryStore()
    with pytest.raises(ConfigurationError, match="receiver must be a Receiver, not MemoryStore"):
        async with serve(not_one, port=0):
            raise AssertionError("it is open")


async def test_all_kinds_of_bytes() -> None:
    """A body may also be a bytearray or a memoryview, whole or in chunks, and headers any iterable of pairs."""
    async with MemoryStore() as store:
        await register(store)
        receiver = Receiver(store)
        for kind in (bytes, bytearray, memoryview):
            for is_whole in (True, False):
                content = body(event())
                given: Any = kind(content) if is_whole else chunks(kind(content[:9]), kind(content[9:]))
                headers = iter([(b"X-Hook-Signature", sign_body(content, secret=SECRET).encode())])
                assert (await receiver.receive(ENDPOINT, headers, given)).status == 200
                [lease] = await store.claim(9, lease=60)
                assert lease.body == content
