"""How competitors are compared: in turns, by the same work, by medians.

Figures of one machine move by tens of per cent from minute to minute, and ratios taken in the same minute do not. So
the rounds of all competitors of a case are interleaved, and what counts is the median of the ratios within a round.
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Final

from attrs import field, frozen

OURS: Final = "asana_webhooks"
"""What the competitor that is ours is called, alone or with more behind it."""


class UnequalWorkError(AssertionError):
    """The competitors of a case did not do the same."""


class SkippedError(Exception):
    """A benchmark cannot run on this machine; the text says why."""


@frozen(kw_only=True)
class Round:
    """What one round of one competitor came to."""

    value: float
    """In the unit of its case."""
    work: object
    """What was done; it must be equal for all competitors of a case."""
    extras: Mapping[str, float] = field(factory=dict)
    """What else is worth telling, by name with unit: ``{"p99 ms": 4.2}``."""


@frozen(kw_only=True)
class Goal:
    """What a competitor is to reach, against another one or as a number.

    Args:
        competitor: whose figure.
        against: the competitor it is divided by; ``None``: the figure itself is meant.
        extra: which of the `Round.extras` is meant; ``None``: the value.
    """

    competitor: str = OURS
    against: str | None = None
    extra: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        what = f"{self.competitor}, {self.extra}" if self.extra else self.competitor
        return f"{what}: {bound}" + (f" x {self.against}" if self.against else "")


@frozen(kw_only=True)
class Case:
    """One comparison: each competitor is called once a round."""

    name: str
    unit: str
    competitors: Mapping[str, Callable[[], Round]]
    reference: str
    """The competitor that the ratios are to."""
    more_is_better: bool = False
    is_series: bool = False
    """Whether the competitors are one thing in growing sizes, and shown in that order."""
    rounds: int = 7
    goals: Sequence[Goal] = ()


@frozen
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up one number per round."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


@frozen(kw_only=True)
class Verdict:
    """Whether a goal was reached."""

    goal: str
    value: float
    reached: bool


@frozen(kw_only=True)
class Comparison:
    """What came of a case; each mapping is by competitor."""

    name: str
    unit: str
    reference: str
    more_is_better: bool
    values: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    """To the reference, round by round."""
    extras: Mapping[str, Mapping[str, Spread]]
    verdicts: Sequence[Verdict]
    is_series: bool = False

    @property
    def names(self) -> Sequence[str]:
        """The competitors, in the order to show them in: the best first, or as they grow."""
        if self.is_series:
            return list(self.values)
        return sorted(self.values, key=lambda name: self.values[name].median, reverse=self.more_is_better)


def compare(case: Case) -> Comparison:
    """Run all the rounds of a case.

    Raises:
        UnequalWorkError: a competitor did something else than the reference.
    """
    rounds: dict[str, list[Round]] = {name: [] for name in case.competitors}
    for number in range(case.rounds):
        for name in _in_turn(list(case.competitors), number):
            gc.collect()
            rounds[name].append(case.competitors[name]())
        _check_work(case, {name: own[-1].work for name, own in rounds.items()})
    return Comparison(
        name=case.name,
        unit=case.unit,
        reference=case.reference,
        more_is_better=case.more_is_better,
        values={name: Spread.of([one.value for one in own]) for name, own in rounds.items()},
        ratios={name: Spread.of(_ratios(own, rounds[case.reference], None)) for name, own in rounds.items()},
        extras={
            name: {extra: Spread.of([one.extras[extra] for one in own]) for extra in own[0].extras}
            for name, own in rounds.items()
        },
        verdicts=[_judge(goal, rounds) for goal in case.goals],
        is_series=case.is_series,
    )


def _in_turn(names: list[str], number: int) -> list[str]:
    """Begin with another one each round, so that nobody always comes after the same."""
    start = number % len(names)
    return names[start:] + names[:start]


def _check_work(case: Case, works: Mapping[str, object]) -> None:
    expected = works[case.reference]
    for name, work in works.items():
        if work != expected:
            raise UnequalWorkError(f"{case.name}: {name} did {work!r:.300}, and {case.reference} {expected!r:.300}")


def _figure(one: Round, extra: str | None) -> float:
    return one.value if extra is None else one.extras[extra]


def _ratios(rounds: Sequence[Round], others: Sequence[Round], extra: str | None) -> list[float]:
    return [_figure(one, extra) / _figure(other, extra) for one, other in zip(rounds, others, strict=True)]


def _judge(goal: Goal, rounds: Mapping[str, Sequence[Round]]) -> Verdict:
    own = rounds[goal.competitor]
    if goal.against is None:
        value = median(_figure(one, goal.extra) for one in own)
    else:
        value = median(_ratios(own, rounds[goal.against], goal.extra))
    reached = (goal.at_most is None or value <= goal.at_most) and (goal.at_least is None or value >= goal.at_least)
    return Verdict(goal=str(goal), value=value, reached=reached)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that *share* (0 to 1) of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
