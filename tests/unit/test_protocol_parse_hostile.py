"""Bodies made to hurt: whatever comes, the parser answers with an operation or an error of the tree."""

import json
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import BalancerError, ClientError, MalformedRequest
from balancer.protocol.parse import estimate_prompt_tokens, parse_request
from balancer.protocol.routes import ROUTES, Match

KEYS = [
    "model",
    "Model",
    "name",
    "source",
    "stream",
    "options",
    "shift",
    "keep_alive",
    "prompt",
    "messages",
    "num_ctx",
    "x",
]
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b'"model"',
    b'"options"',
    b'"x"',
    b"null",
    b"1e999",
    b"\xff",
    b"\\ud800",
    b"0",
    b" ",
    b"\xef\xbb\xbf",
]
HOSTILE = (
    st.binary(max_size=200)
    | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
        max_leaves=15,
    ).map(lambda value: json.dumps(value).encode())
)
BODIED = [route for route in ROUTES if route.methods[0] not in {"GET", "HEAD"}]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(BODIED),
    HOSTILE,
    st.text(max_size=5),
    st.sampled_from(["", "zstd"]),
    st.sampled_from(["", "application/json", "multipart/form-data", "multipart/form-data; boundary=b"]),
)
def test_no_body_crashes_the_parser(
    route: object, body: bytes, parameter: str, encoding: str, content_type: str
) -> None:
    path = route.path  # type: ignore[attr-defined]
    match = Match(route, parameter if "{" in path else None)  # type: ignore[arg-type]

    with suppress(ClientError):
        parse_request(match, body, content_type=content_type, content_encoding=encoding)


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_no_body_crashes_the_estimate(body: bytes) -> None:
    with suppress(BalancerError):
        assert estimate_prompt_tokens(body) >= 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 30))
def test_no_damaged_compression_crashes_the_parser(garbage: bytes, cut: int) -> None:
    whole = zstandard.ZstdCompressor().compress(b'{"model":"x","prompt":"hello"}')
    route = next(each for each in ROUTES if each.path == "/v1/messages")

    for body in (garbage, whole[:cut] + garbage, whole + garbage):
        with suppress(ClientError):
            parse_request(Match(route), body, content_type="", content_encoding="zstd")


@pytest.mark.parametrize("depth", [2_000, 1_000_000])
@pytest.mark.parametrize("key", ["messages", "options", "model", "prompt"])
@pytest.mark.parametrize("path", ["/api/chat", "/predict/{model}", "/v1/messages"])
def test_a_body_nested_without_end_is_malformed(path: str, key: str, depth: int) -> None:
    route = next(each for each in ROUTES if each.path == path)
    body = b'{"prompt":"","%s":' % key.encode() + b"[" * depth + b"]" * depth + b"}"

    with pytest.raises(MalformedRequest):
        parse_request(Match(route, "x"), body, content_type="", content_encoding="")


@pytest.mark.parametrize("depth", [100, 300, 500, 800, 5_000])
def test_a_nested_body_is_estimated_or_malformed(depth: int) -> None:
    with suppress(MalformedRequest):
        estimate_prompt_tokens(b'{"messages":' + b"[" * depth + b"]" * depth + b"}")


def test_a_large_body_is_read_for_its_model_alone() -> None:
    body = json.dumps({"messages": [{"content": "word " * 200_000}], "model": "x"}).encode()
    route = next(each for each in ROUTES if each.path == "/api/chat")

    assert parse_request(Match(route), body, content_type="", content_encoding="").operation.model == "x"


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{", b"\xff"])
def test_an_estimate_of_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        estimate_prompt_tokens(body)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 1),
        ({"messages": []}, 1),
        ({"messages": [{"role": "user", "content": "12345678"}]}, 3 + 1 + 2),
        ({"messages": [{"role": "user", "content": "123456789"}]}, 3 + 1 + 3),
        ({"messages": [{"role": "user", "content": "ü" * 4}]}, 3 + 1 + 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1234"}]}]}, 3 + 1 + 1),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "x" * 9999}}]}]},
            3 + 1 + 1000,
        ),
        ({"system": "1234", "messages": []}, 1),
        ({"tools": [{"name": "abcd", "description": "12345678"}]}, 1 + 2),
        ({"messages": [{"content": 5}, {"content": None}]}, 6),
        ({"max_tokens": 100, "model": "x" * 400}, 1),
    ],
)
def test_an_estimate_counts_text_messages_and_images(fields: dict[str, object], tokens: int) -> None:
    assert tokens == estimate_prompt_tokens(json.dumps(fields).encode())
