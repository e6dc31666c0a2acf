"""The shares, ranks, lengths and loads of workloads are those asked for."""

import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.settings.scenario import Scenario
from balancer.simulator.service_model import decode_seconds_per_token
from balancer.simulator.virtual.hardware import instances_of
from balancer.simulator.virtual.popularity import Popularity
from balancer.simulator.virtual.work import Session
from balancer.simulator.virtual.workload import sessions
from tests.property.drawn_workloads import own, request_count, scenario_of


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
