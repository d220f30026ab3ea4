"""What the demo's samples prove: counts, percentiles, checks, and how they are written."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.cli.plan import FILTER, FILTERED_PROJECT, PROJECTS, plan_changes
from asana_webhooks.cli.report import StoreUsed, Summary, percentile, summarize
from asana_webhooks.cli.samples import Occurrence, Refusal, Samples
from asana_webhooks.cli.show import render
from asana_webhooks.models import Change, Delivery, Event, ResourceRef
from asana_webhooks.testing import DeliveryRecord

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
STORE = StoreUsed(url="sqlite:////srv/x/demo.db", kept=False)


def occurrence(number: int) -> Occurrence:
    return Occurrence(project="1", resource=str(number), action="changed", field="name", created_at=NOW)


def record(**members: Any) -> DeliveryRecord:
    usual: dict[str, Any] = {"webhook_gid": "9", "body": b"", "events": 1, "signature": "", "sent_at": NOW}
    return DeliveryRecord(**usual | {"status": 200, "seconds": 0.002} | members)


def refusal(status: int | None, expected: int = 401) -> Refusal:
    return Refusal(what="something", why="some reason", status=status, expected=expected)


def good(**members: Any) -> Samples:
    """Samples of a run in which everything held: three wanted, one filtered, one duplicate, one spoiled."""
    samples = Samples(
        echoed=1,
        established=1,
        existing=["5", "9"],
        listed=["9", "5"],
        pages=1,
        filter_kept=True,
        wanted=[occurrence(1), occurrence(2), occurrence(3)],
        filtered=[occurrence(4)],
        arrived=[occurrence(1), occurrence(2), occurrence(3)],
        fingerprints=Counter({"a": 1, "b": 1, "c": 1}),
        handled=3,
        began_at=10.0,
        last_handled_at=12.0,
        deliveries=[
            record(events=0, heartbeat=True),
            record(),
            record(duplicate=True),
            record(status=401, forged=True),
            record(status=401, forged=True),
            record(retry=True, seconds=0.010),
            record(),
        ],
        forgeries=[refusal(401), refusal(401)],
        strangers=[refusal(401)],
        late=[refusal(404, 404)],
        secret_kept=True,
        deliveries_before_attack=3,
    )
    return evolve(samples, **members)


def judge(samples: Samples) -> Summary:
    return summarize(samples, store=STORE, seconds=1.23456)


def failed(summary: Summary) -> set[str]:
    return {check.id for check in summary.checks if not check.ok}


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_of_a_hundred(percent: float, expected: int) -> None:
    """Of the numbers from 1 to 100, the percentile p is p, whatever order they come in."""
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_percentile_of_one() -> None:
    """A single value is every percentile."""
    assert [percentile([7.0], percent) for percent in (0, 50, 99, 100)] == [7.0] * 4


@given(values=st.lists(st.floats(0, 1e6), min_size=1), percent=st.floats(0, 100))
def test_percentile_is_enough(values: list[float], percent: float) -> None:
    """A percentile is one of the values, and at least that share of them is not above it."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9


def test_a_good_run() -> None:
    """A run in which everything held is counted and passes every check."""
    summary = judge(good())
    assert summary.ok
    assert failed(summary) == set()
    assert (summary.changes.made, summary.changes.wanted, summary.changes.arrived) == (4, 3, 3)
    assert (summary.changes.seconds, summary.changes.per_second) == (2.0, 1.5)
    assert (summary.deliveries.sent, summary.deliveries.accepted, summary.deliveries.handled) == (4, 4, 3)
    assert (summary.deliveries.duplicates, summary.deliveries.retries, summary.deliveries.heartbeats) == (1, 1, 1)
    latency = summary.acknowledgement_ms
    assert latency is not None
    assert (latency.p50, latency.p99, latency.longest) == (2.0, 10.0, 10.0)
    assert [one.status for one in summary.refused] == [401, 401, 401, 404]
    assert summary.seconds == 1.235


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param({"echoed": 0}, "established", id="a handshake was not echoed"),
        pytest.param({"echoed": 0, "established": 0}, "established", id="no webhook"),
        pytest.param({"listed": ["9"]}, "pages", id="a webhook is missing in the list"),
        pytest.param({"listed": ["9", "5", "5"]}, "pages", id="a webhook is listed twice"),
        pytest.param({"listed": [], "existing": []}, "pages", id="nothing was listed"),
        pytest.param({"arrived": [occurrence(1), occurrence(2)]}, "arrived", id="a change is missing"),
        pytest.param({"fingerprints": Counter({"a": 2})}, "once", id="a change came twice"),
        pytest.param(
            {"arrived": [occurrence(number) for number in (1, 2, 3, 99)]}, "unexpected", id="an unknown change came"
        ),
        pytest.param({"filter_kept": False}, "filter", id="the filter was not kept"),
        pytest.param({"filtered": []}, "filter", id="the filter had nothing to do"),
        pytest.param({"handled": 4}, "duplicates", id="a duplicate was handled"),
        pytest.param({"strangers": [refusal(200)]}, "secret", id="the stranger was accepted"),
        pytest.param({"stranger_echoed": True}, "secret", id="the stranger's secret was echoed"),
        pytest.param({"secret_kept": False}, "secret", id="the secret is another one"),
        pytest.param({"strangers": []}, "secret", id="no stranger came"),
        pytest.param({"forgeries": [refusal(401), refusal(200)]}, "forgeries", id="a forgery was accepted"),
        pytest.param({"forgeries": [refusal(None)]}, "forgeries", id="a forgery was not answered"),
        pytest.param({"forgeries": []}, "forgeries", id="no forgery was tried"),
        pytest.param({"late": [refusal(200, 404)]}, "late", id="a deleted webhook still delivers"),
        pytest.param({"late": []}, "late", id="nothing came after the end"),
        pytest.param({"deliveries_before_attack": 7}, "afterwards", id="nothing was delivered after the attacks"),
    ],
)
def test_each_check_can_fail(members: dict[str, Any], expected: str) -> None:
    """One thing that went wrong fails the check that is about it, and with it the run."""
    summary = judge(good(**members))
    assert failed(summary) == {expected}
    assert not summary.ok


def test_what_the_filter_had_to_hold_back_arrived() -> None:
    """A change that the filter let through is unexpected, and the filter's fault."""
    samples = good()
    samples.arrived.append(occurrence(4))
    assert failed(judge(samples)) == {"unexpected", "filter"}


def test_nothing_at_all() -> None:
    """An empty run proves nothing: nearly every check fails, and there are no times to show."""
    summary = judge(Samples())
    assert not summary.ok
    assert summary.acknowledgement_ms is None
    assert summary.changes.per_second == 0
    assert failed(summary) == {check.id for check in summary.checks} - {"once", "unexpected"}


def test_no_duplicates_no_retries() -> None:
    """If the fake sent nothing twice and nothing again, the run does not claim that these work."""
    samples = good(deliveries=[record(), record(), record()], deliveries_before_attack=0)
    assert failed(judge(samples)) == {"duplicates", "retried"}


def test_occurrences_meet() -> None:
    """The change the fake returned and the event the worker got are the same occurrence."""
    tree = {
        "action": "changed",
        "resource": {"gid": "7", "resource_type": "task"},
        "created_at": "2026-01-02T03:04:05.678Z",
        "change": {"field": "due_on", "action": "changed"},
    }
    event = Event(action="changed", resource=ResourceRef(gid="7"), created_at=NOW, change=Change(field="due_on"))
    delivery = Delivery(
        id=1, registration="r", webhook_gid="9", resource="1", received_at=NOW, attempt=1, events=(event,), body=b""
    )
    assert Occurrence.made("1", tree) == Occurrence.received(delivery, event)
    del tree["change"]
    assert Occurrence.made("1", tree) == Occurrence.received(delivery, evolve(event, change=None))


def test_plan() -> None:
    """The plan spreads its changes evenly, and only the filtered project keeps some of them back."""
    plan = plan_changes(1_000)
    counts = Counter(one.project for one in plan)
    assert sum(one.arrives for one in plan) == 1_000
    assert plan[-1].arrives
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {one.project for one in plan if not one.arrives} == {FILTERED_PROJECT}
    assert {one.field for one in plan if one.project == FILTERED_PROJECT and one.arrives} == set(FILTER.fields or ())
    assert {one.on for one in plan} == {"task", "new task", "project"}
    assert set(counts) == set(PROJECTS)


def test_summary_for_people() -> None:
    """The summary shows the numbers, what was refused with its status, and a mark for every check."""
    summary = judge(good())
    text = render(summary).plain
    assert text.count("✓") == len(summary.checks)
    assert "✗" not in text
    assert "p99: 10.0 ms" in text
    assert "401  something: some reason (3 times)" in text
    assert "404  something: some reason\n" in text
    assert "All 12 checks hold. It took 1.2 s." in text
    assert text.endswith("a temporary folder that is gone now")
    assert max(map(len, text.splitlines())) <= 80


def test_failures_for_people() -> None:
    """A failed check is marked, and the verdict counts it; what was not answered says so."""
    text = render(judge(good(forgeries=[refusal(None)]))).plain
    assert "✗ forged deliveries were refused" in text
    assert "no answer" in text
    assert "none  something" in text
    assert "1 of 12 checks failed" in text


def test_summary_without_times() -> None:
    """Without a single accepted delivery there is no line about times."""
    assert " ms " not in render(judge(Samples())).plain


def test_summary_in_ascii() -> None:
    """A terminal that knows ASCII alone gets words in place of marks."""
    summary = judge(good(secret_kept=False))
    text = render(summary, ascii_only=True).plain
    assert text.isascii()
    assert "FAILED a stranger could not replace the secret" in text
    assert text.count("  ok ") == len(summary.checks) - 1


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (StoreUsed(url="memory:", kept=False), "Store: in memory"),
        (StoreUsed(url="sqlite:///demo.db", kept=True), "Store: sqlite:///demo.db (kept)"),
    ],
)
def test_where_the_store_is(store: StoreUsed, expected: str) -> None:
    """The last line says where the store is, and whether it was kept."""
    assert render(evolve(judge(good()), store=store)).plain.endswith(expected)
