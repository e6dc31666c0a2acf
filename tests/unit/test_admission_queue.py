"""The queue: lanes, places, deadlines."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.admission.queue import AGEING_SECONDS, RequestQueue, lane_of
from balancer.core.ticket import ClientId, InstanceId, Priority, Ticket, TicketId
from balancer.core.variant import Variant
from tests.unit.unit_support import ticket

NOW = 1000.0
"""When tickets are queued, unless told otherwise."""


def enter_and_push(queue: RequestQueue, each: Ticket) -> None:
    queue.enter(each.client)
    queue.push(each)


def served(queue: RequestQueue, *, charged: float = 0.0) -> list[str]:
    """Who is served, one after the other, out of the one lane that there is, each charged with so much."""
    names: list[str] = []
    while len(queue):
        _, _, lane = min(queue.heads(NOW))
        head = queue.head(lane, NOW)
        assert head is not None
        queue.charge(head, charged, NOW)
        assert queue.remove(head.id)
        names.append(head.id)
    return names


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


def test_of_one_client_a_lane_is_headed_by_who_came_first() -> None:
    queue = RequestQueue(limit=9)
    for arrival in (5, 2, 9):
        queue.push(ticket(str(arrival), arrival=arrival))
    lane = lane_of(ticket())

    for expected in ("2", "5", "9"):
        head = queue.head(lane, NOW)
        assert head is not None
        assert expected == head.id
        assert [((1, True, 0.0, int(expected)), 0, lane)] == queue.heads(NOW)
        assert queue.remove(head.id)
    assert queue.head(lane, NOW) is None
    assert queue.heads(NOW) == []
    assert queue.rank(lane, NOW) is None
    assert queue.first(lane, 8, NOW) == []


def test_paths_that_only_some_runtimes_serve_have_lanes_of_their_own() -> None:
    paths = ("/api/chat", "/v1/chat/completions", "/api/embeddings")
    chat, openai, old = (lane_of(ticket(path=each)) for each in paths)

    assert chat == openai
    assert chat != old


def test_a_retry_has_a_lane_of_its_own_that_goes_first_in_its_class() -> None:
    queue = RequestQueue(limit=9)
    queue.push(ticket("better", priority=Priority.INTERACTIVE, model="n", arrival=3))
    queue.push(ticket("first", arrival=1))
    queue.push(ticket("again", arrival=2).again())

    in_turn = [queue.head(lane, NOW) for _, _, lane in sorted(queue.heads(NOW))]

    assert [each.id for each in in_turn if each is not None] == ["better", "again", "first"]


@pytest.mark.parametrize("order", list(permutations(Priority)))
def test_better_classes_go_first_whenever_they_came(order: Sequence[Priority]) -> None:
    queue = RequestQueue(limit=9)
    for arrival, priority in enumerate(order):
        enter_and_push(queue, ticket(priority.value, priority=priority, arrival=arrival))

    assert served(queue) == ["interactive", "normal", "batch"]


def test_within_a_class_whoever_has_used_least_goes_first() -> None:
    queue = RequestQueue(limit=9)
    for number, name in enumerate(["greedy", "greedy", "modest"]):
        enter_and_push(queue, ticket(f"{name}{number}", arrival=number, client=ClientId(name)))
    queue.charge(ticket(client=ClientId("greedy")), 5.0, NOW)

    assert served(queue) == ["modest2", "greedy0", "greedy1"]


def test_clients_take_turns_as_they_are_charged() -> None:
    queue = RequestQueue(limit=99)
    for number in range(6):
        for name in "ab":
            arrival = number + (100 if name == "b" else 0)
            enter_and_push(queue, ticket(f"{name}{number}", arrival=arrival, client=ClientId(name)))

    assert served(queue, charged=1.0) == [
        "a0",
        "b0",
        "a1",
        "b1",
        "a2",
        "b2",
        "a3",
        "b3",
        "a4",
        "b4",
        "a5",
        "b5",
    ]


def test_of_clients_that_are_level_whoever_came_first_goes_first() -> None:
    queue = RequestQueue(limit=9)
    for arrival, name in ((2, "a"), (1, "b"), (4, "b"), (3, "c")):
        enter_and_push(queue, ticket(f"{name}{arrival}", arrival=arrival, client=ClientId(name)))

    assert served(queue) == ["b1", "a2", "c3", "b4"]


def test_who_is_offered_together_are_those_whose_turn_it_may_be() -> None:
    queue = RequestQueue(limit=99)
    used = {"far": 9.0, "close": 1.5, "least": 0.0}
    for client in used:
        for number in range(2):
            name = f"{client}{number}"
            enter_and_push(queue, ticket(name, arrival=ord(client[0]) + number, client=ClientId(client)))
    for client, seconds in used.items():
        queue.shares.charge(ClientId(client), seconds)
    enter_and_push(queue, ticket("batch", priority=Priority.BATCH, arrival=1))
    for client in used:  # so the mean is 1, and the leeway 2
        queue.charge(ticket(client=ClientId(client)), 1.0, NOW)
        queue.correct(ClientId(client), charged=1.0, took=1.0)

    lane = lane_of(ticket())

    assert [each.id for each in queue.first(lane, 8, NOW)] == ["least0", "close0", "close1", "least1"]
    assert [each.id for each in queue.first(lane, 2, NOW)] == ["least0", "close0"]


def test_short_prompts_are_offered_though_they_stand_behind_many_long_ones() -> None:
    queue = RequestQueue(limit=99)
    for number in range(20):
        enter_and_push(queue, ticket(str(number), arrival=number, prompt_tokens=9000 + number))
    for number, tokens in ((20, 500), (21, 20), (22, 100)):
        enter_and_push(queue, ticket(str(number), arrival=number, prompt_tokens=tokens))
    offered = [int(each.id) for each in queue.first(lane_of(ticket()), 8, NOW)]

    assert offered == [0, 1, 2, 3, 4, 5, 21, 22]
    queue.remove(TicketId("21"))
    assert {20, 22} == {int(each.id) for each in queue.first(lane_of(ticket()), 8, NOW)} - set(range(20))


def test_one_who_waited_long_behind_better_classes_goes_first_but_not_often() -> None:
    queue = RequestQueue(limit=99)
    lane = lane_of(ticket())
    for number in range(30):
        enter_and_push(queue, ticket(f"i{number}", priority=Priority.INTERACTIVE, arrival=100 + number))
        enter_and_push(queue, ticket(f"b{number}", priority=Priority.BATCH, arrival=number))
    late = NOW + AGEING_SECONDS
    lent = []
    for _ in range(30):
        head = queue.head(lane, late)
        assert head is not None
        queue.charge(head, 1.0, late)
        queue.remove(head.id)
        lent.append(head.id)

    assert [each for each in lent if each.startswith("b")] == ["b0", "b1", "b2"]
    assert [number for number, each in enumerate(lent) if each.startswith("b")] == [0, 10, 20]


def test_who_has_aged_does_not_wait_for_all_older_ones_of_the_better_class() -> None:
    queue, late = RequestQueue(limit=99), NOW + AGEING_SECONDS
    for number in range(30):
        enter_and_push(queue, ticket(f"n{number}", arrival=number, client=ClientId("greedy")))
    enter_and_push(queue, ticket("b", arrival=50, client=ClientId("modest"), priority=Priority.BATCH))

    head = queue.head(lane_of(ticket()), late)

    assert head is not None
    assert head.id == "b"


def test_what_others_do_with_another_model_does_not_pay_for_the_aged_of_this_one() -> None:
    queue, late = RequestQueue(limit=999), NOW + AGEING_SECONDS
    lane, other = lane_of(ticket()), lane_of(ticket(model="other"))
    for number in range(40):
        enter_and_push(queue, ticket(f"b{number}", arrival=number, priority=Priority.BATCH))
        enter_and_push(queue, ticket(f"i{number}", arrival=100 + number, priority=Priority.INTERACTIVE))
    for number in range(200):
        enter_and_push(queue, ticket(f"o{number}", arrival=200 + number, model="other"))
    lent = []
    for number in range(200):
        head = queue.head(other if number % 10 else lane, late)
        assert head is not None
        queue.charge(head, 1.0, late)
        queue.remove(head.id)
        lent += [] if number % 10 else [head.id]

    assert [each for each in lent if each.startswith("b")] == ["b0", "b1"]


def test_waiting_behind_ones_own_class_ages_nobody() -> None:
    queue = RequestQueue(limit=9)
    enter_and_push(queue, ticket("old", arrival=1, client=ClientId("greedy")))
    enter_and_push(queue, ticket("new", arrival=2, client=ClientId("modest")))
    queue.charge(ticket(client=ClientId("greedy")), 5.0, NOW)

    head = queue.head(lane_of(ticket()), NOW + 10 * AGEING_SECONDS)

    assert head is not None
    assert head.id == "new"


def test_a_ticket_is_removed_once() -> None:
    queue = RequestQueue(limit=9)
    queue.push(ticket("1"))

    assert [queue.remove(TicketId("1")), queue.remove(TicketId("1"))] == [True, False]
    assert TicketId("1") not in queue


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


def test_a_lane_whose_first_has_waited_for_long_goes_before_better_ones_but_not_often() -> None:
    """Lanes compete where an instance takes so many requests of all models together."""
    queue = RequestQueue(limit=99)
    for number in range(30):
        facts = {"arrival": 100 + number, "priority": Priority.INTERACTIVE, "model": "n"}
        enter_and_push(queue, ticket(f"i{number}", **facts))
        enter_and_push(queue, ticket(f"b{number}", priority=Priority.BATCH, arrival=number))
    late = NOW + AGEING_SECONDS
    lent = []
    for _ in range(30):
        _, _, lane = min(queue.heads(late))
        head = queue.head(lane, late)
        assert head is not None
        queue.charge(head, 1.0, late)
        queue.remove(head.id)
        lent.append(head.id)

    assert [number for number, each in enumerate(lent) if each.startswith("b")] == [0, 10, 20]
