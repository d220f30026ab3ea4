"""Establishing many webhooks at once: how close it comes to the pace of Asana, who lets a token write 15 at a time.

Asana is a `FakeAsana` in a process of its own, whose createWebhook takes as long as between two continents; in it come
the handshake and a first heartbeat, and what the fake itself needs. The peer does no more than Asana's protocol asks
for: it posts, 15 at a time, and echoes whatever its server is sent. Ours opens a registration in SQLite before, lets
the handshakes of that alone in, and keeps the secret that the answer confirms.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import web

from asana_webhooks import AsanaSession, Receiver, SQLiteStore, establish_webhook
from asana_webhooks.testing import serve_receiver
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.processes import apart

TITLE: Final = "Establishing webhooks, all at once"

PEER: Final = "the handshake alone, aiohttp"

WRITES: Final = 15
"""How many POST requests Asana allows a token at a time. Source: https://developers.asana.com/docs/rate-limits"""

LATENCY: Final = 0.1
"""Seconds that createWebhook takes beside its handshake."""

RESOURCE: Final = "8675309"


def ours(count: int) -> Round:
    async def main(url: str, token: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with (
                SQLiteStore(Path(directory, "asana.db")) as store,
                serve_receiver(Receiver(store)) as public_url,
                AsanaSession(token, base_url=url) as asana,
            ):
                establish = partial(establish_webhook, asana, store, public_url=public_url, resource=RESOURCE)
                await asyncio.gather(*(establish(label=str(number)) for number in range(count)))

    return _timed(main)


def handshake_alone(count: int) -> Round:
    async def main(url: str, token: str) -> None:
        secrets: dict[str, str] = {}

        async def echo(request: web.Request) -> web.Response:
            secret = request.headers.get("X-Hook-Secret")
            if secret is None:  # a heartbeat
                return web.Response()
            secrets[request.path] = secret
            return web.Response(headers={"X-Hook-Secret": secret})

        app = web.Application()
        app.router.add_post("/{number}", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        turns = asyncio.Semaphore(WRITES)

        async def create(http: aiohttp.ClientSession, number: int) -> None:
            data = {"resource": RESOURCE, "target": f"http://{host}:{port}/{number}"}
            async with turns, http.post(f"{url}/webhooks", json={"data": data}) as response:
                answer = orjson.loads(await response.read())
            assert response.status == 201
            assert answer["X-Hook-Secret"] == secrets[f"/{number}"]

        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            await asyncio.gather(*(create(http, number) for number in range(count)))
        await runner.cleanup()

    return _timed(main)


def _timed(main: Any) -> Round:
    with _fake() as (url, token, door):
        began = time.perf_counter()
        asyncio.run(main(url, token))
        seconds = time.perf_counter() - began
        created = len(_ask(f"{door}/webhooks")["data"])
    return Round(value=seconds, work=created)


@contextmanager
def _fake() -> Iterator[tuple[str, str, str]]:
    """Run a fake Asana; yield the URL of its API, its token, and the URL of the door to steer it by."""
    command = [sys.executable, "-m", "asana_webhooks", "fake", "--project", RESOURCE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            door = ready["url"].removesuffix("/api/1.0") + "/_fake"
            _ask(f"{door}/faults", {"at": "createWebhook", "do": "delay", "seconds": LATENCY, "times": None})
            yield ready["url"], ready["token"], door
        finally:
            process.terminate()


def _ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data) as answer:
        return json.loads(answer.read() or b"null")


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare one thing."""
    count = 30 if quick else 1_000
    with apart(quick) as own:
        yield Case(
            name=f"{count:,} webhooks, {LATENCY * 1e3:g} ms each",
            unit="seconds",
            competitors={OURS: own(ours, count), PEER: own(handshake_alone, count)},
            reference=PEER,
            rounds=2,
            goals=[Goal(against=PEER, at_most=1.05)],
        )
