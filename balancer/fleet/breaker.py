"""Circuit breakers: what keeps failing is left alone for a while, then tried with few requests.

A state machine without I/O. Closed → open after `threshold` failures with no success between them;
open → half-open once `reset_seconds` have passed, or when the instance comes up anew; half-open →
closed at a success, open again at a failure. Failures of leases that were out together count once:
one dead runner is one fault, however many requests it takes with it. A neutral outcome (a departure,
a 4xx) only returns its permit. Source of the pattern: Nygard, Release It!, 2007.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from balancer.core.names import ModelName
from balancer.core.ticket import Outcome, Trial, Verdict

NOTHING_SAID = Outcome(verdict=Verdict.NEUTRAL, kind="nothing_said")
MODELS_LIMIT = 1000
"""At most so many models of one instance have a breaker of their own; the oldest go first."""


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
    """The breaker of one instance, or of one model at one instance."""

    def __init__(self) -> None:
        self.last_error = ""
        self._faults = 0
        self._last_fault_at = float("-inf")
        self._open_until: float | None = None
        self._permits_out = 0

    def state(self, now: float) -> BreakerState:
        """The state at `now`, monotonic seconds."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def allows(self, now: float, policy: BreakerPolicy) -> bool:
        """Whether one more lease may be taken."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (
            state is BreakerState.HALF_OPEN and self._permits_out < policy.permits
        )

    def reopens_at(self, now: float) -> float | None:
        """When it lets requests try again; None unless it is open."""
        return self._open_until if self.state(now) is BreakerState.OPEN else None

    def take(self, now: float) -> bool:
        """A lease is taken; True where it is a trial, which `settle` is to be told."""
        trial = self.state(now) is BreakerState.HALF_OPEN
        self._permits_out += trial
        return trial

    def settle(
        self, outcome: Outcome, *, leased_at: float, trial: bool, now: float, policy: BreakerPolicy
    ) -> None:
        """A lease ended. A success of one that was taken before it opened does not close it; a failure
        of one that was out already when the last fault was counted is the same fault."""
        self._permits_out = max(0, self._permits_out - trial)
        if outcome.verdict is Verdict.SUCCESS and (trial or self._open_until is None):
            self._open_until = None
            self._faults = 0
        elif outcome.verdict is Verdict.FAILURE and leased_at > self._last_fault_at and policy.enabled:
            self._last_fault_at = now
            self._faults += 1
            self.last_error = outcome.error or outcome.kind
            if trial or self._faults >= policy.threshold:
                self._open_until = now + policy.reset_seconds

    def open(self, error: str, now: float, policy: BreakerPolicy) -> None:
        """Open at once: what failed will fail again."""
        self.last_error = error
        self._last_fault_at = now
        self._open_until = now + policy.reset_seconds

    def rest(self, error: str, until: float) -> None:
        """Be open until then at least, though nothing is counted."""
        if self._open_until is None or self._open_until < until:
            self.last_error = error
            self._open_until = until

    def begin_anew(self, now: float) -> None:
        """What it guards has started anew: an open one lets requests try, a closed one forgets."""
        self._faults = 0
        if self._open_until is not None:
            self._open_until = min(self._open_until, now)


class Breakers:
    """The breaker of an instance and those of the models there. Written by dispatch and the loader."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self._own = Breaker()
        self._models: dict[ModelName, Breaker] = {}

    @property
    def models(self) -> tuple[ModelName, ...]:
        """Those that have a breaker of their own, closed or not."""
        return tuple(self._models)

    def allows(self, model: ModelName, now: float) -> bool:
        """Whether one more lease may be taken."""
        return all(each.allows(now, self.policy) for each in self._concerned(model))

    def reopens_at(self, model: ModelName, now: float) -> float | None:
        """When the last of those that are open lets requests try again; None where none is open."""
        times = [at for each in self._concerned(model) if (at := each.reopens_at(now)) is not None]
        return max(times, default=None)

    def last_error(self, model: ModelName, now: float) -> str:
        """What those that are open opened for."""
        return next((each.last_error for each in self._concerned(model) if each.reopens_at(now)), "")

    def take(self, model: ModelName, now: float) -> Trial:
        """A lease is taken."""
        pair = self._models.get(model)
        return Trial(self._own.take(now), pair is not None and pair.take(now))

    def settle_own(self, outcome: Outcome, *, leased_at: float, trial: bool, now: float) -> None:
        """A lease ended, as far as the instance is concerned: what is a model's own fault spares it."""
        own = NOTHING_SAID if outcome.model_only else outcome
        self._own.settle(own, leased_at=leased_at, trial=trial, now=now, policy=self.policy)

    def settle_model(
        self, model: ModelName, outcome: Outcome, *, leased_at: float, trial: bool, now: float
    ) -> None:
        """A lease ended, as far as the model there is concerned: its own fault opens the pair at once."""
        pair = self._pair(model) if outcome.verdict is Verdict.FAILURE else self._models.get(model)
        if pair is None:
            return
        pair.settle(outcome, leased_at=leased_at, trial=trial, now=now, policy=self.policy)
        if outcome.model_only:
            pair.open(outcome.error or outcome.kind, now, self.policy)
        elif outcome.verdict is Verdict.SUCCESS and pair.state(now) is BreakerState.CLOSED:
            del self._models[model]

    def rest(self, model: ModelName, error: str, *, until: float) -> None:
        """The model cannot be had there right now: leave the pair alone until then at least."""
        self._pair(model).rest(error, until)

    def begin_anew(self, now: float) -> None:
        """The instance has started anew."""
        for each in (self._own, *self._models.values()):
            each.begin_anew(now)

    def forget(self, model: ModelName) -> None:
        """The model there is another one now."""
        self._models.pop(model, None)

    def state(self, now: float) -> BreakerState:
        """The instance's own."""
        return self._own.state(now)

    def states(self, now: float) -> Mapping[ModelName, BreakerState]:
        """Those of the models that are not closed."""
        return {
            model: state
            for model, each in self._models.items()
            if (state := each.state(now)) is not BreakerState.CLOSED
        }

    def _concerned(self, model: ModelName) -> tuple[Breaker, ...]:
        pair = self._models.get(model)
        return (self._own,) if pair is None else (self._own, pair)

    def _pair(self, model: ModelName) -> Breaker:
        if model not in self._models:
            if len(self._models) >= MODELS_LIMIT:
                del self._models[next(iter(self._models))]
            self._models[model] = Breaker()
        return self._models[model]
