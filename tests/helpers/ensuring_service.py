"""A service as README has it, as a program of its own: ``python -m tests.helpers.ensuring_service OPTIONS``.

It ensures a webhook, prints what came of it, and handles events until its input ends; each is a line of output.
OPTIONS is JSON: ``path`` of the store and ``clock``, a file with the seconds by which its clock is ahead; ``token``,
``base_url``, ``wanted`` (arguments of `ensure_webhook`); ``port`` to serve a receiver there; ``dies_at``, a turn of the
event loop: the process kills itself there.
"""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from asana_webhooks import (
    AsanaSession,
    Delivery,
    Receiver,
    RegistrationClosedError,
    RetryPolicy,
    SQLiteStore,
    WebhookFilter,
    Worker,
    ensure_webhook,
)
from asana_webhooks.receiver.web import serve


def say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


async def handle(delivery: Delivery) -> None:
    for event in delivery.events:
        say("handled", event.resource.gid)


def count_turns(dies_at: int | None) -> list[int]:
    """Count the turns of the event loop, and die without warning in one of them."""
    loop: Any = asyncio.get_running_loop()
    select, turns = loop._selector.select, [0]

    def counted(timeout: float | None) -> Any:
        turns[0] += 1
        if turns[0] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return select(timeout)

    loop._selector.select = counted
    return turns


async def at_once(_: float) -> None: ...


async def main(options: dict[str, Any]) -> None:
    ahead = Path(options["clock"])
    store = SQLiteStore(options["path"], clock=lambda: time.time() + float(ahead.read_text()))
    retry = RetryPolicy(sleep=at_once)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(store)
        session = AsanaSession(options["token"], base_url=options["base_url"], retry=retry)
        asana = await stack.enter_async_context(session)
        worker = await stack.enter_async_context(Worker(store, handle))
        if options["port"]:
            await stack.enter_async_context(serve(Receiver(store), port=options["port"]))
        working = asyncio.create_task(worker.run())
        wanted = dict(options["wanted"])
        wanted["filters"] = [WebhookFilter(**one) for one in wanted.pop("filters", [])]
        turns = count_turns(options["dies_at"])
        ensured = None
        while ensured is None:
            try:
                ensured = await ensure_webhook(asana, store, **wanted)
            except RegistrationClosedError:  # the clock was set forward
                continue
        say("ensured", ensured.action, ensured.webhook_gid, turns[0])
        await asyncio.to_thread(sys.stdin.read)
        worker.stop()
        await working


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
