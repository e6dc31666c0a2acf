"""Which loads found no room at an instance, and until when that is believed.

What makes room is seen: a lease or a model has gone, a load has ended, there or at a sibling. So a load is
not tried again until something of this has happened, or a while has passed, for what nobody here can see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from balancer.core.variant import Variant

_BELIEVED_SECONDS = 10.0


class Memory(Protocol):
    """An instance as far as its memory goes."""

    changes_of_memory: int
    """Counts leases and models that have gone, and loads that have ended."""


@dataclass(frozen=True, slots=True)
class _Met:
    until: float
    among: tuple[Memory, ...]
    seen: int


class NoRoom:
    """Of one instance. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.met: dict[Variant, _Met] = {}
        """What is believed of each; what is not any more may be here until it is asked about."""

    def meet(self, variant: Variant, among: Sequence[Memory], now: float) -> None:
        """There was no room for it; these share the memory. What is not believed any more is forgotten."""
        self.met = {key: met for key, met in self.met.items() if now < met.until}
        self.met[variant] = _Met(now + _BELIEVED_SECONDS, tuple(among), _changes(among))

    def until(self, variant: Variant, now: float) -> float | None:
        """Until when no load of it is worth a try, at the latest; None where one is."""
        met = self.met.get(variant) if self.met else None
        if met is None:
            return None
        if now < met.until and met.seen == _changes(met.among):
            return met.until
        del self.met[variant]
        return None


def _changes(among: Sequence[Memory]) -> int:
    return sum(each.changes_of_memory for each in among)
