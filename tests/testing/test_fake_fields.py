"""opt_fields: names, paths, groups, this, and whatever else is thrown at it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.testing.fields import MAX_DEPTH, Path, parse, select

RECORD: dict[str, Any] = {
    "gid": "1",
    "name": "n",
    "resource": {"gid": "2", "name": "m", "resource_type": "project"},
    "filters": [{"action": "added", "fields": None}, {"action": None, "fields": ["x"]}],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", set()),
        ("name", {("name",)}),
        ("name, target", {("name",), ("target",)}),
        ("resource.name", {("resource", "name")}),
        ("this.name", {("name",)}),
        ("this", set()),
        ("(this|resource).name", {("name",), ("resource", "name")}),
        ("resource.(name|gid)", {("resource", "name"), ("resource", "gid")}),
        ("(a.b|c),d", {("a", "b"), ("c",), ("d",)}),
        ("((a|b)|c).d", {("a", "d"), ("b", "d"), ("c", "d")}),
        ("a,,b", {("a",), ("b",)}),
        ("(a", set()),
        ("a)", set()),
        ("a|b", set()),
        ("a..b", set()),
        ("a.b.c.d.e", set()),
    ],
)
def test_parse(text: str, paths: set[Path]) -> None:
    """Each form means what Asana's documentation says; nonsense means nothing."""
    assert parse(text) == paths


@given(st.text(alphabet="ab.,|()t his", max_size=60))
def test_parse_any_text(text: str) -> None:
    """No text breaks it, and what comes out are names without the signs of the grammar."""
    for path in parse(text):
        assert 1 <= len(path) <= MAX_DEPTH
        assert all(name and not set(name) & set(".,|() ") and name != "this" for name in path)


def test_parse_is_bounded() -> None:
    """A text made to multiply stays small, and deep ones do not exhaust the stack."""
    group = "(" + "|".join(f"n{number}" for number in range(200)) + ")"
    assert len(parse(".".join([group] * 4))) <= 1000
    assert parse("(a." * 3000) == frozenset()
    assert parse("(" * 3000 + "a" + ")" * 3000) == frozenset()


names = st.sampled_from(["gid", "name", "resource", "filters", "other"])
paths_of = st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), max_size=5)


@given(paths_of)
def test_parse_reads_what_is_written(paths: list[Path]) -> None:
    """Paths joined by dots and commas are read as they are."""
    assert parse(",".join(".".join(path) for path in paths)) == set(paths)


@given(paths_of)
def test_select_keeps_gid_and_order(paths: list[Path]) -> None:
    """The gid is always there, nothing is invented, and the members keep their order."""
    chosen = select(RECORD, frozenset(paths))
    assert chosen["gid"] == "1"
    assert [name for name in RECORD if name in chosen] == list(chosen)
    for path in paths:
        if len(path) == 1 and path[0] in RECORD:
            assert chosen[path[0]] == RECORD[path[0]]


def test_select_inside() -> None:
    """Paths reach into objects and lists; inside an object its gid is kept."""
    chosen = select(RECORD, {("resource", "name"), ("filters", "action"), ("nothing", "name"), ("name", "x")})
    assert chosen == {
        "gid": "1",
        "name": "n",
        "resource": {"gid": "2", "name": "m"},
        "filters": [{"action": "added"}, {"action": None}],
        "nothing": None,
    }


def test_select_whole_wins() -> None:
    """Asking for the whole and for a part gives the whole."""
    assert select(RECORD, {("resource",), ("resource", "name")})["resource"] == RECORD["resource"]
