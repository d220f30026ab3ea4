"""What an installation and a package index get: the guides, the types, and README with absolute links."""

import re
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import chdir
from email.parser import Parser

import pytest
from hatchling.build import build_wheel
from readme_renderer.markdown import render

from tests.helpers.guides import GUIDES, ROOT, targets

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLUG_IN = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
SOURCE, VERSION = PYPROJECT["project"]["urls"]["Source"], PYPROJECT["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build the wheel as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    with chdir(ROOT):
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as built:
        yield built


@pytest.fixture
def description(wheel: zipfile.ZipFile) -> str:
    """Return what the package index is told to show."""
    (name,) = (one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(wheel.read(name).decode())
    assert message["Description-Content-Type"] == "text/markdown"
    return str(message.get_payload())


def test_guides_and_types_are_installed(wheel: zipfile.ZipFile) -> None:
    """The guides of the rooms and the marker for type checkers are in the wheel."""
    guides = {str(path.relative_to(ROOT)) for path in GUIDES.values() if path.is_relative_to(ROOT / "asana_webhooks")}

    assert guides | {"asana_webhooks/py.typed"} <= set(wheel.namelist())


def test_links_work_on_a_package_index(description: str) -> None:
    """Its renderer keeps all links and images of README; none is relative, and those on the page find their heading."""
    html = render(description)
    assert html is not None
    shown = re.findall(r'(?:src|href)="([^"]+)"', html)

    assert [one for one in shown if not one.startswith(("https://", "#"))] == []
    assert [one for one in shown if one.startswith("#") and f'id="{one[1:]}"' not in html] == []
    raw = SOURCE.replace("//github.com/", "//raw.githubusercontent.com/")
    assert f"{SOURCE}/blob/v{VERSION}/LICENSE" in shown  # the files of this release
    assert f"{raw}/v{VERSION}/benchmarks/results/receiving-light.svg" in shown
    dark = re.findall(r'srcset="([^"]+)"', GUIDES["README"].read_text())  # no index shows these
    assert [one for one in targets("README") if one not in dark and not any(to.endswith(one) for to in shown)] == []


def test_only_links_change() -> None:
    """Absolute links, headings and blocks of code stay as they are."""
    raw, blob = (one["replacement"].removeprefix(r"\1") for one in PLUG_IN["substitutions"])
    text = """
[a](b.md#c) [d](https://e.example/) [f](#g) [![h](i.svg)](j/k)
<img src="l.svg"> <a href="m">n</a>
```python
o[0](p), '<img src="q.svg">'
```
![r](s.png) <source srcset="t.svg"> [u](mailto:v@e.example)
  ```sh
  echo [w](x)
  ```
"""
    expected = f"""
[a]({blob}b.md#c) [d](https://e.example/) [f](#g) [![h]({raw}i.svg)]({blob}j/k)
<img src="{raw}l.svg"> <a href="{blob}m">n</a>
```python
o[0](p), '<img src="q.svg">'
```
![r]({raw}s.png) <source srcset="{raw}t.svg"> [u](mailto:v@e.example)
  ```sh
  echo [w](x)
  ```
"""
    for one in PLUG_IN["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)

    assert text == expected
