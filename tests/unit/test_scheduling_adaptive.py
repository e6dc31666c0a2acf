"""`adaptive`: what a candidate costs, who of those that wait goes first, and when waiting is better."""

import math
from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.names import ModelName
from balancer.core.rates import Rates
from balancer.core.ticket import ClientId, InstanceId, Prefix, Ticket
from balancer.core.variant import Variant
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.scheduler import Scheduler
from tests.unit.unit_support import FakeFleet, FakeView, seen, ticket, view

NOW = 1000.0
RATES = Rates(prefill_tokens_per_second=1000.0, decode_tokens_per_second=100.0, slowdown=0.1)


class Cached:
    """An index that believes what it is told."""

    def __init__(self, **tokens: int) -> None:
        self.tokens = {InstanceId(name): count for name, count in tokens.items()}

    def cached_tokens_everywhere(self, variant: Variant, prefix: Prefix) -> Mapping[InstanceId, int]:
        return self.tokens if prefix else {}


class Known:
    """What answers have taught."""

    def __init__(self, rates: Rates | None = RATES, tokens: float | None = 100.0) -> None:
        self._rates, self._tokens = rates, tokens

    def rates(self, model: ModelName) -> Rates | None:
        return self._rates

    def output_tokens(self, model: ModelName) -> float | None:
        return self._tokens

    def remaining_tokens(self, model: ModelName, emitted: float) -> float | None:
        return self._tokens


def there(name: str, *, known: Known | None = None, **facts: Any) -> FakeView:
    made = view(name, **facts)
    made.learned = known or Known()  # type: ignore[assignment]  # as far as a strategy sees it
    return made


def asking(name: str = "t", tokens: int = 1000, **facts: Any) -> Ticket:
    return ticket(name, prompt_tokens=tokens, prefix=((1, tokens),), **facts)


def costs(it: Adaptive, asked: Ticket, *views: FakeView) -> list[float]:
    return [sum(terms.values()) for terms in it.score(asked, seen(views, asked))]


def test_a_cost_is_told_in_seconds_term_by_term() -> None:
    busy = there("a", running=2, others_at_work=1, health_score=math.exp(-1))

    (terms,) = Adaptive(Cached(a=400)).score(asking(), seen([busy]))

    assert terms == pytest.approx(
        {
            "load": 0.0,
            "prefill": 2 * 0.6,
            "stall": 0.5 * 2 * 1.2,
            "slowdown": 0.25 * 100 * (2 * 1.2 / 100 - 1 / 100),
            "risk": 0.5,
        }
    )


def test_it_goes_where_most_of_the_prompt_is_cached_unless_too_much_runs_there() -> None:
    it = Adaptive(Cached(a=900))

    cached, free = costs(it, asking(), there("a", running=1), there("b"))
    assert cached < free
    cached, free = costs(it, asking(), there("a", running=30), there("b"))
    assert cached > free


def test_what_is_cached_counts_for_nothing_where_the_variant_must_be_loaded() -> None:
    (terms,) = Adaptive(Cached(a=900)).score(asking(), seen([there("a", resident=False, load=7.0)]))

    assert (terms["load"], terms["prefill"]) == (7.0, 1.0)


def test_before_anything_was_measured_new_tokens_by_batch_stand_in() -> None:
    new = Known(rates=None)
    it = Adaptive(Cached(a=500))

    one, two = it.score(asking(), seen([there("a", known=new, running=3), there("b", known=new)]))

    assert one == {"load": 0.0, "new_tokens_by_batch": 564 * 4 / 2000, "risk": 0.0}
    assert two == {"load": 0.0, "new_tokens_by_batch": 1064 / 2000, "risk": 0.0}


def test_what_needs_no_slot_goes_where_least_runs() -> None:
    assert costs(Adaptive(Cached()), ticket(model=None), there("a", running=2), there("b")) == [2.0, 0.0]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 2000), st.floats(0, 1), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_costs_are_of_each_candidate_alone_and_never_below_zero(
    facts: list[tuple[int, bool, int, float, bool]], chance: Random
) -> None:
    views = [
        there(str(n), running=r, resident=warm, health_score=h, known=None if known else Known(rates=None))
        for n, (r, warm, _, h, known) in enumerate(facts)
    ]
    it = Adaptive(Cached(**{str(n): tokens for n, (_, _, tokens, _, _) in enumerate(facts)}))
    expected = dict(zip(views, costs(it, asking(), *views), strict=True))
    chance.shuffle(views)

    assert [expected[each] for each in views] == costs(it, asking(), *views)
    assert all(0 <= cost < math.inf for cost in expected.values())


def test_who_costs_least_goes_first_until_another_of_the_client_came_long_before() -> None:
    it, free = Adaptive(Cached()), [there("a")]
    long, short = asking("long", 3000, queued_at=NOW), asking("short", 100, queued_at=NOW)
    late, others = asking("late", 100, queued_at=NOW + 60), asking("others", 100, queued_at=NOW + 60)
    others = msgspec.structs.replace(others, client=ClientId("another"))

    def order(*asked: Ticket) -> list[str]:
        scored = [(each, it.score(each, seen(free))) for each in asked]
        return [each.id for _, (each, _) in it.order(scored)]

    assert order(long, short) == ["short", "long"]
    assert order(long, late) == ["long", "late"]
    assert order(long, others) == ["others", "long"]


def waits(it: Adaptive, asked: Ticket, chosen: FakeView, *busy: FakeView, now: float = NOW) -> float | None:
    (cost,) = costs(it, asked, chosen)
    wait = it.waits_until(asked, chosen, cost, busy, now)
    assert wait is None or wait.instead_of == chosen.id
    return None if wait is None else wait.until


def test_it_waits_for_a_slot_where_its_prompt_is_cached_for_as_long_as_that_is_worth() -> None:
    it = Adaptive(Cached(b=1500))
    asked, free, busy = asking(tokens=2000), there("a"), there("b", running=4)

    assert waits(it, asked, free, busy) == NOW + 1.5
    assert waits(it, asked, free, busy, now=NOW + 1.5) is None
    assert waits(Adaptive(Cached(b=50)), asked, free, busy) is None
    assert waits(Adaptive(Cached(a=1500, b=1500)), asked, free, busy) is None
    assert waits(Adaptive(Cached(b=9000)), asking(tokens=9000), free, busy) == NOW + 2.0


def test_it_does_not_wait_where_slots_come_back_too_late_or_nothing_is_known() -> None:
    it, asked, free = Adaptive(Cached(b=1500)), asking(tokens=2000), there("a")

    assert waits(it, asked, free, there("b", running=1, known=Known(tokens=5000.0))) is None
    assert waits(it, asked, there("a", known=Known(rates=None)), there("b", running=4)) is None
    assert waits(it, asked, free, there("b", running=4, known=Known(rates=None))) is None
    assert waits(it, asked, free, there("b", running=4, resident=False)) is None


def test_it_waits_for_a_slot_where_the_model_is_before_it_is_loaded_once_more() -> None:
    it, asked, busy = Adaptive(Cached()), asking(), there("b", running=4)
    cold = there("a", resident=False, load=6.0)

    assert waits(it, asked, cold, busy) == NOW + 48.0
    assert waits(it, asked, cold, busy, now=NOW + 48.0) is None
    unused = there("a", resident=False, load=6.0, spared=NOW)
    assert waits(it, asked, unused, busy) == NOW + 1.5
    assert waits(it, asked, cold, there("b", running=4, resident=False)) is None


def decide(
    it: Adaptive, *views: FakeView, behind: tuple[Ticket, ...] = (), asked: Ticket | None = None
) -> Any:
    scheduler = Scheduler(FakeFleet(views), strategy="x", random=Random(1), shelf={"x": lambda _: it})
    return scheduler.decide(asked or asking(), NOW, behind=behind)


def test_a_decision_may_be_to_wait_and_says_until_when() -> None:
    free, busy = there("a"), there("b", running=4, free=False)

    decision = decide(Adaptive(Cached(b=1500)), free, busy, asked=asking(tokens=2000))

    assert (decision.standing, decision.picked, decision.by_choice) == ("busy", None, True)
    assert decision.next_wake_at == NOW + 1.5


def test_another_may_take_what_the_first_leaves() -> None:
    free, busy = there("a"), there("b", running=4, free=False)
    other = ticket("other", prompt_tokens=4000)

    decision = decide(Adaptive(Cached(b=1500)), free, busy, asked=asking(tokens=2000), behind=(other,))

    assert (decision.ticket.id, decision.picked) == ("other", "a")


def test_a_slot_goes_to_who_makes_most_of_it() -> None:
    cached = asking("cached", 2000)
    plain = ticket("plain", prompt_tokens=2000)

    decision = decide(Adaptive(Cached(a=1900)), there("a"), asked=plain, behind=(cached,))

    assert (decision.ticket.id, decision.picked) == ("cached", "a")


def test_almost_equal_costs_are_left_to_chance_and_others_are_not() -> None:
    it = Adaptive(Cached())
    views = [there("a"), there("b", health_score=0.98), there("c", running=3)]
    scheduler = Scheduler(FakeFleet(views), strategy="x", random=Random(1), shelf={"x": lambda _: it})

    assert {scheduler.decide(asking(), NOW).picked for _ in range(50)} == {"a", "b"}


def test_one_decision_scores_a_bounded_number_of_pairs() -> None:
    scored = 0

    class Counting(Adaptive):
        def score(self, ticket: Ticket, candidates: Any) -> Any:
            nonlocal scored
            scored += len(candidates)
            return super().score(ticket, candidates)

    behind = tuple(asking(str(number)) for number in range(7))
    decide(Counting(Cached()), *(there(str(number)) for number in range(64)), behind=behind)

    assert scored <= 256 + 64
