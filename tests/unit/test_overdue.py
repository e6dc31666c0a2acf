"""Many waits of one length: each is told of once, in time, and none that has ended."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.overdue import Overdue
from tests.unit.unit_support import LoopClock, VirtualLoop, run_virtually

SECONDS = 10.0
ACTS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "pass"]), st.integers(0, 5), st.integers(0, 15)), max_size=40
)


def timers() -> int:
    """How many the loop has."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return sum(1 for each in loop._scheduled if not each.cancelled())  # type: ignore[attr-defined]


@given(ACTS)
def test_each_wait_is_told_of_once_when_its_time_is_up_and_not_after_its_end(
    acts: list[tuple[str, int, int]],
) -> None:
    async def main(clock: LoopClock) -> None:
        told: list[tuple[int, float]] = []
        expected: list[tuple[int, float]] = []
        due: dict[int, float] = {}
        it = Overdue[int](SECONDS, lambda key: told.append((key, clock.monotonic())))
        for act, key, seconds in acts:
            if act == "begin":
                it.begin(key)
                due.pop(key, None)
                due[key] = clock.monotonic() + SECONDS
            elif act == "end":
                assert it.end(key) is (due.pop(key, None) is not None)
            else:
                until = clock.monotonic() + seconds
                expected += [each for each in due.items() if each[1] <= until]
                due = {each: at for each, at in due.items() if at > until}
                await asyncio.sleep(seconds)
                await asyncio.sleep(1e-6)
            assert [each for each in range(6) if it.waits(each)] == sorted(due)
        expected += due.items()
        await asyncio.sleep(2 * SECONDS)

        assert [key for key, _ in expected] == [key for key, _ in told]
        assert [at for _, at in expected] == pytest.approx([at for _, at in told], abs=1e-5)

    run_virtually(main)


def test_one_timer_serves_all_and_none_is_left_when_all_have_ended() -> None:
    async def main(_clock: LoopClock) -> None:
        before = timers()
        it = Overdue[int](SECONDS, lambda _key: None)
        for key in range(1000):
            it.begin(key)

        assert timers() == before + 1
        for key in range(1000):
            it.end(key)
        await asyncio.sleep(SECONDS + 1)
        assert timers() == before
        assert not it._since

    run_virtually(main)


def test_a_wait_that_begins_again_has_all_its_time() -> None:
    async def main(clock: LoopClock) -> None:
        told: list[float] = []
        began = clock.monotonic()
        it = Overdue[str](SECONDS, lambda _key: told.append(clock.monotonic() - began))
        it.begin("a")
        await asyncio.sleep(6)
        it.begin("a")
        await asyncio.sleep(30)

        assert told == pytest.approx([6 + SECONDS])

    run_virtually(main)


def began_in_telling(it: list[Overdue[int]]) -> Callable[[int], None]:
    return lambda key: it[0].begin(key + 1) if key < 3 else None


def test_a_wait_may_begin_another_when_it_is_told_of() -> None:
    async def main(_clock: LoopClock) -> None:
        before = timers()
        it: list[Overdue[int]] = []
        it.append(Overdue(SECONDS, began_in_telling(it)))
        it[0].begin(0)
        await asyncio.sleep(1)
        it[0].begin(10)
        await asyncio.sleep(SECONDS)

        assert timers() == before + 1
        await asyncio.sleep(10 * SECONDS)
        assert timers() == before

    run_virtually(main)


def test_an_error_in_telling_of_one_keeps_no_other_waiting() -> None:
    async def main(_clock: LoopClock) -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        told: list[str] = []

        def tell(key: str) -> None:
            told.append(key)
            if key == "a":
                raise ValueError(key)

        it = Overdue[str](SECONDS, tell)
        for key in "abc":
            it.begin(key)
        await asyncio.sleep(SECONDS + 1)

        assert (told, len(faults)) == (["a", "b", "c"], 1)

    run_virtually(main)
