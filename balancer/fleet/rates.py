"""The rate book: what the counters of answers tell of how fast each runner is, how long loads take, and how
long the answers of each model are.

Pure and synchronous. One book for the fleet, as a model that is new at one instance may be known at others.
Runners are kept by the URL of their instance and their model, the longest unused ones forgotten first.
"""

from collections import OrderedDict, deque
from collections.abc import Collection
from statistics import median

import msgspec

from balancer.core.names import ModelName
from balancer.core.rates import USUAL_SLOWDOWN, Rates
from balancer.fleet.courses import Company
from balancer.fleet.lengths import AnswerLengths

_LIMIT = 1000
_RECENT = 7
"""So many answers count for a rate: it follows a device that is slower from now on in three."""
_PREFILL_RANK = 2
"""Of the rates of recent prompts, the third from below. Cached tokens that nobody knows of make a rate look
higher, and nothing makes it look lower but noise."""
_PREFILL_TOKENS = 64
"""Shorter evaluations say more of what surrounds them than of the rate."""
_BELIEVED_SHARE = 0.5
"""Where more of a prompt is believed to be cached, its evaluation teaches nothing: a belief that is wrong
would teach a rate that confirms it."""
_DECODE_TOKENS = 8
_SLOWDOWN_WEIGHT = 8.0
"""What the usual slowdown is worth, in squares of further requests; the newest samples are worth some 50."""
_SLOWDOWN_KEPT = 0.98
_OTHERS = 0.25
"""Fewer further requests on the average say nothing of what they cost."""
_LOADS = 5
_LOAD_SECONDS = 1.5
_LOAD_BYTES_PER_SECOND = 2.5e9
"""A runner's start, and what an NVMe disk gives, where no load was measured."""
_LEAST, _MOST = 1e-3, 1e9
"""Tokens/s outside of these are not believed."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance counted of one whole answer. Durations are seconds, None where it does not tell.
    `cached_tokens` of the prompt were not evaluated, as far as is known; the prompt had at most
    `asked_tokens` before the instance cut it. `left_over_seconds` are in no part that it counts."""

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    prompt_seconds: float | None = None
    output_tokens: int | None = None
    output_seconds: float | None = None
    left_over_seconds: float | None = None
    asked_tokens: int = 0


class _Runner:
    """What is learned of one model at one instance."""

    def __init__(self) -> None:
        self._prefills: deque[float] = deque(maxlen=_RECENT)
        self._poor = True
        self._decodes: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._slowdown_moments = (_SLOWDOWN_WEIGHT, _SLOWDOWN_WEIGHT * USUAL_SLOWDOWN)
        self._loads: deque[float] = deque(maxlen=_LOADS)
        self._samples = 0
        self.rates: Rates | None = None

    def learn(self, work: Work, company: Company) -> None:
        """Take in one answer."""
        taught = [self._learn_prefill(work, company), self._learn_decode(work, company)]
        self._samples += any(taught)
        if self._prefills:
            recent = sorted(self._prefills)
            slowdown = self._slowdown()
            self.rates = Rates(
                prefill_tokens_per_second=recent[min(_PREFILL_RANK, len(recent) // 2)],
                decode_tokens_per_second=self._decode(slowdown),
                slowdown=slowdown,
                samples=self._samples,
            )

    def learn_load(self, seconds: float) -> None:
        """A load took so long."""
        self._loads.append(seconds)

    @property
    def load_seconds(self) -> float | None:
        """The median of recent loads, None where there was none."""
        return median(self._loads) if self._loads else None

    def _learn_prefill(self, work: Work, company: Company) -> bool:
        """Short evaluations, and those beside others, count only until there are better ones."""
        if work.cached_tokens > _BELIEVED_SHARE * (work.prompt_tokens or 0):
            return False
        tokens = (work.prompt_tokens or 0) - work.cached_tokens
        rate = _rate(tokens * company.sharing, work.prompt_seconds)
        poor = tokens < _PREFILL_TOKENS or not company.alone_in_prefill
        if rate is None or (poor and not self._poor):
            return False
        if self._poor and not poor:
            self._prefills.clear()
        self._poor = poor
        self._prefills.append(rate)
        return True

    def _learn_decode(self, work: Work, company: Company) -> bool:
        tokens = work.output_tokens or 0
        rate = _rate(tokens * company.sharing, work.output_seconds)
        if tokens < _DECODE_TOKENS or rate is None:
            return False
        alone, others = self._decode(self._slowdown()), company.batch - 1
        if alone is not None and others >= _OTHERS:
            slower = min(max(alone / rate - 1, 0.0), 2 * others)
            squares, products = self._slowdown_moments
            self._slowdown_moments = (
                _SLOWDOWN_KEPT * squares + others * others,
                _SLOWDOWN_KEPT * products + others * slower,
            )
        self._decodes.append((company.batch, rate))
        return True

    def _slowdown(self) -> float:
        """By how much each further request makes a token take longer: a line through (1, 1), by least
        squares."""
        squares, products = self._slowdown_moments
        return min(max(products / squares, 0.0), 1.0)

    def _decode(self, slowdown: float) -> float | None:
        """Tokens/s of a request alone, the median of recent answers."""
        if not self._decodes:
            return None
        return median([rate * (1 + slowdown * (batch - 1)) for batch, rate in self._decodes])


class RateBook:
    """Of a whole fleet."""

    def __init__(self, *, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._runners: OrderedDict[tuple[str, ModelName], _Runner] = OrderedDict()
        self._at: dict[ModelName, set[str]] = {}
        self._elsewhere: dict[ModelName, Rates | None] = {}
        self._lengths: OrderedDict[ModelName, AnswerLengths] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runners)

    def learn(self, url: str, model: ModelName, work: Work, company: Company) -> None:
        """A whole answer of the model came from the instance at that URL."""
        self._runner(url, model).learn(work, company)
        self._elsewhere.pop(model, None)
        if work.output_tokens is not None and work.output_tokens > 0:
            lengths = self._lengths.pop(model, None) or AnswerLengths()
            self._lengths[model] = lengths
            lengths.learn(work.output_tokens)
            if len(self._lengths) > self._limit:
                self._lengths.popitem(last=False)

    def learn_load(self, url: str, model: ModelName, seconds: float) -> None:
        """A load of the model there took so long, from when it was decided."""
        self._runner(url, model).learn_load(seconds)

    def rates(self, url: str, model: ModelName) -> Rates | None:
        """The rates there; where nothing was measured those of the model elsewhere, the median over
        instances; None where nothing is known of it at all."""
        runner = self._runners.get((url, model))
        if runner is not None and runner.rates is not None:
            return runner.rates
        if model in self._at and model not in self._elsewhere:
            self._elsewhere[model] = self._median(model)
        return self._elsewhere.get(model)

    def load_seconds(self, url: str, model: ModelName, size_bytes: int) -> float:
        """How long a load there is expected to take: as measured, else by the size of the model's files."""
        runner = self._runners.get((url, model))
        measured = runner.load_seconds if runner is not None else None
        return measured if measured is not None else _LOAD_SECONDS + size_bytes / _LOAD_BYTES_PER_SECOND

    def output_tokens(self, model: ModelName) -> float | None:
        """The length to expect of an answer of the model, None where none was seen."""
        lengths = self._lengths.get(model)
        return lengths.mean if lengths is not None else None

    def remaining_tokens(self, model: ModelName, emitted: float) -> float | None:
        """How many tokens are to be expected still of an answer that has so many; None where none was
        seen."""
        lengths = self._lengths.get(model)
        return lengths.remaining(emitted) if lengths is not None else None

    def keep(self, urls: Collection[str]) -> None:
        """Forget all other instances."""
        for url, model in [each for each in self._runners if each[0] not in urls]:
            self._forget(url, model)

    def _runner(self, url: str, model: ModelName) -> _Runner:
        key = url, model
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = _Runner()
            self._at.setdefault(model, set()).add(url)
            if len(self._runners) > self._limit:
                self._forget(*next(iter(self._runners)))
        else:
            self._runners.move_to_end(key)
        return runner

    def _forget(self, url: str, model: ModelName) -> None:
        del self._runners[url, model]
        self._elsewhere.pop(model, None)
        self._at[model].discard(url)
        if not self._at[model]:
            del self._at[model]

    def _median(self, model: ModelName) -> Rates | None:
        known = [rates for url in self._at.get(model, ()) if (rates := self._runners[url, model].rates)]
        if not known:
            return None
        decodes = [each.decode_tokens_per_second for each in known if each.decode_tokens_per_second]
        return Rates(
            prefill_tokens_per_second=median([each.prefill_tokens_per_second for each in known]),
            decode_tokens_per_second=median(decodes) if decodes else None,
            slowdown=median([each.slowdown for each in known]),
        )


def _rate(tokens: float, seconds: float | None) -> float | None:
    """Tokens/s, None where they are not to be believed."""
    if not tokens > 0 or seconds is None or not seconds > 0:
        return None
    rate = tokens / seconds
    return rate if _LEAST <= rate <= _MOST else None
