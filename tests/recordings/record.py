"""Record how a real Ollama server answers: one JSON line per exchange, HTTP chunk boundaries kept.

    python record.py http://127.0.0.1:11434 exchanges.jsonl --rename /srv/ollama/models=/models

Each line is ``{"name", "request", "response"}``:

* ``request``: ``method``, ``path``, ``headers`` (pairs, in the order sent) and ``body``;
* ``response``: ``status``, ``reason``, ``headers`` (pairs, as received), ``framing`` and ``chunks``.

A body and a chunk are text where they are UTF-8, otherwise ``{"base64": ...}``. ``framing`` is ``chunked``
(one entry per HTTP chunk), ``length`` or ``close`` (one entry at most), or ``none`` (no body by definition).
A request with ``Transfer-Encoding: chunked`` is sent as one chunk; its ``body`` is the payload.

The server needs six models, named by options: ``chat`` (any text, with tools and insert), ``plain`` (without
tools), ``embed`` (vectors), ``tool`` (answers with a call of ``get_weather``), ``think`` (thinks first) and
``text`` (recites a short fixed text with non-ASCII letters). It may write scratch models called ``rec-*``,
which it deletes again. The exchanges run one after the other, in the order of the table.
"""

import argparse
import base64
import hashlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

Json = dict[str, Any]
Pairs = list[tuple[str, str]]

TIMEOUT = 60.0
MISSING = "rec-missing"
UNREACHABLE = "127.0.0.1:1/library/rec-model"
EMPTY_PNG = "iVBORw0KGgo="
UNICODE = 'Grüße, мир, 世界, \U0001f600 "quoted" back\\slash\ttab\nline <b>&amp;</b> \u2028 end'
CITY: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Json = {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}
TOOL: Json = {"type": "function", "function": WEATHER}
SCRATCH_BLOB = b"a scratch blob of the recorder\n"


@dataclass(frozen=True)
class Models:
    """The names of the models to ask for."""

    chat: str
    plain: str
    embed: str
    tool: str
    think: str
    text: str


@dataclass(frozen=True)
class Request:
    """One request of the table."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: Pairs = field(default_factory=list)


@dataclass(frozen=True)
class Response:
    """One answer, its body cut where the HTTP chunks were cut."""

    status: int
    reason: str
    headers: Pairs
    framing: str
    chunks: list[bytes]


# -- the table of requests ---------------------------------------------------------------------------------


def post(name: str, path: str, body: Json | str | bytes, *headers: tuple[str, str]) -> Request:
    """A POST; a dict is sent as compact JSON, text and bytes as they are."""
    if isinstance(body, dict):
        body = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    raw = body.encode() if isinstance(body, str) else body
    typed = (
        [] if any(name == "Content-Type" for name, _ in headers) else [("Content-Type", "application/json")]
    )
    return Request(name, "POST", path, raw, [*typed, *headers])


def both_ways(name: str, path: str, body: Json) -> Iterator[Request]:
    """The same request streamed and in one piece."""
    yield post(f"{name}/stream", path, {**body, "stream": True})
    yield post(f"{name}/unary", path, {**body, "stream": False})


def user(text: str, **more: Any) -> Json:
    """A message of the user."""
    return {"role": "user", "content": text, **more}


def queries(models: Models) -> Iterator[Request]:
    """Everything that only looks."""
    for path in ("/", "/api/version", "/api/tags"):
        yield Request(f"query/get {path}", "GET", path)
        yield Request(f"query/head {path}", "HEAD", path)
    for path in ("/api/ps", "/api/status", "/v1/models", f"/v1/models/{models.chat}"):
        yield Request(f"query/get {path}", "GET", path)


def shows(models: Models) -> Iterator[Request]:
    """The description of a model in its forms."""
    for name in (models.chat, models.plain, models.embed, models.think):
        yield post(f"show/{name}", "/api/show", {"model": name})
    yield post("show/by name", "/api/show", {"name": models.text})
    yield post("show/with tag", "/api/show", {"model": f"{models.text}:latest"})
    yield post("show/with namespace", "/api/show", {"model": f"library/{models.text}"})
    yield post("show/upper case", "/api/show", {"model": models.text.upper()})
    yield post("show/system", "/api/show", {"model": models.text, "system": "Be brief."})
    yield post("show/verbose", "/api/show", {"model": models.text, "verbose": True})
    yield Request("models/with tag", "GET", f"/v1/models/{models.embed}:latest")
    yield Request("models/query", "GET", "/v1/models?limit=1")
    yield Request("recommendations", "GET", "/api/experimental/model-recommendations")


def generate(models: Models) -> Iterator[Request]:
    """``/api/generate`` with each of its options."""
    few = {"num_predict": 5}
    variants: dict[str, Json] = {
        "defaults": {"options": few},
        "seed": {"options": {**few, "seed": 7, "temperature": 0}},
        "sampling": {"options": {**few, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.2}},
        "one token": {"options": {"num_predict": 1}},
        "system": {"system": "Be brief.", "options": few},
        "template": {"template": "Q: {{ .Prompt }} A:", "options": few},
        "raw": {"raw": True, "options": few},
        "suffix": {"suffix": "return 1", "options": few},
        "context": {"context": [1, 300, 400, 500], "options": few},
        "json": {"format": "json", "options": {"num_predict": 12}},
        "schema": {"format": CITY, "options": {"num_predict": 24}},
        "logprobs": {"logprobs": True, "options": few},
        "top logprobs": {"logprobs": True, "top_logprobs": 2, "options": few},
        "keep alive text": {"keep_alive": "10m", "options": few},
        "keep alive number": {"keep_alive": 300, "options": few},
        "keep alive for ever": {"keep_alive": -1, "options": few},
        "unknown fields": {"colour": "blue", "options": {**few, "colour": "blue"}},
        "other context length": {"options": {**few, "num_ctx": 1024}},
        "no shift": {"shift": False, "options": few},
        "long prompt": {"prompt": "word " * 400, "options": few},
        "unicode": {"prompt": UNICODE, "options": few},
    }
    for name, more in variants.items():
        yield from both_ways(
            f"generate/{name}", "/api/generate", {"model": models.chat, "prompt": "Hi", **more}
        )
    yield from both_ways("generate/text", "/api/generate", {"model": models.text, "prompt": "Say it"})
    stop = {"model": models.text, "prompt": "Say it", "options": {"stop": ["line"]}}
    yield from both_ways("generate/stop", "/api/generate", stop)
    for think in (True, False):
        body = {"model": models.think, "prompt": "Why?", "think": think}
        yield from both_ways(f"generate/think {think}", "/api/generate", body)
    yield post("generate/stream by default", "/api/generate", {"model": models.text, "prompt": "Say it"})
    escaped = json.dumps({"model": models.text, "prompt": UNICODE, "stream": False})
    yield post("generate/escaped unicode", "/api/generate", escaped)
    spaced = json.dumps({"prompt": "Say it", "stream": False, "model": models.text}, indent=2)
    yield post("generate/model last", "/api/generate", spaced)
    plain_type = ("Content-Type", "text/plain")
    body = {"model": models.text, "prompt": "Say it", "stream": False}
    yield post("generate/other content type", "/api/generate", body, plain_type)
    yield post("generate/chunked request", "/api/generate", body, ("Transfer-Encoding", "chunked"))
    yield post("generate/authorization", "/api/generate", body, ("Authorization", "Bearer secret"))
    yield post("generate/rendered only", "/api/generate", {**body, "_debug_render_only": True})


def chat(models: Models) -> Iterator[Request]:
    """``/api/chat`` with each of its options, tools and thinking."""
    few = {"num_predict": 5}
    hello = [user("Hi")]
    turns = [{"role": "system", "content": "Be brief."}, *hello, {"role": "assistant", "content": "Yes?"}]
    variants: dict[str, Json] = {
        "defaults": {"messages": hello},
        "turns": {"messages": [*turns, user("Go on")]},
        "assistant last": {"messages": turns},
        "unicode": {"messages": [user(UNICODE)]},
        "seed": {"messages": hello, "options": {**few, "seed": 3, "temperature": 0}},
        "json": {"messages": hello, "format": "json", "options": {"num_predict": 12}},
        "schema": {"messages": hello, "format": CITY, "options": {"num_predict": 24}},
        "logprobs": {"messages": hello, "logprobs": True, "top_logprobs": 1},
        "tools unused": {"messages": hello, "tools": [TOOL]},
        "keep alive": {"messages": hello, "keep_alive": "1h30m"},
        "too long": {"messages": [user("word " * 100) for _ in range(40)]},
    }
    for name, more in variants.items():
        yield from both_ways(f"chat/{name}", "/api/chat", {"model": models.chat, "options": few, **more})
    yield from both_ways("chat/text", "/api/chat", {"model": models.text, "messages": hello})
    stop = {"model": models.text, "messages": hello, "options": {"stop": ["there"]}}
    yield from both_ways("chat/stop", "/api/chat", stop)
    weather = {"model": models.tool, "messages": [user("Weather in Paris?")], "tools": [TOOL]}
    yield from both_ways("chat/tool call", "/api/chat", weather)
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    answered = [
        *weather["messages"],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "11 degrees"},
    ]
    result = {"model": models.text, "messages": answered, "tools": [TOOL]}
    yield from both_ways("chat/tool result", "/api/chat", result)
    for think in (True, False, "high"):
        body = {"model": models.think, "messages": hello, "think": think}
        yield from both_ways(f"chat/think {think}", "/api/chat", body)
    yield from both_ways("chat/think by default", "/api/chat", {"model": models.think, "messages": hello})
    schema = {"model": models.think, "messages": hello, "format": CITY, "options": {"num_predict": 24}}
    yield from both_ways("chat/think and schema", "/api/chat", schema)
    yield post("chat/stream by default", "/api/chat", {"model": models.text, "messages": hello})
    rendered = {"model": models.chat, "messages": turns, "_debug_render_only": True}
    yield post("chat/rendered only", "/api/chat", rendered)


def embeddings(models: Models) -> Iterator[Request]:
    """Vectors by the three routes."""
    variants: dict[str, Json] = {
        "single": {"input": "one", "dimensions": 8},
        "list": {"input": ["one", "two", "three"], "dimensions": 8},
        "full size": {"input": "one"},
        "list of full size": {"input": ["one", "two"]},
        "unicode": {"input": UNICODE, "dimensions": 4},
        "empty text": {"input": "", "dimensions": 4},
        "empty text in list": {"input": ["one", ""], "dimensions": 4},
        "empty list": {"input": []},
        "no input": {},
        "truncated": {"input": "word " * 700, "dimensions": 4, "truncate": True},
        "too long": {"input": "word " * 700, "dimensions": 4, "truncate": False},
        "keep alive": {"input": "one", "dimensions": 4, "keep_alive": "10m"},
        "options": {"input": "one", "dimensions": 4, "options": {"num_ctx": 256}},
        "wrong type": {"input": 5},
        "wrong type in list": {"input": ["one", 5]},
    }
    for name, more in variants.items():
        yield post(f"embed/{name}", "/api/embed", {"model": models.embed, **more})
    yield post("embed/by a chat model", "/api/embed", {"model": models.chat, "input": "one"})
    yield post("embeddings/prompt", "/api/embeddings", {"model": models.embed, "prompt": "one"})
    yield post("embeddings/empty prompt", "/api/embeddings", {"model": models.embed, "prompt": ""})
    compatible: dict[str, Json] = {
        "single": {"input": "one", "dimensions": 8},
        "list": {"input": ["one", "two"], "dimensions": 8},
        "float": {"input": "two", "encoding_format": "float", "dimensions": 8},
        "base64": {"input": "one", "encoding_format": "base64", "dimensions": 8},
        "base64 list": {"input": ["one", "two"], "encoding_format": "base64"},
        "full size": {"input": "three"},
        "bad encoding": {"input": "one", "encoding_format": "hex"},
        "empty list": {"input": []},
        "empty text": {"input": "", "dimensions": 4},
        "token ids": {"input": [1, 2, 3]},
    }
    for name, more in compatible.items():
        yield post(f"v1 embeddings/{name}", "/v1/embeddings", {"model": models.embed, **more})


def openai(models: Models) -> Iterator[Request]:
    """The OpenAI routes."""
    hello = [user("Hi")]
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/cat.png"}}
    variants: dict[str, Json] = {
        "defaults": {"messages": hello},
        "usage": {"messages": hello, "stream_options": {"include_usage": True}},
        "sampling": {"messages": hello, "temperature": 0, "seed": 1, "top_p": 0.9, "frequency_penalty": 0.1},
        "parts": {"messages": [user("", content=[{"type": "text", "text": "Hi"}])]},
        "json": {"messages": hello, "response_format": {"type": "json_object"}, "max_tokens": 12},
        "logprobs": {"messages": hello, "logprobs": True, "top_logprobs": 1},
        "unicode": {"messages": [user(UNICODE)]},
        "picture by address": {"messages": [user("", content=[picture])]},
    }
    path = "/v1/chat/completions"
    for name, more in variants.items():
        yield from both_ways(f"v1 chat/{name}", path, {"model": models.chat, "max_tokens": 5, **more})
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    yield post(
        "v1 chat/schema",
        path,
        {"model": models.chat, "messages": hello, "response_format": schema, "max_tokens": 24},
    )
    yield from both_ways("v1 chat/text", path, {"model": models.text, "messages": hello})
    yield from both_ways("v1 chat/stop", path, {"model": models.text, "messages": hello, "stop": "line"})
    yield from both_ways(
        "v1 chat/stops", path, {"model": models.text, "messages": hello, "stop": ["x", "there"]}
    )
    yield from both_ways(
        "v1 chat/tool call", path, {"model": models.tool, "messages": hello, "tools": [TOOL]}
    )
    usage = {"stream_options": {"include_usage": True}}
    call = {"model": models.tool, "messages": hello, "tools": [TOOL], "tool_choice": "auto", **usage}
    yield from both_ways("v1 chat/tool call and usage", path, call)
    said = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
    }
    answered = [
        *hello,
        {"role": "assistant", "content": None, "tool_calls": [said]},
        {"role": "tool", "tool_call_id": "call_1", "content": "11 degrees"},
    ]
    yield from both_ways("v1 chat/tool result", path, {"model": models.text, "messages": answered})
    yield from both_ways("v1 chat/think", path, {"model": models.think, "messages": hello})
    for effort in ("high", "none"):
        body = {"model": models.think, "messages": hello, "reasoning_effort": effort}
        yield from both_ways(f"v1 chat/effort {effort}", path, body)
    body = {"model": models.text, "messages": hello}
    yield post("v1 chat/authorization", path, body, ("Authorization", "Bearer sk-secret"))
    packed = zstd(json.dumps(body).encode())
    yield post("v1 chat/zstd", path, packed, ("Content-Encoding", "zstd"))

    completions: dict[str, Json] = {
        "defaults": {"model": models.chat, "max_tokens": 5},
        "usage": {"model": models.chat, "max_tokens": 5, "stream_options": {"include_usage": True}},
        "suffix": {"model": models.chat, "max_tokens": 5, "suffix": "return 1"},
        "logprobs": {"model": models.chat, "max_tokens": 3, "logprobs": 1},
        "text": {"model": models.text},
        "stop": {"model": models.text, "stop": ["line"]},
    }
    for name, more in completions.items():
        yield from both_ways(f"v1 completions/{name}", "/v1/completions", {"prompt": "Hi", **more})
    prompts = {"model": models.text, "prompt": ["a", "b"]}
    yield post("v1 completions/list of prompts", "/v1/completions", prompts)

    function = {"type": "function", **WEATHER}
    responses: dict[str, Json] = {
        "text": {"model": models.text, "input": "Hi"},
        "messages": {"model": models.text, "input": [user("Hi")], "instructions": "Be brief."},
        "few": {"model": models.chat, "input": "Hi", "max_output_tokens": 5, "temperature": 0},
        "tool call": {"model": models.tool, "input": "Weather?", "tools": [function]},
        "think": {"model": models.think, "input": "Why?", "reasoning": {"effort": "high"}},
    }
    for name, more in responses.items():
        yield from both_ways(f"v1 responses/{name}", "/v1/responses", more)


def anthropic(models: Models) -> Iterator[Request]:
    """The Anthropic route."""
    tool: Json = {"name": "get_weather", "description": "Weather of a city", "input_schema": CITY}
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    answered = [
        user("Weather?"),
        {"role": "assistant", "content": [call]},
        user("", content=[{"type": "tool_result", "tool_use_id": "toolu_1", "content": "11 degrees"}]),
    ]
    hello = [user("Hi")]
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    budget = {"type": "enabled", "budget_tokens": 1024}
    variants: dict[str, Json] = {
        "text": {"model": models.text, "messages": hello},
        "few": {"model": models.chat, "messages": hello, "max_tokens": 5},
        "system": {"model": models.text, "messages": hello, "system": "Be brief."},
        "system blocks": {"model": models.text, "messages": hello, "system": blocks},
        "stop": {"model": models.text, "messages": hello, "stop_sequences": ["line"]},
        "unicode": {"model": models.text, "messages": [user(UNICODE)]},
        "tool call": {"model": models.tool, "messages": hello, "tools": [tool]},
        "tool result": {"model": models.text, "messages": answered, "tools": [tool]},
        "thinking": {"model": models.think, "messages": hello, "thinking": budget},
        "no thinking": {"model": models.think, "messages": hello, "thinking": {"type": "disabled"}},
    }
    for name, more in variants.items():
        yield from both_ways(f"v1 messages/{name}", "/v1/messages", {"max_tokens": 64, **more})
    keyed = [("x-api-key", "secret"), ("anthropic-version", "2023-06-01")]
    yield post("v1 messages/keyed", "/v1/messages", {"max_tokens": 9, **variants["text"]}, *keyed)
    yield post("v1 messages/no limit", "/v1/messages", variants["text"])
    yield post("v1 messages/no messages", "/v1/messages", {"model": models.text, "max_tokens": 9})
    count = {"model": models.text, "messages": hello}
    yield post("v1 messages/count tokens", "/v1/messages/count_tokens", count)


def loading(models: Models) -> Iterator[Request]:
    """Loads and unloads that generate nothing."""
    routes: dict[str, tuple[str, Json]] = {
        "generate": ("/api/generate", {"prompt": ""}),
        "chat": ("/api/chat", {"messages": []}),
    }
    for route, (path, nothing) in routes.items():
        body = {"model": models.text, **nothing}
        yield post(f"load/{route}", path, body)
        yield post(f"load/{route} for a time", path, {**body, "keep_alive": "5m"})
        yield post(f"load/{route} in one piece", path, {**body, "stream": False})
        yield post(f"unload/{route}", path, {**body, "keep_alive": 0})
        yield post(f"unload/{route} with text", path, {**body, "keep_alive": "0s"})
        yield post(f"unload/{route} of a missing model", path, {**body, "model": MISSING, "keep_alive": 0})
    yield post("unload/embed", "/api/embed", {"model": models.embed, "keep_alive": 0})


def storage(models: Models) -> Iterator[Request]:
    """Copies, blobs, creation, deletion, and transfers that cannot reach their registry."""
    digest = f"sha256:{hashlib.sha256(SCRATCH_BLOB).hexdigest()}"
    wrong = f"sha256:{'0' * 64}"
    octets = ("Content-Type", "application/octet-stream")
    yield Request("blobs/head of a missing one", "HEAD", f"/api/blobs/{digest}")
    yield post("blobs/create", f"/api/blobs/{digest}", SCRATCH_BLOB, octets)
    yield post("blobs/create again", f"/api/blobs/{digest}", SCRATCH_BLOB, octets)
    yield Request("blobs/head", "HEAD", f"/api/blobs/{digest}")
    yield post("blobs/other digest", f"/api/blobs/{wrong}", SCRATCH_BLOB, octets)
    yield Request("blobs/bad digest", "HEAD", "/api/blobs/sha256:12")
    yield post("blobs/create with bad digest", "/api/blobs/nothing", SCRATCH_BLOB, octets)
    yield post("copy", "/api/copy", {"source": models.text, "destination": "rec-copy"})
    yield post("copy/of a missing model", "/api/copy", {"source": MISSING, "destination": "rec-copy"})
    yield post("copy/bad name", "/api/copy", {"source": models.text, "destination": "a b"})
    yield post("show/copy", "/api/show", {"model": "rec-copy"})
    made = {"model": "rec-made", "from": models.text, "system": "Be brief.", "parameters": {"temperature": 0}}
    yield from both_ways("create/from", "/api/create", made)
    talk = {"model": "rec-talk", "from": models.text, "messages": [user("Hi")], "license": ["MIT"]}
    yield from both_ways("create/messages", "/api/create", talk)
    yield post("create/by name", "/api/create", {"name": "rec-named", "from": models.text})
    yield post("show/made", "/api/show", {"model": "rec-made"})
    yield post("show/talk", "/api/show", {"model": "rec-talk"})
    files = {"model": "rec-files", "files": {"model.gguf": digest}}
    yield from both_ways("create/not a model file", "/api/create", files)
    lost = {"model": "rec-lost", "files": {"model.gguf": wrong}}
    yield from both_ways("create/missing blob", "/api/create", lost)
    yield post("create/nothing", "/api/create", {"model": "rec-none"})
    yield post("create/bad name", "/api/create", {"model": "a b", "from": models.text})
    yield from both_ways("create/from unreachable", "/api/create", {"model": "rec-far", "from": UNREACHABLE})
    yield from both_ways("pull/unreachable", "/api/pull", {"model": UNREACHABLE, "insecure": True})
    yield post("pull/by name", "/api/pull", {"name": UNREACHABLE, "insecure": True})
    yield post("pull/bad name", "/api/pull", {"model": "a b"})
    yield from both_ways("push/missing model", "/api/push", {"model": MISSING})
    for name in ("rec-copy", "rec-made", "rec-talk", MISSING, "a b"):
        yield Request(f"delete/{name}", "DELETE", "/api/delete", json.dumps({"model": name}).encode())
    yield Request("delete/again", "DELETE", "/api/delete", b'{"model": "rec-copy"}')
    yield Request("delete/by name", "DELETE", "/api/delete", b'{"name":"rec-named"}')


def refusals(models: Models) -> Iterator[Request]:
    """Requests that the server must refuse, each in its own way."""
    asks: dict[str, Json] = {
        "/api/generate": {"prompt": "Hi"},
        "/api/chat": {"messages": [user("Hi")]},
        "/api/embed": {"input": "Hi"},
        "/api/embeddings": {"prompt": "Hi"},
        "/api/show": {},
        "/v1/chat/completions": {"messages": [user("Hi")]},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": [user("Hi")], "max_tokens": 5},
    }
    others = ("/api/pull", "/api/push", "/api/create", "/api/copy")
    for path, ask in asks.items():
        yield post(f"refused/unknown model {path}", path, {"model": MISSING, **ask})
        yield post(f"refused/empty model {path}", path, {"model": "", **ask})
        yield post(f"refused/bad name {path}", path, {"model": "a b", **ask})
    for path in (*asks, *others):
        yield post(f"refused/malformed {path}", path, '{"model": "x", ')
        yield post(f"refused/no body {path}", path, b"")
        yield post(f"refused/wrong types {path}", path, {"model": 5, "source": 5, "stream": "yes"})
        yield Request(f"refused/method {path}", "GET", path)
    yield post("refused/array", "/api/generate", "[]")
    for path in ("/v1/chat/completions", "/v1/messages"):
        body: Json = {"model": MISSING, "stream": True, **asks[path]}
        yield post(f"refused/unknown model streamed {path}", path, body)
    yield post("refused/no messages", "/v1/chat/completions", {"model": models.chat, "messages": []})
    yield Request("refused/unknown model /v1/models", "GET", f"/v1/models/{MISSING}")
    yield Request("refused/delete without body", "DELETE", "/api/delete")
    yield Request("refused/method /api/delete", "POST", "/api/delete")
    yield Request("refused/method /api/ps", "HEAD", "/api/ps")
    yield Request("refused/method /", "POST", "/")
    for path in ("/nothing", "/api", "/api/nothing", "/v1/nothing", "/favicon.ico"):
        yield Request(f"refused/path {path}", "GET", path)
    yield Request("refused/trailing slash", "GET", "/api/tags/")
    yield post("refused/post to trailing slash", "/api/show/", {"model": models.text})

    image = {"model": models.chat, "messages": [user("Hi", images=[EMPTY_PNG])]}
    yield from both_ways("refused/image in chat", "/api/chat", image)
    yield post(
        "refused/image", "/api/generate", {"model": models.chat, "prompt": "Hi", "images": [EMPTY_PNG]}
    )
    yield post("refused/bad image", "/api/generate", {"model": models.chat, "prompt": "Hi", "images": ["?"]})
    yield from both_ways(
        "refused/think", "/api/chat", {"model": models.chat, "think": True, **asks["/api/chat"]}
    )
    generate_thoughts = {"model": models.plain, "prompt": "Hi", "think": True}
    yield post("refused/think in generate", "/api/generate", generate_thoughts)
    for path in ("/api/chat", "/v1/chat/completions"):
        body = {"model": models.plain, "messages": [user("Hi")], "tools": [TOOL]}
        yield from both_ways(f"refused/tools {path}", path, body)
    tool: Json = {"name": "get_weather", "input_schema": CITY}
    body = {"model": models.plain, "max_tokens": 5, "messages": [user("Hi")], "tools": [tool]}
    yield from both_ways("refused/tools /v1/messages", "/v1/messages", body)
    for path in ("/api/generate", "/api/chat", "/v1/chat/completions"):
        yield post(f"refused/embedder {path}", path, {"model": models.embed, **asks[path]})
    faults: dict[str, Json] = {
        "suffix": {"model": models.plain, "suffix": "x"},
        "option type": {"options": {"num_predict": "many"}},
        "keep alive": {"keep_alive": "soon"},
        "format": {"format": "xml"},
        "schema": {"format": {"type": "nothing"}},
        "top logprobs": {"logprobs": True, "top_logprobs": 21},
        "raw with system": {"raw": True, "system": "Be brief."},
        "template": {"template": "{{ .Prompt "},
        "think value": {"think": "perhaps"},
        "cloud model": {"model": f"{MISSING}:cloud"},
    }
    for name, more in faults.items():
        body = {"model": models.chat, "prompt": "Hi", "options": {"num_predict": 3}, **more}
        yield post(f"refused/{name}", "/api/generate", body)
    long_prompt = {
        "model": models.chat,
        "prompt": "word " * 1500,
        "truncate": False,
        "options": {"num_ctx": 512},
    }
    yield from both_ways("refused/prompt too long", "/api/generate", long_prompt)
    last_too_long = {"model": models.chat, "messages": [user("word " * 3000)], "truncate": False}
    yield from both_ways("refused/message too long", "/api/chat", last_too_long)
    yield post("refused/web search", "/api/experimental/web_search", {"query": "weather"})
    yield post("refused/web fetch", "/api/experimental/web_fetch", {"url": "http://127.0.0.1:1/"})
    form = b'--cut\r\nContent-Disposition: form-data; name="model"\r\n\r\nnone\r\n--cut--\r\n'
    multipart = ("Content-Type", "multipart/form-data; boundary=cut")
    yield post("refused/transcription without file", "/v1/audio/transcriptions", form, multipart)


def browsers(models: Models) -> Iterator[Request]:
    """What a browser sends first, and hosts and origins that the server does not know."""
    for name, origin in (("known", "http://localhost:3000"), ("foreign", "https://example.com")):
        yield Request(f"origin/{name}", "GET", "/api/version", headers=[("Origin", origin)])
        ask = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ]
        yield Request(f"preflight/{name}", "OPTIONS", "/api/chat", headers=ask)
    yield Request("options without origin", "OPTIONS", "/api/chat")
    for host in ("example.com", "node.internal", "192.0.2.1:80"):
        yield Request(f"host/{host}", "GET", "/api/version", headers=[("Host", host)])
    yield post(
        "host/foreign chat", "/api/chat", {"model": models.chat, "messages": []}, ("Host", "example.com")
    )
    yield Request("connection close", "GET", "/api/version", headers=[("Connection", "close")])


def malformed() -> Iterator[Request]:
    """What the server refuses before it looks for a route, closing the connection."""
    headers = {
        "header name": ("Bad Name", "x"),
        "length": ("Content-Length", "many"),
        "coding": ("Transfer-Encoding", "gzip"),
    }
    for name, header in headers.items():
        yield Request(f"malformed/{name}", "POST", "/api/show", headers=[header])
    yield Request("malformed/host", "GET", "/api/version", headers=[("Host", "a b")])


def table(models: Models) -> Iterator[Request]:
    """All requests, in the order in which they are sent."""
    for part in (queries, shows, loading, generate, chat, embeddings, openai, anthropic):
        yield from part(models)
    yield Request("query/get /api/ps with models", "GET", "/api/ps")
    for part in (storage, refusals, browsers):
        yield from part(models)
    yield from malformed()


def zstd(data: bytes) -> bytes:
    """A zstd frame with one raw (uncompressed) block, for bodies of up to 65,791 bytes."""
    small = len(data) < 256
    size = len(data).to_bytes(1, "little") if small else (len(data) - 256).to_bytes(2, "little")
    block = (1 | len(data) << 3).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + (b"\x20" if small else b"\x60") + size + block + data


# -- the wire ----------------------------------------------------------------------------------------------


def complete(request: Request) -> Request:
    """The request with the headers that every client sends."""
    given = {name.lower() for name, _ in request.headers}
    headers: Pairs = [] if "host" in given else [("Host", "localhost:11434")]
    headers += [("User-Agent", "recorder/1"), ("Accept", "*/*"), *request.headers]
    framed = given & {"content-length", "transfer-encoding"}
    if not framed and (request.body or request.method in ("POST", "DELETE")):
        headers.append(("Content-Length", str(len(request.body))))
    return Request(request.name, request.method, request.path, request.body, headers)


def exchange(address: tuple[str, int], request: Request) -> Response:
    """Send one request on a connection of its own and read the answer to its end."""
    fields = (f"{name}: {value}" for name, value in request.headers)
    head = [f"{request.method} {request.path} HTTP/1.1", *fields]
    body = request.body
    if ("Transfer-Encoding", "chunked") in request.headers:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with socket.create_connection(address, TIMEOUT) as connection, connection.makefile("rb") as stream:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return read_response(stream, request.method)


def read_response(stream: IO[bytes], method: str) -> Response:
    """Read one HTTP/1.1 response, chunk by chunk."""
    _, status, reason = [*stream.readline().decode().rstrip("\r\n").split(" ", 2), ""][:3]
    headers: Pairs = []
    while line := stream.readline().decode().rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    fields = {name.lower(): value for name, value in headers}
    if method == "HEAD" or status in ("204", "304"):
        framing, chunks = "none", []
    elif fields.get("transfer-encoding") == "chunked":
        framing, chunks = "chunked", list(read_chunks(stream))
    elif "content-length" in fields:
        framing, chunks = "length", [stream.read(int(fields["content-length"]))]
    else:
        framing, chunks = "close", [stream.read()]
    return Response(int(status), reason, headers, framing, [chunk for chunk in chunks if chunk])


def read_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The payload of each chunk, up to the last one."""
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()


# -- the recording -----------------------------------------------------------------------------------------


def renamed(response: Response, names: dict[bytes, bytes]) -> Response:
    """The response with local paths replaced, its cuts and its Content-Length moved to match."""
    if not names:
        return response
    body = b"".join(response.chunks)
    cuts = [0]
    for chunk in response.chunks:
        cuts.append(cuts[-1] + len(chunk))
    pattern = re.compile(b"|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    found = [(match.start(), match.end(), names[match[0]]) for match in pattern.finditer(body)]

    def moved(cut: int) -> int:
        """Where a cut lies afterwards; one inside a replaced name moves behind it."""
        shift = sum(len(new) - (end - start) for start, end, new in found if start < cut)
        return max(cut, *(end for start, end, _ in found if start < cut)) + shift if shift else cut

    after = pattern.sub(lambda match: names[match[0]], body)
    chunks = [after[start:end] for start, end in pairwise(map(moved, cuts))]
    headers = response.headers
    if response.framing == "length":
        length = str(len(after))
        headers = [(name, length if name.lower() == "content-length" else value) for name, value in headers]
    return Response(response.status, response.reason, headers, response.framing, chunks)


def as_json(data: bytes) -> str | Json:
    """Text as it is, anything else in base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def as_line(request: Request, response: Response) -> str:
    """One line of the recording."""
    record = {
        "name": request.name,
        "request": {
            "method": request.method,
            "path": request.path,
            "headers": request.headers,
            "body": as_json(request.body),
        },
        "response": {
            "status": response.status,
            "reason": response.reason,
            "headers": response.headers,
            "framing": response.framing,
            "chunks": [as_json(chunk) for chunk in response.chunks],
        },
    }
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record the answers of an Ollama server.")
    parser.add_argument("url", help="address of the server")
    parser.add_argument("output", type=Path, help="file of JSON lines to write")
    for kind in Models.__dataclass_fields__:
        parser.add_argument(f"--{kind}", default=kind, metavar="MODEL", help=f"default: {kind}")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="PATH=NAME", help="write NAME for a local PATH"
    )
    return parser.parse_args()


def main() -> None:
    """Send the table and write the recording."""
    given = arguments()
    models = Models(**{kind: getattr(given, kind) for kind in Models.__dataclass_fields__})
    names = dict(rule.encode().split(b"=", 1) for rule in given.rename)
    target = urlsplit(given.url)
    address = (target.hostname or "127.0.0.1", target.port or 80)
    with given.output.open("w", encoding="utf-8", newline="\n") as output:
        for request in map(complete, table(models)):
            response = renamed(exchange(address, request), names)
            output.write(as_line(request, response))
            print(response.status, response.framing, request.name, file=sys.stderr)


if __name__ == "__main__":
    main()
