"""What the engine in virtual time must not get wrong where clocks are coarse, processes die and clients leave."""

import pytest

from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.outcomes import Outcome
from balancer.simulator.virtual.run import serve
from tests.simulation.virtual_support import rows, scenario, shapes, single_turns

STRATEGY = "least_connections"


@pytest.mark.parametrize("late", [1e4, 1e6, 1e7])
def test_work_ends_that_takes_less_than_a_step_of_the_clock(late: float) -> None:
    rates = ServiceRates(prefill_tokens_per_second=1e9, decode_tokens_per_second=1e8)
    asked = [(late + number * 0.37, 777, 55) for number in range(100)]

    run = serve(scenario(), shapes(0, rates=rates), single_turns(asked), strategy=STRATEGY, seed=1)

    assert [each.outcome for each in rows(run.outcomes)] == [Outcome.OK] * 100
