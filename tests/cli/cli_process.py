"""The command line as a process of its own, started far from the repository."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from attrs import frozen

MODULE = ("-m", "asana_webhooks")


@frozen(kw_only=True)
class Ended:
    status: int | None
    out: str
    err: str


@asynccontextmanager
async def started(
    *arguments: str, python: Sequence[str] = MODULE, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *python,
        *arguments,
        cwd=tempfile.gettempdir(),
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    return Ended(status=process.returncode, out=out.decode(), err=err.decode())


async def run_cli(*arguments: str, python: Sequence[str] = MODULE, **environment: str) -> Ended:
    async with started(*arguments, python=python, **environment) as process:
        return await ended(process)


def words(text: str) -> str:
    """Return *text* on one line, without the frames and folds that depend on the terminal's width."""
    return " ".join(text.replace("│", " ").split())
