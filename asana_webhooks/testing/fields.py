"""``opt_fields``: which members of a record an answer holds.

Source: https://developers.asana.com/docs/inputoutput-options
"""

from collections.abc import Collection
from itertools import islice, product
from typing import Any, Final

__all__ = ["Path", "parse", "select"]

Path = tuple[str, ...]

# No record of the fake goes as deep and has as many members: the limits only keep hostile texts from making it slow.
MAX_DEPTH: Final = 4
MAX_PATHS: Final = 1000


def parse(text: str) -> frozenset[Path]:
    """Read a value of ``opt_fields``: ``name``, ``resource.name``, ``(this|resource).name``, joined by commas.

    A group stands for each of its alternatives, ``this`` for the record itself. What makes no sense is left out, as
    are names nobody knows: the fake answers without them.
    """
    return frozenset(path for term in _split(text.replace(" ", ""), ",") for path in _expand(term, 0) if path)


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators that stand outside all parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _expand(term: str, depth: int) -> list[Path]:
    paths: list[Path] = [()]
    for segment in _split(term, "."):
        longer = (head + tail for head, tail in product(paths, _alternatives(segment, depth)))
        paths = list(islice((path for path in longer if len(path) <= MAX_DEPTH), MAX_PATHS))
    return paths


def _alternatives(segment: str, depth: int) -> list[Path]:
    if segment.startswith("(") and segment.endswith(")") and depth < MAX_DEPTH:
        return [path for choice in _split(segment[1:-1], "|") for path in _expand(choice, depth + 1)]
    if not segment or any(character in "()|," for character in segment):
        return []
    return [()] if segment == "this" else [(segment,)]


def select(record: dict[str, Any], paths: Collection[Path]) -> dict[str, Any]:
    """The part of *record* that *paths* name, in the record's own order; ``gid`` is always there."""
    chosen = {}
    for name, value in record.items():
        below = [path[1:] for path in paths if path[0] == name]
        if name == "gid" or () in below:
            chosen[name] = value
        elif below:
            chosen[name] = _select_inside(value, below)
    return chosen


def _select_inside(value: Any, paths: Collection[Path]) -> Any:
    if isinstance(value, list):
        return [_select_inside(item, paths) for item in value]
    return select(value, paths) if isinstance(value, dict) else value
