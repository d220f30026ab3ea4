"""A receiver on a real port, for tests and trials."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from asana_webhooks.receiver.receiver import Receiver
from asana_webhooks.receiver.web import webhook_routes

__all__ = ["serve_receiver"]


@asynccontextmanager
async def serve_receiver(receiver: Receiver, *, port: int = 0) -> AsyncIterator[str]:
    """Serve *receiver* over HTTP on 127.0.0.1 while the block runs; yields its ``public_url``.

    Args:
        receiver: what answers.
        port: the port to listen on; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()
    app.add_routes(webhook_routes(receiver, "/asana"))
    # Signatures are checked over raw bytes, so nothing may decode them on the way.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        bound: int = runner.addresses[0][1]
        yield f"http://127.0.0.1:{bound}/asana"
    finally:
        await runner.cleanup()
