"""The loop's lag: how late the event loop runs what is due, which is how long it was blocked."""

import asyncio

from balancer.clock import Clock
from balancer.telemetry.metrics import Metrics

_TICK_SECONDS = 0.5


class LagWatch:
    """Measures until cancelled; sole writer of `balancer_loop_lag_seconds`."""

    def __init__(self, *, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self.run_once()

    async def run_once(self) -> None:
        """One tick."""
        due = self._clock.monotonic() + _TICK_SECONDS
        await asyncio.sleep(_TICK_SECONDS)
        self._metrics.loop_lag.set(max(0.0, self._clock.monotonic() - due))
