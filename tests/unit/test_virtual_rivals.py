"""The rivals: what each prefers in small fleets, and that what they remember stays bounded."""

import json
import re
from collections import Counter
from itertools import permutations
from math import exp
from pathlib import Path
from random import Random
from zlib import crc32

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId, Ticket
from balancer.scheduling.strategies import STRATEGIES, Strategy
from balancer.simulator.virtual.prefix_tree import Prefix, PrefixTree
from balancer.simulator.virtual.rivals import RIVALS, Learner, PeakEwma
from balancer.simulator.virtual.work import Observation
from tests.unit.unit_support import FakeView, seen, ticket, view

RIVAL_NAMES = sorted(RIVALS)


def prompt(*texts: str, tokens: int = 100) -> Prefix:
    """The prefix of a prompt of those texts, each of so many tokens."""
    return tuple((crc32(repr(texts[: end + 1]).encode()), (end + 1) * tokens) for end in range(len(texts)))


def asking(*texts: str, tokens: int = 100, **facts: object) -> Ticket:
    return ticket(prefix=prompt(*texts, tokens=tokens), prompt_tokens=len(texts) * tokens, **facts)


def scores(strategy: Strategy, request: Ticket, views: list[FakeView]) -> dict[str, float]:
    terms = strategy.score(request, seen(views, request))
    return {str(each.id): sum(found.values()) for each, found in zip(views, terms, strict=True)}


def preferred(strategy: Strategy, request: Ticket, views: list[FakeView]) -> set[str]:
    found = scores(strategy, request, views)
    return {name for name, score in found.items() if score == min(found.values())}


def send(strategy: Strategy, request: Ticket, views: list[FakeView], where: str) -> None:
    strategy.score(request, seen(views, request))
    strategy.picked(*seen([next(each for each in views if each.id == where)], request), seen(views, request))


def answered(instance: str, first_byte_seconds: float, at: float) -> Observation:
    return Observation(
        instance=InstanceId(instance),
        model=canonical_name("m"),
        prompt_tokens=100,
        prompt_seconds=0.1,
        output_tokens=10,
        output_seconds=1.0,
        first_byte_seconds=first_byte_seconds,
        total_seconds=50.0,
        at=at,
    )


def ewma(*observations: Observation) -> PeakEwma:
    strategy = PeakEwma(Random(1))
    for each in observations:
        strategy.observe(each)
    return strategy


def test_no_rival_has_the_name_of_a_strategy_of_the_product() -> None:
    assert RIVALS.keys() & STRATEGIES.keys() == set()


def test_the_page_lists_every_rival() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rivals.md").read_text()

    assert list(RIVALS) == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


@pytest.mark.parametrize("name", RIVAL_NAMES)
def test_only_those_that_learn_from_answers_are_told_of_them(name: str) -> None:
    assert isinstance(RIVALS[name](Random(1)), Learner) == (name == "p2c_ewma")


@pytest.mark.parametrize("name", RIVAL_NAMES)
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("request_", [ticket(), ticket(model=None), asking("a", "b")])
def test_every_candidate_gets_terms_that_can_be_told_in_json(name: str, count: int, request_: Ticket) -> None:
    views = [view(str(number), running=number, resident=number % 2 == 0) for number in range(count)]
    strategy = RIVALS[name](Random(1))

    found = strategy.score(request_, seen(views, request_))
    strategy.picked(*seen(views[:1], request_), seen(views, request_))

    assert count == len(found)
    assert all(terms for terms in found)
    json.dumps([dict(terms) for terms in found], allow_nan=False)


@pytest.mark.parametrize("name", RIVAL_NAMES)
def test_the_order_of_candidates_changes_no_score(name: str) -> None:
    found = []
    views = [view("a", running=3), view("b", resident=False), view("c", running=1), view("d", weight=2)]
    for order in permutations(views):
        strategy = RIVALS[name](Random(5))
        send(strategy, asking("system", "hello"), views, "c")
        send(strategy, asking("other"), views, "a")
        if isinstance(strategy, Learner):
            strategy.observe(answered("a", 2.0, 1000.0))
            strategy.observe(answered("c", 1.0, 1000.0))
        found.append(scores(strategy, asking("system", "hello", "again"), list(order)))

    assert all(each == found[0] for each in found)
    assert len(set(found[0].values())) > 1


@pytest.mark.parametrize("name", RIVAL_NAMES)
def test_looking_twice_tells_the_same(name: str) -> None:
    strategy = RIVALS[name](Random(1))
    views = [view("a", running=1), view("b")]
    send(strategy, asking("system", "hello"), views, "a")

    first = scores(strategy, asking("system", "hello"), views)
    scores(strategy, asking("something else"), views)

    assert first == scores(strategy, asking("system", "hello"), views)


# p2c_ewma


def test_the_peak_counts_at_once_and_fades_by_a_factor_e_in_ten_seconds() -> None:
    strategy = ewma(answered("a", 2.0, 1000.0), answered("a", 0.1, 1000.0))

    assert scores(strategy, ticket(queued_at=1000.0), [view("a")]) == {"a": pytest.approx(2.0)}
    assert scores(strategy, ticket(queued_at=1010.0), [view("a")]) == {"a": pytest.approx(2 / exp(1))}
    strategy.observe(answered("a", 5.0, 1010.0))
    assert scores(strategy, ticket(queued_at=1010.0), [view("a")]) == {"a": pytest.approx(5.0)}


def test_time_goes_on_with_answers_too() -> None:
    strategy = ewma(answered("a", 2.0, 1000.0), answered("b", 0.1, 1020.0))

    assert scores(strategy, ticket(queued_at=1000.0), [view("a")]) == {"a": pytest.approx(2 / exp(2))}


def test_latency_is_multiplied_by_what_is_outstanding() -> None:
    strategy = ewma(answered("slow", 3.0, 1000.0), answered("fast", 1.0, 1000.0))

    assert preferred(strategy, ticket(), [view("slow"), view("fast", running=1)]) == {"fast"}
    assert preferred(strategy, ticket(), [view("slow"), view("fast", running=3)]) == {"slow"}


def test_one_that_never_answered_gets_one_request_and_then_none_until_it_does() -> None:
    strategy = ewma(answered("known", 3.0, 1000.0))

    assert preferred(strategy, ticket(), [view("known"), view("new")]) == {"new"}
    assert preferred(strategy, ticket(), [view("known", running=9), view("new", running=1)]) == {"known"}


def test_only_two_are_looked_at() -> None:
    strategy = ewma(*(answered(name, 1.0 + "abc".index(name), 1000.0) for name in "abc"))
    counts = Counter(
        next(iter(preferred(strategy, ticket(), [view("a"), view("b"), view("c")]))) for _ in range(3000)
    )

    assert pytest.approx(counts["a"], abs=150) == 2000
    assert pytest.approx(counts["b"], abs=150) == 1000


# prefix_trie


def test_the_instance_that_had_the_prompt_before_gets_its_continuation() -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a"), view("b", running=9)]
    send(strategy, asking("system", "hello"), views, "b")

    assert preferred(strategy, asking("system", "hello", "answer", "more"), views) == {"b"}


def test_the_longest_match_wins() -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a"), view("b")]
    send(strategy, asking("system", "hello"), views, "a")
    send(strategy, asking("system"), views, "b")

    assert preferred(strategy, asking("system", "hello", "more"), views) == {"a"}


@pytest.mark.parametrize(("more", "where"), [(6, {"a"}), (7, {"b"})])
def test_a_match_counts_where_it_is_more_than_three_tenths_of_the_prompt(more: int, where: set[str]) -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a"), view("b")]
    send(strategy, asking("one", "two", "three"), views, "a")

    assert preferred(strategy, asking("one", "two", "three", *("x" * more)), views) == where


def test_who_has_no_match_goes_where_the_tree_is_smallest() -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a"), view("b", running=5)]
    send(strategy, asking("one", "two", "three"), views, "a")
    send(strategy, asking("four"), views, "b")

    assert preferred(strategy, asking("unknown"), views) == {"b"}
    assert preferred(strategy, ticket(), views) == {"b"}


@pytest.mark.parametrize(
    ("running", "balanced"), [((65, 0), False), ((64, 0), True), ((195, 130), True), ((196, 130), False)]
)
def test_out_of_balance_the_fewest_requests_win_over_any_match(
    running: tuple[int, int], balanced: bool
) -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a", running=running[0]), view("b", running=running[1])]
    send(strategy, asking("system", "hello"), views, "a")

    assert preferred(strategy, asking("system", "hello"), views) == ({"a"} if balanced else {"b"})


def test_prompts_of_another_model_match_nothing() -> None:
    strategy = RIVALS["prefix_trie"](Random(1))
    views = [view("a"), view("b")]
    send(strategy, asking("system", "hello"), views, "a")

    assert preferred(strategy, asking("system", "hello", model="other"), views) == {"a", "b"}


@pytest.mark.parametrize("name", ["prefix_trie", "prefill_batch"])
def test_what_was_cached_is_forgotten_with_an_unload(name: str) -> None:
    strategy = RIVALS[name](Random(1))
    views = [view("a"), view("b")]
    send(strategy, asking("system", "hello", "old"), views, "a")
    fresh = RIVALS[name](Random(1))
    request = asking("system", "hello", "old")

    views[0].resident = False
    assert scores(fresh, request, views) == scores(strategy, request, views)
    send(strategy, asking("system"), views, "a")
    views[0].resident = True
    send(fresh, asking("system"), views, "a")
    assert scores(fresh, request, views) == scores(strategy, request, views)


# model_aware_least_connections


def test_resident_comes_before_idle() -> None:
    strategy = RIVALS["model_aware_least_connections"](Random(1))
    views = [view("cold", resident=False), view("busy", running=9), view("busier", running=10)]

    assert preferred(strategy, ticket(), views) == {"busy"}


def test_where_nothing_is_resident_the_fewest_requests_count() -> None:
    strategy = RIVALS["model_aware_least_connections"](Random(1))
    views = [view("a", resident=False, running=1), view("b", resident=False), view("c", resident=False)]

    assert preferred(strategy, ticket(), views) == {"b", "c"}


def test_requests_count_per_unit_of_weight() -> None:
    strategy = RIVALS["model_aware_least_connections"](Random(1))

    assert preferred(strategy, ticket(), [view("a", running=3, weight=4), view("b", running=1)]) == {"a"}


# prefill_batch


def test_new_tokens_are_multiplied_by_the_batch() -> None:
    strategy = RIVALS["prefill_batch"](Random(1))
    views = [view("a", running=1), view("b", running=4)]
    send(strategy, asking("system", "hello"), views, "b")

    assert scores(strategy, asking("system", "hello", "x"), views) == {"a": 364 * 2.0, "b": 164 * 5.0}
    assert scores(strategy, asking("system", "hello"), views) == {"a": 264 * 2.0, "b": 64 * 5.0}


def test_a_prompt_without_a_prefix_counts_with_all_its_tokens() -> None:
    strategy = RIVALS["prefill_batch"](Random(1))

    assert scores(strategy, ticket(prompt_tokens=36), [view("a", running=1)]) == {"a": 200.0}


def test_prefill_goes_where_the_model_is_resident_whatever_the_batch() -> None:
    strategy = RIVALS["prefill_batch"](Random(1))
    views = [view("cold", resident=False), view("warm", running=500)]

    assert preferred(strategy, asking("system", tokens=100_000), views) == {"warm"}
    assert preferred(strategy, asking("system"), [views[0], view("cold2", resident=False)]) == {
        "cold",
        "cold2",
    }


# what is remembered


def test_a_tree_matches_what_it_holds_and_counts_shared_beginnings_once() -> None:
    tree = PrefixTree(most_tokens=10_000, most_marks=100)
    tree.insert(prompt("a", "b", "c"))
    tree.insert(prompt("a", "b", "d"))

    assert (tree.tokens, len(tree)) == (400, 4)
    assert tree.matched_tokens(prompt("a", "b", "d", "e")) == 300
    assert tree.matched_tokens(prompt("a", "x", "c")) == 100
    assert tree.matched_tokens(prompt("x", "b", "c")) == 0
    assert tree.matched_tokens(()) == 0


@pytest.mark.parametrize(
    "limits", [{"most_tokens": 350, "most_marks": 99}, {"most_tokens": 9999, "most_marks": 3}]
)
def test_a_tree_forgets_the_prompt_used_longest_ago_from_its_end(limits: dict[str, int]) -> None:
    tree = PrefixTree(**limits)
    tree.insert(prompt("a", "b"))
    tree.insert(prompt("c"))
    assert tree.matched_tokens(prompt("a", "b")) == 200

    tree.insert(prompt("d"))

    assert tree.matched_tokens(prompt("a", "b")) == 100
    assert (tree.matched_tokens(prompt("c")), tree.matched_tokens(prompt("d"))) == (100, 100)
    tree.insert(prompt("a"))
    tree.insert(prompt("e"))
    assert [tree.matched_tokens(prompt(each)) for each in "acde"] == [100, 0, 100, 100]


def test_a_tree_agrees_with_a_plain_list_of_prompts_and_keeps_its_bounds() -> None:
    random = Random(3)
    roomy, tight = (
        PrefixTree(most_tokens=10**9, most_marks=10**6),
        PrefixTree(most_tokens=2500, most_marks=40),
    )
    sent: list[tuple[str, ...]] = []
    for _ in range(400):
        texts = tuple(random.choices("abc", k=random.randint(1, 6)))
        shared = [sum(texts[:end] == old[:end] for end in range(1, len(texts) + 1)) for old in sent]

        assert roomy.matched_tokens(prompt(*texts)) == 100 * max(shared, default=0)
        assert tight.matched_tokens(prompt(*texts)) <= roomy.matched_tokens(prompt(*texts))

        sent.append(texts)
        roomy.insert(prompt(*texts))
        tight.insert(prompt(*texts))
        assert tight.matched_tokens(prompt(*texts)) == 100 * len(texts)
        assert tight.tokens == 100 * len(tight) <= 2500
    assert len(tight) == 25
