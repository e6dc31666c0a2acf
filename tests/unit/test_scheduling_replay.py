"""Replay: what is computed again, by the same strategy and by others, and what is refused."""

import copy
import json
import math
from random import Random
from typing import Any

import pytest

from balancer.core.decision import Decision
from balancer.core.rates import Rates
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.scheduling.replay import FORMULAS, CannotReplay, decisions_in, replay
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES
from balancer.settings import Strategy
from tests.unit.unit_support import FakeFleet, FakeView, ticket, view

PREFIX = ((1, 500), (2, 900))
RATES = Rates(prefill_tokens_per_second=1000.0, decode_tokens_per_second=100.0, slowdown=0.1, samples=9)


class Known:
    def rates(self, model: str) -> Rates:
        return RATES

    def output_tokens(self, model: str) -> float:
        return 100.0


def there(name: str, **facts: Any) -> FakeView:
    made = view(name, **facts)
    made.learned = Known()  # type: ignore[assignment]  # as far as scores see it
    return made


def decide(*views: FakeView, strategy: str = "adaptive", cached: str = "b", **facts: Any) -> Decision:
    index = PrefixIndex(limit_bytes=1 << 20)
    asked = ticket(**{"prompt_tokens": 1000, "prefix": PREFIX, **facts})
    index.remember(InstanceId(cached), asked.variant or Variant("m:latest"), PREFIX)  # type: ignore[arg-type]
    shelf = {**STRATEGIES, "adaptive": lambda _random: Adaptive(index)}
    return Scheduler(FakeFleet(views), strategy=strategy, random=Random(1), shelf=shelf).decide(asked, 1001.0)


def told(decision: Decision) -> Any:
    return json.loads(json.dumps(decision.explain()))


def test_every_strategy_that_can_be_configured_can_be_replayed() -> None:
    assert set(FORMULAS) == {each.value for each in Strategy}


@pytest.mark.parametrize("strategy", FORMULAS)
@pytest.mark.parametrize("facts", [{}, {"model": None}, {"needs_slot": False}])
def test_a_decision_comes_out_as_it_was(strategy: str, facts: dict[str, Any]) -> None:
    views = [
        there("a", running=3),
        there("b", weight=2.0, running=1, health_score=0.5),
        there("c", usable=False),
    ]
    recorded = told(decide(*views, strategy=strategy, **facts))

    again = replay(recorded)

    assert again.same
    assert again.went_to == recorded["picked"] is not None
    assert [(row.instance, row.filtered, row.score) for row in again.rows] == [
        (each["instance"], each["filtered"], each["score"]) for each in recorded["considered"]
    ]
    assert [dict(row.terms) for row in again.rows] == [each["terms"] for each in recorded["considered"]]
    assert [row.picked for row in again.rows].count(True) == 1


def test_facts_are_told_by_plain_names_and_change_the_outcome() -> None:
    recorded = told(decide(there("a"), there("b", running=1)))
    (_, chosen) = recorded["considered"]
    assert recorded["picked"] == "b"
    assert chosen["facts"] == {
        "weight": 1.0,
        "health": 1.0,
        "running": 1,
        "running_of_model": 1,
        "slots": 1,
        "warm": True,
        "load_seconds": 0.0,
        "runners_sharing_device": 1,
        "rates": {
            "prefill_tokens_per_second": 1000.0,
            "decode_tokens_per_second": 100.0,
            "slowdown": 0.1,
            "samples": 9,
        },
        "answer_tokens": 100.0,
        "cached_tokens": 900,
        "new_tokens": 100,
    }

    chosen["facts"]["cached_tokens"] = 0
    again = replay(recorded)

    assert not again.same
    assert [(row.instance, row.best, row.picked) for row in again.rows] == [
        ("a", True, False),
        ("b", False, True),
    ]
    assert again.rows[1].score != again.rows[1].recorded_score


def test_another_strategy_decides_by_the_same_facts_where_they_suffice() -> None:
    recorded = told(decide(there("a"), there("b", running=1)))

    other = replay(recorded, strategy="least_connections")

    assert (other.same, other.strategy, other.recorded_strategy) == (False, "least_connections", "adaptive")
    assert [row.score for row in other.rows] == [0.0, 1.0]
    for strategy, fact in [("round_robin", "last_turn"), ("random", "draw"), ("power_of_two", "drawn")]:
        with pytest.raises(CannotReplay, match=f"{fact} was not recorded"):
            replay(recorded, strategy=strategy)
    with pytest.raises(CannotReplay, match="cached_tokens was not recorded"):
        replay(told(decide(there("a"), there("b"), strategy="random")), strategy="adaptive")


def test_whoever_is_almost_as_good_counts_as_the_same() -> None:
    recorded = told(decide(there("a", running=0), there("b", running=0, health_score=0.99), cached="x"))
    for name in ("a", "b"):
        assert replay(recorded | {"picked": name}).same
    assert not replay(recorded | {"picked": "x"}).same


def test_a_wait_by_choice_is_told_and_replayed_as_far_as_where_it_would_have_gone() -> None:
    recorded = told(decide(there("a"), there("b", running=4, free=False), queued_at=1001.0))

    assert recorded["waiting"] == {
        "why": "a slot where up to 900 tokens of its prompt are cached",
        "instead_of": "a",
        "at_most_seconds": 0.9,
    }
    assert replay(recorded).same
    assert not replay(recorded, strategy="least_connections").same


def test_what_was_never_scored_is_the_same_again() -> None:
    busy = told(decide(there("a", free=False)))
    nowhere = told(decide(there("a", models=frozenset())))

    assert (replay(busy).same, replay(nowhere).same) == (True, True)
    assert busy["waiting"]["why"] == "no free slot"
    assert nowhere["waiting"] is None


def test_the_window_tells_who_else_could_have_gone() -> None:
    index = PrefixIndex(limit_bytes=1 << 20)
    scheduler = Scheduler(
        FakeFleet([there("a")]), strategy="x", random=Random(1), shelf={"x": lambda _: Adaptive(index)}
    )
    long, short = ticket("long", prompt_tokens=5000), ticket("short", prompt_tokens=10)

    decision = scheduler.decide(long, 1000.0, behind=[short])

    assert (decision.ticket.id, decision.pairs) == ("short", 2)
    assert [each["request"] for each in decision.explain()["window"]] == ["short", "long"]  # type: ignore[attr-defined]
    alone = scheduler.decide(long, 1000.0, behind=[short], most_pairs=1)
    assert (alone.ticket.id, alone.pairs, alone.window) == ("long", 1, ())


@pytest.mark.parametrize(
    "broken",
    [
        None,
        1,
        "text",
        [],
        {},
        {"decisions": []},
        {"decisions": "all"},
        {"error": "no decision is remembered"},
    ],
)
def test_what_holds_no_decision_is_refused(broken: object) -> None:
    with pytest.raises(CannotReplay, match="no recorded decision"):
        decisions_in(broken)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("considered",), None),
        (("considered", 0), 7),
        (("considered", 0, "facts", "weight"), 0),
        (("considered", 0, "facts", "weight"), "1"),
        (("considered", 0, "facts", "health"), None),
        (("considered", 0, "facts", "health"), 1.5),
        (("considered", 0, "facts", "running"), -1),
        (("considered", 0, "facts", "rates", "prefill_tokens_per_second"), 0.0),
        (("considered", 0, "facts", "rates", "decode_tokens_per_second"), 1e300),
        (("considered", 0, "facts", "rates"), []),
        (("considered", 0, "facts"), None),
        (("prompt_tokens",), -5),
        (("strategy",), None),
        (("picked",), 5),
        (("strategy",), "bets"),
    ],
)
def test_a_decision_with_impossible_facts_is_refused(path: tuple[Any, ...], value: object) -> None:
    recorded = told(decide(there("a"), there("b")))
    replay(copy.deepcopy(recorded))
    part = recorded
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value

    with pytest.raises(CannotReplay):
        replay(recorded)


REASONS = [
    ("adaptive", {}, "adaptive: costs 0.80 s less than the next; 900 of 1000 prompt tokens cached there"),
    ("least_connections", {}, "least_connections: fewest requests running for its weight, 0"),
    ("round_robin", {}, "round_robin: its turn"),
    ("weighted_round_robin", {}, "weighted_round_robin: its turn, by weight and health"),
    ("random", {}, "random: drawn by chance among 2, by weight"),
    ("power_of_two", {}, "power_of_two: the less busy of two drawn by chance"),
]


@pytest.mark.parametrize(("strategy", "facts", "reason"), REASONS)
def test_a_reason_says_in_plain_words_why_there(strategy: str, facts: dict[str, Any], reason: str) -> None:
    asked = decide(there("a"), there("b", running=0, health_score=math.exp(-0.2)), strategy=strategy, **facts)

    assert asked.reason == reason


def test_a_reason_says_what_else_mattered() -> None:
    none = "x"
    assert decide(there("a")).reason == "adaptive: the only instance"
    assert decide(there("a"), there("b", usable=False)).reason == (
        "adaptive: the only one of 2 that can take it now"
    )
    assert decide(there("a"), there("b"), cached=none).reason == (
        "adaptive: by chance, as others cost about as little, 1.00 s"
    )
    assert decide(there("a"), there("b", resident=False, load=9.0), cached=none).reason == (
        "adaptive: costs 9.00 s less than the next; model in memory there, 1 other would have to load it"
    )
    cold = [there(name, resident=False, load=load) for name, load in (("a", 4.0), ("b", 9.0))]
    assert decide(*cold).reason == "adaptive: to be loaded there, costs 5.00 s less than the next"
    assert decide(view("a", running=2), view("b"), cached=none).reason == (
        "adaptive: fewest new prompt tokens for how much runs there"
    )
    assert decide(there("a", running=2), there("b"), model=None).reason == (
        "adaptive: fewest requests running, 0"
    )
    retried = decide(there("a"), there("b"), there("c"), attempt=2, excluded=frozenset({InstanceId("c")}))
    assert retried.reason.endswith("900 of 1000 prompt tokens cached there; retry after a failure; try 2")
    assert decide(there("a", free=False)).reason == "busy"


def test_a_reason_fits_a_header_whatever_the_figures_are() -> None:
    many = [there(f"i{number}", running=10**6 + number) for number in range(300)]
    decision = decide(
        *many, prompt_tokens=10**12, cached="i0", attempt=10**6, excluded=frozenset({InstanceId("i299")})
    )

    assert decision.picked is not None
    assert len(decision.reason) <= 120
    assert decision.reason.isascii()
    assert decision.reason.isprintable()
    assert decision.picked not in decision.reason


def test_a_head_that_waits_is_told_by_its_own_scores() -> None:
    index = PrefixIndex(limit_bytes=1 << 20)
    index.remember(InstanceId("b"), Variant("m:latest"), PREFIX)  # type: ignore[arg-type]
    free, busy = there("a"), there("b", running=4, free=False)
    scheduler = Scheduler(
        FakeFleet([free, busy]), strategy="x", random=Random(1), shelf={"x": lambda _: Adaptive(index)}
    )
    head, behind = (
        ticket(name, prompt_tokens=tokens, prefix=PREFIX, queued_at=1001.0)
        for name, tokens in (("head", 1000), ("behind", 950))
    )

    for first, other in ((head, behind), (behind, head)):
        decision = scheduler.decide(first, 1001.0, behind=[other])
        assert (decision.ticket.id, decision.by_choice) == (first.id, True)
        assert decision.scores is not None
        assert decision.scores.asked.prompt_tokens == first.prompt_tokens
