"""Slots that cool: their runners still work on prompts that were cancelled."""

import heapq
from itertools import count

from balancer.core.names import ModelName
from balancer.fleet.instance import Instance


class Coolings:
    """Of a whole fleet; times are monotonic seconds."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, int, Instance, ModelName]] = []
        self._numbers = count()

    @property
    def next_end(self) -> float | None:
        """When the first of them is free again; None where none cools."""
        return self._ends[0][0] if self._ends else None

    def begin(self, instance: Instance, model: ModelName, until: float) -> None:
        """A slot of the model's runner cools until then."""
        instance.begin_cooling(model)
        heapq.heappush(self._ends, (until, next(self._numbers), instance, model))

    def end(self, now: float) -> bool:
        """Free those whose time has come; whether there were any."""
        ended = False
        while self._ends and self._ends[0][0] <= now:
            _, _, instance, model = heapq.heappop(self._ends)
            instance.end_cooling(model)
            ended = True
        return ended
