"""The queue: lanes, places, deadlines."""

from hypothesis import given
from hypothesis import strategies as st

from balancer.admission.queue import RequestQueue, lane_of
from balancer.core.ticket import InstanceId, Priority, TicketId
from balancer.core.variant import Variant
from tests.unit.unit_support import ticket


def test_tickets_of_one_variant_share_a_lane_whatever_their_class() -> None:
    one = ticket("1")
    assert one.variant is not None

    assert lane_of(one) == lane_of(ticket("2", priority=Priority.BATCH))
    assert lane_of(one) != lane_of(ticket("3", variant=Variant(one.variant.model, (("num_ctx", 1),))))


def test_another_model_another_need_and_other_exclusions_are_other_lanes() -> None:
    lanes = [
        lane_of(ticket()),
        lane_of(ticket(model="n")),
        lane_of(ticket(model=None)),
        lane_of(ticket(needs_slot=False)),
        lane_of(ticket().excluding(InstanceId("a"))),
    ]

    assert len(lanes) == len(set(lanes))


def test_a_lane_is_headed_by_who_came_first() -> None:
    queue = RequestQueue(limit=9)
    for arrival in (5, 2, 9):
        queue.push(ticket(str(arrival), arrival=arrival))
    lane = lane_of(ticket())

    for expected in ("2", "5", "9"):
        head = queue.head(lane)
        assert head is not None
        assert expected == head.id
        assert [(int(expected), 0, lane)] == queue.heads()
        assert queue.remove(head.id)
    assert queue.head(lane) is None
    assert queue.heads() == []


def test_a_ticket_is_removed_once() -> None:
    queue = RequestQueue(limit=9)
    queue.push(ticket("1"))

    assert [queue.remove(TicketId("1")), queue.remove(TicketId("1"))] == [True, False]
    assert TicketId("1") not in queue


def test_a_queue_is_full_at_its_limit() -> None:
    queue = RequestQueue(limit=2)

    states = [queue.full]
    for number in range(2):
        queue.push(ticket(str(number), arrival=number))
        states.append(queue.full)

    assert states == [False, False, True]
    assert len(queue) == 2


def test_the_expired_are_taken_out_and_no_other() -> None:
    queue = RequestQueue(limit=9)
    for number in (3, 1, 2):
        queue.push(ticket(str(number), arrival=number, deadline=1000.0 + number))

    assert [each.id for each in queue.expired(1002.0)] == ["1", "2"]
    assert (len(queue), queue.next_deadline()) == (1, 1003.0)
    assert queue.expired(1002.9) == []


def test_the_deadline_of_a_ticket_that_left_is_forgotten() -> None:
    queue = RequestQueue(limit=9)
    queue.push(ticket("1", deadline=1001.0))
    queue.push(ticket("2", arrival=2, deadline=1002.0))
    queue.remove(TicketId("1"))

    assert queue.next_deadline() == 1002.0
    queue.remove(TicketId("2"))
    assert queue.next_deadline() is None
    assert queue.expired(9999.0) == []


def test_a_ticket_that_comes_back_expires_once() -> None:
    queue = RequestQueue(limit=9)
    first = ticket("1", deadline=1001.0)
    queue.push(first)
    queue.remove(first.id)
    queue.push(first.excluding(InstanceId("a")))

    assert [each.id for each in queue.expired(1001.0)] == ["1"]
    assert (len(queue), queue.next_deadline()) == (0, None)


def test_who_waits_is_counted_by_model_and_class() -> None:
    queue = RequestQueue(limit=9)
    queue.push(ticket("1"))
    queue.push(ticket("2", priority=Priority.BATCH))
    queue.push(ticket("3", needs_slot=False))
    queue.push(ticket("4", model=None))

    assert queue.waiting_by_model() == {
        ("m:latest", "normal"): 2,
        ("m:latest", "batch"): 1,
        ("", "normal"): 1,
    }


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("mno"), st.booleans()), max_size=40))
def test_the_waiting_are_told_in_the_order_in_which_they_came(steps: list[tuple[int, str, bool]]) -> None:
    queue = RequestQueue(limit=99)
    waiting: dict[str, int] = {}
    for number, (arrival, model, leave) in enumerate(steps):
        queue.push(ticket(str(number), arrival=arrival * 100 + number, model=model))
        waiting[str(number)] = arrival * 100 + number
        if leave:
            gone = min(waiting)
            assert queue.remove(TicketId(gone))
            del waiting[gone]

    assert sorted(waiting, key=lambda name: waiting[name]) == [each.id for each in queue.pending()]
    assert len(waiting) == len(queue)
