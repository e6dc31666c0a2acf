"""Which models are asked for: by Zipf's law over ranks that drift."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random

from balancer.settings.scenario import Scenario

_MOST_SWAPS = 10_000
"""Then ranks stay. It bounds what is done for one who asks after a long time."""


class Popularity:
    """The ranks of all models in the course of a run; at the start they are as the scenario lists them, and
    again and again two that are drawn change places. The same for all who ask with one seed."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.names = tuple(model.name for model in scenario.models)
        self._exponent = scenario.workload.zipf_exponent
        self._drift_seconds = scenario.workload.drift_seconds if len(self.names) > 1 else None
        self._seed = seed

    def epoch(self, at: float) -> int:
        """How often ranks have been swapped at that time."""
        return int(min(at / self._drift_seconds, _MOST_SWAPS)) if self._drift_seconds else 0

    def rankings(self) -> Iterator[Sequence[str]]:
        """The models from the most popular down, in each epoch in turn; the same list, changed."""
        ranking = list(self.names)
        random = Random(f"{self._seed}/drift")
        while True:
            yield ranking
            if self._drift_seconds:
                one, other = random.sample(range(len(ranking)), 2)
                ranking[one], ranking[other] = ranking[other], ranking[one]

    def weights(self, ranking: Sequence[str], among: frozenset[str]) -> dict[str, float]:
        """Each model's part of what those are asked for who choose among these."""
        ranked = [name for name in ranking if name in among]
        drawn = [(rank + 1) ** -self._exponent for rank in range(len(ranked))]
        total = math.fsum(drawn)
        return {name: each / total for name, each in zip(ranked, drawn, strict=True)}

    def mean_weights(self, among: frozenset[str], seconds: float) -> dict[str, float]:
        """The same in the mean over a run that takes so long"""
        last = self.epoch(seconds)
        sums = dict.fromkeys(among, 0.0)
        for epoch, ranking in zip(range(last + 1), self.rankings(), strict=False):
            drift = self._drift_seconds or 0.0
            part = (seconds - last * drift if epoch == last else drift) / seconds
            for name, weight in self.weights(ranking, among).items():
                sums[name] += part * weight
        return sums


class Chooser:
    """Draws models for one population, whose requests come in the order of time."""

    def __init__(self, popularity: Popularity, among: frozenset[str], random: Random) -> None:
        self._popularity = popularity
        self._among = among
        self._random = random
        self._rankings = popularity.rankings()
        self._epoch = -1
        self._names: Sequence[str] = ()
        self._bounds: Sequence[float] = ()

    def choose(self, at: float) -> str:
        """A model that is asked for at that time, not before the last one asked for."""
        epoch = self._popularity.epoch(at)
        if epoch != self._epoch:
            ranking = next(self._rankings)
            for _ in range(epoch - self._epoch - 1):
                ranking = next(self._rankings)
            weights = self._popularity.weights(ranking, self._among)
            self._epoch = epoch
            self._names = tuple(weights)
            self._bounds = tuple(accumulate(weights.values()))
        return self._random.choices(self._names, cum_weights=self._bounds)[0]
