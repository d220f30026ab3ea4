"""The demo on the screen: from the options of its command to the exit status."""

import json as json_module
import sys
import time

import attrs
from rich.console import Console

from asana_webhooks.cli.demo import choose_store, run_demo
from asana_webhooks.cli.report import summarize
from asana_webhooks.cli.show import render, watch_on
from asana_webhooks.store import open_store

__all__ = ["show_demo"]


async def show_demo(store: str | None, *, json: bool) -> int:
    """Run the demo, show how far it is and what it proved, and return the exit status.

    Args:
        store: where to keep things, as `choose_store` takes it.
        json: print nothing but the summary, as one JSON object.

    Raises:
        AsanaError: as `run_demo` does.
    """
    console = Console(stderr=json)
    began_at = time.monotonic()
    with choose_store(store) as used, watch_on(console, quiet=json and not console.is_terminal) as watch:
        async with open_store(used.url) as opened:
            samples = await run_demo(opened, watch)
    summary = summarize(samples, store=used, seconds=time.monotonic() - began_at)
    if json:
        sys.stdout.write(json_module.dumps(attrs.asdict(summary), indent=2) + "\n")
    else:
        console.print(render(summary, ascii_only=console.options.ascii_only), soft_wrap=True)
    return 0 if summary.ok else 1
