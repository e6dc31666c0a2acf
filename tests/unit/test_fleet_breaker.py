"""Circuit breakers: what is counted, what opens them, and who may try while they are half-open."""

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import Outcome, Trial, Verdict
from balancer.fleet.breaker import MODELS_LIMIT, Breaker, BreakerPolicy, Breakers, BreakerState
from tests.unit.unit_support import OK

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
POLICY = BreakerPolicy(threshold=3, reset_seconds=10.0, permits=2)
FAULT = Outcome(verdict=Verdict.FAILURE, kind="crash", error="it crashed")
NO_TRIAL = Trial()
NEUTRAL = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
CANNOT = Outcome(verdict=Verdict.FAILURE, kind="oom", error="out of memory", model_only=True)
M, N = canonical_name("m"), canonical_name("n")


def end(it: Breaker, outcome: Outcome, at: float, *, leased_at: float | None = None, trial: int = 0) -> None:
    leased = at - 0.5 if leased_at is None else leased_at
    it.settle(outcome, leased_at=leased, trial=trial, now=at, policy=POLICY)


def opened(at: float = 3.0) -> Breaker:
    """One that opened at that time, by the last of three faults."""
    it = Breaker()
    for time in (at - 2, at - 1, at):
        end(it, FAULT, time)
    assert it.state(at) is OPEN
    return it


def lend(it: Breakers, at: float) -> Trial:
    return it.take(M, at)


def settle(it: Breakers, outcome: Outcome, at: float, trial: Trial = NO_TRIAL, *, since: float = 0.0) -> None:
    """A lease of the model ended there."""
    it.settle_own(outcome, leased_at=since, trial=trial.instance, now=at)
    it.settle_model(M, outcome, leased_at=since, trial=trial.model, now=at)


def test_it_opens_at_the_threshold_and_not_before() -> None:
    it = Breaker()

    states = []
    for at in (1.0, 2.0, 3.0):
        end(it, FAULT, at)
        states.append(it.state(at))

    assert states == [CLOSED, CLOSED, OPEN]
    assert (it.last_error, it.reopens_at(3.0), it.allows(3.0, POLICY)) == ("it crashed", 13.0, False)


def test_a_success_in_between_starts_the_count_anew() -> None:
    it = Breaker()

    for at in range(1, 20):
        end(it, OK if at % 3 == 0 else FAULT, float(at))

    assert it.state(20.0) is CLOSED


def test_neutral_outcomes_neither_count_nor_forgive() -> None:
    it = Breaker()
    for at in (1.0, 2.0, 3.0, 4.0):
        end(it, NEUTRAL, at)
    assert it.state(4.0) is CLOSED

    for at, outcome in ((5.0, FAULT), (6.0, NEUTRAL), (7.0, FAULT), (8.0, NEUTRAL), (9.0, FAULT)):
        end(it, outcome, at)

    assert it.state(9.0) is OPEN


def test_failures_of_what_was_out_together_count_once() -> None:
    it = Breaker()

    for at in range(20):
        end(it, FAULT, 10.0 + at, leased_at=9.0)

    assert it.state(30.0) is CLOSED


def test_what_was_lent_after_the_last_fault_counts_anew() -> None:
    it = Breaker()

    for at in (1.0, 2.0, 3.0):
        for _ in range(5):
            end(it, FAULT, at, leased_at=at - 0.1)

    assert it.state(3.0) is OPEN


def test_it_is_half_open_exactly_when_its_time_is_up() -> None:
    it = opened(3.0)

    assert [it.state(at) for at in (12.999, 13.0, 1e6)] == [OPEN, HALF_OPEN, HALF_OPEN]
    assert it.reopens_at(13.0) is None


def test_half_open_lets_so_many_try_at_once_and_no_more() -> None:
    it = opened()

    trials = [it.take(13.0) for _ in range(2) if it.allows(13.0, POLICY)]
    assert (len(trials), it.allows(13.0, POLICY)) == (2, False)

    end(it, NEUTRAL, 14.0, trial=trials[0])
    assert it.allows(14.0, POLICY)
    assert it.state(14.0) is HALF_OPEN


def test_a_success_on_trial_closes_it_and_forgets_the_faults() -> None:
    it = opened()
    trial = it.take(13.0)

    end(it, OK, 14.0, leased_at=13.0, trial=trial)
    end(it, FAULT, 15.0)
    end(it, FAULT, 16.0)

    assert it.state(16.0) is CLOSED


def test_a_failure_on_trial_opens_it_again_for_the_whole_time() -> None:
    it = opened()
    trial = it.take(13.0)

    end(it, FAULT, 14.0, leased_at=13.0, trial=trial)

    assert (it.state(14.0), it.reopens_at(14.0)) == (OPEN, 24.0)


def test_a_success_of_what_was_lent_before_it_opened_does_not_close_it() -> None:
    it = opened(3.0)

    end(it, OK, 4.0, leased_at=0.0)
    assert it.state(4.0) is OPEN
    end(it, OK, 14.0, leased_at=0.0)
    assert it.state(14.0) is HALF_OPEN


def test_a_late_failure_does_not_keep_it_open_longer() -> None:
    it = opened(3.0)

    end(it, FAULT, 12.0, leased_at=0.0)

    assert it.state(13.0) is HALF_OPEN


def test_a_trial_that_was_out_when_it_opened_again_does_not_close_it() -> None:
    it = opened(3.0)
    one, other = it.take(13.0), it.take(13.0)

    end(it, FAULT, 14.0, leased_at=13.0, trial=one)
    end(it, OK, 15.0, leased_at=13.0, trial=other)

    assert it.state(15.0) is OPEN
    assert it.state(24.0) is HALF_OPEN
    assert it.allows(24.0, POLICY)


def test_every_permit_comes_back_whatever_the_outcome() -> None:
    it = opened()
    now = 13.0
    for outcome in (NEUTRAL, FAULT, NEUTRAL, FAULT, NEUTRAL):
        trial = it.take(now)
        assert trial
        end(it, outcome, now + 1, leased_at=now, trial=trial)
        now += 12

    assert [it.allows(now, POLICY) and bool(it.take(now)) for _ in range(3)] == [True, True, False]


def test_disabled_it_counts_nothing() -> None:
    it = Breaker()
    policy = BreakerPolicy(threshold=1, enabled=False)

    for at in (1.0, 2.0, 3.0):
        it.settle(FAULT, leased_at=at - 0.5, trial=0, now=at, policy=policy)

    assert it.state(3.0) is CLOSED


def test_an_instance_that_starts_anew_may_be_tried_at_once_but_not_by_all() -> None:
    it = opened(3.0)

    it.begin_anew(4.0)

    assert it.state(4.0) is HALF_OPEN
    assert [it.allows(4.0, POLICY) and bool(it.take(4.0)) for _ in range(3)] == [True, True, False]


def test_one_that_is_closed_forgets_its_faults_when_the_instance_starts_anew() -> None:
    it = Breaker()
    end(it, FAULT, 1.0)
    end(it, FAULT, 2.0)

    it.begin_anew(3.0)
    end(it, FAULT, 4.0)

    assert it.state(4.0) is CLOSED


def test_a_rest_is_never_shorter_than_what_it_was_opened_for() -> None:
    it = opened(3.0)

    it.rest("busy", 4.0)
    assert (it.reopens_at(3.5), it.last_error) == (13.0, "it crashed")
    it.rest("busy", 20.0)

    assert (it.reopens_at(14.0), it.last_error) == (20.0, "busy")


def test_a_fault_of_the_instance_counts_for_the_model_there_too() -> None:
    it = Breakers(POLICY)

    for at in (1.0, 2.0, 3.0):
        settle(it, FAULT, at, since=at - 0.5)

    assert it.state(3.0) is OPEN
    assert it.states(3.0) == {M: OPEN}
    assert not it.allows(N, 3.0)


def test_what_is_the_models_own_fault_spares_the_instance_and_opens_the_pair_at_once() -> None:
    it = Breakers(POLICY)

    settle(it, CANNOT, 1.0)

    assert (it.state(1.0), dict(it.states(1.0))) == (CLOSED, {M: OPEN})
    assert (it.allows(M, 1.0), it.allows(N, 1.0)) == (False, True)
    assert (it.reopens_at(M, 1.0), it.last_error(M, 1.0)) == (11.0, "out of memory")
    assert (it.reopens_at(N, 1.0), it.last_error(N, 1.0)) == (None, "")


def test_the_models_own_fault_opens_the_pair_even_where_counting_is_disabled() -> None:
    it = Breakers(BreakerPolicy(enabled=False, reset_seconds=10.0))

    settle(it, CANNOT, 1.0)

    assert not it.allows(M, 1.0)


def test_of_two_that_are_open_the_later_one_tells_when() -> None:
    it = Breakers(POLICY)
    for at in (1.0, 2.0, 3.0):
        settle(it, FAULT, at, since=at - 0.5)
    it.rest(M, "busy", until=30.0)

    assert (it.reopens_at(M, 3.0), it.reopens_at(N, 3.0)) == (30.0, 13.0)
    assert (it.reopens_at(M, 14.0), it.reopens_at(N, 14.0)) == (30.0, None)


def test_a_lease_can_try_both_and_gives_both_permits_back() -> None:
    it = Breakers(BreakerPolicy(threshold=1, reset_seconds=10.0, permits=1))
    settle(it, FAULT, 1.0)

    trial = lend(it, 11.0)

    assert (bool(trial.instance), bool(trial.model)) == (True, True)
    assert (it.allows(M, 11.0), it.allows(N, 11.0)) == (False, False)
    settle(it, NEUTRAL, 12.0, trial, since=11.0)
    assert (it.allows(M, 12.0), it.allows(N, 12.0)) == (True, True)
    settle(it, OK, 14.0, lend(it, 13.0), since=13.0)
    assert (it.state(14.0), it.models) == (CLOSED, ())


def test_what_is_closed_takes_no_permit() -> None:
    assert lend(Breakers(POLICY), 1.0) == Trial()


def test_a_pair_that_was_forgotten_owes_its_trials_nothing() -> None:
    """A trial lent before the pair was forgotten must not free a permit of the pair that came after it,
    nor close that one."""
    it = Breakers(BreakerPolicy(threshold=5, reset_seconds=10.0, permits=1))
    settle(it, CANNOT, 1.0)
    old = lend(it, 11.0)
    it.forget(M)
    settle(it, CANNOT, 12.0, since=11.5)
    new = lend(it, 22.0)
    assert (bool(old.model), bool(new.model), it.allows(M, 22.0)) == (True, True, False)

    settle(it, NEUTRAL, 23.0, old, since=11.0)

    assert not it.allows(M, 23.0)


@pytest.mark.parametrize("outcome", [OK, FAULT, NEUTRAL, CANNOT])
def test_an_outcome_of_the_instance_leaves_other_models_alone(outcome: Outcome) -> None:
    it = Breakers(POLICY)
    it.settle_model(N, CANNOT, leased_at=0.0, trial=0, now=1.0)

    settle(it, outcome, 2.0)

    assert it.states(2.0)[N] is OPEN


def test_breakers_of_models_are_bounded_and_the_oldest_goes_first() -> None:
    it = Breakers(POLICY)

    for number in range(MODELS_LIMIT + 1):
        it.rest(canonical_name(f"m{number}"), "x", until=100.0)

    assert len(it.models) == MODELS_LIMIT
    assert (it.allows(canonical_name("m0"), 1.0), it.allows(canonical_name("m1"), 1.0)) == (True, False)
