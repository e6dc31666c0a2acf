"""The strategies: small equal things on one shelf, chosen by name.

A strategy scores candidates that all filters let through, lower is better, and is told which one
was picked. It decides nothing else: filtering, waiting and retrying are the scheduler's. What a
strategy remembers between picks (a turn, a credit) is its own; chance comes from the given
generator, so a seed makes every pick repeatable.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from balancer.core.decision import Wait
from balancer.core.scores import Asked, Candidate, Formula, Scores
from balancer.core.ticket import InstanceId, Ticket
from balancer.core.views import InstanceView

_NOT_DRAWN = 1e9
"""Above all other terms."""


class Strategy(Protocol):
    """One way to prefer one candidate over another."""

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        """The score of each candidate, in the order given, lower is better. Must not change what the
        strategy remembers."""

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        """Remember what was picked among which."""


Scored = tuple[Ticket, Scores]


@runtime_checkable
class Reckoning(Strategy, Protocol):
    """A strategy whose scores are expected seconds, so that waiting can be weighed, too. A tie is what is
    almost as good as the best."""

    def order(self, scored: Sequence[Scored]) -> Sequence[tuple[float, Scored]]:
        """Those that wait for the same and what each costs at best, who should go first first. `scored` has
        the scores of each over the candidates that could take any of them."""

    def waits_until(
        self, ticket: Ticket, chosen: InstanceView, cost: float, busy: Sequence[InstanceView], now: float
    ) -> Wait | None:
        """Until when (monotonic seconds, after `now`) it is better to wait for one of the busy ones, which
        only lack a free slot, than to go to the chosen one at that cost; None where it is not. That time must
        not move on for ever."""


def _running_per_weight(_asked: Asked, candidate: Candidate, _own: float) -> tuple[float]:
    return (candidate.running / candidate.weight,)


class LeastConnections:
    """Fewest requests running per unit of weight."""

    FORMULA = Formula(
        _running_per_weight,
        [["running_per_weight"]],
        lambda scores, index: f"fewest requests running for its weight, {scores.candidates[index].running}",
    )

    def __init__(self, _random: Random) -> None:
        pass

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        return Scores(self.FORMULA, Asked.by(ticket), candidates)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass


class RoundRobin:
    """Each in turn: whoever was picked longest ago."""

    FORMULA = Formula(
        lambda _asked, _candidate, turn: (turn,),
        [["last_turn"]],
        lambda _scores, _index: "its turn",
        own_fact="last_turn",
    )

    def __init__(self, _random: Random) -> None:
        self._last_turn: dict[InstanceId, int] = {}
        self._turn = 0

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        turns = [float(self._last_turn.get(each.id, 0)) for each in candidates]
        return Scores(self.FORMULA, Asked.by(ticket), candidates, turns)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        self._turn += 1
        self._last_turn[chosen.id] = self._turn


class SmoothWeightedRoundRobin:
    """Turns in proportion to weight, spread evenly rather than in bursts.

    Each pick credits every candidate with its weight and charges the picked one the sum.
    Source: nginx's smooth weighted round-robin (nginx commit 52327e0627f4, 2012).
    """

    FORMULA = Formula(
        lambda _asked, each, credit: (-credit, -each.weight, each.weight * (1 - each.health)),
        [["credit", "weight", "ill_health"]],
        lambda _scores, _index: "its turn, by weight and health",
        own_fact="credit",
    )

    def __init__(self, _random: Random) -> None:
        self._credit: dict[InstanceId, float] = {}

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        credits = [self._credit.get(each.id, 0.0) for each in candidates]
        return Scores(self.FORMULA, Asked.by(ticket), candidates, credits)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        for each in candidates:
            self._credit[each.id] = self._credit.get(each.id, 0.0) + each.weight * each.health
        self._credit[chosen.id] -= sum(each.weight * each.health for each in candidates)


class RandomChoice:
    """By chance, in proportion to weight."""

    FORMULA = Formula(
        lambda _asked, _candidate, draw: (draw,),
        [["draw"]],
        lambda scores, _index: f"drawn by chance among {len(scores)}, by weight",
        own_fact="draw",
    )

    def __init__(self, random: Random) -> None:
        self._random = random

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        # The smallest of exponential variates with rates w falls on i with probability w_i / sum(w).
        draws = [self._random.expovariate(each.weight) for each in candidates]
        return Scores(self.FORMULA, Asked.by(ticket), candidates, draws)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass


class PowerOfTwo:
    """The less busy of two drawn by chance. Source: Mitzenmacher, The Power of Two Choices in
    Randomized Load Balancing, 2001."""

    FORMULA = Formula(
        lambda _asked, each, drawn: (each.running / each.weight, 0.0 if drawn else _NOT_DRAWN),
        [["running_per_weight", "not_drawn"]],
        lambda _scores, _index: "the less busy of two drawn by chance",
        own_fact="drawn",
    )

    def __init__(self, random: Random) -> None:
        self._random = random

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        drawn = set(self._random.sample(range(len(candidates)), min(2, len(candidates))))
        return Scores(
            self.FORMULA, Asked.by(ticket), candidates, [float(i in drawn) for i in range(len(candidates))]
        )

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass


Shelf = Mapping[str, Callable[[Random], Strategy]]
STRATEGIES: Shelf = {
    "weighted_round_robin": SmoothWeightedRoundRobin,
    "least_connections": LeastConnections,
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "power_of_two": PowerOfTwo,
}
FORMULAS: Mapping[str, Formula] = {
    "weighted_round_robin": SmoothWeightedRoundRobin.FORMULA,
    "least_connections": LeastConnections.FORMULA,
    "round_robin": RoundRobin.FORMULA,
    "random": RandomChoice.FORMULA,
    "power_of_two": PowerOfTwo.FORMULA,
}
"""By which their scores can be computed again."""
