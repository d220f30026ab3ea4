"""AWS API Gateway in front of a Lambda function that is a receiver under Mangum."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from asana_webhooks import Receiver
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.store import SQLiteStore
from tests.helpers.doors import serve_app


async def _event(request: web.Request, *, version: int, base64: bool) -> dict[str, Any]:
    """Return what the gateway passes to a function: version 1 for a REST API, 2 for an HTTP API.

    Source: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
    """
    content, method = await request.read(), request.method
    body = {"body": (b64encode(content) if base64 else content).decode(), "isBase64Encoded": base64}
    if version == 1:
        return body | {
            "resource": "/{proxy+}",
            "path": request.path,
            "httpMethod": method,
            "headers": dict(request.headers),
            "multiValueHeaders": {name: request.headers.getall(name) for name in request.headers},
            "queryStringParameters": None,
            "multiValueQueryStringParameters": None,
            "requestContext": {"stage": "prod", "path": f"/prod{request.path}", "identity": {"sourceIp": "192.0.2.1"}},
        }
    http = {"method": method, "path": f"/prod{request.path}", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"}
    return body | {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": f"/prod{request.path}",
        "rawQueryString": "",
        "headers": {name.lower(): ",".join(request.headers.getall(name)) for name in request.headers},
        "requestContext": {"stage": "prod", "http": http | {"userAgent": ""}},
    }


def _function(path: Path) -> tuple[Callable[..., Any], Callable[[], None]]:
    """Return the function, and what ends it. Mangum gives it a loop, which stays the same for all its calls."""
    from mangum import Mangum  # noqa: PLC0415

    store = SQLiteStore(path)
    function = Mangum(ReceiverApp(Receiver(store)), lifespan="off")

    def end() -> None:
        loop = asyncio.get_event_loop()
        loop.run_until_complete(store.aclose())
        loop.close()

    return function, end


@asynccontextmanager
async def on_lambda(path: Path, *, version: int, base64: bool) -> AsyncIterator[str]:
    """Serve a receiver over the store at *path* as Lambda does: one call after another, on a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        call = partial(asyncio.get_running_loop().run_in_executor, thread)
        function, end = await call(_function, path)

        async def invoke(request: web.Request) -> web.Response:
            answer = await call(function, await _event(request, version=version, base64=base64), None)
            headers = answer.get("headers", {}) | {n: v for n, [v] in answer.get("multiValueHeaders", {}).items()}
            headers.pop("content-length")  # the gateway's business
            return web.Response(status=answer["statusCode"], headers=headers, text=answer["body"])

        app = web.Application()
        app.router.add_post("/{path:.*}", invoke)
        try:
            async with serve_app(app) as url:
                yield f"{url}/asana"
        finally:
            await call(end)
