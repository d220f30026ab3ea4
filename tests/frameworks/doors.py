"""The receiver in every framework and server that its guide names, on real loopback ports.

A door takes the path of an SQLite store, and yields the ``public_url`` of a receiver over it. What only the extra
``frameworks`` installs is imported inside the functions: without the extra, this file can still be imported.
"""

import asyncio
import functools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import fastapi
from aiohttp import web
from django.conf import settings
from django.core.asgi import get_asgi_application
from starlette.applications import Starlette
from starlette.routing import Mount

from asana_webhooks import Receiver
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store import SQLiteStore
from tests.frameworks.gateway import on_lambda
from tests.helpers.doors import serve_app, serve_asgi
from tests.helpers.guides import ROOT, program
from tests.helpers.ports import free_port

Door = Callable[[Path], AbstractAsyncContextManager[str]]
Server = Callable[[Any], AbstractAsyncContextManager[str]]
"""Serves an application of its own kind, and yields the URL of its root."""


def door(make: Callable[[Receiver], Any], serve: Server) -> Door:
    """Return a door into what *make* makes of a receiver, in this process."""

    @asynccontextmanager
    async def opened(path: Path) -> AsyncIterator[str]:
        async with SQLiteStore(path) as store, Receiver(store) as receiver, serve(make(receiver)) as url:
            yield f"{url}/asana"

    return opened


def in_aiohttp(receiver: Receiver) -> web.Application:
    app = web.Application()
    app.add_routes(webhook_routes(receiver, "/asana"))
    return app


def in_fastapi(receiver: Receiver) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    app.mount("/asana", ReceiverApp(receiver))
    return app


def in_starlette(receiver: Receiver) -> Starlette:
    return Starlette(routes=[Mount("/asana", ReceiverApp(receiver))])


def in_litestar(receiver: Receiver) -> Any:
    from litestar import Litestar, asgi  # noqa: PLC0415

    return Litestar([asgi("/asana", is_mount=True, copy_scope=True)(ReceiverApp(receiver))])


def in_quart(receiver: Receiver) -> Any:
    from hypercorn.middleware import DispatcherMiddleware  # noqa: PLC0415
    from quart import Quart  # noqa: PLC0415

    mounts: dict[str, Any] = {"/asana/": ReceiverApp(receiver), "": Quart("service")}
    return DispatcherMiddleware(mounts)


@asynccontextmanager
async def served_by_hypercorn(
    app: Any, *, certfile: str | None = None, keyfile: str | None = None
) -> AsyncIterator[str]:
    """Serve an ASGI application on hypercorn; with a certificate and its key, over TLS, and so over HTTP/2."""
    import hypercorn.asyncio  # noqa: PLC0415

    listening = socket.create_server(("127.0.0.1", 0))  # clients wait in its queue until hypercorn is ready
    port = listening.getsockname()[1]
    config, stop = hypercorn.Config(), asyncio.Event()
    config.bind = [f"fd://{listening.detach()}"]
    config.certfile, config.keyfile = certfile, keyfile
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield f"{'https' if certfile else 'http'}://127.0.0.1:{port}"
    finally:
        stop.set()
        await serving


@functools.cache
def django_project() -> tuple[ModuleType, Any]:
    """Return the guide's ``urls.py``, and the ASGI application of a project that has only these; a process has one."""
    urls = ModuleType("urls")
    exec(program("receiver", "Django"), vars(urls))
    middleware = ["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]
    settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=middleware)
    return urls, get_asgi_application()


def in_django(receiver: Receiver) -> Any:
    urls, django = django_project()
    vars(urls)["receiver"] = receiver
    return django


def beside_django(receiver: Receiver) -> Any:
    """Return what one would write in ``asgi.py``."""
    _, django = django_project()
    hooks = ReceiverApp(receiver)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await (hooks if scope["path"].startswith("/asana/") else django)(scope, receive, send)

    return application


def in_sanic(receiver: Receiver) -> Any:
    from sanic import HTTPResponse, Request, Sanic  # noqa: PLC0415

    async def asana(request: Request, endpoint: str) -> HTTPResponse:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
        reply = await receiver.receive(endpoint, headers, request.body)
        return HTTPResponse(reply.body, reply.status, {n.decode(): v.decode() for n, v in reply.headers})

    app: Any = Sanic("service")
    app.add_route(asana, "/asana/<endpoint>", methods=["POST"])
    return app


@asynccontextmanager
async def served_by_sanic(app: Any) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = await app.create_server(sock=listening, access_log=False, return_asyncio_server=True)
    try:
        await server.startup()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        await server.close()


def granian_app() -> ReceiverApp:
    """Return what granian's worker serves."""
    return ReceiverApp(Receiver(SQLiteStore(os.environ["STORE"])))


@asynccontextmanager
async def on_granian(path: Path) -> AsyncIterator[str]:
    """Run granian as users do; it starts a worker process."""
    port = free_port()
    options = ("--interface", "asgi", "--factory", "--port", str(port), "--no-access-log")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "granian", *options, "tests.frameworks.doors:granian_app"),
        cwd=ROOT,
        env=os.environ | {"STORE": str(path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = b""
        async for line in process.stdout:
            said += line
            if b"Started worker" in line:
                break
        else:
            raise AssertionError(said.decode())
        yield f"http://127.0.0.1:{port}/asana"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


DOORS: dict[str, Door] = {
    "aiohttp": door(in_aiohttp, serve_app),
    "uvicorn with h11": door(ReceiverApp, serve_asgi),
    "uvicorn with httptools": door(ReceiverApp, functools.partial(serve_asgi, http="httptools")),
    "granian": on_granian,
    "FastAPI": door(in_fastapi, serve_asgi),
    "Starlette": door(in_starlette, serve_asgi),
    "Litestar": door(in_litestar, serve_asgi),
    "Quart on hypercorn": door(in_quart, served_by_hypercorn),
    "a view of Django": door(in_django, functools.partial(serve_asgi, lifespan="off")),
    "beside Django": door(beside_django, functools.partial(serve_asgi, lifespan="off")),
    "Sanic by hand": door(in_sanic, served_by_sanic),
    "Lambda, REST API": functools.partial(on_lambda, version=1, base64=False),
    "Lambda, REST API, base64": functools.partial(on_lambda, version=1, base64=True),
    "Lambda, HTTP API": functools.partial(on_lambda, version=2, base64=False),
    "Lambda, HTTP API, base64": functools.partial(on_lambda, version=2, base64=True),
}

REVEAL = {one: "Mangum logs all paths, at INFO" for one in DOORS if one.startswith("Lambda")}
REVEAL["a view of Django"] = "Django logs the paths of refused requests, at WARNING"
"""Doors whose framework logs paths, and so endpoints, besides any access log."""
