"""When a second instance is asked, to the moment, and what is left of it: in virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from balancer.core.ticket import Verdict
from balancer.errors import BadResponse
from balancer.hedging import HedgePolicy
from tests.unit.hedging_support import Answering, Rig
from tests.unit.unit_support import LoopClock, instance, run_virtually

LEARNED = 20


def after_learning(first: tuple[float, int], *others: tuple[float, int]) -> Callable[[Rig], Answering]:
    """One second for each until enough was seen; then whoever is asked first does the first of these, and so
    on; a second for each again."""

    def of(rig: Rig) -> Answering:
        def answer(_name: str, _number: int) -> tuple[float, int]:
            later = len(rig.client.asked) - LEARNED
            scripts = (first, *others)
            return scripts[later] if 0 <= later < len(scripts) else (1.0, 200)

        return answer

    return of


async def learned(
    clock: LoopClock, first: tuple[float, int], *others: tuple[float, int], count: int = 2, **policy: float
) -> Rig:
    """Instances `a`, `b` … that have answered often enough, with what comes next."""
    rig = Rig(clock, lambda *_: (1.0, 200), *(instance(name, slots=4) for name in "abcd"[:count]), **policy)
    rig.client.answering = after_learning(first, *others)(rig)
    await rig.learn(LEARNED)
    assert rig.hedges() == []
    return rig


def test_a_second_is_asked_after_twice_the_median_and_its_answer_taken() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200), (1.0, 200))
        began = clock.monotonic()

        record = await rig.ask()

        assert clock.monotonic() - began == pytest.approx(3.0)
        first, second = rig.client.asked[-2:]
        assert first != second
        assert (record.instance, record.attempts, record.hedge) == (second, 2, "won")
        assert record.leased_at == pytest.approx(began + 2)
        assert record.answered_at == pytest.approx(began + 3)
        assert rig.slots_out() == [0, 0, 0, 0]
        assert rig.client.open == []
        assert rig.instance(first).cooling == 1
        assert rig.instance(second).cooling == 0
        (told,) = rig.hedges()
        assert (told["first"], told["second"], told["outcome"]) == (first, second, "won")
        assert told["delay_seconds"] == 2.0

    run_virtually(main)


@pytest.mark.parametrize(("seconds", "hedges"), [(1.9, 0), (2.1, 1)])
def test_nobody_is_asked_before(seconds: float, hedges: int) -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (seconds, 200))

        record = await rig.ask()

        assert (len(rig.client.asked), len(rig.hedges())) == (LEARNED + 1 + hedges, hedges)
        assert (record.hedge, record.attempts) == (("lost", 2) if hedges else ("", 1))
        assert record.instance == rig.client.asked[LEARNED]
        assert rig.slots_out() == [0, 0, 0, 0]

    run_virtually(main)


def test_the_least_time_is_the_operators() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200), min_delay_seconds=7.0)
        began = clock.monotonic()

        await rig.ask()

        assert clock.monotonic() - began == pytest.approx(8.0)

    run_virtually(main)


def test_what_lost_counts_with_the_time_that_it_had() -> None:
    """Or the time given would be learned from the quick alone."""

    async def main(clock: LoopClock) -> None:
        slow, quick = (100.0, 200), (1.0, 200)
        rig = await learned(clock, slow, quick, slow, quick, slow, max_share=0.2)
        await rig.ask()
        await rig.ask()
        began = clock.monotonic()

        await rig.ask()

        assert clock.monotonic() - began == pytest.approx(4.0)  # the 3 s of the loser, and a second

    run_virtually(main)


def test_of_two_answers_at_once_the_first_is_taken_and_both_leases_go_back() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (3.0, 200), (1.0, 200))

        record = await rig.ask()

        assert (record.instance, record.hedge) == (rig.client.asked[LEARNED], "lost")
        assert rig.slots_out() == [0, 0, 0, 0]

    run_virtually(main)


def test_no_more_than_the_share_and_what_is_not_used_is_kept_up_to_ten() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200), max_share=0.07)  # 20 requests have earned 1.4
        slow: set[int] = set()
        rig.client.answering = lambda *_: (100.0 if len(rig.client.asked) in slow else 1.0, 200)
        hedges = []
        for _ in range(3):
            slow.add(len(rig.client.asked))
            await rig.ask()
            hedges.append(len(rig.hedges()))
        assert hedges == [1, 1, 1]

        await rig.learn(500)  # earns 35
        for _ in range(16):
            slow.add(len(rig.client.asked))
            await rig.ask()
        assert len(rig.hedges()) == 1 + 10 + 1  # these have earned one more

    run_virtually(main)


def test_a_retry_earns_nothing() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (1.0, 0), (1.0, 200), (100.0, 200), count=3, max_share=0.045)
        await rig.ask()  # fails and is tried again; 22 requests earn 0.99

        await rig.ask()

        assert rig.hedges() == []

    run_virtually(main)


def test_what_is_switched_off_is_off_for_requests_that_have_come_before() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200))
        rig.attempts.hedging.policy = HedgePolicy(enabled=False)

        await rig.ask()

        assert rig.hedges() == []

    run_virtually(main)


def test_a_retry_is_not_hedged() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (1.0, 0), (100.0, 200), count=3)

        record = await rig.ask()

        assert (record.attempts, record.hedge, len(rig.client.asked)) == (2, "", LEARNED + 2)
        assert rig.counted("retries") == 1

    run_virtually(main)


@pytest.mark.parametrize(
    "fact", [{"hedgeable": False}, {"operation": None}], ids=["may not be", "nothing is known of it"]
)
def test_others_are_not_hedged(fact: dict[str, Any]) -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200))

        await rig.ask(**fact)

        assert len(rig.client.asked) == LEARNED + 1

    run_virtually(main)


@pytest.mark.parametrize("last", ["first", "second"])
def test_where_both_fail_the_next_try_goes_to_neither(last: str) -> None:
    async def main(clock: LoopClock) -> None:
        failing = (5.0, 0) if last == "first" else (2.5, 0)
        rig = await learned(clock, failing, (1.0, 500), count=3)

        record = await rig.ask()

        assert len({*rig.client.asked[LEARNED:]}) == 3
        assert (record.instance, record.attempts, record.status) == (rig.client.asked[-1], 3, 200)
        assert (record.hedge, rig.counted("retries"), rig.counted("errors")) == ("failed", 1, 2)
        assert rig.slots_out() == [0] * 5

    run_virtually(main)


def test_the_loser_says_nothing_of_its_instance() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200))
        before = rig.house.fleet.instances()
        released: list[tuple[str, Verdict, str, bool]] = []
        release = rig.house.dispatcher.release

        def told(lease: Any, outcome: Any) -> None:
            released.append((lease.instance, outcome.verdict, outcome.kind, outcome.in_prefill))
            release(lease, outcome)

        rig.house.dispatcher.release = told  # type: ignore[method-assign]  # to see it called
        await rig.ask()

        first, second = rig.client.asked[-2:]
        assert (first, Verdict.NEUTRAL, "cancelled", True) in released
        assert (second, Verdict.SUCCESS, "ok", False) in released
        assert len(released) == 2
        assert all(each.breakers.untroubled for each in before)

    run_virtually(main)


@pytest.mark.parametrize("after", [0.5, 2.5])
def test_a_client_that_leaves_cancels_all(after: float) -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200), (100.0, 200))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.ask(), after)

        assert rig.client.open == []
        assert rig.slots_out() == [0, 0, 0, 0]
        assert [each["outcome"] for each in rig.hedges()] == (["cancelled"] if after > 2 else [])

    run_virtually(main)


def test_a_client_that_leaves_as_the_answers_come_leaves_nothing_behind() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (3.0, 200), (1.0, 200))
        asking = asyncio.create_task(rig.ask())
        asyncio.get_running_loop().call_later(3.0, asking.cancel)

        with pytest.raises(asyncio.CancelledError):
            await asking

        assert rig.slots_out() == [0, 0, 0, 0]

    run_virtually(main)


def test_a_failure_of_the_only_one_that_is_left_is_told() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (5.0, 0), (1.0, 0))

        with pytest.raises(BadResponse):
            await rig.ask()

        assert rig.slots_out() == [0, 0, 0, 0]
        assert rig.counted("retries") == 0

    run_virtually(main)


def test_a_defect_is_told_as_itself() -> None:
    async def main(clock: LoopClock) -> None:
        rig = await learned(clock, (100.0, 200))

        def defect(_name: str, _number: int) -> tuple[float, int]:
            if len(rig.client.asked) > LEARNED:
                raise ZeroDivisionError
            return 100.0, 200

        rig.client.answering = defect

        with pytest.raises(ZeroDivisionError):
            await rig.ask()

        assert rig.client.open == []
        assert rig.slots_out() == [0, 0, 0, 0]

    run_virtually(main)
