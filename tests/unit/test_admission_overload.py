"""Overload: who is turned away, when, and what it is told."""

import pytest

from balancer.admission.overload import INTERVALS, Overload, Pace, WaitLimits
from balancer.admission.queue import RequestQueue
from balancer.core.ticket import ClientId, Priority, Ticket
from balancer.errors import QueueFull, QueueTooLong, Shed
from tests.unit.unit_support import ticket

NOW = 1000.0
PACE = Pace(capacity=2.0, mean_work=4.0)
PATIENT = WaitLimits(longest=300.0)
STRICT = WaitLimits(longest=300.0, standing={Priority.INTERACTIVE: 1.0})


def waiting(queue: RequestQueue, *tickets: Ticket, work: float = 4.0) -> None:
    for each in tickets:
        queue.enter(each.client)
        queue.push(each, work)


def of(client: str, number: int, **facts: object) -> Ticket:
    return ticket(f"{client}{number}", arrival=number, client=ClientId(client), **facts)


def test_as_long_as_there_is_place_and_time_all_stay() -> None:
    queue = RequestQueue(limit=9)
    newest = of("a", 9)
    waiting(queue, of("a", 1), of("b", 2), newest)

    assert Overload(queue, PATIENT).turn_away(newest, PACE, NOW) is None


def test_where_too_many_wait_the_one_with_most_waiting_loses_its_newest() -> None:
    queue = RequestQueue(limit=3)
    newest = of("modest", 9)
    waiting(queue, of("greedy", 1), of("greedy", 2), of("greedy", 3), newest)

    turned = Overload(queue, PATIENT).turn_away(newest, None, NOW)

    assert turned is not None
    assert turned[0].id == "greedy3"
    assert type(turned[1]) is QueueFull


def test_where_too_many_wait_the_worst_class_loses_first() -> None:
    queue = RequestQueue(limit=3)
    newest = of("greedy", 9)
    waiting(queue, of("greedy", 1), of("greedy", 2), of("modest", 3, priority=Priority.BATCH), newest)

    turned = Overload(queue, PATIENT).turn_away(newest, None, NOW)

    assert turned is not None
    assert turned[0].id == "modest3"


def test_what_was_tried_before_is_never_turned_away() -> None:
    queue = RequestQueue(limit=1)
    newest = of("b", 9)
    waiting(queue, of("a", 1).again(), of("a", 2).again(), newest)

    turned = Overload(queue, PATIENT).turn_away(newest, None, NOW)

    assert turned is not None
    assert newest is turned[0]


def test_who_cannot_be_served_in_time_is_told_so_at_once() -> None:
    queue = RequestQueue(limit=99)
    waiting(queue, *(of("a", number) for number in range(10)))
    hopeless = of("a", 10, deadline=NOW + 20.0)
    waiting(queue, hopeless)

    turned = Overload(queue, PATIENT).turn_away(hopeless, PACE, NOW)

    assert turned is not None
    assert hopeless is turned[0]
    assert isinstance(turned[1], QueueTooLong)
    # Ten of 4 s and half of one that runs, at two seconds a second: 21 s.
    assert "about 21 s, longer than it may (20 s)" in str(turned[1])
    assert pytest.approx(1.0) == turned[1].retry_after_seconds


def test_the_backlog_of_another_client_does_not_make_a_wait_hopeless() -> None:
    queue = RequestQueue(limit=99)
    waiting(queue, *(of("greedy", number) for number in range(50)))
    modest = of("modest", 99, deadline=NOW + 20.0)
    waiting(queue, modest)

    assert Overload(queue, PATIENT).turn_away(modest, PACE, NOW) is None


def test_worse_classes_do_not_make_a_wait_longer_and_better_ones_do() -> None:
    queue = RequestQueue(limit=99)
    waiting(queue, *(of("a", number, priority=Priority.NORMAL) for number in range(20)))
    better = of("b", 50, priority=Priority.INTERACTIVE, deadline=NOW + 20.0)
    worse = of("c", 51, priority=Priority.BATCH, deadline=NOW + 20.0)
    waiting(queue, better, worse)
    overload = Overload(queue, PATIENT)

    assert overload.turn_away(better, PACE, NOW) is None
    turned = overload.turn_away(worse, PACE, NOW)
    assert turned is not None
    assert worse is turned[0]


def test_nobody_is_turned_away_for_time_before_there_was_anything_to_measure() -> None:
    queue = RequestQueue(limit=99)
    newest = of("a", 99, deadline=NOW + 0.1)
    waiting(queue, *(of("a", number) for number in range(50)), newest)

    assert Overload(queue, STRICT).turn_away(newest, None, NOW) is None
    assert Overload(queue, STRICT).retry_after(newest, None) == 1.0


def test_all_work_that_waits_for_a_model_is_bounded() -> None:
    queue = RequestQueue(limit=999)
    limits = WaitLimits(longest=10.0)
    waiting(queue, *(of(f"c{number}", number) for number in range(10)))  # 40 s, at two a second 20
    newest, other = of("new", 99, deadline=NOW + 300), of("x", 100, model="n", deadline=NOW + 300)
    waiting(queue, other)
    overload = Overload(queue, limits)

    assert overload.turn_away(other, PACE, NOW) is None
    waiting(queue, newest)
    turned = overload.turn_away(newest, PACE, NOW)

    assert turned is not None
    assert isinstance(turned[1], QueueTooLong)
    assert (turned[0].variant.model if turned[0].variant else "") == "m:latest"


def interactive(number: int) -> Ticket:
    return of("i", number, priority=Priority.INTERACTIVE)


def standing(queue: RequestQueue, overload: Overload) -> float:
    """Let the delay of interactive requests stand; until when it has."""
    waiting(queue, interactive(1), interactive(2))
    for step in range(int(INTERVALS) + 1):
        turned = overload.turn_away(interactive(2), PACE, NOW + step)
        assert (turned is not None) == (step == INTERVALS)
    return NOW + INTERVALS


def test_a_delay_that_stands_sheds_the_newest_of_its_class_and_new_ones_of_worse_classes() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    now = standing(queue, overload)

    newest, normal = interactive(3), of("n", 4)
    waiting(queue, newest, normal)
    first, second = overload.turn_away(newest, PACE, now), overload.turn_away(normal, PACE, now)

    assert first is not None
    assert second is not None
    assert [newest, normal] == [first[0], second[0]]
    assert isinstance(first[1], Shed)
    assert "'interactive' requests are turned away" in str(first[1])


def test_a_delay_that_stands_sheds_no_better_class() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, WaitLimits(longest=300.0, standing={Priority.NORMAL: 1.0}))
    waiting(queue, of("n", 1), of("n", 2))
    for step in range(int(INTERVALS) + 1):
        overload.turn_away(of("n", 2), PACE, NOW + step)
    better = interactive(3)
    waiting(queue, better)

    assert overload.turn_away(better, PACE, NOW + INTERVALS) is None


def test_a_burst_that_is_gone_in_between_does_not_stand() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    waiting(queue, interactive(1), interactive(2))
    assert overload.turn_away(interactive(2), PACE, NOW) is None
    queue.remove(interactive(2).id)
    overload.eased(interactive(2), PACE)
    waiting(queue, interactive(3))

    assert overload.turn_away(interactive(3), PACE, NOW + INTERVALS) is None


def test_one_of_a_class_may_always_wait() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    now = standing(queue, overload)
    queue.remove(interactive(1).id)

    assert overload.turn_away(interactive(2), PACE, now) is None


def test_a_delay_stands_no_more_when_it_was_kept_for_as_long() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    now = standing(queue, overload)
    queue.remove(interactive(2).id)
    normal = of("n", 4)
    waiting(queue, normal)

    assert overload.turn_away(normal, PACE, now + INTERVALS / 2) is not None
    assert overload.turn_away(normal, PACE, now + INTERVALS) is None


def test_a_delay_that_stands_for_one_model_is_none_of_anothers_business() -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    now = standing(queue, overload)
    other = of("n", 4, model="n")
    waiting(queue, other)

    assert overload.turn_away(other, PACE, now) is None


def test_the_time_to_come_back_is_what_ones_class_and_better_ones_take() -> None:
    queue = RequestQueue(limit=99)
    waiting(queue, of("a", 1), of("b", 2, priority=Priority.BATCH), interactive(3))
    overload = Overload(queue, PATIENT)

    seconds = [overload.retry_after(of("x", 9, priority=each), PACE) for each in Priority]

    assert seconds == [3.0, 5.0, 7.0]


def test_the_time_to_come_back_is_no_longer_than_anybody_waits() -> None:
    queue = RequestQueue(limit=99)
    hopeless = of("a", 99, deadline=NOW + 1.0)
    waiting(queue, *(of("a", number) for number in range(10)), hopeless, work=900.0)
    overload = Overload(queue, PATIENT)

    turned = overload.turn_away(hopeless, PACE, NOW)

    assert turned is not None
    assert turned[1].retry_after_seconds == PATIENT.longest
    assert overload.retry_after(hopeless, PACE) == PATIENT.longest


@pytest.mark.parametrize(
    ("after", "sheds"),
    [
        (WaitLimits(longest=300.0), False),
        (WaitLimits(longest=300.0, standing={Priority.INTERACTIVE: 2.0}), False),
        (WaitLimits(longest=200.0, standing={Priority.INTERACTIVE: 1.0}), True),
    ],
)
def test_a_delay_stands_no_more_when_another_is_wanted(after: WaitLimits, sheds: bool) -> None:
    queue = RequestQueue(limit=99)
    overload = Overload(queue, STRICT)
    now = standing(queue, overload)
    normal = of("n", 4)
    waiting(queue, normal)
    assert overload.turn_away(normal, PACE, now) is not None

    overload.use(after)

    assert (overload.turn_away(normal, PACE, now) is not None) == sheds
