"""Which requests may be asked twice: embeddings, and short answers that are the same each time."""

import json
from typing import Any

import pytest

from balancer.protocol.hedgeable import may_be_hedged
from balancer.protocol.parse import parse_request
from balancer.protocol.routes import find_route

GREEDY = {"temperature": 0}
MESSAGES = [{"role": "user", "content": "hi"}]
NATIVE = {"model": "m", "options": {"temperature": 0, "num_predict": 64}}
OPENAI = {"model": "m", "messages": MESSAGES, "temperature": 0, "max_tokens": 64}
RESPONSE = {"model": "m", "input": "hi", "temperature": 0.0, "max_output_tokens": 1}


def hedgeable(path: str, body: dict[str, Any] | str) -> bool:
    raw = (body if isinstance(body, str) else json.dumps(body)).encode()
    parsed = parse_request(find_route("POST", path), raw, content_type="", content_encoding="")
    return may_be_hedged(parsed.operation, parsed.fields)


def options(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "options": {"temperature": 0, "num_predict": 64, **changes}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"model": "m", "input": ["a", "b"]}),
        ("/api/embeddings", {"model": "m", "prompt": "a"}),
        ("/v1/embeddings", {"model": "m", "input": "a"}),
        ("/api/generate", {**NATIVE, "prompt": "hi", "stream": True}),
        ("/api/generate", {"Model": "m", "OPTIONS": {"temperature": -0.0, "num_predict": 64.0}}),
        ("/api/generate", options(temperature=1, seed=0)),
        ("/api/chat", {**NATIVE, "messages": MESSAGES}),
        ("/api/chat", {**NATIVE, "messages": MESSAGES, "tools": []}),
        ("/api/chat", {**NATIVE, "messages": MESSAGES, "tools": None}),
        ("/predict/m", {"prompt": "hi", **{"options": NATIVE["options"]}}),
        ("/v1/chat/completions", OPENAI),
        ("/v1/chat/completions", {**OPENAI, "temperature": 1, "seed": 7}),
        ("/v1/completions", {"model": "m", "prompt": "hi", "temperature": 0, "max_tokens": 8}),
        ("/v1/responses", RESPONSE),
        ("/v1/messages", OPENAI),
    ],
)
def test_what_may_be_hedged(path: str, body: dict[str, Any]) -> None:
    assert hedgeable(path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"model": "m", "input": "a", "keep_alive": 0}),
        ("/api/embed", {"model": "m:cloud", "input": "a"}),
        ("/api/generate", {"model": "m", "prompt": "hi"}),
        ("/api/generate", {"model": "m", "prompt": "hi", "options": None}),
        ("/api/generate", {"model": "m", "keep_alive": 0, "options": NATIVE["options"]}),
        ("/api/generate", {**NATIVE, "prompt": "hi", "keep_alive": "0s"}),
        ("/api/generate", {"model": "m", "prompt": "hi", "temperature": 0, "num_predict": 8}),
        ("/api/generate", options(num_predict=65)),
        ("/api/generate", options(num_predict=0)),
        ("/api/generate", options(num_predict=-1)),
        ("/api/generate", options(num_predict="8")),
        ("/api/generate", options(num_predict=None)),
        ("/api/generate", options(num_predict=True)),
        ("/api/generate", options(temperature=0.1)),
        ("/api/generate", options(temperature=None)),
        ("/api/generate", options(temperature=1, seed=-1)),
        ("/api/generate", options(temperature=1, seed=2**32 - 1)),
        ("/api/generate", '{"model":"m","options":{"num_predict":8,"temperature":0,"num_predict":-1}}'),
        ("/api/generate", '{"model":"m","options":{"Num_Predict":8,"temperature":0}}'),
        ("/api/chat", {**NATIVE, "messages": MESSAGES, "tools": [{"type": "function"}]}),
        ("/api/chat", {**NATIVE, "messages": MESSAGES, "TOOLS": [{}]}),
        ("/v1/chat/completions", {**OPENAI, "max_tokens": 65}),
        ("/v1/chat/completions", {**OPENAI, "max_tokens": None, "max_completion_tokens": 8}),
        ("/v1/chat/completions", {**OPENAI, "temperature": 1}),
        ("/v1/chat/completions", {**OPENAI, "tools": [{"type": "function"}]}),
        ("/v1/responses", {**RESPONSE, "max_output_tokens": 100}),
        ("/v1/responses", {**RESPONSE, "temperature": 1, "seed": 7}),
        ("/v1/responses", {"model": "m", "input": "hi", "temperature": 0, "max_tokens": 8}),
        ("/v1/messages", {**OPENAI, "temperature": 1, "seed": 7}),
        ("/api/show", {"model": "m", **GREEDY}),
    ],
)
def test_what_is_never_hedged(path: str, body: dict[str, Any] | str) -> None:
    assert not hedgeable(path, body)
