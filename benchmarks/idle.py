"""What `memory` looks at: a process that has done one request and waits for the next one.

``python -m benchmarks.idle <function>`` prints what the request came to, and how many bytes the process takes: with
the libraries this package needs and nothing else, and after the request. Everybody imports those libraries, and what
else they use only where they use it.
"""
# ruff: noqa: PLC0415 - that is how it is done

import asyncio
import contextlib
import gc
import hashlib
import hmac
import json
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import attrs  # noqa: F401 - everybody has them
import cattrs  # noqa: F401
import msgspec
import psutil
from aiohttp import web

from benchmarks.bodies import ENDPOINT, SECRET, delivery, signature, webhook_answer

if TYPE_CHECKING:
    from asana_webhooks import Store

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


def _proves(header: str, body: bytes) -> bool:
    return hmac.compare_digest(hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(), header)


async def aiohttp_receiver() -> tuple[str, int]:
    async def receive(request: web.Request) -> web.Response:
        proven = _proves(request.headers["X-Hook-Signature"], await request.read())
        return web.Response(status=200 if proven else 401)

    app = web.Application()
    app.router.add_post("/asana/{endpoint}", receive)
    return await _deliver(app)


async def aiohttp_receiver_with_sqlite() -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as directory, sqlite3.connect(f"{directory}/peer.db") as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE deliveries (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")

        async def receive(request: web.Request) -> web.Response:
            body = await request.read()
            if not _proves(request.headers["X-Hook-Signature"], body):
                return web.Response(status=401)
            database.execute("INSERT INTO deliveries (body) VALUES (?)", [body])
            database.commit()
            return web.Response()

        app = web.Application()
        app.router.add_post("/asana/{endpoint}", receive)
        return await _deliver(app)


async def our_receiver() -> tuple[str, int]:
    from asana_webhooks import MemoryStore

    return await _receive_into(MemoryStore())


async def our_receiver_with_sqlite() -> tuple[str, int]:
    from asana_webhooks import SQLiteStore

    with tempfile.TemporaryDirectory() as directory:
        return await _receive_into(SQLiteStore(Path(directory, "asana.db")))


async def _receive_into(fresh: "Store") -> tuple[str, int]:
    from asana_webhooks import Receiver, Secret, registration_id
    from asana_webhooks.receiver.web import webhook_routes

    async with fresh as store:
        id = registration_id(ENDPOINT)
        await store.open(id, resource="1331", ttl=60)
        await store.offer(id, Secret(SECRET))
        await store.confirm(id, webhook_gid="43214", secret=Secret(SECRET))
        app = web.Application()
        app.add_routes(webhook_routes(Receiver(store)))
        return await _deliver(app)


if __name__ == "__main__":
    before = _resident()
    json.dump([before, *asyncio.run(globals()[sys.argv[1]]())], sys.stdout)
