"""Time as a parameter. Nothing in the house reads the time but through a Clock.

Durations are float seconds from a monotonic clock; wall time is only for people and for the wire.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump."""


class SystemClock:
    """The machine's clock."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
