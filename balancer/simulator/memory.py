"""Device memory: what a runner takes, whether another fits, and who must go first.

Pure arithmetic on sizes. It unloads nothing (scheduler.py) and measures no
time. Called by scheduler and by virtual-time fleets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

# Source: Ollama v0.33 server/sched.go: an additional load may use this much of what is free.
_USABLE_SHARE = 0.8
_COMPUTE_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of a resident runner: all of it, and the part on the device."""

    total_bytes: int
    device_bytes: int


class Evictable(Protocol):
    """What the choice of a victim looks at. `keep_alive` is in seconds; infinite is allowed."""

    @property
    def keep_alive(self) -> float: ...

    @property
    def path(self) -> str: ...

    @property
    def busy(self) -> bool: ...


V = TypeVar("V", bound=Evictable)


def predicted_bytes(*, weight_bytes: int, kv_bytes_per_token: int, num_ctx: int, slots: int) -> int:
    """Weights, the key-value cache of all slots, and a compute buffer."""
    return weight_bytes + kv_bytes_per_token * num_ctx * slots + _COMPUTE_BUFFER_BYTES


def footprint(needed_bytes: int, free_bytes: int, *, on_device: bool) -> Footprint:
    """Where a load ends up: what exceeds the free device memory spills to the host."""
    device = min(needed_bytes, max(free_bytes, 0)) if on_device else 0
    return Footprint(total_bytes=needed_bytes, device_bytes=device)


def fits_beside_others(needed_bytes: int, free_bytes: int, *, has_device: bool) -> bool:
    """Whether a load may join resident runners without evicting one.

    Without a device nothing is predicted: only the count of models limits.
    Source: Ollama v0.33 server/sched.go.
    """
    return not has_device or needed_bytes <= _USABLE_SHARE * free_bytes


def choose_victim(runners: Iterable[V]) -> V | None:
    """The idle runner with the shortest keep_alive, then path; the first busy one if none idles.

    Not the least recently used and not the largest.
    Source: Ollama v0.33 server/sched.go findRunnerToUnload.
    """
    ordered = sorted(runners, key=lambda runner: (runner.keep_alive, runner.path))
    return next((runner for runner in ordered if not runner.busy), ordered[0] if ordered else None)
