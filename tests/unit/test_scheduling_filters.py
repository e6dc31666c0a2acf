"""The holds: what keeps an instance from taking a request for now, until when, and what it is told as."""

from random import Random

import pytest

from balancer.core.decision import Decision, Standing
from balancer.core.ejection import Ejection
from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.scheduling.filters import Hold, why_held
from balancer.scheduling.scheduler import PATIENCE_SECONDS, LoadBegun, Scheduler
from tests.unit.unit_support import FakeFleet, FakeView, ticket, view

NOW = 1000.0
M = Variant(canonical_name("m"))
N = Variant(canonical_name("n"))


def holds(it: FakeView, **facts: object) -> list[Hold]:
    held = why_held(ticket(**facts), it, NOW)
    return [] if held is None else [held]


def decide(
    *views: FakeView, load_at: str | None = None, alone_until: float = NOW + 0.5, **facts: object
) -> Decision:
    scheduler = Scheduler(FakeFleet(views), strategy="least_connections", random=Random(1))
    begun = LoadBegun(InstanceId(load_at), alone_until) if load_at else None
    return scheduler.decide(ticket(**facts), NOW, begun=begun)


def reasons(decision: Decision) -> dict[str, str | None]:
    return {str(each.instance): each.filtered for each in decision.considered}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"usable": False, "unproven": True}, [Hold("not probed yet")]),
        ({"trials_left": False}, [Hold("breaker half-open, on trial")]),
        ({"paused": 1001.0}, [Hold("paused for a moment", 1001.0)]),
        ({"gated": 1060.0}, [Hold("held for a load", 1060.0)]),
        ({"free": False}, [Hold("no free slot")]),
        ({"starts_slowly_until": 1003.0}, [Hold("slow start", 1003.0)]),
        ({"loading": N, "resident": False}, [Hold("loading")]),
        ({"loading": M, "resident": False}, [Hold("loading")]),
        ({"loading": N, "resident": True}, []),
        ({"no_room": 1001.0, "resident": False}, [Hold("no room for a load", 1001.0)]),
        ({"no_room": 1001.0, "resident": True}, []),
        ({"resident": False}, []),
    ],
)
def test_each_hold_says_why_and_until_when(facts: dict[str, object], expected: list[Hold]) -> None:
    assert holds(view("a", **facts)) == expected


@pytest.mark.parametrize("free_of", [{"needs_slot": False}, {"model": None}])
def test_nothing_holds_back_what_needs_no_slot(free_of: dict[str, object]) -> None:
    it = view(
        "a", trials_left=False, paused=1001.0, gated=1060.0, starts_slowly_until=1003.0, free=False,
        loading=N, resident=False, reopens_at=2000.0,
    )  # fmt: skip

    assert holds(it, **free_of) == []
    assert decide(it, **free_of).standing is Standing.PICKED


@pytest.mark.parametrize(
    ("facts", "wake_at"),
    [
        ({"trials_left": False}, None),
        ({"paused": 1001.0}, 1001.0),
        ({"gated": 1060.0}, 1060.0),
        ({"starts_slowly_until": 1003.0}, 1003.0),
        ({"free": False}, None),
        ({"loading": N, "resident": False, "load_overdue_at": 1060.0}, 1060.0),
        ({"loading": N, "resident": False, "load_overdue_at": 999.0}, None),
        ({"usable": False, "unproven": True}, None),
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


def test_a_new_one_is_waited_for_where_nothing_else_is_able_and_is_no_reason_to_wait_elsewhere() -> None:
    new = view("a", usable=False, unproven=True)

    assert decide(new, view("b", usable=False)).standing is Standing.BUSY
    assert decide(new, view("b", running=50)).picked == "b"
    assert decide(view("a", usable=False)).standing is Standing.NO_INSTANCE
    assert reasons(decide(new))["a"] == "not probed yet"


@pytest.mark.parametrize("model", ["m", None])
def test_even_what_needs_no_slot_waits_for_the_probe_of_a_new_one(model: str | None) -> None:
    decision = decide(view("a", usable=False, unproven=True), model=model, needs_slot=False)

    assert (decision.standing, reasons(decision)["a"]) == (Standing.BUSY, "not probed yet")


def test_whether_it_needs_a_load_is_nothing_to_the_strategy() -> None:
    cold, warm = view("a", resident=False), view("b", running=1)

    loads = decide(cold, warm)
    picks = decide(view("a", resident=False, running=2), warm)

    assert (loads.standing, loads.picked) == (Standing.LOAD, "a")
    assert (picks.standing, picks.picked) == (Standing.PICKED, "b")
    assert [each.filtered for each in (*loads.considered, *picks.considered)] == [None] * 4


def test_a_suspect_that_is_warm_is_not_preferred_to_a_cold_one() -> None:
    decision = decide(view("a", resident=False), view("b", suspect=True))

    assert (decision.standing, decision.picked) == (Standing.LOAD, "a")


def test_a_cold_one_is_to_load_where_no_warm_one_is_free() -> None:
    decision = decide(view("a", resident=False), view("b", free=False), view("c", paused=1002.0))

    assert (decision.standing, decision.picked) == (Standing.LOAD, "a")
    assert decision.next_wake_at == NOW + PATIENCE_SECONDS  # from then on it may go elsewhere


def loading_at_b(*, warm_a: bool = False, **facts: object) -> Decision:
    return decide(view("a", resident=warm_a), view("b", resident=False, loading=M, **facts))


def test_no_second_load_while_one_is_under_way() -> None:
    decision = loading_at_b(load_overdue_at=1060.0)

    assert (decision.standing, decision.picked, decision.next_wake_at) == (Standing.BUSY, None, 1060.0)
    assert reasons(decision) == {"a": "waits for a load", "b": "loading"}


def test_others_take_what_is_warm_while_a_load_is_under_way() -> None:
    decision = loading_at_b(warm_a=True)

    assert (decision.standing, decision.picked) == (Standing.PICKED, "a")


@pytest.mark.parametrize("facts", [{"suspect": True}, {"load_overdue_at": NOW}, {"load_overdue_at": 900.0}])
def test_a_load_at_a_suspect_or_one_that_is_overdue_is_not_waited_for(facts: dict[str, object]) -> None:
    decision = loading_at_b(**facts)

    assert (decision.standing, decision.picked) == (Standing.LOAD, "a")


def test_a_load_of_another_model_or_other_options_is_not_waited_for() -> None:
    for other in (N, Variant(M.model, (("num_ctx", 8),))):
        decision = decide(view("a", resident=False), view("b", resident=False, loading=other))

        assert (decision.standing, decision.picked) == (Standing.LOAD, "a")


def own_load(alone_until: float, *, warm_a: bool = True, **facts: object) -> Decision:
    """Of a ticket for which a load was begun at `b`, where `a` is free."""
    b = {"resident": False, "loading": M, **facts}
    return decide(view("a", resident=warm_a), view("b", **b), load_at="b", alone_until=alone_until)


def test_who_had_it_loaded_waits_for_that_alone_for_a_moment() -> None:
    decision = own_load(NOW + 0.001)

    assert (decision.standing, reasons(decision)["a"]) == (Standing.BUSY, "waits for a load")


def test_who_has_waited_for_its_load_long_enough_takes_what_is_warm_but_loads_nothing_else() -> None:
    warm, cold = own_load(NOW), own_load(NOW, warm_a=False)

    assert (warm.standing, warm.picked) == (Standing.PICKED, "a")
    assert (cold.standing, reasons(cold)["a"]) == (Standing.BUSY, "waits for a load")


@pytest.mark.parametrize("facts", [{"load_overdue_at": NOW}, {"suspect": True}])
def test_nobody_waits_for_an_overdue_load_of_its_own(facts: dict[str, object]) -> None:
    for warm, standing in ((True, Standing.PICKED), (False, Standing.LOAD)):
        decision = own_load(NOW + 0.5, warm_a=warm, **facts)

        assert (decision.standing, decision.picked) == (standing, "a")


def test_who_had_it_loaded_goes_there_once_it_is_loaded() -> None:
    for alone_until in (NOW + 0.5, NOW):
        decision = own_load(alone_until, resident=True, loading=None, running=9)

        assert (decision.standing, decision.picked) == (Standing.PICKED, "b")


def test_who_had_it_loaded_where_no_slot_is_free_goes_where_one_is() -> None:
    decision = own_load(NOW + 0.5, resident=True, loading=None, free=False)

    assert (decision.standing, decision.picked) == (Standing.PICKED, "a")


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


def ejected(name: str, *, slow: bool = False, **facts: object) -> FakeView:
    return view(name, ejection=Ejection(reason="token", slow=slow, health=0.1, until=1100.0), **facts)


@pytest.mark.parametrize("slow", [False, True])
def test_an_outlier_is_left_alone_while_another_can_serve(slow: bool) -> None:
    decision = decide(ejected("a", slow=slow), view("b", running=50))

    assert (decision.picked, reasons(decision)) == ("b", {"a": "ejected: token", "b": None})
    assert decide(ejected("a", slow=slow), view("b", free=False)).standing is Standing.BUSY


@pytest.mark.parametrize(
    "other",
    [
        {"usable": False},
        {"drained": True},
        {"models": frozenset()},
        {"reopens_at": 2000.0},
        {"spare": True, "small": False},
    ],
)
def test_an_outlier_serves_what_no_other_can(other: dict[str, object]) -> None:
    assert decide(ejected("a"), view("b", running=50, **other)).picked == "a"
    assert decide(ejected("a"), view("b"), excluded=frozenset({InstanceId("b")})).picked == "a"


def test_where_fewer_than_half_are_left_those_that_are_only_slow_serve() -> None:
    two_slow = decide(ejected("a", slow=True), ejected("b", slow=True, running=1), view("c", running=50))
    one_fails = decide(ejected("a"), ejected("b", slow=True, running=1), view("c", running=50))
    half_left = decide(ejected("a", slow=True), ejected("b"), view("c", running=50), view("d", running=60))

    assert (two_slow.picked, reasons(two_slow)) == ("a", {"a": None, "b": None, "c": None})
    assert (one_fails.picked, reasons(one_fails)["a"]) == ("b", "ejected: token")
    assert half_left.picked == "c"


def test_where_all_are_outliers_those_that_are_only_slow_come_first_and_else_all_serve() -> None:
    assert decide(ejected("a"), ejected("b", slow=True, running=50)).picked == "b"
    assert decide(ejected("a"), ejected("b", running=50)).picked == "a"


def test_what_needs_no_model_is_asked_of_an_outlier_too() -> None:
    assert decide(ejected("a"), view("b", usable=False), model=None).picked == "a"


def test_who_does_not_serve_what_is_asked_is_passed_over() -> None:
    path = "/api/embeddings"
    other = view("a", unserved=frozenset({path}))

    both = decide(other, view("b", running=50), path=path)
    down = decide(other, view("d", usable=False), path=path)

    assert (both.standing, both.picked) == (Standing.PICKED, "b")
    assert reasons(both)["a"] == "runtime does not serve this"
    assert decide(other, path=path).standing is Standing.UNSERVED
    assert decide(other, view("c", models=frozenset()), path=path).standing is Standing.UNSERVED
    assert down.standing is Standing.NO_INSTANCE
    assert decide(other, path="/api/chat").picked == "a"
