"""How soon a failed instance is tried again, and when it is given up."""

import pytest
from unit_support import FakeClock

from balancer.control.back_off import BackOff, BackOffPolicy

EXACT = BackOffPolicy(jitter_seconds=0.0)


def test_waits_double_and_the_fifth_failure_in_ten_minutes_is_the_last() -> None:
    back_off = BackOff(EXACT, FakeClock())

    assert [back_off.failed() for _ in range(5)] == [1, 2, 4, 8, None]


def test_failures_that_are_older_than_the_window_count_no_more() -> None:
    clock = FakeClock()
    back_off = BackOff(EXACT, clock)
    for _ in range(4):
        back_off.failed()
    clock.advance(600)

    assert [back_off.failed() for _ in range(5)] == [1, 2, 4, 8, None]


def test_one_failure_every_three_minutes_is_never_given_up() -> None:
    clock = FakeClock()
    back_off = BackOff(EXACT, clock)
    waits = []
    for _ in range(20):
        waits.append(back_off.failed())
        clock.advance(180)

    assert waits[3:] == [8] * 17


def test_no_wait_is_longer_than_the_longest() -> None:
    back_off = BackOff(BackOffPolicy(jitter_seconds=0.0, longest_seconds=5.0, failures=10), FakeClock())

    assert [back_off.failed() for _ in range(6)] == [1, 2, 4, 5, 5, 5]


def test_chance_makes_a_wait_longer_by_at_most_the_jitter() -> None:
    waits = {BackOff(BackOffPolicy(jitter_seconds=0.5), FakeClock()).failed() for _ in range(50)}

    assert len(waits) > 1
    assert all(wait is not None and 1.0 <= wait <= 1.5 for wait in waits)


@pytest.mark.parametrize("failed", [1, 4, 5])
def test_an_operator_lets_it_begin_anew(failed: int) -> None:
    back_off = BackOff(EXACT, FakeClock())
    for _ in range(failed):
        back_off.failed()
    back_off.forget()

    assert back_off.failed() == 1
