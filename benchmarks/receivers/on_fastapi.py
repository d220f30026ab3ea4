"""FastAPI."""

import socket
from multiprocessing.connection import Connection

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.receivers.signed import is_signed

__all__ = ["serve"]


def serve(listening: socket.socket, _: Connection) -> None:
    """FastAPI on uvicorn with all that makes it fast (uvloop, httptools); it parses the events."""
    app = FastAPI()

    @app.post("/asana/{endpoint}")
    async def receive(endpoint: str, request: Request) -> Response:  # noqa: ARG001 - as FastAPI wants it
        body = await request.body()
        if not is_signed(body, request.headers["X-Hook-Signature"]):
            return Response(status_code=401)
        assert orjson.loads(body)["events"]
        return Response(status_code=200)

    config = uvicorn.Config(app, access_log=False, log_level="warning", loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[listening])
