"""What clients have not read of their streams yet: one bound over all of them.

A stream is never held back for its reader, so what a reader leaves must stand somewhere. Each stream has a
bound of its own; this is the one for all together, beyond which the largest laggard is cut.
"""

from typing import Protocol

COUNTED_FROM_BYTES = 65536
"""A stream of which less is held is not counted: that much stands in any connection's buffers."""


class Laggard(Protocol):
    """A stream whose reader is behind."""

    @property
    def held_bytes(self) -> int:
        """What it holds now."""

    def cut(self) -> None:
        """End it at once; it holds nothing afterwards."""


class StreamMemory:
    """Of one balancer. `limit_bytes` may be changed at any time."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: dict[Laggard, int] = {}

    def note(self, stream: Laggard) -> None:
        """It holds more than before, or less. May cut it, or another."""
        held = stream.held_bytes
        self.held_bytes += held - self._held.get(stream, 0)
        self._held[stream] = held
        if self.held_bytes > self.limit_bytes:
            self._make_room()

    def forget(self, stream: Laggard) -> None:
        """It holds nothing worth counting any more. Idempotent."""
        self.held_bytes -= self._held.pop(stream, 0)

    def _make_room(self) -> None:
        """What was noted a while ago may have been read since."""
        self._held = {stream: stream.held_bytes for stream in self._held}
        self.held_bytes = sum(self._held.values())
        while self.held_bytes > self.limit_bytes:
            largest = max(self._held, key=self._held.__getitem__)
            self.forget(largest)
            largest.cut()
