"""Whatever instances do, and whenever clients leave: every lease comes back, hedges stay within their share,
and no request is asked of more than two instances at once."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import FleetError, InstanceError
from tests.unit.hedging_support import Rig
from tests.unit.unit_support import LoopClock, instance, run_virtually

NAMES = "abc"
SECONDS = st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0, 3.0, 30.0])
ANSWERS = st.tuples(SECONDS, st.sampled_from([200, 200, 200, 200, 400, 500, 0]))
REQUESTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0]), st.none() | st.sampled_from([0.5, 2.0, 2.5, 3.0])),
    min_size=1,
    max_size=25,
)
"""How long after the one before each comes, and how long its client waits."""


@given(
    answers=st.lists(ANSWERS, min_size=1, max_size=40),
    requests=REQUESTS,
    share=st.sampled_from([0.0, 0.02, 0.1, 0.2]),
    slots=st.integers(1, 3),
)
def test_every_lease_comes_back_and_hedges_stay_within_their_share(
    answers: list[tuple[float, int]],
    requests: list[tuple[float, float | None]],
    share: float,
    slots: int,
) -> None:
    async def main(clock: LoopClock) -> None:
        learned = 20
        rig = Rig(
            clock, lambda *_: (1.0, 200), *(instance(each, slots=slots) for each in NAMES), max_share=share
        )
        await rig.learn(learned)
        asked = iter(answers)
        rig.client.answering = lambda *_: next(asked, (1.0, 200))

        async with asyncio.TaskGroup() as group:
            for pause, patience in requests:
                await asyncio.sleep(pause)
                group.create_task(_asked(rig, patience))
                leases = rig.house.dispatcher.leases
                of_ticket = [lease.ticket.id for lease in leases]
                assert max(map(of_ticket.count, of_ticket), default=0) <= 2
                assert len({(lease.ticket.id, lease.instance) for lease in leases}) == len(leases)

        await asyncio.sleep(10)  # slots have cooled
        assert rig.slots_out() == [0] * (2 + len(NAMES))
        assert [each.cooling for each in rig.house.fleet.instances()] == [0] * len(NAMES)
        assert rig.client.open == []
        assert len(rig.house.queue) == 0
        assert len(rig.hedges()) == rig.counted("hedges") <= share * (learned + len(requests)) + 1e-9
        for told in rig.hedges():
            assert told["first"] != told["second"]
            assert told["delay_seconds"] >= 2.0
        assert len(asyncio.all_tasks()) <= 2

    run_virtually(main)


async def _asked(rig: Rig, patience: float | None) -> None:
    try:
        async with asyncio.timeout(patience):
            await rig.ask()
    except (TimeoutError, InstanceError, FleetError):
        pass
