"""The relay of the worker's guide, run as printed: it hands deliveries to taskiq, over a real Redis or in memory."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asana_webhooks import DeliveryState, Store, open_store
from asana_webhooks.wire import decode_delivery
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.programs import next_line, running, start
from tests.helpers.raw import later
from tests.helpers.stores import body, deliver, event, register

pytestmark = pytest.mark.frameworks


@asynccontextmanager
async def ending(process: asyncio.subprocess.Process) -> AsyncIterator[asyncio.subprocess.Process]:
    """End a process with the block, and those that it has started."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def redis(folder: Path, port: int) -> asyncio.subprocess.Process:
    """Start Redis, which syncs all that it accepts to the disk, and wait until it has loaded what is there."""
    where = shutil.which("redis-server")
    if where is None:
        pytest.skip("there is no redis-server; Debian's package redis-server brings it")
    options = f"--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync always".split()
    server = await asyncio.create_subprocess_exec(where, *options, cwd=folder, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async for line in server.stdout:
        if b"Ready to accept connections" in line:
            return server
    raise AssertionError("Redis ended")


async def stored(store: Store, id: str) -> str:
    """Store a delivery; return what its task prints."""
    content = body(event())
    await deliver(store, id, content)
    (read,) = decode_delivery(content).events
    return f"{read.fingerprint[:8]} changed {read.resource.gid}"


async def test_in_memory(tmp_path: Path) -> None:
    """With a broker that needs no server, a stored delivery is handled by the task, and acknowledged."""
    on_redis, in_memory = 'RedisStreamBroker(os.environ["REDIS_URL"])', "InMemoryBroker()"
    source = program("worker", "Relays").replace(on_redis, in_memory).replace("taskiq_redis", "taskiq")
    (tmp_path / "relay.py").write_text(source.replace("import RedisStreamBroker", "import InMemoryBroker"))
    async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        expected = await stored(store, await register(store))
        async with running(tmp_path, "relay.py") as relay:
            assert await next_line(relay) == expected
            while (await store.health()).leased:
                await later(0.01)
        assert (await store.health()).waiting == 0


@pytest.mark.timeout(120)
async def test_over_redis(tmp_path: Path) -> None:
    """The relay acknowledges what Redis has taken. While Redis is dead, the store keeps what arrives. Once it is back,
    each delivery reaches a worker of taskiq.
    """
    (tmp_path / "relay.py").write_text(program("worker", "Relays"))
    port = free_port()
    where = {"REDIS_URL": f"redis://127.0.0.1:{port}"}
    async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        id = await register(store)
        async with ending(await redis(tmp_path, port)) as server, ending(await start(tmp_path, "relay.py", **where)):
            expected = {await stored(store, id)}
            while await store.deliveries(state=DeliveryState.WAITING) or (await store.health()).leased:
                await later(0.05)
            server.kill()
            await server.wait()
            expected.add(await stored(store, id))
            while not await store.deliveries(state=DeliveryState.DELAYED):
                await later(0.05)
            async with ending(await redis(tmp_path, port)):
                command = ("-m", "taskiq", "worker", "relay:broker")
                async with ending(await start(tmp_path, *command, **where)) as worker:
                    assert {await next_line(worker) for _ in expected} == expected
                    while (await store.health()).oldest_age is not None:
                        await later(0.05)
