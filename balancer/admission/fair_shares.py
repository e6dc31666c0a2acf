"""Fair shares: what each client has used, in seconds of a device's time, and so who is next.

Whoever has used least goes first. A client that comes back does not catch up on what it has not asked for
meanwhile: it starts where those stand that wait, or where the clients that are there have come to on the
average. One that has something running and nothing waiting is as good as level with them. The average moves
on with every charge, so that newcomers, however many, keep nobody waiting for ever.

Source: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024 (counters, lift); the average as in
the virtual time of Bennett and Zhang, Hierarchical Packet Fair Queueing Algorithms, SIGCOMM 1996.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from balancer.core.ticket import ClientId

_COUNTED = 20
"""So many requests, about, make up the mean."""
_MEANS_OF_LEEWAY = 2.0
_SWEEP_ABOVE = 1024


class FairShares:
    """What the clients have used, as far as it matters still."""

    def __init__(self) -> None:
        self._used: dict[ClientId, float] = {}
        self._present: Counter[ClientId] = Counter()
        self._average = 0.0
        self._mean = 0.0
        self._ended = 0
        self._sweep_above = _SWEEP_ABOVE

    def __len__(self) -> int:
        return len(self._used)

    def used(self, client: ClientId) -> float:
        """What a client is held to have used; only differences mean anything."""
        return self._used.get(client, self._average)

    @property
    def leeway(self) -> float:
        """Clients whose use differs by no more than this are as good as level, so that something else may
        decide between them."""
        return _MEANS_OF_LEEWAY * self._mean

    def enter(self, client: ClientId, *, least_waiting: float | None, waits: bool) -> None:
        """One more request of the client is there, of which others wait already or not. `least_waiting` is
        what the one that has used least of those that wait has used, None where none waits."""
        start = self._average - self.leeway
        if least_waiting is not None:
            start = max(start, least_waiting)
        if self._present[client]:
            start -= float("inf") if waits else self.leeway
        self._present[client] += 1
        self._used[client] = max(self._used.get(client, start), start)
        if len(self._used) > self._sweep_above:
            self._sweep()

    def leave(self, client: ClientId) -> None:
        """One of them has ended."""
        self._present[client] -= 1
        if self._present[client] > 0:
            return
        del self._present[client]
        if self._used[client] <= self._average - self.leeway:
            del self._used[client]

    def charge(self, client: ClientId, seconds: float) -> None:
        """A request of the client, which is there, is lent a slot for work of so many seconds."""
        self._used[client] += seconds
        self._average += seconds / len(self._present)

    def correct(self, client: ClientId, *, charged: float, took: float) -> None:
        """It was charged with so many seconds, and took so many."""
        self.charge(client, took - charged)
        self._ended = min(self._ended + 1, _COUNTED)
        self._mean += (took - self._mean) / self._ended

    def _sweep(self) -> None:
        """Forget those that are gone and would start anew where they are."""
        start = self._average - self.leeway
        for client in [each for each, used in self._used.items() if used <= start]:
            if client not in self._present:
                del self._used[client]
        self._sweep_above = max(_SWEEP_ABOVE, 2 * len(self._used))


class ClientOrder:
    """Clients by what they have used, the least first; where that is the same, by who came first."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int, ClientId]] = []
        self._places: dict[ClientId, tuple[float, int, ClientId]] = {}

    def __contains__(self, client: ClientId) -> bool:
        return client in self._places

    def __iter__(self) -> Iterator[ClientId]:
        return (client for _, _, client in self._order)

    @property
    def least_used(self) -> float | None:
        """What the one that has used least has used; None where there is nobody."""
        return self._order[0][0] if self._order else None

    def put(self, client: ClientId, used: float, arrival: int) -> None:
        """Put a client in, or where it belongs now."""
        if client in self._places:
            self.drop(client)
        place = self._places[client] = used, arrival, client
        insort(self._order, place)

    def drop(self, client: ClientId) -> None:
        """Take a client out."""
        del self._order[bisect_left(self._order, self._places.pop(client))]

    def level(self, leeway: float, count: int) -> list[ClientId]:
        """Those that have used no more than that above the least, at most so many."""
        limit = self._order[0][0] + leeway if self._order else 0.0
        return [client for used, _, client in self._order[:count] if used <= limit]
