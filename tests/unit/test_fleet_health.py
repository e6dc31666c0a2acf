"""Whether an instance answers: thresholds, lives, and what arrives late from an earlier one."""

import pytest

from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy, HealthState
from balancer.fleet.instance import Instance
from tests.unit.unit_support import instance


def health(unhealthy: int = 3, healthy: int = 2, *, up: bool = True) -> Health:
    made = Health(HealthPolicy(unhealthy_threshold=unhealthy, healthy_threshold=healthy))
    if up:
        made.succeeded(0.0)
    return made


def test_an_instance_is_unknown_until_its_first_success() -> None:
    it = health(healthy=5, up=False)

    assert (it.state, it.suspect) == (HealthState.UNKNOWN, False)
    assert it.succeeded(0.0) is True
    assert it.state is HealthState.UP
    assert it.succeeded(0.0) is False


@pytest.mark.parametrize("threshold", [1, 2, 3, 5])
def test_it_is_down_after_so_many_failures_in_a_row(threshold: int) -> None:
    it = health(threshold)

    changes = [it.failed("slow", 0.0, refused=False) for _ in range(threshold + 2)]

    assert [False] * (threshold - 1) + [True, False, False] == changes
    assert (it.state, it.suspect, it.last_error) == (HealthState.DOWN, False, "slow")


def test_a_success_in_between_starts_the_count_anew() -> None:
    it = health(2)

    for _ in range(5):
        assert it.failed("slow", 0.0, refused=False) is False
        assert it.suspect
        it.succeeded(0.0)
        assert not it.suspect
    assert (it.state, it.last_error) == (HealthState.UP, None)


def test_a_refused_connection_takes_it_down_at_once() -> None:
    assert health(9).failed("refused", 0.0, refused=True) is True
    assert health(9, up=False).failed("refused", 0.0, refused=True) is True


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_it_comes_up_after_so_many_successes_in_a_row(threshold: int) -> None:
    it = health(1, threshold)
    it.failed("x", 0.0, refused=True)

    assert [False] * (threshold - 1) + [True, False] == [it.succeeded(0.0) for _ in range(threshold + 1)]
    assert it.state is HealthState.UP


def test_a_failure_while_coming_up_starts_the_count_anew() -> None:
    it = health(1, 2)
    it.failed("x", 0.0, refused=True)

    assert [it.succeeded(0.0), it.failed("x", 0.0, refused=True), it.succeeded(0.0), it.succeeded(0.0)] == [
        False,
        False,
        False,
        True,
    ]


def test_one_never_seen_up_is_neither_usable_nor_suspect_while_it_fails() -> None:
    it = health(3, up=False)
    it.failed("slow", 0.0, refused=False)

    assert (it.state, it.suspect) == (HealthState.UNKNOWN, False)


def told(fleet: Fleet) -> list[str]:
    events: list[str] = []
    fleet.listen(
        on_change=lambda each: events.append(f"change {each.id}"),
        on_down=lambda each: events.append(f"down {each.id}"),
    )
    return events


def fail(fleet: Fleet, it: Instance, *, incarnation: int | None = None, refused: bool = True) -> bool:
    life = it.incarnation if incarnation is None else incarnation
    return fleet.failed(it, "x", refused=refused, incarnation=life)


def test_going_down_is_told_first_as_down_and_then_as_a_change_once() -> None:
    a = instance("a")
    fleet = Fleet([a])
    events = told(fleet)

    assert [fail(fleet, a) for _ in range(3)] == [True, False, False]
    assert events == ["down a", "change a"]


def test_coming_up_begins_a_new_life_and_is_told() -> None:
    a = instance("a", up=False)
    fleet = Fleet([a])
    events = told(fleet)

    assert fleet.probe_succeeded(a, version="0.33.0", incarnation=a.incarnation) is True
    assert fleet.probe_succeeded(a, version="0.33.1", incarnation=a.incarnation) is False
    assert (a.incarnation, a.version, events) == (1, "0.33.1", ["change a"])


def test_each_end_and_each_begin_is_another_life() -> None:
    a = instance("a", up=False, thresholds=(1, 1))
    fleet = Fleet([a])

    lives = []
    for _ in range(3):
        fleet.probe_succeeded(a, version="1", incarnation=a.incarnation)
        lives.append(a.incarnation)
        fail(fleet, a)
        lives.append(a.incarnation)

    assert lives == sorted(set(lives))


@pytest.mark.parametrize("refused", [True, False])
def test_a_late_failure_of_an_earlier_life_changes_nothing(refused: bool) -> None:
    a = instance("a", thresholds=(1, 1))
    fleet = Fleet([a])
    life = a.incarnation
    fail(fleet, a)
    fleet.probe_succeeded(a, version="1", incarnation=a.incarnation)
    events = told(fleet)
    now = a.incarnation

    assert fail(fleet, a, incarnation=life, refused=refused) is False
    assert (True, False, now, None, []) == (a.usable, a.suspect, a.incarnation, a.health.last_error, events)


def test_failures_in_flight_together_count_once() -> None:
    a = instance("a", thresholds=(3, 1))
    fleet = Fleet([a])
    life = a.incarnation
    events = told(fleet)

    assert [fail(fleet, a, incarnation=life) for _ in range(3)] == [True, False, False]
    assert events == ["down a", "change a"]


def test_runners_go_with_the_instance_and_models_stay() -> None:
    a = instance("a", models=("m", "n"))
    a.read_inventory(models=None, runners=[{"name": "m", "digest": "1"}], slots={}, at=1.0)

    fail(Fleet([a]), a)

    assert a.inventory is not None
    assert ({}, {"m:latest", "n:latest"}) == (a.inventory.runners, set(a.inventory.models))


def test_only_what_answers_is_usable_and_only_its_models_are_there() -> None:
    a, b, c = instance("a", models=("m",)), instance("b", models=("n",), up=False), instance("c", models=None)
    fleet = Fleet([a, b, c])

    assert (a, b, c) == fleet.instances()
    assert (a, c) == fleet.usable()
    assert {"m:latest"} == fleet.models()


def test_an_instance_is_found_by_its_id() -> None:
    a = instance("a")
    fleet = Fleet([a])

    assert a is fleet.get(a.id)
    assert a.id in fleet
    assert "z" not in fleet
    with pytest.raises(KeyError):
        fleet.get(instance("z").id)


def test_draining_is_told_and_leaves_health_and_leases_alone() -> None:
    a = instance("a")
    fleet = Fleet([a])
    events = told(fleet)
    before = (a.usable, a.incarnation)

    fleet.drain(a, drained=True)

    assert (True, ["change a"], before) == (a.drained, events, (a.usable, a.incarnation))


def test_an_answer_to_an_earlier_life_changes_nothing() -> None:
    a = instance("a", thresholds=(1, 1))
    fleet = Fleet([a])
    asked_in = a.incarnation
    fail(fleet, a)

    assert fleet.probe_succeeded(a, version="1", incarnation=asked_in) is False
    assert a.usable is False
