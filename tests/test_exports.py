"""What is public: the names at the top, the names of each module, and the names the README uses."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import asana_webhooks

ROOT = Path(__file__).parent.parent
PACKAGE = "asana_webhooks"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
README = ROOT / "README.md"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


EACH = pytest.mark.parametrize("path", FILES, ids=module_name)


def public_definitions(source: str) -> set[str]:
    """Name the functions and classes a module defines without an underscore."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")}


ASKING = """
import threading
import asana_webhooks

together, failed = threading.Barrier(len(asana_webhooks.__all__)), []

def ask(name):
    together.wait()
    try:
        getattr(asana_webhooks, name)
    except BaseException as error:
        failed.append((name, repr(error)))

threads = [threading.Thread(target=ask, args=[name]) for name in asana_webhooks.__all__]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


class TestTopLevel:
    def test_all_is_what_is_imported(self) -> None:
        """`__all__`, the imports for type checkers and those at run time name the same, and there is nothing else."""
        tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
        block = next(node.body for node in tree.body if isinstance(node, ast.If))
        imported = {
            alias.name: node.module for node in block if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        others = [ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom)]

        assert sorted([*imported, "__version__"]) == sorted(asana_webhooks.__all__)
        assert imported == asana_webhooks._HOMES
        assert others == [
            "from importlib import import_module",
            "from threading import RLock",
            "from typing import TYPE_CHECKING, Any, Final",
            "from asana_webhooks import __version__",
        ]
        assert public_definitions(ast.unparse(tree)) == set()

    def test_names_are_found_by_tools(self) -> None:
        """Names that were not asked for yet are listed, and those there are not are AttributeErrors."""
        public = [name for name in dir(asana_webhooks) if not name.startswith("__")]
        assert public == sorted(set(asana_webhooks.__all__) - {"__version__"})
        with pytest.raises(AttributeError, match="module 'asana_webhooks' has no attribute 'Webhoook'"):
            asana_webhooks.Webhoook  # type: ignore[attr-defined]  # noqa: B018

    @pytest.mark.parametrize(
        ("names", "unwanted"),
        [
            ("__version__", {"aiohttp", "attrs", "cattrs", "msgspec", "sqlite3"}),
            ("Receiver, SQLiteStore, Worker", {"aiohttp", "yarl", "asana_webhooks.client"}),
            ("AsanaSession, get_webhooks", {"sqlite3", "asana_webhooks.store.base"}),
        ],
    )
    def test_nobody_imports_what_others_need(self, names: str, unwanted: set[str]) -> None:
        """A name brings what it is made of, and a receiver needs no HTTP client."""
        # What is there before is coverage's.
        program = (
            "import sys\nbefore = set(sys.modules)\n"
            f"from asana_webhooks import {names}\nprint({unwanted!r} & (set(sys.modules) - before))"
        )

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)

        assert done.stdout == "set()\n"

    def test_rooms_are_found_without_importing_them(self) -> None:
        """``import asana_webhooks`` is enough for ``asana_webhooks.errors.AsanaError``."""
        program = "import asana_webhooks\nprint(asana_webhooks.errors.AsanaError is asana_webhooks.AsanaError)"

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)

        assert done.stdout == "True\n"

    def test_threads_may_ask_at_once(self) -> None:
        """All names are there for threads that ask for one each at the same moment."""
        done = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, timeout=50, check=True)

        assert done.stdout == "[]\n"

    def test_sorted_and_without_doubles(self) -> None:
        """Names are easy to find, constants before the others, and each is there once."""
        names = asana_webhooks.__all__
        assert names == sorted(set(names), key=lambda name: (not name.isupper(), name))

    @pytest.mark.parametrize("name", asana_webhooks.__all__)
    def test_exists_and_is_public_where_it_comes_from(self, name: str) -> None:
        """Each name is there, and its own module exports it too."""
        thing = getattr(asana_webhooks, name)
        home = getattr(thing, "__module__", None)
        if isinstance(home, str) and home.startswith(PACKAGE):
            assert name in importlib.import_module(home).__all__

    def test_every_error_is_there(self) -> None:
        """Whatever can be raised can be imported from the top to be caught."""
        assert set(importlib.import_module("asana_webhooks.errors").__all__) <= set(asana_webhooks.__all__)

    def test_every_model_is_there(self) -> None:
        """Whatever can be returned can be imported from the top to be named in a signature."""
        assert set(importlib.import_module("asana_webhooks.models").__all__) <= set(asana_webhooks.__all__)

    def test_import_is_quiet(self) -> None:
        """Importing installs no log handlers (trap 6), prints nothing, warns of nothing, loads neither CLI nor fake."""
        program = """
import logging, sys, asana_webhooks
from asana_webhooks import *
names = ["asana_webhooks", *(name for name in logging.root.manager.loggerDict if name.startswith("asana_webhooks"))]
loggers = [logging.root, *map(logging.getLogger, names)]
assert not any(one.handlers or one.filters for one in loggers), loggers
assert all(one.level == logging.NOTSET for one in loggers[1:]), loggers
assert logging.root.level == logging.WARNING
unwanted = {"cyclopts", "rich", "pytest", "asana_webhooks.testing", "asana_webhooks.cli"}
loaded = unwanted & set(sys.modules)
assert not loaded, loaded
"""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=50
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestEveryModule:
    @EACH
    def test_all(self, path: Path) -> None:
        """Each module with something public has `__all__`, which names things that exist, each once."""
        module: ModuleType = importlib.import_module(module_name(path))
        names = getattr(module, "__all__", None)
        if names is None:
            assert public_definitions(path.read_text()) == set()
            return
        assert len(names) == len(set(names))
        assert [name for name in names if not hasattr(module, name)] == []

    @EACH
    def test_has_a_docstring(self, path: Path) -> None:
        """Each module says in a sentence what it is for; a room's empty `__init__.py` may keep silent."""
        tree = ast.parse(path.read_text())

        assert ast.get_docstring(tree) or not tree.body


class TestFiles:
    def test_typed(self) -> None:
        """Type checkers find the marker that lets them read the package."""
        assert (ROOT / PACKAGE / "py.typed").is_file()

    def test_version(self) -> None:
        """The version in the package is the one it is built with."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

        assert asana_webhooks.__version__ == project["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])


def python_blocks(text: str) -> list[str]:
    """Return the blocks of a Markdown text that are marked as Python."""
    return re.findall(r"^```(?:python|py)\b[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def imported_names(block: str) -> set[tuple[str, str]]:
    """Return (module, name) for everything *block* imports from this package; it may await at the top."""
    tree = compile(block, "README.md", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == PACKAGE:
                found |= {(module, alias.name) for alias in names}
            case ast.Import(names=names):
                found |= {(alias.name, "__name__") for alias in names if alias.name.partition(".")[0] == PACKAGE}
    return found


class TestReadme:
    def test_names_all(self) -> None:
        """README's table of names is the top level's `__all__`, no more and no less."""
        table = README.read_text().partition("\n## Names\n")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("|")]
        named = re.findall(r"`([^`]+)`", "".join(rows))

        assert sorted(named) == sorted(asana_webhooks.__all__)

    def test_names_exist(self) -> None:
        """Every name the README imports from us is public where it says."""
        for block in python_blocks(README.read_text()):
            for module, name in imported_names(block):
                public = getattr(importlib.import_module(module), "__all__", [])
                assert name == "__name__" or name in public, f"from {module} import {name}"

    def test_finder(self) -> None:
        """The finder above sees imports in a block, at the top and inside, and no other blocks."""
        text = (
            "# x\n```python\nfrom asana_webhooks import (\n    Worker,\n    sign as s,\n)\nawait f()\n```\n"
            "```console\nfrom asana_webhooks import NotThis\n```\n"
            "```python title=x\ndef f():\n    from asana_webhooks.testing import FakeAsana\n    import aiohttp\n```\n"
        )
        first, second = python_blocks(text)

        assert imported_names(first) == {(PACKAGE, "Worker"), (PACKAGE, "sign")}
        assert imported_names(second) == {("asana_webhooks.testing", "FakeAsana")}
