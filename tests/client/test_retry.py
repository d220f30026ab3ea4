"""The decision, row by row, and the bounds of waiting."""

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import assume, example, given
from hypothesis import strategies as st

from asana_webhooks.client import retry
from asana_webhooks.client.retry import Decision, Outcome, RetryPolicy, parse_retry_after
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.wire import ErrorDetail

COLUMNS: Final = {
    "get, list": ("getWebhook", "getWebhooks"),
    "update": ("updateWebhook",),
    "delete": ("deleteWebhook",),
    "create": ("createWebhook",),
}
OPERATIONS: Final = [operation for operations in COLUMNS.values() for operation in operations]

# What follows from an attempt while time, attempts and budget are left. "Maybe done" is whether an earlier sending of
# the same call may have been executed. The rule behind it: only a create must not be sent again once it may have been
# executed, and whatever then comes of another copy of it says nothing about the first.
TABLE = """
what came of it                  maybe done   get, list   update      delete      create

answered                         no           succeeded   succeeded   succeeded   succeeded
answered                         yes          succeeded   succeeded   succeeded   succeeded
paused                           no           again       again       again       again
paused                           yes          again       again       again       unknown
not_sent                         no           again       again       again       again
not_sent                         yes          again       again       again       unknown
lost                             no           again       again       again       unknown
lost                             yes          again       again       again       unknown
429                              no           again       again       again       again
429                              yes          again       again       again       unknown
500 502 503 504 529 599          no           again       again       again       unknown
500 502 503 504 529 599          yes          again       again       again       unknown
600 999 0 99 100 101 199         no           again       again       again       unknown
600 999 0 99 100 101 199         yes          again       again       again       unknown
malformed-200 malformed-201      no           again       again       succeeded   unknown
malformed-200 malformed-201      yes          again       again       succeeded   unknown
mistyped-200 mistyped-201        no           raise       raise       succeeded   unknown
mistyped-200 mistyped-201        yes          raise       raise       succeeded   unknown
401-renewable                    no           renew       renew       renew       renew
401-renewable                    yes          renew       renew       renew       unknown
401                              no           raise       raise       raise       raise
401                              yes          raise       raise       raise       unknown
404                              no           raise       raise       raise       raise
404                              yes          raise       raise       succeeded   unknown
400 402 403                      no           raise       raise       raise       raise
400 402 403                      yes          raise       raise       raise       unknown
403-duplicate 400-target         no           raise       raise       raise       raise
403-duplicate 400-target         yes          raise       raise       raise       unknown
405 408 410 412 424 428 451 499  no           raise       raise       raise       raise
405 408 410 412 424 428 451 499  yes          raise       raise       raise       unknown
300 301 302 303 304 307 308      no           raise       raise       raise       raise
300 301 302 303 304 307 308      yes          raise       raise       raise       unknown
"""

Key = tuple[str, bool, str]


def outcome_named(name: str) -> Outcome:
    word, _, more = name.partition("-")
    match word, more:
        case "malformed" | "mistyped", status:
            return Outcome(kind="garbled", status=int(status), malformed=word == "malformed")
        case "paused", _:
            return Outcome(kind="paused", status=429, retry_after=2.0)
        case "answered" | "not_sent" | "lost", _:
            return Outcome(kind=word)
        case status, "duplicate" | "target":
            return Outcome(kind="refused", status=int(status), refusal=more)
    return Outcome(kind="refused", status=int(word))


def table() -> dict[Key, str]:
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in TABLE.strip().splitlines() if line]
    assert head[2:] == list(COLUMNS)
    return {
        (name, row[1] == "yes", operation): action
        for row in rows
        for name in row[0].split(" ")
        for column, action in zip(COLUMNS, row[2:], strict=True)
        for operation in COLUMNS[column]
    }


WANTED = table()
AGAIN = sorted(key for key, action in WANTED.items() if action == "again")
CHANCES = st.floats(0, 1)
RETRY_AFTERS = st.none() | st.floats(0, 1e6)


def decide(name: str | Outcome, operation: str = "getWebhook", **changes: Any) -> Decision:
    """Ask for the decision while there is enough of everything; *changes* may be the policy's too."""
    names = {one.name for one in RetryPolicy.__attrs_attrs__}
    policy: dict[str, Any] = {"random": lambda: 0.0} | {one: changes.pop(one) for one in list(changes) if one in names}
    left = changes.pop("left", 100)
    options: dict[str, Any] = {
        "attempt": 1,
        "refusals": 1,
        "maybe_done": False,
        "renewable": False,
        "pause_left": 0.0,
        "time_left": 60.0,
        "slot_time_left": 60.0,
    }
    outcome = name
    if isinstance(name, str):
        outcome = outcome_named(name)
        options["renewable"] = name.endswith("-renewable")
    return retry.decide(
        operation,
        outcome,  # type: ignore[arg-type]
        **(options | changes),
        budget=left,
        policy=RetryPolicy(**policy),
    )


class TestTable:
    def test_table_is_complete(self) -> None:
        """The table has every operation against every kind of outcome, repeated or not, and no row twice."""
        names = {name for name, _, _ in WANTED}
        kinds = {"answered", "not_sent", "lost", "refused", "garbled", "paused"}
        listed = [(name, line[33:36]) for line in TABLE.splitlines()[3:] for name in line[:33].split()]

        assert set(WANTED) == set(product(names, (False, True), OPERATIONS))
        assert {outcome_named(name).kind for name in names} == kinds
        assert len(listed) == len(set(listed)) == 2 * len(names)

    @pytest.mark.parametrize(("name", "maybe_done"), sorted({key[:2] for key in WANTED}))
    def test_table(self, name: str, maybe_done: bool) -> None:
        """Each row holds for the first attempt while there is time and budget."""
        said = {operation: decide(name, operation, maybe_done=maybe_done).action for operation in OPERATIONS}

        assert said == {operation: WANTED[name, maybe_done, operation] for operation in OPERATIONS}

    @pytest.mark.parametrize("maybe_done", [False, True])
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_every_status(self, operation: str, maybe_done: bool) -> None:
        """A status the table does not name is decided like its hundred; what HTTP does not know is decided like 500."""
        named = {int(name) for name, _, _ in WANTED if name.isdigit()}
        for status in set(range(1000)) - set(range(200, 300)) - named:
            alike = {3: "300", 4: "405"}.get(status // 100, "500")
            said = decide(Outcome(kind="refused", status=status), operation, maybe_done=maybe_done)
            assert said.action == WANTED[alike, maybe_done, operation], status

    @given(
        st.sampled_from(sorted(WANTED)),
        RETRY_AFTERS,
        st.fixed_dictionaries(
            {
                "attempt": st.integers(1, 10),
                "refusals": st.integers(1, 10),
                "time_left": st.floats(-10, 100),
                "slot_time_left": st.floats(-10, 100),
                "left": st.integers(0, 200),
                "pause_left": st.just(0.0) | st.floats(0, 50),
                "random": CHANCES.map(lambda chance: lambda: chance),
            }
        ),
    )
    def test_bounds_only_ever_turn_again_into_raise(
        self, key: Key, retry_after: float | None, bounds: dict[str, Any]
    ) -> None:
        """Neither numbers of attempts, nor time, budget, chance or Retry-After change any other decision."""
        name, maybe_done, operation = key
        outcome = evolve(outcome_named(name), retry_after=retry_after)
        renewable = name.endswith("-renewable")
        said = decide(outcome, operation, maybe_done=maybe_done, renewable=renewable, **bounds)

        if WANTED[key] == "again":
            assert said.action in {"again", "raise"}
        else:
            cost = -1 if WANTED[key] == "succeeded" else 0
            assert evolve(said, pause=0.0) == Decision(WANTED[key], cost=cost)  # type: ignore[arg-type]
        if said.action == "again":
            assert 0 <= said.wait - said.paused < bounds["time_left"]
            assert 0 <= said.paused < max(bounds["slot_time_left"], 1e-9)
            assert 0 <= said.cost <= bounds["left"]
            assert said.reason == ""
        else:
            assert said.wait == 0
            assert said.cost <= 0
            assert bool(said.reason) == (WANTED[key] == "again")

    def test_create_is_repeated_only_when_nothing_can_have_been_created(self) -> None:
        """Of all outcomes only four kinds let createWebhook be sent again, each only while nothing was done before."""
        once_more = {
            (name, maybe_done)
            for (name, maybe_done, operation), action in WANTED.items()
            if operation == "createWebhook" and action in {"again", "renew"}
        }

        assert once_more == {(name, False) for name in ("not_sent", "paused", "429", "401-renewable")}

    def test_a_create_that_may_be_done_is_unknown_unless_answered(self) -> None:
        """Once a copy may have been executed, only an answer that is good ends in anything but unknown."""
        said = {name: decide(name, "createWebhook", maybe_done=True).action for name, _, _ in WANTED}

        assert said.pop("answered") == "succeeded"
        assert set(said.values()) == {"unknown"}

    def test_renewing_needs_no_budget_time_or_attempt(self) -> None:
        """Another token is tried at once, whatever is used up: it happens once at the most."""
        for operation in OPERATIONS:
            assert decide("401-renewable", operation, left=0, time_left=0.0, attempt=99) == Decision("renew")

    def test_renewable_tokens_matter_for_401_only(self) -> None:
        """That there may be another token changes nothing for any other outcome."""
        for name, maybe_done, operation in WANTED:
            if not name.startswith("401"):
                said = [decide(name, operation, maybe_done=maybe_done, renewable=one) for one in (False, True)]
                assert said[0] == said[1]


class TestAttempts:
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_limits(self, operation: str) -> None:
        """Four sendings of everything, two of create; after the last one the error comes out."""
        limit = 2 if operation == "createWebhook" else 4
        for name, maybe_done, _ in [key for key in AGAIN if key[0] not in ("paused", "429") and key[2] == operation]:
            said = [decide(name, operation, maybe_done=maybe_done, attempt=attempt) for attempt in range(1, 7)]

            assert [one.action for one in said] == ["again"] * (limit - 1) + ["raise"] * (7 - limit), name
            assert {one.reason for one in said[limit - 1 :]} == {"no attempts left"}

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_a_429_is_no_attempt(self, operation: str) -> None:
        """A call that was told 429, itself or through another call, may go on after its last attempt."""
        for attempt in range(10):
            assert decide("paused", operation, attempt=attempt).action == "again"
            assert decide("429", operation, attempt=attempt, refusals=attempt + 1).action == "again"

    def test_limits_are_the_policys(self) -> None:
        """The two limits come from the policy, each for its own."""
        odd = {"attempts": 6, "create_attempts": 1}

        assert decide("lost", "getWebhooks", attempt=5, **odd).action == "again"
        assert decide("lost", "getWebhooks", attempt=6, **odd).action == "raise"
        assert decide("not_sent", "createWebhook", attempt=1, **odd).action == "raise"

    def test_defaults(self) -> None:
        """What a session does unless told otherwise is what the docs say."""
        plain = RetryPolicy()

        assert (plain.attempts, plain.create_attempts, plain.budget) == (4, 2, 100)
        assert (plain.first_wait, plain.longest_wait, plain.longest_pause) == (0.5, 20.0, 3600.0)
        assert (plain.connect_timeout, plain.attempt_timeout, plain.create_attempt_timeout) == (10.0, 30.0, 45.0)

    def test_very_many_attempts(self) -> None:
        """A policy of thousands of attempts waits longest_wait and does not overflow."""
        said = decide("lost", attempt=5_000, attempts=10_000, random=lambda: 1.0)

        assert said == Decision("again", 20.0, cost=10)


class TestBudget:
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_costs(self, operation: str) -> None:
        """Sending again costs 10, 5 after a 429, and nothing where nothing was sent because of another call."""
        for name, maybe_done, _ in [key for key in AGAIN if key[2] == operation]:
            cost = {"paused": 0, "429": 5}.get(name, 10)

            assert decide(name, operation, maybe_done=maybe_done).cost == cost, name
            assert decide(name, operation, maybe_done=maybe_done, left=cost).action == "again"
            if cost:
                broke = decide(name, operation, maybe_done=maybe_done, left=cost - 1)
                assert (broke.action, broke.cost, broke.wait) == ("raise", 0, 0.0)
                assert broke.reason == "the session's retry budget is exhausted"

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_what_was_in_flight_when_the_pause_began_costs_nothing(self, operation: str) -> None:
        """All that are told 429 at the same time hear of one trouble; of any other kind everyone pays."""
        assert decide("429", operation, pause_left=0.1, left=0).cost == 0
        assert decide("429", operation, pause_left=0.1, left=0).action == "again"
        assert decide("not_sent", operation, pause_left=0.1).cost == 10
        assert decide("not_sent", operation, pause_left=0.1, left=9).action == "raise"

    @pytest.mark.parametrize("action", ["succeeded", "raise", "unknown", "renew"])
    def test_what_is_not_sent_again(self, action: str) -> None:
        """A success gives 1 back; all the rest that is not sent again neither costs nor gives."""
        for name, maybe_done, operation in [key for key in WANTED if WANTED[key] == action]:
            said = decide(name, operation, maybe_done=maybe_done, left=0)
            assert said.cost == (-1 if action == "succeeded" else 0), (name, operation)

    @given(st.lists(st.sampled_from(sorted(WANTED)), max_size=300), st.integers(0, 120))
    def test_what_can_be_spent_is_bounded(self, keys: list[Key], full: int) -> None:
        """Whatever happens in whatever order: what is sent again was in the budget, or earned by successes."""
        left, paid, earned = full, 0, 0
        for name, maybe_done, operation in keys:
            said = decide(name, operation, maybe_done=maybe_done, left=left, budget=full)
            left = min(left - said.cost, full)
            paid += max(said.cost, 0)
            earned += said.action == "succeeded"
            assert left >= 0
        assert paid <= full + earned

    @given(st.sampled_from(AGAIN), st.integers(0, 30), st.integers(0, 30), st.floats(0, 60), st.floats(0, 60))
    def test_more_never_hurts(self, key: Key, left: int, more: int, time_left: float, longer: float) -> None:
        """What is sent again with some budget and time is sent again, after the same wait, with more of either."""
        name, maybe_done, operation = key
        outcome = evolve(outcome_named(name), retry_after=2.5)
        scarce = decide(outcome, operation, maybe_done=maybe_done, left=left, time_left=time_left)
        ample = decide(outcome, operation, maybe_done=maybe_done, left=left + more, time_left=time_left + longer)

        assert ample.pause == scarce.pause
        if scarce.action == "again":
            assert ample == scarce


class TestWaiting:
    @pytest.mark.parametrize("left", [60.0, 5.001, 5.0, 4.999, 0.0, -1.0])
    def test_a_wait_past_the_deadline_is_not_begun(self, left: float) -> None:
        """If Asana asks for five seconds and fewer are left, the error comes at once; a 429 has its own time."""
        cases: list[tuple[str, str, str]] = [
            ("503", "time_left", "waiting 5.0 seconds would pass the deadline"),
            ("429", "slot_time_left", "a pause of 5.0 seconds would pass slot_timeout"),
            ("paused", "slot_time_left", "a pause of 5.0 seconds would pass slot_timeout"),
        ]
        for name, time, said in cases:
            changes: dict[str, Any] = {time: left}
            decision = decide(evolve(outcome_named(name), retry_after=5.0), **changes)

            assert (decision.action, decision.wait) == (("again", 5.0) if left > 5 else ("raise", 0.0))
            assert decision.reason == ("" if left > 5 else said)

    @pytest.mark.parametrize(("pause_left", "wait", "paused"), [(0.0, 4.0, 0.0), (3.0, 4.0, 3.0), (9.0, 9.0, 9.0)])
    def test_which_part_of_a_wait_is_a_pause(self, pause_left: float, wait: float, paused: float) -> None:
        """A call that has to wait anyway counts as paused while the session is; after a 429 it is all one pause."""
        for name, share in (("503", paused), ("429", wait), ("paused", wait)):
            said = decide(evolve(outcome_named(name), retry_after=4.0), pause_left=pause_left, time_left=4.1)

            assert (said.wait, said.paused) == (wait, share), name

    def test_a_pause_of_another_call_past_slot_timeout(self) -> None:
        """It is not begun by a call that only has to back off either."""
        assert decide("503", pause_left=5.0, slot_time_left=5.1).action == "again"
        assert decide("503", pause_left=5.0, slot_time_left=5.0).action == "raise"
        assert decide("503", slot_time_left=0.0).action == "again"

    def test_an_hour_is_not_obeyed(self) -> None:
        """Retry-After of an hour ends the call instead of holding it (trap 23)."""
        for status in (429, 503):
            said = decide(Outcome(kind="refused", status=status, retry_after=3600.0))
            assert (said.action, said.wait, said.cost) == ("raise", 0.0, 0)

    @pytest.mark.parametrize(
        ("attempt", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 16.0), (7, 20.0), (60, 20.0)]
    )
    def test_bounds_double(self, attempt: int, bound: float) -> None:
        """The longest wait doubles with every attempt, or every 429, up to longest_wait; the shortest is none."""
        numbers: dict[str, Any] = {"lost": {"attempt": attempt}, "429": {"attempt": 0, "refusals": attempt}}
        for name, number in numbers.items():
            waits = [decide(name, attempts=100, random=lambda c=c: c, **number).wait for c in (0.0, 0.5, 1.0)]

            assert waits == [0.0, bound / 2, bound]

    @given(CHANCES, st.integers(1, 50), RETRY_AFTERS, st.tuples(st.floats(0, 100), st.floats(0, 100)))
    def test_any_wait(
        self, chance: float, attempt: int, retry_after: float | None, bounds: tuple[float, float]
    ) -> None:
        """Full jitter without Retry-After; with it never less than asked, and at most a tenth above."""
        initial, longest = bounds
        options: dict[str, Any] = {"first_wait": initial, "longest_wait": longest, "longest_pause": 1e6, "attempts": 99}
        outcome = Outcome(kind="refused", status=503, retry_after=retry_after)
        said = decide(outcome, attempt=attempt, time_left=math.inf, random=lambda: chance, **options)
        bound = min(longest, initial * 2.0 ** (attempt - 1))

        assert said.action == "again"
        if retry_after is None:
            assert 0 <= said.wait <= bound
        else:
            assert said.wait >= retry_after
            assert said.wait <= max(bound, retry_after * 1.1)

    @given(CHANCES, st.floats(22, 50), st.sampled_from(["429", "503", "paused"]))
    def test_retry_after_spreads_callers(self, chance: float, retry_after: float, name: str) -> None:
        """Callers told the same number of seconds do not come back at the same moment."""
        outcome = evolve(outcome_named(name), retry_after=retry_after)
        said = decide(outcome, random=lambda: chance, longest_wait=0.0)

        assert said.wait == pytest.approx(retry_after * (1 + chance / 10))

    def test_a_paused_call_waits_for_the_pause_alone(self) -> None:
        """However many attempts it had, its own backoff has nothing to do with a pause of the session."""
        said = decide(Outcome(kind="paused", status=429, retry_after=0.25), attempt=6, random=lambda: 1.0)

        assert said.wait == pytest.approx(0.275)

    def test_default_randomness_is_between_0_and_1(self) -> None:
        """The policy's own random, sleep and clock are Python's."""
        plain = RetryPolicy()

        assert 0 <= plain.random() < 1
        assert plain.clock() <= plain.clock()
        assert "random" not in repr(plain)


class TestPause:
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_only_429_pauses_the_session(self, operation: str) -> None:
        """Nothing else holds other calls up, whatever Retry-After comes with it."""
        for name, maybe_done, _ in WANTED:
            outcome = evolve(outcome_named(name), retry_after=5.0)
            said = decide(outcome, operation, maybe_done=maybe_done, random=lambda: 1.0)
            assert said.pause == (5.0 if name == "429" else 0.0), name

    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize(
        "scarce",
        [{}, {"left": 0}, {"slot_time_left": 1.0}, {"slot_time_left": -1.0}, {"time_left": -1.0}],
        ids=["again", "no budget", "little slot time", "no slot time", "no time"],
    )
    def test_with_retry_after(self, operation: str, scarce: dict[str, Any]) -> None:
        """It is as long as Asana said, without jitter, and also when this call itself gives up."""
        said = decide(
            Outcome(kind="refused", status=429, retry_after=5.0),
            operation,
            random=lambda: 1.0,
            longest_wait=0.0,
            **scarce,
        )

        assert said.pause == 5.0
        assert said.action == ("raise" if scarce else "again")

    @pytest.mark.parametrize("scarce", [{}, {"left": 0}], ids=["again", "no budget"])
    def test_without_retry_after(self, scarce: dict[str, Any]) -> None:
        """It is as long as this call waits, or would have waited."""
        said = decide("429", random=lambda: 0.5, first_wait=3.0, longest_wait=3.0, **scarce)

        assert said.pause == 1.5
        assert said.wait == (0.0 if scarce else 1.5)

    @pytest.mark.parametrize(("asked", "pause"), [(59.0, 59.0), (60.0, 60.0), (61.0, 60.0), (1e9, 60.0)])
    def test_the_longest(self, asked: float, pause: float) -> None:
        """A Retry-After above longest_pause counts as longest_pause, for the call too."""
        outcome = Outcome(kind="refused", status=429, retry_after=asked)
        said = decide(outcome, longest_pause=60.0, slot_time_left=1e6)

        assert (said.pause, said.wait) == (pause, pause)

    def test_no_wait_no_pause(self) -> None:
        """A Retry-After of 0 pauses nobody, but this call still backs off."""
        said = decide(Outcome(kind="refused", status=429, retry_after=0.0), random=lambda: 1.0)

        assert (said.pause, said.wait) == (0.0, 0.5)


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


class TestRetryAfter:
    def test_values(self) -> None:
        """Seconds, decimals and HTTP-dates are read; whatever makes no sense is as good as nothing."""
        wanted = [
            ("30", 30.0),
            ("0", 0.0),
            ("1.5", 1.5),
            (" 7 ", 7.0),
            ("007", 7.0),
            ("1000000000", 1e9),
            ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
            ("Fri, 02 Jan 2026 03:04:05 GMT", 0.0),
            ("Friday, 02-Jan-26 03:04:35 GMT", 30.0),
            ("Fri, 02 Jan 2026 04:04:35 +0100", 30.0),
            ("Fri, 02 Jan 2026 03:04:04 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("-1", None),
            ("-0.5", None),
            ("nan", None),
            ("NaN", None),
            ("inf", None),
            ("Infinity", None),
            ("-inf", None),
            ("1e999", None),
            ("9" * 5_000, None),
            ("", None),
            (" ", None),
            ("soon", None),
            ("30 seconds", None),
            ("30, 30", None),
            ("0x1e", None),
            (".5", None),
            ("5.", None),
            ("1_0", None),
            ("1e3", None),
            ("+5", None),
            ("\u0663", None),
            ("1,5", None),
            ("Fri, 99 Jan 2026 03:04:35 GMT", None),
            ("Fri, 02 Jan 99999 03:04:35 GMT", None),
            ("Fri, 02 Jan 2026 03:04:35 +9999999999", None),
            ("Fri, 02 Jan 2026 03:04:35 +9999999999999", None),
            ("Fri, 02 Jan 99999999999999999999999 03:04:35 GMT", None),
            ("Fri, 02 Jan 2026 03:04:35", None),
            ("\udcff", None),
        ]
        for value, seconds in wanted:
            assert parse_retry_after([value], DATE) == seconds, value

    def test_not_one_header(self) -> None:
        """No header, no seconds; and two make no sense, even two that agree."""
        none: list[str] = []
        for values in (none, ["30", "30"], ["30", "60"], ["", "30"]):
            assert parse_retry_after(values, DATE) is None

    def test_date_without_a_date_to_count_from(self) -> None:
        """A date is never read against the local clock, which may lie; seconds need no date."""
        without_zone, far_zone = "Fri, 02 Jan 2026 03:04:05", "Fri, 02 Jan 2026 03:04:05 +9999999999999"
        for date in (None, "", "yesterday", "30", without_zone, far_zone, "\udcff"):
            assert parse_retry_after(["Fri, 02 Jan 2026 03:04:35 GMT"], date) is None
            assert parse_retry_after(["30"], date) == 30.0

    @pytest.mark.parametrize("skew", [timedelta(days=-4000), timedelta(0), timedelta(days=4000)])
    def test_skewed_clocks(self, skew: timedelta) -> None:
        """However wrong the server's clock is, the difference between its two dates is right."""
        start, end = NOW + skew, NOW + skew + timedelta(seconds=90)

        assert parse_retry_after([format_datetime(end, usegmt=True)], format_datetime(start, usegmt=True)) == 90.0

    @given(st.lists(st.text(), max_size=2), st.none() | st.text())
    @example(["1" * 400 + "." + "1"], None)
    def test_any_headers(self, values: list[str], date: str | None) -> None:
        """Whatever the headers hold, nothing is raised, and the result is None or a finite number from 0 up."""
        seconds = parse_retry_after(values, date)

        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)

    @given(
        st.from_regex(
            r"((Mon|Fri|X)[a-z]*,? )?-?[0-9]{1,12}[ -](Jan|Feb|Dec|Foo)[ -]-?[0-9]{1,12} "
            r"-?[0-9]{1,6}(:|\.)[0-9]{1,12}((:|\.)[0-9]{1,30})?( (GMT|EST|[+-][0-9]{1,30}))?",
            fullmatch=True,
        ),
        st.booleans(),
    )
    @example("Fri, 31 Dec 9999 23:59:59 -2359", True)
    @example("Mon, 01 Jan 0001 00:00:00 +2359", True)
    @example("0 Jan 0 0:0", False)
    def test_any_date(self, text: str, as_date: bool) -> None:
        """Things that look like dates never raise either, in either header."""
        values, date = (["Fri, 02 Jan 2026 03:04:35 GMT"], text) if as_date else ([text], DATE)
        seconds = parse_retry_after(values, date)

        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)

    @given(
        st.text(st.characters(categories=["Nd", "Nl", "No"]), min_size=1, max_size=10)
        | st.integers().map(str)
        | st.floats().map(repr)
    )
    def test_any_number(self, text: str) -> None:
        """Plain decimals of ASCII digits are read as they are; numbers of any other kind are as good as none."""
        plain = re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)

        assert parse_retry_after([text], DATE) == (float(text) if plain else None)

    @given(st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)), st.integers(0, 10**6))  # noqa: DTZ001
    def test_dates_are_exact(self, start: datetime, seconds: int) -> None:
        """Two dates of the server give exactly the seconds between them."""
        begin = start.replace(microsecond=0, tzinfo=UTC)
        end = begin + timedelta(seconds=seconds)
        assume(end.year < 9999)

        value, date = format_datetime(end, usegmt=True), format_datetime(begin, usegmt=True)

        assert parse_retry_after([value], date) == float(seconds)


class TestPolicy:
    def test_counts(self) -> None:
        """At least one attempt, and a budget of 0 for no retry at all; whole numbers."""
        assert RetryPolicy(budget=0).budget == 0
        for name in ("attempts", "create_attempts", "budget"):
            odd: list[Any] = [-1, 1.5, True, "4", None, math.inf, *([] if name == "budget" else [0])]
            for value in odd:
                with pytest.raises(ConfigurationError, match=f"^{name} must be a whole number"):
                    RetryPolicy(**{name: value})

    def test_seconds(self) -> None:
        """Finite and not negative; waits may be none, but nothing can be done in no time."""
        limits = ["longest_pause", "connect_timeout", "attempt_timeout", "create_attempt_timeout"]
        assert RetryPolicy(first_wait=0, longest_wait=0).longest_wait == 0
        for name in ("first_wait", "longest_wait", *limits):
            odd: list[Any] = [-1, -0.1, math.inf, math.nan, True, "1", None, *([0] if name in limits else [])]
            for value in odd:
                with pytest.raises(ConfigurationError, match=f"^{name} must be"):
                    RetryPolicy(**{name: value})

    def test_functions(self) -> None:
        """Clock, sleep and random can be called."""
        odd: Any = 5
        for name in ("clock", "sleep", "random"):
            with pytest.raises(ConfigurationError, match=f"{name} must be a function"):
                RetryPolicy(**{name: odd})


def test_an_outcome_shows_no_content() -> None:
    """Neither the answer, which may be a secret of Asana's, nor what a refusal says is in its repr."""
    outcome = Outcome(kind="answered", answer="0f1e2d", details=(ErrorDetail(message="3c4b5a"),))
    assert "0f1e2d" not in repr(outcome)
    assert "3c4b5a" not in repr(outcome)
