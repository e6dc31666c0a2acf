"""An instance that comes and goes is spared for a while after it comes up, longer with each fall."""

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.fleet.breaker import BreakerPolicy, Breakers, BreakerState
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import STEADY_SECONDS, Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from tests.unit.unit_support import FakeClock, instance


def health() -> Health:
    return Health(HealthPolicy(unhealthy_threshold=1, healthy_threshold=1))


def fall_and_rise(it: Health, at: float, *, up_after: float = 1.0) -> float:
    """Go down at that time and come up a moment later; how long it is spared from then."""
    assert it.failed("x", at, refused=True)
    assert it.succeeded(at + up_after)
    return max(0.0, it.held_until - (at + up_after))


def test_the_first_start_and_the_first_fall_cost_nothing() -> None:
    it = health()
    it.succeeded(0.0)

    assert it.held_until <= 0.0
    assert fall_and_rise(it, 1000.0) == 0.0


def test_each_further_fall_doubles_the_time_up_to_a_minute() -> None:
    it = health()
    it.succeeded(0.0)
    at, spared = 1000.0, []

    for _ in range(8):
        spared.append(fall_and_rise(it, at))
        at = max(at + 1.0, it.held_until) + 2.0

    assert spared == [0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


@pytest.mark.parametrize(("steady", "spared"), [(STEADY_SECONDS, 0.0), (STEADY_SECONDS - 0.1, 10.0)])
def test_a_minute_in_use_makes_it_steady_again(steady: float, spared: float) -> None:
    it = health()
    it.succeeded(0.0)
    fall_and_rise(it, 1000.0)
    assert fall_and_rise(it, 1010.0) == 5.0

    assert fall_and_rise(it, it.held_until + steady) == spared


def test_the_time_that_it_is_spared_is_no_time_in_use() -> None:
    it = health()
    it.succeeded(0.0)
    fall_and_rise(it, 1000.0)
    at = 1010.0
    for expected in (5.0, 10.0, 20.0, 40.0, 60.0):
        assert fall_and_rise(it, at) == expected
        at = it.held_until + STEADY_SECONDS - 1.0

    assert fall_and_rise(it, at) == 60.0


def test_failing_on_while_it_is_down_is_one_fall() -> None:
    it = health()
    it.succeeded(0.0)

    for at in range(10):
        it.failed("x", 1000.0 + at, refused=True)
    it.succeeded(1020.0)

    assert it.held_until <= 1020.0
    assert fall_and_rise(it, 1030.0) == 5.0


def test_one_that_was_never_up_is_not_spared_when_it_comes() -> None:
    it = health()
    for at in range(10):
        it.failed("x", float(at), refused=True)

    it.succeeded(20.0)

    assert it.held_until <= 20.0


def test_it_counts_as_up_while_it_is_spared() -> None:
    clock = FakeClock()
    a = instance("a", thresholds=(1, 1))
    fleet = Fleet([a], clock=clock)
    for _ in range(2):
        fleet.failed(a, "x", refused=True, incarnation=a.incarnation)
        fleet.probe_succeeded(a, version="1", incarnation=a.incarnation)

    assert (a.usable, a.held_until, fleet.usable()) == (True, clock.now + 5.0, (a,))
    assert a.breakers.state(clock.now) is BreakerState.CLOSED


def test_becoming_suspect_is_told_once() -> None:
    a = instance("a", thresholds=(4, 1))
    fleet = Fleet([a], clock=FakeClock())
    told: list[bool] = []
    fleet.listen(on_change=lambda each: told.append(each.suspect))

    for _ in range(3):
        fleet.failed(a, "slow", refused=False, incarnation=a.incarnation)

    assert told == [True]


def test_one_is_unproven_until_its_first_probe_comes_back_well_or_not() -> None:
    well, ill = health(), health()
    ill.policy = HealthPolicy(unhealthy_threshold=3, healthy_threshold=1)
    assert (well.unproven, ill.unproven) == (True, True)

    well.succeeded(1.0)
    ill.failed("x", 1.0, refused=False)

    assert (well.unproven, ill.unproven) == (False, False)
    fall_and_rise(well, 2.0)
    assert not well.unproven


def test_that_the_first_probe_failed_is_told_once() -> None:
    a = Instance(InstanceSpec(id=InstanceId("a"), url="http://a:1"), health(), Breakers(BreakerPolicy()))
    a.health.policy = HealthPolicy(unhealthy_threshold=4, healthy_threshold=1)
    fleet = Fleet([a], clock=FakeClock())
    told: list[bool] = []
    fleet.listen(on_change=lambda each: told.append(each.unproven))
    assert (a.unproven, a.usable, a.holds(canonical_name("m"))) == (True, False, True)

    for _ in range(3):
        fleet.failed(a, "slow", refused=False, incarnation=a.incarnation)

    assert (told, a.usable, a.holds(canonical_name("m"))) == ([False], False, False)
