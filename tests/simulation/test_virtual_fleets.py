"""Other hardware, other models, the same demand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from balancer.commands.plan import parse_gpus
from balancer.settings.faults import SettingsError
from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.fleets import (
    fleet_name,
    parse_models,
    sessions_per_second,
    with_fleet,
    with_models,
)
from balancer.simulator.virtual.processes import prompts_of
from balancer.simulator.virtual.scenario_file import load_scenario, standard_scenarios
from balancer.simulator.virtual.statistics import terciles_of
from balancer.simulator.virtual.work import Session
from balancer.simulator.virtual.workload import sessions

SEED = 3


def scenario(name: str = "several-models-resident", requests: int = 500) -> Scenario:
    return load_scenario(name).model_copy(update={"requests": requests})


def drawn(of: Scenario) -> list[Session]:
    return list(sessions(of, SEED))


@pytest.mark.parametrize("name", ["several-models-resident", "overload", "tight-memory"])
def test_every_fleet_meets_the_sessions_of_the_scenario(name: str) -> None:
    base = scenario(name)

    fleets = [with_fleet(base, parse_gpus(each), seed=SEED) for each in ("H100:80", "RTX 4090:24,H100:80")]
    one, other = map(drawn, fleets)

    assert one == other
    assert one[-1].starts_at == pytest.approx(drawn(base)[-1].starts_at, rel=0.05)
    assert [each.turns for each in one] == [each.turns for each in drawn(base)]


def test_gpus_that_are_alike_are_devices_of_one_group() -> None:
    base = scenario()
    made = with_fleet(base, parse_gpus("RTX 4090:24,RTX 4090:24,RTX 4090:48"), seed=SEED)

    assert [(each.gpu, each.memory_bytes, each.count) for each in made.devices] == [
        ("RTX 4090", 24 * 2**30, 2),
        ("RTX 4090", 48 * 2**30, 1),
    ]
    assert {each.instances for each in made.devices} == {base.devices[0].instances}
    assert made.objectives == base.objectives


def test_a_rate_that_the_scenario_tells_is_kept() -> None:
    base = with_fleet(scenario(), parse_gpus("H100:80"), seed=SEED)

    again = with_fleet(base, parse_gpus("RTX 4090:24"), seed=4)

    assert again.workload.sessions_per_second == sessions_per_second(base, 4)
    assert sessions_per_second(base, 4) == sessions_per_second(scenario(), SEED)


def test_a_fleet_that_cannot_hold_the_models_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"command line: models\[\d\]\.size_bytes"):
        with_fleet(scenario("tight-memory"), parse_gpus("GTX 1060:6"), seed=SEED)


def test_models_replace_those_of_the_scenario() -> None:
    made = with_models(scenario("tight-memory"), parse_models("llama3:8b=4.7GB,qwen3=5GB"))

    assert [(each.name, each.size_bytes) for each in made.models] == [
        ("llama3:8b", 4_700_000_000),
        ("qwen3", 5_000_000_000),
    ]
    assert {each.model for each in drawn(made)} == {"llama3:8b", "qwen3"}
    assert made.workload == scenario("tight-memory").workload


def test_models_that_embed_are_told_apart() -> None:
    (chat, embedder) = parse_models("a = 1GB, b:1b=274MB:embedding")

    assert (chat.name, chat.embeds) == ("a", False)
    assert (embedder.name, embedder.embeds, embedder.size_bytes) == ("b:1b", True, 274_000_000)


@pytest.mark.parametrize("text", ["", "a", "a=", "=1GB", "a=1GB,", "a=much", "a=-1GB", "a=1GB:embeds", "a=1"])
def test_what_is_no_model_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is no model; allowed is NAME=SIZE"):
        parse_models(text)


def test_a_fleet_is_called_by_its_gpus() -> None:
    assert (
        fleet_name(parse_gpus("RTX 4090:24,RTX 4090:24,RTX 3060:12"))
        == "2x RTX 4090 24 GiB + RTX 3060 12 GiB"
    )


def test_the_prompts_of_a_session_grow_by_what_was_said() -> None:
    for session in drawn(scenario()):
        lengths = list(prompts_of(session))
        generating = [turn for turn in session.turns if not turn.inputs]

        assert len(lengths) == len(generating)
        for (shorter, longer), (asked, then) in zip(pairwise(lengths), pairwise(generating), strict=True):
            assert longer - shorter == asked.output_tokens + sum(tokens for _, tokens in then.segments)


@pytest.mark.parametrize("name", standard_scenarios())
def test_the_workload_of_each_scenario_has_three_lengths_of_prompts(name: str) -> None:
    low, high = terciles_of(length for session in drawn(scenario(name)) for length in prompts_of(session))

    assert 0 < low < high
