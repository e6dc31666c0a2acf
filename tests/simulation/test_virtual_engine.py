"""What the engine must not get wrong: coarse clocks, processes that die or stop, clients that leave."""

import asyncio

import msgspec
import pytest

from balancer.control.prober import Prober
from balancer.core.ticket import Blame, Priority
from balancer.fleet.instance import Instance
from balancer.fleet.rates import RateBook
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.outcomes import Outcome
from balancer.simulator.virtual.run import serve
from balancer.simulator.virtual.work import Fault, FaultKind, Session, Turn
from tests.simulation.virtual_support import GIB, MODEL, rows, scenario, shapes, single_turns

STRATEGY = "least_connections"


@pytest.mark.parametrize("late", [1e4, 1e6, 1e7])
def test_work_ends_that_takes_less_than_a_step_of_the_clock(late: float) -> None:
    rates = ServiceRates(prefill_tokens_per_second=1e9, decode_tokens_per_second=1e8)
    asked = [(late + number * 0.37, 777, 55) for number in range(100)]

    run = serve(scenario(), shapes(0, rates=rates), single_turns(asked), strategy=STRATEGY, seed=1)

    assert [each.outcome for each in rows(run.outcomes)] == [Outcome.OK] * 100


def kill(at: float, seconds: float, instance: int = 0) -> Fault:
    return Fault(FaultKind.KILL, at=at, instance=instance, seconds=seconds)


def test_a_dead_process_holds_no_memory() -> None:
    """Two processes share a device; what one loads after the other has died fits beside nothing."""
    models = {"a:8b": 12 * GIB, "b:8b": 12 * GIB}
    asked = [
        *single_turns([(0.0, 100, 10)], model="a:8b"),
        *single_turns([(20.0, 1000, 100)], model="b:8b"),
    ]

    run = serve(
        scenario(models=models, warm=False, slots_known=False, slots=1),
        shapes(0, 0, models=models),
        asked,
        [kill(10.0, 1000.0, instance=1)],
        strategy=STRATEGY,
        seed=1,
    )

    first, second = rows(run.outcomes)
    assert (first.instance, second.instance) == (1, 0), "or the test shows nothing"
    assert second.total_seconds - second.queued_seconds == pytest.approx(2.0)


def test_what_died_with_its_process_is_not_unloaded_later() -> None:
    run = serve(
        scenario(keep_alive_seconds=30),
        shapes(0),
        single_turns([(1.0, 100, 10), (5.0, 100, 400), (60.0, 100, 10)]),
        [kill(6.0, 10.0)],
        strategy=STRATEGY,
        seed=1,
    )

    assert [each.outcome for each in rows(run.outcomes)] == [Outcome.OK, Outcome.FAILED, Outcome.OK]
    assert (run.facts.loads, run.facts.evictions) == (1, 0)


def test_a_fault_lasts_as_long_as_the_last_of_those_that_overlap() -> None:
    hang = [Fault(FaultKind.HANG, at=at, instance=0, seconds=3.0) for at in (1.0, 2.0)]

    run = serve(scenario(), shapes(0), single_turns([(1.5, 100, 10)]), hang, strategy=STRATEGY, seed=1)

    (only,) = rows(run.outcomes)
    assert only.arrived_at + only.total_seconds == pytest.approx(5.2)


def test_a_load_that_was_asked_of_a_stopped_process_is_given_up_with_it() -> None:
    """Else its instance loads nothing more until the longest time for a load is over."""
    models = {"a:8b": 4 * GIB, "b:8b": 4 * GIB}
    asked = [*single_turns([(10.0, 100, 10)], model="a:8b"), *single_turns([(120.0, 100, 10)], model="b:8b")]
    hang = [Fault(FaultKind.HANG, at=9.0, instance=0, seconds=60.0)]

    run = serve(
        scenario(models=models, warm=False), shapes(0, models=models), asked, hang, strategy=STRATEGY, seed=1
    )

    last = rows(run.outcomes)[-1]
    assert last.outcome == Outcome.OK
    assert last.total_seconds < 10


@pytest.mark.parametrize(
    ("patience", "cached"),
    [(3.5, 1000), (0.7, 400), (0.3, 0)],
    ids=["while it answers", "in the prompt", "in the first batch"],
)
def test_what_was_evaluated_for_a_client_that_left_stays_cached(patience: float, cached: int) -> None:
    """As `runner.SlotLease` leaves it, by whole segments and whole batches; a prompt of 1000 tokens."""
    system, asked, more = (1, 400), (2, 600), (3, 500)
    left = Turn((system, asked), 1000, patience_seconds=patience)
    told = (
        Session(1.0, "c", MODEL, Priority.NORMAL, 10, (left,)),
        Session(30.0, "c", MODEL, Priority.NORMAL, 20, (Turn((system, asked, more), 10),)),
    )

    run = serve(scenario(), shapes(0), told, strategy=STRATEGY, seed=1)

    first, second = rows(run.outcomes)
    assert first.outcome == Outcome.CANCELLED
    assert second.cached_tokens == cached


def test_the_time_of_a_prompt_ends_where_the_first_token_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the simulated server's counters, and the balancer learns from them."""
    told: list[tuple[int | None, float | None]] = []
    monkeypatch.setattr(
        RateBook,
        "learn",
        lambda _self, _url, _model, work, _company: told.append((work.prompt_tokens, work.prompt_seconds)),
    )

    serve(scenario(), shapes(0), single_turns([(1.0, 500, 10)]), strategy=STRATEGY, seed=1)

    ((tokens, seconds),) = told
    assert (tokens, seconds) == (500, pytest.approx(0.5))


def test_a_refused_request_is_judged_as_its_answer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger has had the model unloaded, so a request carries a load, and loads fail: that is the fault
    of the variant there, and no sign that the instance is broken."""
    told: list[tuple[str, Blame]] = []
    monkeypatch.setattr(
        Instance, "settle", lambda _self, _lease, outcome, _now: told.append((outcome.kind, outcome.blames))
    )
    models = {"a:8b": 12 * GIB, "b:8b": 12 * GIB}
    (stranger,) = single_turns([(5.0, 10, 1)], model="b:8b")
    (late,) = single_turns([(15.0, 100, 10)], model="a:8b")
    fails = [Fault(FaultKind.LOADS_FAIL, at=14.0, instance=0, seconds=20.0)]

    run = serve(
        scenario(models=models),
        shapes(0, models=models),
        [msgspec.structs.replace(stranger, foreign=0), late],
        fails,
        strategy=STRATEGY,
        seed=1,
    )

    assert [each.outcome for each in rows(run.outcomes)] == [Outcome.FAILED]
    assert told == [("oom", Blame.VARIANT)]


def test_the_lists_are_read_when_a_request_has_made_way_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `attempts` has them read: what was unloaded then is in no answer."""
    looked: list[float] = []
    monkeypatch.setattr(Prober, "look", lambda _self, _id: looked.append(asyncio.get_running_loop().time()))
    models = {"a:8b": 12 * GIB, "b:8b": 12 * GIB}
    (first,) = single_turns([(1.0, 100, 1000)], model="a:8b")
    (second,) = single_turns([(2.0, 100, 10)], model="b:8b")

    run = serve(scenario(models=models), shapes(0, models=models), [first, second], strategy=STRATEGY, seed=1)

    one, _ = rows(run.outcomes)
    assert any(each == pytest.approx(one.arrived_at + one.total_seconds + 0.3) for each in looked)
