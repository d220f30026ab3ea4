"""What can happen to a PostgreSQL server and to the way to it: it freezes, is replaced, or its answers are lost."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from yarl import URL

from tests.helpers.ports import free_port
from tests.helpers.postgres import PostgresServer, owner, postgres_server, run_sql
from tests.helpers.raw import later
from tests.helpers.servers import closing_resets

__all__ = ["LossyProxy", "frozen_server", "lossy_proxy", "pgbouncer", "set_option", "synchronous_standby"]


async def set_option(server: PostgresServer, name: str, value: str) -> None:
    """Change an option of a running server, and wait until new connections have it."""
    await run_sql(server.url, f"ALTER SYSTEM SET {name} = '{value}'")
    await run_sql(server.url, "SELECT pg_reload_conf()")
    while (await run_sql(server.url, f"SHOW {name}"))[0][0] != value:
        await later(0.01)


def _children(pid: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(status.parent.name)


@contextmanager
def frozen_server(server: PostgresServer) -> Iterator[None]:
    """Stop all processes of a server while the block runs; its machine still accepts connections and bytes."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("finding all processes of a server needs /proc")
    stopped = [server.pid]
    server.signal(signal.SIGSTOP)  # first, so that it starts no more of them
    try:
        for pid in _children(server.pid):
            stopped.append(pid)
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def synchronous_standby(primary: PostgresServer) -> AsyncIterator[PostgresServer]:
    """Run a standby while the block runs; each commit of the primary waits until the standby has it, too."""
    with postgres_server(create=False) as standby:
        standby.password = primary.password
        where = ("--host=127.0.0.1", f"--port={primary.port}", "--username=asana", "--no-sync")
        standby.run("pg_basebackup", *where, "--write-recovery-conf", "--checkpoint=fast", "-D", standby.data)
        standby.start()
        await set_option(primary, "synchronous_standby_names", "*")
        while not await run_sql(primary.url, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            await later(0.05)
        yield standby


@asynccontextmanager
async def pgbouncer(server: PostgresServer, mode: str) -> AsyncIterator[str]:
    """Run PgBouncer before a server while the block runs; yield the URL to use."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    url, directory = URL(server.url), server.directory / "pgbouncer"
    directory.mkdir()
    users, options = directory / "users", directory / "options"
    users.write_text(f'"{url.user}" "{url.password}"\n')
    port = free_port()
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "plain",
        "auth_file": users,
        "pool_mode": mode,
        "default_pool_size": 5,
    }
    databases = f"[databases]\npostgres = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
    options.write_text(databases + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    through = str(url.with_port(port))
    process = await asyncio.create_subprocess_exec(program, options, stderr=subprocess.DEVNULL, **owner())
    try:
        await _until_connected(through)
        yield through
    finally:
        process.kill()
        await process.wait()


async def _until_connected(url: str) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError, asyncpg.PostgresError):
                await run_sql(url)
                return
            await later(0.05)


class LossyProxy:
    """Passes all bytes between clients and a server, until `lose_when` says that an answer is lost."""

    def __init__(self, port: int) -> None:
        self.url = ""
        """The way to the server through here."""
        self.lose_when: Callable[[], Awaitable[bool]] | None = None
        """Asked before each answer is passed on. When it returns True, the connection is lost, and no other one is."""
        self.is_silent = False
        """Whether a lost connection stays open, as if the client's machine had vanished; else both ends are reset."""
        self.losses = 0
        self._port = port
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        lost = asyncio.Event()
        ways = {
            asyncio.create_task(self._pass(reader, up_writer, lost)),
            asyncio.create_task(self._pass_answers(up_reader, writer, lost)),
        }
        self._tasks |= ways
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, up_writer):
            closing_resets(end)
            end.transport.abort()
        for way in ways:
            way.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        with suppress(ConnectionError):
            data = b"-"
            while data:
                data = await reader.read(1 << 16)
                if lost.is_set():
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self.lose_when is not None and await self.lose_when():
                    self.lose_when = None
                    self.losses += 1
                    if self.is_silent:
                        lost.set()
                        await asyncio.Event().wait()
                    return
                writer.write(data)
                await writer.drain()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def lossy_proxy(url: str) -> AsyncIterator[LossyProxy]:
    """Put a proxy before the server at *url* while the block runs."""
    upstream = URL(url)
    assert upstream.port is not None
    proxy = LossyProxy(upstream.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = str(upstream.with_port(server.sockets[0].getsockname()[1]))
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
