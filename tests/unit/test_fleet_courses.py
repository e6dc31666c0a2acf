"""The company that a request has at its runner."""

import gc

import pytest

from balancer.fleet.courses import Course, Courses


def begin(courses: Courses, now: float, *, streams: bool = True, sharing: int = 1) -> Course:
    return courses.begin(now, streams=streams, sharing=sharing)


def test_the_batch_is_how_many_ran_on_the_average_since_the_first_byte() -> None:
    courses = Courses()
    one = begin(courses, 10.0)
    other = begin(courses, 11.0)
    one.answered(12.0)
    other.end(15.0, left=False, sharing=1)

    assert one.end(22.0, left=False, sharing=1).batch == pytest.approx((2 * 3 + 1 * 7) / 10)
    assert len(courses) == 0


def test_an_answer_in_one_piece_has_company_from_its_beginning() -> None:
    courses = Courses()
    one = begin(courses, 10.0, streams=False)
    begin(courses, 11.0)
    one.answered(20.0)

    assert one.end(20.0, left=False, sharing=1).batch == pytest.approx((1 + 2 * 9) / 10)


def test_what_takes_no_time_has_the_company_that_it_found() -> None:
    courses = Courses()
    begin(courses, 1.0)

    assert begin(courses, 2.0).end(2.0, left=False, sharing=1).batch == pytest.approx(2)


def test_runners_of_the_device_count_at_both_ends() -> None:
    assert begin(Courses(), 1.0, sharing=3).end(2.0, left=False, sharing=2).sharing == pytest.approx(2.5)


def test_those_on_their_way_may_come_before_or_behind() -> None:
    courses = Courses()
    first = begin(courses, 1.0)
    second = begin(courses, 1.05)
    third = begin(courses, 2.0)

    assert [each.possible for each in (first, second, third)] == [2, 2, 3]


def test_one_that_takes_the_place_of_another_makes_no_more_of_them() -> None:
    courses = Courses()
    first, second = begin(courses, 1.0), begin(courses, 1.01)
    first.end(1.02, left=False, sharing=1)
    begin(courses, 1.03)

    assert second.possible == 2


def test_one_that_was_given_up_may_still_be_there_for_a_while() -> None:
    courses = Courses()
    begin(courses, 1.0).end(2.0, left=True, sharing=1)
    begin(courses, 2.5).end(2.6, left=False, sharing=1)

    assert (begin(courses, 3.0).possible, begin(Courses(), 3.0).possible) == (2, 1)


def test_one_that_was_given_up_long_ago_is_gone() -> None:
    courses = Courses()
    begin(courses, 1.0).end(2.0, left=True, sharing=1)

    assert begin(courses, 7.5).possible == 1


@pytest.mark.parametrize(("streams", "proof"), [(True, 2), (False, 1)])
def test_those_that_came_before_and_still_run_at_the_first_byte_have_slots_of_their_own(
    streams: bool, proof: int
) -> None:
    """Of an answer in one piece only its end is seen."""
    courses = Courses()
    first, second, waiting = (begin(courses, at) for at in (1.0, 1.5, 1.7))
    third = begin(courses, 2.0, streams=streams)
    first.answered(2.5)
    second.answered(2.5)
    first.end(3.0, left=False, sharing=1)
    third.answered(4.0)
    second.end(5.0, left=False, sharing=1)
    third.end(6.0, left=False, sharing=1)

    assert (third.proof, waiting.proof) == (proof, 1)


def test_those_that_were_sent_at_the_same_time_prove_nothing() -> None:
    courses = Courses()
    begin(courses, 1.0)
    second = begin(courses, 1.05)
    second.answered(2.0)
    second.end(3.0, left=False, sharing=1)

    assert second.proof == 1


@pytest.mark.parametrize(("first_byte", "alone"), [(1.5, True), (None, False)])
def test_a_prompt_is_alone_where_no_stream_waits_for_its_first_byte(
    first_byte: float | None, alone: bool
) -> None:
    courses = Courses()
    one = begin(courses, 1.0)
    if first_byte is not None:
        one.answered(first_byte)
    other = begin(courses, 2.0)

    for each in (one, other):
        assert each.end(3.0, left=False, sharing=1).alone_in_prefill is alone


def test_an_answer_in_one_piece_disturbs_no_prompt_as_far_as_is_known() -> None:
    courses = Courses()
    begin(courses, 1.0, streams=False)

    assert begin(courses, 2.0).end(3.0, left=False, sharing=1).alone_in_prefill


def test_those_that_have_ended_are_not_kept() -> None:
    courses = Courses()
    running = [begin(courses, 0.0)]
    for number in range(1, 200):
        running.append(begin(courses, float(number)))
        running.pop(0).end(number + 0.5, left=False, sharing=1)
    gc.collect()

    kept = [each for each in gc.get_objects() if isinstance(each, Course) and each._courses is courses]
    assert len(kept) <= 3


def test_a_request_ends_once() -> None:
    course = begin(Courses(), 1.0)
    course.end(2.0, left=False, sharing=1)

    with pytest.raises(KeyError):
        course.end(3.0, left=False, sharing=1)
