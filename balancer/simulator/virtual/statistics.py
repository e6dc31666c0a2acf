"""What a run comes to: its rows and facts as a few figures. Comparing runs is `comparison`'s.

A figure that a run does not have (a percentile of nothing, a ratio over nothing) is NaN here, and null
wherever it is written down.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from balancer.settings.scenario import ScenarioObjectives
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.bounds import floor
from balancer.simulator.virtual.fairness import fairness
from balancer.simulator.virtual.outcomes import PRIORITIES, Outcome, Outcomes, RunFacts

CURVE_PER_MILLE = (*range(25, 1000, 25), 990, 995, 999)
"""The percentiles of a distribution that is drawn, in thousandths."""
PROMPT_LENGTHS = ("short", "middle", "long")
_COLUMNS = (
    *("outcome", "embeds", "priority", "prompt_tokens", "output_tokens", "shared_tokens", "cached_tokens"),
    *("ttft_seconds", "total_seconds"),
)
_EMBEDDING = len(PROMPT_LENGTHS)


class Spread(msgspec.Struct, frozen=True):
    """A distribution in short. Percentiles are values that occurred: the least one that so many percent of
    all do not exceed (nearest rank)."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


class Goodput(msgspec.Struct, frozen=True):
    """How many of some requests were answered within the objectives; `per_second` of the whole run."""

    requests: int
    good: int
    per_second: float
    share: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Spreads are of answered requests: those of `ttft_seconds`, `token_seconds` (the mean time
    between the tokens of an answer of at least two) and `total_seconds` of those that generate, that of
    `embed_seconds` of the others. `ttft_curve` has the percentiles of `CURVE_PER_MILLE`. Goodput by prompt
    length is that of generating requests. `wasted_load_seconds` are of loads that no request used;
    `hits_of_shared` and `hits_of_prompt` are cached tokens over those that an infinite cache would have held,
    and over all of the prompts; `utilisation` is the share of time in which a device worked, over devices.
    `floor_ttft_seconds` are what the same requests could not go below (see `bounds`), None where no rates
    were given."""

    strategy: str
    seed: int
    virtual_seconds: float
    requests: int
    outcomes: dict[str, int]
    ttft_seconds: Spread
    token_seconds: Spread
    total_seconds: Spread
    embed_seconds: Spread
    ttft_curve: tuple[float, ...]
    goodput: Goodput
    goodput_by_prompt: dict[str, Goodput]
    goodput_by_priority: dict[str, Goodput]
    prompt_terciles: tuple[int, int]
    loads: int
    evictions: int
    load_seconds: float
    wasted_load_seconds: float
    hits_of_shared: float
    hits_of_prompt: float
    fairness: float
    fairness_windows: int
    utilisation: float
    decisions: int
    events: int
    slots_out: int
    floor_ttft_seconds: Spread | None = None

    @property
    def answered_share(self) -> float:
        """Answered requests over all."""
        return ratio(self.outcomes[Outcome.OK.name.lower()], self.requests)


class _Seen:
    """The rows of one run, gone through once."""

    def __init__(self) -> None:
        self.ttfts: list[float] = []
        self.tokens: list[float] = []
        self.totals: list[float] = []
        self.embeds: list[float] = []
        self.prompt_tokens = 0
        self.shared_tokens = 0
        self.cached_tokens = 0
        self.asked_by_prompt = [0] * (_EMBEDDING + 1)
        self.good_by_prompt = [0] * (_EMBEDDING + 1)
        self.good_by_priority = [0] * len(PRIORITIES)

    def read(self, outcomes: Outcomes, objectives: ScenarioObjectives, terciles: tuple[int, int]) -> None:
        """Take in all rows. Comparisons with NaN are false, so what has no first byte is never good."""
        low, high = terciles
        at_once, by_token = objectives.ttft_seconds, objectives.ttft_seconds_per_1000_tokens / 1000
        between, isnan = objectives.token_seconds, math.isnan
        columns = (outcomes.columns[name] for name in _COLUMNS)
        for outcome, embeds, priority, prompt, output, shared, cached, ttft, total in zip(
            *columns, strict=True
        ):
            length = _EMBEDDING if embeds else (prompt > low) + (prompt > high)
            self.asked_by_prompt[length] += 1
            if outcome:
                continue
            good = ttft <= at_once + by_token * prompt
            if embeds:
                self.embeds.append(total)
            else:
                self.totals.append(total)
                self.prompt_tokens += prompt
                self.shared_tokens += shared
                self.cached_tokens += cached
                if not isnan(ttft):
                    self.ttfts.append(ttft)
                    if output > 1:
                        each = (total - ttft) / (output - 1)
                        self.tokens.append(each)
                        good = good and each <= between
            if good:
                self.good_by_prompt[length] += 1
                self.good_by_priority[priority] += 1


def summarize(
    outcomes: Outcomes,
    facts: RunFacts,
    objectives: ScenarioObjectives,
    *,
    prompt_terciles: tuple[int, int] | None = None,
    best_rates: Mapping[str, Sequence[ServiceRates]] | None = None,
) -> Summary:
    """The figures of a run, and with the `best_rates` of its models on each device its floor. Without
    `prompt_terciles` they are those of its own generating requests, which may differ between strategies
    where clients behave differently; give those of the workload to compare. Takes some 5 s for 1,000,000
    rows."""
    terciles = prompt_terciles or terciles_of(_prompts(outcomes))
    seen = _Seen()
    seen.read(outcomes, objectives, terciles)
    seconds = facts.virtual_seconds
    ends = Counter(outcomes.columns["outcome"])
    asked = Counter(outcomes.columns["priority"])
    seen.ttfts.sort()
    jain, windows = fairness(outcomes)
    return Summary(
        strategy=facts.strategy,
        seed=facts.seed,
        virtual_seconds=seconds,
        requests=len(outcomes),
        outcomes={each.name.lower(): ends[each] for each in Outcome},
        ttft_seconds=spread_of(seen.ttfts),
        token_seconds=spread_of(seen.tokens),
        total_seconds=spread_of(seen.totals),
        embed_seconds=spread_of(seen.embeds),
        ttft_curve=tuple(percentile(seen.ttfts, each) for each in CURVE_PER_MILLE),
        goodput=_goodput(len(outcomes), sum(seen.good_by_prompt), seconds),
        goodput_by_prompt={
            name: _goodput(seen.asked_by_prompt[index], seen.good_by_prompt[index], seconds)
            for index, name in enumerate(PROMPT_LENGTHS)
        },
        goodput_by_priority={
            priority.value: _goodput(asked[index], seen.good_by_priority[index], seconds)
            for index, priority in enumerate(PRIORITIES)
        },
        prompt_terciles=terciles,
        loads=facts.loads,
        evictions=facts.evictions,
        load_seconds=facts.load_seconds,
        wasted_load_seconds=facts.wasted_load_seconds,
        hits_of_shared=ratio(seen.cached_tokens, seen.shared_tokens),
        hits_of_prompt=ratio(seen.cached_tokens, seen.prompt_tokens),
        fairness=jain,
        fairness_windows=windows,
        utilisation=ratio(math.fsum(facts.busy_seconds), len(facts.busy_seconds) * seconds),
        decisions=facts.decisions,
        events=facts.events,
        slots_out=facts.slots_out,
        floor_ttft_seconds=_floor(outcomes, best_rates) if best_rates is not None else None,
    )


def terciles_of(lengths: Iterable[int]) -> tuple[int, int]:
    """The longest of the shorter third and of the shorter two thirds; zeros where there are none."""
    ordered = sorted(lengths)
    if not ordered:
        return 0, 0
    return ordered[-(-len(ordered) // 3) - 1], ordered[-(-2 * len(ordered) // 3) - 1]


def spread_of(values: Iterable[float]) -> Spread:
    """The distribution of some values, none of them NaN."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered) if ordered else math.nan
    return Spread(len(ordered), mean, *(percentile(ordered, each) for each in (500, 950, 990)))


def percentile(ordered: Sequence[float], per_mille: int) -> float:
    """The least of the sorted values that so many thousandths of them do not exceed; NaN of none."""
    return ordered[max(0, -(-len(ordered) * per_mille // 1000) - 1)] if ordered else math.nan


def ratio(part: float, whole: float) -> float:
    """NaN where there is no whole."""
    return part / whole if whole else math.nan


def _floor(outcomes: Outcomes, rates: Mapping[str, Sequence[ServiceRates]]) -> Spread:
    """Of answered requests that generate."""
    floors = zip(floor(outcomes, rates).ttft_seconds, outcomes.columns["embeds"], strict=True)
    return spread_of(each for each, embeds in floors if not embeds and not math.isnan(each))


def _goodput(requests: int, good: int, seconds: float) -> Goodput:
    return Goodput(requests, good, ratio(good, seconds), ratio(good, requests))


def _prompts(outcomes: Outcomes) -> Iterable[int]:
    columns = outcomes.columns
    return (
        tokens
        for tokens, embeds in zip(columns["prompt_tokens"], columns["embeds"], strict=True)
        if not embeds
    )
