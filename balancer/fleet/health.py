"""Whether an instance answers, judged from probes and from what requests met.

A state machine without I/O: unknown → up at the first success; up → down at once when a connection
is refused or reset, else after `unhealthy_threshold` failures in a row; down → up after
`healthy_threshold` successes in a row. One failure short of the threshold makes an instance
suspect: it still serves, but only where no other can.
"""

from enum import StrEnum


class HealthState(StrEnum):
    """What the probes say."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Health:
    """The health of one instance. Written by the prober, and by dispatch for refused connections."""

    def __init__(self, *, unhealthy_threshold: int, healthy_threshold: int) -> None:
        self.state = HealthState.UNKNOWN
        self.last_error: str | None = None
        self._unhealthy_threshold = unhealthy_threshold
        self._healthy_threshold = healthy_threshold
        self._failures = 0
        self._successes = 0

    @property
    def suspect(self) -> bool:
        """Whether the newest probe of a usable instance failed."""
        return self.state is HealthState.UP and self._failures > 0

    def succeeded(self) -> bool:
        """Count one success; True where it changed the state."""
        self._failures = 0
        self._successes += 1
        self.last_error = None
        needed = self._healthy_threshold if self.state is HealthState.DOWN else 1
        if self.state is HealthState.UP or self._successes < needed:
            return False
        self.state = HealthState.UP
        return True

    def failed(self, error: str, *, refused: bool) -> bool:
        """Count one failure; True where it changed the state. An instance never seen up stays
        unknown until the threshold, which keeps it from being used all the same."""
        self._successes = 0
        self._failures += 1
        self.last_error = error
        if self.state is HealthState.DOWN:
            return False
        if refused or self._failures >= self._unhealthy_threshold:
            self.state = HealthState.DOWN
            return True
        return False
