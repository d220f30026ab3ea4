"""The verdict, row by row, and the bounds of waiting."""

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from asana_webhooks.client.retry import Outcome, RetryPolicy, Verdict, parse_retry_after, verdict
from asana_webhooks.errors import ConfigurationError

OPERATIONS = ["getWebhook", "getWebhooks", "updateWebhook", "deleteWebhook", "createWebhook"]

# What follows from an attempt while there is time and another attempt is allowed. Read it against the table in
# reference/reliability.md 3.1: only createWebhook must not be repeated when it may have been executed.
TABLE = """
what came of it     maybe done?   getWebhook   getWebhooks   updateWebhook   deleteWebhook   createWebhook

answered            no            succeeded    succeeded     succeeded       succeeded       succeeded
answered            yes           succeeded    succeeded     succeeded       succeeded       succeeded
not_sent            no            again        again         again           again           again
not_sent            yes           again        again         again           again           again
lost                no            again        again         again           again           unknown
lost                yes           again        again         again           again           unknown
malformed-200       no            again        again         again           succeeded       unknown
malformed-200       yes           again        again         again           succeeded       unknown
malformed-201       no            again        again         again           succeeded       unknown
malformed-201       yes           again        again         again           succeeded       unknown
mistyped-200        no            raise        raise         raise           succeeded       unknown
mistyped-200        yes           raise        raise         raise           succeeded       unknown
refused-301         no            raise        raise         raise           raise           raise
refused-301         yes           raise        raise         raise           raise           raise
refused-304         no            raise        raise         raise           raise           raise
refused-304         yes           raise        raise         raise           raise           raise
refused-307         no            raise        raise         raise           raise           raise
refused-307         yes           raise        raise         raise           raise           raise
refused-400         no            raise        raise         raise           raise           raise
refused-400         yes           raise        raise         raise           raise           raise
refused-401         no            raise        raise         raise           raise           raise
refused-401         yes           raise        raise         raise           raise           raise
refused-402         no            raise        raise         raise           raise           raise
refused-402         yes           raise        raise         raise           raise           raise
refused-403         no            raise        raise         raise           raise           raise
refused-403         yes           raise        raise         raise           raise           raise
refused-404         no            raise        raise         raise           raise           raise
refused-404         yes           raise        raise         raise           succeeded       raise
refused-408         no            raise        raise         raise           raise           raise
refused-408         yes           raise        raise         raise           raise           raise
refused-410         no            raise        raise         raise           raise           raise
refused-410         yes           raise        raise         raise           raise           raise
refused-412         no            raise        raise         raise           raise           raise
refused-412         yes           raise        raise         raise           raise           raise
refused-424         no            raise        raise         raise           raise           raise
refused-424         yes           raise        raise         raise           raise           raise
refused-428         no            raise        raise         raise           raise           raise
refused-428         yes           raise        raise         raise           raise           raise
refused-429         no            again        again         again           again           again
refused-429         yes           again        again         again           again           again
refused-430         no            raise        raise         raise           raise           raise
refused-430         yes           raise        raise         raise           raise           raise
refused-451         no            raise        raise         raise           raise           raise
refused-451         yes           raise        raise         raise           raise           raise
refused-499         no            raise        raise         raise           raise           raise
refused-499         yes           raise        raise         raise           raise           raise
refused-500         no            again        again         again           again           unknown
refused-500         yes           again        again         again           again           unknown
refused-502         no            again        again         again           again           unknown
refused-502         yes           again        again         again           again           unknown
refused-503         no            again        again         again           again           unknown
refused-503         yes           again        again         again           again           unknown
refused-504         no            again        again         again           again           unknown
refused-504         yes           again        again         again           again           unknown
refused-599         no            again        again         again           again           unknown
refused-599         yes           again        again         again           again           unknown
"""


def outcome_named(name: str) -> Outcome:
    word, _, number = name.partition("-")
    status = int(number or 0)
    match word:
        case "malformed" | "mistyped":
            return Outcome(kind="garbled", status=status, malformed=word == "malformed")
        case "refused":
            return Outcome(kind="refused", status=status)
        case "answered" | "not_sent" | "lost":
            return Outcome(kind=word)
    raise AssertionError(name)


def table() -> dict[tuple[str, bool, str], str]:
    head, *rows = [re.split(r"\s{2,}", line) for line in TABLE.strip().splitlines() if line]
    assert head[2:] == OPERATIONS
    return {
        (row[0], row[1] == "yes", operation): action
        for row in rows
        for operation, action in zip(OPERATIONS, row[2:], strict=True)
    }


WANTED = table()
WAITS = [key for key, action in WANTED.items() if action == "again"]


def policy(*, chance: float = 0.0, attempts: int = 4, create_attempts: int = 2) -> RetryPolicy:
    return RetryPolicy(random=lambda: chance, attempts=attempts, create_attempts=create_attempts)


def decide(
    name: str, operation: str = "getWebhook", *, attempt: int = 1, maybe_done: bool = False, time_left: float = 60.0
) -> str:
    return verdict(
        operation,
        outcome_named(name),
        attempt=attempt,
        maybe_done=maybe_done,
        time_left=time_left,
        policy=policy(),
    ).action


class TestVerdict:
    def test_table_is_complete(self) -> None:
        """The table has every operation against every kind of outcome, repeated or not."""
        names = {name for name, _, _ in WANTED}

        assert set(WANTED) == set(product(names, (False, True), OPERATIONS))
        assert {outcome_named(name).kind for name in names} == {"answered", "not_sent", "lost", "refused", "garbled"}

    @pytest.mark.parametrize(("name", "maybe_done", "operation"), WANTED)
    def test_table(self, name: str, maybe_done: bool, operation: str) -> None:
        """Each row holds for the first attempt with time left."""
        assert decide(name, operation, maybe_done=maybe_done) == WANTED[name, maybe_done, operation]

    @given(
        st.sampled_from(sorted(WANTED)),
        st.integers(1, 10),
        st.floats(-10, 100),
        st.floats(0, 1),
        st.none() | st.floats(0, 1e6),
    )
    def test_bounds_only_ever_turn_again_into_raise(
        self, key: tuple[str, bool, str], attempt: int, time_left: float, chance: float, retry_after: float | None
    ) -> None:
        """Neither the number of the attempt, nor time, chance or Retry-After change any other verdict."""
        name, maybe_done, operation = key
        outcome = outcome_named(name)
        said = verdict(
            operation,
            Outcome(kind=outcome.kind, status=outcome.status, malformed=outcome.malformed, retry_after=retry_after),
            attempt=attempt,
            maybe_done=maybe_done,
            time_left=time_left,
            policy=policy(chance=chance),
        )

        if WANTED[key] == "again":
            assert said.action in {"again", "raise"}
        else:
            assert said == Verdict(WANTED[key])  # type: ignore[arg-type]
        if said.action == "again":
            assert 0 <= said.wait < time_left
        else:
            assert said.wait == 0

    def test_create_is_repeated_only_when_nothing_can_have_been_created(self) -> None:
        """Of all outcomes only three kinds let createWebhook be sent again."""
        again = {name for name, _, operation in WAITS if operation == "createWebhook"}

        assert again == {"not_sent", "refused-429"}

    def test_first_copy_that_never_arrived(self) -> None:
        """A repeated call whose first copy never left is still repeated (trap 20: retry dropped)."""
        assert decide("not_sent", "createWebhook", maybe_done=False) == "again"
        assert decide("not_sent", "deleteWebhook", maybe_done=True, attempt=2) == "again"


class TestAttempts:
    @pytest.mark.parametrize("key", WAITS, ids=str)
    def test_limits(self, key: tuple[str, bool, str]) -> None:
        """Four sendings of everything, two of create; after the last one the error comes out."""
        name, maybe_done, operation = key
        limit = 2 if operation == "createWebhook" else 4
        said = [decide(name, operation, maybe_done=maybe_done, attempt=attempt) for attempt in range(1, 7)]

        assert said == ["again"] * (limit - 1) + ["raise"] * (7 - limit)

    def test_limits_are_the_policys(self) -> None:
        """The two limits come from the policy, each for its own."""
        odd = policy(attempts=6, create_attempts=1)
        lost, unsent = Outcome(kind="lost"), Outcome(kind="not_sent")

        def say(operation: str, outcome: Outcome, attempt: int) -> str:
            return verdict(operation, outcome, attempt=attempt, maybe_done=False, time_left=60.0, policy=odd).action

        assert say("getWebhooks", lost, 5) == "again"
        assert say("getWebhooks", lost, 6) == "raise"
        assert say("createWebhook", unsent, 1) == "raise"

    def test_defaults(self) -> None:
        """What a session does unless told otherwise is what the docs say."""
        plain = RetryPolicy()

        assert (plain.attempts, plain.create_attempts) == (4, 2)
        assert (plain.wait_initial, plain.wait_max) == (0.5, 20.0)
        assert (plain.connect_timeout, plain.attempt_timeout, plain.create_attempt_timeout) == (10.0, 30.0, 45.0)

    def test_very_many_attempts(self) -> None:
        """A policy of thousands of attempts waits wait_max and does not overflow."""
        said = verdict(
            "getWebhook",
            Outcome(kind="lost"),
            attempt=5_000,
            maybe_done=True,
            time_left=60.0,
            policy=policy(chance=1.0, attempts=10_000),
        )

        assert said == Verdict("again", 20.0)


class TestWaiting:
    @pytest.mark.parametrize(
        ("time_left", "action"), [(60.0, "again"), (5.001, "again"), (5.0, "raise"), (0.0, "raise"), (-1.0, "raise")]
    )
    def test_a_wait_past_the_deadline_is_not_begun(self, time_left: float, action: str) -> None:
        """If Asana asks for five seconds and fewer are left, the error comes at once."""
        said = verdict(
            "getWebhook",
            Outcome(kind="refused", status=429, retry_after=5.0),
            attempt=1,
            maybe_done=False,
            time_left=time_left,
            policy=policy(),
        )

        assert said == Verdict(action, 5.0 if action == "again" else 0.0)  # type: ignore[arg-type]

    def test_an_hour_is_not_obeyed(self) -> None:
        """Retry-After of an hour ends the call instead of holding it (trap 23)."""
        for status in (429, 503):
            said = verdict(
                "getWebhook",
                Outcome(kind="refused", status=status, retry_after=3600.0),
                attempt=1,
                maybe_done=False,
                time_left=60.0,
                policy=policy(),
            )
            assert said == Verdict("raise")

    @pytest.mark.parametrize(
        ("attempt", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 16.0), (7, 20.0), (60, 20.0)]
    )
    def test_bounds_double(self, attempt: int, bound: float) -> None:
        """The longest wait doubles with every attempt, up to wait_max; the shortest is none."""

        def wait(chance: float) -> float:
            return verdict(
                "getWebhook",
                Outcome(kind="lost"),
                attempt=attempt,
                maybe_done=False,
                time_left=100.0,
                policy=policy(chance=chance, attempts=100),
            ).wait

        assert (wait(0.0), wait(0.5), wait(1.0)) == (0.0, bound / 2, bound)

    @given(
        st.floats(0, 1),
        st.integers(1, 50),
        st.floats(0, 100),
        st.floats(0, 100),
        st.none() | st.floats(0, 1e6),
    )
    def test_any_wait(
        self, chance: float, attempt: int, initial: float, longest: float, retry_after: float | None
    ) -> None:
        """Full jitter without Retry-After; with it never less than asked, and at most a tenth above."""
        said = verdict(
            "getWebhook",
            Outcome(kind="refused", status=429, retry_after=retry_after),
            attempt=attempt,
            maybe_done=False,
            time_left=math.inf,
            policy=RetryPolicy(random=lambda: chance, attempts=99, wait_initial=initial, wait_max=longest),
        )
        bound = min(longest, initial * 2.0 ** (attempt - 1))

        assert said.action == "again"
        if retry_after is None:
            assert 0 <= said.wait <= bound
        else:
            assert said.wait >= retry_after
            assert said.wait <= max(bound, retry_after * 1.1)

    @given(st.floats(0, 1), st.floats(22, 50))
    def test_retry_after_spreads_callers(self, chance: float, retry_after: float) -> None:
        """Callers told the same number of seconds do not come back at the same moment."""
        said = verdict(
            "createWebhook",
            Outcome(kind="refused", status=429, retry_after=retry_after),
            attempt=1,
            maybe_done=False,
            time_left=60.0,
            policy=policy(chance=chance),
        )

        assert said.wait == pytest.approx(retry_after * (1 + chance / 10))

    def test_default_randomness_is_between_0_and_1(self) -> None:
        """The policy's own random, sleep and clock are Python's."""
        plain = RetryPolicy()

        assert 0 <= plain.random() < 1
        assert plain.clock() <= plain.clock()
        assert "random" not in repr(plain)


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
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
            ("1_0", None),
            ("1e3", None),
            ("+5", None),
            ("\u0663", None),
            ("1,5", None),
            ("Fri, 99 Jan 2026 03:04:35 GMT", None),
            ("Fri, 02 Jan 99999 03:04:35 GMT", None),
            ("Fri, 02 Jan 2026 03:04:35 +9999999999", None),
            ("Fri, 02 Jan 2026 03:04:35", None),
            ("\udcff", None),
        ],
    )
    def test_values(self, value: str, seconds: float | None) -> None:
        """Seconds, decimals and HTTP-dates are read; whatever makes no sense is as good as nothing."""
        assert parse_retry_after([value], DATE) == seconds

    def test_none(self) -> None:
        """No header, no seconds."""
        assert parse_retry_after([], DATE) is None

    @pytest.mark.parametrize("values", [["30", "30"], ["30", "60"], ["", "30"]])
    def test_two_headers(self, values: list[str]) -> None:
        """Two headers make no sense, even two that agree."""
        assert parse_retry_after(values, DATE) is None

    @pytest.mark.parametrize("date", [None, "", "yesterday", "30", "Fri, 02 Jan 2026 03:04:05", "\udcff"])
    def test_date_without_a_date_to_count_from(self, date: str | None) -> None:
        """A date is never read against the local clock, which may lie; seconds need no date."""
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

    @given(st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)), st.integers(0, 10**6))  # noqa: DTZ001
    def test_dates_are_exact(self, start: datetime, seconds: int) -> None:
        """Two dates of the server give exactly the seconds between them."""
        begin = start.replace(microsecond=0, tzinfo=UTC)
        end = begin + timedelta(seconds=seconds)
        assume(end.year < 9999)

        value, date = format_datetime(end, usegmt=True), format_datetime(begin, usegmt=True)

        assert parse_retry_after([value], date) == float(seconds)


class TestPolicy:
    @pytest.mark.parametrize("name", ["attempts", "create_attempts"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None, math.inf], ids=repr)
    def test_attempts(self, name: str, value: Any) -> None:
        """At least one, and whole."""
        with pytest.raises(ConfigurationError, match=f"^{name} must be"):
            RetryPolicy(**{name: value})

    @pytest.mark.parametrize(
        "name", ["wait_initial", "wait_max", "connect_timeout", "attempt_timeout", "create_attempt_timeout"]
    )
    @pytest.mark.parametrize("value", [-1, -0.1, math.inf, math.nan, True, "1", None], ids=repr)
    def test_seconds(self, name: str, value: Any) -> None:
        """Finite and not negative."""
        with pytest.raises(ConfigurationError, match=f"^{name} must be"):
            RetryPolicy(**{name: value})

    @pytest.mark.parametrize("name", ["connect_timeout", "attempt_timeout", "create_attempt_timeout"])
    def test_no_time_at_all(self, name: str) -> None:
        """Nothing can be done in no time, but waits may be none."""
        zero: dict[str, Any] = {name: 0}
        assert RetryPolicy(wait_initial=0, wait_max=0).wait_max == 0
        with pytest.raises(ConfigurationError, match=f"^{name} must be"):
            RetryPolicy(**zero)
