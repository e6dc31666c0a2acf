"""The fleet's lists, merged; and the progress of one change over several stores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.protocol.lists import (
    lowest_version,
    merge_ps,
    merge_tags,
    openai_model,
    openai_models,
    timestamp,
)
from balancer.protocol.progress import ProgressMerge, describe_failures


def tag(name: str, modified: str = "2026-01-01T00:00:00Z", digest: str = "d") -> dict[str, object]:
    return {"name": name, "modified_at": modified, "digest": digest, "details": {"x": None}}


def test_a_model_on_many_instances_is_listed_once() -> None:
    merged = merge_tags([[tag("a:latest"), tag("b:1")], [tag("A"), tag("library/b:1")], []])

    assert sorted(row["name"] for row in merged["models"]) == ["a:latest", "b:1"]  # type: ignore[attr-defined]


def test_where_digests_differ_the_first_instances_row_stands_untouched() -> None:
    first, second = tag("a:latest", digest="one"), tag("a:latest", "2027-01-01T00:00:00Z", digest="two")

    assert {"models": [first]} == merge_tags([[first], [second]])
    assert {"models": [second]} == merge_tags([[second], [first]])


def test_tags_are_listed_newest_first_whatever_their_offsets() -> None:
    oldest = tag("oldest", "2026-01-01T00:30:00+02:00")
    middle = tag("middle", "2025-12-31T23:00:00.123456789Z")
    newest = tag("newest", "2025-12-31T20:00:00.2-05:00")

    assert {"models": [newest, middle, oldest]} == merge_tags([[oldest], [newest, middle]])


def test_a_row_without_a_time_comes_last() -> None:
    rows = [{"name": "none"}, {"name": "bad", "modified_at": 5}, tag("a")]

    assert merge_tags([rows])["models"][0]["name"] == "a"  # type: ignore[index]


def test_lists_of_nothing_are_empty_lists() -> None:
    assert {"models": []} == merge_tags([]) == merge_tags([[], []]) == merge_ps([[]])


def test_a_model_resident_twice_stands_there_twice_latest_to_expire_first() -> None:
    soon = {"name": "a", "expires_at": "2026-01-01T00:00:00.1Z", "size_vram": 1}
    late = {"name": "a", "expires_at": "2318-01-01T00:00:00.9+01:00", "size_vram": 2}

    assert {"models": [late, soon]} == merge_ps([[soon], [late]])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T00:00:01.5Z", 1.5),
        ("1970-01-01T00:00:00.123456789Z", 0.123456),
        ("1970-01-01T02:00:00+02:00", 0.0),
        ("1969-12-31T19:00:00.25-05:00", 0.25),
        ("0001-01-01T00:00:00Z", -62135596800.0),
        ("", 0.0),
        ("yesterday", 0.0),
        (None, 0.0),
        (5, 0.0),
        ("99999-01-01T00:00:00Z", 0.0),
    ],
)
def test_a_time_with_nanoseconds_and_offset_becomes_seconds(text: object, seconds: float) -> None:
    assert seconds == pytest.approx(timestamp(text), abs=1e-6)


@given(st.text(max_size=40) | st.none() | st.integers())
def test_no_time_crashes_a_list(text: object) -> None:
    assert isinstance(timestamp(text), float)


def test_openai_lists_name_owner_and_second_of_creation() -> None:
    rows = [tag("qwen3:latest", "1970-01-01T00:00:09.999Z"), tag("Me/x:1")]

    assert openai_models(rows) == {
        "object": "list",
        "data": [
            {"id": "qwen3:latest", "object": "model", "created": 9, "owned_by": "library"},
            {"id": "Me/x:1", "object": "model", "created": 1767225600, "owned_by": "Me"},
        ],
    }


def test_an_empty_openai_list_is_null_as_ollamas_is() -> None:
    assert openai_models([]) == {"object": "list", "data": None}


def test_a_model_is_told_under_the_name_that_was_asked_for() -> None:
    assert openai_model("QWEN3", tag("qwen3:latest"))["id"] == "QWEN3"


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        ([], None),
        (["0.33.0"], "0.33.0"),
        (["0.10.0", "0.9.6", "0.33.0"], "0.9.6"),
        (["0.33.0", "0.10.0"], "0.10.0"),
        (["1.0.0", "0.33.0"], "0.33.0"),
        (["0.33.1", "0.33.0-rc2", "0.33.0"], "0.33.0-rc2"),
        (["0.33.0-simulated", "0.32.9"], "0.32.9"),
        (["0.33.0", "unknown"], "unknown"),
    ],
)
def test_the_lowest_version_is_counted_not_spelled(versions: list[str], lowest: str | None) -> None:
    assert lowest == lowest_version(versions)
    assert lowest == lowest_version(reversed(versions))


def layer(total: int, completed: int | None = None, status: str = "pulling abc") -> dict[str, object]:
    record: dict[str, object] = {"status": status, "digest": "sha256:abc", "total": total}
    return record if completed is None else {**record, "completed": completed}


def test_a_layers_progress_is_the_sum_over_the_stores() -> None:
    merge = ProgressMerge(("a", "b"))

    merge.feed(0, layer(100, 10))

    assert layer(200, 40) == merge.feed(1, layer(100, 30))
    assert layer(200, 130) == merge.feed(0, layer(100, 100))


def test_a_store_that_has_not_begun_a_layer_is_counted_with_all_of_it() -> None:
    merge = ProgressMerge(("a", "b", "c"))

    assert layer(300, 10) == merge.feed(0, layer(100, 10))
    assert layer(300, 0) == ProgressMerge(("a", "b", "c")).feed(1, layer(100))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), min_size=1))
def test_no_layer_is_ever_more_than_complete(reports: list[tuple[int, int]]) -> None:
    merge = ProgressMerge(("a", "b", "c"))

    for store, completed in reports:
        told = merge.feed(store, layer(100, completed))
        assert told is not None
        assert 0 <= told["completed"] <= told["total"] == 300  # type: ignore[operator]


def test_layers_do_not_mix() -> None:
    merge = ProgressMerge(("a",))
    merge.feed(0, layer(100, 50))

    other = {"status": "pulling x", "digest": "sha256:x", "total": 7, "completed": 1}
    assert other == merge.feed(0, other)


def test_a_status_is_told_once() -> None:
    merge = ProgressMerge(("a", "b"))
    status = {"status": "pulling manifest"}

    assert [status, None, None] == [merge.feed(0, status), merge.feed(1, status), merge.feed(0, status)]


def test_success_is_told_at_the_end_and_only_when_every_store_succeeded() -> None:
    merge = ProgressMerge(("a", "b"))

    assert merge.feed(0, {"status": "success"}) is None
    assert merge.whole is False
    assert merge.feed(1, {"status": "success"}) is None
    assert merge.whole is True
    assert merge.last() == {"status": "success"}


def test_a_failure_is_told_at_the_end_by_name() -> None:
    merge = ProgressMerge(("a", "b"))
    merge.feed(0, {"status": "success"})

    assert merge.feed(1, {"error": "disk full"}) is None
    assert merge.whole is False
    assert merge.last() == {"error": "failed on 1 of 2 model stores: b: disk full"}


def test_a_store_that_ends_early_has_failed() -> None:
    merge = ProgressMerge(("a", "b"))
    merge.feed(1, {"status": "success"})

    assert merge.last() == {"error": "failed on 1 of 2 model stores: a: ended before it was complete"}


def test_the_first_failure_of_a_store_is_the_one_told() -> None:
    merge = ProgressMerge(("a",))
    merge.fail(0, "first")
    merge.feed(0, {"error": "second"})
    merge.feed(0, {"status": "success"})

    assert merge.last() == {"error": "first"}


def test_stores_that_fail_alike_are_told_as_one() -> None:
    merge = ProgressMerge(("a", "b"))
    merge.fail(0, "no such file")
    merge.fail(1, "no such file")

    assert merge.last() == {"error": "no such file"}


@pytest.mark.parametrize(
    "record", [{}, {"status": None}, {"digest": None}, {"digest": "d", "total": "x", "completed": None}]
)
def test_a_strange_record_breaks_nothing(record: dict[str, object]) -> None:
    merge = ProgressMerge(("a",))
    merge.feed(0, record)

    assert {"error"} == set(merge.last())


def test_failures_are_told_in_one_line() -> None:
    assert describe_failures({"a": "x", "b": "y"}, 3) == "failed on 2 of 3 model stores: a: x; b: y"
