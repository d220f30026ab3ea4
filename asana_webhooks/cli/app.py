"""The commands of the command line, with their options."""

import asyncio
import json as json_module
import logging
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console

from asana_webhooks import AsanaError, ConfigurationError, NotAuthorizedError, __version__
from asana_webhooks.cli.common import FAILED, UNAUTHORIZED, USAGE, discard_output, fail
from asana_webhooks.cli.demo import show_demo
from asana_webhooks.cli.doctor import doctor
from asana_webhooks.cli.health import health, move, rotate
from asana_webhooks.cli.inbox import inbox
from asana_webhooks.cli.listen import listen
from asana_webhooks.cli.plans import apply, plan
from asana_webhooks.cli.webhooks import create, delete, get, list_webhooks, projects, update, workspaces
from asana_webhooks.testing import DEFAULT_TOKEN, FakeAsana
from asana_webhooks.testing.control import serve_control

__all__ = ["app", "run"]

_FAKE_HELP: Final = """\
Serve a fake Asana on 127.0.0.1 until Ctrl-C or SIGTERM.

Once ready, it prints one line of JSON: url, token, workspace and projects. Its clock runs in real time. It delivers
only to targets on this machine.

**Control it over HTTP.** Besides Asana's API, the fake serves the control routes below. They need no token, and take
and return JSON.

```text
POST /_fake/resources   add a resource and return its gid: 201
                        {"resource_type": "task",
                         "parents": ["8675309"]}
POST /_fake/apps        add an OAuth app and return its credentials: 201
                        {"user": "12", "scopes": ["webhooks:read"]}
POST /_fake/changes     change a resource and notify its webhooks: 202
                        {"resource": "8675309", "action": "changed",
                         "field": "due_on"}
                        an unknown resource is created below its parent
                        {"resource": "99", "action": "added",
                         "parent": "8675309"}
GET  /_fake/webhooks    list all webhooks with their secrets
POST /_fake/webhooks    make a webhook inactive, or active again: 200
                        {"gid": "43", "active": false}
GET  /_fake/requests    list all requests to the API
GET  /_fake/deliveries  list all delivery attempts with their results
POST /_fake/faults      script one fault or a list of faults: 202
                        refuse the next two createWebhook calls
                        {"at": "createWebhook", "status": 429,
                         "retry_after": 2, "times": 2}
                        send the next delivery twice
                        {"at": "delivery", "do": "duplicate"}
POST /_fake/clock       advance the clock: 200 once everything due is done
                        {"advance": 28800}
POST /_fake/settle      wait for deliveries in flight: 200
```

`asana_webhooks.testing.Fault` documents all faults; `change`, `add_resource` and `register_app` of `FakeAsana` document
the members of a change, a resource and an app.

For example: `asana-webhooks fake --port 8123 --webhooks 250`
"""


class _HelpConsole(Console):
    def on_broken_pipe(self) -> None:  # by default it ends with status 1
        discard_output(sys.stdout)
        raise SystemExit(0)


app = App(
    name="asana-webhooks",
    console=_HelpConsole(),
    help="Work with Asana's webhooks, and try them without an Asana account.",
    version=__version__,
    help_format="markdown",
    default_parameter=Parameter(show_default=False, negative=()),  # most defaults are empty, and most flags off
)
_ONE, _MANY, _TRY = map(Group.create_ordered, ("Webhooks one by one", "Many webhooks at once", "Try out and debug"))
app.register_install_completion_command()
app.command(list_webhooks, name="list", group=_ONE)
for _group, _commands in {
    _ONE: (get, create, update, delete, workspaces, projects),
    _MANY: (plan, apply, health, move, rotate),
    _TRY: (listen,),
}.items():
    for _command in _commands:
        app.command(_command, group=_group)
for _commands_below in (doctor, inbox):
    _commands_below.group = (_TRY,)
    app.command(_commands_below)


def run() -> None:
    """Run the command line with this process's arguments, and exit."""
    _open_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks ends no command
    try:
        try:
            app(sys.argv[1:], exit_on_error=False, print_error=False)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
        raise SystemExit(0) from None
    except CycloptsError as mistake:
        mistake.verbose = False  # a message without Python types
        problem, status = f"{mistake} See asana-webhooks --help.", USAGE
    except NotAuthorizedError as error:
        problem, status = str(error), UNAUTHORIZED
    except ConfigurationError as error:
        problem, status = str(error), USAGE
    except AsanaError as error:
        problem, status = str(error), FAILED
    except ModuleNotFoundError as missing:
        if missing.name not in ("asyncpg", "cryptography"):
            raise
        problem, status = str(missing), FAILED
    fail(problem, status)  # here, where no error hangs on to it, with options that may be secret


def _open_streams() -> None:
    """Give the process the streams that were closed when it started, as by ``>&-`` in a shell."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - until the process ends


@app.command(group=_TRY)
async def demo(
    *,
    store: Annotated[
        str | None,
        Parameter(help="The store to use: a path, sqlite:///path, postgresql://user@host/database, or memory:."),
    ] = None,
    json: Annotated[bool, Parameter(help="Print only the summary, as one JSON object.")] = False,
) -> int:
    """See everything this package does, in a few seconds, on this machine only.

    Starts a fake Asana with 250 webhooks, a receiver, a store and a worker. Establishes three webhooks, sets a
    filter and makes 1,000 changes. Also sends duplicate, forged and tampered deliveries, and an attacker's handshake.
    Then it checks that each expected change was handled once. The exit status is 0 if so, else 1.

    Without --store it uses SQLite in a temporary folder. PostgreSQL needs the extra `postgres`, and may take the
    password from PGPASSWORD. Nothing else may use the store.

    For example: `asana-webhooks demo --json`
    """
    quiet, log = logging.NullHandler(), logging.getLogger("asana_webhooks")
    log.addHandler(quiet)  # the demo's own attacks would be logged as warnings
    try:
        return await show_demo(store, json=json)
    finally:
        log.removeHandler(quiet)


@app.command(help=_FAKE_HELP, group=_TRY)
async def fake(
    *,
    port: Annotated[
        int,
        Parameter(
            validator=Number(gte=0, lte=65535), show_default=True, help="The port to listen on; 0 picks a free one."
        ),
    ] = 0,
    token: Annotated[str, Parameter(show_default=True, help="The access token it accepts.")] = DEFAULT_TOKEN,
    workspace: Annotated[str, Parameter(show_default=True, help="The gid of its workspace.")] = "1331",
    project: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, show_default=" ".join, help="The gids of its projects."),
    ] = ("8675309",),
    webhooks: Annotated[int, Parameter(validator=Number(gte=0), help="The number of webhooks at the start.")] = 0,
    loopback: Annotated[
        bool,
        Parameter(negative="--no-loopback", help="Allow targets on this machine. Asana refuses them with 403."),
    ] = True,
) -> int:
    """Serve a `FakeAsana` until SIGINT or SIGTERM. The first line on standard output says how to reach it."""
    if not project:
        raise ConfigurationError("--project needs at least one gid")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels this task instead
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    served = FakeAsana(
        token=token,
        workspace=workspace,
        projects=project,
        webhooks=webhooks,
        port=port,
        allow_loopback=loopback,
        clock="running",
    )
    serve_control(served)
    async with served:
        ready = {"url": served.url, "token": served.token, "workspace": workspace, "projects": served.projects}
        sys.stdout.write(json_module.dumps(ready) + "\n")
        sys.stdout.flush()
        await stopped.wait()
    return 0
