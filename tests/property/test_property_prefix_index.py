"""The prefix index under any order of what is told to it, against one that is slow and plain."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId, Prefix
from balancer.core.variant import Variant
from balancer.scheduling.prefix_index import PrefixIndex

INSTANCES = [InstanceId(name) for name in "abc"]
VARIANTS = [Variant(canonical_name(name)) for name in "mn"]
LIMIT = 30_000

AT = st.sampled_from(INSTANCES)
OF = st.sampled_from(VARIANTS)
TEXTS = st.text("xy", min_size=1, max_size=9)
"""Prompts: a letter a mark, so that many begin alike."""


def prefix_of(text: str, tokens: int = 40_000) -> Prefix:
    """Marks that are equal where all before them is. A few such prompts are as much as a runner holds."""
    heads = (text[:end] for end in range(1, len(text) + 1))
    return tuple(
        (int.from_bytes(head.encode(), "big") % 2**64, tokens * end)
        for end, head in enumerate(heads, start=1)
    )


class IndexMachine(RuleBasedStateMachine):
    """Prompts are remembered, looked up, corrected and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(limit_bytes=LIMIT)
        self.asked: dict[tuple[InstanceId, Variant], list[str]] = {}

    @rule(at=AT, of=OF, text=TEXTS, answer=st.integers(0, 50_000))
    def remember(self, at: InstanceId, of: Variant, text: str, answer: int) -> None:
        self.index.remember(at, of, prefix_of(text), answer_tokens=answer)
        self.asked.setdefault((at, of), []).append(text)

        assert prefix_of(text)[-1][1] == self.index.believed_tokens(at, of, prefix_of(text))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), believed=st.floats(0, 1), inferred=st.floats(-10, 1), times=st.integers(1, 3))
    def correct(self, data: st.DataObject, believed: float, inferred: float, times: int) -> None:
        at, of = data.draw(st.sampled_from(sorted(self.asked, key=str)))
        text = self.asked[at, of][-1]
        before = self.index.cached_tokens(at, of, prefix_of(text))
        for _ in range(times):
            self.index.correct(
                at, of, prompt_tokens=100, believed_tokens=100 * believed, inferred_tokens=100 * inferred
            )

        after = self.index.cached_tokens(at, of, prefix_of(text))
        if inferred < 0.1:
            assert after <= before
        if inferred >= 0.5:
            assert after >= before

    @rule(at=AT, of=OF | st.none())
    def forget(self, at: InstanceId, of: Variant | None) -> None:
        self.index.forget(at, of.model if of is not None else None)
        for variant in [of] if of is not None else VARIANTS:
            self.asked.pop((at, variant), None)

    @rule(limit=st.sampled_from([0, 5_000, LIMIT]))
    def limit(self, limit: int) -> None:
        self.index.limit_bytes = limit
        assert self.index.bytes <= limit
        self.index.limit_bytes = LIMIT
        if not limit:
            self.asked.clear()

    @rule(of=OF, text=TEXTS)
    def look_up(self, of: Variant, text: str) -> None:
        prefix = prefix_of(text)
        everywhere = self.index.cached_tokens_everywhere(of, prefix)

        for at in INSTANCES:
            known = self.asked.get((at, of), [])
            common = max((shared(each, text) for each in known), default=0)
            believed = self.index.believed_tokens(at, of, prefix)
            cached = self.index.cached_tokens(at, of, prefix)
            assert everywhere.get(at, 0) == cached <= believed <= prefix[-1][1]
            if common == 0:
                assert believed == 0
            elif not any(text.startswith(each) for each in known):
                assert believed <= 40_000 * common

    @invariant()
    def it_is_bounded(self) -> None:
        assert 0 <= self.index.bytes <= LIMIT
        assert set(self.index.instances()) <= {at for at, _ in self.asked}

    def teardown(self) -> None:
        for at in INSTANCES:
            self.index.forget(at)
        assert self.index.bytes == 0
        assert self.index.instances() == []


def shared(one: str, other: str) -> int:
    """How many letters they begin with in common."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPrefixIndex = IndexMachine.TestCase


@given(st.lists(TEXTS, min_size=1, max_size=30), st.data())
def test_the_beginning_of_what_fits_always_hits(texts: list[str], data: st.DataObject) -> None:
    index = PrefixIndex(limit_bytes=2**20)
    for text in texts:
        index.remember(INSTANCES[0], VARIANTS[0], prefix_of(text, tokens=1))
    text = data.draw(st.sampled_from(texts))
    begin = text[: data.draw(st.integers(1, len(text)))]

    prefix = prefix_of(begin + data.draw(st.text("z", max_size=3)), tokens=1)

    assert index.cached_tokens(INSTANCES[0], VARIANTS[0], prefix) >= len(begin)


@given(st.lists(st.booleans(), max_size=60), st.booleans())
def test_credit_converges_to_what_is_found(before: list[bool], found: bool) -> None:
    """Whatever came before."""
    index, prefix = PrefixIndex(limit_bytes=2**20), prefix_of("xyxy", tokens=1000)
    index.remember(INSTANCES[0], VARIANTS[0], prefix)

    for hit in [*before, *[found] * 80]:
        index.correct(
            INSTANCES[0], VARIANTS[0], prompt_tokens=4000, believed_tokens=4000, inferred_tokens=4000 * hit
        )

    told = index.cached_tokens(INSTANCES[0], VARIANTS[0], prefix)
    assert told >= 3999 if found else told <= 2
