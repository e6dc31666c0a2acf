"""What needs no load: told from lists, and from loads of ours that no list tells of yet."""

from typing import Any

import pytest

from balancer.core.names import ModelName
from balancer.core.ticket import Outcome, Verdict
from balancer.core.variant import OptionValue, Variant
from balancer.fleet.breaker import BreakerState
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from tests.unit.unit_support import OK, FakeClock, instance

CANNOT = Outcome(verdict=Verdict.FAILURE, kind="load", error="killed", model_only=True)
LOST = Outcome(verdict=Verdict.FAILURE, kind="connection_lost", error="lost")
BUSY = Outcome(verdict=Verdict.NEUTRAL, kind="busy", error="server busy")


def variant(model: str = "m:latest", **options: OptionValue) -> Variant:
    return Variant(ModelName(model), tuple(sorted(options.items())))


def runner(context: int = 2048, *, digest: str = "1", name: str = "m") -> dict[str, Any]:
    return {"name": name, "digest": digest, "context_length": context}


def listed(it: Instance, *runners: dict[str, Any], at: float) -> None:
    it.read_inventory(models=None, runners=runners, slots={}, at=at)


def loaded(it: Instance, wanted: Variant, *, at: float, outcome: Outcome = OK, current: bool = True) -> None:
    it.load_began(wanted)
    it.load_ended(wanted, outcome, began_at=at - 1, now=at, current=current)


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
    listed(it, at=10.5)
    assert not it.warm(variant())


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


@pytest.mark.parametrize("outcome", [CANNOT, LOST, BUSY])
def test_a_load_that_failed_leaves_the_model_cold_and_at_rest(outcome: Outcome) -> None:
    it = instance("a", cold=True)

    loaded(it, variant(), at=10.0, outcome=outcome)

    assert (it.loading, it.warm(variant())) == (None, False)
    assert it.breaker_reopens_at(variant().model, 10.0) == (70.0 if outcome is CANNOT else 11.0)
    assert it.breakers.last_error(variant().model, 10.0) == outcome.error
    assert it.breakers.state(10.0) is BreakerState.CLOSED


def test_loads_that_lose_their_connection_open_the_pair_in_the_end() -> None:
    it = instance("a", cold=True)

    for number in range(1, 6):
        loaded(it, variant(), at=10.0 * number, outcome=LOST)

    assert it.breaker_reopens_at(variant().model, 50.0) == 110.0


def test_a_load_that_went_well_forgives_the_model() -> None:
    it = instance("a", cold=True)
    loaded(it, variant(), at=10.0, outcome=CANNOT)

    loaded(it, variant(), at=80.0)

    assert (it.breakers.models, it.breaker_allows(variant().model, 80.0)) == ((), True)


@pytest.mark.parametrize("outcome", [OK, CANNOT, LOST, BUSY])
def test_a_load_of_an_earlier_life_ends_and_changes_nothing_else(outcome: Outcome) -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock())
    load = fleet.load_began(it, variant())
    fleet.failed(it, "refused", refused=True, incarnation=it.incarnation)

    fleet.load_ended(it, load, outcome)

    assert (it.loading, it.warm(variant()), it.breakers.models) == (None, False, ())


def test_one_load_at_a_time() -> None:
    it = instance("a", models=("m", "n"), cold=True)
    it.load_began(variant())

    with pytest.raises(AssertionError):
        it.load_began(variant("n:latest"))


def test_a_gate_holds_back_all_but_its_variant_until_its_time_is_up() -> None:
    it = instance("a", cold=True)
    it.load_began(variant())

    it.gate(variant(), 20.0)

    assert [it.gated_until(variant(), 10.0), it.gated_until(variant(num_ctx=8), 10.0)] == [None, 20.0]
    assert it.gated_until(variant("n:latest"), 20.0) is None


@pytest.mark.parametrize("outcome", [OK, CANNOT, LOST, BUSY])
def test_a_gate_ends_with_its_load(outcome: Outcome) -> None:
    it = instance("a", cold=True)
    it.load_began(variant())
    it.gate(variant(), 1e9)

    it.load_ended(variant(), outcome, began_at=1.0, now=10.0, current=True)

    assert it.gated_until(variant("n:latest"), 10.0) is None


def test_the_end_of_a_load_is_told() -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock())
    load = fleet.load_began(it, variant())
    told: list[tuple[str, bool]] = []
    fleet.listen(on_change=lambda each: told.append((each.id, each.warm(variant()))))

    fleet.load_ended(it, load, OK)

    assert told == [("a", True)]
