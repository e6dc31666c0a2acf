"""How long answers are, and how much is still to come of one that has begun."""

from random import Random

import pytest

from balancer.fleet.lengths import AnswerLengths


def learned(*lengths: int) -> AnswerLengths:
    them = AnswerLengths()
    for each in lengths:
        them.learn(each)
    return them


def test_nothing_is_expected_before_the_first_answer() -> None:
    assert AnswerLengths().mean is None
    assert AnswerLengths().remaining(10) is None


def test_the_mean_is_that_of_the_lengths() -> None:
    assert learned(10, 20, 600).mean == pytest.approx(210)


def test_an_answer_that_has_just_begun_has_the_mean_length_before_it() -> None:
    assert learned(10, 20, 600).remaining(0) == pytest.approx(210)


def test_what_has_outlived_the_short_ones_is_a_long_one() -> None:
    them = learned(*[10] * 90, *[1000] * 10)

    assert them.remaining(0) == pytest.approx(109)
    assert them.remaining(100) == pytest.approx(900)


def test_lengths_of_one_bucket_are_spread_over_it() -> None:
    them = learned(*[77] * 10)

    assert [them.remaining(each) for each in (64, 80)] == pytest.approx([13.25, 5.25], abs=0.1)


def test_an_answer_longer_than_all_begins_anew() -> None:
    assert learned(10, 20, 600).remaining(5000) == pytest.approx(210)


@pytest.mark.parametrize("emitted", [10, 50, 150, 400])
def test_what_remains_is_the_mean_of_those_that_were_longer(emitted: int) -> None:
    chance = Random(5)
    lengths = [round(chance.lognormvariate(5, 0.8)) for _ in range(900)]
    longer = [each - emitted for each in lengths if each > emitted]

    assert learned(*lengths).remaining(emitted) == pytest.approx(sum(longer) / len(longer), rel=0.1)


def test_what_was_long_ago_fades() -> None:
    assert learned(*[1000] * 900, *[10] * 5000).mean == pytest.approx(10, rel=0.5)
