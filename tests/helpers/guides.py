"""The guides (README.md of the repository, the package's rooms and the benchmarks) and their programs as printed."""

import re
import textwrap
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT: Final = Path(__file__).parents[2]
GUIDES: Final = {
    "README" if path.parent == ROOT else path.parent.name: path
    for pattern in ("README.md", "asana_webhooks/**/README.md", "benchmarks/README.md")
    for path in sorted(ROOT.glob(pattern))
}
"""The guides by name: ``README`` for the first, the folder's name for the others."""

_PARTS = re.compile(
    r"^#+ +(?P<heading>[^\n]+)$|^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_TARGET = re.compile(r'\]\(([^)\s]+)|\b(?:src|srcset|href)="([^"\s]+)')


@frozen
class Program:
    """One block of code in a guide."""

    guide: str
    heading: str
    source: str


def headings(path: Path) -> list[str]:
    """Return the headings of a Markdown file, of all levels."""
    return [part["heading"] for part in _PARTS.finditer(path.read_text()) if part["heading"]]


def targets(guide: str) -> list[str]:
    """Return where the links and images of a guide lead, its code left out."""
    prose = _PARTS.sub(lambda part: part["heading"] or "", GUIDES[guide].read_text())
    return [match[1] or match[2] for match in _TARGET.finditer(prose)]


def programs(language: str = "py") -> list[Program]:
    """Return every block of code of every guide in a language."""
    found = []
    for guide, path in GUIDES.items():
        heading = ""
        for part in _PARTS.finditer(path.read_text()):
            heading = part["heading"] or heading
            if (part["language"] or "").startswith(language):
                found.append(Program(guide, heading, textwrap.dedent(part["code"])))
    return found


def program(guide: str, heading: str, *, language: str = "py") -> str:
    """Return the only program beneath a heading; `test_every_program_is_run` looks for calls of this."""
    (found,) = (one for one in programs(language) if (one.guide, one.heading) == (guide, heading))
    return found.source
