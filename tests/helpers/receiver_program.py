"""A receiver as a program of its own: ``python -m tests.helpers.receiver_program DOOR PATH PORT OPTIONS``.

It serves a `Receiver` over the `SQLiteStore` at PATH, and prints its ``public_url`` once it does. Asked to end
(SIGTERM), it ends as README tells its users to, and prints ``stopped`` when the store is closed. OPTIONS is JSON:
those of the receiver and those of the store.
"""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.routing import Mount

from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store import SQLiteStore


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def say_url(listening: socket.socket) -> None:
    say(f"http://127.0.0.1:{listening.getsockname()[1]}/asana")


async def serve_aiohttp(store: SQLiteStore, receiver: Receiver, listening: socket.socket) -> None:
    """Serve with aiohttp alone."""
    asked_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_end.set)
    app = web.Application()
    app.add_routes(webhook_routes(receiver, "/asana"))
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=2.0)
    async with store:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        say_url(listening)
        await asked_to_end.wait()
        await receiver.aclose()  # first: aiohttp reads no more of any body once it is shutting down
        await runner.cleanup()


async def serve_asgi(store: SQLiteStore, receiver: Receiver, listening: socket.socket) -> None:
    """Serve with uvicorn; it looks after signals itself, and dies of the one it got when all is done."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with store:
            say_url(listening)
            yield
            await receiver.aclose()
        say("stopped")

    app = Starlette(routes=[Mount("/asana", app=ReceiverApp(receiver))], lifespan=lifespan)
    await uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False)).serve([listening])


async def main(door: str, path: str, port: str, options: str) -> None:
    of_receiver, of_store = json.loads(options)
    store = SQLiteStore(path, **of_store)
    receiver = Receiver(store, **of_receiver)
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listening:
        if door == "asgi":
            await serve_asgi(store, receiver, listening)
        else:
            await serve_aiohttp(store, receiver, listening)
            say("stopped")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
