"""Whatever instances count, what is learned of them is sane; and slots are learned of any runner."""

import heapq
import math
from collections import deque
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from balancer.core.names import canonical_name
from balancer.fleet.courses import Company, Course
from balancer.fleet.learned import Learned
from balancer.fleet.rates import RateBook, Work

URLS = ("http://a", "http://b", "http://c")
MODELS = tuple(canonical_name(each) for each in "mno")
NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
COUNTS = st.one_of(st.none(), st.integers(0, 10**18))
WORKS = st.builds(
    Work,
    prompt_tokens=COUNTS,
    cached_tokens=st.integers(0, 10**18),
    prompt_seconds=NUMBERS,
    output_tokens=COUNTS,
    output_seconds=NUMBERS,
    left_over_seconds=NUMBERS,
)
PLAUSIBLE = st.builds(
    Work,
    prompt_tokens=st.integers(1, 10_000),
    prompt_seconds=st.floats(0.001, 100),
    output_tokens=st.integers(0, 5000),
    output_seconds=st.floats(0.001, 1000),
)
COMPANIES = st.builds(
    Company, batch=st.floats(1, 1e6), sharing=st.floats(1, 1e3), alone_in_prefill=st.booleans()
)
LESSONS = st.lists(
    st.tuples(st.sampled_from(URLS), st.sampled_from(MODELS), WORKS | PLAUSIBLE, COMPANIES), max_size=60
)


@given(LESSONS, st.integers(0, 10**19))
def test_rates_are_positive_and_finite_whatever_comes(
    lessons: list[tuple[str, str, Work, Company]], emitted: int
) -> None:
    book = RateBook()
    for url, model, work, company in lessons:
        book.learn(url, canonical_name(model), work, company)

    for model in MODELS:
        for url in (*URLS, "http://new"):
            rates = book.rates(url, model)
            if rates is None:
                continue
            assert 0 < rates.prefill_tokens_per_second < math.inf
            assert rates.decode_tokens_per_second is None or 0 < rates.decode_tokens_per_second < math.inf
            assert 0 <= rates.slowdown <= 1
            assert 0 <= rates.token_seconds(8, sharing=4) < math.inf
        remaining = book.remaining_tokens(model, emitted)
        assert remaining is None or 0 <= remaining < math.inf


@given(LESSONS, st.randoms(use_true_random=False))
def test_the_order_of_instances_changes_nothing(
    lessons: list[tuple[str, str, Work, Company]], chance: Random
) -> None:
    """What each instance says stays in its order; whose turn it is does not matter."""
    told = RateBook(), RateBook()
    turns = chance.sample(URLS, len(URLS))
    other = [each for url in turns for each in lessons if each[0] == url]
    for book, order in zip(told, (lessons, other), strict=True):
        for url, model, work, company in order:
            book.learn(url, canonical_name(model), work, company)

    for url in (*URLS, "http://new"):
        assert [told[0].rates(url, each) for each in MODELS] == [told[1].rates(url, each) for each in MODELS]


@given(LESSONS, st.integers(1, 4))
def test_no_more_is_kept_than_may_be(lessons: list[tuple[str, str, Work, Company]], limit: int) -> None:
    book = RateBook(limit=limit)
    for url, model, work, company in lessons:
        book.learn(url, canonical_name(model), work, company)
        book.learn_load(url, canonical_name(model), 1.0)

        assert book.rates(url, canonical_name(f"x{len(book)}{url}{work.output_tokens}")) is None
        assert len(book) <= limit
        assert len(book._lengths) <= limit
        assert len(book._at) <= limit
        assert len(book._elsewhere) <= limit
        assert book.rates(url, canonical_name(model)) is None or (url, model) in book._runners


class Runner:
    """A first-come line before so many slots, and a balancer that keeps as many requests there as it
    believes that there are slots. Requests take their time to arrive."""

    def __init__(self, chance: Random, *, real: int, told: int | None, seconds: float, streams: bool) -> None:
        self.chance = chance
        self.real = real
        self.told = told
        self.seconds = seconds
        self.streams = streams
        self.learned = Learned("http://a")
        self.now = 1000.0
        self.events: list[tuple[float, int, str, Course]] = []
        self.line: deque[Course] = deque()
        self.busy = 0
        self.out = 0
        self.arrived: dict[Course, float] = {}
        self.begun: dict[Course, float] = {}
        self.numbers = 0
        self.most = 0

    def at(self, after: float, what: str, course: Course) -> None:
        self.numbers += 1
        heapq.heappush(self.events, (self.now + after, self.numbers, what, course))

    def serve(self, requests: int) -> None:
        while requests or self.events:
            while requests and self.out < self.learned.slots(MODELS[0], self.told):
                requests -= 1
                self.out += 1
                self.most = max(self.most, self.out)
                course = self.learned.begin(MODELS[0], self.now, streams=self.streams, sharing=1)
                self.at(self.chance.uniform(0.0001, 0.01), "arrived_", course)
            self.now, _, what, course = heapq.heappop(self.events)
            getattr(self, what)(course)
            assert not self.learned.shared, "there are no strangers"

    def arrived_(self, course: Course) -> None:
        self.arrived[course] = self.now
        self.line.append(course)
        self.next()

    def next(self) -> None:
        while self.line and self.busy < self.real:
            course = self.line.popleft()
            self.busy += 1
            self.begun[course] = self.now
            work = self.seconds * self.chance.uniform(0.2, 2)
            self.at(0.1 * work, "answered_", course)
            self.at(work, "done_", course)

    def answered_(self, course: Course) -> None:
        course.answered(self.now)

    def done_(self, course: Course) -> None:
        self.busy -= 1
        self.out -= 1
        begun = self.begun.pop(course)
        overhead = self.chance.uniform(0, 0.05)
        left_over = begun - self.arrived.pop(course) + overhead
        took = self.now - begun
        work = Work(
            prompt_tokens=500,
            prompt_seconds=0.1 * took,
            output_tokens=100,
            output_seconds=0.9 * took,
            left_over_seconds=left_over,
        )
        self.learned.learn(
            MODELS[0], course, work, self.now, left=False, sharing=1, told=self.told, generation=1
        )
        self.next()


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 6)),
    st.sampled_from([0.02, 0.3, 3.0, 20.0]),
    st.booleans(),
)
@example(1, 1, 4, 3.0, True)
@example(1, 4, None, 3.0, True)
def test_slots_are_learned_of_any_runner(
    seed: int, real: int, told: int | None, seconds: float, streams: bool
) -> None:
    """Never a stranger where there is none, and never fewer slots than there are. Waits that are too short to
    be told from what surrounds any work do no harm."""
    runner = Runner(Random(seed), real=real, told=told, seconds=seconds, streams=streams)
    runner.serve(400)
    used = runner.learned.slots(MODELS[0], told)

    assert used >= 1
    if seconds >= 3:
        assert min(real, told or real) <= used <= real + 1
