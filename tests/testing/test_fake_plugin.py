"""The pytest plugin, in whole pytest runs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
{imports}
{mark}
async def test_it(fake_asana):
    assert fake_asana.url.startswith("http://127.0.0.1:")
    assert fake_asana.projects == ("8675309",)
"""


def _run(folder: Path, *arguments: str) -> str:
    plugin = ["-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:cov"]
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), *plugin, *arguments, str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=folder)
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    """The fixture works in both modes of pytest-asyncio, found by its entry point alone."""
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "test_it.py").write_text(TEST.format(imports="import pytest", mark=mark))
    assert "1 passed" in _run(tmp_path, f"--asyncio-mode={mode}")


def test_with_anyio(tmp_path: Path) -> None:
    """Where pytest-asyncio is not installed, anyio's plugin runs the fixture."""
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "sys.modules['pytest_asyncio'] = None\n"
        "pytest_plugins = ['asana_webhooks.testing.pytest_plugin']\n"
        "import pytest\n"
        "@pytest.fixture\n"
        "def anyio_backend():\n"
        "    return 'asyncio'\n"
    )
    (tmp_path / "test_it.py").write_text(TEST.format(imports="import pytest", mark="@pytest.mark.anyio"))
    assert "1 passed" in _run(tmp_path, "-p", "no:asana_webhooks", "-p", "no:asyncio")
