"""The marks of a prompt: alike as far as prompts are alike, bounded, the same in every process."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.ticket import Prefix
from balancer.protocol.json_body import read_object
from balancer.protocol.prefix import BYTES_PER_TOKEN, read_prefix

LONG = " ".join(f"word{number}" for number in range(3000))


def marks(body: dict[str, Any] | bytes) -> Prefix:
    return read_prefix(read_object(body if isinstance(body, bytes) else json.dumps(body).encode()))


def shared(one: Prefix, other: Prefix) -> int:
    """Tokens up to the last mark that both have."""
    return max((tokens for mark, tokens in one if (mark, tokens) in set(other)), default=0)


def message(text: str, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def whole(prefix: Prefix) -> int:
    return prefix[-1][1]


def test_equal_prompts_have_equal_marks_in_every_process() -> None:
    body = json.dumps({"model": "m", "messages": [message(LONG)], "options": {"seed": 1}})
    code = (
        "import sys; from balancer.protocol.json_body import read_object as read;"
        "from balancer.protocol.prefix import read_prefix; print(read_prefix(read(sys.stdin.buffer.read())))"
    )

    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            input=body.encode(),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert [f"{marks(body.encode())}\n".encode()] * 2 == told


def test_what_makes_no_prompt_changes_no_mark() -> None:
    one = {"model": "m", "messages": [message("Hi")], "stream": True, "options": {"seed": 1}}
    other = {"messages": [message("Hi")], "keep_alive": 5, "model": "n"}

    assert marks(one) == marks(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("template", "{{ .Prompt }}"),
        ("raw", True),
        ("context", [1, 2]),
        ("system", "Be kind."),
        ("instructions", "Be kind."),
        ("tools", [{"type": "function"}]),
        ("images", ["aaaa"]),
        ("Images", ["aaaa"]),
        ("prompt", "Why?"),
        ("suffix", "end"),
        ("messages", [message("Hi")]),
        ("messages", "Hi"),
        ("input", "Hi"),
        ("input", [{"type": "message"}]),
    ],
)
def test_each_part_of_a_prompt_is_told_apart(key: str, value: object) -> None:
    without = marks({"model": "m", "input": "x"}) if key != "input" else marks({"model": "m"})
    body = {"model": "m", "input": "x", key: value}

    assert marks(body) != without
    assert marks(body) == marks(dict(reversed(body.items())))


def test_a_request_without_a_prompt_has_no_marks() -> None:
    assert marks({"model": "m", "prompt": None}) == ()


def test_prompts_share_marks_as_far_as_they_are_alike() -> None:
    one = marks({"prompt": LONG + " and one"})
    other = marks({"prompt": LONG + " or another"})

    assert whole(one) * 0.95 < shared(one, other) < whole(one)
    assert shared(one, marks({"prompt": "x" + LONG})) == 0


@pytest.mark.parametrize("words", [1, 40, 900])
@pytest.mark.parametrize("turns", [1, 5, 60])
def test_a_later_turn_has_the_mark_at_the_end_of_an_earlier_prompt(words: int, turns: int) -> None:
    said = [message("word " * words + str(number), "user") for number in range(2 * turns + 1)]
    before = marks({"messages": [message("Be kind.", "system"), *said], "stream": True})
    answered = [message("An answer.", "assistant"), message("A result.", "tool"), message("Why?")]

    after = marks({"messages": [message("Be kind.", "system"), *said, *answered]})

    assert before[-1] in after
    assert before[-1] != after[-1]


def test_prompts_that_share_no_text_share_no_mark() -> None:
    one = marks({"messages": [message("Hi")]})
    other = marks({"messages": [message("Ho"), message("Yes?", "assistant")]})

    assert shared(one, other) == 0


def test_whitespace_between_messages_is_no_part_of_them() -> None:
    compact = b'{"messages":[{"role":"user"},{"role":"assistant"}]}'
    wide = b'{ "messages" : [ {"role":"user"} ,\n {"role":"assistant"} ] }'

    assert marks(compact) == marks(wide)


def test_marks_for_a_providers_cache_are_no_part_of_a_prompt() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    text = 'Say {"cache_control": {"type": "ephemeral"}}, and "cache_control": null.'
    plain = {"type": "text", "text": text}

    def told(*parts: dict[str, Any]) -> Prefix:
        return marks({"messages": [{"role": "user", "content": list(parts)}]})

    assert told(plain, plain) == told({**plain, "cache_control": mark}, {"cache_control": None, **plain})
    assert told(plain) != told({**plain, "text": text.replace("cache_control", "x")})
    assert told(plain) != told({**plain, "text": text.replace('"cache_control": null', "")})


def test_images_are_told_apart() -> None:
    one, other = ("A" * 100_000 + end for end in "BC")

    prefixes = [marks({"messages": [message("What is it?", images=[each])]}) for each in (one, other)]

    assert prefixes[0][-1] != prefixes[1][-1]
    assert prefixes[0][:-1][0] == prefixes[1][0]


@pytest.mark.parametrize("size", [1, 300, 100_000, 6_000_000])
def test_marks_are_few_and_stand_where_they_say(size: int) -> None:
    prefix = marks({"prompt": "x" * size})
    bytes_marked = min(size + len('prompt:""'), 4 * 2**20)

    assert 1 <= len(prefix) <= 256
    assert prefix[-1][1] == bytes_marked // BYTES_PER_TOKEN
    assert [tokens for _, tokens in prefix] == sorted({tokens for _, tokens in prefix})
    assert len({mark for mark, _ in prefix}) == len(prefix)
    steps = [after - before for (_, before), (_, after) in pairwise(prefix)]
    assert all(step <= max(128, tokens // 32 + 1) for step, (_, tokens) in zip(steps, prefix, strict=False))


def test_many_messages_have_few_marks() -> None:
    said = [message(str(number)) for number in range(5000)]

    assert len(marks({"messages": said})) <= 256


@pytest.mark.parametrize("items", [b"1," * 500_000 + b"1", b"{}," * 100_000 + b"{}"])
def test_a_list_of_very_many_items_is_marked_as_a_text(items: bytes) -> None:
    prefix = marks(b'{"messages":[' + items + b"]}")

    assert prefix == marks(b'{"messages": [' + items + b"] }")
    assert whole(prefix) == (len(b"messages:[]") + len(items)) // BYTES_PER_TOKEN


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["system", "tools", "messages", "input", "prompt", "Images", "raw", "context", "x"])


@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_whatever_a_body_holds_has_sound_marks(body: dict[str, Any]) -> None:
    prefix = marks(body)

    tokens = [each for _, each in prefix]
    assert tokens == sorted(tokens)
    assert len(prefix) <= 256
    assert all(0 <= mark < 2**64 for mark, _ in prefix)
    assert whole(prefix) <= len(json.dumps(body)) // BYTES_PER_TOKEN + 1 if prefix else True


@given(st.lists(st.text(max_size=600), min_size=1, max_size=30), st.data())
def test_whoever_shares_any_mark_has_one_of_the_first(texts: list[str], data: st.DataObject) -> None:
    """Which the index builds upon."""
    kept = data.draw(st.integers(1, len(texts)))
    one = marks({"messages": [message(text) for text in texts]})
    other = marks({"messages": [message(text) for text in texts[:kept]]})

    if set(one) & set(other):
        assert set(one[:10]) & set(other)
