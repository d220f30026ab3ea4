"""Tables for people, and JSON for charts and for comparing runs."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import cattrs.preconf.json
from attrs import frozen
from rich.console import Console
from rich.table import Table

from benchmarks.harness import OURS, Comparison

_converter: Final = cattrs.preconf.json.make_converter()


@frozen(kw_only=True)
class Report:
    """What came of one benchmark."""

    title: str
    machine: Mapping[str, str]
    """Where it was measured."""
    taken_on: str
    """The day, as 2026-01-31."""
    seconds: float
    """How long it took."""
    cases: Sequence[Comparison]


@frozen
class Results:
    """What a file of results holds."""

    reports: dict[str, Report]
    """By the name of the benchmark."""


def this_machine() -> dict[str, str]:
    """Describe the machine this runs on, without its name."""
    libraries = {name: version(name) for name in ("aiohttp", "attrs", "cattrs", "msgspec", "yarl")}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "python": python,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        **libraries,
    }


def load(path: Path) -> dict[str, Report]:
    """Read reports by name; none if there is no such file."""
    return _converter.loads(path.read_text(encoding="utf-8"), Results).reports if path.exists() else {}


def save(reports: dict[str, Report], path: Path) -> None:
    """Write reports by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_converter.dumps(Results(reports), indent=1) + "\n", encoding="utf-8")


def show(report: Report, console: Console, *, judge: bool = True) -> None:
    """Print a table for each case of a benchmark; *judge*: also whether its goals were reached."""
    console.rule(f"{report.title} ({report.seconds:.0f} s, {report.machine['python']})")
    for case in report.cases:
        console.print(_table(case))
        if judge:
            for verdict in case.verdicts:
                mark = "[green]reached[/]" if verdict.reached else "[red]missed[/]"
                console.print(f"  {mark} {verdict.goal}: {verdict.value:.3g}", highlight=False)


def _table(case: Comparison) -> Table:
    extras = list(dict.fromkeys(name for own in case.extras.values() for name in own))
    table = Table(title=f"{case.name}, {case.unit}", title_justify="left")
    table.add_column("")
    for heading in ("median", "quartiles", f"x {case.reference}", *extras):
        table.add_column(heading, justify="right")
    for name in case.names:
        value, ratio = case.values[name], case.ratios[name]
        own = case.extras.get(name, {})
        cells = [number(value.median), f"{number(value.low)} - {number(value.high)}", f"{ratio.median:.2f}"]
        others = [number(own[extra].median) if extra in own else "" for extra in extras]
        table.add_row(name, *cells, *others, style="bold" if name.startswith(OURS) else None)
    return table


def number(value: float) -> str:
    """Write a figure with three digits, or as an integer."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def missed(reports: Mapping[str, Report]) -> Iterator[str]:
    """Yield a line for each goal that was not reached."""
    for name, report in reports.items():
        for case in report.cases:
            for verdict in case.verdicts:
                if not verdict.reached:
                    yield f"{name}, {case.name}: {verdict.goal} (it is {verdict.value:.3g})"
