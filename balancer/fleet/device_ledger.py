"""The device ledger: bytes promised on each device, ours to keep, since separate Ollama processes on
one device cannot see each other's memory.

Without a bound yet: nothing here knows how much a device has, so every promise is given.
"""

from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory promised to a load, by device; to be settled exactly once."""

    id: int
    bytes_by_device: tuple[tuple[str, int], ...]


class DeviceLedger:
    """Promises that have not become memory in use yet."""

    def __init__(self) -> None:
        self._out: dict[int, Promise] = {}
        self._ids = count(1)

    def promise(self, bytes_by_device: dict[str, int]) -> Promise | None:
        """Promise memory; None where a device has not so much left."""
        promise = Promise(next(self._ids), tuple(bytes_by_device.items()))
        self._out[promise.id] = promise
        return promise

    def settle(self, promise: Promise) -> None:
        """The load has its memory, or is over. Raises KeyError for one that was settled before."""
        del self._out[promise.id]

    def promised_bytes(self, device: str) -> int:
        """All that is promised there."""
        return sum(
            size for each in self._out.values() for name, size in each.bytes_by_device if name == device
        )
