"""The retry budget: further tries are a share of the requests that came lately, so that a fleet in
trouble is not asked for a multiple of what its clients ask for.

Source of the idea: Twitter's Finagle and Envoy's retry budgets.
"""

from collections import deque

SHARE = 0.2
FLOOR = 3
WINDOW_SECONDS = 10.0


class RetryBudget:
    """At most `SHARE` of the requests of the last `WINDOW_SECONDS` may be tries again, and always
    `FLOOR`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()

    def requested(self, now: float) -> None:
        """A request came in."""
        self._requests.append(now)
        self._forget(now)

    def take(self, now: float) -> bool:
        """Whether one more try is allowed; counts it where it is."""
        self._forget(now)
        if len(self._retries) >= max(FLOOR, SHARE * len(self._requests)):
            return False
        self._retries.append(now)
        return True

    def _forget(self, now: float) -> None:
        for times in (self._requests, self._retries):
            while times and times[0] <= now - WINDOW_SECONDS:
                times.popleft()
