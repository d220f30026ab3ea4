"""Programs that each stand for a machine, over one store: ``python -m tests.helpers.machines PROGRAM OPTIONS``.

PROGRAM is `receive`, `establish` or `work`; OPTIONS is JSON. The store's URL is in the environment. Each prints a line
of JSON for whatever happens, and waits for a line of input where a test wants to say when it goes on.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

from asana_webhooks import (
    AsanaSession,
    Delivery,
    Receiver,
    Worker,
    ensure_webhook,
    open_store,
)
from asana_webhooks.receiver.web import serve
from asana_webhooks.store.base import Lease

__all__ = ["Machine", "machine"]

ROOT = Path(__file__).parents[2]
STORE = "MACHINES_STORE"


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def told_to_go_on() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def receive() -> None:
    """Receive on a free port until told to end."""
    async with open_store(os.environ[STORE]) as store, serve(Receiver(store), port=0) as public_url:
        say(public_url=public_url)
        await told_to_go_on()


async def ensure(*, token: str, base_url: str, public_url: str, resource: str) -> None:
    """Ensure a webhook when told to, and print which one it is."""
    async with open_store(os.environ[STORE]) as store, AsanaSession(token, base_url=base_url) as asana:
        say(ready=True)
        await told_to_go_on()
        ensured = await ensure_webhook(asana, store, public_url=public_url, resource=resource)
        say(action=ensured.action, webhook_gid=ensured.webhook_gid)


async def work(*, handling: float = 0.0, **options: Any) -> None:
    """Work until SIGTERM; print what is claimed and acknowledged, with the time before and after.

    Args:
        handling: seconds for each delivery.
        **options: of the worker.
    """
    store: Any = open_store(os.environ[STORE])
    claim, ack = store.claim, store.ack

    async def claim_and_tell(limit: int, **options: Any) -> Sequence[Lease]:
        before = time.monotonic()
        leases: Sequence[Lease] = await claim(limit, **options)
        times = {"before": before, "after": time.monotonic()}
        for one in leases:
            resource = json.loads(one.body)["events"][0]["resource"]["gid"]
            say(claimed=one.id, fence=one.fence, attempt=one.attempt, webhook=one.registration, gid=resource, **times)
        return leases

    async def ack_and_tell(lease: Lease) -> bool:
        say(acking=lease.id, fence=lease.fence, at=time.monotonic())
        done: bool = await ack(lease)
        say(acked=lease.id, fence=lease.fence, done=done)
        return done

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(handling)
        for event in delivery.events:
            say(handled=event.resource.gid)

    store.claim, store.ack = claim_and_tell, ack_and_tell
    async with store, Worker(store, handle, **options) as worker:
        say(ready=True)
        await worker.run(signals=(signal.SIGTERM,))


@define(eq=False)
class Machine:
    """One of these programs, running."""

    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(factory=list)
    """All lines so far."""
    _progress: asyncio.Event = field(factory=asyncio.Event)

    async def listen(self) -> None:
        """Read what it says until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):  # the last one of a process that is killed may be cut off
                self.said.append(json.loads(line))
            self._progress.set()
            self._progress.clear()

    async def says(self, word: str) -> Any:
        """Wait until it has said something of this kind, and return that."""
        while True:
            for line in self.said:
                if word in line:
                    return line[word]
            await self._progress.wait()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def end(self) -> None:
        """Let it go on, and wait until it has ended well."""
        self.go_on()
        assert await self.process.wait() == 0


@asynccontextmanager
async def machine(program: str, store: str, **options: Any) -> AsyncIterator[Machine]:
    """Run a program over the store at a URL while the block runs; it is killed at its end if it still runs."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, program, json.dumps(options)),
        cwd=ROOT,
        env=os.environ | {STORE: store},
        stdin=pipe,
        stdout=pipe,
    )
    running = Machine(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening


if __name__ == "__main__":
    programs: dict[str, Any] = {"receive": receive, "ensure": ensure, "work": work}
    asyncio.run(programs[sys.argv[1]](**json.loads(sys.argv[2])))
