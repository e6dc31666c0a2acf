"""How long answers take to begin: what is slow is told by those of the same sort, and memory is bounded."""

import pytest

from balancer.accounting.first_bytes import FEWEST, FirstBytes, Sort, sort_of
from balancer.core.names import canonical_name
from balancer.core.operation import Dialect, Kind, Operation
from tests.unit.unit_support import ticket

M: Sort = (canonical_name("m"), True, False, 3)


def learned(*seconds: float, sort: Sort = M) -> FirstBytes:
    it = FirstBytes()
    for each in seconds:
        it.learn(sort, each)
    return it


def test_few_answers_say_nothing() -> None:
    assert learned(*[1.0] * (FEWEST - 1)).slow_after(M) is None
    assert learned(*[1.0] * FEWEST).slow_after(M) == 2.0
    assert FirstBytes().slow_after(M) is None


def test_slow_is_longer_than_nearly_all_and_than_twice_the_median() -> None:
    assert learned(*[1.0] * 95, *[7.0] * 5).slow_after(M) == 7.0
    assert learned(*[1.0] * 96, *[7.0] * 4).slow_after(M) == 2.0
    assert learned(*[1.0] * 49, *[3.0] * 51).slow_after(M) == 6.0


def test_the_newest_count() -> None:
    it = learned(*[9.0] * 100)
    for _ in range(100):
        it.learn(M, 1.0)

    assert it.slow_after(M) == 2.0


def test_sorts_are_apart_and_those_not_asked_for_are_forgotten() -> None:
    it = learned(*[1.0] * FEWEST)
    others: list[Sort] = [(canonical_name(f"n{number}"), True, False, 3) for number in range(511)]
    for each in others:
        it.learn(each, 1.0)
    assert it.slow_after(M) == 2.0

    it.learn(M, 1.0)  # asked for last, so that it outlives the others
    it.learn((canonical_name("o"), True, False, 3), 1.0)
    for _ in range(FEWEST):
        it.learn(others[1], 1.0)

    assert it.slow_after(M) == 2.0
    assert len(it._seconds) == 512
    assert others[0] not in it._seconds


def asked(kind: Kind = Kind.EMBED, *, stream: bool = False, tokens: int = 100, model: str = "m") -> Sort:
    operation = Operation(kind=kind, dialect=Dialect.OLLAMA, upstream_path="/", stream=stream)
    return sort_of(operation, ticket("t", model=model, prompt_tokens=tokens))


@pytest.mark.parametrize(
    "other",
    [asked(Kind.CHAT), asked(stream=True), asked(tokens=1000), asked(model="n")],
    ids=["generation", "stream", "longer prompt", "model"],
)
def test_what_is_another_sort(other: Sort) -> None:
    assert other != asked()
    assert asked(Kind.CHAT) == asked(Kind.GENERATE)
    assert asked(tokens=100) == asked(tokens=120)
