"""The parallel places of one runner and the unbounded line in front of them.

First come, first served. A place that is leaked never comes back: only a new
runner has it again. It knows no time and no tokens. Called by runner.
"""

from __future__ import annotations

import asyncio
from collections import deque


class SlotQueue:
    """A FIFO semaphore that can be watched, leaked from, and made to fail its waiters.

    Source: Ollama v0.33 llm/llama_server.go; the leak was observed (a stopped
    reader that leaves keeps its place until the runner is unloaded).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self.leaked = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> int:
        """Places held by running requests; leaked ones do not count."""
        return self.capacity - self.free - self.leaked

    @property
    def waiting(self) -> int:
        return sum(not place.done() for place in self._line)

    async def acquire(self) -> None:
        """Wait for a place; a waiter that is cancelled loses nothing to others.

        Raises: whatever `fail_waiting` was given while this waiter stood in line.
        """
        if self.free > 0:
            self.free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Give a place back: the first in line has it at once."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.free += 1

    def leak(self) -> None:
        """Lose a held place for good."""
        self.leaked += 1

    def fail_waiting(self, error: Exception) -> None:
        """Turn everybody in line away."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_exception(error)
