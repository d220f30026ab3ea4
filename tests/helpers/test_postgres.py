"""The servers of the tests: whoever ends without a word, they end."""

import errno
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.postgres import run_sql, why_no_server

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal
from tests.helpers.postgres import postgres_server
with postgres_server() as server:
    print(server.directory, server.port, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("time", [1, 2])
async def test_each_test_has_an_empty_database(postgres_url: str, time: int) -> None:
    """What a test creates is gone in the next one; commits are durable."""
    await run_sql(postgres_url, "CREATE SCHEMA one", "CREATE TABLE one.one (id int)")
    assert await run_sql(postgres_url, "SHOW fsync") == [("on",)]


@pytest.mark.slow
@pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
def test_a_killed_test_leaves_no_server() -> None:
    """SIGKILL of the process that started a server ends that, too, and deletes its files."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    directory, port = done.stdout.split()
    deadline = time.monotonic() + 20
    while Path(directory).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(directory).exists()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", int(port))) == errno.ECONNREFUSED
