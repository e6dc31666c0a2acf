"""Where nothing has failed the breakers are asked nothing: it must be as if they had been."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.names import canonical_name
from balancer.core.ticket import Blame, Outcome, Trial, Verdict
from balancer.core.variant import Variant
from balancer.fleet.breaker import BreakerPolicy, Breakers

POLICY = BreakerPolicy(threshold=2, reset_seconds=5.0, permits=2)
M, N = canonical_name("m"), canonical_name("n")
VARIANTS = [Variant(M), Variant(N), Variant(M, (("num_ctx", 8192),))]
OUTCOMES = [
    *[Outcome(verdict=Verdict.SUCCESS, kind="ok")] * 4,
    Outcome(verdict=Verdict.NEUTRAL, kind="cancelled"),
    *[Outcome(verdict=Verdict.FAILURE, kind="failed", error="failed", blames=each) for each in Blame],
]
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "settle", "settle", "pass", "pause", "anew", "forget", "use"]),
        st.sampled_from(VARIANTS),
        st.sampled_from(OUTCOMES),
        st.integers(0, 9),
    ),
    max_size=60,
)


class Asked(Breakers):
    """They are always asked."""

    untroubled = cast("Any", False)


@dataclass
class Leased:
    """A lease of a variant, with the trials that it is told of by both."""

    variant: Variant
    at: float
    short: Trial
    long: Trial


def settle(it: Breakers, lease: Leased, trial: Trial, outcome: Outcome, now: float) -> None:
    """As `Instance.settle` does, for what belongs to the life that the instance has now."""
    if outcome.verdict is not Verdict.FAILURE and it.untroubled:
        return
    it.settle_own(lease.variant.model, outcome, leased_at=lease.at, trial=trial.instance, now=now)
    it.settle_pair(lease.variant, outcome, leased_at=lease.at, trial=trial, now=now)


def change(it: Breakers, act: str, variant: Variant, number: int, now: float) -> None:
    """What is no lease."""
    match act:
        case "pause":
            it.pause(variant, "full", until=now + number)
        case "anew":
            it.begin_anew(now)
        case "forget":
            it.forget(variant.model)
        case "use":
            it.use(BreakerPolicy(threshold=1 + number % 3, reset_seconds=5.0, enabled=number > 1))


def told(it: Breakers, now: float) -> list[object]:
    per_variant = [
        (it.allows(each, now), it.reopens_at(each, now), it.last_error(each, now)) for each in VARIANTS
    ]
    return [*per_variant, it.state(now), it.states(now), it.models]


@given(ACTS)
def test_the_short_way_says_what_the_long_one_says(acts: list[tuple[str, Variant, Outcome, int]]) -> None:
    short, long = Breakers(POLICY), Asked(POLICY)
    leases: list[Leased] = []
    now = 100.0
    for act, variant, outcome, number in acts:
        if act == "take":
            leases.append(Leased(variant, now, short.take(variant, now), long.take(variant, now)))
            assert leases[-1].long == leases[-1].short
        elif act == "settle" and leases:
            lease = leases.pop(number % len(leases))
            settle(short, lease, lease.short, outcome, now)
            settle(long, lease, lease.long, outcome, now)
        else:
            change(short, act, variant, number, now)
            change(long, act, variant, number, now)
        now += number if act == "pass" else 0.25

        assert told(long, now) == told(short, now)


@pytest.mark.parametrize("blames", list(Blame))
def test_what_failed_is_trouble_until_it_went_well(blames: Blame) -> None:
    it = Breakers(POLICY)
    failed = Outcome(verdict=Verdict.FAILURE, kind="failed", error="failed", blames=blames)
    assert it.untroubled

    settle(it, Leased(VARIANTS[0], 1.0, Trial(), Trial()), Trial(), failed, 2.0)
    assert not it.untroubled

    it.begin_anew(3.0)
    trial = it.take(VARIANTS[0], 4.0)
    settle(it, Leased(VARIANTS[0], 4.0, trial, trial), trial, OUTCOMES[0], 5.0)
    assert it.untroubled


def test_a_pause_is_trouble_until_a_lease_ends_after_it() -> None:
    it = Breakers(POLICY)
    it.pause(VARIANTS[0], "full", until=10.0)

    assert not it.untroubled
    assert it.reopens_at(VARIANTS[0], 10.0) is None
    assert it.reopens_at(VARIANTS[0], 9.0) == 10.0, "to ask for a later time changes nothing"
    settle(it, Leased(VARIANTS[0], 1.0, Trial(), Trial()), Trial(), OUTCOMES[0], 9.0)
    assert not it.untroubled
    settle(it, Leased(VARIANTS[0], 9.0, Trial(), Trial()), Trial(), OUTCOMES[0], 10.0)
    assert it.untroubled
