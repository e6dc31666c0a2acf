"""Circuit breakers: what is counted, what opens them, and who may try while they are half-open."""

from itertools import count

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import Blame, Outcome, Trial, Verdict
from balancer.core.variant import Variant
from balancer.fleet.breaker import PAIRS_LIMIT, Breaker, BreakerPolicy, Breakers, BreakerState
from tests.unit.unit_support import OK

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
POLICY = BreakerPolicy(threshold=3, reset_seconds=10.0, permits=2)
FAULT = Outcome(verdict=Verdict.FAILURE, kind="crash", error="it crashed")
NO_TRIAL = Trial()
NEUTRAL = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
GONE = Outcome(verdict=Verdict.FAILURE, kind="connection_lost", error="lost", blames=Blame.INSTANCE)
MISSING = Outcome(verdict=Verdict.FAILURE, kind="model_missing", error="not found", blames=Blame.MODEL)
CANNOT = Outcome(verdict=Verdict.FAILURE, kind="oom", error="out of memory", blames=Blame.VARIANT)
M, N = Variant(canonical_name("m")), Variant(canonical_name("n"))
BIG = Variant(M.model, (("num_ctx", 8192),))


def end(it: Breaker, outcome: Outcome, at: float, *, leased_at: float | None = None, trial: int = 0) -> None:
    leased = at - 0.5 if leased_at is None else leased_at
    it.settle(outcome, leased_at=leased, trial=trial, now=at, policy=POLICY)


def opened(at: float = 3.0) -> Breaker:
    """One that opened at that time, by the last of three faults."""
    it = Breaker(count(1))
    for time in (at - 2, at - 1, at):
        end(it, FAULT, time)
    assert it.state(at) is OPEN
    return it


def settle(
    it: Breakers,
    outcome: Outcome,
    at: float,
    trial: Trial = NO_TRIAL,
    *,
    since: float = 0.0,
    variant: Variant = M,
) -> None:
    """A lease of the variant ended there."""
    it.settle_own(variant.model, outcome, leased_at=since, trial=trial.instance, now=at)
    it.settle_pair(variant, outcome, leased_at=since, trial=trial, now=at)


def test_it_opens_at_the_threshold_and_not_before() -> None:
    it = Breaker(count(1))

    states = []
    for at in (1.0, 2.0, 3.0):
        end(it, FAULT, at)
        states.append(it.state(at))

    assert states == [CLOSED, CLOSED, OPEN]
    assert (it.last_error, it.reopens_at(3.0), it.allows(3.0, POLICY)) == ("it crashed", 13.0, False)


def test_a_success_in_between_starts_the_count_anew() -> None:
    it = Breaker(count(1))

    for at in range(1, 20):
        end(it, OK if at % 3 == 0 else FAULT, float(at))

    assert it.state(20.0) is CLOSED


def test_neutral_outcomes_neither_count_nor_forgive() -> None:
    it = Breaker(count(1))
    for at in (1.0, 2.0, 3.0, 4.0):
        end(it, NEUTRAL, at)
    assert it.state(4.0) is CLOSED

    for at, outcome in ((5.0, FAULT), (6.0, NEUTRAL), (7.0, FAULT), (8.0, NEUTRAL), (9.0, FAULT)):
        end(it, outcome, at)

    assert it.state(9.0) is OPEN


def test_failures_of_what_was_out_together_count_once() -> None:
    it = Breaker(count(1))

    for at in range(20):
        end(it, FAULT, 10.0 + at, leased_at=9.0)

    assert it.state(30.0) is CLOSED


def test_what_was_lent_after_the_last_fault_counts_anew() -> None:
    it = Breaker(count(1))

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
    it = Breaker(count(1))
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
    it = Breaker(count(1))
    end(it, FAULT, 1.0)
    end(it, FAULT, 2.0)

    it.begin_anew(3.0)
    end(it, FAULT, 4.0)

    assert it.state(4.0) is CLOSED


def test_it_opens_at_once_and_once_for_what_was_out_together() -> None:
    it = Breaker(count(1))

    it.open("first", leased_at=0.5, now=1.0, policy=POLICY)
    it.open("the same", leased_at=0.9, now=9.0, policy=POLICY)
    assert (it.state(1.0), it.reopens_at(9.0), it.last_error) == (OPEN, 11.0, "first")

    it.open("another", leased_at=9.5, now=10.0, policy=POLICY)
    assert (it.reopens_at(10.0), it.last_error) == (20.0, "another")


def test_disabled_nothing_opens_it_at_once_either() -> None:
    it = Breaker(count(1))

    it.open("x", leased_at=0.5, now=1.0, policy=BreakerPolicy(enabled=False))

    assert (it.state(1.0), it.last_error) == (CLOSED, "")


def test_a_number_that_is_not_of_its_trials_returns_no_permit_and_closes_nothing() -> None:
    it = opened(3.0)
    trials = [it.take(13.0), it.take(13.0)]

    end(it, OK, 14.0, leased_at=13.0, trial=max(trials) + 1)
    end(it, NEUTRAL, 14.0, leased_at=13.0, trial=max(trials) + 1)

    assert len({0, *trials}) == 3
    assert (it.state(14.0), it.allows(14.0, POLICY)) == (HALF_OPEN, False)


def test_what_may_not_open_it_counts_until_something_may() -> None:
    it = Breaker(count(1))
    for at in (1.0, 2.0, 3.0, 4.0):
        it.settle(FAULT, leased_at=at - 0.5, trial=0, now=at, policy=POLICY, may_open=False)
    assert it.state(4.0) is CLOSED

    end(it, FAULT, 5.0)

    assert it.state(5.0) is OPEN


def test_a_fault_of_the_instance_counts_for_the_model_there_too() -> None:
    it = Breakers(POLICY)

    for at in (1.0, 2.0, 3.0):
        settle(it, GONE, at, since=at - 0.5)

    assert it.state(3.0) is OPEN
    assert it.states(3.0) == {M.model: OPEN}
    assert (it.allows(M, 3.0), it.allows(N, 3.0)) == (False, False)


def test_a_runners_faults_of_one_model_open_that_model_and_spare_the_instance() -> None:
    it = Breakers(POLICY)

    for at in range(1, 10):
        settle(it, FAULT, float(at), since=at - 0.5)

    assert (it.state(9.0), dict(it.states(9.0))) == (CLOSED, {M.model: OPEN})
    assert (it.allows(M, 9.0), it.allows(BIG, 9.0), it.allows(N, 9.0)) == (False, False, True)


def test_a_runners_faults_of_two_models_open_the_instance() -> None:
    it = Breakers(POLICY)

    for at, variant in ((1.0, M), (2.0, M), (3.0, N)):
        assert it.state(at) is CLOSED
        settle(it, FAULT, at, since=at - 0.5, variant=variant)

    assert (it.state(3.0), it.states(3.0)) == (OPEN, {})


def test_two_variants_of_one_model_are_one_model() -> None:
    it = Breakers(POLICY)

    for at, variant in ((1.0, M), (2.0, BIG), (3.0, M), (4.0, BIG)):
        settle(it, FAULT, at, since=at - 0.5, variant=variant)

    assert (it.state(4.0), dict(it.states(4.0))) == (CLOSED, {M.model: OPEN})


def test_a_success_forgets_which_models_were_at_fault() -> None:
    it = Breakers(POLICY)
    settle(it, FAULT, 1.0, since=0.5, variant=N)
    settle(it, OK, 2.0, since=1.5, variant=N)

    for at in (3.0, 4.0, 5.0, 6.0):
        settle(it, FAULT, at, since=at - 0.5)

    assert it.state(6.0) is CLOSED


def test_an_instance_on_trial_opens_again_whatever_a_runner_did() -> None:
    it = Breakers(POLICY)
    for at in (1.0, 2.0, 3.0):
        settle(it, GONE, at, since=at - 0.5, variant=N)
    trial = it.take(M, 13.0)

    settle(it, FAULT, 14.0, trial, since=13.0)

    assert (it.state(14.0), it.reopens_at(M, 14.0)) == (OPEN, 24.0)


def test_what_is_the_models_own_fault_spares_the_instance_and_opens_the_model_at_once() -> None:
    it = Breakers(POLICY)

    settle(it, MISSING, 1.0, variant=BIG)

    assert (it.state(1.0), dict(it.states(1.0))) == (CLOSED, {M.model: OPEN})
    assert (it.allows(M, 1.0), it.allows(BIG, 1.0), it.allows(N, 1.0)) == (False, False, True)
    assert (it.reopens_at(M, 1.0), it.last_error(M, 1.0)) == (11.0, "not found")
    assert (it.reopens_at(N, 1.0), it.last_error(N, 1.0)) == (None, "")


def test_what_is_the_variants_own_fault_spares_the_models_other_variants() -> None:
    it = Breakers(POLICY)

    settle(it, CANNOT, 1.0, variant=BIG)

    assert (it.state(1.0), dict(it.states(1.0))) == (CLOSED, {M.model: OPEN})
    assert (it.allows(M, 1.0), it.allows(BIG, 1.0), it.allows(N, 1.0)) == (True, False, True)
    assert (it.reopens_at(BIG, 1.0), it.last_error(BIG, 1.0)) == (11.0, "out of memory")
    assert (it.reopens_at(M, 1.0), it.last_error(M, 1.0)) == (None, "")


@pytest.mark.parametrize("outcome", [MISSING, CANNOT])
def test_what_spares_the_instance_gives_its_permit_back(outcome: Outcome) -> None:
    it = Breakers(BreakerPolicy(threshold=1, reset_seconds=10.0, permits=1))
    settle(it, GONE, 1.0, variant=N)
    trial = it.take(M, 11.0)
    assert not it.allows(N, 11.0)

    settle(it, outcome, 12.0, trial, since=11.0)

    assert (it.state(12.0), it.allows(N, 12.0)) == (HALF_OPEN, True)


@pytest.mark.parametrize("outcome", [MISSING, CANNOT, GONE, FAULT])
def test_nothing_opens_where_it_is_disabled(outcome: Outcome) -> None:
    it = Breakers(BreakerPolicy(threshold=1, enabled=False, reset_seconds=10.0))

    for at, variant in ((1.0, M), (2.0, N), (3.0, BIG)):
        settle(it, outcome, at, since=at - 0.5, variant=variant)

    assert (it.state(3.0), it.states(3.0)) == (CLOSED, {})
    assert all(it.allows(each, 3.0) for each in (M, N, BIG))


def test_what_was_counted_before_they_were_disabled_is_forgotten() -> None:
    it = Breakers(BreakerPolicy(threshold=1, reset_seconds=10.0))
    settle(it, GONE, 1.0, variant=N)
    settle(it, CANNOT, 2.0, since=1.5)
    trial = it.take(M, 12.5)
    assert (bool(trial.instance), bool(trial.model)) == (True, True)

    it.use(BreakerPolicy(threshold=1, enabled=False, reset_seconds=10.0))
    assert (it.state(12.5), it.states(12.5), it.models) == (CLOSED, {}, set())
    settle(it, GONE, 13.0, trial, since=12.5)
    it.use(BreakerPolicy(threshold=1, reset_seconds=10.0))

    assert (it.state(14.0), it.allows(M, 14.0), it.allows(N, 14.0)) == (CLOSED, True, True)


def test_a_pause_keeps_apart_from_the_breakers() -> None:
    """It is told where something waits for it, and over at once when its time is up."""
    it = Breakers(POLICY)

    it.pause(BIG, "busy", until=4.0)

    assert (it.reopens_at(BIG, 3.0), it.last_error(BIG, 3.0)) == (4.0, "busy")
    assert (it.reopens_at(M, 3.0), it.last_error(M, 3.0)) == (None, "")
    assert (it.state(3.0), it.states(3.0), it.models) == (CLOSED, {}, set())
    assert (it.reopens_at(BIG, 4.0), it.last_error(BIG, 4.0), it.states(4.0)) == (None, "", {})
    assert (it.take(BIG, 4.0), it.allows(BIG, 4.0)) == (NO_TRIAL, True)


def test_a_pause_neither_shortens_nor_renames_what_is_open() -> None:
    it = Breakers(POLICY)
    settle(it, CANNOT, 3.0)

    it.pause(M, "busy", until=4.0)
    assert (it.reopens_at(M, 3.5), it.last_error(M, 3.5)) == (13.0, "out of memory")
    it.pause(M, "busy", until=20.0)

    assert (it.reopens_at(M, 14.0), it.last_error(M, 14.0)) == (20.0, "busy")


def test_of_two_that_are_open_the_later_one_tells_when() -> None:
    it = Breakers(POLICY)
    for at in (1.0, 2.0, 3.0):
        settle(it, GONE, at, since=at - 0.5, variant=N)
    settle(it, MISSING, 5.0, since=4.0)
    settle(it, CANNOT, 8.0, since=7.0, variant=BIG)
    assert [it.reopens_at(each, 9.0) for each in (N, M, BIG)] == [13.0, 15.0, 18.0]

    it.pause(M, "busy", until=30.0)

    assert [it.reopens_at(each, 9.0) for each in (N, M, BIG)] == [13.0, 30.0, 18.0]
    assert [it.reopens_at(each, 14.0) for each in (N, M, BIG)] == [None, 30.0, 18.0]


def test_a_lease_can_try_all_and_gives_all_permits_back() -> None:
    it = Breakers(BreakerPolicy(threshold=1, reset_seconds=10.0, permits=1))
    settle(it, GONE, 1.0)
    settle(it, CANNOT, 1.0, variant=BIG)

    trial = it.take(BIG, 11.0)

    assert len({0, trial.instance, trial.model, trial.variant}) == 4
    assert [it.allows(each, 11.0) for each in (M, BIG, N)] == [False] * 3
    settle(it, NEUTRAL, 12.0, trial, since=11.0, variant=BIG)
    assert [it.allows(each, 12.0) for each in (M, BIG, N)] == [True] * 3
    settle(it, OK, 14.0, it.take(BIG, 13.0), since=13.0, variant=BIG)
    assert (it.state(14.0), it.models) == (CLOSED, set())


def test_a_failure_on_trial_of_the_variant_opens_it_again() -> None:
    it = Breakers(POLICY)
    settle(it, CANNOT, 1.0, variant=BIG)
    trial = it.take(BIG, 11.0)
    assert (bool(trial.variant), trial.instance, trial.model) == (True, 0, 0)

    settle(it, FAULT, 12.0, trial, since=11.0, variant=BIG)

    assert (it.reopens_at(BIG, 12.0), it.reopens_at(M, 12.0)) == (22.0, None)


def test_what_is_closed_takes_no_permit() -> None:
    it = Breakers(POLICY)

    assert (it.take(M, 1.0), it.take(BIG, 1.0)) == (NO_TRIAL, NO_TRIAL)


def test_a_model_that_was_forgotten_owes_its_trials_nothing() -> None:
    """A trial lent before it was forgotten must not free a permit of what came after it, nor close that."""
    it = Breakers(BreakerPolicy(threshold=5, reset_seconds=10.0, permits=1))
    settle(it, MISSING, 1.0)
    old = it.take(M, 11.0)
    it.forget(M.model)
    settle(it, MISSING, 12.0, since=11.5)
    new = it.take(M, 22.0)
    assert (bool(old.model), bool(new.model), old.model != new.model) == (True, True, True)

    for outcome in (NEUTRAL, OK):
        settle(it, outcome, 23.0, old, since=11.0)
        assert (it.states(23.0), it.allows(M, 23.0)) == ({M.model: HALF_OPEN}, False)


def test_a_model_is_forgotten_with_all_its_variants() -> None:
    it = Breakers(POLICY)
    for variant in (M, BIG, N):
        settle(it, CANNOT, 1.0, variant=variant)

    it.forget(M.model)

    assert [it.allows(each, 1.0) for each in (M, BIG, N)] == [True, True, False]


def test_an_instance_that_starts_anew_ends_pauses_and_lets_all_be_tried() -> None:
    it = Breakers(POLICY)
    settle(it, GONE, 1.0, since=0.5, variant=N)
    settle(it, CANNOT, 2.0, since=1.5, variant=BIG)
    it.pause(M, "busy", until=30.0)

    it.begin_anew(3.0)

    assert [it.reopens_at(each, 3.0) for each in (M, BIG, N)] == [None] * 3
    assert it.states(3.0) == {M.model: HALF_OPEN}


@pytest.mark.parametrize("outcome", [OK, FAULT, GONE, NEUTRAL, MISSING, CANNOT])
def test_an_outcome_of_the_instance_leaves_other_models_alone(outcome: Outcome) -> None:
    it = Breakers(POLICY)
    it.settle_pair(N, CANNOT, leased_at=0.0, trial=NO_TRIAL, now=1.0)

    settle(it, outcome, 2.0)

    assert it.states(2.0)[N.model] is OPEN


def test_breakers_of_models_are_bounded_and_the_oldest_goes_first() -> None:
    it = Breakers(POLICY)
    variants = [Variant(canonical_name(f"m{number}")) for number in range(PAIRS_LIMIT + 1)]

    for each in variants:
        settle(it, CANNOT, 1.0, variant=each)

    assert len(it.models) == PAIRS_LIMIT
    assert (it.allows(variants[0], 1.0), it.allows(variants[1], 1.0)) == (True, False)


def test_pauses_are_bounded() -> None:
    it = Breakers(POLICY)
    variants = [Variant(canonical_name(f"m{number}")) for number in range(3 * PAIRS_LIMIT)]

    for each in variants:
        it.pause(each, "x", until=100.0)

    assert sum(it.reopens_at(each, 1.0) is not None for each in variants) <= PAIRS_LIMIT
    assert it.reopens_at(variants[-1], 1.0) == 100.0
