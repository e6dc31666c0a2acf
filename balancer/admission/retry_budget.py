"""The retry budget: further tries are a share of the requests that came lately, so that a fleet in
trouble is not asked for a multiple of what its clients ask for.

Source of the idea: Twitter's Finagle and Envoy's retry budgets.
"""

from collections import deque

from balancer.core.ticket import InstanceId

SHARE = 0.2
FLOOR = 3
WINDOW_SECONDS = 10.0


class RetryBudget:
    """At most `SHARE` of the requests of the last `WINDOW_SECONDS` may be tries again, and always
    `FLOOR`. Times are monotonic seconds.

    What an instance had under way together when it broke down is one fault, and counts once: else the
    more requests a dying instance takes with it, the fewer of them could go elsewhere.
    """

    def __init__(self) -> None:
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()
        self._broke_down_at: dict[InstanceId, float] = {}

    def requested(self, now: float) -> None:
        """A request came in."""
        self._requests.append(now)
        self._forget(now)

    def take(self, now: float, *, broken: InstanceId | None = None, leased_at: float = 0.0) -> bool:
        """Whether one more try is allowed; counts it where it is. `broken` is the instance that broke
        down under the last one, which was leased there at `leased_at`."""
        self._forget(now)
        if broken is not None and leased_at <= self._broke_down_at.get(broken, float("-inf")):
            return True
        if len(self._retries) >= max(FLOOR, SHARE * len(self._requests)):
            return False
        self._retries.append(now)
        if broken is not None:
            self._broke_down_at[broken] = now
        return True

    def _forget(self, now: float) -> None:
        for times in (self._requests, self._retries):
            while times and times[0] <= now - WINDOW_SECONDS:
                times.popleft()
