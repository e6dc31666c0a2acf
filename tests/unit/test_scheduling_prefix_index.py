"""The prefix index: what a runner is believed to have cached, for how long, and how it is corrected."""

import tracemalloc
from random import Random

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId, Prefix
from balancer.core.variant import Variant
from balancer.scheduling.prefix_index import RUNNER_MARKS, RUNNER_TOKENS, PrefixIndex

A, B, C = (InstanceId(name) for name in "abc")
M, N = (Variant(canonical_name(name)) for name in "mn")
WIDE = Variant(M.model, (("num_ctx", 8192),))
MIB = 2**20


def chain(*marks: int, after: Prefix = (), tokens: int = 100) -> Prefix:
    """A prompt that goes on with these marks, one each so many tokens."""
    before = after[-1][1] if after else 0
    return (*after, *((mark, before + tokens * place) for place, mark in enumerate(marks, start=1)))


def index(limit_bytes: int = MIB) -> PrefixIndex:
    return PrefixIndex(limit_bytes=limit_bytes)


SYSTEM = chain(1, 2)
ONE = chain(3, 4, after=SYSTEM)
OTHER = chain(5, after=SYSTEM)


def test_a_prompt_is_cached_as_far_as_an_earlier_one_was_the_same() -> None:
    known = index()
    known.remember(A, M, ONE)

    assert known.cached_tokens(A, M, ONE) == 400
    assert known.cached_tokens(A, M, chain(9, after=ONE)) == 400
    assert known.cached_tokens(A, M, OTHER) == 200
    assert known.cached_tokens(A, M, ()) == 0


def test_what_one_runner_has_no_other_has() -> None:
    known = index()
    known.remember(A, M, ONE)

    assert known.cached_tokens(B, M, ONE) == 0
    assert known.cached_tokens(A, N, ONE) == 0
    assert known.cached_tokens_everywhere(N, ONE) == {}


def test_a_runner_serves_all_variants_that_it_matches() -> None:
    """Those that it does not match are loaded anew, which is told by `forget`."""
    known = index()
    known.remember(A, M, ONE)

    assert known.cached_tokens(A, WIDE, ONE) == 400


def test_all_instances_are_looked_up_at_once() -> None:
    known = index()
    known.remember(A, M, ONE)
    known.remember(B, M, OTHER)
    known.remember(C, M, chain(7, 8))

    assert known.cached_tokens_everywhere(M, ONE) == {A: 400, B: 200}
    assert known.cached_tokens_everywhere(M, chain(9, after=OTHER)) == {A: 200, B: 300}
    assert known.cached_tokens_everywhere(M, chain(7)) == {C: 100}
    assert known.cached_tokens_everywhere(M, ()) == {}


def test_hundreds_of_instances_are_kept_apart() -> None:
    known = index(64 * MIB)
    names = [InstanceId(f"i{number}") for number in range(300)]
    for number, name in enumerate(names):
        known.remember(name, M, chain(1000 + number, after=SYSTEM))

    assert dict.fromkeys(names, 200) | {names[7]: 300} == known.cached_tokens_everywhere(
        M, chain(1007, after=SYSTEM)
    )


def test_an_answer_is_cached_behind_its_prompt() -> None:
    known = index()
    known.remember(A, M, ONE, answer_tokens=50)

    assert known.cached_tokens(A, M, chain(9, 10, after=ONE)) == 450
    assert known.cached_tokens_everywhere(M, chain(9, 10, after=ONE)) == {A: 450}
    assert known.cached_tokens(A, M, ONE) == 400, "no more than there is to evaluate"
    assert known.cached_tokens(A, M, chain(9, after=ONE, tokens=10)) == 410
    assert known.cached_tokens(A, M, OTHER) == 200


def test_a_prompt_stands_in_for_those_that_it_goes_on_with() -> None:
    """As a runner keeps one sequence for a conversation, and not one for each turn."""
    known = index()
    prompt: Prefix = ()
    for turn in range(2000):
        prompt = chain(10 + turn, after=prompt[:200], tokens=1)
        known.remember(A, M, prompt)
    taken = known.bytes

    known.remember(A, M, prompt)

    assert taken == known.bytes


def test_the_prompt_used_longest_ago_leaves_first() -> None:
    known = index()
    size = RUNNER_TOKENS // 4
    prompts = [chain(10 * number, 10 * number + 1, tokens=size // 2) for number in range(1, 6)]
    for prompt in prompts[:4]:
        known.remember(A, M, prompt)
    known.remember(A, M, prompts[0])

    known.remember(A, M, prompts[4])

    held = [known.cached_tokens(A, M, each) > 0 for each in prompts]
    assert held == [True, False, True, True, True]


def test_one_prompt_is_kept_however_long_it_is() -> None:
    known = index()
    known.remember(A, M, chain(1, 2, tokens=RUNNER_TOKENS))

    assert known.cached_tokens(A, M, chain(1, 2, tokens=RUNNER_TOKENS)) == 2 * RUNNER_TOKENS


def test_the_marks_of_a_runner_are_bounded() -> None:
    known = index(64 * MIB)
    for number in range(RUNNER_MARKS // 200 + 1):
        known.remember(A, M, chain(*range(1000 * number, 1000 * number + 200), tokens=1))

    assert known.cached_tokens(A, M, chain(*range(200), tokens=1)) == 0
    assert known.cached_tokens(A, M, chain(*range(1000, 1200), tokens=1)) == 200


def test_a_beginning_is_found_behind_marks_that_others_lack() -> None:
    """At the ends of its last messages a prompt has marks of its own."""
    known = index()
    known.remember(A, M, chain(50, after=SYSTEM))
    own = tuple((100 + place, 10 + place) for place in range(9))

    asked = (*own, *chain(50, after=SYSTEM))

    assert known.cached_tokens(A, M, asked) == 300
    assert known.cached_tokens_everywhere(M, asked) == {A: 300}


def test_a_shared_beginning_stays_while_any_prompt_has_it() -> None:
    known = index()
    half = RUNNER_TOKENS // 2
    known.remember(A, M, chain(3, after=SYSTEM, tokens=half))
    known.remember(A, M, chain(4, after=SYSTEM, tokens=half))

    assert known.cached_tokens(A, M, chain(3, after=SYSTEM)) == 200
    assert 200 + half == known.cached_tokens(A, M, chain(4, after=SYSTEM, tokens=half))


def test_who_takes_most_gives_way_where_memory_ends() -> None:
    known = index(MIB)
    known.remember(B, N, ONE)
    for number in range(1000):
        known.remember(A, M, chain(*range(100 * number, 100 * number + 20), tokens=1))
        assert known.bytes <= MIB

    assert known.cached_tokens(B, N, ONE) == 400
    assert known.cached_tokens(A, M, chain(*range(99_900, 99_920), tokens=1)) == 20
    assert known.cached_tokens(A, M, chain(*range(20), tokens=1)) == 0


def test_a_smaller_limit_holds_at_once_and_none_remembers_nothing() -> None:
    known = index(MIB)
    for number in range(200):
        known.remember(A, M, chain(*range(100 * number, 100 * number + 20), tokens=1))

    known.limit_bytes = 20_000
    assert 0 < known.bytes <= 20_000
    known.limit_bytes = 0
    known.remember(A, M, ONE)

    assert known.bytes == 0
    assert known.cached_tokens_everywhere(M, ONE) == {}


@pytest.mark.parametrize(("shared", "own"), [(0, 8), (20, 20), (40, 4), (0, 240)])
@pytest.mark.parametrize("prompts", [30, 170, 700])
def test_the_bytes_told_are_those_that_it_takes(shared: int, own: int, prompts: int) -> None:
    """Dicts grow by doubling, so that it is not told to the byte."""
    draw = Random(7).getrandbits
    tracemalloc.start()
    try:
        known = index(64 * MIB)
        before, _ = tracemalloc.get_traced_memory()
        base = chain(*(draw(64) for _ in range(shared)))
        for number in range(prompts):
            known.remember(
                InstanceId(f"i{number % 5}"), M, chain(*(draw(64) for _ in range(own)), after=base)
            )
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 0.5 < known.bytes / (after - before) < 2


def test_what_a_runner_had_goes_with_it() -> None:
    known = index()
    for variant in (M, N):
        known.remember(A, variant, ONE)
        known.remember(B, variant, ONE)

    known.forget(A, M.model)
    assert known.cached_tokens_everywhere(M, ONE) == {B: 400}
    assert known.cached_tokens_everywhere(N, ONE) == {A: 400, B: 400}
    assert [N.model] == known.models_at(A)
    known.forget(A)
    assert known.cached_tokens_everywhere(N, ONE) == {B: 400}
    assert known.instances() == [B]
    known.forget(B)
    known.forget(B)
    assert known.bytes == 0
    assert known.instances() == []


def test_the_place_of_an_instance_that_is_gone_is_taken_by_none_of_its_prompts() -> None:
    known = index()
    known.remember(A, M, ONE)
    known.forget(A)
    known.remember(B, M, OTHER)

    assert known.cached_tokens_everywhere(M, OTHER) == {B: 300}
    assert known.cached_tokens_everywhere(M, ONE) == {B: 200}


def correct(known: PrefixIndex, *, believed: float = 0.9, inferred: float) -> None:
    known.correct(A, M, prompt_tokens=1000, believed_tokens=believed * 1000, inferred_tokens=inferred * 1000)


def test_two_misses_in_a_row_lower_the_credit_and_forget_the_older_half() -> None:
    known = index()
    prompts = [chain(10 * number, after=(), tokens=100) for number in range(1, 5)]
    for each in prompts:
        known.remember(A, M, each)

    correct(known, inferred=0.0)
    assert [known.cached_tokens(A, M, each) for each in prompts] == [100] * 4
    correct(known, inferred=-3.0)

    assert [known.cached_tokens(A, M, each) for each in prompts] == [0, 0, 80, 80]
    assert known.cached_tokens_everywhere(M, prompts[3]) == {A: 80}
    assert known.believed_tokens(A, M, prompts[3]) == 100
    known.remember(A, M, chain(99))
    assert known.cached_tokens(A, M, prompts[2]) == 0, "it holds no more than that for a while"


@pytest.mark.parametrize(
    "between",
    [
        {"inferred": 0.8},
        {"inferred": 0.45},
    ],
)
def test_a_hit_between_two_misses_ends_the_row(between: dict[str, float]) -> None:
    known = index()
    known.remember(A, M, ONE)

    for inferred in (0.0, between["inferred"], 0.0):
        correct(known, inferred=inferred)

    assert known.cached_tokens(A, M, ONE) == 400


def test_what_was_not_predicted_is_no_miss() -> None:
    known = index()
    known.remember(A, M, ONE)

    for _ in range(10):
        correct(known, believed=0.5, inferred=0.0)
        correct(known, believed=0.9, inferred=0.1)

    assert known.cached_tokens(A, M, ONE) == 400


def test_credit_follows_what_is_found() -> None:
    known = index()
    known.remember(A, M, ONE)

    for _ in range(60):
        correct(known, inferred=0.0)
    assert known.cached_tokens(A, M, ONE) == 0
    for _ in range(60):
        correct(known, inferred=0.9)
    assert 399 <= known.cached_tokens(A, M, ONE) <= 400


def test_a_runner_may_hold_more_again_after_hits() -> None:
    known = index()
    for number in range(1, 5):
        known.remember(A, M, chain(10 * number))
    for _ in range(2):
        correct(known, inferred=0.0)
    for _ in range(60):
        correct(known, inferred=0.9)

    for number in range(5, 9):
        known.remember(A, M, chain(10 * number))

    assert all(known.cached_tokens(A, M, chain(10 * number)) for number in range(3, 9))


def test_nothing_is_corrected_where_nothing_is_remembered() -> None:
    known = index()

    correct(known, inferred=0.0)

    assert known.bytes == 0
