"""What takes too long: one timer for many waits of the same length.

Most waits end in time, so to begin and to end one must cost next to nothing. Whoever began first is due
first, so the order of beginning is the order of the deadlines, and one timer of the loop is enough.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Overdue(Generic[Key]):
    """Tells of each wait that has not ended after `seconds`, once."""

    def __init__(self, seconds: float, tell: Callable[[Key], None]) -> None:
        self.seconds = seconds
        self._tell = tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._since: dict[Key, float] = {}
        self._armed = False

    def begin(self, key: Key) -> None:
        """It waits from now on."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._since.pop(key, None)
        self._since[key] = self._loop.time()
        if not self._armed:
            self._arm(self.seconds)

    def end(self, key: Key) -> bool:
        """It waits no more; False where it did not wait."""
        return self._since.pop(key, None) is not None

    def waits(self, key: Key) -> bool:
        """Whether it waits."""
        return key in self._since

    def _look(self) -> None:
        try:
            while self._since and self._left() <= 0:
                key = next(iter(self._since))
                del self._since[key]
                self._tell(key)
        finally:  # whatever came of telling, the others still wait
            self._armed = False
            if self._since:
                self._arm(max(0.0, self._left()))

    def _left(self) -> float:
        """Seconds until the first of them is due."""
        assert self._loop is not None
        return next(iter(self._since.values())) + self.seconds - self._loop.time()

    def _arm(self, seconds: float) -> None:
        assert self._loop is not None
        self._armed = True
        self._loop.call_later(seconds, self._look)
