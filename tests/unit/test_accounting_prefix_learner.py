"""How the prefix index is kept true: what it learns, and when it forgets."""

from collections.abc import Callable
from typing import Any

import pytest

from balancer.accounting.prefix_learner import PrefixLearner
from balancer.core.ticket import InstanceId, Outcome, Ticket, Verdict
from balancer.core.variant import Variant
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.rates import Work
from balancer.protocol.endings import Counters
from balancer.scheduling.prefix_index import PrefixIndex
from tests.unit.unit_support import OK, FakeClock, instance, ticket

A = InstanceId("a")
PREFIX = ((1, 400), (2, 1000))
LONGER = (*PREFIX, (3, 1500), (4, 2000))


class House:
    """Instances a and b, an index and who keeps it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet([instance("a"), instance("b")], clock=self.clock)
        self.index = PrefixIndex(limit_bytes=2**20)
        self.learner = PrefixLearner(index=self.index, fleet=self.fleet)

    @property
    def a(self) -> Instance:
        return self.fleet.get(A)

    def list_runners(self, **row: Any) -> None:
        self.clock.advance(1.0)
        self.fleet.inventory_read(
            self.a, models=None, runners=[{"name": "m", **row}], slots={}, at=self.clock.now
        )

    def ended(
        self,
        asked: Ticket,
        *,
        believed: float = 0.0,
        seconds: float | None = None,
        loaded: bool = False,
        kept: bool = True,
        tokens: int = 500,
        answer: int | None = 10,
    ) -> float | None:
        counters = Counters(prompt_tokens=tokens, generated_tokens=answer, prompt_seconds=seconds)
        return self.learner.ended(asked, A, counters, believed_share=believed, loaded=loaded, kept=kept)


@pytest.fixture
def house() -> House:
    made = House()
    made.learner.leased(asking(), A)
    made.learner.began(asking(), A)
    return made


def asking(prefix: tuple[tuple[int, int], ...] = PREFIX, **facts: Any) -> Ticket:
    return ticket(prefix=prefix, prompt_tokens=prefix[-1][1] if prefix else 7, **facts)


def test_a_prompt_is_remembered_from_the_first_byte_of_its_answer(house: House) -> None:
    assert house.learner.leased(asking(LONGER), A) == 0.5
    assert house.learner.leased(asking(), A) == 1.0
    assert house.learner.leased(asking(), InstanceId("b")) == 0.0


@pytest.mark.parametrize(
    "asked",
    [asking(()), asking(model=None), asking(model="m:cloud")],
    ids=["no marks", "no model", "in the cloud"],
)
def test_what_no_runner_caches_is_not_looked_up(house: House, asked: Ticket) -> None:
    house.learner.began(asked, A)

    assert house.learner.leased(asked, A) is None
    assert house.ended(asked, seconds=1.0) is None
    assert house.index.cached_tokens_everywhere(Variant("m:cloud"), PREFIX) == {}


def test_an_answer_is_remembered_in_the_units_of_its_prompt(house: House) -> None:
    """500 tokens of the instance's are 1000 estimated ones here."""
    house.ended(asking(), answer=100)

    assert house.learner.leased(asking(LONGER), A) == 0.6


def test_an_answer_that_counts_nothing_leaves_its_prompt_remembered(house: House) -> None:
    assert house.ended(asking(), answer=None) is None
    assert house.learner.leased(asking(), A) == 1.0


def down(house: House) -> None:
    house.fleet.failed(house.a, "refused", refused=True, incarnation=house.a.incarnation)


def restarted(house: House) -> None:
    down(house)
    for _ in range(2):
        house.fleet.probe_succeeded(house.a, version="1", incarnation=house.a.incarnation)
    house.list_runners()


def unloaded(house: House) -> None:
    house.fleet.unloaded(house.a, Variant("m:latest").model)
    house.fleet.drain(house.a, drained=False)  # any change


def loaded_anew(house: House) -> None:
    wide = Variant("m:latest", (("num_gpu", 1),))
    load = house.fleet.load_began(house.a, wide, patience_seconds=60.0)
    house.fleet.loaded(house.a, load, OK)
    house.fleet.load_ended(house.a, load, OK)


def listed_no_more(house: House) -> None:
    house.clock.advance(1.0)
    house.fleet.inventory_read(house.a, models=None, runners=[], slots={}, at=house.clock.now)


def listed_with_another_context(house: House) -> None:
    house.list_runners(context_length=4096)


def removed(house: House) -> None:
    house.fleet.replace([house.fleet.get(InstanceId("b"))])


def replaced(house: House) -> None:
    house.fleet.replace([instance("a"), house.fleet.get(InstanceId("b"))])


@pytest.mark.parametrize(
    "happens",
    [
        *(down, restarted, unloaded, loaded_anew, listed_no_more, listed_with_another_context),
        *(removed, replaced),
    ],
)
def test_what_a_runner_had_is_forgotten_with_it(house: House, happens: Callable[[House], None]) -> None:
    house.learner.began(asking(), InstanceId("b"))

    happens(house)

    assert house.index.cached_tokens_everywhere(Variant("m:latest"), PREFIX) == {"b": 1000}


def test_what_changes_no_runner_forgets_nothing(house: House) -> None:
    house.list_runners()
    house.list_runners(expires_at="later")
    house.fleet.drain(house.a, drained=True)
    load = house.fleet.load_began(house.a, Variant("n:latest"), patience_seconds=60.0)
    failed = Outcome(verdict=Verdict.FAILURE, kind="load", error="killed")
    house.fleet.load_ended(house.a, load, failed)
    house.fleet.replace(house.fleet.instances())

    assert house.learner.leased(asking(), A) == 1.0


def test_an_unload_that_nobody_told_of_is_noticed_with_the_next_lease(house: House) -> None:
    house.fleet.unloaded(house.a, Variant("m:latest").model)

    assert house.learner.leased(asking(), A) == 0.0


def test_a_load_for_an_answer_leaves_nothing_but_that(house: House) -> None:
    other = asking(((7, 500),))

    assert house.ended(other, seconds=1.0, loaded=True) is None
    assert house.learner.leased(asking(), A) == 0.0
    assert house.learner.leased(other, A) == 1.0


def test_a_model_that_leaves_memory_with_its_answer_leaves_nothing(house: House) -> None:
    house.ended(asking(), kept=False)

    assert house.index.bytes == 0


def measure(house: House, *, tokens_per_second: float) -> None:
    model = Variant("m:latest").model
    course = house.a.learned.begin(model, 0.0, streams=False, sharing=1)
    house.a.learned.learn(
        model,
        course,
        Work(prompt_tokens=1000, prompt_seconds=1000 / tokens_per_second),
        1.0,
        left=False,
        sharing=1,
        told=1,
        generation=1,
    )


def test_what_was_cached_is_inferred_from_how_long_the_evaluation_took(house: House) -> None:
    """500 tokens at 100 a second would take 5 s."""
    assert house.ended(asking(), seconds=1.0) is None, "no rate is known"
    measure(house, tokens_per_second=100.0)

    assert house.ended(asking(), seconds=1.0) == pytest.approx(0.8)
    assert house.ended(asking(), seconds=5.0) == pytest.approx(0.0)
    assert house.ended(asking(), seconds=10.0) == pytest.approx(-1.0)
    assert house.ended(asking(), seconds=None) is None
    assert house.ended(asking(), tokens=127, seconds=0.1) is None, "too short to tell"


def test_wrong_beliefs_lower_what_is_believed(house: House) -> None:
    measure(house, tokens_per_second=100.0)

    for _ in range(2):
        house.ended(asking(), believed=1.0, seconds=5.0)
    assert house.index.cached_tokens(A, Variant("m:latest"), PREFIX) == 800
    for _ in range(20):
        house.ended(asking(), believed=1.0, seconds=0.1)
    assert house.index.cached_tokens(A, Variant("m:latest"), PREFIX) > 990


def test_an_instance_that_is_gone_teaches_nothing(house: House) -> None:
    removed(house)

    house.learner.began(asking(), A)

    assert house.learner.leased(asking(), A) is None
    assert house.ended(asking(), seconds=1.0) is None
    assert house.index.bytes == 0
