"""Error trackers and tracers around a receiver get no secret, if they are set up as the guide says."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define
from sentry_sdk.envelope import Envelope

from asana_webhooks.testing import FakeAsana
from tests.helpers.guides import ROOT, program

pytestmark = pytest.mark.slow

SENTRY = "import sentry_sdk\nsentry_sdk.init(traces_sample_rate=1.0)\n"
TRACER = """
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
FastAPIInstrumentor().instrument()
"""
ALL_HEADERS = {
    f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_{side}": "X-.*,Authorization" for side in ("REQUEST", "RESPONSE")
}
KEY = "gateway-key"
ENVIRONMENT = {"GATEWAY_QUERY": f"code={KEY}", "OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup"}
"""``dup``: spans have the attributes of the old conventions, and those of the new."""
STATUSES = {200, 401, 404, 503}
TRANSACTIONS = {
    "aiohttp": {("asana_webhooks.receiver.web.webhook_routes.receive", status) for status in STATUSES}
    | {("asana_webhooks.receiver.web.webhook_routes.<locals>.answer_health", 200)},
    "fastapi": {("/asana/{endpoint}", status) for status in STATUSES} | {("/asana/health", 200)},
    "asgi": {("asana_webhooks.receiver.receiver.Receiver.receive", status) for status in STATUSES},
}
SPANS = {"aiohttp": "POST /asana/{endpoint}", "fastapi": "POST /asana"}
ERRORS = {"LookupError", "BadRequestError", "request refused with %d: %.300r; webhook %.40r, registration %.12s"}


@define
class Seen:
    """What trackers got: items of Sentry's envelopes, and what the service printed of its spans and metrics."""

    sentry: list[tuple[str, Any]]
    printed: list[Any]
    secrets: dict[str, set[str]]

    def shown(self, *, by: str) -> set[str]:
        """Return the names of the secrets that are in what a tracker got."""
        text = json.dumps(self.sentry if by == "sentry" else self.printed)
        return {name for name, texts in self.secrets.items() if any(one in text for one in texts)}

    def transactions(self) -> set[tuple[str, int]]:
        """Return the names and statuses of Sentry's transactions of requests."""
        return {
            (item["transaction"], item["contexts"]["trace"]["data"]["http.response.status_code"])
            for kind, item in self.sentry
            if kind == "transaction" and "request" in item
        }

    def operations(self) -> set[str]:
        """Return the operations of Sentry's spans; ``http.client`` is a request to Asana."""
        return {span["op"] for kind, item in self.sentry if kind == "transaction" for span in item["spans"]}

    def errors(self) -> set[str]:
        """Return the exceptions and the log records that Sentry got."""
        events = [item for kind, item in self.sentry if kind == "event"]
        return {
            one["exception"]["values"][-1]["type"] if "exception" in one else one["logentry"]["message"]
            for one in events
        }

    def spans(self) -> set[tuple[str, int]]:
        """Return the names and statuses of the tracer's spans of POSTs, as servers see them."""
        return {
            (one["name"], one["attributes"]["http.status_code"])
            for one in self.printed
            if one.get("kind") == "SpanKind.SERVER" and one["attributes"]["http.method"] == "POST"
        }


@asynccontextmanager
async def sentry_server(items: list[tuple[str, Any]]) -> AsyncIterator[str]:
    """Take the envelopes that are sent to the DSN yielded."""

    async def take(request: web.Request) -> web.Response:
        envelope = Envelope.deserialize(await request.read())
        items.extend((str(item.type), json.loads(item.get_bytes())) for item in envelope.items)
        return web.json_response({})

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/api/1/envelope/", take)
    async with TestServer(app) as server:
        yield f"http://key@127.0.0.1:{server.port}/1"


async def watch(folder: Path, setup: str, door: str, **environment: str) -> Seen:
    """Run the service with its trackers; let it do all it can, well and badly."""
    (folder / "setup.py").write_text(setup)
    items: list[tuple[str, Any]] = []
    async with sentry_server(items) as dsn, FakeAsana(token="2/1200/1201:0123456789abcdef") as fake:
        access = {"ASANA_ACCESS_TOKEN": fake.token, "ASANA_BASE_URL": fake.url, "ASANA_PROJECT": fake.projects[0]}
        service = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.helpers.tracked_service", folder / "setup.py", door),
            cwd=ROOT,
            env=os.environ | access | ENVIRONMENT | {"SENTRY_DSN": dsn} | environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert service.stdin is not None
        assert service.stdout is not None
        gid, target = (await service.stdout.readline()).decode().split()
        base, _, endpoint = target.partition("?")[0].rpartition("/")
        await deliver(fake)
        assert await fake.forge_delivery(gid) == 401
        assert await fake.stranger_handshake(target) == 401
        assert await fake.stranger_handshake(f"{base}/{endpoint[:-1]}?{KEY}") == 404
        for order in (b"handle\n", b"create\n", b"store\n"):
            service.stdin.write(order)
            assert await service.stdout.readline() == b"done\n"
        await deliver(fake)
        async with aiohttp.ClientSession() as http, http.get(f"{base}/health?{KEY}") as response:
            assert response.status == 200
        printed, errors = await service.communicate(b"\n")
        assert service.returncode == 0, errors.decode()
        assert [one.status for one in fake.deliveries] == [200, 200, 401, 503]
        secrets = {
            "endpoint": {endpoint[:-1]},  # as the stranger sent it, too
            "key": {KEY},
            "secret": {one.secret.reveal() for one in fake.handshakes},
            "signature": {one.signature for one in fake.deliveries},
            "token": {fake.token},
        }
    return Seen(sentry=items, printed=[json.loads(line) for line in printed.splitlines()], secrets=secrets)


async def deliver(fake: FakeAsana) -> None:
    fake.change(fake.projects[0], field="name")
    await fake.settle()


@pytest.mark.long
@pytest.mark.parametrize("door", ["aiohttp", "fastapi"])
async def test_without_the_recipes(tmp_path: Path, door: str) -> None:
    """Set up as usual, both hold endpoints, secrets and signatures: what the recipes are for."""
    seen = await watch(tmp_path, SENTRY + TRACER, door, **ALL_HEADERS)

    assert seen.shown(by="sentry") == seen.shown(by="tracer") == {"endpoint", "key", "secret", "signature"}


@pytest.mark.parametrize("door", ["aiohttp", "fastapi"])
async def test_with_the_recipes(tmp_path: Path, door: str) -> None:
    """Set up as the guide says, neither holds any; errors, names and statuses are still there."""
    name, _, value = program("receiver", "OpenTelemetry", language="sh").split()[1].partition("=")
    setup = program("receiver", "Sentry") + program("receiver", "OpenTelemetry")
    seen = await watch(tmp_path, setup, door, **ALL_HEADERS, **{name: value})

    assert seen.shown(by="sentry") == seen.shown(by="tracer") == set()
    assert seen.errors() == ERRORS
    assert seen.transactions() == TRANSACTIONS[door]
    assert "http.client" in seen.operations()
    assert seen.spans() == {(SPANS[door], status) for status in STATUSES}


@pytest.mark.long
@pytest.mark.parametrize("door", ["fastapi", "asgi"])
async def test_other_settings(tmp_path: Path, door: str) -> None:
    """Sentry gets no secret if it collects all but variables, and a tracer that excludes the path has no span."""
    everything = "enable_logs=True, max_request_body_size='always', data_collection={'stack_frame_variables': False},"
    sentry = program("receiver", "Sentry").replace("sentry_sdk.init(", f"sentry_sdk.init({everything}")
    seen = await watch(tmp_path, sentry + TRACER, door, **ALL_HEADERS, OTEL_PYTHON_EXCLUDED_URLS="/asana/")

    assert seen.shown(by="sentry") == seen.shown(by="tracer") == set()
    assert seen.errors() == ERRORS
    assert seen.transactions() == TRANSACTIONS[door]
    assert "log" in {kind for kind, _ in seen.sentry}
    assert seen.spans() == set()
