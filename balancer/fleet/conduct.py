"""How an instance has behaved lately: what of its work failed, and how fast it answered.

Evidence fades with a time constant of half a minute. Speed is taken per token, as the logarithm of seconds,
and compared with that of the other instances that serve the same model, so that long prompts, long answers
and large models are no fault. What an instance has always been like here is remembered for longer. Pure;
dispatch tells of outcomes, the tries of requests tell of speed. Times are monotonic seconds.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, log

from balancer.core.names import ModelName
from balancer.core.ticket import Blame, Outcome, Verdict
from balancer.fleet.health_score import SPEED, Term

FADES_SECONDS = 30.0
ALWAYS_SECONDS = 3600.0
MODELS_LIMIT = 100
"""Of so many models the conduct is remembered at most; the oldest go first."""
_MOST_EVIDENCE = 10.0
"""So much counts at once, so that what changes shows after as many answers, however many came before."""
_DOUBT = 1.0
"""Of speed: as if so many answers more had been as fast as those of others."""
_TRUST = 10.0
"""Of errors: as if so many requests more had gone well."""
_SOME = 0.5
"""Less evidence than this tells nothing."""
_FIRST_ANSWERS = 20
_SHARE_OF_ERRORS = 0.1
_WAIT_SECONDS = 0.5
_TIMES: Mapping[Term, float] = {Term.FIRST_TOKEN: 3.0, Term.TOKEN: 2.0}
"""So many times slower than others is a burden of 1."""
Burdens = dict[Term, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the answer to a lease tells of speed: seconds until its first token for each token of the prompt,
    seconds for each token of the answer, seconds of waiting inside the instance. None: it does not tell."""

    leased_at: float
    first_token: float | None = None
    token: float | None = None
    waiting: float | None = None


class _Mean:
    """A mean of what was seen lately, and how much evidence there is of it."""

    __slots__ = ("_at", "_evidence", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._evidence = 0.0
        self._at = 0.0

    def take(self, value: float, now: float) -> None:
        self._evidence = min(_MOST_EVIDENCE, self.evidence(now) + 1)
        self._at = now
        self.value += (value - self.value) / self._evidence

    def evidence(self, now: float) -> float:
        return self._evidence * _left(now - self._at)

    def forget(self) -> None:
        self._evidence = 0.0


class _Pace:
    """The logarithm of seconds a token: of late, and as it has always been. The second is the mean of the
    first answers, and moves by the hour from then on."""

    __slots__ = ("_at", "_count", "always", "lately")

    def __init__(self) -> None:
        self.lately = _Mean()
        self.always = 0.0
        self._count = 0
        self._at = 0.0

    def take(self, seconds: float, now: float) -> None:
        value = log(seconds)
        self.lately.take(value, now)
        self._count += 1
        by_time = 1 - _left(now - self._at, of_seconds=ALWAYS_SECONDS)
        self.always += (value - self.always) * (1 / self._count if self._count <= _FIRST_ANSWERS else by_time)
        self._at = now


class _Failures:
    """How much of the work for one model failed lately."""

    __slots__ = ("_at", "_failed", "_went_well")

    def __init__(self) -> None:
        self._failed = self._went_well = self._at = 0.0

    def take(self, now: float, *, failed: bool) -> None:
        fading = _left(now - self._at)
        self._failed = self._failed * fading + failed
        self._went_well = self._went_well * fading + (not failed)
        self._at = now

    def share(self, now: float) -> float | None:
        """None where too little was seen lately."""
        fading = _left(now - self._at)
        failed, seen = self._failed * fading, (self._failed + self._went_well) * fading
        return failed / (seen + _TRUST) if seen >= _SOME else None


class _OfModel:
    """What was seen of one model there."""

    __slots__ = ("failures", "paces")

    def __init__(self) -> None:
        self.failures = _Failures()
        self.paces = {term: _Pace() for term in SPEED}


class Paces:
    """The paces of instances at one time, those of each model together."""

    def __init__(self, conducts: Iterable["Conduct"], now: float) -> None:
        self._of: dict[tuple[Term, ModelName], list[float]] = defaultdict(list)
        for conduct in conducts:
            for term in SPEED:
                for model, pace in conduct.paces(term, now):
                    self._of[term, model].append(pace)
        for paces in self._of.values():
            paces.sort()

    def of_others(self, term: Term, model: ModelName, own: float) -> float | None:
        """The median without one of them, which has its own among them; None where there is no other."""
        paces = self._of[term, model]
        if len(paces) < 2:
            return None
        place, middle = bisect_left(paces, own), (len(paces) - 1) // 2
        upper = paces[middle + (middle >= place)]
        if len(paces) % 2 == 0:
            return upper
        return (upper + paces[middle - 1 + (middle - 1 >= place)]) / 2


class Conduct:
    """Of one instance."""

    def __init__(self) -> None:
        self._of: dict[ModelName, _OfModel] = {}
        self._waiting = _Mean()
        self._failed_at = self._since = float("-inf")

    def ended(self, model: ModelName, outcome: Outcome, *, leased_at: float, now: float) -> None:
        """A lease ended. Failures that were under way together are one; what the model or the variant is to
        blame for is none of the instance."""
        if leased_at < self._since:
            return
        if outcome.verdict is Verdict.SUCCESS:
            self._of_model(model).failures.take(now, failed=False)
        elif outcome.verdict is Verdict.FAILURE and outcome.blames in {Blame.INSTANCE, Blame.RUNNER}:
            self._failed(model, leased_at, now)

    def _failed(self, model: ModelName, leased_at: float, now: float) -> None:
        if leased_at > self._failed_at:
            self._failed_at = now
            self._of_model(model).failures.take(now, failed=True)

    def observed(self, model: ModelName, seen: Observation, now: float) -> None:
        """An answer told of speed."""
        if seen.leased_at < self._since:
            return
        paces = self._of_model(model).paces
        for term, seconds in ((Term.FIRST_TOKEN, seen.first_token), (Term.TOKEN, seen.token)):
            if seconds is not None and seconds > 0:
                paces[term].take(seconds, now)
        if seen.waiting is not None:
            self._waiting.take(seen.waiting, now)

    def begin_anew(self, now: float) -> None:
        """It is to be judged by what is asked of it from now on; what it has always been like is kept."""
        self._since = now
        for each in self._of.values():
            each.failures = _Failures()
            for pace in each.paces.values():
                pace.lately.forget()
        self._waiting.forget()

    def burdens(self, paces: "Paces", now: float) -> tuple[Burdens, Burdens]:
        """The burdens of a score at the time of the `paces`; and what of them is new: without that it is
        slower than others where it has always been."""
        compared: Burdens = {
            Term.ERRORS: self._failing(now) / _SHARE_OF_ERRORS,
            Term.WAITING: _believed(self._waiting.value / _WAIT_SECONDS, self._waiting.evidence(now)),
        }
        of_late = dict(compared)
        for term in SPEED:
            compared[term], of_late[term] = self._slowness(term, paces, now)
        return compared, of_late

    def paces(self, term: Term, now: float) -> Iterator[tuple[ModelName, float]]:
        """The logarithm of its seconds a token of each model that it has served lately."""
        for model, of_model in self._of.items():
            lately = of_model.paces[term].lately
            if lately.evidence(now) >= _SOME:
                yield model, lately.value

    def _failing(self, now: float) -> float:
        """The share of failures of the model that fails least: what only some models do is their fault, for
        which they have breakers."""
        shares = (each.failures.share(now) for each in self._of.values())
        return min((share for share in shares if share is not None), default=0.0)

    def _slowness(self, term: Term, paces: "Paces", now: float) -> tuple[float | None, float | None]:
        """How much slower than others it is, over its models by their evidence; and how much of that is new.
        Where no other has served a model lately, it is compared with what it has always been like."""
        slower = newly = seen = 0.0
        for model, lately in self.paces(term, now):
            pace = self._of[model].paces[term]
            others = paces.of_others(term, model, lately)
            usual = pace.always if others is None else others
            evidence = pace.lately.evidence(now)
            slower += evidence * max(0.0, lately - usual)
            newly += evidence * max(0.0, lately - max(usual, pace.always))
            seen += evidence
        if not seen:
            return None, None
        unit = seen * log(_TIMES[term])
        return _believed(slower / unit, seen), _believed(newly / unit, seen)

    def _of_model(self, model: ModelName) -> _OfModel:
        found = self._of.get(model)
        if found is None:
            if len(self._of) >= MODELS_LIMIT:
                del self._of[next(iter(self._of))]
            found = self._of[model] = _OfModel()
        return found


def _left(seconds: float, *, of_seconds: float = FADES_SECONDS) -> float:
    """How much is left of evidence after so long."""
    return exp(-max(0.0, seconds) / of_seconds)


def _believed(burden: float, evidence: float) -> float | None:
    """A burden of which there is only so much evidence."""
    return burden * evidence / (evidence + _DOUBT) if evidence >= _SOME else None
