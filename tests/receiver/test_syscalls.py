"""What a receiver's process asks the system for, as strace sees it: first the disk, then the answer."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from asana_webhooks import SQLiteStore, sign_body
from asana_webhooks.store.base import registration_id
from tests.helpers.receiving import ROOT, prepare, receiver_process
from tests.helpers.stores import ENDPOINT, SECRET, body, event

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

CALLS = "pwrite64,pwritev,fdatasync,fsync,sendto,write,writev,sendmsg"
LINES = {
    # A write counts from its beginning, a sync from its end; strace splits a call that another thread interrupts.
    "write": re.compile(r"pwritev?(64)?\(\d+<.*-wal>"),
    "sync": re.compile(r"(fdatasync|fsync)(\(\d+<.*-wal>| resumed>)\) += 0"),
    "answer": re.compile(r'"HTTP/1\.1 200 '),
}
PENDING = "Pending_0123456789_abcdefghijklmnopqrstuvwx"

WEAKENED = """
import functools
from asana_webhooks.store.sqlite.file import sqlite3

class Weak(sqlite3.Connection):
    def execute(self, sql, *values):
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *values)

sqlite3.connect = functools.partial(sqlite3.connect, factory=Weak)
"""
"""What Python runs at its start, to make a store that does not wait for the disk."""


def before_answers(lines: Iterable[str]) -> list[list[str]]:
    """Return what a trace tells about the log, split at the answers; of several writes in a row one is told."""
    parts: list[list[str]] = [[]]
    for kind in (kind for line in lines for kind, pattern in LINES.items() if pattern.search(line)):
        if kind == "answer":
            parts.append([])
        elif parts[-1][-1:] != [kind]:
            parts[-1].append(kind)
    return parts[:-1]


@asynccontextmanager
async def traced(pid: int, path: Path) -> AsyncIterator[None]:
    """Write what a process asks the system for to a file, until the process has ended."""
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-y", "-s", "20", "-e", f"trace={CALLS}", "-o", path, "-p", str(pid)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    first = (await strace.stderr.readline()).decode()
    if "attached" not in first:
        await strace.wait()
        pytest.skip(f"this system does not let a process be traced: {first}")
    yield
    await strace.communicate()


async def statuses(url: str) -> list[int]:
    """Make a handshake and three deliveries, one after the other."""
    deliveries = [body(event()) for _ in range(3)]
    requests = [
        (PENDING, b"", {"X-Hook-Secret": SECRET.reveal()}),
        *((ENDPOINT, content, {"X-Hook-Signature": sign_body(content, secret=SECRET)}) for content in deliveries),
    ]
    answers = []
    async with aiohttp.ClientSession() as http:
        for endpoint, content, headers in requests:
            async with http.post(f"{url}/{endpoint}", data=content, headers=headers) as response:
                answers.append(response.status)
    return answers


async def traced_answers(directory: Path) -> list[list[str]]:
    """Let a receiver answer, and return what it did with the log before each answer."""
    path = directory / "asana.db"
    await prepare(path)
    async with SQLiteStore(path) as store:
        assert await store.open_registration(
            registration_id(PENDING), resource="9", public_url="https://example.com/asana", ttl=60
        )
    async with receiver_process(path) as process, traced(process.pid, directory / "trace"):
        assert await statuses(process.url) == [200] * 4
        await process.kill()
    return before_answers((directory / "trace").read_text().splitlines())


@pytest.mark.slow
async def test_an_answer_comes_after_the_sync(tmp_path: Path) -> None:
    """Each 200, of handshakes too, is sent when what was written for it has been synced."""
    assert [done[-2:] for done in await traced_answers(tmp_path)] == [["write", "sync"]] * 4


@pytest.mark.slow
async def test_the_trace_would_show_a_store_that_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With synchronous=OFF there is no sync before any answer."""
    (tmp_path / "sitecustomize.py").write_text(WEAKENED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert await traced_answers(tmp_path) == [["write"]] * 4
