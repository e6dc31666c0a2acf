"""The queue of requests that wait for a slot: first come, first served per lane, bounded.

A lane holds tickets that the same decision fits: same variant, same exclusions. Dispatch looks at
lane heads only, so one model without a free slot never holds up another. Order is the ticket's
`arrival`, which a retry keeps.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush
from operator import attrgetter

from balancer.core.ticket import InstanceId, Ticket, TicketId
from balancer.core.variant import Variant

Lane = tuple[Variant | None, bool, frozenset[InstanceId]]


def lane_of(ticket: Ticket) -> Lane:
    """Tickets of one lane get the same decision at the same time."""
    return (ticket.variant, ticket.needs_slot, ticket.excluded)


_arrival = attrgetter("arrival")
VARIANTS_LIMIT = 32
"""Dispatch looks at every lane, and clients choose the options that make variants."""


class RequestQueue:
    """At most `limit` tickets, apart from those that try again: a retry is never turned away. No two tickets
    in it have the same `arrival`."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self._lanes: dict[Lane, list[Ticket]] = {}
        self._tickets: dict[TicketId, Ticket] = {}
        self._deadlines: list[tuple[float, TicketId]] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: TicketId) -> bool:
        return ticket in self._tickets

    @property
    def full(self) -> bool:
        """Whether a new request has no place."""
        return len(self._tickets) >= self.limit

    def has_lane_for(self, ticket: Ticket) -> bool:
        """Whether it can wait: not where too many other variants of its model wait already."""
        variant = ticket.variant
        if variant is None or lane_of(ticket) in self._lanes or ticket.attempt > 1:
            return True
        variants = {lane[0] for lane in self._lanes if lane[0] and lane[0].model == variant.model}
        return len(variants) < VARIANTS_LIMIT

    def push(self, ticket: Ticket) -> None:
        """Put a ticket in by its arrival; behind all others unless it tries again."""
        self._tickets[ticket.id] = ticket
        heappush(self._deadlines, (ticket.deadline, ticket.id))
        insort(self._lanes.setdefault(lane_of(ticket), []), ticket, key=_arrival)

    def remove(self, ticket_id: TicketId) -> bool:
        """Take a ticket out wherever it stands; False where it is not in."""
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is None:
            return False
        lane = lane_of(ticket)
        items = self._lanes[lane]
        del items[bisect_left(items, ticket.arrival, key=_arrival)]
        if not items:
            del self._lanes[lane]
        return True

    def heads(self) -> list[tuple[int, int, Lane]]:
        """The arrival of each lane's first ticket, a number that settles ties, and the lane."""
        return [(items[0].arrival, number, lane) for number, (lane, items) in enumerate(self._lanes.items())]

    def head(self, lane: Lane) -> Ticket | None:
        """The first ticket of a lane, None where it is empty."""
        items = self._lanes.get(lane)
        return items[0] if items else None

    def first(self, lane: Lane, count: int) -> list[Ticket]:
        """The first tickets of a lane, at most so many."""
        return self._lanes.get(lane, [])[:count]

    def pending(self) -> Iterator[Ticket]:
        """All tickets, in the order in which they came."""
        return iter(sorted(self._tickets.values(), key=lambda ticket: ticket.arrival))

    def waiting_by_model(self) -> dict[tuple[str, str], int]:
        """How many wait, per model and class."""
        counts: dict[tuple[str, str], int] = {}
        for ticket in self._tickets.values():
            key = (ticket.variant.model if ticket.variant else "", ticket.priority.value)
            counts[key] = counts.get(key, 0) + 1
        return counts

    def next_deadline(self) -> float | None:
        """When the first of all waiting tickets gives up, monotonic seconds."""
        while self._deadlines and self._deadlines[0][1] not in self._tickets:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[Ticket]:
        """Take out and return those whose deadline has come."""
        gone = []
        while (first := self.next_deadline()) is not None and first <= now:
            ticket = self._tickets[heappop(self._deadlines)[1]]
            self.remove(ticket.id)
            gone.append(ticket)
        return gone
