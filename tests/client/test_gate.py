"""The gate that a 429 shuts: pure, against a model, on a clock that a test turns."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asana_webhooks.client.gate import Gate, Pause
from asana_webhooks.client.retry import Outcome
from asana_webhooks.wire import ErrorDetail
from tests.helpers.stores import Clock

SECONDS = st.floats(0, 100) | st.integers(0, 20).map(float)


def refused(words: str = "Slow down") -> Outcome:
    return Outcome(kind="refused", status=429, details=(ErrorDetail(message=words),))


class TestGate:
    def test_open(self) -> None:
        """At first it lets everything pass."""
        gate = Gate(Clock())

        assert gate.holds() is None
        assert gate.sat_out(1e9) is None

    def test_shut(self) -> None:
        """What it holds is told why, by Asana's own words, and for how long."""
        clock = Clock(1000.0)
        gate = Gate(clock)
        gate.shut(5.0, refused("Too many"))
        clock.now += 2

        held = gate.holds()
        assert held is not None
        assert (held.kind, held.status, held.retry_after) == ("held", 429, 3.0)
        assert [one.message for one in held.details] == ["Too many"]
        assert held.problem == "Asana answered 429 to another call of this session"
        assert not held.not_executed

    def test_it_opens_in_time(self) -> None:
        """It holds until the very moment, and no longer."""
        clock = Clock(0.0)
        gate = Gate(clock)
        gate.shut(5.0, refused())
        clock.now = 4.999
        assert gate.holds() is not None
        clock.now = 5.0
        assert gate.holds() is None

    def test_no_time_at_all_is_no_pause(self) -> None:
        """A 429 that asks for no time shuts nothing."""
        gate = Gate(Clock())
        gate.shut(0.0, refused())

        assert gate.pause is None

    def test_a_longer_pause_stands(self) -> None:
        """A later 429 that asks for less shortens nothing, and the words stay those of the longer one."""
        clock = Clock(0.0)
        gate = Gate(clock)
        gate.shut(5.0, refused("long"))
        long = gate.pause
        clock.now = 1.0
        for seconds in (0.0, 3.0, 4.0):
            gate.shut(seconds, refused("short"))
            assert gate.pause is long
        gate.shut(4.5, refused("longer"))
        assert gate.pause is not long

        held = gate.holds()
        assert held is not None
        assert (held.retry_after, held.details[0].message) == (4.5, "longer")

    def test_a_pause_waited_for_holds_no_more(self) -> None:
        """Whatever the clock says after the wait: the same pause never holds the same call again."""
        gate = Gate(Clock(0.0))
        gate.shut(5.0, refused())

        assert gate.holds(gate.pause) is None
        assert gate.holds() is not None

    def test_a_newer_pause_holds_again(self) -> None:
        """A call that has sat one pause out is held by the next longer one."""
        gate = Gate(Clock(0.0))
        gate.shut(5.0, refused())
        first = gate.pause
        gate.shut(6.0, refused())

        assert gate.holds(first) is not None
        assert gate.holds(gate.pause) is None

    def test_only_a_wait_that_is_long_enough_sits_a_pause_out(self) -> None:
        """A call that waits for another reason, and less, is held when it comes back."""
        clock = Clock(0.0)
        gate = Gate(clock)
        gate.shut(5.0, refused())

        assert gate.sat_out(4.999) is None
        assert gate.sat_out(5.0) is gate.pause
        clock.now = 1.0
        assert gate.sat_out(4.0) is gate.pause

    def test_two_pauses_alike_are_two(self) -> None:
        """To have waited for one says nothing about the other."""
        assert Pause(1.0, ()) != Pause(1.0, ())


class GateMachine(RuleBasedStateMachine):
    """Calls come, wait and go while 429s of any length come in; the model is the latest end of all pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(0.0)
        self.gate = Gate(self.clock)
        self.ends = [0.0]
        self.seen: list[Pause] = []

    @rule(seconds=SECONDS)
    def shut(self, seconds: float) -> None:
        self.ends.append(self.clock.now + seconds)
        self.gate.shut(seconds, refused())
        if self.gate.pause is not None and self.gate.pause not in self.seen:
            self.seen.append(self.gate.pause)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(share=st.floats(0, 2))
    def somebody_waits(self, share: float) -> None:
        """Whoever waits at least what is left is not held by this pause again; whoever waits less is."""
        left = max(self.ends) - self.clock.now
        if left > 0:
            sat_out = self.gate.sat_out(left * share)
            assert (sat_out is not None) == (left * share >= left)
            assert sat_out is None or sat_out is self.gate.pause

    @rule()
    def the_whole_wait_is_enough(self) -> None:
        """A held call that waits for exactly what it was told passes, however floats round."""
        held = self.gate.holds()
        if held is not None and held.retry_after is not None:
            assert self.gate.holds(self.gate.sat_out(held.retry_after)) is None

    @invariant()
    def never_open_early_never_shut_late(self) -> None:
        left = max(self.ends) - self.clock.now
        held = self.gate.holds()
        assert (held is not None) == (left > 0)
        if held is not None:
            assert held.retry_after == left

    @invariant()
    def only_the_last_pause_can_have_been_sat_out(self) -> None:
        for pause in self.seen[:-1]:
            assert self.gate.holds(pause) == self.gate.holds()
        if self.seen:
            assert self.gate.holds(self.seen[-1]) is None


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=40, stateful_step_count=25)
TestGateMachine.__doc__ = GateMachine.__doc__
