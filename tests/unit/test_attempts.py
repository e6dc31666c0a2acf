"""What is tried again: all that one instance took with it as it broke down, whatever the retry budget."""

import asyncio

import pytest

from balancer.admission.retry_budget import FLOOR
from tests.unit.hedging_support import Rig
from tests.unit.unit_support import LoopClock, instance, run_virtually

REQUESTS = 4 * FLOOR


@pytest.mark.parametrize("how", [0, 500], ids=["no HTTP", "runner gone"])
def test_all_that_were_there_as_it_broke_down_are_tried_again(how: int) -> None:
    async def main(clock: LoopClock) -> None:
        rig = Rig(
            clock,
            lambda name, _: (1.0, how if name == "a" else 200),
            *(instance(name, slots=REQUESTS) for name in "ab"),
        )

        records = await asyncio.gather(*(rig.ask() for _ in range(REQUESTS)))

        assert [(each.status, each.instance) for each in records] == [(200, "b")] * REQUESTS
        assert sorted(each.attempts for each in records) == [1] * (REQUESTS // 2) + [2] * (REQUESTS // 2)
        assert rig.counted("retries_refused") == 0
        assert rig.slots_out() == [0, 0, 0, 0]

    run_virtually(main)
