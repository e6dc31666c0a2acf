"""Circuit breakers: what keeps failing is left alone for a while, then tried with few requests.

A state machine without I/O. Closed → open after `threshold` failures with no success between them;
open → half-open once `reset_seconds` have passed, or when the instance comes up anew; half-open →
closed at a success, open again at a failure. Failures of leases that were out together count once:
one dead runner is one fault, however many requests it takes with it. A neutral outcome (a departure,
a 4xx) only returns its permit. Source of the pattern: Nygard, Release It!, 2007.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from balancer.core.names import ModelName
from balancer.core.ticket import NO_TRIAL, Blame, Outcome, Trial, Verdict
from balancer.core.variant import Variant

NOTHING_SAID = Outcome(verdict=Verdict.NEUTRAL, kind="nothing_said")
PAIRS_LIMIT = 1000
"""At most so many variants at one instance have a breaker of their own; the oldest go first."""


class BreakerState(StrEnum):
    """Whether requests may pass."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """`threshold` faults open it for `reset_seconds`; then at most `permits` requests at once try it.
    Where it is not `enabled`, failures that are counted open nothing."""

    threshold: int = 5
    reset_seconds: float = 60.0
    permits: int = 2
    enabled: bool = True


class Breaker:
    """The breaker of one instance, or of one model there. `numbers` tell its trials apart, those of a
    breaker that was here before too."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.last_error = ""
        self._numbers = numbers
        self._faults = 0
        self._last_fault_at = float("-inf")
        self._open_until: float | None = None
        self._trials: set[int] = set()

    @property
    def troubled(self) -> bool:
        """Whether a failure is counted, it is not closed, or a trial is out."""
        return self._faults > 0 or self._open_until is not None or bool(self._trials)

    def state(self, now: float) -> BreakerState:
        """The state at `now`, monotonic seconds."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def allows(self, now: float, policy: BreakerPolicy) -> bool:
        """Whether one more lease may be taken."""
        state = self.state(now)
        return (
            state is BreakerState.CLOSED
            or not policy.enabled
            or (state is BreakerState.HALF_OPEN and len(self._trials) < policy.permits)
        )

    def reopens_at(self, now: float) -> float | None:
        """When it lets requests try again; None unless it is open."""
        return self._open_until if self.state(now) is BreakerState.OPEN else None

    def take(self, now: float) -> int:
        """A lease is taken; the number of its trial, which `settle` is to be told, 0 where it is none."""
        if self.state(now) is not BreakerState.HALF_OPEN:
            return 0
        trial = next(self._numbers)
        self._trials.add(trial)
        return trial

    def settle(
        self,
        outcome: Outcome,
        *,
        leased_at: float,
        trial: int,
        now: float,
        policy: BreakerPolicy,
        may_open: bool = True,
    ) -> None:
        """A lease ended. A success of one that was taken before it opened does not close it; a failure
        of one that was out already when the last fault was counted is the same fault."""
        mine = trial in self._trials
        self._trials.discard(trial)
        if outcome.verdict is Verdict.SUCCESS:
            if self._open_until is None or (mine and leased_at >= self._last_fault_at):
                self._open_until = None
                self._faults = 0
        elif outcome.verdict is Verdict.FAILURE and leased_at > self._last_fault_at and policy.enabled:
            self._last_fault_at = now
            self._faults += 1
            self.last_error = outcome.error or outcome.kind
            tried = mine and self._open_until is not None
            if tried or (may_open and self._faults >= policy.threshold):
                self._open_until = now + policy.reset_seconds

    def open(self, error: str, *, leased_at: float, now: float, policy: BreakerPolicy) -> None:
        """Open at once, as what failed will fail again; once for what was under way together."""
        if policy.enabled and leased_at > self._last_fault_at:
            self.last_error = error
            self._last_fault_at = now
            self._open_until = now + policy.reset_seconds

    def begin_anew(self, now: float) -> None:
        """What it guards has started anew: an open one lets requests try, a closed one forgets."""
        self._faults = 0
        if self._open_until is not None:
            self._open_until = min(self._open_until, now)


@dataclass(frozen=True, slots=True)
class _Pause:
    until: float
    error: str


class Breakers:
    """The breaker of an instance, and those of models and variants there that have failed. Written by
    dispatch, the loader and the supervisor."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self._numbers = count(1)
        self._own = Breaker(self._numbers)
        self._pauses: dict[Variant, _Pause] = {}
        self._pairs: dict[Variant, Breaker] = {}
        self._models_at_fault: set[ModelName] = set()

    def use(self, policy: BreakerPolicy) -> None:
        """Another policy from now on; one that is not enabled forgets what was counted before."""
        self.policy = policy
        if not policy.enabled:
            self._own = Breaker(self._numbers)
            self._pairs.clear()
            self._models_at_fault.clear()

    @property
    def models(self) -> set[ModelName]:
        """Those that have a breaker here, closed or not."""
        return {each.model for each in self._pairs}

    @property
    def untroubled(self) -> bool:
        """Whether nothing here has failed since the last success: nothing is counted, nothing open."""
        return not (self._own.troubled or self._pairs or self._pauses or self._models_at_fault)

    def allows(self, variant: Variant, now: float) -> bool:
        """Whether one more lease may be taken."""
        return self.untroubled or all(each.allows(now, self.policy) for each in self._concerned(variant))

    def reopens_at(self, variant: Variant, now: float) -> float | None:
        """When the last of those that are open, or paused, lets requests try again; None where none is."""
        if self.untroubled:
            return None
        breakers = self._concerned(variant) if self.policy.enabled else []
        times = [at for each in breakers if (at := each.reopens_at(now)) is not None]
        pause = self._pauses.get(variant)
        if pause is not None and now < pause.until:
            times.append(pause.until)
        return max(times, default=None)

    def last_error(self, variant: Variant, now: float) -> str:
        """What those that are open opened for, or what was met before a pause."""
        told = next((each.last_error for each in self._concerned(variant) if each.reopens_at(now)), "")
        pause = self._pauses.get(variant)
        return told or (pause.error if pause is not None and now < pause.until else "")

    def take(self, variant: Variant, now: float) -> Trial:
        """A lease is taken."""
        if self.untroubled:
            return NO_TRIAL
        model, own = self._pairs.get(Variant(variant.model)), self._own.take(now)
        exact = None if variant.auto else self._pairs.get(variant)
        return Trial(own, model.take(now) if model else 0, exact.take(now) if exact else 0)

    def settle_own(
        self, model: ModelName, outcome: Outcome, *, leased_at: float, trial: int, now: float
    ) -> None:
        """A lease ended, as far as the instance is concerned. What a model or a variant is to blame for
        spares it; what a runner may be opens it only where more than one model fails."""
        if outcome.blames in {Blame.MODEL, Blame.VARIANT}:
            outcome = NOTHING_SAID
        if outcome.verdict is Verdict.SUCCESS:
            self._models_at_fault.clear()
        elif outcome.verdict is Verdict.FAILURE:
            self._models_at_fault.update({model} if len(self._models_at_fault) < 2 else ())
        may_open = outcome.blames is Blame.INSTANCE or len(self._models_at_fault) > 1
        self._own.settle(
            outcome, leased_at=leased_at, trial=trial, now=now, policy=self.policy, may_open=may_open
        )

    def settle_pair(
        self, variant: Variant, outcome: Outcome, *, leased_at: float, trial: Trial, now: float
    ) -> None:
        """A lease ended, as far as the model there is concerned. What the model or the variant is to
        blame for opens its breaker at once. Pauses that are over are forgotten."""
        if self._pauses:
            self._pauses = {key: pause for key, pause in self._pauses.items() if now < pause.until}
        at_once = {Blame.MODEL: Variant(variant.model), Blame.VARIANT: variant}
        to_open = at_once.get(outcome.blames) if outcome.verdict is Verdict.FAILURE else None
        if to_open is not None:
            error = outcome.error or outcome.kind
            self._pair(to_open).open(error, leased_at=leased_at, now=now, policy=self.policy)
            outcome = NOTHING_SAID
        elif outcome.verdict is Verdict.FAILURE:
            self._pair(Variant(variant.model))
        for key, tried in ((Variant(variant.model), trial.model), (variant, trial.variant)):
            pair = self._pairs.get(key)
            if pair is None or (key is variant and variant.auto):
                continue
            counts = outcome.verdict is not Verdict.FAILURE or key.auto or tried
            said = outcome if counts else NOTHING_SAID
            pair.settle(said, leased_at=leased_at, trial=tried, now=now, policy=self.policy)
            if outcome.verdict is Verdict.SUCCESS and pair.state(now) is BreakerState.CLOSED:
                del self._pairs[key]

    def pause(self, variant: Variant, error: str, *, until: float) -> None:
        """It cannot be had there right now, which is no state of a breaker: leave it alone until then."""
        if len(self._pauses) >= PAIRS_LIMIT:
            self._pauses.clear()
        self._pauses[variant] = _Pause(until, error)

    def open(self, error: str, now: float) -> None:
        """The instance has gone; what it was asked for will fail until it has started anew."""
        self._own.open(error, leased_at=now, now=now, policy=self.policy)

    def begin_anew(self, now: float) -> None:
        """The instance has started anew."""
        self._pauses.clear()
        for each in (self._own, *self._pairs.values()):
            each.begin_anew(now)

    def forget(self, model: ModelName) -> None:
        """The model there is another one now."""
        for key in [each for each in self._pairs if each.model == model]:
            del self._pairs[key]

    def state(self, now: float) -> BreakerState:
        """The instance's own."""
        return self._own.state(now)

    def states(self, now: float) -> Mapping[ModelName, BreakerState]:
        """Of the models that have one that is not closed, the most closed to requests."""
        found: dict[ModelName, BreakerState] = {}
        for key, each in self._pairs.items():
            state = each.state(now)
            if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and key.model not in found):
                found[key.model] = state
        return found

    def _concerned(self, variant: Variant) -> list[Breaker]:
        keys = {Variant(variant.model), variant}
        return [self._own, *(self._pairs[key] for key in keys if key in self._pairs)]

    def _pair(self, key: Variant) -> Breaker:
        if key not in self._pairs:
            if len(self._pairs) >= PAIRS_LIMIT:
                del self._pairs[next(iter(self._pairs))]
            self._pairs[key] = Breaker(self._numbers)
        return self._pairs[key]
