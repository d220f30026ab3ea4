"""What the demo observed, and what that proves: samples in, summary out. Decisions only."""

import math
from collections.abc import Sequence

from attrs import frozen

from asana_webhooks.cli.samples import Refusal, Samples
from asana_webhooks.testing import DeliveryRecord

__all__ = [
    "Changes",
    "Check",
    "Deliveries",
    "Latency",
    "Listing",
    "StoreUsed",
    "Summary",
    "percentile",
    "summarize",
]


@frozen(kw_only=True)
class Check:
    """One thing the demo proves, or fails to."""

    id: str
    text: str
    ok: bool
    detail: str


@frozen(kw_only=True)
class Changes:
    """Changes, counted."""

    made: int
    wanted: int
    arrived: int
    """How many of those wanted arrived."""
    missing: int
    twice: int
    filtered: int
    """How many the filter had to keep back."""
    unexpected: int
    """How many arrived that must not."""
    seconds: float
    """From the first change made to the last delivery handled."""
    per_second: float
    """Those that arrived, over these seconds."""


@frozen(kw_only=True)
class Deliveries:
    """Attempts to deliver, counted."""

    sent: int
    accepted: int
    duplicates: int
    retries: int
    heartbeats: int
    handled: int
    """By the worker."""


@frozen(kw_only=True)
class Latency:
    """Milliseconds from sending a delivery to its answer."""

    p50: float
    p99: float
    longest: float


@frozen(kw_only=True)
class Listing:
    """The walk over all webhooks, counted."""

    established: int
    listed: int
    pages: int


@frozen(kw_only=True)
class StoreUsed:
    """Where the demo kept what must survive."""

    url: str
    kept: bool
    """False: it is gone now."""


@frozen(kw_only=True)
class Summary:
    """What there is to say about one run of the demo."""

    ok: bool
    changes: Changes
    deliveries: Deliveries
    acknowledgement_ms: Latency | None
    """``None`` if no delivery was accepted."""
    webhooks: Listing
    refused: tuple[Refusal, ...]
    checks: tuple[Check, ...]
    store: StoreUsed
    seconds: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that at least *percent* of them do not exceed (the nearest rank)."""
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def summarize(samples: Samples, *, store: StoreUsed, seconds: float) -> Summary:
    """Judge one run.

    Args:
        samples: what was observed.
        store: the store it ran on.
        seconds: how long all of it took.
    """
    changes, deliveries = _count_changes(samples), _count_deliveries(samples)
    checks = (*_check_webhooks(samples), *_check_changes(samples, changes, deliveries), *_check_attacks(samples))
    return Summary(
        ok=all(check.ok for check in checks),
        changes=changes,
        deliveries=deliveries,
        acknowledgement_ms=_latency(samples.deliveries),
        webhooks=Listing(established=samples.established, listed=len(samples.listed), pages=samples.pages),
        refused=samples.refused,
        checks=checks,
        store=store,
        seconds=round(seconds, 3),
    )


def _count_changes(samples: Samples) -> Changes:
    wanted, arrived = set(samples.wanted), set(samples.arrived)
    seconds = max(samples.last_handled_at - samples.began_at, 0.0)
    return Changes(
        made=len(samples.wanted) + len(samples.filtered),
        wanted=len(samples.wanted),
        arrived=len(wanted & arrived),
        missing=len(wanted - arrived),
        twice=sum(count - 1 for count in samples.fingerprints.values()),
        filtered=len(samples.filtered),
        unexpected=len(arrived - wanted),
        seconds=round(seconds, 3),
        per_second=round(len(wanted & arrived) / seconds, 1) if seconds else 0.0,
    )


def _count_deliveries(samples: Samples) -> Deliveries:
    true = [one for one in samples.deliveries if not (one.forged or one.heartbeat)]
    return Deliveries(
        sent=len(true),
        accepted=sum(_accepted(one) for one in true),
        duplicates=sum(one.duplicate for one in true),
        retries=sum(one.retry for one in true),
        heartbeats=sum(one.heartbeat and _accepted(one) for one in samples.deliveries),
        handled=samples.handled,
    )


def _accepted(delivery: DeliveryRecord) -> bool:
    return delivery.status == 200


def _latency(deliveries: Sequence[DeliveryRecord]) -> Latency | None:
    times = [one.seconds * 1000 for one in deliveries if _accepted(one) and not one.heartbeat]
    if not times:
        return None
    return Latency(
        p50=round(percentile(times, 50), 2), p99=round(percentile(times, 99), 2), longest=round(max(times), 2)
    )


def _check_webhooks(samples: Samples) -> tuple[Check, ...]:
    return (
        Check(
            id="established",
            text="every webhook was established with a handshake",
            ok=0 < samples.established == samples.echoed,
            detail=f"{samples.echoed} of {samples.established}",
        ),
        Check(
            id="pages",
            text="every webhook was listed, none twice",
            ok=bool(samples.listed) and sorted(samples.listed) == sorted(samples.existing),
            detail=f"{len(samples.listed)} of {len(samples.existing)}, on {samples.pages} pages",
        ),
    )


def _check_changes(samples: Samples, changes: Changes, deliveries: Deliveries) -> tuple[Check, ...]:
    stored_once = deliveries.handled == deliveries.accepted - deliveries.duplicates
    dropped = len(set(samples.filtered) - set(samples.arrived))
    return (
        Check(
            id="arrived",
            text="every change that had to arrive arrived",
            ok=0 < changes.wanted == changes.arrived,
            detail=f"{changes.arrived:,} of {changes.wanted:,}",
        ),
        Check(
            id="once",
            text="none arrived twice",
            ok=changes.twice == 0,
            detail=f"{changes.twice:,} twice, by fingerprint",
        ),
        Check(
            id="unexpected",
            text="nothing else arrived",
            ok=changes.unexpected == 0,
            detail=f"{changes.unexpected:,} unexpected",
        ),
        Check(
            id="filter",
            text="the filter that was set holds the rest back",
            ok=samples.filter_kept and 0 < dropped == changes.filtered,
            detail=f"{dropped:,} of {changes.filtered:,}",
        ),
        Check(
            id="duplicates",
            text="deliveries that came twice were kept once",
            ok=deliveries.duplicates > 0 and stored_once,
            detail=f"{deliveries.duplicates:,} duplicates, {deliveries.handled:,} handled",
        ),
        Check(
            id="retried",
            text="what was spoiled on its way came again",
            ok=any(one.retry and _accepted(one) for one in samples.deliveries),
            detail=f"{deliveries.retries:,} sent again",
        ),
    )


def _check_attacks(samples: Samples) -> tuple[Check, ...]:
    afterwards = samples.deliveries[samples.deliveries_before_attack :]
    accepted = sum(_accepted(one) and not one.forged for one in afterwards)
    return (
        _check_refused("forgeries", "forged deliveries were refused", samples.forgeries),
        Check(
            id="secret",
            text="a stranger could not replace the secret",
            ok=_all_refused(samples.strangers) and not samples.stranger_echoed and samples.secret_kept,
            detail=f"{_statuses(samples.strangers)}, secret {'unchanged' if samples.secret_kept else 'CHANGED'}",
        ),
        Check(
            id="afterwards",
            text="true deliveries went on working",
            ok=accepted > 0,
            detail=f"{accepted:,} accepted afterwards",
        ),
        _check_refused("late", "deleted webhooks deliver no more", samples.late),
    )


def _check_refused(id: str, text: str, refusals: Sequence[Refusal]) -> Check:
    return Check(id=id, text=text, ok=_all_refused(refusals), detail=_statuses(refusals))


def _all_refused(refusals: Sequence[Refusal]) -> bool:
    return bool(refusals) and all(one.ok for one in refusals)


def _statuses(refusals: Sequence[Refusal]) -> str:
    return ", ".join("no answer" if one.status is None else str(one.status) for one in refusals) or "not tried"
