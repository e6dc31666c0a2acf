"""Whether one strategy is better than another: the same seeds under both, ratio by ratio.

Everything is told as a ratio to a baseline of the same seed, so that what makes a seed hard cancels out.
Nothing is left out to get a number: where a ratio does not exist, the mean over it does not either (NaN).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import mul
from random import Random
from statistics import NormalDist

import msgspec

from balancer.core.ticket import Priority
from balancer.simulator.virtual.statistics import PROMPT_LENGTHS, Summary

_RESAMPLES = 4000
_RESAMPLING_SEED = 20_260
_TAIL = 0.025


class Figure(msgspec.Struct, frozen=True):
    """One thing that runs are compared by. `key` is its name in JSON, `label` for people, `unit` one of
    `s`, `1/s`, `%` (of a share in 0 to 1) and none for counts."""

    key: str
    label: str
    unit: str
    lower_is_better: bool
    of: Callable[[Summary], float]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a strategy over that of the baseline, seed by seed.

    `mean` is the geometric mean of the ratios, `low` and `high` the ends of its 95 % interval (NaN of a
    single seed). A ratio is 1 where both are equal (zero among them), infinite where only the baseline is
    zero, and NaN where a side has no such figure; a seed in which neither has one is counted in `without` and
    in no mean. `worst` is the least favourable ratio."""

    figure: str
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    mean: float
    low: float
    high: float
    wins: int
    ties: int
    without: int
    worst: float
    worst_seed: int | None

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out that both are equal."""
        return self.low > 1 or self.high < 1


class Overall(msgspec.Struct, frozen=True):
    """One figure over several scenarios: the geometric mean of their means, and the worst of them."""

    mean: float
    worst: float
    worst_scenario: str


def compare(runs: Sequence[Summary], baseline: Sequence[Summary], figure: Figure) -> Comparison:
    """Pair the runs by their seeds, of which each side has each once. Seeds that only one side has are not
    compared; `seeds` tells those that are."""
    others = {each.seed: figure.of(each) for each in baseline}
    pairs = {each.seed: (figure.of(each), others[each.seed]) for each in runs if each.seed in others}
    ratios = {seed: _ratio(*pair) for seed, pair in pairs.items()}
    held = {seed: ratios[seed] for seed, pair in pairs.items() if not all(map(math.isnan, pair))}
    ordered = sorted(held, key=held.__getitem__, reverse=figure.lower_is_better)
    none_worse = ordered and not any(map(math.isnan, held.values()))
    low, high = interval(list(held.values()))
    return Comparison(
        figure=figure.key,
        seeds=tuple(pairs),
        ratios=tuple(ratios.values()),
        mean=geometric_mean(list(held.values())),
        low=low,
        high=high,
        wins=sum(each < 1 if figure.lower_is_better else each > 1 for each in held.values()),
        ties=sum(each == 1 for each in held.values()),
        without=len(ratios) - len(held),
        worst=held[ordered[0]] if none_worse else math.nan,
        worst_seed=ordered[0] if none_worse else None,
    )


def across(comparisons: Mapping[str, Comparison], figure: Figure) -> Overall:
    """One figure's comparisons by scenario, taken together. Where one has no mean, there is none over all."""
    means = {scenario: each.mean for scenario, each in comparisons.items()}
    if not means or any(map(math.isnan, means.values())):
        return Overall(math.nan, math.nan, "")
    worst = (max if figure.lower_is_better else min)(means, key=means.__getitem__)
    return Overall(geometric_mean(list(means.values())), means[worst], worst)


def geometric_mean(ratios: Sequence[float]) -> float:
    """0 if one is 0, infinite if one is infinite, NaN of both, of NaN and of nothing."""
    if not ratios:
        return math.nan
    return _mean_of_logs([_log(each) for each in ratios], [1] * len(ratios), len(ratios))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the geometric mean; NaN where that is, or of less than two ratios.

    The percentile interval of resampled means is too narrow for few seeds; this one is widened as if by
    Student's t. Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician
    69(4), 2015, 'expanded percentile intervals'. The same ratios give the same interval.
    """
    if len(ratios) < 2 or math.isnan(geometric_mean(ratios)):
        return math.nan, math.nan
    logs = [_log(each) for each in ratios]
    means = sorted(_mean_of_logs(logs, counts, len(logs)) for counts in _resamples(len(logs)))
    cut = math.floor(_expanded_tail(len(logs)) * _RESAMPLES)
    return means[cut], means[_RESAMPLES - 1 - cut]


def _ratio(value: float, baseline: float) -> float:
    if value == baseline:
        return 1.0
    if baseline == 0:
        return value * math.inf
    return value / baseline


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio else -math.inf


def _mean_of_logs(logs: Sequence[float], counts: Sequence[int], of: int) -> float:
    """The exponential of the mean of logarithms, each taken so many times."""
    total = sum(map(mul, logs, counts))
    if not math.isfinite(total):  # 0 times infinity is NaN: leave out what is not drawn
        total = sum(log * count for log, count in zip(logs, counts, strict=True) if count)
    return math.exp(total / of)


@lru_cache(maxsize=8)
def _resamples(size: int) -> tuple[tuple[int, ...], ...]:
    """How often each of so many seeds is drawn, resample by resample."""
    random = Random(_RESAMPLING_SEED)
    found = []
    for _ in range(_RESAMPLES):
        counts = [0] * size
        for drawn in random.choices(range(size), k=size):
            counts[drawn] += 1
        found.append(tuple(counts))
    return tuple(found)


def _expanded_tail(size: int) -> float:
    """The share of resampled means to leave out at each end.

    Source: Hesterberg 2015; the quantile of Student's t by Abramowitz and Stegun 26.7.5.
    """
    z = -NormalDist().inv_cdf(_TAIL)
    free = size - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return NormalDist().cdf(-math.sqrt(size / free) * t)


def _goodput_by_prompt(length: str) -> Callable[[Summary], float]:
    return lambda summary: summary.goodput_by_prompt[length].per_second


def _goodput_by_priority(priority: str) -> Callable[[Summary], float]:
    return lambda summary: summary.goodput_by_priority[priority].per_second


_TTFT = (
    Figure("ttft_p50", "TTFT, median", "s", True, lambda run: run.ttft_seconds.p50),
    Figure("ttft_p95", "TTFT, 95th percentile", "s", True, lambda run: run.ttft_seconds.p95),
    Figure("ttft_p99", "TTFT, 99th percentile", "s", True, lambda run: run.ttft_seconds.p99),
    Figure("ttft_mean", "TTFT, mean", "s", True, lambda run: run.ttft_seconds.mean),
)
_TIME = (
    Figure("token_mean", "time per token, mean", "s", True, lambda run: run.token_seconds.mean),
    Figure("token_p95", "time per token, 95th percentile", "s", True, lambda run: run.token_seconds.p95),
    Figure("total_p50", "whole answer, median", "s", True, lambda run: run.total_seconds.p50),
    Figure("total_p95", "whole answer, 95th percentile", "s", True, lambda run: run.total_seconds.p95),
    Figure("embed_p95", "embedding, 95th percentile", "s", True, lambda run: run.embed_seconds.p95),
)
_GOODPUT = (
    Figure("goodput", "goodput", "1/s", False, lambda run: run.goodput.per_second),
    Figure("good_share", "good answers", "%", False, lambda run: run.goodput.share),
    Figure("answered_share", "answered", "%", False, lambda run: run.answered_share),
    *(
        Figure(f"goodput_{each}", f"goodput, {each} prompts", "1/s", False, _goodput_by_prompt(each))
        for each in PROMPT_LENGTHS
    ),
    *(
        Figure(f"goodput_{each}", f"goodput, class {each}", "1/s", False, _goodput_by_priority(each))
        for each in Priority
    ),
)
_COST = (
    Figure("loads", "loads", "", True, lambda run: run.loads),
    Figure("load_seconds", "time spent on loads", "s", True, lambda run: run.load_seconds),
    Figure("wasted_load_seconds", "wasted on loads", "s", True, lambda run: run.wasted_load_seconds),
    Figure("hits_of_shared", "cached of shared tokens", "%", False, lambda run: run.hits_of_shared),
    Figure("hits_of_prompt", "cached of all tokens", "%", False, lambda run: run.hits_of_prompt),
    Figure("fairness", "fairness (Jain)", "", False, lambda run: run.fairness),
)
UTILISATION = Figure("utilisation", "devices at work", "%", True, lambda run: run.utilisation)
"""Told but not compared: to be busy is neither good nor bad."""
FIGURES: Mapping[str, Figure] = {each.key: each for each in (*_TTFT, *_TIME, *_GOODPUT, *_COST)}
