"""The work that waits, in seconds of a device's time: per model, class and client.

From it follow how long a request has to wait, and who is to go where not all can stay.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from balancer.admission.fair_shares import ClientOrder, FairShares
from balancer.core.names import ModelName
from balancer.core.ticket import ClientId, Priority, Ticket, TicketId

CLASSES = tuple(Priority)
"""From the best to the worst."""
_NOTHING = ModelName("")
_SAMPLE = 256
"""Of more clients than that, only so many are looked at, for all of them."""


class _Share:
    """What waits of one client, for one model, in one class; in the order in which it was asked for."""

    __slots__ = ("tickets", "work")

    def __init__(self) -> None:
        self.work = 0.0
        self.tickets: dict[TicketId, tuple[Ticket, float]] = {}

    @property
    def newest(self) -> Ticket | None:
        """Who came last of those that were not tried before, which stay."""
        return next((each for each, _ in reversed(self.tickets.values()) if each.attempt == 1), None)


def model_of(ticket: Ticket) -> ModelName:
    """The model that it waits for, an empty name where any instance will do."""
    return ticket.variant.model if ticket.variant is not None else _NOTHING


class Backlog:
    """All that waits."""

    def __init__(self, shares: FairShares) -> None:
        self._shares = shares
        self._waiting: dict[tuple[ModelName, Priority], dict[ClientId, _Share]] = {}
        self._by_work: dict[tuple[ModelName, Priority], ClientOrder] = {}
        self._work: dict[tuple[ModelName, Priority], float] = {}
        self._counts: Counter[tuple[ModelName, Priority]] = Counter()

    def add(self, ticket: Ticket, work: float) -> None:
        """A ticket waits that is work for so many seconds."""
        key = model_of(ticket), ticket.priority
        share = self._waiting.setdefault(key, {}).setdefault(ticket.client, _Share())
        share.tickets[ticket.id] = ticket, work
        share.work += work
        self._by_work.setdefault(key, ClientOrder()).put(ticket.client, -share.work, 0)
        self._work[key] = self._work.get(key, 0.0) + work
        self._counts[key] += 1

    def remove(self, ticket: Ticket) -> None:
        """It waits no more."""
        key = model_of(ticket), ticket.priority
        clients = self._waiting[key]
        share = clients[ticket.client]
        _, work = share.tickets.pop(ticket.id)
        share.work -= work
        self._work[key] -= work
        self._counts[key] -= 1
        if share.tickets:
            self._by_work[key].put(ticket.client, -share.work, 0)
        else:
            del clients[ticket.client]
            self._by_work[key].drop(ticket.client)
        if not clients:
            del self._waiting[key], self._by_work[key], self._work[key], self._counts[key]

    def reckon(self, model: ModelName, work_of: Callable[[Ticket], float]) -> None:
        """What waits for a model is work for so many seconds as it is said to be now."""
        for key in [each for each in self._waiting if each[0] == model]:
            for client, share in self._waiting[key].items():
                share.tickets = {name: (each, work_of(each)) for name, (each, _) in share.tickets.items()}
                share.work = sum(work for _, work in share.tickets.values())
                self._by_work[key].put(client, -share.work, 0)
            self._work[key] = sum(share.work for share in self._waiting[key].values())

    def work(self, model: ModelName, down_to: Priority) -> float:
        """How much waits for a model in a class and those above it."""
        return sum(self._work.get((model, each), 0.0) for each in _down_to(down_to))

    def by_class(self) -> Mapping[tuple[ModelName, Priority], float]:
        """How much waits for each model in each class."""
        return self._work

    def count(self, model: ModelName, priority: Priority) -> int:
        """How many wait for a model in a class."""
        return self._counts[model, priority]

    def before_newest(self, ticket: Ticket) -> float:
        """How much is to be done before a ticket, the newest of its client, if no other comes: what is in
        better classes, and what fair shares give to each client until it is this one's turn."""
        model = model_of(ticket)
        clients = self._waiting[model, ticket.priority]
        own = clients[ticket.client]
        before = own.work - own.tickets[ticket.id][1]
        turn = self._shares.used(ticket.client) + before
        others = sum(
            min(share.work, max(0.0, turn - self._shares.used(client)))
            for client, share in islice(clients.items(), _SAMPLE)
            if share is not own
        )
        others *= max(1.0, len(clients) / _SAMPLE)
        better = self.work(model, ticket.priority) - self._work[model, ticket.priority]
        return better + before + others

    def in_order(self, model: ModelName) -> Iterator[tuple[Ticket, float]]:
        """Who waits for a model, in the order in which their turns come, each with the work before it."""
        ahead = 0.0
        for priority in CLASSES:
            turns: list[tuple[float, int, Ticket, float]] = []
            for client, share in self._waiting.get((model, priority), {}).items():
                turn = self._shares.used(client)
                for ticket, work in share.tickets.values():
                    turns.append((turn, ticket.arrival, ticket, work))
                    turn += work
            for _, _, ticket, work in sorted(turns, key=lambda each: each[:2]):
                yield ticket, ahead
                ahead += work

    def models(self) -> list[ModelName]:
        """The models that somebody waits for."""
        return list(dict.fromkeys(model for model, _ in self._waiting))

    def dearest(self, *, of: ModelName | None = None, among: Sequence[Priority] = CLASSES) -> Ticket | None:
        """Who is to go where not all can stay: of the worst class, the newest of the client that has most
        waiting. With `of` only who waits for that model."""
        for priority in reversed(among):
            keys = [each for each in self._waiting if each[1] is priority and of in {None, each[0]}]
            shares = [share for key in keys if (share := self._most(key)) is not None]
            if shares:
                return max(shares, key=lambda each: each.work).newest
        return None

    def _most(self, key: tuple[ModelName, Priority]) -> _Share | None:
        """What waits of the client that has most waiting, of those that have something that may go."""
        shares = (self._waiting[key][client] for client in self._by_work[key])
        return next((each for each in shares if each.newest is not None), None)


def _down_to(priority: Priority) -> Sequence[Priority]:
    return CLASSES[: CLASSES.index(priority) + 1]
