"""What an answer's counters teach of its instance, and when they teach nothing."""

import pytest

from balancer.accounting.lessons import Lessons, work_of
from balancer.core.names import canonical_name
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.ticket import InstanceId, Lease, Outcome, Ticket, Verdict
from balancer.core.variant import Variant
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.rates import Work
from balancer.protocol.endings import Counters
from tests.unit.unit_support import OK, FakeClock, instance, ticket

M, N = canonical_name("m"), canonical_name("n")
LEFT = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=True)
REJECTED = Outcome(verdict=Verdict.NEUTRAL, kind="rejected")
WORK = Work(prompt_tokens=1000, prompt_seconds=1.0, output_tokens=50, output_seconds=1.0, left_over_seconds=0)


class Class:
    """Lessons on some instances, whose clock goes on by a second with each step."""

    def __init__(self, *instances: Instance) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet(instances, clock=self.clock)
        self.lessons = Lessons(self.clock)
        self.leases = 0

    def send(self, where: Instance, model: str = "m", asked: Ticket | None = None) -> Lease:
        self.clock.advance(1.0)
        self.leases += 1
        asked = asked or ticket(str(self.leases), model=model)
        lease = Lease(
            id=self.leases,
            ticket=asked,
            instance=where.id,
            url=where.spec.url,
            incarnation=where.incarnation,
            generation=0,
            reason="",
            leased_at=self.clock.now,
        )
        if asked.variant is not None:
            where.take_slot(asked.variant.model, self.clock.now)
        self.lessons.begin(lease, self.fleet.find(lease), streams=True)
        return lease

    def end(self, lease: Lease, work: Work | None = WORK, outcome: Outcome = OK) -> None:
        self.clock.advance(1.0)
        where, variant = self.fleet.get(lease.instance), lease.ticket.variant
        self.lessons.end(lease, outcome, work)
        if variant is not None:
            where.give_slot_back(variant.model, lease.leased_at, self.clock.now)


def operation(kind: Kind) -> Operation:
    return Operation(kind=kind, dialect=Dialect.OLLAMA, upstream_path="/")


def test_a_whole_answer_teaches_rates_and_lengths() -> None:
    a = instance("a")
    it = Class(a)
    it.end(it.send(a))
    rates = a.learned.rates(M)

    assert rates is not None
    assert rates.prefill_seconds(500) == pytest.approx(0.5)
    assert rates.token_seconds(1) == pytest.approx(0.02)
    assert a.learned.output_tokens(M) == pytest.approx(50)
    assert a.learned.remaining_tokens(M, 20) == pytest.approx(30, rel=0.4)
    assert a.learned.prefill_seconds(ticket(prompt_tokens=100)) == pytest.approx(0.1)


def test_what_one_instance_learned_the_others_know() -> None:
    a, b = instance("a"), instance("b")
    it = Class(a, b)
    it.end(it.send(a))

    assert b.learned.rates(M) is not None
    assert b.learned.output_tokens(M) == pytest.approx(50)

    it.fleet.replace([b])
    assert b.learned.rates(M) is None


@pytest.mark.parametrize("outcome", [LEFT, REJECTED])
def test_an_answer_that_is_not_whole_teaches_nothing(outcome: Outcome) -> None:
    a = instance("a")
    it = Class(a)
    it.end(it.send(a), None, outcome)

    assert a.learned.rates(M) is None


def test_an_answer_of_an_earlier_life_teaches_nothing() -> None:
    a = instance("a")
    it = Class(a)
    lease = it.send(a)
    a.incarnation += 1
    it.end(lease)

    assert a.learned.rates(M) is None
    it.end(it.send(a))
    assert a.learned.rates(M) is not None


def test_a_request_for_an_instance_that_went_down_in_the_same_moment_is_not_followed() -> None:
    a = instance("a")
    it = Class(a)
    lease = it.send(a)
    it.lessons.end(lease, OK, WORK)
    it.lessons.begin(lease, None, streams=True)
    it.lessons.answered(lease)
    it.lessons.end(lease, OK, WORK)

    rates = a.learned.rates(M)
    assert rates is not None
    assert rates.samples == 1


def test_what_needs_no_slot_teaches_nothing() -> None:
    a = instance("a")
    it = Class(a)
    lease = it.send(a, asked=ticket(model=None))
    it.end(lease)

    assert a.learned.rates(M) is None


def test_runners_beside_it_on_the_device_are_counted() -> None:
    a, b, c = instance("a", devices=("0", "1")), instance("b", devices=("1",)), instance("c", devices=("2",))
    it = Class(a, b, c)
    assert a.sharing(M) == 1
    for where in (a, b, c):
        it.send(where)
        it.send(where, "n")

    assert [each.sharing(M) for each in (a, b, c)] == [4, 4, 2]
    assert a.sharing(canonical_name("o")) == 5

    it.fleet.replace([a, c])
    assert a.sharing(M) == 2


def test_a_load_teaches_how_long_the_next_one_takes() -> None:
    a = instance("a", cold=True)
    it = Class(a)
    load = it.fleet.load_began(a, Variant(M), patience_seconds=60.0)
    it.clock.advance(7.0)
    it.fleet.loaded(a, load, OK)

    assert a.load_seconds(Variant(M)) == pytest.approx(7.0)


def test_a_load_that_failed_or_was_of_an_earlier_life_teaches_nothing() -> None:
    a = instance("a", cold=True)
    it = Class(a)
    for incarnation, outcome in ((0, LEFT), (1, OK)):
        load = it.fleet.load_began(a, Variant(M), patience_seconds=60.0)
        a.incarnation = incarnation
        it.clock.advance(7.0)
        it.fleet.loaded(a, load, outcome)
        it.fleet.load_ended(a, load, outcome)

    assert a.load_seconds(Variant(M)) == pytest.approx(1.5)


def test_a_cancelled_prompt_goes_on_for_a_batch_at_the_learned_rate() -> None:
    a = instance("a")
    it = Class(a)
    assert a.cooling_seconds(ticket()) == pytest.approx(0.25)

    it.end(it.send(a))

    assert a.cooling_seconds(ticket()) == pytest.approx(0.512)
    assert a.cooling_seconds(ticket(prompt_tokens=100)) == pytest.approx(0.1)
    small = Variant(M, (("num_batch", 64),))
    assert a.cooling_seconds(ticket(variant=small)) == pytest.approx(0.064)


def test_a_model_that_only_embeds_has_one_slot_whatever_is_configured() -> None:
    a = instance("a", slots=4)
    rows = [
        {"name": "m", "capabilities": ["embedding"]},
        {"name": "n", "capabilities": ["completion", "embedding"]},
    ]
    a.read_inventory(models=rows, runners=[], slots={}, at=1.0)

    assert [a.slots(Variant(each)) for each in (M, N)] == [1, 4]


def test_strangers_are_forgotten_when_lists_are_read_and_those_that_wait_are_told() -> None:
    a = instance("a", slots=4)
    it = Class(a)
    told: list[InstanceId] = []
    it.fleet.listen(on_change=lambda changed: told.append(changed.id))
    waited = Work(prompt_seconds=0.1, left_over_seconds=5.0)
    for _ in range(3):
        it.end(it.send(a), waited)
    assert (a.learned.shared, a.slots(Variant(M))) == (True, 3)

    for later, shared in ((59.0, True), (60.0, False)):
        at = it.clock.now + later
        it.fleet.inventory_read(a, models=None, runners=None, slots={}, at=at)
        assert a.learned.shared is shared

    assert told == ["a"]
    assert a.slots(Variant(M)) == 4


@pytest.mark.parametrize(("before", "shared"), [(LEFT, False), (REJECTED, True)])
def test_a_wait_behind_a_request_that_was_given_up_is_no_sign_of_strangers(
    before: Outcome, shared: bool
) -> None:
    a = instance("a")
    it = Class(a)
    for _ in range(5):
        it.end(it.send(a), None, before)
        it.end(it.send(a), Work(prompt_seconds=0.1, left_over_seconds=5.0))

    assert a.learned.shared is shared


def test_of_very_many_models_those_at_work_are_followed() -> None:
    a = instance("a")
    it = Class(a)
    held = it.send(a)
    for number in range(300):
        it.end(it.send(a, f"m{number}"))
    it.end(held)

    assert len(a.learned._runners) == 256
    assert a.learned.rates(M) is not None


def test_an_answer_without_durations_teaches_its_length_alone() -> None:
    a = instance("a")
    it = Class(a)
    work = work_of(operation(Kind.CHAT), Counters(prompt_tokens=100, generated_tokens=30), asked_tokens=200)
    it.end(it.send(a), work)

    assert a.learned.rates(M) is None
    assert a.learned.output_tokens(M) == pytest.approx(30)
    assert work.left_over_seconds is None


def test_what_is_left_over_is_in_no_part() -> None:
    counters = Counters(10, 5, 1.0, 0.5, 2.0, 5.0)

    assert work_of(operation(Kind.CHAT), counters, 7) == Work(
        prompt_tokens=10,
        prompt_seconds=0.5,
        output_tokens=5,
        output_seconds=2.0,
        left_over_seconds=1.5,
        asked_tokens=7,
    )


def test_an_embedding_has_no_parts_but_its_prompt() -> None:
    counters = Counters(prompt_tokens=10, load_seconds=1.0, total_seconds=3.0)

    assert work_of(operation(Kind.EMBED), counters, 0).prompt_seconds == pytest.approx(2.0)
    assert work_of(operation(Kind.EMBED), counters, 0).left_over_seconds is None
    assert work_of(operation(Kind.CHAT), counters, 0).prompt_seconds is None
