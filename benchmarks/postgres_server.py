"""A PostgreSQL server for benchmarks, a database on it that is emptied for each round, and how fast its disk is."""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
from yarl import URL

from benchmarks.harness import SkippedError

POOL: Final[dict[str, Any]] = {"min_size": 20, "max_size": 20}
SYNCS: Final = 50
"""How often a file is synced to see how fast the disk is."""


@contextmanager
def benchmark_database() -> Iterator[str]:
    """Yield the URL of a database on the server that the tests would use.

    Raises:
        SkippedError: this machine has none, and cannot start one.
    """
    with ExitStack() as stack:
        given = os.environ.get("ASANA_WEBHOOKS_TEST_POSTGRES")
        url = given or stack.enter_context(_server())
        name = f"benchmark_{secrets.token_hex(8)}"
        asyncio.run(run_sql(url, f"CREATE DATABASE {name}"))
        try:
            yield str(URL(url).with_path(name))
        finally:
            asyncio.run(run_sql(url, f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _server() -> Iterator[str]:
    try:
        from tests.helpers.postgres import postgres_server, why_no_server  # noqa: PLC0415 - it needs pytest
    except ModuleNotFoundError as missing:
        raise SkippedError(f"{missing.name} is missing; first run: pip install -e '.[bench,dev]'") from None
    if reason := why_no_server():
        raise SkippedError(reason)
    with postgres_server() as server:
        yield server.url


async def run_sql(url: str, *statements: str) -> None:
    """Run statements over a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def empty(url: str) -> None:
    """Drop what the rounds before have left. (A database for each round would mean a checkpoint for each.)"""
    await run_sql(
        url, "DROP SCHEMA IF EXISTS asana_webhooks CASCADE", "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"
    )


@asynccontextmanager
async def empty_pool(url: str) -> AsyncIterator[Any]:
    """Yield a pool of twenty connections to the database, which is empty."""
    await empty(url)
    async with asyncpg.create_pool(url, **POOL) as pool:
        yield pool


def syncs_a_second(directory: str) -> float:
    """Return how often a second a file can get 8 kB more and be synced."""
    sync = getattr(os, "fdatasync", os.fsync)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(SYNCS):
            file.write(bytes(8_192))
            sync(file.fileno())
        return SYNCS / (time.perf_counter() - began)
