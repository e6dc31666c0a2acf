"""What needs no load: told from lists, and from loads of ours that no list tells of yet."""

from typing import Any

import pytest

from balancer.core.names import ModelName
from balancer.core.ticket import Blame, Outcome, Trial, Verdict
from balancer.core.variant import OptionValue, Variant
from balancer.fleet.breaker import BreakerState
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from tests.unit.unit_support import OK, FakeClock, instance

CANNOT = Outcome(verdict=Verdict.FAILURE, kind="load", error="killed", blames=Blame.VARIANT)
CRASH = Outcome(verdict=Verdict.FAILURE, kind="crash", error="the runner crashed")
LOST = Outcome(verdict=Verdict.FAILURE, kind="connection_lost", error="lost", blames=Blame.INSTANCE)
BUSY = Outcome(verdict=Verdict.NEUTRAL, kind="busy", error="server busy")
REFUSED = Outcome(verdict=Verdict.NEUTRAL, kind="rejected", error="invalid option")


def variant(model: str = "m:latest", **options: OptionValue) -> Variant:
    return Variant(ModelName(model), tuple(sorted(options.items())))


def runner(context: int = 2048, *, digest: str = "1", name: str = "m") -> dict[str, Any]:
    return {"name": name, "digest": digest, "context_length": context}


def listed(it: Instance, *runners: dict[str, Any], at: float) -> None:
    it.read_inventory(models=None, runners=runners, slots={}, at=at)


def loaded(it: Instance, wanted: Variant, *, at: float, outcome: Outcome = OK) -> None:
    """A load that took a second and ended at that time."""
    clock = FakeClock(at - 1)
    fleet = Fleet([it], clock=clock)
    load = fleet.load_began(it, wanted, patience_seconds=60.0)
    clock.advance(1.0)
    fleet.loaded(it, load, outcome)
    fleet.load_ended(it, load, outcome)


def test_what_a_list_names_is_warm_and_nothing_else() -> None:
    it = instance("a", models=("m", "n"), cold=True)
    listed(it, runner(), at=1.0)

    assert [it.warm(variant()), it.warm(variant("n:latest"))] == [True, False]


def test_where_no_list_could_be_read_the_request_will_tell() -> None:
    assert instance("a", models=None).warm(variant())


def test_a_cloud_model_needs_no_load() -> None:
    assert instance("a", cold=True).warm(variant("m:cloud"))


def test_a_load_is_believed_until_a_list_read_later_tells_otherwise() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)
    assert it.warm(variant())

    listed(it, at=9.5)
    assert it.warm(variant())
    listed(it, runner(), at=10.5)
    assert it.warm(variant())
    listed(it, at=11.5)
    assert not it.warm(variant())


def test_a_load_that_the_very_next_list_does_not_show_says_that_the_list_does_not_tell() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)

    for at in (10.5, 11.5, 12.5):
        listed(it, at=at)
        assert [it.warm(variant()), it.warm(variant(num_ctx=4096))] == [True, True]

    listed(it, runner(), at=13.5)
    listed(it, at=14.5)
    assert not it.warm(variant())


def test_that_a_list_does_not_tell_of_a_model_says_nothing_of_others_and_ends_with_the_instance() -> None:
    it = instance("a", models=("m", "n"), cold=True)
    loaded(it, variant(), at=10.0)
    listed(it, at=10.5)
    assert [it.warm(variant()), it.warm(variant("n:latest"))] == [True, False]

    it.forget_runners()

    assert not it.warm(variant())


def test_what_was_unloaded_on_purpose_is_cold_and_no_list_is_blamed_for_it() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)

    it.forget_runner(variant().model, 10.2)
    assert not it.warm(variant())
    listed(it, at=10.5)

    assert not it.warm(variant())


def test_while_it_is_loaded_with_other_options_a_model_is_as_good_as_gone() -> None:
    it = instance("a")
    it.load_began(variant(num_ctx=4096), 0.0, 60.0)

    assert not it.warm(variant())

    outcome = Outcome(verdict=Verdict.NEUTRAL, kind="busy", error="busy")
    it.load_ended(variant(num_ctx=4096), outcome, began_at=1.0, now=2.0, current=True)
    assert it.warm(variant())


def test_a_runner_stays_warm_while_the_very_same_is_loaded() -> None:
    it = instance("a")

    it.load_began(variant(), 0.0, 60.0)

    assert it.warm(variant())


def test_where_only_the_models_could_be_read_the_request_will_tell() -> None:
    it = instance("a", models=None)

    it.read_inventory(models=[{"name": "m"}], runners=None, slots={}, at=5.0)
    assert it.inventory is not None
    assert (it.inventory.read_at, it.inventory.runners_at, it.warm(variant())) == (5.0, None, True)

    it.read_inventory(models=None, runners=[], slots={}, at=6.0)
    assert (it.inventory.read_at, it.inventory.runners_at, it.warm(variant())) == (6.0, 6.0, False)


def test_a_list_of_models_alone_tells_nothing_of_a_load() -> None:
    """What counts is when the runners were read, not when anything was."""
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)

    it.read_inventory(models=[{"name": "m"}], runners=None, slots={}, at=11.0)

    assert it.inventory is not None
    assert (it.inventory.read_at, it.inventory.runners_at) == (11.0, 0.0)
    assert [it.warm(variant()), it.warm(variant(num_ctx=4096))] == [True, False]


def test_what_the_instance_refuses_to_load_is_let_through_to_be_told() -> None:
    it = instance("a", cold=True)

    loaded(it, variant(num_ctx=7), at=10.0, outcome=REFUSED)

    assert [it.warm(variant(num_ctx=7)), it.warm(variant())] == [True, False]
    assert (it.breaker_reopens_at(variant(num_ctx=7), 10.0), it.breakers.models) == (None, set())
    it.forget_runners()
    assert not it.warm(variant(num_ctx=7))


def test_those_that_are_let_through_are_bounded_and_the_oldest_goes_first() -> None:
    it = instance("a", cold=True)

    for number in range(101):
        loaded(it, variant(num_ctx=number), at=10.0, outcome=REFUSED)

    assert [it.warm(variant(num_ctx=number)) for number in (0, 1, 100)] == [False, True, True]


def test_a_load_is_overdue_when_its_patience_is_over() -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock(100.0))

    load = fleet.load_began(it, variant(), patience_seconds=7.0)

    assert (it.load_overdue_at, load.began_at, load.incarnation) == (107.0, 100.0, it.incarnation)


@pytest.mark.parametrize(
    ("wanted", "warm"),
    [
        (variant(num_ctx=4096, num_thread=2), True),
        (variant(num_ctx=8192, num_thread=2), False),
        (variant(num_thread=2), False),
        (variant(num_ctx=4096), False),
        (variant(num_ctx=4096, num_thread=2, shift=False), False),
        (variant(), False),
    ],
)
def test_a_runner_serves_the_variant_that_it_was_loaded_for(wanted: Variant, warm: bool) -> None:
    it = instance("a", cold=True)
    loaded(it, variant(num_ctx=4096, num_thread=2), at=10.0)
    listed(it, runner(4096), at=11.0)

    assert it.warm(wanted) is warm


@pytest.mark.parametrize(("context", "warm"), [(4096, True), (2048, False)])
def test_a_context_asked_for_fits_any_runner_that_has_it(context: int, warm: bool) -> None:
    it = instance("a", cold=True)
    listed(it, runner(context), at=1.0)

    assert it.warm(variant(num_ctx=4096)) is warm


def test_a_runner_that_was_loaded_anew_by_others_is_not_ours_any_more() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(num_thread=2), at=10.0)
    listed(it, runner(digest="1"), at=11.0)
    assert it.warm(variant(num_thread=2))

    listed(it, runner(digest="2"), at=12.0)

    assert [it.warm(variant(num_thread=2)), it.warm(variant())] == [False, True]


def test_a_later_load_of_the_model_takes_the_place_of_the_earlier() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)

    loaded(it, variant(num_ctx=4096), at=20.0)

    assert [it.warm(variant()), it.warm(variant(num_ctx=4096))] == [False, True]


def test_what_was_loaded_goes_with_the_instance() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0)

    it.forget_runners()

    assert not it.warm(variant())


def test_a_load_that_came_to_nothing_pauses_the_instance() -> None:
    it = instance("a", cold=True)
    it.pause(10.5)

    loaded(it, variant(), at=10.0, outcome=BUSY)

    assert (it.loading, it.warm(variant()), it.breaker_reopens_at(variant(), 10.0)) == (None, False, None)
    assert (it.paused_until(10.9), it.paused_until(11.0)) == (11.0, None)
    it.pause(10.5)
    assert it.paused_until(10.9) == 11.0


@pytest.mark.parametrize("outcome", [CANNOT, LOST])
def test_a_load_that_failed_leaves_the_model_cold_and_pauses_it(outcome: Outcome) -> None:
    it = instance("a", cold=True)

    loaded(it, variant(), at=10.0, outcome=outcome)

    assert (it.loading, it.warm(variant())) == (None, False)
    assert it.breaker_reopens_at(variant(), 10.0) == (70.0 if outcome is CANNOT else 11.0)
    assert it.breakers.last_error(variant(), 10.0) == outcome.error
    assert it.breakers.state(10.0) is BreakerState.CLOSED


def test_a_load_that_failed_is_held_against_its_variant_alone() -> None:
    it = instance("a", cold=True)

    loaded(it, variant(num_ctx=4096), at=10.0, outcome=CANNOT)

    assert it.breaker_reopens_at(variant(num_ctx=4096), 10.0) == 70.0
    assert [it.breaker_reopens_at(each, 10.0) for each in (variant(), variant(num_ctx=8))] == [None, None]


def test_loads_that_lose_their_connection_open_the_pair_in_the_end() -> None:
    it = instance("a", cold=True)

    for number in range(1, 6):
        loaded(it, variant(), at=10.0 * number, outcome=LOST)

    assert it.breaker_reopens_at(variant(), 50.0) == 110.0


def test_a_model_that_loads_well_and_always_crashes_is_left_alone_in_the_end() -> None:
    it = instance("a", cold=True)

    for number in range(1, 6):
        loaded(it, variant(), at=10.0 * number)
        it.breakers.settle_pair(
            variant(), CRASH, leased_at=10.0 * number, trial=Trial(), now=10.0 * number + 1
        )

    assert it.breaker_reopens_at(variant(), 51.0) == 111.0


@pytest.mark.parametrize("outcome", [OK, CANNOT, LOST, BUSY])
def test_a_load_of_an_earlier_life_ends_and_changes_nothing_else(outcome: Outcome) -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock())
    load = fleet.load_began(it, variant(), patience_seconds=60.0)
    fleet.failed(it, "refused", refused=True, incarnation=it.incarnation)

    fleet.loaded(it, load, outcome)
    fleet.load_ended(it, load, outcome)

    assert (it.loading, it.warm(variant()), it.breakers.models) == (None, False, set())


def test_one_load_at_a_time() -> None:
    it = instance("a", models=("m", "n"), cold=True)
    it.load_began(variant(), 0.0, 60.0)

    with pytest.raises(AssertionError):
        it.load_began(variant("n:latest"), 0.0, 60.0)


def test_a_gate_holds_back_all_but_its_variant_until_its_time_is_up() -> None:
    it = instance("a", cold=True)
    it.load_began(variant(), 0.0, 60.0)

    it.gate(variant(), 20.0)

    assert [it.gated_until(variant(), 10.0), it.gated_until(variant(num_ctx=8), 10.0)] == [None, 20.0]
    assert it.gated_until(variant("n:latest"), 20.0) is None


@pytest.mark.parametrize("outcome", [OK, CANNOT, LOST, BUSY])
def test_a_gate_ends_with_its_load(outcome: Outcome) -> None:
    it = instance("a", cold=True)
    it.load_began(variant(), 0.0, 60.0)
    it.gate(variant(), 1e9)

    it.load_ended(variant(), outcome, began_at=1.0, now=10.0, current=True)

    assert it.gated_until(variant("n:latest"), 10.0) is None


def test_the_end_of_a_load_is_told() -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock())
    load = fleet.load_began(it, variant(), patience_seconds=60.0)
    told: list[tuple[str, bool]] = []
    fleet.listen(on_change=lambda each: told.append((each.id, each.warm(variant()))))

    fleet.loaded(it, load, OK)
    assert (it.warm(variant()), it.loading, told) == (True, variant(), [])
    fleet.load_ended(it, load, OK)

    assert (told, it.loading) == ([("a", True)], None)


def test_a_model_that_runs_nothing_may_make_room_for_one_that_is_loaded() -> None:
    """It may be gone until a list tells otherwise that was read when it would have been."""
    it = instance("a", models=("m", "n", "o"))
    it.take_slot(ModelName("n:latest"), 9.0)
    it.load_began(variant("o:latest"), 10.0, 60.0)

    assert [it.warm(variant()), it.warm(variant("n:latest"))] == [False, True]
    listed(it, runner(), runner(name="n"), at=10.2)
    assert not it.warm(variant())
    listed(it, runner(), runner(name="n"), at=10.3)
    assert it.warm(variant())

    it.give_slot_back(ModelName("n:latest"), 9.0, 12.0)
    assert [it.warm(variant()), it.warm(variant("n:latest"))] == [True, False]
    it.load_ended(variant("o:latest"), OK, began_at=10.0, now=12.1, current=True)
    assert not it.warm(variant("n:latest"))
    listed(it, runner(), runner(name="n"), at=12.3)
    assert it.warm(variant("n:latest"))


def test_what_was_sent_a_moment_ago_keeps_no_model_from_making_room() -> None:
    it = instance("a", models=("m", "n"))
    n = ModelName("n:latest")
    it.take_slot(n, 5.0)
    it.load_began(variant(), 8.0, 60.0)

    it.take_slot(n, 9.0)
    it.give_slot_back(n, 5.0, 9.2)
    assert it.warm(variant("n:latest"))
    it.take_slot(n, 9.95)
    it.give_slot_back(n, 9.0, 10.0)
    assert not it.warm(variant("n:latest"))


def test_a_slot_that_comes_back_while_nothing_else_is_loaded_leaves_no_doubt() -> None:
    it = instance("a", models=("m", "n"))
    it.load_began(variant(), 1.0, 60.0)

    for name in ("m:latest", "n:latest"):
        it.take_slot(ModelName(name), 1.0)
    it.give_slot_back(ModelName("m:latest"), 1.0, 2.0)
    assert it.warm(variant())
    it.load_ended(variant(), OK, began_at=1.0, now=3.0, current=True)
    it.give_slot_back(ModelName("n:latest"), 1.0, 4.0)

    assert not it.warm(variant("n:latest"))  # it ran nothing when the load began
    listed(it, runner(), runner(name="n"), at=4.0)
    assert it.warm(variant("n:latest"))


def test_a_load_that_went_well_ends_all_doubt_about_its_model() -> None:
    it = instance("a", models=("m", "n"))
    it.load_began(variant(), 8.0, 60.0)
    assert not it.warm(variant("n:latest"))  # it may have to make room
    it.load_ended(variant(), OK, began_at=8.0, now=8.1, current=True)

    it.load_began(variant("n:latest"), 8.1, 60.0)
    it.residency.loaded(variant("n:latest"), 8.1)
    it.load_ended(variant("n:latest"), OK, began_at=8.1, now=8.1, current=True)

    assert it.warm(variant("n:latest"))


def test_a_list_whose_reading_began_before_an_unload_does_not_bring_the_model_back() -> None:
    it = instance("a")

    it.forget_runner(variant().model, 10.0)
    listed(it, runner(), at=9.9)
    assert not it.warm(variant())
    assert it.inventory is not None
    assert not it.inventory.runners

    listed(it, runner(), at=10.1)  # somebody else has loaded it since
    assert it.warm(variant())
