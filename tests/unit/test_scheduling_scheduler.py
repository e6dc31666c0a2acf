"""The scheduler: who is filtered and why, who is picked, and what it means when nobody is."""

import ast
from collections import Counter
from pathlib import Path
from random import Random

import pytest

import balancer.scheduling
from balancer.core.decision import Decision, Standing
from balancer.core.ticket import InstanceId
from balancer.scheduling.filters import why_out
from balancer.scheduling.scheduler import Scheduler
from tests.unit.unit_support import FakeFleet, FakeView, ticket, view


def decide(*views: FakeView, strategy: str = "least_connections", seed: int = 1, **facts: object) -> Decision:
    return Scheduler(FakeFleet(views), strategy=strategy, random=Random(seed)).decide(ticket(**facts), 1001.0)


def reasons(decision: Decision) -> dict[str, str | None]:
    return {str(each.instance): each.filtered for each in decision.considered}


def test_what_explains_most_is_told_first() -> None:
    troubles: list[tuple[str, dict[str, object]]] = [
        ("model not there", {"models": frozenset()}),
        ("runtime does not serve this", {"unserved": frozenset({"/api/chat"})}),
        ("not up", {"usable": False}),
        ("drained", {"drained": True}),
        ("failed this request before", {}),
        ("too large for a spare instance", {"spare": True, "small": False}),
        ("breaker open", {"reopens_at": 2000.0}),
    ]
    told = []
    for first in range(len(troubles)):
        left = dict(troubles[first:])
        facts = {name: value for each in left.values() for name, value in each.items()}
        failed = {InstanceId("a")} if "failed this request before" in left else set()
        told.append(why_out(ticket(path="/api/chat", excluded=frozenset(failed)), view("a", **facts), 1001.0))

    assert told == [reason for reason, _ in troubles]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"models": frozenset()}, "model not there"),
        ({"usable": False}, "not up"),
        ({"drained": True}, "drained"),
        ({"free": False}, "no free slot"),
        ({"suspect": True}, "newest probe failed"),
        ({"reserved_for": frozenset({"other:latest"})}, "meant for other models"),
        ({"spare": True}, "spare"),
        ({"spare": True, "small": False}, "too large for a spare instance"),
    ],
)
def test_an_instance_is_out_for_the_reason_told(facts: dict[str, object], reason: str) -> None:
    decision = decide(view("a"), view("b", **facts))

    assert (decision.picked, decision.standing) == ("a", Standing.PICKED)
    assert {"a": None, "b": reason} == reasons(decision)


@pytest.mark.parametrize(
    "facts", [{"usable": False}, {"free": False}, {"drained": True}, {"models": frozenset()}]
)
def test_a_spare_instance_serves_where_no_other_is_free(facts: dict[str, object]) -> None:
    decision = decide(view("a", **facts), view("b", spare=True))

    assert (decision.picked, decision.standing) == ("b", Standing.PICKED)


def test_a_model_too_large_for_the_spare_instance_waits_for_another() -> None:
    decision = decide(view("a", free=False), view("b", spare=True, small=False))

    assert (decision.picked, decision.standing) == (None, Standing.BUSY)


def test_an_instance_that_failed_the_request_before_is_out() -> None:
    decision = decide(view("a"), view("b"), excluded=frozenset({InstanceId("a")}))

    assert (decision.picked, reasons(decision)) == ("b", {"a": "failed this request before", "b": None})


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"models": frozenset(), "usable": False, "drained": True}, "model not there"),
        ({"usable": False, "drained": True}, "not up"),
        ({"drained": True, "free": False}, "drained"),
    ],
)
def test_the_first_of_several_reasons_stands(facts: dict[str, object], reason: str) -> None:
    assert (
        reason == reasons(decide(view("a"), view("b", **facts), excluded=frozenset({InstanceId("b")})))["b"]
    )


def test_a_suspect_serves_where_no_other_is_free() -> None:
    assert decide(view("a", suspect=True), view("b", free=False)).picked == "a"
    assert decide(view("a", suspect=True)).picked == "a"
    assert decide(view("a", suspect=True), view("b", suspect=True)).picked in {"a", "b"}


def test_a_suspect_is_not_picked_however_busy_the_other_is() -> None:
    assert decide(view("a", suspect=True), view("b", running=99)).picked == "b"


def test_an_instance_meant_for_the_model_comes_before_one_for_all() -> None:
    mine, all_models = frozenset({"m:latest"}), frozenset({"other:latest"})
    decision = decide(view("a", reserved_for=mine, running=5), view("b", reserved_for=all_models))

    assert (decision.picked, reasons(decision)["b"]) == ("a", "meant for other models")


def test_an_instance_for_all_models_is_meant_for_each() -> None:
    assert decide(view("a", reserved_for=frozenset({"m:latest"}), running=5), view("b")).picked == "b"


def test_an_instance_meant_for_others_takes_what_nothing_else_can() -> None:
    others = frozenset({"other:latest"})

    assert decide(view("a", usable=False), view("b", reserved_for=others)).picked == "b"
    assert decide(view("a", models=frozenset()), view("b", reserved_for=others)).picked == "b"


def test_an_instance_meant_for_others_is_not_taken_because_the_right_one_is_busy() -> None:
    decision = decide(view("a", free=False), view("b", reserved_for=frozenset({"other:latest"})))

    assert (decision.standing, decision.picked) == (Standing.BUSY, None)


def test_a_request_without_a_model_goes_to_any_that_is_up() -> None:
    decision = decide(
        view("a", usable=False),
        view("b", models=frozenset(), free=False, reserved_for=frozenset({"other:latest"})),
        model=None,
    )

    assert decision.picked == "b"


def test_a_spare_instance_answers_what_runs_nothing_of_any_model() -> None:
    assert decide(view("a", usable=False), view("b", spare=True, small=False), needs_slot=False).picked == "b"


def test_a_request_that_needs_no_slot_never_waits_for_one() -> None:
    assert decide(view("a", free=False), needs_slot=False).picked == "a"


@pytest.mark.parametrize(
    ("views", "standing"),
    [
        ([view("a", free=False)], Standing.BUSY),
        ([view("a", free=False), view("b", usable=False)], Standing.BUSY),
        ([view("a", models=frozenset()), view("b", models=frozenset())], Standing.UNKNOWN_MODEL),
        (
            [view("a", models=frozenset()), view("b", models=frozenset(), usable=False)],
            Standing.UNKNOWN_MODEL,
        ),
        ([view("a", models=frozenset(), usable=False)], Standing.NO_INSTANCE),
        ([view("a", models=frozenset()), view("b", usable=False)], Standing.NO_INSTANCE),
        ([view("a", drained=True)], Standing.NO_INSTANCE),
        ([view("a", usable=False)], Standing.NO_INSTANCE),
        ([], Standing.NO_INSTANCE),
    ],
)
def test_without_a_pick_the_standing_says_whether_waiting_helps(
    views: list[FakeView], standing: Standing
) -> None:
    decision = decide(*views)

    assert (standing, None) == (decision.standing, decision.picked)


@pytest.mark.parametrize("other", [{"usable": False}, {"models": frozenset()}, {"drained": True}])
def test_a_request_that_every_able_instance_failed_is_exhausted(other: dict[str, object]) -> None:
    excluded = frozenset({InstanceId("a")})

    assert Standing.EXHAUSTED is decide(view("a"), excluded=excluded).standing
    assert Standing.EXHAUSTED is decide(view("a"), view("b", **other), excluded=excluded).standing
    assert Standing.BUSY is decide(view("a"), view("b", free=False), excluded=excluded).standing


def test_ties_are_broken_by_chance_and_evenly() -> None:
    views = [view("a"), view("b"), view("c")]
    scheduler = Scheduler(FakeFleet(views), strategy="least_connections", random=Random(5))

    counts = Counter(scheduler.decide(ticket(), 0.0).picked for _ in range(3000))

    assert {"a", "b", "c"} == set(counts)
    assert min(counts.values()) > 900


def test_the_lowest_score_is_picked_and_every_score_is_told() -> None:
    decision = decide(view("a", running=3), view("b", running=1), view("c", running=2, free=False))

    assert (decision.picked, decision.strategy, decision.at) == ("b", "least_connections", 1001.0)
    assert [(each.instance, each.score) for each in decision.considered] == [
        ("a", 3.0),
        ("b", 1.0),
        ("c", None),
    ]
    assert decision.considered[0].terms == {"running_per_weight": 3.0}


@pytest.mark.parametrize("seed", range(5))
def test_smooth_turns_of_five_one_one_hold_through_the_scheduler(seed: int) -> None:
    views = [view("a", weight=5), view("b"), view("c")]
    scheduler = Scheduler(FakeFleet(views), strategy="weighted_round_robin", random=Random(seed))

    turns = "".join(str(scheduler.decide(ticket(), 0.0).picked) for _ in range(7))

    assert turns in {"aabacaa", "aacabaa"}


def test_a_decision_without_a_pick_takes_nobodys_turn() -> None:
    views = [view("a", free=False), view("b", free=False)]
    scheduler = Scheduler(FakeFleet(views), strategy="round_robin", random=Random(1))
    for _ in range(3):
        scheduler.decide(ticket(), 0.0)
    for each in views:
        each.free = True

    assert {"a", "b"} == {scheduler.decide(ticket(), 0.0).picked for _ in range(2)}


def test_a_strategy_that_is_not_on_the_shelf_is_refused() -> None:
    with pytest.raises(KeyError):
        Scheduler(FakeFleet([]), strategy="smartest", random=Random(1))


def test_scheduling_imports_nothing_that_does_io_or_reads_time() -> None:
    allowed = {
        *("array", "collections", "collections.abc", "functools", "operator"),
        *("random", "typing", "dataclasses", "math", "msgspec"),
    }
    for path in Path(balancer.scheduling.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = [
                n
                for n in names
                if n not in allowed and not n.startswith(("balancer.core", "balancer.scheduling"))
            ]
            assert foreign == [], path


@pytest.mark.parametrize("seed", range(5))
def test_no_load_begins_at_a_suspect_while_another_suspect_needs_none(seed: int) -> None:
    cold, warm = view("a", suspect=True, resident=False), view("b", suspect=True)

    assert decide(cold, warm, seed=seed).picked == "b"
    assert decide(cold, seed=seed).standing is Standing.LOAD
    assert decide(cold, warm, view("c", resident=False), seed=seed).picked == "c"
