"""``asana-webhooks demo`` as a process of its own: its streams, its exit status, its end by Ctrl-C."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.cli_process import MODULE, ended, run_cli, started

STRICT = ("-W", "error", "-X", "dev", *MODULE)


def contents(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.slow
async def test_json(tmp_path: Path) -> None:
    """With --json standard output is one JSON object, nothing warns, and the temporary folder is gone."""
    end = await run_cli("demo", "--json", python=STRICT, TMPDIR=str(tmp_path))
    assert end.status == 0
    summary = json.loads(end.out)
    assert summary["ok"] is True
    assert summary["seconds"] < 20
    assert summary["store"]["kept"] is False
    # On a busy machine asyncio's debug mode may say that something took long; nothing else may be said.
    assert [line for line in end.err.splitlines() if "took" not in line] == []
    assert contents(tmp_path) == []


@pytest.mark.slow
async def test_for_people() -> None:
    """Without a terminal the summary for people is plain text, with all its checks."""
    end = await run_cli("demo")
    assert (end.status, end.err) == (0, "")
    assert "\x1b" not in end.out
    assert end.out.count("✓") == 12
    assert "All 12 checks hold." in end.out


@pytest.mark.slow
async def test_ascii_terminal() -> None:
    """Where only ASCII can be written nothing else is."""
    end = await run_cli("demo", "--store", "memory:", PYTHONIOENCODING="ascii")
    assert (end.status, end.err) == (0, "")
    assert end.out.isascii()


@pytest.mark.slow
async def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with the status shells expect and without a traceback, and its store can be used again."""
    store = ("--store", str(tmp_path / "demo.db"))
    async with started("demo", *store, python=STRICT) as process:
        assert process.stdout is not None
        while not (await process.stdout.readline()).startswith(b"delivering"):
            assert not process.stdout.at_eof()
        process.send_signal(signal.SIGINT)
        end = await ended(process)
    assert end.status == 130
    assert [line for line in end.err.splitlines() if "took" not in line] == []
    assert (await run_cli("demo", *store)).status == 0
