"""The house stands as README draws it: imports go down only, and each kind of work is done in its own room.

Everything here reads the source with `ast`; nothing is imported. Each rule is a function over source text, so that a
second test can show that it finds what it forbids.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "asana_webhooks"


def _modules() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text()
    return found


SOURCES = _modules()
EACH = pytest.mark.parametrize("module", SOURCES)

# Rooms, and which other rooms each may import. What is not here is forbidden; a module of no room fails a test.
WORDS = {"checks", "errors", "models", "shapes", "wire", "cleanup", "version"}
WORKING = {"backoff", "retention", "settling", "worker"}
BELOW_DOORS = WORDS | WORKING | {"client", "store", "store.base", "receiver", "subscriptions"}
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "cleanup": set(),
    "errors": set(),
    "checks": {"errors"},
    "backoff": {"checks", "errors"},
    "models": {"errors"},
    "shapes": set(),
    "wire": {"errors", "models", "shapes"},
    "client": WORDS,
    "store.base": {"errors", "models", "wire"},
    "store": WORDS | {"store.base"},
    "receiver": WORDS | {"store.base"},
    "subscriptions": WORDS | {"client", "receiver", "store", "store.base"},
    "retention": {"checks", "errors", "store.base"},
    "settling": WORDS | {"backoff", "store.base"},
    "worker": WORDS | {"backoff", "retention", "settling", "store.base"},
    "receiver.web": WORDS | {"receiver", "store.base"},
    "receiver.asgi": WORDS | {"receiver", "store.base"},
    "": BELOW_DOORS,  # the public names
    "testing": BELOW_DOORS | {"", "receiver.web", "receiver.asgi"},
    "cli": BELOW_DOORS | {"", "receiver.web", "receiver.asgi", "testing"},
    "__main__": {"cli"},
}


def room_of(module: str) -> str:
    """Return the room a module lies in: the longest name above that is the module's or one of its packages'."""
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    rooms = [room for room in MAY_IMPORT if room and (inside == room or inside.startswith(room + "."))]
    if not rooms and inside:
        raise LookupError(f"{module} lies in no room; give it one here")
    return max(rooms, key=len, default="")


def runs_down(module: str, imported: str) -> bool:
    """Tell whether *module* may import *imported*."""
    own, other = room_of(module), room_of(imported)
    return own == other or other in MAY_IMPORT[own]


def imports_of(source: str, module: str, *, package: bool = False) -> Iterator[str]:
    """Name every module that *source* imports, anywhere in it: in functions, under conditions, by a call."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                home = module.split(".") if package else module.split(".")[:-1]
                above = home[: len(home) - level + 1] if level else []
                start = ".".join([*above, *([base] if base else [])])
                for alias in names:
                    inner = f"{start}.{alias.name}"
                    yield inner if inner in SOURCES else start
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def own_imports(module: str) -> list[str]:
    package = any(other.startswith(module + ".") for other in SOURCES)
    found = imports_of(SOURCES[module], module, package=package)
    return [name for name in found if name == PACKAGE or name.startswith(PACKAGE + ".")]


def foreign_imports(module: str) -> set[str]:
    top = {name.partition(".")[0] for name in imports_of(SOURCES[module], module)}
    return top - {PACKAGE} - set(sys.stdlib_module_names)


class TestFloors:
    @EACH
    def test_imports_run_down(self, module: str) -> None:
        """No module imports anything from a floor above its own, or from the room next door."""
        assert [name for name in own_imports(module) if not runs_down(module, name)] == []

    @EACH
    def test_only_what_exists(self, module: str) -> None:
        """Every import of our own names a module there is."""
        assert [name for name in own_imports(module) if name not in SOURCES] == []

    def test_no_circles(self) -> None:
        """Modules import each other in one direction, so any can be read before those that use it."""
        graph = {module: set(own_imports(module)) - {module} for module in SOURCES}

        assert set(TopologicalSorter(graph).static_order()) == set(SOURCES)  # CycleError names the circle

    @pytest.mark.parametrize(
        ("module", "imported"),
        [
            ("errors", "models"),
            ("errors", "version"),
            ("models", "wire"),
            ("wire", "client.requests"),
            ("cleanup", "errors"),
            ("version", "errors"),
            ("client.session", "receiver.signature"),
            ("client.session", "store.base"),
            ("client.session", "store"),
            ("client", "store.memory"),
            ("client.pages", "subscriptions.establish"),
            ("store.memory", "client.requests"),
            ("store.sqlite.store", "receiver.signature"),
            ("store.base", "store.memory"),
            ("store.base", "worker"),
            ("receiver.receiver", "store.memory"),
            ("receiver.receiver", "store.rules"),
            ("receiver.receiver", "client.answers"),
            ("receiver.inbound", "receiver.web"),
            ("receiver.web", "receiver.asgi"),
            ("receiver.web", "subscriptions.establish"),
            ("receiver.web", "store.sqlite"),
            ("subscriptions.establish", "worker"),
            ("subscriptions.establish", "receiver.web"),
            ("worker", "subscriptions.establish"),
            ("worker", "testing.clock"),
            ("worker", ""),
            ("client.session", ""),
            ("", "receiver.web"),
            ("", "testing"),
            ("testing.fake", "cli"),
            ("cli", "__main__"),
            ("__main__", "testing"),
        ],
    )
    def test_the_rule_forbids(self, module: str, imported: str) -> None:
        """Arrows that run up, or sideways into another room, are found."""
        assert not runs_down(f"{PACKAGE}.{module}".rstrip("."), f"{PACKAGE}.{imported}".rstrip("."))

    @pytest.mark.parametrize(
        ("module", "imported"),
        [
            ("models", "errors"),
            ("wire", "models"),
            ("client.requests", "wire"),
            ("client.pages", "client.session"),
            ("store.sqlite.store", "store.rules"),
            ("receiver.inbound", "store.base"),
            ("receiver.asgi", "receiver.receiver"),
            ("subscriptions.establish", "store.base"),
            ("worker", "cleanup"),
            ("", "worker"),
            ("testing.fake", "receiver.web"),
            ("cli", "testing.fake"),
            ("__main__", "cli"),
        ],
    )
    def test_the_rule_allows(self, module: str, imported: str) -> None:
        """Arrows that run down are not."""
        assert runs_down(f"{PACKAGE}.{module}".rstrip("."), f"{PACKAGE}.{imported}".rstrip("."))

    def test_the_table_runs_down(self) -> None:
        """The table of rooms is written from the bottom to the top, and no room in it may import a later one."""
        assert all(above not in MAY_IMPORT[below] for below, above in combinations(MAY_IMPORT, 2))
        assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)

    def test_unknown_rooms_are_found(self) -> None:
        """A module that was put beside the rooms cannot slip through."""
        with pytest.raises(LookupError, match="lies in no room"):
            room_of(f"{PACKAGE}.utils")

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("import asana_webhooks.worker as w", ["asana_webhooks.worker"]),
            ("from asana_webhooks import wire, sign_body", ["asana_webhooks.wire", "asana_webhooks"]),
            ("from asana_webhooks.store import base", ["asana_webhooks.store.base"]),
            ("from asana_webhooks.store.base import Store", ["asana_webhooks.store.base"]),
            ("def f():\n    from asana_webhooks.worker.worker import Worker", ["asana_webhooks.worker"]),
            ("if TYPE_CHECKING:\n    import asana_webhooks.worker", ["asana_webhooks.worker"]),
            ("try:\n    import uvloop\nexcept ImportError:\n    pass", ["uvloop"]),
            ("from .. import worker", ["asana_webhooks.worker"]),
            ("from ..store.base import Store", ["asana_webhooks.store.base"]),
            ("from .session import AsanaSession", ["asana_webhooks.client.session"]),
            ("import importlib\nimportlib.import_module('asana_webhooks.cli')", ["importlib", "asana_webhooks.cli"]),
            ("__import__('asana_webhooks.cli')", ["asana_webhooks.cli"]),
        ],
    )
    def test_every_kind_of_import_is_seen(self, source: str, found: list[str]) -> None:
        """No way of writing an import hides it."""
        assert sorted(imports_of(source, f"{PACKAGE}.client.pages")) == sorted(found)


# Which of our modules may import what is foreign. A package name stands for all in it.
FOREIGN: dict[str, tuple[str, ...]] = {
    "aiohttp": (
        "client.session",
        "client.exchange",
        "client.auth",
        "client.token_endpoint",
        "receiver.web",
        "testing",
        "cli",
    ),
    "attr": (),  # the old name of attrs
    "cattrs": ("wire",),
    "msgspec": ("shapes", "wire"),
    "cryptography": ("store.secret_box",),
    "pysqlite3": ("store.sqlite.file",),
    "cyclopts": ("cli",),
    "rich": ("cli",),
    "pytest": ("testing.pytest_plugin",),  # pytest itself loads it
    "pytest_asyncio": ("testing.pytest_plugin",),  # asked for in a try; it works without
}


def _in_rooms(module: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{PACKAGE}.{room}.") for room in rooms)


def _requirements(pyproject: dict[str, Any], *extras: str) -> set[str]:
    project = pyproject["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].replace("-", "_").lower() for line in lines} - {PACKAGE}


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class TestForeign:
    @EACH
    def test_in_their_rooms(self, module: str) -> None:
        """HTTP is done in a few rooms, JSON in one, and the command line's libraries stay in its own."""
        astray = {name for name in foreign_imports(module) if name in FOREIGN and not _in_rooms(module, FOREIGN[name])}

        assert astray == set()

    @EACH
    def test_declared(self, module: str) -> None:
        """Whatever is imported is declared in pyproject.toml: for all, or in the extra of the room that uses it."""
        declared = _requirements(PYPROJECT)
        if _in_rooms(module, ("cli", "__main__")):
            declared |= _requirements(PYPROJECT, "cli")
        if _in_rooms(module, ("store.secret_box",)):
            declared |= _requirements(PYPROJECT, "fernet")
        if _in_rooms(module, ("store.sqlite.file",)):
            declared |= _requirements(PYPROJECT, "sqlite")
        if _in_rooms(module, ("testing",)):
            declared |= _requirements(PYPROJECT, "dev") & {"pytest", "pytest_asyncio"}

        assert foreign_imports(module) - declared == set()

    def test_all_that_is_declared_is_used(self) -> None:
        """No dependency is asked of users for nothing."""
        used = {name for module in SOURCES for name in foreign_imports(module)}

        assert _requirements(PYPROJECT, "cli", "fernet") - used == set()

    def test_the_rule_finds_strangers(self) -> None:
        """An import that pyproject.toml does not know would be found, as would one in the wrong room."""
        top = {name.partition(".")[0] for name in imports_of("import requests\nfrom rich.table import Table", "x")}

        assert top - _requirements(PYPROJECT) == {"requests", "rich"}
        assert _requirements(PYPROJECT, "cli") >= {"aiohttp", "attrs", "cattrs", "msgspec", "yarl", "cyclopts", "rich"}
        assert not _in_rooms(f"{PACKAGE}.client.pages", FOREIGN["aiohttp"])
        assert not _in_rooms(f"{PACKAGE}.wire_tools", FOREIGN["msgspec"])
        assert _in_rooms(f"{PACKAGE}.testing.fake", FOREIGN["aiohttp"])


PURE = [
    "checks",
    "errors",
    "models",
    "shapes",
    "wire",
    "client.options",
    "client.requests",
    "client.retry",
    "client.gate",
    "client.answers",
    "client.walk",
    "client.tokens",
    "client.deprecations",
    "receiver.signature",
    "receiver.inbound",
    "receiver.known",
    "receiver.reply",
    "store.rules",
    "store.secret_box",
]
WORLD = {"asyncio", "time", "socket", "random", "secrets", "os", "uuid", "threading", "subprocess", "selectors", "ssl"}
CLOCKS = {"now", "utcnow", "today"}

# The policy of retrying names the clock, sleep and chance it uses unless it is given others. It names them as
# defaults of its fields and never calls them itself.
DEFAULTS = {"asyncio.sleep", "time.monotonic", "random.random"}


def impurities(source: str, defaults: frozenset[str] = frozenset()) -> Iterator[str]:
    """Name whatever in *source* awaits, or reaches for clock, chance, network or system.

    *defaults* are the dotted names that may stand as ``field(default=...)``.
    """
    tree = ast.parse(source)
    modules = {name.partition(".")[0] for name in defaults}
    excused = {
        id(one.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "field"
        for one in node.keywords
        if one.arg == "default" and ast.unparse(one.value) in defaults
    }
    for node in ast.walk(tree):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield type(node).__name__
            case ast.Attribute(value=ast.Name(id=name)) if name in modules and id(node) not in excused:
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr=name)) if name in CLOCKS:
                yield name
            case ast.Call(func=ast.Name(id="open" | "input" | "print" as name)):
                yield name
            case ast.ImportFrom(module=str(name)) if name.partition(".")[0] in WORLD:
                yield name
            case ast.Import(names=names):
                # Under another name a module could be used unseen.
                tops = [(one.name.partition(".")[0], one.asname) for one in names]
                yield from (top for top, alias in tops if top in WORLD and (top not in modules or alias))


class TestPure:
    @pytest.mark.parametrize("module", PURE)
    def test_no_world(self, module: str) -> None:
        """A pure file awaits nothing and knows no clock, chance or network; it is given what they say."""
        defaults = frozenset(DEFAULTS) if module == "client.retry" else frozenset()

        assert list(impurities(SOURCES[f"{PACKAGE}.{module}"], defaults)) == []

    def test_the_policy_names_its_defaults(self) -> None:
        """The exception is needed: without it the policy's three defaults are found."""
        assert set(impurities(SOURCES[f"{PACKAGE}.client.retry"])) == {"asyncio", "time", "random"}

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("async def f(): ...", ["AsyncFunctionDef"]),
            ("async def f():\n    await g()", ["AsyncFunctionDef", "Await"]),
            ("import time", ["time"]),
            ("import os.path", ["os"]),
            ("from time import monotonic", ["time"]),
            ("from datetime import datetime\nx = datetime.now()", ["now"]),
            ("def f():\n    import secrets", ["secrets"]),
            ("x = open('y')", ["open"]),
        ],
    )
    def test_the_rule_finds(self, source: str, found: list[str]) -> None:
        """Each kind of impurity is found."""
        assert list(impurities(source)) == found

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("import time\nx = field(default=time.monotonic)", []),
            ("import time\nx = time.monotonic()", ["time.monotonic"]),
            ("import time\nx = field(default=time.monotonic())", ["time.monotonic"]),
            ("import time\nx = field(default=time.time)", ["time.time"]),
            ("import time as t\nx = t.time()", ["time"]),
            ("import asyncio\nx = asyncio.Queue()", ["asyncio.Queue"]),
        ],
    )
    def test_the_exception_is_narrow(self, source: str, found: list[str]) -> None:
        """The policy may name its defaults, and neither call them nor use anything else from their modules."""
        assert list(impurities(source, frozenset(DEFAULTS))) == found


LOGGING = {"basicConfig", "addHandler", "removeHandler", "setLevel", "dictConfig", "fileConfig", "captureWarnings"}
LOGGING |= {"addFilter", "disable", "setLoggerClass"}
LOOPS = {"run", "new_event_loop", "set_event_loop", "set_event_loop_policy", "get_event_loop", "run_until_complete"}


def manners(source: str) -> Iterator[str]:
    """Name whatever a library should leave to the program it is used in."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield "print"
            case ast.Call(func=ast.Attribute(attr=name)) if name in LOGGING or name.endswith("Handler"):
                yield name
            case ast.Call(func=ast.Name(id=name)) if name in LOGGING or name.endswith("Handler"):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr=name)) if name in LOOPS:
                yield f"asyncio.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logging"), attr="getLogger"), args=args):
                if [ast.unparse(one) for one in args] != ["__name__"]:
                    yield "getLogger"
            case ast.Global(names=names):
                yield from (f"global {name}" for name in names)


LIBRARY = [module for module in SOURCES if not _in_rooms(module, ("cli",))]


class TestManners:
    @pytest.mark.parametrize("module", LIBRARY)
    def test_leaves_the_program_alone(self, module: str) -> None:
        """A library does not print, install log handlers (trap 6), set levels, make event loops or keep globals.

        The command line is a program of its own.
        """
        assert set(manners(SOURCES[module])) == set()

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("print('x')", ["print"]),
            ("logging.basicConfig()", ["basicConfig"]),
            ("logging.getLogger(__name__).addHandler(h)", ["addHandler"]),
            ("h = logging.StreamHandler()", ["StreamHandler"]),
            ("h = RotatingFileHandler('x')", ["RotatingFileHandler"]),
            ("logging.getLogger(__name__).setLevel(10)", ["setLevel"]),
            ("logging.getLogger().info('x')", ["getLogger"]),
            ("logging.getLogger('root').info('x')", ["getLogger"]),
            ("logging.getLogger(__name__).info('x')", []),
            ("asyncio.run(main())", ["asyncio.run"]),
            ("def f():\n    global token\n    token = 1", ["global token"]),
        ],
    )
    def test_the_rule_finds(self, source: str, found: list[str]) -> None:
        """Each kind of bad manners is found."""
        assert list(manners(source)) == found

    @pytest.mark.parametrize("module", LIBRARY)
    def test_exceptions_live_in_one_file(self, module: str) -> None:
        """What a user can meet is in the one tree; other files define no public exceptions of their own."""
        if module == f"{PACKAGE}.errors" or _in_rooms(module, ("testing",)):
            return
        public = [
            node.name
            for node in ast.walk(ast.parse(SOURCES[module]))
            if isinstance(node, ast.ClassDef)
            and not node.name.startswith("_")
            and any(ast.unparse(base).endswith(("Error", "Exception", "Warning")) for base in node.bases)
        ]

        assert public == []

    @pytest.mark.parametrize(
        "module", ["models", "shapes", "wire", "errors", "client.requests", "client.retry", "store.base"]
    )
    def test_types_are_there_at_run_time(self, module: str) -> None:
        """What attrs classes are made of is imported for real: cattrs and msgspec look their types up."""
        assert "TYPE_CHECKING" not in SOURCES[f"{PACKAGE}.{module}"]
        assert "from __future__ import annotations" not in SOURCES[f"{PACKAGE}.{module}"]
