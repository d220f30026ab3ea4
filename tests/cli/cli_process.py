"""The command line: called here, or as a process of its own that is started far from the repository."""

import asyncio
import os
import pty
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from attrs import define, frozen

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


async def run_unread(*arguments: str, **environment: str) -> Ended:
    """Run the command line with a standard output that nobody reads any more, as after ``| head``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *MODULE, *arguments),
            env={**os.environ, **environment},
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(writing)
    _, err = await process.communicate()
    return Ended(status=process.returncode, out="", err=err.decode())


@define
class Terminal:
    """A process on a pseudo-terminal."""

    process: asyncio.subprocess.Process
    master: int
    shown: str = ""

    async def until(self, text: str) -> None:
        """Return when the terminal has shown *text*."""
        async with asyncio.timeout(20):
            while text not in self.shown:
                self.shown += await self._read()

    async def ended(self) -> int:
        """Return the status when the process has ended and all is shown."""
        status = await self.process.wait()
        while more := await self._read():
            self.shown += more
        return status

    async def _read(self) -> str:
        try:
            return (await asyncio.to_thread(os.read, self.master, 65536)).decode()
        except OSError:  # on Linux, when nothing has the terminal open
            return ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@asynccontextmanager
async def on_terminal(*arguments: str, **environment: str) -> AsyncIterator[Terminal]:
    """Start the command line as the session leader of a pseudo-terminal, so that Ctrl-C reaches it."""
    master, slave = pty.openpty()
    code = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from {cli.__name__} import main; main()"
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, *arguments),
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
    finally:
        os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
