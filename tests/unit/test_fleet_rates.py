"""The rate book: what measured answers say of rates, loads and lengths, and how much is kept."""

from random import Random

import pytest

from balancer.core.names import canonical_name
from balancer.core.rates import Rates
from balancer.fleet.courses import Company
from balancer.fleet.rates import RateBook, Work

M, N = canonical_name("m"), canonical_name("n")
A, B, C = "http://a", "http://b", "http://c"
NOISE = 0.2


def prompt(seconds: float, tokens: int = 1000, cached: int = 0) -> Work:
    return Work(prompt_tokens=tokens, cached_tokens=cached, prompt_seconds=seconds)


def answer(token_seconds: float, tokens: int = 100) -> Work:
    return Work(
        prompt_tokens=1000, prompt_seconds=1.0, output_tokens=tokens, output_seconds=tokens * token_seconds
    )


def known(book: RateBook, url: str = A) -> Rates:
    rates = book.rates(url, M)
    assert rates is not None
    return rates


def taught(*works: Work, company: Company | None = None) -> RateBook:
    book = RateBook()
    for each in works:
        book.learn(A, M, each, company or Company())
    return book


def noisy(chance: Random, rate: float, *, hits: float = 0.0) -> Work:
    """A prompt of 1000 tokens at that rate, of which with some chance part was cached, which nobody knows."""
    cached = chance.choice((0.2, 0.5, 0.8, 0.95, 0.99)) if chance.random() < hits else 0.0
    return prompt(1000 * (1 - cached) / rate * chance.uniform(1 - NOISE, 1 + NOISE))


def test_nothing_is_known_before_the_first_answer() -> None:
    assert RateBook().rates(A, M) is None
    assert RateBook().output_tokens(M) is None
    assert RateBook().remaining_tokens(M, 5) is None


def test_rates_are_those_of_a_request_alone() -> None:
    company = Company(sharing=2.0)
    book = taught(answer(0.02), company=company)

    assert known(book).prefill_tokens_per_second == pytest.approx(2000)
    assert known(book).decode_tokens_per_second == pytest.approx(100)
    assert known(book).samples == 1
    assert known(book).prefill_seconds(1000, sharing=2) == pytest.approx(1.0)
    assert known(book).token_seconds(1, sharing=2) == pytest.approx(0.02)


def test_tokens_known_to_be_cached_are_not_counted() -> None:
    assert known(taught(prompt(0.5, 1000, cached=500))).prefill_tokens_per_second == pytest.approx(1000)


def test_a_prompt_that_is_believed_to_be_cached_for_the_most_part_teaches_no_rate() -> None:
    book = taught(prompt(0.5, 1000, cached=501))
    assert book.rates(A, M) is None


def test_short_prompts_count_only_until_there_are_longer_ones() -> None:
    short = prompt(1.0, 10)
    book = taught(short, short, short)
    assert known(book).prefill_tokens_per_second == pytest.approx(10)

    for work in (prompt(1.0), *[short] * 7):
        book.learn(A, M, work, Company())

    assert known(book).prefill_tokens_per_second == pytest.approx(1000)


def test_prompts_beside_others_count_only_until_there_are_such_alone() -> None:
    beside = Company(alone_in_prefill=False)
    book = taught(prompt(3.0), prompt(3.0), prompt(3.0), company=beside)
    assert known(book).prefill_tokens_per_second == pytest.approx(1000 / 3)

    for company in (Company(), *[beside] * 7):
        book.learn(A, M, prompt(3.0 if company is beside else 1.0), company)

    assert known(book).prefill_tokens_per_second == pytest.approx(1000)


@pytest.mark.parametrize("hits", [0.0, 1 / 3])
def test_hits_that_nobody_knows_of_hardly_move_the_rate_of_prompts(hits: float) -> None:
    chance, book, told = Random(7), RateBook(), []
    for _ in range(600):
        book.learn(A, M, noisy(chance, 1000, hits=hits), Company())
        told.append(known(book).prefill_tokens_per_second)
    told = sorted(told[20:])

    assert told[len(told) // 2] == pytest.approx(1000, rel=0.1)
    assert told[len(told) // 10] > 1000 * 0.8
    assert told[len(told) * 9 // 10] < 1000 * 1.3


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_device_of_another_speed_is_known_after_five_requests(factor: float) -> None:
    chance = Random(3)
    book = taught(*(noisy(chance, 1000) for _ in range(50)), *(answer(0.01) for _ in range(50)))
    for _ in range(5):
        book.learn(A, M, noisy(chance, 1000 / factor), Company())
        book.learn(A, M, answer(0.01 * factor), Company())

    assert known(book).decode_tokens_per_second == pytest.approx(100 / factor)
    if factor > 1:  # a prompt that is quicker than others may have been cached, one that is slower may not
        assert known(book).prefill_tokens_per_second == pytest.approx(1000 / factor, rel=NOISE)


@pytest.mark.parametrize("slowdown", [0.0, 0.15, 0.5, 1.0])
def test_the_slowdown_by_others_is_told_from_the_rate_alone(slowdown: float) -> None:
    chance, book = Random(11), RateBook()
    for _ in range(400):
        batch = chance.choice((1.0, 1.5, 2.0, 3.0, 4.0))
        seconds = 0.01 * (1 + slowdown * (batch - 1)) * chance.uniform(1 - NOISE, 1 + NOISE)
        book.learn(A, M, answer(seconds), Company(batch=batch))

    assert known(book).slowdown == pytest.approx(slowdown, abs=0.15)
    for batch in (1, 4):
        seconds = 0.01 * (1 + slowdown * (batch - 1))
        assert known(book).token_seconds(batch) == pytest.approx(seconds, rel=0.25)


def test_the_usual_slowdown_is_believed_where_none_was_measured() -> None:
    book = taught(*[answer(0.01)] * 40_000)

    assert known(book).slowdown == pytest.approx(0.15)
    assert known(book).token_seconds(3) == pytest.approx(0.013)


def test_answers_of_a_few_tokens_say_nothing_of_the_rate() -> None:
    book = taught(answer(9.0, tokens=7))

    assert known(book).decode_tokens_per_second is None
    assert known(book).token_seconds(1) == 0.0
    assert book.output_tokens(M) == pytest.approx(7)


@pytest.mark.parametrize(
    "work",
    [
        Work(),
        Work(output_tokens=5),
        prompt(0.0),
        prompt(-1.0),
        prompt(float("nan")),
        prompt(1e-30),
        prompt(1.0, tokens=0),
        prompt(1.0, 10, cached=10),
    ],
)
def test_what_tells_no_rate_teaches_none(work: Work) -> None:
    assert taught(work).rates(A, M) is None


def test_samples_are_those_that_taught_a_rate() -> None:
    assert known(taught(prompt(1.0), Work(output_tokens=50), Work(), answer(0.01))).samples == 2


def test_a_model_new_to_an_instance_has_the_rates_of_the_others() -> None:
    book = RateBook()
    for url, seconds in ((A, 1.0), (B, 2.0), (C, 4.0)):
        book.learn(url, M, prompt(seconds), Company())

    assert known(book, "http://new").prefill_tokens_per_second == pytest.approx(500)
    assert known(book, "http://new").samples == 0
    assert known(book, C).prefill_tokens_per_second == pytest.approx(250)
    assert book.rates(A, N) is None

    book.keep({A})
    assert known(book, C).prefill_tokens_per_second == pytest.approx(1000)


def test_what_is_borrowed_follows_what_is_learned() -> None:
    book = taught(prompt(1.0))
    assert known(book, B).prefill_tokens_per_second == pytest.approx(1000)

    for _ in range(7):
        book.learn(A, M, prompt(2.0), Company())

    assert known(book, B).prefill_tokens_per_second == pytest.approx(500)


def test_a_load_takes_as_long_as_recent_ones_did() -> None:
    book = RateBook()
    assert book.load_seconds(A, M, 5_000_000_000) == pytest.approx(1.5 + 2.0)

    for seconds in (4.0, 60.0, 5.0):
        book.learn_load(A, M, seconds)

    assert book.load_seconds(A, M, 5_000_000_000) == pytest.approx(5.0)
    assert book.load_seconds(B, M, 0) == pytest.approx(1.5)
    assert book.rates(A, M) is None


def test_the_longest_unused_is_forgotten_first() -> None:
    book = RateBook(limit=2)
    for url in (A, B, A, C):
        book.learn(url, M, prompt(1.0 if url != B else 2.0), Company())

    assert len(book) == 2
    assert [known(book, each).samples for each in (A, B, C)] == [2, 0, 1]

    for each in (N, canonical_name("o")):
        book.learn(A, each, answer(0.01, tokens=30), Company())
    assert book.rates(A, M) is None
    assert book.output_tokens(N) == pytest.approx(30)
