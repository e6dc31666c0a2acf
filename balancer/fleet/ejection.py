"""Ejection of outliers: an instance whose health stays low is left alone for a while, then tried again.

A state machine without I/O over all instances together. Low for `after_seconds` → ejected for 10 seconds,
twice as long each time that it happens anew, 300 at most, with up to a fifth more by chance; back once that
is over and its health is well up again, and in any case after the longest time. There is a floor: of up to
three instances one stays, of more than three half of them. Source of the pattern: Envoy's outlier detection.
Times are monotonic seconds.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
JITTER = 0.2
STEADY_SECONDS = 300.0
"""Who stays in for so long after its return is ejected as if for the first time."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class EjectionPolicy:
    """Ejected where health was below `eject_below` for `after_seconds`, which 0 never is; back above
    `restore_above`."""

    eject_below: float = 0.2
    restore_above: float = 0.4
    after_seconds: float = 10.0


class _Of:
    """What is known of one instance."""

    __slots__ = ("at_latest", "back_at", "ejected", "low_since", "times", "until")

    def __init__(self) -> None:
        self.low_since: float | None = None
        self.ejected = False
        self.times = 0
        self.until = self.at_latest = 0.0
        self.back_at = float("-inf")


class Ejections(Generic[Key]):
    """Which instances are ejected."""

    def __init__(self, random: Random, policy: EjectionPolicy) -> None:
        self.policy = policy
        self._random = random
        self._of: dict[Key, _Of] = {}

    @property
    def ejected(self) -> frozenset[Key]:
        """Those that are."""
        return frozenset(key for key, of in self._of.items() if of.ejected)

    def until(self, key: Key) -> float:
        """When one that is ejected may be back at the earliest."""
        return self._of[key].until

    def judge(self, scores: Mapping[Key, float], now: float) -> None:
        """Judge those that serve, each with its health; whoever is not named serves nothing, and is ejected
        no more."""
        for key in self._of.keys() - scores.keys():
            self._readmit(self._of[key], now)
            self._forget_if_steady(key, now)
        for key, score in scores.items():
            self._note(self._of.setdefault(key, _Of()), score, now)
        self._keep_floor(scores, now)
        low = [key for key in scores if self._is_due(self._of[key], now)]
        for key in sorted(low, key=scores.__getitem__)[: most_ejected(len(scores)) - len(self.ejected)]:
            self._eject(self._of[key], now)

    def _note(self, of: _Of, score: float, now: float) -> None:
        if of.ejected:
            well = score > self.policy.restore_above
            if now >= of.at_latest or (well and now >= of.until):
                self._readmit(of, now)
        elif score >= self.policy.eject_below:
            of.low_since = None
        elif of.low_since is None:
            of.low_since = now

    def _is_due(self, of: _Of, now: float) -> bool:
        return not of.ejected and of.low_since is not None and now - of.low_since >= self.policy.after_seconds

    def _keep_floor(self, scores: Mapping[Key, float], now: float) -> None:
        """Those that were ejected first are back first where too few others are left."""
        ejected = sorted(self.ejected, key=lambda key: self._of[key].at_latest)
        for key in ejected[: max(0, len(ejected) - most_ejected(len(scores)))]:
            self._readmit(self._of[key], now)

    def _eject(self, of: _Of, now: float) -> None:
        if now - of.back_at >= STEADY_SECONDS:
            of.times = 0
        seconds = min(LONGEST_SECONDS, FIRST_SECONDS * 2**of.times)
        of.times = min(of.times + 1, 10)
        of.ejected, of.low_since = True, None
        spread = self._random.uniform(1.0, 1.0 + JITTER)
        of.until, of.at_latest = now + seconds * spread, now + LONGEST_SECONDS * spread

    def _readmit(self, of: _Of, now: float) -> None:
        of.low_since = None
        if of.ejected:
            of.ejected, of.back_at = False, now

    def _forget_if_steady(self, key: Key, now: float) -> None:
        if now - self._of[key].back_at >= STEADY_SECONDS:
            del self._of[key]


def most_ejected(instances: int) -> int:
    """How many of so many may be ejected at once."""
    return max(0, instances - 1) if instances <= 3 else instances // 2
