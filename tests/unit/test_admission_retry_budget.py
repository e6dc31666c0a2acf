"""The retry budget: a share of what came lately, a floor, and nothing of what is long past."""

import pytest

from balancer.admission.retry_budget import FLOOR, SHARE, WINDOW_SECONDS, RetryBudget
from balancer.core.ticket import InstanceId

A, B = InstanceId("a"), InstanceId("b")


def allowed(it: RetryBudget, asked: int, *, at: float) -> int:
    return sum(it.take(at) for _ in range(asked))


def asked(count: int, *, at: float) -> RetryBudget:
    it = RetryBudget()
    for _ in range(count):
        it.requested(at)
    return it


@pytest.mark.parametrize(
    ("requests", "tries"), [(0, FLOOR), (1, FLOOR), (15, FLOOR), (16, 4), (20, 4), (21, 5), (1000, 200)]
)
def test_a_share_of_the_requests_may_be_tried_again_and_always_a_few(requests: int, tries: int) -> None:
    assert allowed(asked(requests, at=5.0), 500, at=5.0) == tries


def test_what_was_refused_costs_nothing() -> None:
    it = asked(15, at=0.0)
    assert allowed(it, 100, at=0.0) == FLOOR

    for _ in range(5):
        it.requested(1.0)

    assert allowed(it, 100, at=1.0) == SHARE * 20 - FLOOR == 1


def test_tries_come_back_when_their_time_is_over() -> None:
    it = RetryBudget()
    assert [allowed(it, 1, at=at) for at in (0.0, 1.0, 2.0, 3.0)] == [1, 1, 1, 0]

    assert allowed(it, 5, at=WINDOW_SECONDS - 0.001) == 0
    assert allowed(it, 5, at=WINDOW_SECONDS) == 1
    assert allowed(it, 5, at=WINDOW_SECONDS + 1.5) == 1


def test_requests_count_only_while_they_are_recent() -> None:
    it = asked(1000, at=0.0)

    assert allowed(it, 500, at=WINDOW_SECONDS) == FLOOR


def test_a_fleet_in_trouble_is_asked_for_at_most_a_share_more_than_its_clients_ask() -> None:
    it = RetryBudget()
    tries = 0

    for number in range(5000):
        it.requested(number / 100)
        tries += it.take(number / 100)

    assert tries <= SHARE * 5000 + FLOOR
    assert tries >= SHARE * 5000 * 0.9


def test_what_broke_down_together_counts_once() -> None:
    it = RetryBudget()

    assert all(it.take(5.0, broken=A, leased_at=4.0 + number / 200) for number in range(201))

    assert allowed(it, 10, at=5.0) == FLOOR - 1


def test_what_was_leased_after_the_breakdown_counts_anew() -> None:
    it = RetryBudget()

    told = [it.take(at, broken=A, leased_at=at - 0.1) for at in (1.0, 2.0, 3.0, 4.0)]

    assert told == [True, True, True, False]


def test_each_instance_breaks_down_for_itself() -> None:
    it = RetryBudget()

    for _ in range(10):
        assert it.take(5.0, broken=A, leased_at=4.0)
        assert it.take(5.0, broken=B, leased_at=4.0)

    assert allowed(it, 10, at=5.0) == FLOOR - 2


def test_a_breakdown_that_was_refused_frees_nothing() -> None:
    it = RetryBudget()
    assert allowed(it, FLOOR, at=1.0) == FLOOR

    assert not any(it.take(5.0, broken=A, leased_at=4.0) for _ in range(10))
    assert it.take(1.0 + WINDOW_SECONDS, broken=A, leased_at=4.0)
    assert allowed(it, 10, at=1.0 + WINDOW_SECONDS) == FLOOR - 1


def test_what_a_counted_breakdown_took_with_it_is_free_though_the_budget_is_spent() -> None:
    it = RetryBudget()
    assert it.take(1.0, broken=A, leased_at=0.5)
    assert allowed(it, 10, at=1.0) == FLOOR - 1

    assert (it.take(2.0, broken=A, leased_at=1.0), it.take(2.0, broken=A, leased_at=1.1)) == (True, False)
    assert not it.take(2.0)
