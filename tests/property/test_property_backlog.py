"""The backlog: its sums, and who is to go, are those that counting anew gives, whatever came and went."""

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.admission.backlog import CLASSES, Backlog, model_of
from balancer.admission.fair_shares import FairShares
from balancer.core.ticket import ClientId, Priority, Ticket
from tests.unit.unit_support import ticket

works = st.floats(0.0, 100.0)
steps = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from("mn"),
    st.sampled_from(CLASSES),
    st.sampled_from([1, 1, 2]),
    works,
    st.sampled_from(["add", "add", "remove", "reckon"]),
)


@settings(deadline=None)
@given(st.lists(steps, max_size=60))
def test_sums_and_the_dearest_are_those_of_what_waits(
    steps: list[tuple[str, str, Priority, int, float, str]],
) -> None:
    backlog = Backlog(FairShares())
    waiting: list[tuple[Ticket, float]] = []
    for number, (client, model, priority, attempt, work, what) in enumerate(steps):
        one = ticket(str(number), client=ClientId(client), model=model, priority=priority, attempt=attempt)
        if what == "add":
            backlog.add(one, work)
            waiting.append((one, work))
        elif what == "remove" and waiting:
            gone, _ = waiting.pop(number % len(waiting))
            backlog.remove(gone)
        elif what == "reckon":
            backlog.reckon(model_of(one), lambda _, work=work: work)
            waiting = [
                (each, work if model_of(each) == model_of(one) else before) for each, before in waiting
            ]
        _check(backlog, waiting)
    for each, _ in waiting:
        backlog.remove(each)
    assert (backlog.models(), backlog.by_class(), backlog._by_work) == ([], {}, {})


def _check(backlog: Backlog, waiting: list[tuple[Ticket, float]]) -> None:
    sums: dict[tuple[str, str, Priority], float] = {}
    for each, work in waiting:
        key = each.client, model_of(each), each.priority
        sums[key] = sums.get(key, 0.0) + work
    for (model, priority), work in backlog.by_class().items():
        told = sum(own for key, own in sums.items() if key[1:] == (model, priority))
        assert abs(work - told) < 1e-9 * (1 + told)
    first_tries = [each for each, _ in waiting if each.attempt == 1]
    loser = backlog.dearest()
    assert (loser is None) == (not first_tries)
    if loser is not None:
        worst = max(first_tries, key=lambda each: CLASSES.index(each.priority)).priority
        most = max(sums[each.client, model_of(each), worst] for each in first_tries if each.priority is worst)
        own = loser.client, model_of(loser), loser.priority
        assert loser.priority is worst
        assert abs(sums[own] - most) < 1e-9 * (1 + most)
        assert (
            loser is [each for each in first_tries if (each.client, model_of(each), each.priority) == own][-1]
        )
