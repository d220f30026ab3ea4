"""``python -m benchmarks``: run all benchmarks, or those that are named.

Prints tables, and writes ``results.json`` and charts. Needs ``pip install -e '.[bench]'``; a Redis server takes part
if ``redis-server`` is installed.
"""

import datetime as dt
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from attrs import evolve
from cyclopts import App
from rich.console import Console

from benchmarks import charts
from benchmarks.harness import Benchmark, Size, compare
from benchmarks.report import Report, Results, load, missed, save, show, this_machine

BENCHMARKS: Final = (
    "one_request",
    "walk",
    "slow_walk",
    "decoding",
    "receiving",
    "putting",
    "working",
    "growth",
    "establishing",
    "starting",
    "memory",
)
"""The files, in the order they run."""

FOR_EACH_PYTHON: Final = ("decoding",)
"""Those that are worth repeating with another interpreter."""

HERE: Final = Path(__file__).parent

app = App(name="benchmarks", help=__doc__, version_flags=[])


@app.default
def main(
    *names: str,
    quick: bool = False,
    out: Path | None = None,
    also: Path | None = None,
) -> None:
    """Run benchmarks.

    Args:
        names: which; all of them by default.
        quick: only see that each of them runs, in under a minute in all; the figures mean nothing.
        out: the directory to write to; by default benchmarks/results, and nowhere with --quick.
        also: another Python with the same packages, to repeat `decoding` with.
    """
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if also is not None and not also.exists():
        sys.exit(f"there is no Python at {also}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    directory = out or (None if quick else HERE / "results")
    results = Results() if directory is None else load(directory / "results.json")
    fresh = Results()
    for name in names or BENCHMARKS:
        reports = [_run(name, Size(quick=quick))]
        if also is not None and name in FOR_EACH_PYTHON:
            reports.append(_run_elsewhere(name, also, quick=quick))
        for report in reports:
            show(report, console, judge=not quick)
            key = name if report.machine.python == this_machine().python else f"{name} on {report.machine.python}"
            fresh, results = fresh.with_report(key, report), results.with_report(key, report)
            if directory is not None:
                save(results, directory / "results.json")
    if directory is not None:
        charts.draw(results, directory)
    if not quick:
        for line in missed(fresh):
            console.print(f"[red]missed[/] {line}", highlight=False)


def _run(name: str, size: Size) -> Report:
    benchmark = cast("Benchmark", import_module(f"benchmarks.{name}"))
    began = time.monotonic()
    with benchmark.cases(size) as cases:
        compared = [compare(evolve(case, rounds=size.of(case.rounds, quick=1))) for case in cases]
    return Report(
        title=benchmark.TITLE,
        machine=this_machine(),
        taken_on=dt.datetime.now(dt.UTC).date().isoformat(),
        seconds=time.monotonic() - began,
        cases=compared,
    )


def _run_elsewhere(name: str, python: Path, *, quick: bool) -> Report:
    with tempfile.TemporaryDirectory() as directory:
        options: Sequence[str] = ["--quick"] if quick else []
        command = [str(python), "-m", "benchmarks", name, "--out", directory, *options]
        subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
        return load(Path(directory) / "results.json").reports[name]
