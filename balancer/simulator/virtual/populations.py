"""What the clients of one population ask for, one after the other, in a time of their own: one arrival for
each unit in the mean. When that is, and which model they ask, is decided by `workload`.

Every aspect has random numbers of its own, named after the population and the aspect, so that a change to one
population changes nothing that another one draws.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

import msgspec

from balancer.settings.scenario import PopulationKind, Scenario, ScenarioPopulation
from balancer.simulator.virtual.arrivals import client_weights, renewals
from balancer.simulator.virtual.profiles import profile_of, shared_lengths
from balancer.simulator.virtual.work import Segment, Turn

_PARETO = 1.5
_IDENTITIES = 1 << 48
"""So many for each population."""

Turns = tuple[Turn, ...]


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """What one client begins at once: conversations, each with the first of the identities of its answers."""

    at: float
    client: int
    conversations: tuple[tuple[Turns, int], ...]


class Population:
    """The clients number `number` of the scenario's, as one seed has them; `label` names them. Foreign ones
    are another crowd of the same kind."""

    def __init__(self, scenario: Scenario, number: int, seed: int, *, foreign: bool = False) -> None:
        populations = scenario.workload.populations
        self.settings: ScenarioPopulation = populations[number]
        kind = self.settings.kind
        nth = sum(each.kind is kind for each in populations[: number + 1])
        self.label = f"{'foreign-' if foreign else ''}{kind.value}{nth}"
        self.among = frozenset(self.settings.models) or frozenset(
            model.name for model in scenario.models if model.embeds is (kind is PopulationKind.EMBEDDING)
        )
        self._seed = seed
        self._context = scenario.instances.context_length
        self._profile = profile_of(self.settings, self._context)
        self._first_identity = (2 * number + foreign) * _IDENTITIES

    def random(self, aspect: str) -> Random:
        """Its own random numbers for one aspect, from the start."""
        return Random(f"{self._seed}/{self.label}/{aspect}")

    def arrivals(self) -> Iterator[Arrival]:
        """All that its clients ask for, for ever, from the start at each call; times are in units."""
        settings = self.settings
        clients = renewals(
            self.random("arrivals"),
            client_weights(settings.clients, settings.client_skew),
            settings.arrival_cv,
        )
        begin = self._beginner()
        for at, client in clients:
            yield Arrival(at, client, begin(client))

    def _beginner(self) -> Callable[[int], tuple[tuple[Turns, int], ...]]:
        """What gives the conversations that a client begins."""
        identities = count(self._first_identity)
        patience = self._patience()
        if self.settings.kind is PopulationKind.EMBEDDING:
            embed = self._embedder(identities, patience)
            return lambda client: ((embed(), next(identities)),)
        shared = self._shared(identities)
        talk = self._talker(identities, patience)

        def converse(client: int) -> tuple[tuple[Turns, int], ...]:
            turns = talk(shared[client])
            answers = next(identities)
            for _ in turns[1:]:
                next(identities)
            return ((turns, answers),)

        if self.settings.kind is not PopulationKind.BATCH:
            return converse
        sizes, mean = self.random("jobs"), self.settings.job_requests
        return lambda client: tuple(each for _ in range(_geometric(sizes, mean)) for each in converse(client))

    def _shared(self, identities: Iterator[int]) -> list[Segment]:
        """The beginning of each client's prompts."""
        lengths = shared_lengths(self._profile, self.settings.apps, self._context // 2)
        apps = [(next(identities), length) for length in lengths]
        random = self.random("apps")
        return [random.choice(apps) for _ in range(self.settings.clients)]

    def _patience(self) -> Callable[[], float | None]:
        """What gives the seconds that the client of the next request waits, None for ever."""
        random, share = self.random("patience"), self.settings.cancel_share
        rate = 1 / self.settings.patience_seconds
        return lambda: random.expovariate(rate) if random.random() < share else None

    def _talker(
        self, identities: Iterator[int], patience: Callable[[], float | None]
    ) -> Callable[[Segment], Turns]:
        """What gives the turns of a conversation that begins with a segment. It ends before a turn whose
        prompt and answer would exceed the context; its first turn is shortened to fit."""
        profile, context = self._profile, self._context
        turns, inputs, outputs, thoughts = map(self.random, ("turns", "inputs", "outputs", "thoughts"))
        input_mu = math.log(profile.input_tokens)
        output_rate = 1 / profile.output_tokens
        longest = min(profile.longest_answer, context // 4)
        think_mu = math.log(profile.think_seconds) if profile.think_seconds else 0.0

        def talk(shared: Segment) -> Turns:
            room = context - shared[1]
            told: list[Turn] = []
            think = 0.0
            for _ in range(_geometric(turns, profile.turns)):
                output = min(1 + int(outputs.expovariate(output_rate)), longest)
                if inputs.random() < profile.tail_share:
                    added = int(profile.input_tokens * inputs.paretovariate(_PARETO))
                else:
                    added = int(inputs.lognormvariate(input_mu, profile.input_sigma))
                added = max(added, 1)
                if added + output > room:
                    if told:
                        break
                    added = room - output
                segment = (next(identities), added)
                told.append(Turn((segment,) if told else (shared, segment), output, think, patience()))
                room -= added + output
                think = thoughts.lognormvariate(think_mu, profile.think_sigma)
            return tuple(told)

        return talk

    def _embedder(
        self, identities: Iterator[int], patience: Callable[[], float | None]
    ) -> Callable[[], Turns]:
        """What gives a request of a list of texts of equal length; how many they are is log-uniform."""
        profile, context = self._profile, self._context
        counts, lengths = self.random("counts"), self.random("lengths")
        mu, most = math.log(profile.input_tokens), math.log(self.settings.inputs + 1)

        def embed() -> Turns:
            texts = min(int(math.exp(counts.random() * most)), self.settings.inputs)
            length = min(max(int(lengths.lognormvariate(mu, profile.input_sigma)), 1), context)
            return (Turn(((next(identities), texts * length),), 0, 0.0, patience(), texts),)

        return embed


def _geometric(random: Random, mean: float) -> int:
    """A whole number from 1 up with this mean: 1 and the whole part of an exponential."""
    return 1 if mean <= 1 else 1 + int(random.expovariate(math.log(mean / (mean - 1))))
