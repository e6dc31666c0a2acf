"""The flow of work in virtual time against the simulated server's steps, token by token, on one clock."""

import asyncio
from random import Random
from statistics import median

import pytest

from balancer.simulator.configuration import ServerConfig
from balancer.simulator.models import Model, ModelSpec, weights_of
from balancer.simulator.names import parse_name
from balancer.simulator.observations import Observations
from balancer.simulator.runner_options import RunnerOptions
from balancer.simulator.scheduler import Demand, Scheduler
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.loop import VirtualClock, VirtualLoop
from balancer.simulator.virtual.run import serve
from tests.simulation.virtual_support import GIB, MODEL, rows, scenario, shapes, single_turns

RATES = ServiceRates(prefill_tokens_per_second=1500.0, decode_tokens_per_second=60.0, parallel_slowdown=0.2)
Asked = list[tuple[float, int, int]]


def drawn(seed: int, requests: int, per_second: float) -> Asked:
    chance, at, asked = Random(seed), 0.0, []
    for _ in range(requests):
        at += chance.expovariate(per_second)
        asked.append((at, int(chance.lognormvariate(6.5, 1.0)) + 1, int(chance.expovariate(1 / 80)) + 1))
    return asked


class Stepped:
    """What the simulated server does for each request, without its HTTP."""

    def __init__(self, asked: Asked, slots: int) -> None:
        self._asked = asked
        self._slots = slots
        self.ttft: list[float] = []
        self.total: list[float] = []

    async def run(self) -> None:
        clock = VirtualClock(asyncio.get_running_loop())
        config = ServerConfig(slots=self._slots, context_length=8192, prefix_cache_tokens=1)
        scheduler = Scheduler(
            config, clock, Observations(), rates=lambda _: RATES, load_fails=lambda _: False
        )
        running = asyncio.create_task(scheduler.run())
        weights = weights_of(ModelSpec(name=MODEL, size_bytes=4 * GIB))
        model = Model(name=parse_name(MODEL), weights=weights, modified_at=VirtualClock.EPOCH)
        demand = Demand(model=model, options=RunnerOptions(num_ctx=8192), keep_alive=None)
        scheduler.release((await scheduler.acquire(demand)).runner)
        began_at = clock.now()
        async with asyncio.TaskGroup() as group:
            for number, (at, prompt, answer) in enumerate(self._asked):
                await clock.sleep_until(began_at + at)
                tokens = range(number * 100_000, number * 100_000 + prompt)
                group.create_task(self._one(scheduler, demand, clock, tuple(tokens), answer))
        running.cancel()

    async def _one(
        self, scheduler: Scheduler, demand: Demand, clock: VirtualClock, prompt: tuple[int, ...], answer: int
    ) -> None:
        arrived_at = clock.now()
        grant = await scheduler.acquire(demand)
        async with grant.runner.slot() as lease:
            await lease.prefill(prompt)
            await lease.decode(-1)
            self.ttft.append(clock.now() - arrived_at)
            for _ in range(answer - 1):
                await lease.decode(-1)
        scheduler.release(grant.runner)
        self.total.append(clock.now() - arrived_at)


@pytest.mark.parametrize(("slots", "per_second"), [(1, 0.4), (2, 0.5), (4, 0.7)])
def test_flowing_work_takes_as_long_as_work_in_steps(slots: int, per_second: float) -> None:
    asked = drawn(slots, 400, per_second)
    stepped = Stepped(asked, slots)
    VirtualLoop().run(stepped.run())

    flowed = rows(
        serve(
            scenario(slots=slots, prefix_cache_tokens=0),
            shapes(0, rates=RATES),
            single_turns(asked),
            strategy="round_robin@immediate",
            seed=1,
        ).outcomes
    )

    assert median(each.ttft_seconds for each in flowed) == pytest.approx(median(stepped.ttft), rel=0.03)
    assert median(each.total_seconds for each in flowed) == pytest.approx(median(stepped.total), rel=0.03)
    assert max(each.total_seconds for each in flowed) == pytest.approx(max(stepped.total), rel=0.05)
