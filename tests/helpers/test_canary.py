"""The canary itself: each way a secret gets out is found, what is harmless is let be, and no secret is printed."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers import leaks

LEAKS = Path(leaks.__file__)


@pytest.mark.slow
def test_each_leak_is_found_and_nothing_else() -> None:
    """A test that shows a secret fails at its end, and is told where and what it is; the others pass."""
    options = ["-q", "-rA", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", *options, str(LEAKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=LEAKS.parents[2])
    report = done.stdout
    said: dict[str, list[str]] = defaultdict(list)
    for name, text in re.findall(r"ERROR at teardown of (\w+)[^\n]*\n(.*?)(?=\n_{3,} |\n={3,} )", report, re.DOTALL):
        said[name].append(text)

    for name in (name for name in vars(leaks) if name.startswith("test_")):
        text = leaks.SHOWN.get(name, "")
        passed = re.findall(rf"^PASSED .*::{name}\b", report, re.MULTILINE)
        assert len(said[name]) == (len(passed) if text else 0), name
        assert passed, name
        assert all(text in one for one in said[name]), name
    assert "FAILED" not in report
    assert leaks.TEXT not in report
