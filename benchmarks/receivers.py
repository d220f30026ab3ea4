"""Programs that receive deliveries: what one would write instead of using this package, and the limit.

All of them check the signature over the raw body. None of them stores anything.
"""

import asyncio
import hashlib
import hmac
import os
import socket
import sys
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from pprint import pprint
from typing import Final, cast

import orjson
import uvicorn
from aiohttp import web
from fastapi import FastAPI, Request, Response
from flask import Flask
from flask import Response as FlaskResponse
from flask import request as flask_request

from benchmarks.bodies import SECRET

__all__ = ["bare_aiohttp", "bare_protocol", "fastapi", "flask_app", "flask_gunicorn"]

_KEY: Final = SECRET.encode()


def _is_signed(body: bytes, signature: str) -> bool:
    return hmac.compare_digest(hmac.new(_KEY, body, hashlib.sha256).hexdigest(), signature)


def bare_aiohttp(listening: socket.socket, _: Connection) -> None:
    """aiohttp.web with one handler that looks at the signature and at nothing else."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(status=200 if _is_signed(body, request.headers["X-Hook-Signature"]) else 401)

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/asana/{endpoint}", receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        await asyncio.Event().wait()

    asyncio.run(main())


def fastapi(listening: socket.socket, _: Connection) -> None:
    """FastAPI on uvicorn with all that makes it fast (uvloop, httptools); it parses the events."""
    app = FastAPI()

    @app.post("/asana/{endpoint}")
    async def receive(endpoint: str, request: Request) -> Response:  # noqa: ARG001 - as FastAPI wants it
        body = await request.body()
        if not _is_signed(body, request.headers["X-Hook-Signature"]):
            return Response(status_code=401)
        assert orjson.loads(body)["events"]
        return Response(status_code=200)

    config = uvicorn.Config(app, access_log=False, log_level="warning", loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[listening])


flask_app = Flask(__name__)


@flask_app.post("/asana/<endpoint>")
def _receive(endpoint: str) -> FlaskResponse:  # noqa: ARG001 - as Flask wants it
    """Do with a delivery what Asana's example server does: everything it gets is printed."""
    print("Headers:", flask_request.headers)  # noqa: T201
    secret = Path(os.environ[_SECRET_FILE]).read_text(encoding="utf-8").partition("=")[2]
    expected = hmac.new(secret.encode(), flask_request.get_data(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, flask_request.headers["X-Hook-Signature"]):
        return FlaskResponse(status=401)
    print(f"Events at {datetime.now()}:")  # noqa: T201, DTZ005 - for whoever looks at the terminal
    pprint(flask_request.get_json()["events"])  # noqa: T203
    return FlaskResponse(status=200)


_SECRET_FILE: Final = "FLASK_SECRET_FILE"


def flask_gunicorn(listening: socket.socket, _: Connection, directory: str) -> None:
    """Asana's example server on gunicorn, with its default worker, one for the one core.

    What it prints goes nowhere, and the secret is in a file, as there; here in *directory*.
    Source: https://github.com/Asana/devrel-examples/blob/master/python/webhooks_v5/server.py
    """
    listening.set_inheritable(True)
    file = Path(directory, ".env")
    file.write_text(f"X_HOOK_SECRET={SECRET}", encoding="utf-8")
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    options = ["--bind", f"fd://{listening.fileno()}", "--workers", "1", "--log-level", "error"]
    command = [sys.executable, "-m", "gunicorn", *options, "benchmarks.receivers:flask_app"]
    os.execve(sys.executable, command, os.environ | {_SECRET_FILE: str(file)})


def bare_protocol(listening: socket.socket, _: Connection) -> None:
    """The limit: no HTTP server at all, only what these requests need."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Bare, sock=listening)
        await server.serve_forever()

    asyncio.run(main())


class _Bare(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(_value(head, b"\r\nContent-Length: ")):
            return
        self._received = b""
        is_signed = _is_signed(body, _value(head, b"\r\nX-Hook-Signature: ").decode())
        status = b"200 OK" if is_signed else b"401 Unauthorized"
        self._transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


def _value(head: bytes, name: bytes) -> bytes:
    return head.partition(name)[2].partition(b"\r\n")[0]
