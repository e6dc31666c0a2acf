"""What holds of every workload, whatever the scenario and the seed; and that its shares, ranks and loads are
those asked for."""

import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.settings.scenario import PopulationKind, Scenario
from balancer.simulator.service_model import decode_seconds_per_token
from balancer.simulator.virtual.arrivals import client_weights, diurnal, renewals
from balancer.simulator.virtual.hardware import instances_of
from balancer.simulator.virtual.popularity import Popularity
from balancer.simulator.virtual.scenario_file import checked, load_scenario, standard_scenarios
from balancer.simulator.virtual.work import Session
from balancer.simulator.virtual.workload import sessions

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


def scenario_of(
    *populations: dict[str, object],
    requests: int = 4000,
    context_length: int = 8192,
    devices: int = 2,
    models: tuple[str, ...] = ("a", "b", "c"),
    **workload: object,
) -> Scenario:
    listed = [{"name": name, "size_bytes": (3 + 2 * place) * 10**9} for place, name in enumerate(models)]
    return checked(
        Scenario.model_validate(
            {
                "name": "drawn",
                "requests": requests,
                "devices": [{"gpu": "RTX 4090", "count": devices, "memory_bytes": "1TiB"}],
                "models": [*listed, {"name": "e", "size_bytes": 10**9, "embeds": True}],
                "instances": {"context_length": context_length},
                "workload": {"populations": list(populations), **workload},
            }
        ),
        "drawn",
    )


def own(all_sessions: list[Session]) -> list[Session]:
    return [session for session in all_sessions if session.foreign is None]


def request_count(some: list[Session]) -> int:
    return sum(len(session.turns) for session in some)


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


def test_populations_have_their_shares_of_requests() -> None:
    scenario = scenario_of(
        {"kind": "chat", "share": 5},
        {"kind": "agent", "share": 3},
        {"kind": "batch", "share": 2},
        {"kind": "embedding", "share": 10},
        requests=40_000,
    )
    counts: Counter[str] = Counter()
    for seed in range(4):
        for session in sessions(scenario, seed):
            counts[session.client.partition("-")[0]] += len(session.turns)

    shares = {label: count / counts.total() for label, count in counts.items()}

    expected = {"chat1": 0.25, "agent1": 0.15, "batch1": 0.1, "embedding1": 0.5}
    assert shares == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.9, 3.0])
@pytest.mark.parametrize("workload", [{}, {"diurnal_amplitude": 0.8, "diurnal_seconds": 500}])
def test_the_mean_load_is_the_one_asked_for(load: float, workload: dict[str, object]) -> None:
    """The demand of the sessions as they are, reckoned anew, over the time in which they come."""
    scenario = scenario_of(
        {"kind": "chat", "share": 3}, {"kind": "embedding"}, requests=30_000, load=load, **workload
    )

    found = statistics.fmean(demanded(scenario, list(sessions(scenario, seed))) for seed in range(4))

    assert load == pytest.approx(found, rel=0.08)


def demanded(scenario: Scenario, drawn: list[Session]) -> float:
    """Device-seconds asked for over those there are; the devices are alike."""
    shapes = instances_of(scenario)
    slots = scenario.instances.slots
    busy = 0.0
    for session in drawn:
        rates = shapes[0].rates[session.model]
        for turn in session.turns:
            busy += sum(tokens for _, tokens in turn.segments) / rates.prefill_tokens_per_second
            busy += turn.output_tokens * decode_seconds_per_token(rates, slots) / slots
    return busy / (drawn[-1].starts_at * len(shapes))


def test_a_slow_device_counts_for_what_it_can_do() -> None:
    plain = scenario_of({"kind": "chat"}, devices=2, drift_seconds=None)
    slow = plain.model_copy(
        update={"devices": (*plain.devices, plain.devices[0].model_copy(update={"speed": 0.5}))}
    )

    ends = [list(sessions(each, 1))[-1].starts_at for each in (plain, slow)]

    assert pytest.approx(ends[0] / ends[1], rel=0.01) == 1.5


def test_instances_of_one_device_add_nothing_to_what_it_can_do() -> None:
    one = scenario_of({"kind": "chat"}, requests=500)
    two = one.model_copy(update={"devices": (one.devices[0].model_copy(update={"instances": 2}),)})

    assert list(sessions(one, 1)) == list(sessions(two, 1))


def test_sessions_begin_as_often_as_asked_for() -> None:
    scenario = scenario_of(
        {"kind": "chat"}, {"kind": "batch"}, {"kind": "embedding"}, requests=30_000, sessions_per_second=2.5
    )

    rates = []
    for seed in range(4):
        drawn = list(sessions(scenario, seed))
        rates.append(len(drawn) / drawn[-1].starts_at)

    assert pytest.approx(statistics.fmean(rates), rel=0.08) == 2.5


def test_models_are_asked_for_by_zipfs_law() -> None:
    scenario = scenario_of({"kind": "chat", "turns": 1}, requests=30_000, zipf_exponent=1, drift_seconds=None)

    counts = Counter(session.model for session in sessions(scenario, 1))

    expected = {"a": 6 / 11, "b": 3 / 11, "c": 2 / 11}
    assert {name: counts[name] / counts.total() for name in counts} == pytest.approx(expected, rel=0.05)


def test_ranks_drift() -> None:
    scenario = scenario_of(
        {"kind": "chat", "turns": 1}, requests=30_000, zipf_exponent=2, drift_seconds=600, load=0.2
    )

    asked: dict[int, Counter[str]] = {}
    for session in sessions(scenario, 1):
        asked.setdefault(int(session.starts_at // 600), Counter())[session.model] += 1
    epochs = len(asked) - 1  # the last is not whole
    rankings = [tuple(each) for each in islice(Popularity(scenario, 1).rankings(), epochs)]

    assert epochs > 10
    assert tuple(name for name in rankings[0] if name != "e") == ("a", "b", "c")
    assert all(sum(x != y for x, y in zip(*pair, strict=True)) == 2 for pair in pairwise(rankings))
    assert [next(name for name in ranking if name != "e") for ranking in rankings] == [
        asked[epoch].most_common(1)[0][0] for epoch in range(epochs)
    ]


@profile(max_examples=50, deadline=None)
@given(exponent=st.floats(0, 5), seconds=st.floats(1, 50_000), drift=st.none() | st.floats(50, 5_000))
def test_mean_weights_are_those_of_each_moment(exponent: float, seconds: float, drift: float | None) -> None:
    scenario = scenario_of({"kind": "chat"}, zipf_exponent=exponent, drift_seconds=drift)
    popularity = Popularity(scenario, 3)
    among = frozenset("abc")
    moments = 2000

    sums = dict.fromkeys(among, 0.0)
    rankings = popularity.rankings()
    now, ranking = 0, tuple(next(rankings))
    for moment in range(moments):
        at = (moment + 0.5) * seconds / moments
        while now < popularity.epoch(at):
            now, ranking = now + 1, tuple(next(rankings))
        for name, weight in popularity.weights(ranking, among).items():
            sums[name] += weight / moments

    assert popularity.mean_weights(among, seconds) == pytest.approx(sums, abs=0.05)


def test_populations_ask_for_their_models_alone() -> None:
    scenario = scenario_of({"kind": "chat", "models": ["b", "c"]}, {"kind": "agent", "models": ["a"]})

    asked: dict[str, set[str]] = {}
    for session in sessions(scenario, 1):
        asked.setdefault(session.client.partition("-")[0], set()).add(session.model)

    assert {"chat1": {"b", "c"}, "agent1": {"a"}} == asked


def test_foreign_requests_have_their_share_and_go_where_told() -> None:
    scenario = scenario_of(
        {"kind": "chat"}, requests=20_000, foreign_share=0.25, foreign_instances=[1], devices=3
    )

    drawn = list(sessions(scenario, 1))
    foreign = [session for session in drawn if session.foreign is not None]

    assert request_count(own(drawn)) == 20_000
    assert pytest.approx(request_count(foreign) / request_count(drawn), rel=0.1) == 0.25
    assert {1} == {session.foreign for session in foreign}
    assert all(session.client.startswith("foreign-") for session in foreign)


def test_foreign_requests_change_nothing_of_the_others() -> None:
    plain = scenario_of({"kind": "chat"})
    shared = scenario_of({"kind": "chat"}, foreign_share=0.3)

    assert list(sessions(plain, 1)) == own(list(sessions(shared, 1)))


def test_foreign_requests_go_everywhere_unless_told() -> None:
    scenario = scenario_of({"kind": "chat"}, foreign_share=0.5, devices=3)

    assert {None, 0, 1, 2} == {session.foreign for session in sessions(scenario, 1)}


def test_sessions_have_the_turns_and_lengths_asked_for() -> None:
    scenario = scenario_of(
        {
            "kind": "chat",
            "turns": 5,
            "think_seconds": 30,
            "input_tokens": 50,
            "output_tokens": 80,
            "shared_tokens": 400,
            "apps": 99,
            "clients": 5000,
            "client_skew": 100,
        },
        requests=40_000,
        context_length=100_000,
    )

    drawn = list(sessions(scenario, 1))
    turns = [turn for session in drawn for turn in session.turns]

    assert pytest.approx(len(turns) / len(drawn), rel=0.05) == 5
    assert pytest.approx(statistics.median(t.think_seconds for t in turns if t.think_seconds), rel=0.05) == 30
    assert pytest.approx(statistics.fmean(turn.output_tokens for turn in turns), rel=0.05) == 80
    assert pytest.approx(statistics.median(turn.segments[-1][1] for turn in turns), rel=0.1) == 50
    assert pytest.approx(statistics.median(s.turns[0].segments[0][1] for s in drawn), rel=0.1) == 400
    assert max(turn.output_tokens for turn in turns) == 600


def test_requests_are_cancelled_as_often_as_asked_for() -> None:
    scenario = scenario_of({"kind": "chat", "cancel_share": 0.2, "patience_seconds": 7}, requests=20_000)

    patience = [turn.patience_seconds for session in sessions(scenario, 1) for turn in session.turns]
    left = [seconds for seconds in patience if seconds is not None]

    assert pytest.approx(len(left) / len(patience), rel=0.1) == 0.2
    assert pytest.approx(statistics.fmean(left), rel=0.1) == 7


def test_a_batch_sends_its_requests_at_once_with_one_template() -> None:
    scenario = scenario_of({"kind": "batch", "job_requests": 30}, requests=20_000)

    jobs: dict[tuple[float, str], list[Session]] = {}
    for session in sessions(scenario, 1):
        jobs.setdefault((session.starts_at, session.client), []).append(session)

    assert pytest.approx(statistics.fmean(map(len, jobs.values())), rel=0.15) == 30
    assert all(len(session.turns) == 1 for job in jobs.values() for session in job)
    assert all(len({session.turns[0].segments[0] for session in job}) == 1 for job in jobs.values())
    assert all(len({session.model for session in job}) == 1 for job in jobs.values())


def test_lists_of_texts_are_of_every_length() -> None:
    scenario = scenario_of({"kind": "embedding", "inputs": 256}, requests=20_000)

    counts = Counter(session.turns[0].inputs.bit_length() for session in sessions(scenario, 1))

    assert set(range(1, 10)) == set(counts)
    assert all(counts[bits] > 1500 for bits in range(1, 9))


def test_agents_say_more_in_a_longer_context_and_begin_with_a_third_of_it() -> None:
    for context in (8192, 65_536):
        drawn = list(sessions(scenario_of({"kind": "agent"}, context_length=context), 1))
        beginnings = [session.turns[0].segments[0][1] for session in drawn]

        assert pytest.approx(statistics.median(beginnings) / context, rel=0.15) == 0.35
        assert (context > 8192) == (statistics.fmean(len(session.turns) for session in drawn) > 10)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_clients_come_once_in_a_unit_and_vary_as_asked_for(cv: float) -> None:
    times = [at for at, _ in islice(renewals(Random(1), (1.0,), cv), 60_000)]
    gaps = [later - earlier for earlier, later in pairwise(times)]

    assert pytest.approx(statistics.fmean(gaps), rel=0.05) == 1
    assert cv == pytest.approx(statistics.stdev(gaps) / statistics.fmean(gaps), rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_clients_are_in_equilibrium_from_the_start(cv: float) -> None:
    """Otherwise bursty clients would all begin at once, and steady ones late."""
    first = [
        sum(at < 0.25 for at, _ in islice(renewals(Random(seed), (1.0,), cv), 50)) for seed in range(20_000)
    ]

    assert pytest.approx(statistics.fmean(first), rel=0.1) == 0.25


def test_a_few_clients_ask_for_most() -> None:
    weights = client_weights(100, 1.2)

    assert pytest.approx(math.fsum(weights)) == 1
    assert list(weights) == sorted(weights, reverse=True)
    assert sum(weights[:20]) > 0.6
    assert sum(client_weights(100, 100)[:20]) < 0.22


@profile(max_examples=100, deadline=None)
@given(unit=st.floats(0, 1e6), amplitude=st.floats(0, 0.99), period=st.floats(1, 1e5))
def test_a_day_lets_as_many_arrive_as_its_rate_says(unit: float, amplitude: float, period: float) -> None:
    at = diurnal(unit, amplitude, period)

    arrived = at + amplitude * period / math.tau * (1 - math.cos(math.tau * at / period))
    assert unit == pytest.approx(arrived, rel=1e-6, abs=1e-6)


def test_arrivals_follow_the_time_of_the_day() -> None:
    scenario = scenario_of(
        {"kind": "chat", "turns": 1, "arrival_cv": 1},
        requests=20_000,
        diurnal_amplitude=0.8,
        diurnal_seconds=1000,
    )

    halves = Counter(session.starts_at % 1000 < 500 for session in sessions(scenario, 1))

    assert (1 + 2 * 0.8 / math.pi) / 2 == pytest.approx(halves[True] / halves.total(), rel=0.05)


def test_one_and_two_devices_have_the_same_workload() -> None:
    one, two = (list(sessions(load_scenario(f"{count}"), 5)) for count in ("one-device", "two-devices"))

    assert one == two


@pytest.mark.parametrize("name", standard_scenarios())
def test_standard_scenarios_have_all_of_their_requests_and_faults_in_time(name: str) -> None:
    scenario = load_scenario(name)

    drawn = list(sessions(scenario, 1))

    assert request_count(own(drawn)) == 20_000
    assert all(fault.at_seconds + fault.seconds < drawn[-1].starts_at for fault in scenario.faults)
