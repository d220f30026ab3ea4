"""Imports go down only, and each kind of work is done in its own room.

Everything here reads the source with `ast`; nothing is imported. Each rule is a function over source text, so that a
second test can show that it finds what it forbids.
"""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "asana_webhooks"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
SOURCES = {module: path.read_text() for module, path in FILES.items()}
parsed = functools.cache(ast.parse)

# Rooms from the bottom to the top, and which other rooms each may import.
WORDS = {"errors", "models", "wire", "_checks", "_tasks"}
ROOMS = WORDS | {"client", "store", "store.base", "receiver.signature", "receiver", "worker", "subscriptions"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_tasks": {"errors"},
    "_checks": {"errors"},
    "models": {"errors"},
    "wire": {"errors", "models"},
    "client": WORDS,
    "store.base": {"errors", "models", "wire"},
    "store": WORDS | {"store.base"},
    "receiver.signature": {"errors", "models", "wire"},
    "receiver": WORDS | {"store.base", "receiver.signature"},
    "worker": WORDS | {"store.base"},
    # It signs what it sends to the service's own URL, as Asana does.
    "subscriptions": WORDS | {"client", "store", "store.base", "receiver.signature"},
    "receiver.web": WORDS | {"receiver", "store.base"},
    "receiver.asgi": WORDS | {"receiver", "store.base"},
    "": ROOMS,  # the public names
    "testing": ROOMS | {"", "receiver.web", "receiver.asgi"},
    "cli": ROOMS | {"", "receiver.web", "receiver.asgi", "testing"},
    "__main__": {"cli"},
}
# Inside `testing`, a line may import the lines above it. The first line needs none of the others.
TESTING = [
    {"records", "clock", "events", "serving"},
    {"world"},
    {"validation", "faults"},
    {"sender", "oauth", "paging"},
    {"rest"},
    {"fake"},
    {"control", "pytest_plugin"},
    {""},
]


def room_of(module: str) -> str:
    """Return the room a module lies in: the longest name above that is the module's or one of its packages'."""
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    rooms = [room for room in MAY_IMPORT if room and f"{inside}.".startswith(f"{room}.")]
    if not rooms and inside:
        raise LookupError(f"{module} lies in no room; give it one here")
    return max(rooms, key=len, default="")


def goes_down(module: str, imported: str) -> bool:
    """Tell whether *module* may import *imported*."""
    own, other = room_of(module), room_of(imported)
    if own == other == "testing":
        line, above = (_testing_line(name) for name in (module, imported))
        return above <= line
    return own == other or other in MAY_IMPORT[own]


def _testing_line(module: str) -> int:
    name = module.removeprefix(f"{PACKAGE}.testing").removeprefix(".")
    for number, names in enumerate(TESTING):
        if name in names:
            return number
    raise LookupError(f"{module} has no place in TESTING; give it one here")


def imports_of(source: str, module: str) -> Iterator[str]:
    """Name every module that *source* imports, anywhere in it: in functions, under conditions, by a call.

    `__version__` is no import of the package's root: it is set before the root imports anything.
    """
    for node in ast.walk(parsed(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=level) if level:
                raise AssertionError(f"{module}: write imports of our own with their whole names")
            case ast.ImportFrom(module=str(start), names=names):
                inner = [f"{start}.{alias.name}" for alias in names if (start, alias.name) != (PACKAGE, "__version__")]
                yield from (name if name in SOURCES else start for name in inner)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def own_imports(module: str) -> set[str]:
    return {name for name in imports_of(SOURCES[module], module) if f"{name}.".startswith(f"{PACKAGE}.")}


def foreign_imports(module: str) -> set[str]:
    top = {name.partition(".")[0] for name in imports_of(SOURCES[module], module)}
    return top - {PACKAGE} - set(sys.stdlib_module_names)


def absolute(name: str) -> str:
    return f"{PACKAGE}.{name}".rstrip(".")


class TestFloors:
    def test_imports_go_down(self) -> None:
        """No module imports anything from a floor above its own, or from the room next door."""
        pairs = [(module, name) for module in SOURCES for name in own_imports(module)]

        assert [pair for pair in pairs if not goes_down(*pair)] == []

    def test_no_two_files_import_each_other(self) -> None:
        """Any file can be read before those that use it."""
        graph = {module: own_imports(module) for module in SOURCES}

        assert set(TopologicalSorter(graph).static_order()) == set(SOURCES)  # CycleError names the circle

    def test_the_table_goes_down(self) -> None:
        """No room may import a room that stands below it in the table, and each room of the table is there."""
        assert [pair for pair in combinations(MAY_IMPORT, 2) if pair[1] in MAY_IMPORT[pair[0]]] == []
        assert {room_of(module) for module in SOURCES} == set(MAY_IMPORT)

    def test_the_rule_finds(self) -> None:
        """Imports that go up, or sideways into another room, are found; those that go down are not."""
        forbidden = [
            *[("errors", "models"), ("wire", "client.requests"), ("_tasks", "models"), ("worker.worker", "")],
            *[("client.session", "receiver.signature"), ("client.session", "store.base"), ("client.session", "")],
            *[
                ("store.memory", "client.requests"),
                ("store.base", "store.memory"),
                ("receiver.receiver", "store.rules"),
            ],
            *[("receiver.protocol", "receiver.web"), ("receiver.web", "receiver.asgi"), ("worker.worker", "store")],
            *[("subscriptions.establish", "worker.worker"), ("subscriptions.public_url", "receiver.receiver")],
            ("worker.worker", "receiver.signature"),
            *[("", "receiver.web"), ("testing.fake", "cli"), ("testing.fake", "testing.control")],
            *[("testing.world", "testing.fake"), ("cli", "__main__"), ("__main__", "testing")],
        ]
        allowed = [
            *[("models", "errors"), ("client.pages", "client.session"), ("store.sqlite.store", "store.rules")],
            *[("receiver.asgi", "receiver.receiver"), ("subscriptions.establish", "store.base"), ("", "worker.worker")],
            *[("receiver.receiver", "receiver.signature"), ("subscriptions.public_url", "receiver.signature")],
            *[("testing.serving", "receiver.web"), ("testing.control", "testing.fake"), ("cli.app", "testing.fake")],
        ]
        assert [pair for pair in forbidden if goes_down(*map(absolute, pair))] == []
        assert [pair for pair in allowed if not goes_down(*map(absolute, pair))] == []
        with pytest.raises(LookupError, match="lies in no room"):
            room_of(absolute("utils"))

    def test_every_kind_of_import_is_seen(self) -> None:
        """No way of writing an import hides it."""
        for source, found in {
            "import asana_webhooks.worker as w": ["asana_webhooks.worker"],
            "from asana_webhooks import wire, sign_body": ["asana_webhooks.wire", "asana_webhooks"],
            "from asana_webhooks import __version__": [],
            "from asana_webhooks.store import base": ["asana_webhooks.store.base"],
            "def f():\n    from asana_webhooks.worker.worker import Worker": ["asana_webhooks.worker.worker"],
            "if TYPE_CHECKING:\n    import asana_webhooks.worker": ["asana_webhooks.worker"],
            "try:\n    import uvloop\nexcept ImportError:\n    pass": ["uvloop"],
            "importlib.import_module('asana_webhooks.cli')": ["asana_webhooks.cli"],
            "__import__('asana_webhooks.cli')": ["asana_webhooks.cli"],
        }.items():
            assert list(imports_of(source, "x")) == found
        with pytest.raises(AssertionError, match="whole names"):
            list(imports_of("from .session import AsanaSession", "x"))


# Which of our modules may import what is foreign. A package's name stands for all in it.
FOREIGN: dict[str, set[str]] = {
    "aiohttp": {
        "client.session",
        "client.transport",
        "client.token_endpoint",
        "client.oauth",
        "receiver.web",
        "subscriptions.public_url",
        "testing",
        "cli.listen",
        "cli.inbox",
    },
    "attr": set(),  # the old name of attrs
    "cattrs": {"wire"},
    "msgspec": {"wire", "cli.plans"},
    "cryptography": {"store.secret_box"},
    "pysqlite3": {"store.sqlite"},
    "asyncpg": {"store.postgres"},
    "cyclopts": {"cli"},
    "rich": {"cli"},
    "pytest": {"testing.pytest_plugin"},
    "pytest_asyncio": {"testing.pytest_plugin"},  # asked for in a try; it works without
}
EXTRAS = {"cli": "cli", "__main__": "cli", "store.secret_box": "fernet", "store.sqlite": "sqlite"}
EXTRAS["store.postgres"] = "postgres"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lies_in(module: str, rooms: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{PACKAGE}.{room}.") for room in rooms)


def requirements(*extras: str) -> set[str]:
    lines = [*PYPROJECT["dependencies"], *(line for one in extras for line in PYPROJECT["optional-dependencies"][one])]
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].replace("-", "_").lower() for line in lines} - {PACKAGE}


class TestForeign:
    def test_in_their_rooms(self) -> None:
        """HTTP is done in a few rooms, JSON and TOML in one each, and the command line's libraries stay in its own."""
        for module in SOURCES:
            astray = {name for name in foreign_imports(module) if not lies_in(module, FOREIGN.get(name, [""]))}
            assert astray & set(FOREIGN) == set(), module

    def test_declared(self) -> None:
        """What is imported is declared in pyproject.toml, for all or in the room's extra; what is declared is used."""
        used = set()
        for module in SOURCES:
            declared = requirements(*(extra for room, extra in EXTRAS.items() if lies_in(module, [room])))
            if lies_in(module, ["testing.pytest_plugin"]):
                declared |= requirements("dev") & {"pytest", "pytest_asyncio"}
            assert foreign_imports(module) - declared == set(), module
            used |= foreign_imports(module)

        assert requirements(*EXTRAS.values()) - used == set()


PURE = ["errors", "models", "wire", "_checks", "client.requests", "client.responses", "client.retry"]
PURE += ["receiver.signature", "receiver.protocol", "store.rules", "subscriptions.rules"]
WORLD = {"asyncio", "time", "socket", "random", "secrets", "os", "uuid", "threading", "subprocess", "selectors", "ssl"}
CLOCKS = {"now", "utcnow", "today"}


def impurities(source: str) -> Iterator[str]:
    """Name whatever in *source* awaits, or reaches for clock, chance, network or system."""
    for node in ast.walk(parsed(source)):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield type(node).__name__
            case ast.Call(func=ast.Attribute(attr=name)) if name in CLOCKS:
                yield name
            case ast.Call(func=ast.Name(id="open" | "input" | "print" as name)):
                yield name
            case ast.ImportFrom(module=str(name)) if name.partition(".")[0] in WORLD:
                yield name
            case ast.Import(names=names):
                yield from (top for one in names if (top := one.name.partition(".")[0]) in WORLD)


class TestPure:
    def test_no_world(self) -> None:
        """A pure file awaits nothing and knows no clock, chance or network; it is given what they say."""
        for name in PURE:
            excused = ["asyncio", "random", "time"] if name == "client.retry" else []
            assert list(impurities(SOURCES[absolute(name)])) == excused, name

    def test_the_retry_policy_calls_nothing_of_the_world(self) -> None:
        """It names the sleep, chance and clock it uses unless it is given others, as defaults of its fields."""
        source = SOURCES[absolute("client.retry")]
        named = {"asyncio.sleep", "random.random", "time.monotonic"}

        assert set(re.findall(r"\b(?:asyncio|random|time)\.\w+", source)) == named
        assert all(source.count(name) == source.count(f"(default={name}, ") == 1 for name in named)

    def test_the_rule_finds(self) -> None:
        """Each kind of impurity is found."""
        for source, found in {
            "async def f():\n    await g()": ["AsyncFunctionDef", "Await"],
            "import time, os.path": ["time", "os"],
            "from datetime import datetime\nx = datetime.now()": ["now"],
            "def f():\n    import secrets": ["secrets"],
            "x = open('y')": ["open"],
        }.items():
            assert list(impurities(source)) == found


LOGGING = {"basicConfig", "addHandler", "removeHandler", "setLevel", "dictConfig", "fileConfig", "captureWarnings"}
LOGGING |= {"addFilter", "disable", "setLoggerClass"}
LOOPS = {"run", "new_event_loop", "set_event_loop", "set_event_loop_policy", "get_event_loop", "run_until_complete"}


def manners(source: str) -> Iterator[str]:
    """Name whatever a library should leave to the program it is used in."""
    for node in ast.walk(parsed(source)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield "print"
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in LOGGING or name.endswith(
                "Handler"
            ):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr=name)) if name in LOOPS:
                yield f"asyncio.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logging"), attr="getLogger"), args=args):
                yield from ["getLogger"] if [ast.unparse(one) for one in args] != ["__name__"] else []
            case ast.Global(names=names):
                yield from (f"global {name}" for name in names)


class TestManners:
    def test_leaves_the_program_alone(self) -> None:
        """A library does not print, install log handlers (trap 6), set levels, make event loops or keep globals.

        The command line is a program of its own.
        """
        for module, source in SOURCES.items():
            assert lies_in(module, ["cli"]) or list(manners(source)) == [], module

    def test_the_rule_finds(self) -> None:
        """Each kind of bad manners is found."""
        for source, found in {
            "print('x')": ["print"],
            "logging.getLogger(__name__).addHandler(h)": ["addHandler"],
            "h = logging.StreamHandler()": ["StreamHandler"],
            "h = RotatingFileHandler('x')": ["RotatingFileHandler"],
            "logging.getLogger('root').info('x')": ["getLogger"],
            "logging.getLogger(__name__).info('x')": [],
            "asyncio.run(main())": ["asyncio.run"],
            "def f():\n    global token\n    token = 1": ["global token"],
        }.items():
            assert list(manners(source)) == found

    def test_exceptions_live_in_one_file(self) -> None:
        """What a user can meet is in the one tree; other files define no public exceptions of their own.

        The refusal of `receiver.protocol` never leaves the receiver.
        """
        for module, source in SOURCES.items():
            classes = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.ClassDef)]
            errors = [
                node.name
                for node in classes
                if any(ast.unparse(base).endswith(("Error", "Exception", "Warning")) for base in node.bases)
            ]
            if not lies_in(module, ["errors", "testing", "receiver.protocol"]):
                assert [name for name in errors if not name.startswith("_")] == [], module

    def test_types_are_there_at_run_time(self) -> None:
        """What attrs classes are made of is imported for real: cattrs and msgspec look their types up."""
        for name in ("models", "wire", "errors", "client.requests", "client.retry", "store.base"):
            assert "TYPE_CHECKING" not in SOURCES[absolute(name)], name
            assert "from __future__ import annotations" not in SOURCES[absolute(name)], name
