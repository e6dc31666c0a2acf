"""Whether an instance answers, judged from probes and from what requests met.

A state machine without I/O: unknown → up at the first success; up → down at once when a connection
is refused or reset, else after `unhealthy_threshold` failures in a row; down → up after
`healthy_threshold` successes in a row. One failure short of the threshold makes an instance
suspect: it still serves, but only where no other can.

An instance that goes down again before it was up and in use for `STEADY_SECONDS` is flapping: from the
second such fall it is spared for a while after it comes up, twice as long with each. It counts as up
meanwhile, and serves where nothing else can.
"""

from dataclasses import dataclass
from enum import StrEnum

STEADY_SECONDS = 60.0
_FIRST_HOLD_SECONDS = 5.0
_LONGEST_HOLD_SECONDS = 60.0


class HealthState(StrEnum):
    """What the probes say."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """Probes in a row that change the state; and how long one that is back takes until it uses all of its
    slots, 0: at once."""

    unhealthy_threshold: int = 3
    healthy_threshold: int = 2
    slow_start_seconds: float = 15.0


class Health:
    """The health of one instance. Written by the prober, and by dispatch for refused connections.
    Times are monotonic seconds."""

    def __init__(self, policy: HealthPolicy) -> None:
        self.policy = policy
        self.state = HealthState.UNKNOWN
        self.last_error: str | None = None
        self.held_until = float("-inf")
        self.settled_from = float("inf")
        """From when on nothing is to be noted of it: it is up, its newest probe went well, it is not spared
        and uses all of its slots. Infinity where only a probe can bring that about."""
        self._failures = 0
        self._successes = 0
        self._back_at = self.slow_until = float("-inf")
        self._up_since: float | None = None
        self._falls = 0

    @property
    def suspect(self) -> bool:
        """Whether the newest probe of a usable instance failed."""
        return self.state is HealthState.UP and self._failures > 0

    @property
    def failed_probes(self) -> int:
        """How many of the newest in a row."""
        return self._failures

    def start_slowly(self, now: float) -> None:
        """It is back among others, and takes up its work slot by slot."""
        self._back_at = now
        self.slow_until = now + self.policy.slow_start_seconds
        self._settle()

    def slot_opens_at(self, taken: int, slots: int, now: float) -> float | None:
        """Until when a runner of so many slots, of which so many are taken, lends no other; None where it
        does. The first is free at once."""
        opens_at = self._back_at + (self.slow_until - self._back_at) * min(1.0, taken / slots)
        return opens_at if now < opens_at else None

    @property
    def unproven(self) -> bool:
        """Whether no probe has come back yet."""
        return self.state is HealthState.UNKNOWN and not self._failures

    def succeeded(self, now: float) -> bool:
        """Count one success; True where it changed the state."""
        self._failures = 0
        self._successes += 1
        self.last_error = None
        needed = self.policy.healthy_threshold if self.state is HealthState.DOWN else 1
        if self.state is HealthState.UP or self._successes < needed:
            self._settle()
            return False
        self.state = HealthState.UP
        self.held_until = self._up_since = now + self._hold_seconds
        self._settle()
        return True

    def failed(self, error: str, now: float, *, refused: bool) -> bool:
        """Count one failure; True where it changed the state. An instance never seen up stays
        unknown until the threshold, which keeps it from being used all the same."""
        self._successes = 0
        self._failures += 1
        self.settled_from = float("inf")
        self.last_error = error
        if self.state is HealthState.DOWN:
            return False
        if refused or self._failures >= self.policy.unhealthy_threshold:
            self.state = HealthState.DOWN
            steady = self._up_since is None or now - self._up_since >= STEADY_SECONDS
            self._falls = 1 if steady else self._falls + 1
            return True
        return False

    def _settle(self) -> None:
        up = self.state is HealthState.UP and not self._failures
        self.settled_from = max(self.held_until, self.slow_until) if up else float("inf")

    @property
    def _hold_seconds(self) -> float:
        """How long it is to be spared after it comes up; the first fall costs nothing."""
        if self._falls < 2:
            return 0.0
        return float(min(_LONGEST_HOLD_SECONDS, _FIRST_HOLD_SECONDS * 2 ** (self._falls - 2)))
