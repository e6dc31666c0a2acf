"""The workload of a scenario: who asks when for what, a pure function of the scenario and the seed."""

import heapq
from collections.abc import Iterator
from random import Random

import msgspec

from balancer.core.ticket import Priority
from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.arrivals import diurnal
from balancer.simulator.virtual.demand import arrival_rates
from balancer.simulator.virtual.hardware import instance_count
from balancer.simulator.virtual.popularity import Chooser, Popularity
from balancer.simulator.virtual.populations import Population
from balancer.simulator.virtual.work import Fault, FaultKind, Session


def sessions(scenario: Scenario, seed: int) -> Iterator[Session]:
    """The sessions of a run in the order of their starts, until their turns are as many as the scenario has
    requests; the last session is cut there. Foreign ones come besides.
    """
    popularity = Popularity(scenario, seed)
    numbers = range(len(scenario.workload.populations))
    own = [Population(scenario, number, seed) for number in numbers]
    rates = arrival_rates(scenario, own, popularity)
    streams = [
        _stream(scenario, population, rate, popularity) for population, rate in zip(own, rates, strict=True)
    ]
    share = scenario.workload.foreign_share
    if share:
        strangers = (Population(scenario, number, seed, foreign=True) for number in numbers)
        streams += (
            _aimed(
                _stream(scenario, population, rate * share / (1 - share), popularity), scenario, population
            )
            for population, rate in zip(strangers, rates, strict=True)
        )
    return _until(heapq.merge(*streams, key=lambda session: session.starts_at), scenario.requests)


def faults(scenario: Scenario, seed: int) -> tuple[Fault, ...]:
    """What goes wrong in a run, in the order of time."""
    count = instance_count(scenario)
    told = (
        Fault(
            kind=FaultKind(each.kind.value),
            at=each.at_seconds,
            instance=Random(f"{seed}/fault/{number}").randrange(count)
            if each.instance is None
            else each.instance,
            seconds=each.seconds,
            factor=each.factor,
        )
        for number, each in enumerate(scenario.faults)
    )
    return tuple(sorted(told, key=lambda fault: fault.at))


def _stream(
    scenario: Scenario, population: Population, rate: float, popularity: Popularity
) -> Iterator[Session]:
    """The sessions of one population with so many arrivals per second, for ever."""
    workload = scenario.workload
    chooser = Chooser(popularity, population.among, population.random("models"))
    priority = Priority(population.settings.priority)
    clients = [f"{population.label}-{number}" for number in range(population.settings.clients)]
    at = 0.0
    for arrival in population.arrivals():
        unwarped = arrival.at / rate
        # Rounding must not turn the order round.
        at = max(at, diurnal(unwarped, workload.diurnal_amplitude, workload.diurnal_seconds))
        model = chooser.choose(at)
        for turns, answer_id in arrival.conversations:
            yield Session(at, clients[arrival.client], model, priority, answer_id, turns)


def _aimed(stream: Iterator[Session], scenario: Scenario, population: Population) -> Iterator[Session]:
    """The same, each for one of the instances that foreign requests go to."""
    random = population.random("instances")
    instances = scenario.workload.foreign_instances or range(instance_count(scenario))
    for session in stream:
        yield msgspec.structs.replace(session, foreign=random.choice(instances))


def _until(stream: Iterator[Session], requests: int) -> Iterator[Session]:
    left = requests
    for session in stream:
        if session.foreign is not None:
            yield session
            continue
        if len(session.turns) >= left:
            yield msgspec.structs.replace(session, turns=session.turns[:left])
            return
        left -= len(session.turns)
        yield session
