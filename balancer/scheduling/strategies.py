"""The strategies: small equal things on one shelf, chosen by name.

A strategy scores candidates that all filters let through, lower is better, and is told which one
was picked. It decides nothing else: filtering, waiting and retrying are the scheduler's. What a
strategy remembers between picks (a turn, a credit) is its own; chance comes from the given
generator, so a seed makes every pick repeatable.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from balancer.core.ticket import InstanceId, Ticket
from balancer.core.views import InstanceView

Terms = Mapping[str, float]


class Strategy(Protocol):
    """One way to prefer one candidate over another."""

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        """The terms of each candidate's score, in the order given; their sum is the score, lower
        is better. Must not change what the strategy remembers."""

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        """Remember what was picked among which."""


@runtime_checkable
class Reckoning(Strategy, Protocol):
    """A strategy whose scores are expected seconds, so that waiting can be weighed, too. A tie is what is
    almost as good as the best."""

    def order(self, tickets: Sequence[Ticket], free: Sequence[InstanceView]) -> Sequence[Ticket]:
        """Those that wait for the same, who should go first first. `free` are those that could take them."""

    def waits_until(
        self,
        ticket: Ticket,
        chosen: InstanceView,
        cost: float,
        busy: Sequence[InstanceView],
        now: float,
    ) -> float | None:
        """Until when (monotonic seconds, after `now`) it is better to wait for one of the busy ones, which
        only lack a free slot, than to go to the chosen one at that cost; None where it is not. That time must
        not move on for ever."""


class LeastConnections:
    """Fewest requests running per unit of weight."""

    def __init__(self, _random: Random) -> None:
        pass

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        return [{"running_per_weight": each.running / each.weight} for each in candidates]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        pass


class RoundRobin:
    """Each in turn: whoever was picked longest ago."""

    def __init__(self, _random: Random) -> None:
        self._last_turn: dict[InstanceId, int] = {}
        self._turn = 0

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        return [{"last_turn": float(self._last_turn.get(each.id, 0))} for each in candidates]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        self._turn += 1
        self._last_turn[chosen.id] = self._turn


class SmoothWeightedRoundRobin:
    """Turns in proportion to weight, spread evenly rather than in bursts.

    Each pick credits every candidate with its weight and charges the picked one the sum.
    Source: nginx's smooth weighted round-robin (nginx commit 52327e0627f4, 2012).
    """

    def __init__(self, _random: Random) -> None:
        self._credit: dict[InstanceId, float] = {}

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        return [
            {
                "credit": -self._credit.get(each.id, 0.0),
                "weight": -each.weight,
                "ill_health": each.weight * (1 - each.health_score),
            }
            for each in candidates
        ]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        for each in candidates:
            self._credit[each.id] = self._credit.get(each.id, 0.0) + each.weight * each.health_score
        self._credit[chosen.id] -= sum(each.weight * each.health_score for each in candidates)


class RandomChoice:
    """By chance, in proportion to weight."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        # The smallest of exponential variates with rates w falls on i with probability w_i / sum(w).
        return [{"draw": self._random.expovariate(each.weight)} for each in candidates]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        pass


class PowerOfTwo:
    """The less busy of two drawn by chance. Source: Mitzenmacher, The Power of Two Choices in
    Randomized Load Balancing, 2001."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        drawn = set(self._random.sample(range(len(candidates)), min(2, len(candidates))))
        return [
            {"running_per_weight": each.running / each.weight, "not_drawn": 0.0 if index in drawn else 1e9}
            for index, each in enumerate(candidates)
        ]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        pass


Shelf = Mapping[str, Callable[[Random], Strategy]]
STRATEGIES: Shelf = {
    "weighted_round_robin": SmoothWeightedRoundRobin,
    "least_connections": LeastConnections,
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "power_of_two": PowerOfTwo,
}
