"""`tests.benchmarks.scheduler` with few requests: what it runs, counts and tells; never how good that is."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from balancer.admission.fair_shares import FairShares
from balancer.admission.overload import Overload
from balancer.core.ticket import Priority
from balancer.simulator.virtual.fleets import changed
from balancer.simulator.virtual.outcomes import Outcome
from balancer.simulator.virtual.run import run
from balancer.simulator.virtual.scenario_file import load_scenario
from tests.benchmarks.scheduler import EXPERIMENTS, main
from tests.benchmarks.scheduler_runs import Cell, busy, measure

_REFUSALS = ("QueueFull", "QueueTooLong", "Shed")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_tells_its_ratios_and_every_cell_of_every_seed(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([experiment, "--seeds", "2", "--requests", "40", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["command"].endswith(f"scheduler {experiment} --seeds 2 --requests 40")
    assert {len(seeds) for seeds in told["figures"].values()} == {2}
    assert {len(each["ratios"]) for each in told["ratios"]} == {2}
    ends = [f"{each}/{end.name.lower()}" for each in Priority for end in Outcome]
    for cell, seeds in told["figures"].items():
        requests = 133 if cell == "load 3.0" else 40
        assert [sum(figures.get(end, 0) for end in ends) for figures in seeds] == [requests] * 2


def test_people_are_told_of_goals_and_of_those_that_were_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fairness", "--seeds", "2", "--requests", "60"]) == 0

    lines = capsys.readouterr().out.splitlines()
    (answers,) = [each for each in lines if each.startswith("answers/s of the whole run")]
    (met,) = [told for told in (": met", ": not met") if answers.endswith(told)]
    assert "goal at least 0.97" in answers
    assert met == (": met" if float(answers.split()[5]) >= 0.97 else ": not met")
    assert sum(each.split() == ["normal/ok", "60", "[60", "to", "60]"] for each in lines) == 2


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--requests", "0"]])
def test_arguments_that_cannot_be_used_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fairness", *wrong])

    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_without_fair_shares_clients_get_what_they_ask_for_and_nothing_stays_changed() -> None:
    scenario = changed(load_scenario("fair-shares"), requests=1500)
    before = FairShares.used, Overload.turn_away

    fair, plain = (measure(Cell("", scenario, "adaptive", fair=each), 1)["jain"] for each in (True, False))

    assert plain < 0.75 < fair
    assert (FairShares.used, Overload.turn_away) == before


def test_everyone_turned_away_has_a_reason() -> None:
    scenario = changed(load_scenario("overload"), requests=600, queue_requests=20)

    figures = measure(Cell("", scenario, "adaptive"), 1)

    refused = {each: sum(figures.get(f"{each}/{why}", 0) for why in _REFUSALS) for each in Priority}
    assert refused == {each: figures.get(f"{each}/rejected", 0) for each in Priority}
    assert sum(refused.values()) > 0


def test_a_device_is_at_work_while_it_has_a_request() -> None:
    scenario = changed(load_scenario("fair-shares"), requests=200)
    made = run(scenario, strategy="adaptive", seed=1)
    rows = [made.outcomes.row(index) for index in range(200)]
    seconds = made.facts.virtual_seconds

    assert math.isclose(busy(scenario, rows, 0.0, seconds), sum(made.facts.busy_seconds) / seconds / 2)
    assert busy(scenario, rows, seconds + 1, seconds + 2) == 0
    waited = msgspec.structs.replace(
        rows[0], arrived_at=0.0, queued_seconds=6.0, total_seconds=10.0, instance=0
    )
    assert math.isclose(busy(scenario, [waited], 0.0, 10.0), 0.2)
