"""How much a workload asks of a fleet: what a load of 1 is, and how often clients come.

The work of a request is told in seconds of a device that serves its model with every slot busy: its
uncached prompt at the rate of prompts, and its answer at the rate of a full batch divided by the slots. Of
a prompt, what its session said before is cached; what it shares with other sessions is not. A device can do
as many requests per second as keep it busy all the time, if it gets an even part of everything and holds
every model; a fleet can do what its devices can together. The load is the mean rate of requests over that.
Noise, loads, cancelled requests and foreign ones are left out.
"""

import math
from collections.abc import Sequence

import msgspec

from balancer.settings.scenario import Scenario
from balancer.simulator.service_model import ServiceRates, decode_seconds_per_token
from balancer.simulator.virtual.hardware import instances_of, slots_of
from balancer.simulator.virtual.popularity import Popularity
from balancer.simulator.virtual.populations import Population

_SAMPLED_TURNS = 5_000
_LEAST_ARRIVALS = 100
_ROUNDS = 4


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """What an arrival of a population brings in the mean, and a request of it asks for in tokens."""

    sessions_per_arrival: float
    requests_per_arrival: float
    prompt_tokens: float
    output_tokens: float


def mean_of(population: Population) -> Mean:
    """From the first 5,000 requests that it draws, or its first 100 arrivals if those bring more."""
    arrivals = sessions = requests = prompt = output = 0
    for arrivals, arrival in enumerate(population.arrivals(), start=1):
        for turns, _ in arrival.conversations:
            sessions += 1
            requests += len(turns)
            for turn in turns:
                prompt += sum(tokens for _, tokens in turn.segments)
                output += turn.output_tokens
        if requests >= _SAMPLED_TURNS and arrivals >= _LEAST_ARRIVALS:
            break
    return Mean(
        sessions_per_arrival=sessions / arrivals,
        requests_per_arrival=requests / arrivals,
        prompt_tokens=prompt / requests,
        output_tokens=output / requests,
    )


def arrival_rates(
    scenario: Scenario, populations: Sequence[Population], popularity: Popularity
) -> tuple[float, ...]:
    """Arrivals per second of each population, in the mean over the run."""
    means = [mean_of(population) for population in populations]
    total = math.fsum(population.settings.share for population in populations)
    shares = [population.settings.share / total for population in populations]
    sessions = scenario.workload.sessions_per_second
    if sessions is not None:
        per_request = math.fsum(
            share * mean.sessions_per_arrival / mean.requests_per_arrival
            for share, mean in zip(shares, means, strict=True)
        )
        rate = sessions / per_request
    else:
        rate = scenario.workload.load * _capacity(scenario, populations, means, shares, popularity)
    return tuple(rate * share / mean.requests_per_arrival for share, mean in zip(shares, means, strict=True))


def _capacity(
    scenario: Scenario,
    populations: Sequence[Population],
    means: Sequence[Mean],
    shares: Sequence[float],
    popularity: Popularity,
) -> float:
    """Requests per second of the whole fleet. Which models they are for hangs on the drift, so on how long
    the run takes, so on this: it is found by iteration."""
    devices = {shape.device: shape.rates for shape in instances_of(scenario)}
    slots = {model.name: slots_of(scenario, model) for model in scenario.models}
    capacity, seconds = 0.0, 1.0
    for _ in range(_ROUNDS):
        asked = [popularity.mean_weights(population.among, seconds) for population in populations]
        capacity = math.fsum(
            1
            / math.fsum(
                share * weight * _device_seconds(rates[name], slots[name], mean)
                for share, mean, weights in zip(shares, means, asked, strict=True)
                for name, weight in weights.items()
            )
            for rates in devices.values()
        )
        seconds = scenario.requests / (scenario.workload.load * capacity)
    return capacity


def _device_seconds(rates: ServiceRates, slots: int, mean: Mean) -> float:
    step = decode_seconds_per_token(rates, slots) / slots
    return mean.prompt_tokens / rates.prefill_tokens_per_second + mean.output_tokens * step
