"""What it takes to be there: CPU time to import, and memory of a client or a receiver that waits for its next request.

For memory each is a process of its own, ``python -m benchmarks.footprint <function> <url>``, which prints what one
request came to, and how many bytes it takes then. All of them import the libraries this package needs; what else they
use only where they use it.
"""
# ruff: noqa: PLC0415 - that is how it is done

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import attrs  # noqa: F401 - everybody has them
import cattrs  # noqa: F401
import msgspec
import psutil
from aiohttp import web

from benchmarks.bodies import ENDPOINT, delivery, is_signed, signature
from benchmarks.harness import OURS, Case, Goal, Round

TITLE: Final = "Starting a fresh interpreter, and memory of an idle one"

LIBRARIES: Final = "import aiohttp, attrs, cattrs, msgspec"
BARE: Final = "bare aiohttp"
GID: Final = "1300000000000000"
ROOT: Final = Path(__file__).parent.parent


def start(statement: str) -> Round:
    """Run an interpreter; return the milliseconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Compiled code is kept, as it is where this package is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", statement], cwd=ROOT, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Round(value=seconds * 1e3, work=None)


# Clients return the gid of the webhook they asked for, receivers the status they answered; and the memory they take


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def aiohttp_client(url: str) -> tuple[str, int]:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/webhooks/{GID}") as response:
            answer = msgspec.json.decode(await response.read())
        return answer["data"]["gid"], _resident()


async def our_client(url: str) -> tuple[str, int]:
    from asana_webhooks import AsanaSession, get_webhook

    async with AsanaSession("token", base_url=url) as asana:
        webhook = await get_webhook(asana, GID)
        return webhook.gid, _resident()


async def aiohttp_receiver(_: str) -> tuple[str, int]:
    async def receive(request: web.Request) -> web.Response:
        proven = is_signed(await request.read(), request.headers["X-Hook-Signature"])
        return web.Response(status=200 if proven else 401)

    return await _deliver([web.post("/asana/{endpoint}", receive)])


async def our_receiver(_: str) -> tuple[str, int]:
    from asana_webhooks import MemoryStore, Receiver
    from asana_webhooks.receiver.web import webhook_routes
    from benchmarks.stores import register

    async with MemoryStore() as store:
        await register(store)
        return await _deliver(webhook_routes(Receiver(store)))


async def _deliver(routes: list[web.RouteDef]) -> tuple[str, int]:
    app, body = web.Application(), delivery(1)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        head = f"POST /asana/{ENDPOINT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}X-Hook-Signature: {signature(body)}\r\n\r\n".encode() + body)
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        resident = _resident()
        writer.close()
        return status.decode(), resident
    finally:
        await runner.cleanup()


def idle(function: str, url: str) -> Round:
    """Run one of the functions above in a fresh process; return the megabytes it takes."""
    command = [sys.executable, "-m", "benchmarks.footprint", function, url]
    ended = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    work, resident = json.loads(ended.stdout)
    return Round(value=resident / 2**20, work=work)


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare imports, clients, and receivers."""
    from benchmarks.canned import serving_pages

    imports = {OURS: "import asana_webhooks", LIBRARIES: LIBRARIES}
    if not quick:
        for statement in imports.values():
            start(statement)  # so that all of it is compiled
    yield Case(
        name="import",
        unit="ms of CPU",
        competitors={name: partial(start, statement) for name, statement in imports.items()},
        reference=LIBRARIES,
        rounds=9,
        goals=[Goal(against=LIBRARIES, at_most=1.5)],  # all that users see is imported at once
    )
    with serving_pages(1) as url:
        for what in ("client", "receiver"):
            yield Case(
                name=f"memory of a {what}",
                unit="MB resident",
                competitors={OURS: partial(idle, f"our_{what}", url), BARE: partial(idle, f"aiohttp_{what}", url)},
                reference=BARE,
                goals=[Goal(against=BARE, at_most=1.1)],
            )


if __name__ == "__main__":
    json.dump(asyncio.run(globals()[sys.argv[1]](sys.argv[2])), sys.stdout)
