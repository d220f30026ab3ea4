"""The summary of one run of the demo, and its text form."""

from attrs import define, field, frozen
from rich.text import Text

__all__ = ["Check", "Summary"]


@frozen(kw_only=True)
class Check:
    """One check of the demo, passed or failed."""

    id: str
    text: str
    ok: bool
    detail: str


@define(kw_only=True)
class Summary:
    """The figures and checks of one run of the demo, filled in as it runs."""

    webhooks: int = 0  # listed
    pages: int = 0
    changes: int = 0
    """The number of changes made, including those that the filter blocks."""
    deliveries: int = 0
    """The number of delivery attempts for them."""
    per_second: float = 0.0
    """Changes handled per second, from making the first to handling the last."""
    median_ms: float = 0.0
    """The median time in milliseconds from sending a delivery to its 200."""
    seconds: float = 0.0
    """The duration of the whole run in seconds."""
    store: str = ""
    checks: list[Check] = field(factory=list)

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    def render(self, *, ascii_only: bool = False) -> Text:
        """Return the summary as text. With *ascii_only* it uses only ASCII characters."""
        passed, failed = ("ok", "FAILED") if ascii_only else ("✓", "✗")
        bad = sum(not check.ok for check in self.checks)
        figures = (
            (f"{self.webhooks:,}", f"webhooks listed in {self.pages} pages"),
            (f"{self.changes:,}", "task changes in three projects"),
            (f"{self.deliveries:,}", "deliveries, including duplicates"),
            (f"{self.per_second:,.0f}", "changes a second delivered, stored and handled"),
            (f"{self.median_ms:.1f} ms", "median time to store and acknowledge a delivery"),
        )
        lines = [
            Text("\nWhat happened", style="bold"),
            *(Text.assemble((f"{figure:>9}", "bold cyan"), f"  {text}") for figure, text in figures),
            Text("\nChecks", style="bold"),
        ]
        for check in self.checks:
            mark = (passed, "green") if check.ok else (failed, "bold red")
            detail = (check.detail, "dim" if check.ok else "red")
            lines.append(Text.assemble("  ", mark, f" {check.text:<47} ", detail))
        conclusion = f"{bad} of {len(self.checks)} checks failed." if bad else f"All {len(self.checks)} checks passed."
        lines.append(Text(f"\n{conclusion} It took {self.seconds:.1f} s.", "bold red" if bad else "bold green"))
        lines.append(Text(f"Store: {self.store}", "dim"))
        return Text("\n").join(lines)
