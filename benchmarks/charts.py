"""Charts of the results, as SVG, each for a light and for a dark page."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import OURS, Comparison
from benchmarks.report import Report, Results, number

__all__ = ["draw"]


@frozen(kw_only=True)
class _Colours:
    text: str
    ours: str
    others: str


_PAGES: Final = {
    "light": _Colours(text="#1f2328", ours="#c2410c", others="#9aa4b2"),
    "dark": _Colours(text="#e6edf3", ours="#fb923c", others="#5b6675"),
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


def draw(results: Results, directory: Path) -> None:
    """Draw one chart per benchmark into a directory, ``<name>-light.svg`` and ``<name>-dark.svg``."""
    for name, report in results.reports.items():
        file_name = name.replace(" ", "-")
        for page, colours in _PAGES.items():
            _draw(report, colours, directory / f"{file_name}-{page}.svg")


def _draw(report: Report, colours: _Colours, path: Path) -> None:
    heights = [len(case.values) * _BAR + _MARGINS for case in report.cases]
    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for axes, case in zip(panels, report.cases, strict=True):
            _panel(axes, case, colours)
        figure.savefig(path, transparent=True, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.3)


def _panel(axes: Axes, case: Comparison, colours: _Colours) -> None:
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
