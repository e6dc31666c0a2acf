"""What holds of every workload, whatever the scenario and the seed."""

import os
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.settings.scenario import PopulationKind, Scenario
from balancer.simulator.virtual.scenario_file import load_scenario, standard_scenarios
from balancer.simulator.virtual.work import Session
from balancer.simulator.virtual.workload import sessions
from tests.property.drawn_workloads import own, request_count, scenario_of

ROOT = Path(__file__).parents[2]
DIGEST = """
import hashlib
from balancer.simulator.virtual.scenario_file import load_scenario
from balancer.simulator.virtual.workload import sessions
print(hashlib.sha256(repr(list(sessions(load_scenario('hidden-slots'), 7))).encode()).hexdigest())
"""

POPULATIONS = st.builds(
    lambda kind, fields: {"kind": kind} | {k: v for k, v in fields.items() if k in _allowed(kind)},
    st.sampled_from([kind.value for kind in PopulationKind]),
    st.fixed_dictionaries(
        {},
        optional={
            "share": st.floats(0.001, 1000),
            "clients": st.integers(1, 50),
            "client_skew": st.floats(0.5, 100),
            "arrival_cv": st.floats(0.05, 10),
            "cancel_share": st.floats(0, 1),
            "apps": st.integers(1, 30),
            "shared_tokens": st.integers(1, 100_000),
            "turns": st.floats(1, 200),
            "think_seconds": st.floats(0.01, 1000),
            "input_tokens": st.integers(1, 100_000),
            "output_tokens": st.integers(1, 100_000),
            "inputs": st.integers(1, 1000),
            "job_requests": st.floats(1, 100),
        },
    ),
)
SCENARIOS = st.fixed_dictionaries(
    {
        "requests": st.integers(1, 300),
        "context_length": st.integers(256, 40_000),
        "populations": st.lists(POPULATIONS, min_size=1, max_size=4),
        "workload": st.fixed_dictionaries(
            {},
            optional={
                "load": st.floats(0.001, 100),
                "zipf_exponent": st.floats(0, 5),
                "drift_seconds": st.none() | st.floats(1, 1000),
                "diurnal_amplitude": st.floats(0, 0.99),
                "diurnal_seconds": st.floats(1, 1000),
                "foreign_share": st.just(0) | st.floats(0.001, 0.9),
            },
        ),
    }
)


def _allowed(kind: str) -> set[str]:
    always = {"share", "clients", "client_skew", "arrival_cv", "cancel_share", "input_tokens"}
    talking = always | {"apps", "shared_tokens", "turns", "think_seconds", "output_tokens"}
    return {
        "chat": talking,
        "agent": talking,
        "embedding": always | {"inputs"},
        "batch": always | {"apps", "shared_tokens", "output_tokens", "job_requests"},
    }[kind]


@profile(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(described=SCENARIOS, seed=st.integers(0, 2**40))
def test_every_workload_keeps_its_bounds(described: dict[str, object], seed: int) -> None:
    populations, workload = described["populations"], described["workload"]
    assert isinstance(populations, list)
    assert isinstance(workload, dict)
    context = int(str(described["context_length"]))
    scenario = scenario_of(
        *populations, requests=int(str(described["requests"])), context_length=context, **workload
    )

    drawn = list(islice(sessions(scenario, seed), 5000))

    assert all(one.starts_at <= other.starts_at for one, other in pairwise(drawn))
    assert drawn[0].starts_at >= 0
    if len(drawn) < 5000:
        assert scenario.requests == request_count(own(drawn))
    for session in drawn:
        assert session.turns
        assert session.foreign is None or 0 <= session.foreign < 2
        keeps_the_context(session, context)
    identities_are_told_apart(drawn)


def keeps_the_context(session: Session, context: int) -> None:
    said = 0
    for place, turn in enumerate(session.turns):
        tokens = sum(count for _, count in turn.segments)
        assert all(count > 0 for _, count in turn.segments)
        assert (turn.think_seconds == 0) == (place == 0)
        if turn.inputs:
            assert session.model == "e"
            assert turn.output_tokens == 0
            assert tokens % turn.inputs == 0
            assert tokens // turn.inputs <= context
        else:
            assert session.model != "e"
            assert turn.output_tokens >= 1
            said += tokens + turn.output_tokens
    assert said <= context


def identities_are_told_apart(drawn: list[Session]) -> None:
    lengths: dict[int, int] = {}
    answers: set[int] = set()
    beginnings: set[int] = set()
    later: list[int] = []
    for session in drawn:
        for place, turn in enumerate(session.turns):
            for identity, tokens in turn.segments:
                assert tokens == lengths.setdefault(identity, tokens)
            shared = len(turn.segments) - 1
            assert shared == 0 or place == 0
            beginnings.update(identity for identity, _ in turn.segments[:shared])
            later.append(turn.segments[-1][0])
        answers.update(range(session.answer_id, session.answer_id + len(session.turns)))
    assert len(later) == len(set(later))
    assert len(answers) == request_count(drawn)
    assert answers.isdisjoint(lengths)
    assert beginnings.isdisjoint(later)


def test_the_same_seed_gives_the_same_workload_in_any_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for hash_seed in ("0", "1")
    }

    assert len(digests) == 1


def test_another_seed_gives_another_workload() -> None:
    scenario = scenario_of({"kind": "chat"}, requests=100)

    assert list(sessions(scenario, 1)) != list(sessions(scenario, 2))


def test_a_change_to_one_population_changes_nothing_that_another_draws() -> None:
    agents = {"kind": "agent", "share": 1}
    before = scenario_of({"kind": "chat", "share": 1}, agents)
    after = scenario_of({"kind": "chat", "share": 1, "input_tokens": 500, "clients": 3}, agents)

    def told(scenario: Scenario) -> list[tuple[str, object]]:
        return [
            (session.client, [(turn.segments, turn.output_tokens) for turn in session.turns])
            for session in sessions(scenario, 1)
            if session.client.startswith("agent")
        ][:100]

    assert told(before) == told(after)


def test_more_requests_begin_with_the_fewer() -> None:
    few = scenario_of({"kind": "chat"}, requests=500, sessions_per_second=1)
    many = scenario_of({"kind": "chat"}, requests=1000, sessions_per_second=1)

    assert list(sessions(few, 1))[:-1] == list(sessions(many, 1))[: len(list(sessions(few, 1))) - 1]


def test_foreign_requests_change_nothing_of_the_others() -> None:
    plain = scenario_of({"kind": "chat"})
    shared = scenario_of({"kind": "chat"}, foreign_share=0.3)

    assert list(sessions(plain, 1)) == own(list(sessions(shared, 1)))


def test_one_and_two_devices_have_the_same_workload() -> None:
    one, two = (list(sessions(load_scenario(f"{count}"), 5)) for count in ("one-device", "two-devices"))

    assert one == two


@pytest.mark.parametrize("name", standard_scenarios())
def test_standard_scenarios_have_all_of_their_requests_and_faults_in_time(name: str) -> None:
    scenario = load_scenario(name)

    drawn = list(sessions(scenario, 1))

    assert request_count(own(drawn)) == 20_000
    assert all(fault.at_seconds + fault.seconds < drawn[-1].starts_at for fault in scenario.faults)
