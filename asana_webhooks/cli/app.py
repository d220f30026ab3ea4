"""The commands and their options. What `demo` does is in a file of its own."""

import asyncio
import json as json_module
import logging
import signal
import sys
from typing import Annotated, Final

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console

from asana_webhooks import AsanaError, ConfigurationError, __version__
from asana_webhooks.cli.demo import show_demo
from asana_webhooks.testing import DEFAULT_TOKEN, FakeAsana
from asana_webhooks.testing.control import serve_control

__all__ = ["app", "run"]

_FAKE_HELP: Final = """\
Serve a fake Asana on 127.0.0.1 until it is stopped by Ctrl-C or SIGTERM.

Once it is ready it prints one line of JSON: url, token, workspace and projects. Its clock runs, and targets must be
on this machine too.

**Steering it over HTTP.** Beside Asana's API the fake has a door of its own. It wants no token, and takes and
gives JSON.

```text
POST /_fake/changes     something changes, and the webhooks hear of it: 202
                        {"resource": "8675309", "action": "changed",
                         "field": "due_on"}
                        what is not known yet is created below its parent
                        {"resource": "99", "action": "added",
                         "parent": "8675309"}
GET  /_fake/webhooks    every webhook, with its secret
GET  /_fake/deliveries  every attempt to deliver, and how it was answered
POST /_fake/faults      one fault or a list of them to come: 202
                        refuse the next two calls that create a webhook
                        {"at": "createWebhook", "status": 429,
                         "retry_after": 2, "times": 2}
                        send the next delivery twice
                        {"at": "delivery", "do": "duplicate"}
POST /_fake/clock       turn the clock: 200 when all that fell due is done
                        {"advance": 28800}
POST /_fake/settle      200 when nothing is under way any more
```

`asana_webhooks.testing.Fault` explains all faults, `FakeAsana.change` all members of a change.
"""


app = App(
    name="asana-webhooks",
    help="Try Asana's webhooks without Asana.",
    version=__version__,
    help_format="markdown",
)


def run() -> None:
    """Run the command line with the arguments of this process, and exit."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as mistake:
        mistake.verbose = False  # no Python in the sentence
        _complain(f"{mistake} See asana-webhooks --help.")
        raise SystemExit(2) from None
    except AsanaError as problem:
        _complain(str(problem))
        raise SystemExit(1) from None


def _complain(problem: str) -> None:
    Console(stderr=True).print(f"asana-webhooks: {problem}", markup=False, highlight=False, soft_wrap=True)


@app.command
async def demo(
    *,
    store: Annotated[str | None, Parameter(help="Where to keep things: a path, sqlite:///path, or memory:.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print nothing but the summary, as one JSON object.")] = False,
) -> int:
    """See everything this package does, in a few seconds and on this machine alone.

    Starts a fake Asana with 250 webhooks, a receiver, a store and a worker; establishes three webhooks, sets a
    filter, lets 1,000 changes happen, and sends what happens to webhooks in real life: duplicates, forgeries,
    strangers, spoiled deliveries. Then it checks that everything arrived, once. The exit status is 0 if so, else 1.

    Without --store it uses SQLite in a temporary folder.
    """
    quiet, log = logging.NullHandler(), logging.getLogger("asana_webhooks")
    log.addHandler(quiet)  # it would warn of the demo's own attacks
    try:
        return await show_demo(store, json=json)
    finally:
        log.removeHandler(quiet)


@app.command(help=_FAKE_HELP)
async def fake(
    *,
    port: Annotated[
        int, Parameter(validator=Number(gte=0, lte=65535), help="Where to listen; 0 takes a free port.")
    ] = 0,
    token: Annotated[str, Parameter(help="The access token that is good.")] = DEFAULT_TOKEN,
    workspace: Annotated[str, Parameter(help="The gid of its workspace.")] = "1331",
    project: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, negative=(), show_default=" ".join, help="The gids of its projects."),
    ] = ("8675309",),
    webhooks: Annotated[int, Parameter(validator=Number(gte=0), help="How many webhooks it has at first.")] = 0,
    loopback: Annotated[
        bool, Parameter(help="--no-loopback refuses targets on this machine with 403, as Asana does.")
    ] = True,
) -> int:
    """Serve a `FakeAsana` until SIGINT or SIGTERM; the first line on standard output says how to reach it."""
    if not project:
        raise ConfigurationError("--project needs at least one gid")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
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
