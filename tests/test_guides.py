"""What the guides promise: their programs have types and are run, and their links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asana_webhooks
from tests.helpers.guides import GUIDES, ROOT, headings, programs, targets


@pytest.mark.slow
@pytest.mark.timeout(300)  # both read all of aiohttp, FastAPI and pytest
@pytest.mark.parametrize("over_taskiq", [False, pytest.param(True, marks=pytest.mark.frameworks)])
def test_types(tmp_path: Path, over_taskiq: bool) -> None:
    """Mypy and pyright, both strict, accept every program as it is printed; dev goes without taskiq."""
    chosen = [one for one in programs() if ("taskiq" in one.source) == over_taskiq]
    assert chosen
    for one in chosen:
        name = re.sub(r"\W+", "_", f"{one.guide} {one.heading}")
        (tmp_path / f"{name}.py").write_text(one.source)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}))
    environment = os.environ | {"MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # and ask for no update
    mypy = ("mypy", "--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'guides'}", ".")
    checks = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in (mypy, ("pyright", "--pythonpath", sys.executable))
    ]
    printed = [check.communicate()[0] for check in checks]

    assert [check.returncode for check in checks] == [0, 0], "\n".join(printed)


def test_every_program_is_run() -> None:
    """Tests ask for each program by ``program("GUIDE", "HEADING")``, in these very words."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    asked = set(re.findall(r'\bprogram\(\s*"([^"]+)",\s*"([^"]+)"\s*,?\s*\)', tests))

    assert [one.heading for one in programs() if (one.guide, one.heading) not in asked] == []


def test_no_program_is_hidden() -> None:
    """Code is in blocks of a language that the other tests know, or of none."""
    for path in GUIDES.values():
        fences = re.findall(r"^ *(```.*|~~~.*)$", path.read_text(), re.MULTILINE)
        assert set(fences) <= {"```", "```python", "```sh", "```sql", "```toml", "```nginx"}, path


def test_every_public_name_is_explained() -> None:
    """README or a guide mentions each name that can be imported from the top, or from the store's rooms."""
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in GUIDES.values())))

    names = {*asana_webhooks.__all__, *asana_webhooks.store.__all__, *asana_webhooks.store.postgres.__all__}
    assert sorted(names - words - {"__version__"}) == []


@pytest.mark.parametrize("guide", GUIDES)
def test_links(guide: str) -> None:
    """Every relative link or image leads to a file, and its fragment to a heading there."""
    for target in targets(guide):
        if re.match(r"\w+:", target):
            continue
        name, _, fragment = target.partition("#")
        path = GUIDES[guide].parent / name if name else GUIDES[guide]
        assert path.exists(), target
        assert not fragment or fragment in map(_fragment, headings(path)), target


def _fragment(heading: str) -> str:
    """Return the fragment by which a page reaches a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short() -> None:
    """README is read in a few minutes; all else is in the guides of the rooms."""
    assert GUIDES["README"].stat().st_size <= 9_000


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide != "benchmarks"])
def test_guides_begin_with_a_program(guide: str) -> None:
    """A guide says what it is for beneath its title, and shows a program, or commands, before its second section."""
    text = GUIDES[guide].read_text()
    first_section = re.split(r"^## ", text, maxsplit=2, flags=re.MULTILINE)[:2]

    assert re.match(r"# .+\n\n(?!#|<|```)\S", text)
    assert ("```sh\n" if guide == "cli" else "```python\n") in "".join(first_section)
