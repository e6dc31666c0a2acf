"""What clients of each kind are like: how long their prompts and answers are, how long they talk and think.

The shapes are those that public traces show; no trace is replayed, since none tells of models and prefixes
together. What the sources say, and how far these figures are from them, stands in docs/scenarios.md.
"""

import math
from statistics import NormalDist

import msgspec

from balancer.settings.scenario import PopulationKind, ScenarioPopulation

_LONGEST_ANSWER = 7.5
"""Of the mean; 1500 tokens for the usual 200."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One population. Lengths are tokens, times seconds. Where a sigma stands beside a median, the
    distribution is log-normal; answers are exponential, turns geometric. `tail_share` of inputs are from a
    Pareto distribution of exponent 1.5 that begins at the median."""

    shared_tokens: float
    shared_sigma: float
    turns: float
    think_seconds: float
    think_sigma: float
    input_tokens: float
    input_sigma: float
    tail_share: float
    output_tokens: float

    @property
    def longest_answer(self) -> int:
        """Answers are cut at this length."""
        return math.ceil(self.output_tokens * _LONGEST_ANSWER)


_AGENT_SHARE = 0.35
"""The part of the context that an agent's tools and instructions take."""

_KINDS = {
    PopulationKind.CHAT: Profile(
        shared_tokens=900,
        shared_sigma=0.8,
        turns=3.5,
        think_seconds=20,
        think_sigma=0.8,
        input_tokens=120,
        input_sigma=1.1,
        tail_share=0.1,
        output_tokens=200,
    ),
    PopulationKind.AGENT: Profile(
        shared_tokens=0,  # by the context
        shared_sigma=0.2,
        turns=20,
        think_seconds=2,
        think_sigma=1.0,
        input_tokens=900,
        input_sigma=0.6,
        tail_share=0.0,
        output_tokens=200,
    ),
    PopulationKind.EMBEDDING: Profile(
        shared_tokens=0,
        shared_sigma=0.0,
        turns=1,
        think_seconds=0,
        think_sigma=0.0,
        input_tokens=60,
        input_sigma=0.7,
        tail_share=0.0,
        output_tokens=0,
    ),
    PopulationKind.BATCH: Profile(
        shared_tokens=600,
        shared_sigma=0.6,
        turns=1,
        think_seconds=0,
        think_sigma=0.0,
        input_tokens=300,
        input_sigma=1.0,
        tail_share=0.0,
        output_tokens=100,
    ),
}
_OVERRIDDEN = ("shared_tokens", "turns", "think_seconds", "input_tokens", "output_tokens")


def profile_of(population: ScenarioPopulation, context_length: int) -> Profile:
    """That of its kind, with what the population says otherwise."""
    profile = _KINDS[population.kind]
    if population.kind is PopulationKind.AGENT:
        profile = msgspec.structs.replace(profile, shared_tokens=_AGENT_SHARE * context_length)
    told = {name: float(value) for name in _OVERRIDDEN if (value := getattr(population, name)) is not None}
    return msgspec.structs.replace(profile, **told)


def shared_lengths(profile: Profile, count: int, longest: int) -> tuple[int, ...]:
    """The lengths of so many shared beginnings: evenly spaced quantiles of their distribution, so that no
    seed has longer ones than another."""
    normal = NormalDist(math.log(profile.shared_tokens), profile.shared_sigma)
    quantiles = (math.exp(normal.inv_cdf((index + 0.5) / count)) for index in range(count))
    return tuple(min(max(round(each), 1), longest) for each in quantiles)
