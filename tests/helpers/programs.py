"""Running the programs of the guides as processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asana_webhooks.testing import FakeAsana

__all__ = ["access", "is_running", "next_line", "run", "running", "start"]


async def start(folder: Path, *command: str, **environment: str) -> asyncio.subprocess.Process:
    """Start Python in *folder*."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env=os.environ | environment | {"PYTHONUNBUFFERED": ""},  # programs flush what they print
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(folder: Path, code: str, *arguments: str, **environment: str) -> list[str]:
    """Run a program that ends by itself; return the lines it printed."""
    process = await start(folder, "-c", code, *arguments, **environment)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().splitlines()


@asynccontextmanager
async def running(folder: Path, *command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a service; end it with SIGTERM, and see that it ended well."""
    process = await start(folder, *command, **environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    # uvicorn cleans up and then raises the signal again, so that its parent sees it; Flask's own server does nothing.
    ends_by_signal = {"uvicorn", "flask"} & set(command)
    assert process.returncode == (-signal.SIGTERM if ends_by_signal else 0), errors.decode()
    assert b"Traceback" not in errors, errors.decode()


def access(fake: FakeAsana) -> dict[str, str]:
    """Return the variables that lead a session to *fake*."""
    return {"ASANA_ACCESS_TOKEN": fake.token, "ASANA_BASE_URL": fake.url, "ASANA_WORKSPACE": fake.workspace}


async def next_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError((await process.stderr.read()).decode())
    return line.decode().strip()


async def is_running(server: asyncio.subprocess.Process) -> None:
    """Wait until uvicorn or Flask says that it serves."""
    assert server.stderr is not None
    async for line in server.stderr:
        if b"unning on" in line:
            return
    raise AssertionError("the server ended")
