"""What one run of the demo proved, and how it is written for people."""

from attrs import define, field, frozen
from rich.text import Text

__all__ = ["Check", "Summary"]


@frozen(kw_only=True)
class Check:
    """One thing the demo proves, or fails to."""

    id: str
    text: str
    ok: bool
    detail: str


@define(kw_only=True)
class Summary:
    """What there is to say about one run of the demo, filled in as it goes on."""

    webhooks: int = 0
    """How many were listed."""
    pages: int = 0
    changes: int = 0
    """How many were made; the filter holds some back."""
    deliveries: int = 0
    """Attempts to deliver them."""
    per_second: float = 0.0
    """Changes that arrived a second, from the first one made to the last one handled."""
    median_ms: float = 0.0
    """Milliseconds from sending a delivery to its 200."""
    seconds: float = 0.0
    """How long all of it took."""
    store: str = ""
    """Where the demo kept what must survive."""
    checks: list[Check] = field(factory=list)

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    def render(self, *, ascii_only: bool = False) -> Text:
        """Write it for people; *ascii_only*: the terminal knows nothing but ASCII."""
        passed, failed = ("ok", "FAILED") if ascii_only else ("✓", "✗")
        bad = sum(not check.ok for check in self.checks)
        figures = (
            (f"{self.webhooks:,}", f"webhooks listed over {self.pages} pages"),
            (f"{self.changes:,}", "changes of tasks in three projects"),
            (f"{self.deliveries:,}", "deliveries, some of them twice"),
            (f"{self.per_second:,.0f}", "changes a second delivered, stored and handled"),
            (f"{self.median_ms:.1f} ms", "to store and acknowledge a delivery"),
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
        conclusion = f"{bad} of {len(self.checks)} checks failed." if bad else f"All {len(self.checks)} checks hold."
        lines.append(Text(f"\n{conclusion} It took {self.seconds:.1f} s.", "bold red" if bad else "bold green"))
        lines.append(Text(f"Store: {self.store}", "dim"))
        return Text("\n").join(lines)
