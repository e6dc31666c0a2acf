"""Slots learned from waits inside a runner, and strangers that use it."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from balancer.fleet.learned_slots import LearnedSlots, cut_seconds, has_waited


@dataclass
class Bench:
    """One runner of so many slots, and requests that are sent as the balancer would."""

    told: int | None = 4
    real: int = 4
    now: float = 1000.0
    generation: int = 1
    learned: LearnedSlots = field(default_factory=LearnedSlots)

    @property
    def slots(self) -> int:
        return self.learned.slots(self.told)

    def answer(self, batch: int, *, waited: bool | None = None, possible: int | None = None) -> None:
        """A request ends that had so many of the balancer's with it, itself included."""
        self.now += 1.0
        self.learned.learn(
            waited=batch > self.real if waited is None else waited,
            proof=1 if waited else min(batch, self.real),
            possible=possible or batch,
            told=self.told,
            generation=self.generation,
            now=self.now,
        )

    def saturate(self, times: int = 30) -> None:
        """All slots that are lent are always in use."""
        for _ in range(times):
            self.answer(self.slots)


def test_what_was_told_is_used_where_nothing_contradicts() -> None:
    bench = Bench()
    bench.saturate()

    assert (bench.slots, bench.learned.limit, bench.learned.shared) == (4, None, False)


@pytest.mark.parametrize("real", [1, 2, 3])
def test_a_runner_with_fewer_slots_than_told_gets_as_many_as_it_has(real: int) -> None:
    bench = Bench(real=real)
    bench.saturate(12)

    assert (bench.slots, bench.learned.limit, bench.learned.shared) == (real, real, False)


def test_three_waits_that_agree_are_needed() -> None:
    bench = Bench(real=1)
    told = []
    for _ in range(3):
        bench.answer(4)
        told.append(bench.slots)

    assert told == [4, 4, 3]


def test_one_that_goes_straight_proves_that_there_are_so_many() -> None:
    bench = Bench()
    bench.answer(4, waited=True)
    bench.answer(4, waited=True)
    bench.answer(4, waited=False)
    bench.answer(4, waited=True)

    assert bench.slots == 4


def test_waits_before_a_proof_count_no_more() -> None:
    bench = Bench(told=6)
    bench.answer(2, waited=True)
    bench.answer(2, waited=True)
    bench.answer(4)
    bench.answer(6, waited=True)

    assert bench.learned.limit is None


def test_waits_among_more_than_are_lent_teach_nothing() -> None:
    bench = Bench(told=None)
    for _ in range(9):
        bench.answer(1, waited=True, possible=6)

    assert bench.slots == 1


def test_one_more_is_tried_only_where_all_were_in_use() -> None:
    bench = Bench(told=None)
    for _ in range(9):
        bench.answer(1)

    assert bench.slots == 2


def test_slots_that_nobody_told_of_are_found_one_by_one() -> None:
    bench = Bench(told=None, real=3)
    assert bench.slots == 1

    bench.saturate(6)
    assert bench.slots == 3

    bench.saturate(6)
    assert bench.slots in {3, 4}
    assert not bench.learned.shared
    bench.saturate(6)
    assert bench.slots == 3


def test_a_number_that_failed_is_tried_again_later_and_ever_more_seldom() -> None:
    bench = Bench(told=None, real=1)
    tried_at = []
    before = 1
    while bench.now < 5000:
        bench.answer(bench.slots)
        if bench.slots > before:
            tried_at.append(bench.now)
        before = bench.slots

    assert [(later - sooner) // 60 for sooner, later in pairwise(tried_at)] == [2, 4, 8, 16, 32]


def test_a_new_runner_may_have_more() -> None:
    bench = Bench(real=1)
    bench.saturate(12)
    bench.generation, bench.real = 2, 4
    bench.now += 60
    bench.saturate(30)

    assert (bench.slots, bench.learned.shared) == (4, False)


def test_a_new_runner_is_tried_a_minute_later_however_often_the_old_one_failed() -> None:
    bench = Bench(told=None, real=1)
    while bench.now < 3000 or bench.slots > 1:
        bench.answer(bench.slots)
    bench.generation, bench.real = 2, 4
    bench.answer(1)
    bench.now += 60
    bench.saturate(6)

    assert bench.slots == 3


def test_a_runner_of_another_life_has_proven_nothing_of_this_one() -> None:
    bench = Bench()
    bench.answer(4)
    bench.generation, bench.real = 2, 1
    bench.saturate(12)

    assert (bench.slots, bench.learned.shared) == (1, False)


def test_a_wait_while_nobody_else_of_ours_is_there_is_a_strangers() -> None:
    bench = Bench(real=4)
    for _ in range(3):
        bench.answer(1, waited=True)

    assert (bench.slots, bench.learned.limit, bench.learned.shared) == (3, None, True)


def test_a_wait_among_fewer_than_were_served_at_once_is_a_strangers() -> None:
    bench = Bench()
    bench.answer(4)
    for _ in range(3):
        bench.answer(3, waited=True)

    assert (bench.slots, bench.learned.shared) == (3, True)


def test_a_wait_that_a_request_given_up_may_explain_is_nobodys() -> None:
    bench = Bench()
    for _ in range(9):
        bench.answer(1, waited=True, possible=2)

    assert not bench.learned.shared


def test_two_waits_are_no_sign_of_strangers_nor_are_three_far_apart() -> None:
    bench = Bench()
    for _ in range(9):
        bench.answer(1, waited=True)
        bench.now += 30

    assert not bench.learned.shared


def test_each_further_three_waits_take_another_slot() -> None:
    bench = Bench()
    told = []
    for _ in range(6):
        bench.answer(1, waited=True)
        told.append(bench.slots)

    assert told == [4, 4, 3, 3, 3, 2]


def test_strangers_leave_one_slot_at_least() -> None:
    bench = Bench(told=2)
    for _ in range(30):
        bench.answer(1, waited=True)

    assert bench.slots == 1


def test_strangers_are_forgotten_a_minute_after_the_last_sign_of_them() -> None:
    bench = Bench()
    for _ in range(3):
        bench.answer(1, waited=True)
    bench.now += 30
    bench.answer(1, waited=True)
    last = bench.now

    assert not bench.learned.forget_strangers(last + 59)
    assert bench.learned.shared
    assert bench.learned.forget_strangers(last + 60)
    assert (bench.slots, bench.learned.shared) == (4, False)
    assert not bench.learned.forget_strangers(last + 61)


@pytest.mark.parametrize(
    ("left_over", "work", "tokens", "waited"),
    [(0.05, 0.0, 10, False), (0.2, 0.0, 10, True), (0.5, 10.0, 10, False), (2.0, 10.0, 10, True)],
)
def test_a_wait_is_more_than_what_surrounds_any_work(
    left_over: float, work: float, tokens: int, waited: bool
) -> None:
    assert has_waited(left_over, work_seconds=work, asked_tokens=tokens) is waited


def test_what_may_be_the_cutting_of_a_long_chat_is_no_wait() -> None:
    assert cut_seconds(60_000) == pytest.approx(24)
    assert not has_waited(20.0, work_seconds=1.0, asked_tokens=60_000)
    assert has_waited(30.0, work_seconds=1.0, asked_tokens=60_000)
