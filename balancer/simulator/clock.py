"""Simulated time: seconds that pass `speed` times faster than on the wall.

Every wait and every reported duration of the simulated server goes through a
Clock, so one factor makes the whole server faster without changing any order
or any number in its answers. No other module of the simulator may sleep or
read a monotonic clock. Called by runner, scheduler, faults and the web layer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Monotonic simulated seconds, and the waits that are measured in them."""

    def now(self) -> float: ...

    async def sleep_until(self, due: float) -> None: ...

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle: ...

    def date_after(self, seconds: float) -> datetime: ...


class ScaledClock:
    """A clock on the running event loop, `speed` simulated seconds per second of wall time."""

    def __init__(self, speed: float = 1.0) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be above 0, got {speed}")
        self.speed = speed
        self._origin = time.monotonic()

    def now(self) -> float:
        """Simulated seconds since this clock was made."""
        return (time.monotonic() - self._origin) * self.speed

    async def sleep_until(self, due: float) -> None:
        """Return at `due` or later; at once, after one turn of the loop, when it has passed.

        Pacing by due times and not by intervals keeps a fast simulation honest:
        a late wake-up shortens the next wait instead of adding to the total.
        """
        remaining = due - self.now()
        if remaining <= 0:
            await asyncio.sleep(0)
            return
        while remaining > 0:
            await asyncio.sleep(remaining / self.speed)
            remaining = due - self.now()

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Run `action` once after so many simulated seconds."""
        return asyncio.get_running_loop().call_later(max(seconds, 0.0) / self.speed, action)

    def date_after(self, seconds: float) -> datetime:
        """The date on the wall, in local time, when so many simulated seconds will have passed."""
        wall_seconds = min(seconds / self.speed, _LONGEST_DATE_SECONDS)
        return (datetime.now(UTC) + timedelta(seconds=wall_seconds)).astimezone()


# An infinite keep_alive is Go's largest duration, some 292 years (shown as a year like 2318).
_LONGEST_DATE_SECONDS = 292 * 365.25 * 86400
