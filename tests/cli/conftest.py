"""What tests of commands use."""

from pathlib import Path

import pytest

from tests.cli.service import Fixtures


@pytest.fixture
def fixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fixtures:
    """What `service` needs."""
    return tmp_path, monkeypatch, capsys
