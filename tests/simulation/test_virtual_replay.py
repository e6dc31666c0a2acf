"""Decisions of a run of the virtual fleet come out the same from what was recorded of them."""

import json
from typing import Any

import pytest

from balancer.core.decision import Decision
from balancer.scheduling.replay import replay
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES
from balancer.simulator.virtual.run import run
from balancer.simulator.virtual.scenario_file import load_scenario


@pytest.mark.parametrize("scenario", ["one-model-four-devices", "several-models-resident", "tight-memory"])
@pytest.mark.parametrize("strategy", ["adaptive", *STRATEGIES])
def test_every_decision_of_a_run_is_the_same_again(
    strategy: str, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    decide = Scheduler.decide

    def recording(scheduler: Scheduler, *args: Any, **kwargs: Any) -> Decision:
        decision = decide(scheduler, *args, **kwargs)
        told.append(json.dumps(decision.explain() | {"strategy": strategy}))
        return decision

    monkeypatch.setattr(Scheduler, "decide", recording)
    run(load_scenario(scenario).model_copy(update={"requests": 300}), strategy=strategy, seed=1)

    replayed = [replay(json.loads(each)) for each in told]
    assert [each.request for each in replayed if not each.same] == []
    assert all(row.score == row.recorded_score for each in replayed for row in each.rows)
    picked = [each for each in replayed if each.went_to is not None and len(each.rows) > 1]
    assert len(picked) > 100, "or the test says little"
    scored = [row for each in picked for row in each.rows if row.picked and row.score is not None]
    assert len(scored) > 50
    assert all(row.best for row in scored)
