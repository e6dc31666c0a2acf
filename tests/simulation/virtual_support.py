"""Small worlds in virtual time, made by hand: every rate and every request is known."""

from collections.abc import Iterable, Iterator
from itertools import count

from balancer.core.ticket import InstanceId, Priority
from balancer.settings.scenario import (
    Scenario,
    ScenarioDevice,
    ScenarioInstances,
    ScenarioModel,
    ScenarioNoise,
    ScenarioPopulation,
    ScenarioWorkload,
)
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.hardware import InstanceShape
from balancer.simulator.virtual.outcomes import Outcomes, Request
from balancer.simulator.virtual.work import Session, Turn

GIB = 1 << 30
NO_NOISE = ScenarioNoise(rates=0, work=0, loads=0)
MODEL = "m:8b"
STEADY = ServiceRates(prefill_tokens_per_second=1000.0, decode_tokens_per_second=100.0, parallel_slowdown=0.0)
"""Round figures: a prompt of 1000 tokens takes a second, and so does an answer of 100."""


def scenario(
    *, models: dict[str, int] | None = None, noise: ScenarioNoise = NO_NOISE, **instances: object
) -> Scenario:
    """One of which only the instances' settings, the models and the noise matter."""
    sizes = models or {MODEL: 4 * GIB}
    return Scenario(
        name="made by hand",
        queue_requests=100_000,
        queue_seconds=10_000.0,
        devices=(ScenarioDevice(memory_bytes=24 * GIB),),
        models=tuple(ScenarioModel(name=name, size_bytes=size) for name, size in sizes.items()),
        instances=ScenarioInstances.model_validate(instances),
        noise=noise,
        workload=ScenarioWorkload(populations=(ScenarioPopulation(kind="chat"),)),
    )


def shapes(
    *devices: int, rates: ServiceRates = STEADY, models: Iterable[str] = (MODEL,), memory: int = 24 * GIB
) -> tuple[InstanceShape, ...]:
    """One instance for each number, which is that of its device."""
    return tuple(
        InstanceShape(
            id=InstanceId(f"instance-{index}"),
            device=device,
            memory_bytes=memory,
            rates=dict.fromkeys(models, rates),
        )
        for index, device in enumerate(devices)
    )


def single_turns(
    asked: Iterable[tuple[float, int, int]], *, model: str = MODEL, client: str = "c"
) -> Iterator[Session]:
    """Sessions of one turn each: when it comes, tokens of its prompt and of its answer."""
    marks = count(1)
    for at, prompt, answer in asked:
        segment, said = next(marks), next(marks)
        yield Session(at, client, model, Priority.NORMAL, said, (Turn(((segment, prompt),), answer),))


def rows(outcomes: Outcomes) -> list[Request]:
    """All requests in the order of their arrival."""
    return sorted(map(outcomes.row, range(len(outcomes))), key=lambda each: each.arrived_at)
