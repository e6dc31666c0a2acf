"""Fairness of the queue: clients that always want more are served alike, and nobody waits for ever."""

from collections import defaultdict
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.admission.queue import AGED_SHARE, AGEING_SECONDS, RequestQueue, lane_of
from balancer.core.ticket import ClientId, Priority, Ticket
from tests.unit.unit_support import ticket

LANE = lane_of(ticket())
NOW = 1000.0
works = st.floats(0.1, 10.0)


class Backlogged:
    """A queue in which each client always waits for something, with all slots in use."""

    def __init__(self, clients: int) -> None:
        self.queue = RequestQueue(limit=10_000)
        self.arrivals = count(1)
        self.clients = [ClientId(f"c{number}") for number in range(clients)]
        self.served: defaultdict[ClientId, float] = defaultdict(float)
        for _ in range(2):
            for each in self.clients:
                self.ask(each)

    def ask(self, client: ClientId) -> None:
        number = next(self.arrivals)
        self.queue.enter(client)
        self.queue.push(ticket(str(number), arrival=number, client=client))

    def lend(self, which: int, expected: float) -> Ticket:
        """To any of those that are offered together."""
        offered = self.queue.first(LANE, 8, NOW)
        chosen = offered[which % len(offered)]
        self.queue.charge(chosen, expected, NOW)
        self.queue.remove(chosen.id)
        self.ask(chosen.client)
        return chosen

    def end(self, of: Ticket, expected: float, took: float) -> None:
        self.queue.correct(of.client, charged=expected, took=took)
        self.queue.leave(of.client)
        self.served[of.client] += took

    def gap(self) -> float:
        used = [self.queue.shares.used(each) for each in self.clients]
        return max(used) - min(used)


@settings(deadline=None)
@given(
    clients=st.integers(2, 6),
    slots=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4), works, works), min_size=20, max_size=200),
)
def test_clients_that_always_want_more_have_had_about_the_same(
    clients: int, slots: int, steps: list[tuple[int, int, float, float]]
) -> None:
    """Whoever of the level ones is chosen, whatever ends first, and however wrong the estimates are."""
    house = Backlogged(clients)
    running: list[tuple[Ticket, float, float]] = []
    largest = max(max(expected, took) for _, _, expected, took in steps)
    error = max(abs(expected - took) for _, _, expected, took in steps)
    leeway = 0.0
    for which, ends, expected, took in steps:
        if len(running) == slots:
            house.end(*running.pop(ends % slots))
        leeway = max(leeway, house.queue.shares.leeway)
        running.append((house.lend(which, expected), expected, took))
        leeway = max(leeway, house.queue.shares.leeway)
        assert house.gap() <= leeway + largest + 2 * slots * error + 1e-6
    for each in running:
        house.end(*each)

    had = [house.served[each] for each in house.clients]
    assert max(had) - min(had) <= leeway + largest + 2 * slots * error + 1e-6


@settings(deadline=None)
@given(behind=st.floats(0.0, 20.0), work=st.floats(0.5, 5.0), ahead=st.integers(1, 3))
def test_newcomers_without_end_do_not_keep_a_client_waiting_for_ever(
    behind: float, work: float, ahead: int
) -> None:
    queue = RequestQueue(limit=10_000)
    greedy = ClientId("greedy")
    queue.enter(greedy)
    queue.charge(ticket(client=greedy), behind, NOW)
    queue.push(ticket("0", arrival=0, client=greedy))

    for number in range(1, 400):
        for each in range(ahead):
            newcomer = ClientId(f"{number}/{each}")
            queue.enter(newcomer)
            queue.push(ticket(newcomer, arrival=number * 10 + each, client=newcomer))
        head = queue.head(LANE, NOW)
        assert head is not None
        if head.client == greedy:
            break
        queue.charge(head, work, NOW)
        queue.remove(head.id)
        queue.leave(head.client)

    assert head.client == greedy


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(works, st.sampled_from([Priority.NORMAL, Priority.BATCH])), min_size=50, max_size=150
    ),
    clients=st.integers(1, 3),
)
def test_better_classes_without_end_leave_the_aged_their_share(
    steps: list[tuple[float, Priority]], clients: int
) -> None:
    queue = RequestQueue(limit=10_000)
    for number, (_, priority) in enumerate(steps):
        client = ClientId(f"old{number % clients}")
        queue.enter(client)
        queue.push(ticket(f"old{number}", arrival=number, client=client, priority=priority))
    late = NOW + AGEING_SECONDS
    had: defaultdict[bool, float] = defaultdict(float)
    order: list[int] = []
    for number, (work, _) in enumerate(steps, start=len(steps)):
        queue.enter(ClientId("new"))
        facts = {"client": ClientId("new"), "queued_at": late, "priority": Priority.INTERACTIVE}
        queue.push(ticket(f"new{number}", arrival=number, **facts))
        head = queue.head(LANE, late)
        assert head is not None
        aged = head.priority is not Priority.INTERACTIVE
        order += [head.arrival] if aged else []
        queue.charge(head, work, late)
        queue.remove(head.id)
        had[aged] += work

    largest = max(work for work, _ in steps)
    total = had[True] + had[False]
    assert order == sorted(order)
    assert AGED_SHARE * total - largest <= had[True] <= AGED_SHARE * total + largest
