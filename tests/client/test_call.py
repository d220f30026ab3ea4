"""What is known about one call, step by step: how often it was sent, and whether it may be done."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks.client.call import Call
from asana_webhooks.client.retry import Outcome
from asana_webhooks.models import Secret

REFUSED = Outcome(kind="refused", status=404)
LIMITED = Outcome(kind="refused", status=429)
FAILED = Outcome(kind="refused", status=500)
LOST = Outcome(kind="lost")
UNSENT = Outcome(kind="not_sent")
HELD = Outcome(kind="held", status=429)
ANSWERED = Outcome(kind="answered", status=200)
GARBLED = Outcome(kind="garbled", status=200)


def sent(call: Call, outcome: Outcome, *, copies: int = 1) -> bool:
    """Live through one attempt as a session does; return whether an earlier copy may have been executed."""
    for _ in range(copies):
        call.sendings.note()
    call.count(outcome)
    maybe_done = call.maybe_done
    call.undone += outcome.not_executed
    return maybe_done


class TestMaybeDone:
    def test_first(self) -> None:
        """Nothing was sent before the first sending."""
        for outcome in (REFUSED, LIMITED, FAILED, LOST, ANSWERED):
            assert not sent(Call(deadline=0.0), outcome)

    @pytest.mark.parametrize("outcome", [LIMITED, REFUSED, Outcome(kind="refused", status=401)], ids=repr)
    def test_after_a_clear_no(self, outcome: Outcome) -> None:
        """What Asana refused it has not executed, so the next copy is as good as the first."""
        call = Call(deadline=0.0)

        assert [sent(call, outcome) for _ in range(3)] == [False] * 3

    @pytest.mark.parametrize("outcome", [FAILED, LOST, GARBLED], ids=repr)
    def test_after_anything_else(self, outcome: Outcome) -> None:
        """What may have been executed stays so, whatever comes after it."""
        call = Call(deadline=0.0)

        assert [sent(call, one) for one in (outcome, LIMITED, LIMITED, REFUSED)] == [False, True, True, True]

    def test_hidden_copies(self) -> None:
        """The answer to the second of two copies says nothing about the first."""
        call = Call(deadline=0.0)

        assert sent(call, LIMITED, copies=2)
        assert sent(call, LIMITED)

    def test_nothing_sent(self) -> None:
        """An attempt that never left changes nothing."""
        call = Call(deadline=0.0)
        sent(call, UNSENT, copies=0)
        sent(call, HELD, copies=0)

        assert not sent(call, REFUSED)

    @given(
        st.lists(
            st.tuples(st.sampled_from([LIMITED, REFUSED, FAILED, LOST, GARBLED]), st.integers(1, 3))
            | st.tuples(st.sampled_from([UNSENT, HELD]), st.just(0)),
            max_size=8,
        )
    )
    def test_any_course(self, course: list[tuple[Outcome, int]]) -> None:
        """An earlier copy may be done unless each of them was the one that a clear no answered."""
        call = Call(deadline=0.0)
        copies: list[bool] = []  # whether each may have been executed
        for outcome, number in course:
            maybe_done = sent(call, outcome, copies=number)
            copies += [True] * number
            if number:
                assert maybe_done == any(copies[:-1])
                copies[-1] = not outcome.not_executed


class TestCounting:
    def test_attempts(self) -> None:
        """Whatever tried to send is an attempt; being held is none."""
        call = Call(deadline=0.0)
        for outcome in (UNSENT, HELD, LOST, HELD, LIMITED):
            call.count(outcome)

        assert call.attempts == 3

    def test_the_same_rejection_again_is_no_attempt(self) -> None:
        """A 401 that is raised because there was no other token is counted once."""
        call = Call(deadline=0.0)
        rejection = Outcome(kind="refused", status=401)
        call.count(rejection)
        call.renew(rejection)
        call.count(rejection)

        assert call.attempts == 1
        call.count(Outcome(kind="refused", status=401))
        assert call.attempts == 2


class TestRenewing:
    def test_renew(self) -> None:
        """The token that was sent last is the one that was not accepted."""
        call = Call(deadline=0.0, token=Secret("second"), rejected=None)
        rejection = Outcome(kind="refused", status=401)
        call.renew(rejection)

        assert call.rejected == Secret("second")
        assert call.rejection is rejection
        assert call.renewal_due

    def test_beginning(self) -> None:
        """A new call has sent nothing, and no token of its was refused."""
        call: Any = Call(deadline=5.0)

        assert (call.attempts, call.undone, call.sendings.count, call.deadline) == (0, 0, 0, 5.0)
        assert (call.token, call.rejected, call.rejection, call.waited_for) == (None, None, None, None)
        assert not call.renewal_due

    def test_no_token_shows(self) -> None:
        """Error trackers show the repr of a call."""
        call = Call(deadline=0.0, token=Secret("t0ken"), rejected=Secret("0ld"))

        assert "t0ken" not in repr(call)
        assert "0ld" not in repr(call)
