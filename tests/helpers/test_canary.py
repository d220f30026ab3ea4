"""The canary itself: each way a secret gets out is found, what is harmless is let be, and no secret is printed."""

import re
import subprocess
import sys
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
    report, _, summary = done.stdout.partition("short test summary")
    errors = [text.partition("\n") for text in re.split(r"^_+ ERROR at teardown of ", report, flags=re.MULTILINE)[1:]]
    passed = re.findall(r"^PASSED \S+::(test_\w+)", summary, re.MULTILINE)

    assert [name for name in passed if "leak" in name] == [heading.partition("[")[0] for heading, _, _ in errors]
    assert {name for name in passed if "fine" in name} == {name for name in vars(leaks) if "test_fine" in name}
    for heading, _, said in errors:
        assert heading.partition("[")[2].rpartition("]")[0] in said, heading
    assert "FAILED" not in summary
    assert leaks.TEXT not in done.stdout
