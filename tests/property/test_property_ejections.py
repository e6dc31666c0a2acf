"""Ejections under any order of events: the floor holds, times grow and nobody stays out for ever."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from balancer.fleet.ejection import JITTER, LONGEST_SECONDS, EjectionPolicy, Ejections, most_ejected

HEALTHS = st.floats(0, 1)
LOOKS = st.lists(
    st.tuples(st.floats(0, 30), st.dictionaries(st.sampled_from("abcdefg"), HEALTHS)), max_size=60
)


def ejections(seed: int = 1, **policy: float) -> Ejections[str]:
    return Ejections(Random(seed), EjectionPolicy(**policy))


def ejected_for(
    it: Ejections[str], start: float, scores: dict[str, float], *, key: str = "a"
) -> tuple[float, float]:
    """From when to when it is ejected, looked at each second; it is well from the moment that it is."""
    now, since = start, None
    while now < start + 1000:
        it.judge({**scores, key: 0.1 if since is None else 1.0}, now)
        if since is None and key in it.ejected:
            since = now
        elif since is not None and key not in it.ejected:
            return since, now
        now += 1.0
    raise AssertionError("it was not ejected, or is so for ever")


@given(LOOKS, st.integers(0, 9))
def test_the_floor_holds_and_nobody_is_ejected_for_ever(
    looks: list[tuple[float, dict[str, float]]], seed: int
) -> None:
    it, now = ejections(seed), 0.0
    out_since: dict[str, float] = {}
    for seconds, scores in looks:
        now += seconds
        it.judge(scores, now)
        assert len(it.ejected) <= most_ejected(len(scores))
        assert it.ejected <= scores.keys()
        out_since = {key: out_since.get(key, now) for key in it.ejected}
        assert all(now - since <= LONGEST_SECONDS * (1 + JITTER) + seconds for since in out_since.values())

    names = looks[-1][1] if looks else {}
    it.judge(dict.fromkeys(names, 0.3), now + LONGEST_SECONDS * (1 + JITTER))
    assert it.ejected == frozenset()


def test_the_floor_of_up_to_three_is_one_and_of_more_is_half() -> None:
    assert [most_ejected(count) for count in range(9)] == [0, 0, 1, 2, 2, 2, 3, 3, 4]


@given(st.integers(1, 9))
def test_where_all_are_low_the_lowest_go_and_the_floor_stays(count: int) -> None:
    it = ejections()
    scores = {str(number): 0.01 * (count - number) for number in range(count)}
    for second in range(12):
        it.judge(scores, second)

    assert it.ejected == frozenset(sorted(scores, reverse=True)[: most_ejected(count)])


def test_it_must_be_low_for_so_long_without_a_break() -> None:
    it = ejections()
    for second in range(64):
        it.judge({"a": 0.1 if second % 9 else 0.2, "b": 1.0}, second)
        assert it.ejected == frozenset()
    for second in range(64, 74):
        it.judge({"a": 0.1, "b": 1.0}, second)
        assert it.ejected == frozenset()
    it.judge({"a": 0.1, "b": 1.0}, 74)
    assert it.ejected == {"a"}


def test_each_time_anew_it_is_longer_and_after_a_steady_while_it_begins_again() -> None:
    it, now, lengths = ejections(), 0.0, []
    for _ in range(7):
        since, now = ejected_for(it, now, {"b": 1.0})
        lengths.append(now - since)
    _, now = ejected_for(it, now + 1, {"b": 1.0})
    since, until = ejected_for(it, now + 300, {"b": 1.0})

    for length, first in zip(lengths, (10, 20, 40, 80, 160, 300, 300), strict=True):
        assert first <= length <= first * (1 + JITTER) + 1
    assert until - since <= 13


def test_jitter_keeps_those_that_were_ejected_together_from_coming_back_together() -> None:
    it = ejections()
    for second in range(12):
        it.judge({"a": 0.1, "b": 0.1, "c": 0.1}, second)

    assert len({it.until(key) for key in it.ejected}) == 2


def test_who_is_not_well_yet_stays_out_for_the_longest_time_at_most() -> None:
    it = ejections()
    for second in range(320):
        it.judge({"a": 0.1 if second < 12 else 0.3, "b": 1.0}, second)
        assert ("a" in it.ejected) == (10 <= second < 310) or second >= 310
    it.judge({"a": 0.3, "b": 1.0}, 10 + LONGEST_SECONDS * (1 + JITTER))
    assert it.ejected == frozenset()


def test_the_floor_holds_when_others_go() -> None:
    it = ejections()
    for second in range(12):
        it.judge({"a": 0.1, "b": 0.1, "c": 1.0, "d": 1.0}, second)
    assert it.ejected == {"a", "b"}

    it.judge({"a": 0.1, "b": 0.1}, 12)

    assert len(it.ejected) == 1


def test_who_serves_nothing_is_not_ejected() -> None:
    it = ejections()
    for second in range(12):
        it.judge({"a": 0.1, "b": 1.0}, second)
    assert it.ejected == {"a"}

    it.judge({"b": 1.0}, 13)

    assert it.ejected == frozenset()


def test_below_0_is_none() -> None:
    it = ejections(eject_below=0.0)
    for second in range(60):
        it.judge({"a": 0.0, "b": 1.0}, second)

    assert it.ejected == frozenset()
