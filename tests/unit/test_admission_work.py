"""Estimates of work: learned per model, from the length of the prompt."""

import pytest

from balancer.admission.work import WorkEstimates
from balancer.core.names import canonical_name
from tests.unit.unit_support import ticket


def test_before_anything_was_measured_a_request_is_a_second() -> None:
    estimates = WorkEstimates()

    assert estimates.estimate(ticket(prompt_tokens=9000)) == 1.0
    for measured in range(3):
        assert estimates.mean(canonical_name("m")) is None, measured
        estimates.learn(ticket(prompt_tokens=10), 2.0)
    assert estimates.mean(canonical_name("m")) == 2.0


def test_a_line_through_requests_is_found() -> None:
    estimates = WorkEstimates()
    for tokens in (100, 900, 400, 2000, 50, 1500):
        estimates.learn(ticket(prompt_tokens=tokens), 0.5 + tokens / 1000)

    assert pytest.approx(0.5 + 3.0) == estimates.estimate(ticket(prompt_tokens=3000))
    assert pytest.approx(0.5) == estimates.estimate(ticket(prompt_tokens=None))


def test_of_prompts_of_one_length_the_mean_counts() -> None:
    estimates = WorkEstimates()
    for seconds in (1.0, 3.0):
        estimates.learn(ticket(prompt_tokens=500), seconds)

    assert pytest.approx(2.0, rel=0.02) == estimates.estimate(ticket(prompt_tokens=90_000))


def test_longer_prompts_are_never_expected_to_be_less_work() -> None:
    estimates = WorkEstimates()
    for tokens, seconds in ((100, 9.0), (1000, 1.0), (200, 8.0)):
        estimates.learn(ticket(prompt_tokens=tokens), seconds)

    assert estimates.estimate(ticket(prompt_tokens=10)) == estimates.estimate(ticket(prompt_tokens=10_000))


def test_no_request_is_expected_to_be_less_than_nothing() -> None:
    estimates = WorkEstimates()
    for tokens, seconds in ((1000, 1.0), (2000, 10.0)):
        estimates.learn(ticket(prompt_tokens=tokens), seconds)

    assert estimates.estimate(ticket(prompt_tokens=0)) == 0.0
    assert estimates.estimate(ticket(prompt_tokens=1000)) > 0


def test_what_comes_now_counts_for_more_than_what_was() -> None:
    estimates = WorkEstimates()
    for seconds in [1.0] * 500 + [5.0] * 200:
        estimates.learn(ticket(prompt_tokens=100), seconds)

    assert pytest.approx(5.0, rel=0.05) == estimates.estimate(ticket(prompt_tokens=100))


def test_models_are_told_apart_and_no_more_are_kept_than_a_thousand() -> None:
    estimates = WorkEstimates()
    estimates.learn(ticket(model="first", prompt_tokens=1), 7.0)
    for number in range(1000):
        estimates.learn(ticket(model=f"m{number}", prompt_tokens=1), 2.0)

    assert estimates.estimate(ticket(model="first", prompt_tokens=1)) == 1.0
    assert estimates.estimate(ticket(model="m999", prompt_tokens=1)) == 2.0
