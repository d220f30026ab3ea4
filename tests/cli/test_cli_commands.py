"""The command line itself: versions, help, bad usage, and what it says when its extra is missing."""

import asyncio
import os
import sys

import pytest

from asana_webhooks import __version__
from tests.cli.cli_process import MODULE, call, run_cli, run_unread

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{missing}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from asana_webhooks.cli import main
main()
"""


async def test_version() -> None:
    """``python -m asana_webhooks --version`` prints the version and nothing else, wherever it is run."""
    ended = await run_cli("--version")
    assert (ended.status, ended.out.strip(), ended.err) == (0, __version__, "")


async def test_missing_extra() -> None:
    """Without the extra there is one sentence that says what to install, and no traceback."""
    for missing in ("cyclopts", "rich"):
        ended = await run_cli("demo", python=("-c", WITHOUT.format(missing=missing)))
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (1, "", 1)
        assert f"needs {missing}" in ended.err
        assert "pip install 'asana-webhooks[cli]'" in ended.err


async def test_a_part_of_ours_is_missing() -> None:
    """A module of this package that cannot be found is a defect and shows as one, not as a missing extra."""
    ours = WITHOUT.replace('name.partition(".")[0] ==', "name ==").format(missing="asana_webhooks.cli.app")
    ended = await run_cli(python=("-c", ours))
    assert ended.status == 1
    assert "ModuleNotFoundError: No module named 'asana_webhooks.cli.app'" in ended.err


async def test_the_library_does_not_need_it() -> None:
    """Importing the package, or the entry point alone, imports neither the framework nor rich."""
    code = "import sys, asana_webhooks, asana_webhooks.cli; print(sorted({'cyclopts', 'rich'} & set(sys.modules)))"
    ended = await run_cli(python=("-c", code))
    assert (ended.status, ended.out.strip()) == (0, "[]")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help groups the commands; that of demo and fake explains all options, the status and how to steer it."""
    fake_options = ("--port", "--token", "--workspace", "--project", "--webhooks", "--no-loopback")
    fake_paths = [f"/_fake/{name}" for name in ("changes", "webhooks", "deliveries", "faults", "clock", "settle")]
    expected = {
        (): (
            "Webhooks one by one",
            "list",
            "Many webhooks at once",
            "plan",
            "Try out and debug",
            "fake",
            "Serve a fake Asana",
        ),
        ("demo",): ("--store", "--json", "1,000 changes", "exit status is 0 if so", "asana-webhooks demo --json"),
        ("fake",): (
            *fake_options,
            *fake_paths,
            "asana-webhooks fake --port 8123",
            '{"at": "delivery", "do": "duplicate"}',
        ),
        ("listen",): ("asana-webhooks listen --resource 8675309",),
    }
    for command, parts in expected.items():
        assert call(monkeypatch, *command, "--help") == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())  # no frames, no folds
        for part in parts:
            assert part in text


MISTAKES: list[tuple[int, tuple[str, ...], str]] = [
    # what cannot be understood
    (2, ("fake", "--webhooks", "-1"), '"-1" for --webhooks'),
    (2, ("fake", "--port", "65536"), "65535"),
    (2, ("fake", "--port", "x"), "--port"),
    (2, ("fake", "--bogus"), "--bogus"),
    (2, ("demo", "--store"), "--store"),
    (2, ("dmo",), '"demo"'),
    # what cannot work
    (2, ("fake", "--token", ""), "token is empty"),
    (2, ("fake", "--token", "a b"), "token has a space"),
    (2, ("fake", "--project", "1a"), "digits, not '1a'"),
    (2, ("fake", "--workspace", "x"), "digits, not 'x'"),
    (2, ("fake", "--project", "7", "7"), "the fake already has a resource 7: project"),
    (2, ("fake", "--project"), "--project needs at least one gid"),
    (2, ("demo", "--store", "ftp://x"), "the store URL is not supported"),
    (2, ("demo", "--store", "/nowhere/at/all/demo.db"), "the directory /nowhere/at/all does not exist"),
]


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong options are one sentence on standard error, and the exit status is 2."""
    for status, arguments, expected in MISTAKES:
        assert call(monkeypatch, *arguments) == status
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert printed.err.startswith("asana-webhooks: ")
        assert expected in printed.err.replace('"--', "--")


async def test_closed_streams() -> None:
    """A process whose three streams were closed, as by ``>&-``, does its work and ends with its status."""
    closing = ("-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *MODULE)
    for arguments, status in {("--version",): 0, ("workspaces",): 4, ("fake", "--port", "x"): 2}.items():
        environment = {**os.environ, "ASANA_ACCESS_TOKEN": ""}
        process = await asyncio.create_subprocess_exec("sh", *closing, *arguments, env=environment)
        assert await process.wait() == status


async def test_help_closed_early() -> None:
    """Whoever closes standard output early, as ``--help | head`` does, ends the help without an error."""
    ended = await run_unread("doctor", "signature", "--help")
    assert (ended.status, ended.err) == (0, "")
