"""``asana-webhooks demo`` as a process of its own: its streams, its exit status, its end by Ctrl-C."""

import json
import os
import signal
from pathlib import Path

import pytest
from yarl import URL

from tests.cli.cli_process import MODULE, ended, run_cli, started
from tests.helpers.ports import free_port

STRICT = ("-W", "error", "-X", "dev", *MODULE)


@pytest.mark.slow
async def test_json(tmp_path: Path) -> None:
    """With --json standard output is one JSON object, nothing warns, and the temporary folder is gone."""
    end = await run_cli("demo", "--json", python=STRICT, TMPDIR=str(tmp_path))
    assert end.status == 0
    summary = json.loads(end.out)
    assert (summary["ok"], len(summary["checks"]), summary["seconds"] < 15) == (True, 12, True)
    assert (summary["webhooks"], summary["pages"], summary["changes"]) == (253, 3, 1000)
    assert "temporary folder" in summary["store"]
    # On a busy machine asyncio's debug mode may say that something took long; nothing else may be said.
    assert [line for line in end.err.splitlines() if "took" not in line] == []
    assert not any(entry.name for entry in os.scandir(tmp_path))


@pytest.mark.slow
async def test_for_people() -> None:
    """Without a terminal there are lines about the progress, then the checks; only ASCII where it must be."""
    for encoding, mark in {"utf-8": "✓ ", "ascii": "ok "}.items():
        end = await run_cli("demo", "--store", "memory:", PYTHONIOENCODING=encoding)
        assert (end.status, end.err) == (0, "")
        assert "\x1b" not in end.out
        assert "creating 3 webhooks ...\n" in end.out
        assert end.out.endswith("Store: memory:\n")
        assert end.out.count(f"  {mark}") == 12
        assert end.out.isascii() == (encoding == "ascii")


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


@pytest.mark.long
async def test_postgres(postgres_url: str) -> None:
    """On PostgreSQL every check passes, too, and the password is printed nowhere."""
    end = await run_cli("demo", "--json", "--store", postgres_url, python=STRICT)
    assert end.status == 0, end.err
    summary = json.loads(end.out)
    assert (summary["ok"], len(summary["checks"]), summary["store"][:10]) == (True, 12, "PostgreSQL")
    assert (URL(postgres_url).password or "") not in end.out + end.err


@pytest.mark.long
async def test_postgres_out_of_reach(postgres_url: str) -> None:
    """A server that cannot be reached, or rejects the user, is one sentence and status 1; so is a missing driver.

    The password may be in PGPASSWORD.
    """
    url = URL(postgres_url)
    without = "import sys; sys.modules['asyncpg'] = None; from asana_webhooks.cli import main; main()"
    mistakes = (
        (url.with_port(free_port()), MODULE, "PostgreSQL cannot be reached"),
        (url.with_password("hunter2"), MODULE, "rejects the user or the password"),
        (url.with_password(None).with_path("/nowhere"), MODULE, "the database does not exist"),
        (url, ("-c", without), "pip install 'asana-webhooks[postgres]'"),
    )
    for store, python, expected in mistakes:
        end = await run_cli("demo", "--json", "--store", str(store), python=python, PGPASSWORD=url.password or "")
        assert (end.status, end.out, len(end.err.splitlines())) == (1, "", 1), end.err
        assert end.err.startswith("asana-webhooks: ")
        assert expected in end.err
        assert str(store.password) not in end.err
