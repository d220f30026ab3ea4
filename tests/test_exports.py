"""What is public: the names at the top, and the names of each module."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import asana_webhooks

ROOT = Path(__file__).parent.parent
PACKAGE = "asana_webhooks"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

QUIET = """
import logging, sys, asana_webhooks
from asana_webhooks import *
names = ["asana_webhooks", *(name for name in logging.root.manager.loggerDict if name.startswith("asana_webhooks"))]
loggers = [logging.root, *map(logging.getLogger, names)]
assert not any(one.handlers or one.filters for one in loggers), loggers
assert all(one.level == logging.NOTSET for one in loggers[1:]), loggers
assert logging.root.level == logging.WARNING
unwanted = {"cyclopts", "rich", "pytest", "cryptography", "asana_webhooks.testing", "asana_webhooks.cli"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""


class TestTopLevel:
    def test_all_is_what_is_imported(self) -> None:
        """`__all__` names what the file imports, and the version, sorted; the version is set before all imports."""
        docstring, version, *statements = ast.parse((ROOT / PACKAGE / "__init__.py").read_text()).body
        imported = [alias.name for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names]

        assert isinstance(docstring, ast.Expr)
        assert ast.unparse(version).startswith("__version__ = ")
        assert sorted([*imported, "__version__"]) == sorted(asana_webhooks.__all__)
        assert asana_webhooks.__all__ == sorted(set(asana_webhooks.__all__))

    def test_every_error_and_model_is_there(self) -> None:
        """What can be raised or returned can be imported from the top, to be caught or named in a signature.

        But for what nobody outside meets.
        """
        for module in ("errors", "models"):
            names = set(importlib.import_module(f"{PACKAGE}.{module}").__all__)
            assert names <= set(asana_webhooks.__all__)

    @pytest.mark.slow
    def test_import_is_quiet(self) -> None:
        """Importing installs no log handlers (trap 6), prints nothing, warns of nothing, loads neither CLI nor fake."""
        command = [sys.executable, "-W", "error", "-c", QUIET]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_version_and_types(self) -> None:
        """The version in the package is the one it is built with, and type checkers find their marker."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

        assert asana_webhooks.__version__ == project["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
        assert (ROOT / PACKAGE / "py.typed").is_file()


def test_every_module_says_what_it_is_for_and_what_is_public() -> None:
    """Each module has a docstring, and an `__all__` with names that exist if it defines anything public."""
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module, tree = importlib.import_module(name), ast.parse(path.read_text())
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        defined = {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}
        names = getattr(module, "__all__", [])

        assert ast.get_docstring(tree) or not tree.body, name
        assert hasattr(module, "__all__") or not defined, name
        assert len(names) == len(set(names)), name
        assert [one for one in names if not hasattr(module, one)] == [], name
