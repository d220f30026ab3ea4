"""The command line: called here, or as a process of its own that is started far from the repository."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from attrs import frozen

from asana_webhooks import cli

MODULE = ("-m", "asana_webhooks")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run the command line in this process; return the status it exits with."""
    monkeypatch.setattr(sys, "argv", ["asana-webhooks", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code


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
