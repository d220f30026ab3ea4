"""The package works where POSIX is missing, as on Windows. Only the modes of files mean nothing there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_process import ended, run_cli, started

ROOT = Path(__file__).parents[1]
WITHOUT_POSIX = ("-m", "tests.helpers.without_posix")
CLI = (*WITHOUT_POSIX, "asana_webhooks")
TESTS = (
    "tests/test_exports.py",  # imports every module
    "tests/client/test_operations.py",
    "tests/receiver/test_doors.py",
    "tests/receiver/test_signature.py",
    "tests/store/test_store_opening.py",
    "tests/testing/test_fake_asana.py",
)


@pytest.mark.long
@pytest.mark.timeout(300)  # many tests in one
def test_rooms() -> None:
    """Every module can be imported, and tests of the rooms pass."""
    command = [sys.executable, *WITHOUT_POSIX, "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
async def test_demo() -> None:
    """The demo passes: the fake, a receiver, SQLite, a worker, and webhooks that are established."""
    end = await run_cli("demo", "--json", python=CLI, PYTHONPATH=str(ROOT))

    assert (end.status, end.err) == (0, ""), end.out


async def test_fake_ends_on_ctrl_c() -> None:
    """Ctrl-C ends the fake with the status shells expect, and without a traceback."""
    async with started("fake", python=CLI, PYTHONPATH=str(ROOT)) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        end = await ended(process)

    assert (end.status, end.out, end.err) == (130, "", "")
