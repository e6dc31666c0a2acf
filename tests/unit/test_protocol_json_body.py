"""A body is read strictly, once, and in one way only; whatever else it is, it is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import MalformedRequest
from balancer.protocol.json_body import DEPTH_LIMIT, KEYS_LIMIT, read_inner, read_object


def read(body: bytes) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in read_object(body).items()}


def test_values_are_left_as_they_stand() -> None:
    body = b' {"a" : [ 1, {"b": 2} ],\n"c":"\\u0041" , "d":1.50, "a\\u0062":null}\t\r\n'

    assert read(body) == {"a": b'[ 1, {"b": 2} ]', "c": b'"\\u0041"', "d": b"1.50", "ab": b"null"}


@pytest.mark.parametrize(
    "value",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"01",
        b"-01",
        b"1.",
        b".5",
        b"+5",
        b"-",
        b"1e",
        b"0x5",
        b"1_0",
        b"tru",
        b"None",
        b"'a'",
        b'"\x01"',
        b'"a\nb"',
        b'"\\x"',
        b'"\\u00g0"',
        b'"\\ud8zz"',
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'{"\xff":1}',
        b'"\xc3',
        b"1,",
        b"1 2",
        b"{1:2}",
        b"/**/1",
    ],
)
@pytest.mark.parametrize("around", [b"%b", b"[%b]", b'{"x":[%b]}'])
def test_what_strict_json_has_not_is_malformed_however_deep(value: bytes, around: bytes) -> None:
    inner = around.replace(b"%b", value)

    with pytest.raises(MalformedRequest, match="not a JSON object"):
        read_object(b'{"model":"m","x":' + inner + b"}")


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        '{"model":"m"}'.encode("utf-16"),
        '{"model":"m"}'.encode("utf-16-le"),
        b'{"model":"m"}\x00',
        b'{"model":"m"}\x0c',
        b'{"model":"m"}\xc2\xa0',
        b'{"model":"m"} x',
        b'{"model":"m"}{}',
        b'"\\ud83d"',
        b'{"x":1e999,"y":"\\ud83d"}',
        b'{"x":NaN,"y":"\\ud83d"}',
        b'{"model":"m","model":"n","y":"\\ud83d"}',
    ],
)
def test_what_is_no_one_object_in_utf_8_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"A":1}',
        b'{"a":1,"\\u0061":1}',
        b'{"a":1,"\\u0041":1}',
        '{"k":1,"\u212a":1}'.encode(),
        b'{"k":1,"\\u212a":1}',
        '{"s":1,"\u017f":1}'.encode(),
    ],
)
def test_a_key_that_comes_twice_in_any_case_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="twice"):
        read_object(body)


@pytest.mark.parametrize(
    "number",
    [b"1e999", b"-1e999", b"1E+400", b"9" * 100_000, b"-" + b"9" * 400],
    ids=lambda number: number[:6].decode(),
)
def test_a_number_that_no_float_holds_is_malformed_at_the_top_and_in_what_is_looked_into(
    number: bytes,
) -> None:
    with pytest.raises(MalformedRequest, match="out of range"):
        read_object(b'{"x":' + number + b"}")
    with pytest.raises(MalformedRequest, match="'options' cannot be read: a number is out of range"):
        read_inner(read_object(b'{"options":{"x":' + number + b"}}")["options"], "options")


def test_a_number_may_be_small_or_long() -> None:
    long = b"0." + b"9" * 1000

    assert read(b'{"x":1e-999,"y":' + long + b"}") == {"x": b"1e-999", "y": long}


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    """An object with `depth` levels, its own counted."""
    return b'{"x":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[0,{"a\\"]":', b"}]")])
def test_an_object_is_read_down_to_the_limit_and_no_deeper(opening: bytes, closing: bytes) -> None:
    levels = len(closing)
    most = 1 + (DEPTH_LIMIT - 1) // levels

    assert "x" in read(nested(most, opening, closing))
    with pytest.raises(MalformedRequest, match="nested deeper than 100"):
        read_object(nested(most + 1, opening, closing))


@pytest.mark.parametrize(
    "text",
    ["[" * 500, "{" * 500, '"[' * 500, "\\" * 501 + "[" * 500, '\\"[' * 300, "[{\n\t\u00fc" * 200],
    ids=range(6),
)
def test_brackets_in_text_are_no_nesting(text: str) -> None:
    read_object(json.dumps({"x": [text, {text: text}]}).encode())


def test_many_small_values_are_no_nesting() -> None:
    read_object(json.dumps({"x": [[{}, []]] * 10_000}).encode())


@pytest.mark.parametrize(
    "body", [b"[" * 1_000_000, b'{"a":' * 100_000, b'{"x":[' + b"[]," * 600_000 + b"1]}"]
)
def test_a_body_made_of_brackets_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_object(body)


def test_so_many_keys_are_read_and_no_more() -> None:
    keys = [f"k{number}" for number in range(KEYS_LIMIT + 1)]

    assert len(read(json.dumps(dict.fromkeys(keys[:-1])).encode())) == KEYS_LIMIT
    with pytest.raises(MalformedRequest, match="more than 1000 keys"):
        read_object(json.dumps(dict.fromkeys(keys)).encode())


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("abcd\u00e9\u4e2d\U0001f600", max_size=4),
        st.text(max_size=8) | st.lists(st.text(max_size=4) | st.integers() | st.none(), max_size=3),
    ),
    st.booleans(),
)
def test_what_is_read_is_what_json_says(values: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps(values, ensure_ascii=ascii_only).encode()

    assert {key: json.loads(value) for key, value in read(body).items()} == values


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\udE00 x", "\ufffd x"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\ud83d\u0041", "\ufffdA"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
    ],
)
def test_half_a_character_is_read_as_ollama_reads_it(sent: bytes, meant: str) -> None:
    found = read(b'{"%b":["%b"]}' % (sent, sent))

    assert {key: json.loads(value) for key, value in found.items()} == {meant: [meant]}
