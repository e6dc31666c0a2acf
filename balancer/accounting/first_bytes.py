"""How long answers take to begin, by what is asked for; and from when on one is unusually slow. Pure.

Of each sort the newest answers are remembered, and of the sorts those asked for last.
"""

from collections import OrderedDict, deque

from balancer.core.names import ModelName
from balancer.core.operation import Kind, Operation
from balancer.core.ticket import Ticket

Sort = tuple[ModelName, bool, bool, int]
"""The model, whether it embeds, whether the answer streams, and the size of its prompt by factors of 4: what
makes an answer begin late for a good reason."""

FEWEST = 20
"""Fewer answers say nothing."""
_NEWEST = 100
_SORTS = 512
_QUANTILE = 0.95
_MEDIANS = 2.0


class FirstBytes:
    """Of one fleet. Durations are seconds from the lease to the first byte of the answer."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[Sort, deque[float]] = OrderedDict()

    def learn(self, sort: Sort, seconds: float) -> None:
        """An answer took so long to begin, or did not begin within that time and was not waited for."""
        seen = self._seconds.setdefault(sort, deque(maxlen=_NEWEST))
        self._seconds.move_to_end(sort)
        seen.append(seconds)
        if len(self._seconds) > _SORTS:
            self._seconds.popitem(last=False)

    def slow_after(self, sort: Sort) -> float | None:
        """After so long an answer is slow to begin: longer than 95 of 100 took, and than twice the median;
        None where too few were seen."""
        seen = sorted(self._seconds.get(sort, ()))
        if len(seen) < FEWEST:
            return None
        return max(seen[int(_QUANTILE * len(seen))], _MEDIANS * seen[len(seen) // 2])


def sort_of(operation: Operation, ticket: Ticket) -> Sort:
    """What a request that names a model asks for."""
    assert ticket.variant is not None
    size = (ticket.prompt_tokens or 0).bit_length() // 2
    return ticket.variant.model, operation.kind is Kind.EMBED, operation.stream, size
