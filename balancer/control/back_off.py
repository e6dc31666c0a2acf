"""How soon an instance that failed is started again, and when that is given up until an operator says so."""

from collections import deque
from dataclasses import dataclass

from tenacity import RetryCallState, Retrying, wait_exponential, wait_random

from balancer.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOffPolicy:
    """The first wait and the longest, seconds, each with up to `jitter_seconds` more; after so many
    `failures` within `window_seconds` it is given up."""

    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    jitter_seconds: float = 1.0
    failures: int = 5
    window_seconds: float = 600.0


class BackOff:
    """The failures of one instance."""

    def __init__(self, policy: BackOffPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._failed_at: deque[float] = deque(maxlen=policy.failures)
        self._wait = wait_exponential(
            multiplier=policy.first_seconds, max=policy.longest_seconds
        ) + wait_random(0, policy.jitter_seconds)

    def failed(self) -> float | None:
        """Note a failure; the seconds to wait before the next try, None where there is to be none."""
        now = self._clock.monotonic()
        self._failed_at.append(now)
        lately = sum(at > now - self._policy.window_seconds for at in self._failed_at)
        return None if lately >= self._policy.failures else self._wait(_after(lately))

    def forget(self) -> None:
        """An operator has seen to it."""
        self._failed_at.clear()


def _after(attempts: int) -> RetryCallState:
    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempts
    return state
