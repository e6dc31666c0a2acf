"""Decisions: whoever is filtered is not picked, order changes no score, and short cuts change no decision."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.core.ejection import Ejection
from balancer.core.names import ModelName, canonical_name
from balancer.core.plan import Runtime
from balancer.core.rates import Rates
from balancer.core.scores import Candidate, Scores
from balancer.core.ticket import Blame, InstanceId, Outcome, Trial, Verdict
from balancer.core.variant import Variant
from balancer.core.views import InstanceView
from balancer.fleet.courses import Company
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.rates import Work
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.filters import NO_SLOT, why_held, why_out
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES, Shelf
from tests.unit.unit_support import FakeClock, FakeFleet, instance, ticket, view

M = Variant(canonical_name("m"))
PREFIX = ((1, 500), (2, 900))
NAMES = ("a", "b", "c", "d")
ALL = ["adaptive", *STRATEGIES]


def shelf() -> Shelf:
    index = PrefixIndex(limit_bytes=1 << 20)
    index.remember(InstanceId("b"), M, PREFIX)
    return {**STRATEGIES, "adaptive": lambda _random: Adaptive(index)}


amounts = st.floats(0.01, 1e4)
rates = st.builds(
    Rates,
    prefill_tokens_per_second=amounts,
    decode_tokens_per_second=st.none() | amounts,
    slowdown=st.floats(0, 1),
)
candidates = st.lists(
    st.builds(
        Candidate,
        id=st.sampled_from([InstanceId(name) for name in NAMES]),
        weight=amounts,
        health=st.floats(0, 1),
        running=st.integers(0, 20),
        running_of_model=st.integers(0, 20),
        warm=st.booleans(),
        load_seconds=st.floats(0, 100),
        sharing=st.integers(1, 5),
        rates=st.none() | rates,
        answer_tokens=st.none() | amounts,
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda each: each.id,
)


@pytest.mark.parametrize("name", ALL)
@given(candidates, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_no_score(
    name: str, given_: list[Candidate], picks: int, chance: Random
) -> None:
    """Where chance is drawn for each in turn, the draws move with the candidates."""
    strategy = shelf()[name](Random(1))
    for number in range(picks):
        strategy.picked(given_[number % len(given_)], given_)
    asked = ticket(prompt_tokens=1000, prefix=PREFIX)
    scores = strategy.score(asked, given_)
    order = chance.sample(range(len(given_)), len(given_))
    turned = [given_[index] for index in order]

    if name in {"random", "power_of_two"}:
        again = Scores(scores.formula, scores.asked, turned, [scores.own[index] for index in order])
    else:
        again = strategy.score(asked, turned)

    assert [scores.values[index] for index in order] == list(again.values)
    assert [sum(each.values()) for each in scores] == list(scores.values)


views = st.lists(
    st.fixed_dictionaries(
        {
            "usable": st.booleans(),
            "suspect": st.booleans(),
            "drained": st.booleans(),
            "models": st.sampled_from([frozenset({"m:latest"}), frozenset()]),
            "free": st.booleans(),
            "resident": st.booleans(),
            "unproven": st.booleans(),
            "spare": st.booleans(),
            "reopens_at": st.sampled_from([None, None, 2000.0]),
            "paused": st.sampled_from([None, None, 1002.0]),
            "gated": st.sampled_from([None, None, 1002.0]),
            "no_room": st.sampled_from([None, None, 1002.0]),
            "running": st.integers(0, 9),
        }
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", ALL)
@given(views, st.sets(st.sampled_from(NAMES)))
def test_whoever_is_filtered_is_not_picked(name: str, facts: list[dict[str, Any]], failed: set[str]) -> None:
    there = [view(name, **each) for name, each in zip(NAMES, facts, strict=False)]
    asked = ticket(excluded=frozenset(map(InstanceId, failed)), prefix=PREFIX, prompt_tokens=1000)
    decision = Scheduler(FakeFleet(there), strategy=name, random=Random(1), shelf=shelf()).decide(
        asked, 1001.0
    )

    for each, considered in zip(there, decision.considered, strict=True):
        if why_out(asked, each, 1001.0) or why_held(asked, each, 1001.0):
            assert considered.filtered is not None
            assert decision.picked != each.id
        if each.id == decision.picked:
            assert considered.filtered is None


class Doubted:
    """An instance of which nothing is taken for granted."""

    def __init__(self, of: Instance) -> None:
        self._of = of

    def settled(self, now: float) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class DoubtedFleet:
    """The same fleet, every filter asked about every instance."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def instances(self) -> Sequence[InstanceView]:
        # A view in all but the class, by what it passes on.
        return [Doubted(each) for each in self._fleet.instances()]  # type: ignore[misc]

    def holding(self, model: ModelName) -> Sequence[InstanceView]:
        # As above.
        return [Doubted(each) for each in self._fleet.instances() if each.holds(model)]  # type: ignore[misc]


def _list(fleet: Fleet, it: Instance, now: float, models: Sequence[str], loaded: Sequence[str]) -> None:
    fleet.inventory_read(
        it,
        models=[{"name": each} for each in models],
        runners=[{"name": each, "digest": each} for each in loaded],
        slots={},
        at=now,
    )


def _lend(fleet: Fleet, it: Instance, now: float) -> None:
    it.take_slot(M.model, now)


def _load(fleet: Fleet, it: Instance, now: float) -> None:
    if it.loading is None:
        fleet.load_began(it, M, patience_seconds=5.0)


def _fail(fleet: Fleet, it: Instance, now: float) -> None:
    failure = Outcome(verdict=Verdict.FAILURE, kind="reset", blames=Blame.MODEL)
    it.breakers.settle_pair(M, failure, leased_at=now, trial=Trial(), now=now)


def _learn(fleet: Fleet, it: Instance, now: float) -> None:
    work = Work(prompt_tokens=1000, prompt_seconds=0.5, output_tokens=100, output_seconds=1.0)
    it.learned.book.learn(it.spec.url, M.model, work, Company())


def _flap(fleet: Fleet, it: Instance, now: float) -> None:
    for _ in range(2):
        fleet.failed(it, "refused", refused=True, incarnation=it.incarnation)
        for _ in range(2):
            fleet.probe_succeeded(it, version="1", incarnation=it.incarnation)


OPERATIONS: Sequence[Callable[[Fleet, Instance, float], object]] = (
    _lend,
    _lend,
    _load,
    _fail,
    _learn,
    lambda fleet, it, now: fleet.probe_succeeded(it, version="1", incarnation=it.incarnation),
    lambda fleet, it, now: fleet.probe_succeeded(it, version="1", incarnation=it.incarnation),
    lambda fleet, it, now: fleet.failed(it, "reset", refused=False, incarnation=it.incarnation),
    lambda fleet, it, now: fleet.failed(it, "refused", refused=True, incarnation=it.incarnation),
    lambda fleet, it, now: fleet.ended(it, "killed"),
    _flap,
    lambda fleet, it, now: fleet.drain(it, drained=not it.drained),
    lambda fleet, it, now: fleet.pause(it, for_seconds=2.0),
    lambda fleet, it, now: fleet.replace(reversed(fleet.instances())),
    lambda fleet, it, now: fleet.gate(it, Variant(canonical_name("n")), for_seconds=2.0),
    lambda fleet, it, now: fleet.no_room(it, M, among=[it]),
    lambda fleet, it, now: fleet.eject(it, Ejection(reason="errors", health=0.1, until=now + 5, slow=False)),
    lambda fleet, it, now: fleet.readmit(it),
    lambda fleet, it, now: fleet.unloaded(it, M.model),
    lambda fleet, it, now: _list(fleet, it, now, ["m", "n"], ["m"]),
    lambda fleet, it, now: _list(fleet, it, now, ["m"], []),
    lambda fleet, it, now: _list(fleet, it, now, ["n"], ["n"]),
)


ASKED = [
    ("m", "/api/chat"),
    ("m", "/api/tokenize"),
    ("n", "/api/chat"),
    ("x", "/api/chat"),
    (None, "/api/ps"),
]
"""Models, and paths of which runtimes of other makes serve some."""


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.integers(0, len(OPERATIONS) - 1), st.sampled_from([0.0, 0.5, 8.0])
        ),
        max_size=25,
    ),
    st.sampled_from(ALL),
)
def test_what_is_taken_for_granted_changes_no_decision(
    steps: list[tuple[str, int, float]], strategy: str
) -> None:
    clock = FakeClock()
    members = [
        instance("a", slots=2, models=("m", "n")),
        instance("b", slots=1, cold=True),
        instance("c", slots=2, models=None),
        instance("d", slots=2, spare_bytes=10),
        instance("e", slots=2, runtime=Runtime.VLLM),
        instance("f", slots=2, models=("m", "n"), max_concurrent_requests=3),
    ]
    members[-1].spec = replace(members[-1].spec, models=frozenset({M.model}))
    fleet = Fleet(members, clock=clock)
    for name, operation, seconds in [("a", 5, 0.0), *steps]:
        clock.advance(seconds)
        OPERATIONS[operation](fleet, fleet.get(InstanceId(name)), clock.now)
        for known in ("m", "n", "x"):
            wanted = canonical_name(known)
            assert fleet.holding(wanted) == tuple(each for each in fleet.instances() if each.holds(wanted))
        for model, path in ASKED:
            asked = ticket(model=model, path=path, prompt_tokens=1000, prefix=PREFIX, queued_at=clock.now)
            quick, slow = (
                Scheduler(each, strategy=strategy, random=Random(1), shelf=shelf()).decide(asked, clock.now)
                for each in (fleet, DoubtedFleet(fleet))
            )
            assert quick.explain() == slow.explain()
            assert quick.next_wake_at == slow.next_wake_at


def test_a_fleet_at_work_takes_most_for_granted() -> None:
    """Or the property above would say nothing."""
    fleet = Fleet([instance("a", slots=1), instance("b", slots=1)], clock=FakeClock())
    for each in fleet.instances():
        fleet.probe_succeeded(each, version="1", incarnation=each.incarnation)
    fleet.get(InstanceId("a")).take_slot(M.model, 1000.0)

    assert all(each.settled(1000.0) for each in fleet.instances())
    decision = Scheduler(fleet, strategy="random", random=Random(1)).decide(ticket(), 1000.0)
    assert (decision.picked, decision.filtered) == ("b", {"a": NO_SLOT})
