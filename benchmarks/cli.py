"""``python -m benchmarks``: run all benchmarks, or those that are named.

Prints tables, and writes ``results.json`` and charts. Needs ``pip install -e '.[bench]'``.
"""

import datetime as dt
import sys
import time
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from attrs import evolve
from cyclopts import App
from rich.console import Console

from benchmarks import charts
from benchmarks.harness import SkippedError, compare
from benchmarks.report import Report, load, missed, save, show, this_machine

Name = Literal[
    "one_request",
    "walk",
    "decoding",
    "receiving",
    "putting",
    "growth",
    "claims",
    "upkeep",
    "postgres",
    "establishing",
    "footprint",
]
"""The files, in the order they run. Each has a ``TITLE``, and ``cases``, which yields cases to run at once."""

app = App(name="benchmarks", help=__doc__, version_flags=[])


@app.default
def main(*names: Name, quick: bool = False, large: bool = False, out: Path | None = None) -> None:
    """Run benchmarks.

    Args:
        names: which; all of them by default.
        quick: only see that each of them runs, in under a minute in all; the figures mean nothing.
        large: also put beside ten million finished deliveries (PostgreSQL: one million); takes two minutes and 2 GB of
            disk more.
        out: the directory to write to; by default benchmarks/results, and nowhere with --quick.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    directory = out or (None if quick else Path(__file__).parent / "results")
    results = load(directory / "results.json") if directory is not None and names else {}
    chosen = names or get_args(Name)
    for name in chosen:
        try:
            results[name] = _run(name, quick=quick, large=large)
        except SkippedError as reason:
            console.print(f"[yellow]skipped[/] {name}: {reason}", highlight=False)
            continue
        show(results[name], console, judge=not quick)
        if directory is not None:
            save(results, directory / "results.json")
    if directory is not None:
        charts.draw(results, directory)
    if not quick:
        for line in missed({name: results[name] for name in chosen if name in results}):
            console.print(f"[red]missed[/] {line}", highlight=False)


def _run(name: str, *, quick: bool, large: bool) -> Report:
    benchmark = import_module(f"benchmarks.{name}")
    began = time.monotonic()
    sizes = {"quick": quick, "large": large} if name in {"growth", "postgres"} else {"quick": quick}
    with closing(benchmark.cases(**sizes)) as cases:
        compared = [compare(evolve(case, rounds=1 if quick else case.rounds)) for case in cases]
    return Report(
        title=benchmark.TITLE,
        machine=this_machine(),
        taken_on=dt.datetime.now(dt.UTC).date().isoformat(),
        seconds=time.monotonic() - began,
        cases=compared,
    )
