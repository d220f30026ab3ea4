"""The pytest plugin, in whole pytest runs of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]
"""
WITHOUT_PYTEST_ASYNCIO = """
import sys
import pytest
sys.modules["pytest_asyncio"] = None

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TEST = """
import pytest

{mark}
async def test_it(fake_asana):
    assert fake_asana.url.startswith("http://127.0.0.1:")
    assert fake_asana.projects == ("8675309",)
"""


def _run(folder: Path, conftest: str, mark: str, *arguments: str) -> str:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(TEST.format(mark=mark))
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    return finished.stdout + finished.stderr


@pytest.mark.parametrize(("mode", "mark"), [("strict", "@pytest.mark.asyncio"), ("auto", "")])
def test_with_pytest_asyncio(tmp_path: Path, mode: str, mark: str) -> None:
    """With one line in a conftest the fixture works in both modes of pytest-asyncio."""
    assert "1 passed" in _run(tmp_path, CONFTEST, mark, "-p", "pytest_asyncio.plugin", f"--asyncio-mode={mode}")


def test_with_anyio(tmp_path: Path) -> None:
    """Where pytest-asyncio is not installed, anyio's plugin runs the fixture."""
    conftest = WITHOUT_PYTEST_ASYNCIO + CONFTEST
    assert "1 passed" in _run(tmp_path, conftest, "@pytest.mark.anyio", "-p", "anyio")
