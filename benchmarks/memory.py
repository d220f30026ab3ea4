"""Memory of a client and of a receiver that have done one request and wait for the next one.

Each is a process of its own, ``python -m benchmarks.memory <function>``, which prints what the request came to, and how
many bytes it takes. All of them import the libraries this package needs; what else they use only where they use it.
"""
# ruff: noqa: PLC0415 - that is how it is done

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import attrs  # noqa: F401 - everybody has them
import cattrs  # noqa: F401
import msgspec
import psutil
from aiohttp import web

from benchmarks.bodies import ENDPOINT, delivery, is_signed, signature, webhook_answer
from benchmarks.harness import OURS, Case, Goal, Round, Size

TITLE: Final = "Memory of an idle process"

BARE: Final = "bare aiohttp"
BODY: Final = delivery(1)


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


# Clients: what they return is the gid of the webhook they asked for, and the memory they take then


@asynccontextmanager
async def _asana() -> AsyncIterator[str]:
    """Serve one answer, with as little memory as can be."""
    answer = webhook_answer()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(head.encode() + answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


async def aiohttp_client() -> tuple[str, int]:
    async with _asana() as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/webhooks/1") as response:
            answer = msgspec.json.decode(await response.read())
        return answer["data"]["gid"], _resident()


async def our_client() -> tuple[str, int]:
    from asana_webhooks import AsanaSession, get_webhook

    async with _asana() as url, AsanaSession("token", base_url=url) as asana:
        webhook = await get_webhook(asana, "1")
        return webhook.gid, _resident()


# Receivers: what they return is the status they answered a delivery with, and the memory they take then


async def _deliver(app: web.Application) -> tuple[str, int]:
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        head = (
            f"POST /asana/{ENDPOINT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n"
            f"X-Hook-Signature: {signature(BODY)}\r\n\r\n"
        )
        writer.write(head.encode() + BODY)
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        resident = _resident()
        writer.close()
        return status.decode(), resident
    finally:
        await runner.cleanup()


async def aiohttp_receiver() -> tuple[str, int]:
    async def receive(request: web.Request) -> web.Response:
        proven = is_signed(await request.read(), request.headers["X-Hook-Signature"])
        return web.Response(status=200 if proven else 401)

    app = web.Application()
    app.router.add_post("/asana/{endpoint}", receive)
    return await _deliver(app)


async def our_receiver() -> tuple[str, int]:
    from asana_webhooks import MemoryStore, Receiver
    from asana_webhooks.receiver.web import webhook_routes
    from benchmarks.stores import register

    async with MemoryStore() as store:
        await register(store)
        app = web.Application()
        app.add_routes(webhook_routes(Receiver(store)))
        return await _deliver(app)


# The comparison


def idle(function: str) -> Round:
    """Run one of the functions above in a fresh process; return the megabytes it takes."""
    command = [sys.executable, "-m", "benchmarks.memory", function]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE)
    work, resident = json.loads(ended.stdout)
    return Round(value=resident / 2**20, work=work)


def cases(_: Size) -> Iterator[Case]:
    """Compare clients, and receivers."""
    for what in ("client", "receiver"):
        yield Case(
            name=f"a {what}",
            unit="MB resident",
            competitors={OURS: partial(idle, f"our_{what}"), BARE: partial(idle, f"aiohttp_{what}")},
            reference=BARE,
            goals=[Goal(against=BARE, at_most=1.1)],
        )


if __name__ == "__main__":
    json.dump(asyncio.run(globals()[sys.argv[1]]()), sys.stdout)
