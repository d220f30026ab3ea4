"""How many files of the package one request and one delivery pass through: few enough to read before lunch."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest

import asana_webhooks
from asana_webhooks import AsanaSession, Receiver, SQLiteStore, get_webhook, sign_body
from asana_webhooks.testing import serve_receiver
from tests.helpers.servers import answer, scripted_server
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register

PACKAGE = str(Path(asana_webhooks.__file__).parent) + "/"


class Files:
    """The files of the package whose code ran while it watched, in this thread and in those begun since it was made."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._watching = False

    def note(self, frame: FrameType, _event: str, _argument: Any) -> None:
        path = frame.f_code.co_filename
        if self._watching and path.startswith(PACKAGE):
            self.seen.add(path.removeprefix(PACKAGE))

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._watching = True
        yield
        self._watching = False


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    threading.setprofile(files.note)
    sys.setprofile(files.note)
    yield files
    sys.setprofile(None)
    threading.setprofile(None)  # that is how it is switched off


async def test_a_request(files: Files) -> None:
    """A warm GET, from the function to the wire and back, runs code of at most 10 files."""
    record = {"data": {"gid": "1", "resource_type": "webhook", "active": True, "filters": [{"action": "changed"}]}}
    async with scripted_server(answer(200, record)) as server, AsanaSession("token", base_url=server.url) as asana:
        await get_webhook(asana, "1")
        with files.watched():
            assert (await get_webhook(asana, "1")).gid == "1"

    assert len(files.seen) <= 10, sorted(files.seen)
    assert {"client/operations.py", "client/transport.py", "wire.py"} <= files.seen


async def test_a_delivery(files: Files, tmp_path: Path) -> None:
    """A delivery of a known webhook, from aiohttp's router to the 200, runs code of at most 14 files."""
    async with SQLiteStore(tmp_path / "asana.db") as store:
        await register(store)
        async with serve_receiver(Receiver(store)) as url, aiohttp.ClientSession() as http:

            async def deliver() -> int:
                content = body(event())
                headers = {"X-Hook-Signature": sign_body(content, secret=SECRET)}
                async with http.post(f"{url}/{ENDPOINT}", data=content, headers=headers) as response:
                    return response.status

            assert await deliver() == 200
            with files.watched():
                assert await deliver() == 200
        assert (await store.health()).waiting == 2

    assert len(files.seen) <= 14, sorted(files.seen)
    assert {"receiver/web.py", "store/sqlite/inbox.py"} <= files.seen
