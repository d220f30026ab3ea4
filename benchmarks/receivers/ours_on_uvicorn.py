"""Ours as an ASGI application on uvicorn, with uvloop and httptools."""

import socket
from multiprocessing.connection import Connection

import uvicorn
import uvloop

from asana_webhooks import Receiver
from asana_webhooks.receiver.asgi import ReceiverApp
from benchmarks.receivers.ours import opened

__all__ = ["serve"]


def serve(listening: socket.socket, pipe: Connection, path: str | None) -> None:
    async def main() -> None:
        async with opened(path, pipe) as store:
            app = ReceiverApp(Receiver(store))
            config = uvicorn.Config(app, access_log=False, log_level="warning", http="httptools")
            await uvicorn.Server(config).serve(sockets=[listening])

    uvloop.run(main())
