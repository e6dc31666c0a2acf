"""The holds: what keeps an instance from taking a request for now, until when, and what it is told as."""

from random import Random

import pytest

from balancer.core.decision import Decision, Standing
from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.scheduling.filters import HOLDS, Hold
from balancer.scheduling.scheduler import Scheduler
from tests.unit.unit_support import FakeFleet, FakeView, ticket, view

NOW = 1000.0
M = Variant(canonical_name("m"))
N = Variant(canonical_name("n"))


def holds(it: FakeView, **facts: object) -> list[Hold]:
    return [hold for each in HOLDS if (hold := each(ticket(**facts), it, NOW))]


def decide(*views: FakeView, load_at: str | None = None, **facts: object) -> Decision:
    scheduler = Scheduler(FakeFleet(views), strategy="least_connections", random=Random(1))
    where = InstanceId(load_at) if load_at else None
    return scheduler.decide(ticket(**facts), NOW, load_at=where)


def reasons(decision: Decision) -> dict[str, str | None]:
    return {str(each.instance): each.filtered for each in decision.considered}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"trials_left": False}, [Hold("breaker half-open, on trial")]),
        ({"paused": 1001.0}, [Hold("said that it is full", 1001.0)]),
        ({"gated": 1060.0}, [Hold("held for a load", 1060.0)]),
        ({"free": False}, [Hold("no free slot")]),
        ({"loading": N, "resident": False}, [Hold("loading")]),
        ({"loading": M, "resident": False}, [Hold("loading")]),
        ({"loading": N, "resident": True}, []),
        ({"resident": False}, []),
    ],
)
def test_each_hold_says_why_and_until_when(facts: dict[str, object], expected: list[Hold]) -> None:
    assert holds(view("a", **facts)) == expected


@pytest.mark.parametrize("free_of", [{"needs_slot": False}, {"model": None}])
def test_nothing_holds_back_what_needs_no_slot(free_of: dict[str, object]) -> None:
    it = view(
        "a", trials_left=False, paused=1001.0, gated=1060.0, free=False, loading=N, resident=False,
        reopens_at=2000.0,
    )  # fmt: skip

    assert holds(it, **free_of) == []
    assert decide(it, **free_of).standing is Standing.PICKED


@pytest.mark.parametrize(
    ("facts", "wake_at"),
    [
        ({"trials_left": False}, None),
        ({"paused": 1001.0}, 1001.0),
        ({"gated": 1060.0}, 1060.0),
        ({"free": False}, None),
        ({"loading": N, "resident": False}, None),
    ],
)
def test_what_is_held_is_waited_for_until_the_hold_ends(
    facts: dict[str, object], wake_at: float | None
) -> None:
    decision = decide(view("a", **facts))

    assert (decision.standing, decision.next_wake_at) == (Standing.BUSY, wake_at)


def test_of_several_holds_the_first_that_ends_wakes() -> None:
    decision = decide(view("a", paused=1001.0), view("b", gated=1060.0), view("c", reopens_at=1000.5))

    assert (decision.standing, decision.next_wake_at) == (Standing.BUSY, 1000.5)


def test_an_open_breaker_is_waited_for_only_where_something_else_is_able() -> None:
    open_one = view("b", reopens_at=1030.0)

    busy = decide(view("a", free=False), open_one)
    held_back = decide(view("a", usable=False), open_one)

    assert (busy.standing, busy.next_wake_at) == (Standing.BUSY, 1030.0)
    assert (held_back.standing, held_back.next_wake_at) == (Standing.HELD_BACK, 1030.0)


@pytest.mark.parametrize(
    "other",
    [
        {"drained": True, "reopens_at": 1001.0},
        {"usable": False, "reopens_at": 1001.0},
        {"models": frozenset(), "reopens_at": 1001.0},
        {"drained": True, "held_until": 1001.0},
    ],
)
def test_only_those_that_could_serve_tell_when_to_come_again(other: dict[str, object]) -> None:
    decision = decide(view("a", reopens_at=1030.0), view("b", **other))

    assert (decision.standing, decision.next_wake_at) == (Standing.HELD_BACK, 1030.0)


def test_what_needs_no_load_comes_before_what_does() -> None:
    for facts in ({}, {"suspect": True}, {"running": 9}):
        decision = decide(view("a", resident=False), view("b", **facts))

        assert (decision.standing, decision.picked) == (Standing.PICKED, "b")
        assert reasons(decision)["a"] == "needs a load"


def test_a_cold_one_is_to_load_where_no_warm_one_is_free() -> None:
    decision = decide(view("a", resident=False), view("b", free=False), view("c", paused=1002.0))

    assert (decision.standing, decision.picked, decision.next_wake_at) == (Standing.LOAD, "a", 1002.0)


def loading_at_b(*, suspect: bool = False) -> Decision:
    b = view("b", resident=False, loading=M, suspect=suspect)
    return decide(view("a", resident=False), b)


def test_no_second_load_while_one_is_under_way() -> None:
    decision = loading_at_b()

    assert (decision.standing, decision.picked) == (Standing.BUSY, None)
    assert reasons(decision) == {"a": "being loaded elsewhere", "b": "loading"}


def test_a_load_at_a_suspect_is_not_waited_for() -> None:
    decision = loading_at_b(suspect=True)

    assert (decision.standing, decision.picked) == (Standing.LOAD, "a")


def test_who_had_it_loaded_waits_for_a_slot_there_and_loads_nothing_else() -> None:
    decision = decide(view("a", resident=False), view("b", free=False), load_at="b")

    assert (decision.standing, reasons(decision)["a"]) == (Standing.BUSY, "being loaded elsewhere")


def test_who_had_it_loaded_in_vain_has_it_loaded_elsewhere() -> None:
    decision = decide(view("a", resident=False), view("b", resident=False, reopens_at=1060.0), load_at="b")

    assert (decision.standing, decision.picked) == (Standing.LOAD, "a")


def test_one_that_came_and_went_is_spared_while_another_is_able() -> None:
    spared = view("a", held_until=1005.0)

    assert decide(spared, view("b", running=50)).picked == "b"
    busy = decide(spared, view("b", free=False))
    assert (busy.standing, busy.next_wake_at) == (Standing.BUSY, 1005.0)
    assert decide(spared).picked == "a"
    assert decide(spared, view("b", reopens_at=2000.0)).picked == "a"
