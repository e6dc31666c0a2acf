"""`python -m tests.benchmarks.decisions`: what one decision costs, for each strategy and size of fleet.

All candidates are free and have the model in memory, their rates are known, and all have the prompt of 64
prefix marks cached. A cell is the CPU time of one `Scheduler.decide`, as the median over repetitions with the
least and the most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from random import Random
from statistics import median

from balancer.clock import SystemClock
from balancer.core.names import canonical_name
from balancer.core.ticket import ClientId, InstanceId, Priority, Ticket, TicketId
from balancer.core.variant import Variant
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.courses import Company
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.fleet.rates import Work
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES

SIZES = ((4, 4), (64, 64), (1000, 32))
"""Instances, and how many of them have the model."""
_MODEL, _OTHER = canonical_name("m"), canonical_name("other")
_VARIANT = Variant(_MODEL)
_PREFIX = tuple((mark, mark * 128) for mark in range(1, 65))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decisions", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--decisions", type=int, default=300, help="of each repetition")
    chosen = parser.parse_args(arguments)
    print(f"{'instances':>9}  {'with model':>10}  {'strategy':<20}  us of a decision")
    for instances, holding in SIZES:
        fleet, index = fleet_of(instances, holding)
        for strategy in ("adaptive", *STRATEGIES):
            told = costs(fleet, index, strategy, chosen.repetitions, chosen.decisions)
            cell = f"{median(told):.1f} [{min(told):.1f} to {max(told):.1f}]"
            print(f"{instances:>9}  {holding:>10}  {strategy:<20}  {cell}", flush=True)
    return 0


def costs(
    fleet: Fleet, index: PrefixIndex, strategy: str, repetitions: int, decisions: int
) -> Sequence[float]:
    """Microseconds of CPU time of a decision, once for each repetition."""
    shelf = {**STRATEGIES, "adaptive": lambda _random: Adaptive(index)}
    scheduler = Scheduler(fleet, strategy=strategy, random=Random(1), shelf=shelf)
    ticket, now = asking(), time.monotonic()
    told = []
    for _ in range(repetitions):
        began = time.process_time()
        for _ in range(decisions):
            assert scheduler.decide(ticket, now).picked is not None
        told.append((time.process_time() - began) / decisions * 1e6)
    return told


def asking() -> Ticket:
    return Ticket(
        id=TicketId("r"),
        arrival=1,
        client=ClientId("c"),
        priority=Priority.NORMAL,
        variant=_VARIANT,
        needs_slot=True,
        queued_at=0.0,
        deadline=1e9,
        path="/api/chat",
        prompt_tokens=_PREFIX[-1][1],
        prefix=_PREFIX,
    )


def fleet_of(instances: int, holding: int) -> tuple[Fleet, PrefixIndex]:
    """A fleet of so many, of which so many have the model; the others have another one."""
    members = [_instance(number) for number in range(instances)]
    fleet, index = Fleet(members, clock=SystemClock()), PrefixIndex(limit_bytes=64 << 20)
    work = Work(prompt_tokens=1000, prompt_seconds=0.5, output_tokens=100, output_seconds=1.0)
    with_it = set(members[:: instances // holding][:holding])
    for each in members:
        model = _MODEL if each in with_it else _OTHER
        rows = [{"name": model, "digest": "d", "size": 10, "capabilities": ["completion"]}]
        fleet.probe_succeeded(each, version="1", incarnation=each.incarnation)
        fleet.inventory_read(each, models=rows, runners=rows, slots={}, at=0.0)
        if model == _MODEL:
            each.learned.begin(model, 0.0, streams=True, sharing=1).end(1.0, left=False, sharing=1)
            for _ in range(3):
                each.learned.book.learn(each.spec.url, model, work, Company())
            index.remember(each.id, _VARIANT, _PREFIX)
    return fleet, index


def _instance(number: int) -> Instance:
    spec = InstanceSpec(id=InstanceId(f"i{number}"), url=f"http://i{number}", slots=4)
    return Instance(spec, Health(HealthPolicy()), Breakers(BreakerPolicy()))


if __name__ == "__main__":
    sys.exit(main())
