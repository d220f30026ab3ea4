"""Charts of the results that README shows, as SVG, each for a light and for a dark page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import OURS, Comparison
from benchmarks.report import Report, number

DRAWN: Final = ("one_request", "receiving", "growth")


class _Colours(NamedTuple):
    text: str
    ours: str
    others: str


_PAGES: Final = {
    "light": _Colours("#1f2328", "#c2410c", "#9aa4b2"),
    "dark": _Colours("#e6edf3", "#fb923c", "#5b6675"),
}

_SETTINGS: Final = {
    "svg.fonttype": "none",  # text stays text: small files, and sharp
    "svg.hashsalt": "asana_webhooks",  # the same results give the same file
    "font.family": "sans-serif",
    "font.size": 10,
}

_BAR: Final = 0.3
"""Inches a bar takes, and the margins around a panel below."""
_MARGINS: Final = 0.75


def draw(results: Mapping[str, Report], directory: Path) -> None:
    """Draw those of `DRAWN` that there are into a directory, ``<name>-light.svg`` and ``<name>-dark.svg``."""
    for name in DRAWN:
        if name in results:
            for page, colours in _PAGES.items():
                _draw(results[name], colours, directory / f"{name}-{page}.svg")


def _draw(report: Report, colours: _Colours, path: Path) -> None:
    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]
        if series := [case for case in report.cases if case.is_series]:
            units = list(dict.fromkeys(case.unit for case in series))
            figure = Figure(figsize=(8, 4 * len(units)), layout="constrained")
            for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
                _lines(axes, [case for case in series if case.unit == unit], colours)
        else:
            heights = [len(case.values) * _BAR + _MARGINS for case in report.cases]
            figure = Figure(figsize=(8, sum(heights)), layout="constrained")
            panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
            for axes, case in zip(panels, report.cases, strict=True):
                _bars(axes, case, colours)
        figure.savefig(path, transparent=True, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.3)


def _lines(axes: Axes, cases: Sequence[Comparison], colours: _Colours) -> None:
    """Draw a line for each case; the competitors' names begin with how much there is."""
    for case, style in zip(cases, ("-", "--", ":", "-."), strict=False):
        colour = colours.others if "by hand" in case.name else colours.ours
        amounts = [int(name.split()[0].replace(",", "")) for name in case.names]
        spreads = [case.values[name] for name in case.names]
        medians = [one.median for one in spreads]
        bars = [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
        axes.errorbar(amounts, medians, bars, fmt=f"o{style}", color=colour, elinewidth=1, label=case.name)
    title = f"{cases[0].unit}, beside so many registrations or deliveries"
    axes.set_title(title, loc="left", color=colours.text, fontsize=10)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda amount, _: f"{amount:,.0f}")
    axes.yaxis.set_major_formatter(lambda amount, _: f"{amount:,.0f}")
    axes.tick_params(colors=colours.text)
    axes.grid(color=colours.others, alpha=0.3)
    axes.legend(frameon=False, labelcolor=colours.text)
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, case: Comparison, colours: _Colours) -> None:
    better = "more" if case.more_is_better else "less"
    axes.set_title(f"{case.name}: {case.unit} ({better} is better)", loc="left", color=colours.text, fontsize=10)
    names = list(reversed(case.names))  # from the bottom up
    for place, name in enumerate(names):
        value = case.values[name]
        is_ours = name.startswith(OURS)
        axes.barh(place, value.median, color=colours.ours if is_ours else colours.others, height=0.7)
        axes.hlines(place, value.low, value.high, color=colours.text, linewidth=1)
        label = f" {number(value.median)}  ({case.ratios[name].median:.2f} x)"
        axes.text(max(value.median, value.high), place, label, va="center", color=colours.text)
    axes.set_yticks(range(len(names)), names, color=colours.text)
    axes.set_xticks([])
    axes.margins(x=0.25)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
