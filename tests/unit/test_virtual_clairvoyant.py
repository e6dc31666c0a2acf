"""The clairvoyant strategy over an oracle made by hand."""

from collections.abc import Mapping, Sequence
from random import Random

import pytest

from balancer.core.decision import Decision
from balancer.core.names import ModelName, canonical_name
from balancer.core.scores import Terms
from balancer.core.ticket import InstanceId, Ticket
from balancer.scheduling.scheduler import Scheduler
from balancer.simulator.virtual.clairvoyant import HORIZON_SECONDS, Clairvoyant, Outlook
from tests.unit.unit_support import FakeFleet, seen, ticket, view

X, Y = canonical_name("x"), canonical_name("y")


class HandMade:
    """An oracle that says what it was told to say."""

    def __init__(
        self,
        outlooks: Mapping[str, Outlook],
        arrivals: Mapping[ModelName, Sequence[float]] | None = None,
    ) -> None:
        self._outlooks = outlooks
        self._arrivals = arrivals or {}

    def outlook(self, ticket: Ticket, instance: InstanceId) -> Outlook:
        return self._outlooks[instance]

    def arrivals(self, model: ModelName) -> Sequence[float]:
        return self._arrivals.get(model, ())


def terms(outlook: Outlook, arrivals: Mapping[ModelName, Sequence[float]] | None = None) -> Terms:
    return Clairvoyant(HandMade({"a": outlook}, arrivals)).score(ticket(), seen([view("a")]))[0]


def best(arrivals: Mapping[ModelName, Sequence[float]] | None = None, **outlooks: Outlook) -> str:
    strategy = Clairvoyant(HandMade(outlooks, arrivals))
    found = strategy.score(ticket(), seen(view(name) for name in outlooks))
    return min(zip(outlooks, found, strict=True), key=lambda pair: sum(pair[1].values()))[0]


def test_seconds_of_every_kind_are_told_and_count_alike() -> None:
    outlook = Outlook(
        slot_seconds=1.0, load_seconds=2.0, prefill_seconds=4.0, decode_seconds=8.0, slowdown_seconds=16.0
    )

    assert terms(outlook) == {
        "wait": 3.0,
        "service": 12.0,
        "slowdown_of_others": 16.0,
        "loads_to_come": 0.0,
    }


def test_it_waits_for_a_slot_where_that_is_quicker_than_a_load() -> None:
    assert best(busy=Outlook(slot_seconds=3.0), cold=Outlook(load_seconds=5.0)) == "busy"
    assert best(busy=Outlook(slot_seconds=6.0), cold=Outlook(load_seconds=5.0)) == "cold"


def test_it_does_not_gain_a_second_at_the_cost_of_two_to_others() -> None:
    crowd = Outlook(decode_seconds=2.0, slowdown_seconds=2.0)

    assert best(crowd=crowd, slow=Outlook(decode_seconds=3.0)) == "slow"


def test_it_unloads_the_model_that_is_needed_last() -> None:
    outlooks = {
        "has_x": Outlook(load_seconds=5.0, unloads=((X, 5.0),)),
        "has_y": Outlook(load_seconds=5.0, unloads=((Y, 5.0),)),
    }

    assert best({X: (10.0,), Y: (30.0,)}, **outlooks) == "has_y"
    assert best({X: (40.0,), Y: (30.0,)}, **outlooks) == "has_x"
    assert best({X: (1.0,)}, **outlooks) == "has_y"


def test_it_unloads_the_model_for_which_fewer_will_wait_and_wait_less() -> None:
    outlooks = {"has_x": Outlook(unloads=((X, 5.0),)), "has_y": Outlook(unloads=((Y, 5.0),))}

    assert best({X: (10.0, 11.0), Y: (10.0, 16.0)}, **outlooks) == "has_y"
    assert best({X: (10.0,), Y: (10.0,)}, **{**outlooks, "has_y": Outlook(unloads=((Y, 2.0),))}) == "has_y"


def test_those_that_come_during_a_load_wait_for_its_end() -> None:
    outlook = Outlook(unloads=((X, 4.0), (Y, 100.0)))

    # The first begins the load and waits for 4 s, the second for 3 s, the third for none of it.
    assert terms(outlook, {X: (30.0, 31.0, 34.0)})["loads_to_come"] == pytest.approx(7.0 / 2)


@pytest.mark.parametrize("arrivals", [(), (HORIZON_SECONDS,), (HORIZON_SECONDS + 1,)])
def test_what_nobody_asks_for_before_the_horizon_costs_nothing(arrivals: tuple[float, ...]) -> None:
    assert terms(Outlook(unloads=((X, 50.0),)), {X: arrivals})["loads_to_come"] == 0.0


def test_a_scheduler_can_decide_by_it() -> None:
    oracle = HandMade({"a": Outlook(slot_seconds=2.0), "b": Outlook(), "c": Outlook(slot_seconds=1.0)})
    shelf = {"clairvoyant": lambda _random: Clairvoyant(oracle)}
    fleet = FakeFleet([view("a"), view("b", free=False), view("c")])

    scheduler = Scheduler(fleet, strategy="clairvoyant", random=Random(1), shelf=shelf)
    decision: Decision = scheduler.decide(ticket(), 1001.0)

    assert decision.picked == "c"
