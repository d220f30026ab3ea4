"""The command line itself: versions, help, bad usage, and what it says when its extra is missing."""

import sys

import pytest

from asana_webhooks import __version__, cli
from tests.cli.cli_process import run_cli, words

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


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run the command line in this process; return the status it exits with."""
    monkeypatch.setattr(sys, "argv", ["asana-webhooks", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code


async def test_version() -> None:
    """``python -m asana_webhooks --version`` prints the version and nothing else, wherever it is run."""
    ended = await run_cli("--version")
    assert (ended.status, ended.out.strip(), ended.err) == (0, __version__, "")


async def test_script() -> None:
    """The installed script is the same command."""
    ended = await run_cli("--version", python=("-c", "from asana_webhooks.cli import main; main()"))
    assert (ended.status, ended.out.strip()) == (0, __version__)


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
async def test_missing_extra(missing: str) -> None:
    """Without the extra there is one sentence that says what to install, and no traceback."""
    ended = await run_cli("demo", python=("-c", WITHOUT.format(missing=missing)))
    assert ended.status == 1
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    assert f"needs {missing}" in ended.err
    assert "pip install 'asana-webhooks[cli]'" in ended.err


async def test_a_part_of_ours_is_missing() -> None:
    """A module of this package that cannot be found is a defect and shows as one, not as a missing extra."""
    ours = WITHOUT.replace('name.partition(".")[0] ==', "name ==").format(missing="asana_webhooks.cli.app")
    ended = await run_cli(python=("-c", ours))
    assert ended.status == 1
    assert "ModuleNotFoundError: No module named 'asana_webhooks.cli.app'" in ended.err


def test_interrupted_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before a command has begun ends the process as shells expect it."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert call(monkeypatch) == 130


async def test_the_library_does_not_need_it() -> None:
    """Importing the package, or the entry point alone, imports neither the framework nor rich."""
    code = "import sys, asana_webhooks, asana_webhooks.cli; print(sorted({'cyclopts', 'rich'} & set(sys.modules)))"
    ended = await run_cli(python=("-c", code))
    assert (ended.status, ended.out.strip()) == (0, "[]")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help names both commands."""
    assert call(monkeypatch, "--help") == 0
    text = words(capsys.readouterr().out)
    assert "demo See everything this package does" in text
    assert "fake Serve a fake Asana on 127.0.0.1" in text


async def test_help_is_quick() -> None:
    """The list of commands imports what shows it, and nothing of what they do."""
    code = """
import atexit, sys
before = set(sys.modules)  # coverage's
from asana_webhooks.cli import main
unwanted = {"aiohttp", "cattrs", "msgspec", "sqlite3"} - before
atexit.register(lambda: print(sorted(unwanted & set(sys.modules)), file=sys.stderr))
main()
"""
    ended = await run_cli("--help", python=("-c", code))
    assert (ended.status, ended.err.strip()) == (0, "[]")


def test_help_of_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's help says what it does, its options and its exit status."""
    assert call(monkeypatch, "demo", "--help") == 0
    text = words(capsys.readouterr().out)
    for part in ("--store", "--json", "1,000 changes", "The exit status is 0 if so, else 1"):
        assert part in text


def test_help_of_fake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake's help explains its options and the way to steer it over HTTP."""
    assert call(monkeypatch, "fake", "--help") == 0
    text = words(capsys.readouterr().out)
    for option in ("--port", "--token", "--workspace", "--project", "--webhooks", "--no-loopback"):
        assert option in text
    for path in ("changes", "webhooks", "deliveries", "faults", "clock", "settle"):
        assert f"/_fake/{path}" in text
    assert '{"at": "delivery", "do": "duplicate"}' in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fake", "--token", ""), "not empty"),
        (("fake", "--token", "a b"), "without spaces"),
        (("fake", "--webhooks", "-1"), '"-1" for --webhooks'),
        (("fake", "--port", "65536"), "65535"),
        (("fake", "--port", "x"), "--port"),
        (("fake", "--bogus"), "--bogus"),
        (("demo", "--store"), "--store"),
        (("dmo",), '"demo"'),
    ],
)
def test_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    """Options that cannot be understood are one sentence on standard error, and exit status 2."""
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert expected in printed.err.replace('"--', "--").replace('" Must', " Must")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fake", "--project", "1a"), "digits, not '1a'"),
        (("fake", "--workspace", "x"), "digits, not 'x'"),
        (("fake", "--project", "7", "7"), "a resource 7 already"),
        (("fake", "--project"), "--project needs at least one gid"),
        (("demo", "--store", "postgresql://localhost/x"), "no PostgreSQL store yet"),
        (("demo", "--store", "ftp://x"), "no URL of a store"),
        (("demo", "--store", "/nowhere/at/all/demo.db"), "the directory /nowhere/at/all does not exist"),
    ],
)
def test_what_cannot_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    """Options that make no sense together are one sentence on standard error, and exit status 1."""
    assert call(monkeypatch, *arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("asana-webhooks: ")
    assert expected in lines[0]
