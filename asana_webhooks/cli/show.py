"""What the demo puts on the screen: progress while it runs, the summary afterwards."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from asana_webhooks.cli.report import Check, StoreUsed, Summary
from asana_webhooks.cli.samples import Refusal

__all__ = ["Watch", "render", "watch_on"]

_STAGE_WIDTH: Final = 34
_CHECK_WIDTH: Final = 47


class Watch(Protocol):
    """Who wants to know how far the demo is."""

    def stage(self, text: str) -> None:
        """The next part begins."""

    def arrived(self, count: int, of: int) -> None:
        """So many changes have arrived."""


@contextmanager
def watch_on(console: Console, *, quiet: bool = False) -> Iterator[Watch]:
    """Show progress: live on a terminal, line by line elsewhere, or not at all if *quiet*."""
    if quiet:
        yield _Silent()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        bar = BarColumn(bar_width=24)  # with the texts beside it, 80 columns are enough
        columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), TextColumn("changes"))
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bar(progress, progress.add_task("starting", total=None))


class _Silent:
    def stage(self, text: str) -> None:
        pass

    def arrived(self, count: int, of: int) -> None:
        pass


@frozen
class _Lines:
    _console: Console

    def stage(self, text: str) -> None:
        self._console.print(f"{text} ...", markup=False, highlight=False, soft_wrap=True)

    def arrived(self, count: int, of: int) -> None:
        pass


@frozen
class _Bar:
    _progress: Progress
    _task: TaskID

    def stage(self, text: str) -> None:
        self._progress.update(self._task, description=f"{text:<{_STAGE_WIDTH}}")

    def arrived(self, count: int, of: int) -> None:
        self._progress.update(self._task, completed=count, total=of)


def render(summary: Summary, *, ascii_only: bool = False) -> Text:
    """Write the summary for people.

    Args:
        summary: what there is to say.
        ascii_only: whether the terminal knows nothing but ASCII.
    """
    lines = [
        Text("\nWhat happened", style="bold"),
        *_numbers(summary),
        Text("\nRefused, as it must be" if all(one.ok for one in summary.refused) else "\nRefused?", style="bold"),
        *(_refusal(one, times) for one, times in Counter(summary.refused).items()),
        Text("\nChecks", style="bold"),
        *(_check(one, ascii_only=ascii_only) for one in summary.checks),
        Text(),
        _verdict(summary),
        Text(f"Store: {_place(summary.store)}", style="dim"),
    ]
    return Text("\n").join(lines)


def _numbers(summary: Summary) -> Iterator[Text]:
    changes, deliveries, latency = summary.changes, summary.deliveries, summary.acknowledgement_ms
    yield _number(
        f"{changes.made:,}", f"changes: {changes.wanted:,} had to arrive, the filter holds {changes.filtered:,} back"
    )
    yield _number(
        f"{deliveries.sent:,}",
        f"deliveries: {deliveries.duplicates:,} of them came twice, {deliveries.retries:,} came again after a refusal",
    )
    yield _number(
        f"{changes.per_second:,.0f}", f"changes a second arrived and were handled, over {changes.seconds:.2f} s"
    )
    if latency is not None:
        yield _number(
            f"{latency.p50:.1f} ms",
            f"to store and acknowledge a delivery (p50; p99: {latency.p99:.1f} ms)",
        )
    yield _number(
        f"{summary.webhooks.listed:,}",
        f"webhooks listed over {summary.webhooks.pages} pages, {summary.webhooks.established} of them ours",
    )


def _number(number: str, text: str) -> Text:
    return Text.assemble((f"{number:>9}", "bold cyan"), f"  {text}")


def _refusal(one: Refusal, times: int) -> Text:
    often = f" ({times} times)" if times > 1 else ""
    status = "none" if one.status is None else str(one.status)
    return Text.assemble((f"{status:>9}", "yellow" if one.ok else "bold red"), f"  {one.what}: {one.why}{often}")


def _check(check: Check, *, ascii_only: bool) -> Text:
    passed, failed = ("ok", "FAILED") if ascii_only else ("✓", "✗")
    mark = (passed, "green") if check.ok else (failed, "bold red")
    return Text.assemble("  ", mark, f" {check.text:<{_CHECK_WIDTH}} ", (check.detail, "dim" if check.ok else "red"))


def _verdict(summary: Summary) -> Text:
    failed = sum(not check.ok for check in summary.checks)
    if failed:
        return Text(
            f"{failed} of {len(summary.checks)} checks failed. It took {summary.seconds:.1f} s.", style="bold red"
        )
    return Text(f"All {len(summary.checks)} checks hold. It took {summary.seconds:.1f} s.", style="bold green")


def _place(store: StoreUsed) -> str:
    if store.url == "memory:":
        return "in memory"
    return f"{store.url} (kept)" if store.kept else "SQLite, in a temporary folder that is gone now"
