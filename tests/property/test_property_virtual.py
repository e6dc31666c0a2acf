"""Whatever is asked and whatever goes wrong in virtual time, every request has one outcome, nothing is used
that is not there, and the same seed gives the same run."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.core.ticket import Priority
from balancer.settings.scenario import ScenarioNoise
from balancer.simulator.virtual.outcomes import Outcome, Outcomes
from balancer.simulator.virtual.run import Run, serve
from balancer.simulator.virtual.shelf import IMMEDIATE, strategy_names
from balancer.simulator.virtual.work import Fault, FaultKind, Session, Turn
from tests.simulation.virtual_support import GIB, rows, scenario, shapes

MODELS = {"a:8b": 5 * GIB, "b:8b": 5 * GIB, "c:30b": 17 * GIB}
_SPAN_SECONDS = 120.0


def sessions(chance: Random, count: int, instances: int) -> list[Session]:
    """Some of everything: turns, embeddings, clients that leave, strangers, options of their own."""
    starts = sorted(chance.uniform(0, _SPAN_SECONDS) for _ in range(count))
    made = []
    for number, at in enumerate(starts):
        marks = number * 1000
        turns = tuple(
            Turn(
                segments=((marks + 2 * turn, chance.randint(1, 800)),),
                output_tokens=chance.randint(1, 200),
                think_seconds=chance.uniform(0, 5) if turn else 0.0,
                patience_seconds=chance.choice((None, None, chance.uniform(0.01, 20))),
            )
            for turn in range(chance.randint(1, 3))
        )
        made.append(
            Session(
                starts_at=at,
                client=f"c{chance.randrange(3)}",
                model=chance.choice(list(MODELS)),
                priority=chance.choice(list(Priority)),
                answer_id=marks + 500,
                turns=turns,
                num_ctx=chance.choice((None, None, None, 2048)),
                foreign=chance.choice((None, None, None, chance.randrange(instances))),
            )
        )
    return made


def faults(chance: Random, instances: int) -> list[Fault]:
    return [
        Fault(
            kind=chance.choice(list(FaultKind)),
            at=chance.uniform(0, _SPAN_SECONDS),
            instance=chance.randrange(instances),
            seconds=chance.uniform(1, 60),
        )
        for _ in range(chance.randrange(4))
    ]


def drawn(seed: int, strategy: str, devices: tuple[int, ...]) -> tuple[Run, list[Session]]:
    chance = Random(seed)
    asked = sessions(chance, 25, len(devices))
    run = serve(
        scenario(
            models=MODELS,
            noise=ScenarioNoise(),
            slots=2,
            slots_known=chance.random() < 0.7,
            warm=chance.random() < 0.5,
            context_length=4096,
        ),
        shapes(*devices, models=MODELS),
        asked,
        faults(chance, len(devices)),
        strategy=strategy,
        seed=seed,
    )
    return run, asked


def columns(outcomes: Outcomes) -> list[str]:
    return [repr(list(column)) for column in outcomes.columns.values()]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(strategy_names()),
    devices=st.sampled_from(((0,), (0, 1), (0, 0), (0, 0, 1))),
)
def test_every_request_has_one_outcome_and_nothing_leaks(
    seed: int, strategy: str, devices: tuple[int, ...]
) -> None:
    run, asked = drawn(seed, strategy, devices)

    own = [each for each in asked if each.foreign is None]
    assert len(run.outcomes) == sum(len(each.turns) for each in own)
    assert run.facts.slots_out == 0
    assert all(busy <= run.facts.virtual_seconds for busy in run.facts.busy_seconds)
    assert 0 <= run.facts.wasted_load_seconds <= run.facts.load_seconds
    for each in rows(run.outcomes):
        answered = each.outcome == Outcome.OK
        assert 0 <= each.queued_seconds <= each.total_seconds + 1e-6
        assert 0 <= each.load_seconds <= each.queued_seconds + 1e-6
        assert 0 <= each.cached_tokens < each.prompt_tokens
        assert each.cached_tokens <= each.shared_tokens <= each.prompt_tokens
        assert each.attempts >= answered
        assert (each.ttft_seconds == each.ttft_seconds) == answered, "not a number without an answer"
        assert not answered or 0 < each.ttft_seconds <= each.total_seconds + 1e-6


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), immediate=st.booleans())
def test_the_same_seed_gives_the_same_run(seed: int, immediate: bool) -> None:
    strategy = "power_of_two" + (IMMEDIATE if immediate else "")
    first, second = (drawn(seed, strategy, (0, 0, 1))[0] for _ in range(2))

    assert columns(first.outcomes) == columns(second.outcomes)
