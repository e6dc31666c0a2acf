"""The formulas of queueing theory against published figures, and where they must agree with each other."""

from math import inf
from random import Random

import pytest

from balancer.simulator.virtual.queueing import (
    erlang_c,
    mg1_wait_seconds,
    mgk_wait_seconds,
    mmk_wait_seconds,
)


@pytest.mark.parametrize(
    ("servers", "offered", "waits"),
    [
        (3, 2.0, 4 / 9),  # any textbook: 2 of 3 servers busy on average
        (2, 1.0, 1 / 3),
        (1, 0.7, 0.7),
        (55, 48.0, 0.2387),  # the staffing example of many texts: 360 calls of 4 min in half an hour
        (14, 10.0, 0.174),  # another one: 100 calls of 3 min in half an hour
        (12, 10.0, 0.4494),
        (5, 0.0, 0.0),
    ],
)
def test_erlang_c_gives_the_published_probabilities(servers: int, offered: float, waits: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(waits, abs=0.0005)


@pytest.mark.parametrize(
    ("per_second", "service_seconds", "servers", "wait_seconds"),
    [(0.2, 240.0, 55, 8.184), (1 / 18, 180.0, 14, 7.8), (0.8, 1.0, 1, 4.0), (1.0, 1.0, 2, 1 / 3)],
)
def test_waits_of_mmk_are_the_published_ones(
    per_second: float, service_seconds: float, servers: int, wait_seconds: float
) -> None:
    assert mmk_wait_seconds(per_second, service_seconds, servers) == pytest.approx(wait_seconds, abs=0.05)


@pytest.mark.parametrize("servers", [1, 4, 500])
@pytest.mark.parametrize("over", [1.0, 1.5])
def test_who_is_asked_for_more_than_it_can_do_lets_wait_for_ever(servers: int, over: float) -> None:
    assert erlang_c(servers, servers * over) == 1.0
    assert mmk_wait_seconds(over, servers, servers) == inf
    assert mgk_wait_seconds(over, servers, servers, service_scv=0.0, arrival_scv=0.0) == inf


def test_constant_service_halves_the_wait_of_one_server() -> None:
    assert mg1_wait_seconds(0.8, 1.0, 0.0) == pytest.approx(2.0)
    assert mg1_wait_seconds(0.8, 1.0, 1.0) == pytest.approx(mmk_wait_seconds(0.8, 1.0, 1))
    assert mg1_wait_seconds(0.5, 1.0, 4.0) == pytest.approx(2.5)


def test_the_approximation_is_exact_where_it_says() -> None:
    assert mgk_wait_seconds(3.0, 1.0, 4, service_scv=1.0) == pytest.approx(mmk_wait_seconds(3.0, 1.0, 4))
    assert mgk_wait_seconds(0.8, 1.0, 1, service_scv=2.5) == pytest.approx(mg1_wait_seconds(0.8, 1.0, 2.5))
    assert mgk_wait_seconds(3.0, 1.0, 4, service_scv=0.0, arrival_scv=3.0) == pytest.approx(
        1.5 * mmk_wait_seconds(3.0, 1.0, 4)
    )


@pytest.mark.parametrize(("servers", "offered"), [(0, 0.5), (-1, 0.5), (2, -0.1)])
def test_no_servers_and_negative_loads_are_refused(servers: int, offered: float) -> None:
    with pytest.raises(ValueError, match="no waiting with"):
        erlang_c(servers, offered)


@pytest.mark.parametrize(
    ("servers", "draw", "scv"),
    [
        (4, lambda random: random.expovariate(1.0), 1.0),
        (4, lambda _: 1.0, 0.0),
        (
            3,
            lambda random: random.expovariate(1.8) if random.random() < 0.9 else random.expovariate(0.2),
            4.556,
        ),
    ],
)
def test_a_queue_served_by_hand_waits_as_long(servers: int, draw: object, scv: float) -> None:
    random, load = Random(7), 0.8
    free_at, now, waited, count = [0.0] * servers, 0.0, 0.0, 200_000
    for _ in range(count):
        now += random.expovariate(load * servers)
        first = min(range(servers), key=free_at.__getitem__)
        begins = max(now, free_at[first])
        waited += begins - now
        free_at[first] = begins + draw(random)  # type: ignore[operator]  # a draw is a float

    expected = mgk_wait_seconds(load * servers, 1.0, servers, service_scv=scv)
    assert waited / count == pytest.approx(expected, rel=0.1)
