"""A service that error trackers and tracers watch: ``python -m tests.helpers.tracked_service SETUP DOOR``.

SETUP is a program that sets them up, and runs before anything else; DOOR is one of `DOORS`. The service ensures a
webhook, and prints its gid and target. Then each line of input is something that goes wrong: ``handle`` (a handler
raises), ``create`` (Asana refuses a webhook) or ``store`` (nothing can be stored from now on). When the input ends,
the service ends, and prints its spans and metrics.
"""

import asyncio
import logging
import os
import runpy
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sentry_sdk
import uvicorn
from aiohttp import web
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    Delivery,
    MemoryStore,
    Receiver,
    StoreUnavailableError,
    Worker,
    create_webhook,
    ensure_webhook,
)
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.store.base import NewDelivery, PutResult


class BreakingStore(MemoryStore):
    broken = False

    async def put(self, delivery: NewDelivery) -> PutResult:
        if self.broken:
            raise StoreUnavailableError(problem="the disk is full")
        return await super().put(delivery)


@asynccontextmanager
async def serve_aiohttp(receiver: Receiver, listening: socket.socket) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes(webhook_routes(receiver, "/asana", health=True))
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    yield
    await runner.cleanup()


@asynccontextmanager
async def serve_fastapi(receiver: Receiver, listening: socket.socket) -> AsyncIterator[None]:
    from fastapi import FastAPI  # noqa: PLC0415 - a tracer has replaced it by now

    app = FastAPI()
    app.mount("/asana", ReceiverApp(receiver, health=True))
    async with serving(app, listening):
        yield


@asynccontextmanager
async def serve_asgi(receiver: Receiver, listening: socket.socket) -> AsyncIterator[None]:
    async with serving(SentryAsgiMiddleware(ReceiverApp(receiver, health=True)), listening):
        yield


@asynccontextmanager
async def serving(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listening]))
        yield
        server.should_exit = True


DOORS = {"aiohttp": serve_aiohttp, "fastapi": serve_fastapi, "asgi": serve_asgi}


async def fail(delivery: Delivery) -> None:
    raise LookupError("no calendar")


async def create(asana: AsanaSession, target: str) -> None:
    with sentry_sdk.start_transaction(name="create"):
        try:
            await create_webhook(asana, resource="404404", target=target)
        except AsanaError as error:
            sentry_sdk.capture_exception(error)


async def main(door: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/asana"
    store = BreakingStore()
    async with store, Receiver(store) as receiver, AsanaSession() as asana, DOORS[door](receiver, listening):
        public_url = f"{url}?{os.environ['GATEWAY_QUERY']}"
        ensured = await ensure_webhook(asana, store, resource=os.environ["ASANA_PROJECT"], public_url=public_url)
        target = ensured.webhook.target or ""
        say(f"{ensured.webhook_gid} {target}")
        while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if order == "handle":
                await Worker(store, fail, attempts=1).drain()
            elif order == "create":
                await create(asana, target)
            store.broken = order == "store"
            say("done")
        await receiver.aclose()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    for framework in ("django", "flask", "litestar", "sanic"):
        sys.modules[framework] = None  # type: ignore[assignment] # Sentry would import them, which takes most of a second
    runpy.run_path(sys.argv[1])
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    AioHttpServerInstrumentor().instrument()
    asyncio.run(main(sys.argv[2]))
    sentry_sdk.flush(30)  # when the process ends, it waits for two seconds only
    for span in exporter.get_finished_spans():
        say(span.to_json(indent=None))
    if data := reader.get_metrics_data():
        say(data.to_json(indent=None))
