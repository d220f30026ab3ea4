"""Headers and bodies nobody thought of: the corpus in the plain suite, minutes of atheris in the long one."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import targets

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SECONDS = 30
"""The budget of each target."""

NEEDS_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: there are wheels of it for CPython 3.11 to 3.14 on Linux only",
)


def corpus(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())


def fuzz(target: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a target in a process of its own, with what it finds kept in *directory*."""
    grown = directory / "corpus"
    grown.mkdir()
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.fuzzer", target, *options),
            f"-dict={HERE / 'words.dict'}",
            f"-artifact_prefix={directory}/",
            "-timeout=10",
            "-rss_limit_mb=1024",
            *(str(grown), *(str(kept) for kept in [HERE / "corpus" / target] if kept.exists())),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        errors="replace",
        timeout=SECONDS * 4,
    )


def finds(directory: Path) -> list[bytes]:
    """Return the inputs that made a target fail."""
    return [path.read_bytes() for path in directory.iterdir() if path.is_file()]


@pytest.mark.parametrize("target", [targets.headers, targets.bodies], ids=lambda target: target.__name__)
def test_what_was_found_once_stays_right(target: Callable[[bytes], None]) -> None:
    """Every kept input, documented examples and edge cases and what fuzzing found, does what it must."""
    files = corpus(target.__name__)
    assert len(files) > 30
    for file in files:
        try:
            target(file.read_bytes())
        except BaseException as error:
            error.add_note(f"the input is {file}")
            raise


@NEEDS_ATHERIS
@pytest.mark.long
@pytest.mark.timeout(SECONDS * 5)
@pytest.mark.parametrize("target", ["headers", "bodies"])
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    """Half a minute of coverage-guided fuzzing, from the kept corpus on, finds no input that misbehaves."""
    run = fuzz(target, tmp_path, f"-max_total_time={SECONDS}")

    found = "\n".join(f"input, as hex: {one.hex()}" for one in finds(tmp_path))
    assert run.returncode == 0, f"{run.stdout[-4000:]}\n{found}"
    [executions] = re.findall(r"^Done (\d+) runs", run.stdout, re.MULTILINE)
    assert int(executions) > 10_000
    sys.stdout.write(f"{target}: {executions} executions\n")


@NEEDS_ATHERIS
@pytest.mark.long
def test_fuzzing_finds_what_is_there(tmp_path: Path) -> None:
    """A fault behind four bytes that must all be right is found, and its input kept: the fuzzer sees our branches."""
    run = fuzz("planted", tmp_path, "-runs=5000000", "-seed=1")

    assert run.returncode != 0
    assert "the planted fault" in run.stdout
    assert [one[:4] for one in finds(tmp_path)] == [b"FIND"]
