"""The fake Asana as a process of its own, for programs in any language."""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence

from asana_webhooks.testing import FakeAsana
from asana_webhooks.testing.control import serve_control

__all__ = ["serve_fake"]


async def serve_fake(
    *, port: int, token: str, workspace: str, projects: Sequence[str], webhooks: int, allow_loopback: bool
) -> None:
    """Serve a `FakeAsana` until SIGINT or SIGTERM; the first line on standard output says how to reach it.

    Args:
        port: where to listen; 0 for any free port.
        token: the access token that is good.
        workspace: gid of the workspace.
        projects: gids of the projects in it.
        webhooks: how many webhooks there are from the beginning.
        allow_loopback: False to refuse targets on this machine with 403, as Asana does.

    Raises:
        ConfigurationError: the port is taken, or the gids do not go together.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    fake = FakeAsana(
        token=token,
        workspace=workspace,
        projects=projects,
        webhooks=webhooks,
        port=port,
        allow_loopback=allow_loopback,
        clock="running",
    )
    serve_control(fake)
    async with fake:
        ready = {"url": fake.url, "token": fake.token, "workspace": fake.workspace, "projects": fake.projects}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stopped.wait()
