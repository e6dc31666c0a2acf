"""The queue of requests that wait for a slot: by class, fair among clients, bounded.

A lane holds tickets that the same decision fits: same variant, same exclusions. Dispatch looks at
lane heads only, so one model without a free slot never holds up another.

    class > fair share of the client > arrival

Better classes go first; within a class the client that has used least; of a client whoever came first.
Whoever has waited for long in spite of that, as better classes leave nothing, has aged: the oldest of them
goes first, as long as the aged get no more than a tenth of the work of their lane. A retry keeps its arrival,
and goes first in its class.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from operator import attrgetter

from balancer.admission.backlog import CLASSES, Backlog
from balancer.admission.fair_shares import ClientOrder, FairShares
from balancer.core.serving import served_by_all
from balancer.core.ticket import ClientId, InstanceId, Priority, Ticket, TicketId
from balancer.core.variant import Variant

Lane = tuple[Variant | None, bool, str, bool, frozenset[InstanceId]]
Rank = tuple[int, bool, float, int]
"""Whose turn is first: class, whether it is the first try, what its client has used, arrival."""
Head = tuple[Rank, int, Lane]
"""The rank of a lane's first ticket, a number that settles ties, and the lane."""

AGEING_SECONDS = 20.0
AGED_SHARE = 0.1
_SHORTEST = 2
VARIANTS_LIMIT = 32
"""Dispatch looks at every lane, and clients choose the options that make variants."""
_DEADLINES_KEPT = 1000
_arrival = attrgetter("arrival")


def _length(ticket: Ticket) -> tuple[int, int]:
    return ticket.prompt_tokens or 0, ticket.arrival


def lane_of(ticket: Ticket) -> Lane:
    """Tickets of one lane get the same decision at the same time; those that try again have lanes of their
    own, which go first."""
    path = "" if served_by_all(ticket.path) else ticket.path
    return (ticket.variant, ticket.needs_slot, path, ticket.attempt > 1, ticket.excluded)


class _Class:
    """Those of one class in one lane; `tickets` by arrival, `by_length` by that of their prompts."""

    __slots__ = ("by_client", "by_length", "order", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.by_length: list[Ticket] = []
        self.by_client: dict[ClientId, list[Ticket]] = {}
        self.order = ClientOrder()

    def push(self, ticket: Ticket, used: float) -> None:
        insort(self.tickets, ticket, key=_arrival)
        insort(self.by_length, ticket, key=_length)
        insort(self.by_client.setdefault(ticket.client, []), ticket, key=_arrival)
        self.place(ticket.client, used)

    def remove(self, ticket: Ticket, used: float) -> None:
        own = self.by_client[ticket.client]
        for tickets in (self.tickets, own):
            del tickets[bisect_left(tickets, ticket.arrival, key=_arrival)]
        del self.by_length[bisect_left(self.by_length, _length(ticket), key=_length)]
        if own:
            self.place(ticket.client, used)
        else:
            del self.by_client[ticket.client]
            self.order.drop(ticket.client)

    def place(self, client: ClientId, used: float) -> None:
        """Put a client where it belongs by what it has used."""
        self.order.put(client, used, self.by_client[client][0].arrival)

    @property
    def head(self) -> Ticket:
        """Whose turn it is."""
        return self.by_client[self.order.level(0.0, 1)[0]][0]

    def first(self, count: int, leeway: float) -> list[Ticket]:
        """The head, after it those whose turn it may be as well, by arrival, and some of those with the
        shortest prompts, which else might stand behind many long ones of their own client."""
        if len(self.tickets) == 1 or count == 1:
            return [self.head]
        level = self.order.level(leeway, count)
        oldest = self.tickets[:count]
        if len(level) < len(self.by_client):
            oldest = sorted((each for one in level for each in self.by_client[one][:count]), key=_arrival)
        shortest = [each for each in self.by_length[:count] if each.client in level][:_SHORTEST]
        offered = [self.head, *oldest[: count - _SHORTEST], *shortest, *oldest[count - _SHORTEST :]]
        return list({each.id: each for each in offered}.values())[:count]


class RequestQueue:
    """At most `limit` tickets, apart from those that try again: a retry is never turned away. No two tickets
    in it have the same `arrival`. Times are monotonic seconds, work is in seconds of a device's time."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self.shares = FairShares()
        self.backlog = Backlog(self.shares)
        self._lanes: dict[Lane, dict[Priority, _Class]] = {}
        self._tickets: dict[TicketId, Ticket] = {}
        self._waiting_of: dict[ClientId, dict[tuple[Lane, Priority], int]] = {}
        self._order = ClientOrder()
        self._deadlines: list[tuple[float, TicketId]] = []
        self._owed_to_others: dict[Lane, float] = {}
        self._owed_to_other_lanes = 0.0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: TicketId) -> bool:
        return ticket in self._tickets

    def has_lane_for(self, ticket: Ticket) -> bool:
        """Whether it can wait: not where too many other variants of its model wait already."""
        variant = ticket.variant
        if variant is None or lane_of(ticket) in self._lanes or ticket.attempt > 1:
            return True
        variants = {lane[0] for lane in self._lanes if lane[0] and lane[0].model == variant.model}
        return len(variants) < VARIANTS_LIMIT

    def enter(self, client: ClientId) -> None:
        """A request of the client asks for a slot; with that it is there until it leaves."""
        self.shares.enter(client, least_waiting=self._order.least_used, waits=client in self._waiting_of)

    def leave(self, client: ClientId) -> None:
        """It has its answer, or waits no more."""
        self.shares.leave(client)

    def push(self, ticket: Ticket, work: float = 1.0) -> None:
        """Put a ticket in whose client has entered."""
        self._tickets[ticket.id] = ticket
        self._note_deadline(ticket)
        lane, used = lane_of(ticket), self.shares.used(ticket.client)
        self._lanes.setdefault(lane, {}).setdefault(ticket.priority, _Class()).push(ticket, used)
        places = self._waiting_of.setdefault(ticket.client, {})
        places[lane, ticket.priority] = places.get((lane, ticket.priority), 0) + 1
        if ticket.client not in self._order:
            self._order.put(ticket.client, used, ticket.arrival)
        self.backlog.add(ticket, work)

    def remove(self, ticket_id: TicketId) -> bool:
        """Take a ticket out wherever it stands; False where it is not in."""
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is None:
            return False
        lane = lane_of(ticket)
        classes = self._lanes[lane]
        classes[ticket.priority].remove(ticket, self.shares.used(ticket.client))
        if not classes[ticket.priority].tickets:
            del classes[ticket.priority]
        if not classes:
            del self._lanes[lane]
            self._owed_to_others.pop(lane, None)
        self._left(ticket, lane)
        self.backlog.remove(ticket)
        return True

    def _left(self, ticket: Ticket, lane: Lane) -> None:
        places = self._waiting_of[ticket.client]
        places[lane, ticket.priority] -= 1
        if not places[lane, ticket.priority]:
            del places[lane, ticket.priority]
        if not places:
            del self._waiting_of[ticket.client]
            self._order.drop(ticket.client)

    def charge(self, ticket: Ticket, work: float, now: float) -> None:
        """A ticket that waited, or would have, gets a slot: its client is charged with the work."""
        lane, has_aged = lane_of(ticket), self._is_old(ticket, now)
        if lane in self._lanes:
            owed = self._owed_to_others.get(lane, 0.0)
            ahead = has_aged and _better_waits(ticket, self._lanes[lane])
            self._owed_to_others[lane] = _owed(owed, work, ahead=ahead)
        ahead = has_aged and any(_better_waits(ticket, each) for each in self._lanes.values())
        self._owed_to_other_lanes = _owed(self._owed_to_other_lanes, work, ahead=ahead)
        self.shares.charge(ticket.client, work)
        self._reorder(ticket.client)

    def correct(self, client: ClientId, *, charged: float, took: float) -> None:
        """One of its requests, which is there still, took so many seconds of work."""
        self.shares.correct(client, charged=charged, took=took)
        self._reorder(client)

    def _reorder(self, client: ClientId) -> None:
        """Where a client stands now by what it has used."""
        places = self._waiting_of.get(client)
        if not places:
            return
        used = self.shares.used(client)
        self._order.put(client, used, 0)
        for lane, priority in places:
            self._lanes[lane][priority].place(client, used)

    def _is_old(self, ticket: Ticket, now: float) -> bool:
        """Whether it has waited for long, in a class that others go before."""
        return ticket.priority is not CLASSES[0] and now - ticket.queued_at >= AGEING_SECONDS

    def _aged(self, lane: Lane, now: float) -> Ticket | None:
        """Who goes first for having waited so long; None where nobody does."""
        classes = self._lanes[lane]
        if len(classes) < 2 or self._owed_to_others.get(lane, 0.0) > 0:
            return None
        best = _best(classes)
        oldest = min((each.tickets[0] for each in classes.values() if each is not best), key=_arrival)
        return oldest if self._is_old(oldest, now) else None

    def heads(self, now: float) -> list[Head]:
        """Of each lane."""
        return [(self._rank(lane, now), number, lane) for number, lane in enumerate(self._lanes)]

    def rank(self, lane: Lane, now: float) -> Rank | None:
        """The rank of a lane's first ticket; None where it is empty."""
        return self._rank(lane, now) if lane in self._lanes else None

    def _rank(self, lane: Lane, now: float) -> Rank:
        ticket = self.head(lane, now)
        assert ticket is not None
        # Lanes compete where an instance's cap counts for all models.
        aged = self._owed_to_other_lanes <= 0 and self._is_old(ticket, now)
        place = -1 if aged else CLASSES.index(ticket.priority)
        return place, ticket.attempt == 1, self.shares.used(ticket.client), ticket.arrival

    def head(self, lane: Lane, now: float) -> Ticket | None:
        """The first ticket of a lane, None where it is empty."""
        classes = self._lanes.get(lane)
        if not classes:
            return None
        return self._aged(lane, now) or _best(classes).head

    def first(self, lane: Lane, count: int, now: float) -> list[Ticket]:
        """The first ticket of a lane, and those of its class whose turn it may be as well; at most so many
        in all."""
        classes = self._lanes.get(lane)
        if not classes:
            return []
        aged = self._aged(lane, now)
        return [aged] if aged is not None else _best(classes).first(count, self.shares.leeway)

    def pending(self) -> Iterator[Ticket]:
        """All tickets, in the order in which they came."""
        return iter(sorted(self._tickets.values(), key=_arrival))

    def waiting_by_model(self) -> dict[tuple[str, str], int]:
        """How many wait, per model and class."""
        counts: dict[tuple[str, str], int] = {}
        for ticket in self._tickets.values():
            key = (ticket.variant.model if ticket.variant else "", ticket.priority.value)
            counts[key] = counts.get(key, 0) + 1
        return counts

    def _note_deadline(self, ticket: Ticket) -> None:
        """Those of tickets that left are kept until they come up, or until they are most of all."""
        heappush(self._deadlines, (ticket.deadline, ticket.id))
        if len(self._deadlines) > 2 * len(self._tickets) + _DEADLINES_KEPT:
            self._deadlines = [(each.deadline, each.id) for each in self._tickets.values()]
            heapify(self._deadlines)

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


def _better_waits(ticket: Ticket, classes: dict[Priority, _Class]) -> bool:
    return any(each in classes for each in CLASSES[: CLASSES.index(ticket.priority)])


def _owed(owed: float, work: float, *, ahead: bool) -> float:
    """What the aged owe to those before whom they went, after so much work more: of theirs, or of others."""
    return owed + work * (1 / AGED_SHARE - 1) if ahead else max(-work, owed - work)


def _best(classes: dict[Priority, _Class]) -> _Class:
    return next(classes[each] for each in CLASSES if each in classes)
