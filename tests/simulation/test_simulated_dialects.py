"""The OpenAI and Anthropic routes translate as Ollama's own middleware does."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import aiohttp
import pytest
import zstandard
from simulation_support import (
    CHAT,
    EMBEDDER,
    SEER,
    THINKER,
    Client,
    events_of,
    fast,
    raw_exchange,
    request_bytes,
    simulated,
    wire_chunks,
)

from balancer.simulator import SimulatedOllama

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
FLAT_TOOL = {"type": "function", "name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}
CLAUDE_TOOL = {"name": "add", "input_schema": {"properties": {"a": {"type": "integer"}}}}


async def text_of(client: Client, path: str, body: dict[str, Any]) -> str:
    return await (await client.post(path, body)).text()


async def json_of(client: Client, path: str, body: dict[str, Any]) -> Any:
    return json.loads(await text_of(client, path, body))


async def test_chat_stream_ends_with_finish_usage_and_done_in_one_chunk() -> None:
    body = {"model": CHAT, "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    async with SimulatedOllama(fast()).running() as server:
        request = request_bytes("/v1/chat/completions", body, headers=["Connection: close"])
        head, chunks, terminated = wire_chunks(await raw_exchange(server, request))

    assert terminated
    assert b"Content-Type: text/event-stream" in head
    assert all(chunk.count(b"data: ") == 1 for chunk in chunks[:-1])
    finish, usage, done = events_of(chunks[-1].decode())
    assert finish[1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert usage[1]["choices"] == []
    assert usage[1]["usage"]["completion_tokens"] == len(chunks) - 1
    assert done[1] == "[DONE]"


async def test_only_the_first_chat_chunk_names_the_role() -> None:
    async with simulated() as client:
        events = [
            data
            for _, data in events_of(
                await text_of(
                    client, "/v1/chat/completions", {"model": CHAT, "messages": HELLO, "stream": True}
                )
            )
        ]

    roles = [data["choices"][0]["delta"].get("role") for data in events[:-2]]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    assert {data["system_fingerprint"] for data in events[:-1]} == {"fp_ollama"}


async def test_chat_answer_carries_reasoning_tools_and_usage() -> None:
    async with simulated() as client:
        thought = await json_of(client, "/v1/chat/completions", {"model": THINKER, "messages": HELLO})
        body = {"model": CHAT, "messages": HELLO, "tools": [TOOL]}
        called = await json_of(client, "/v1/chat/completions", body)
        body = {"model": CHAT, "messages": HELLO, "max_tokens": 2}
        cut = await json_of(client, "/v1/chat/completions", body)

    assert thought["choices"][0]["message"]["reasoning"].startswith("[simulated thinking]")
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    assert set(json.loads(call["function"]["arguments"])) == {"a"}
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)


async def test_text_completions_stream_and_answer() -> None:
    async with simulated() as client:
        body = {"model": CHAT, "prompt": "once upon"}
        whole = await json_of(client, "/v1/completions", body)
        events = list(events_of(await text_of(client, "/v1/completions", {**body, "stream": True})))

    streamed = "".join(data["choices"][0]["text"] for _, data in events[:-1])
    assert whole["choices"][0]["text"] == streamed
    assert events[-1][1] == "[DONE]"
    assert list(events[0][1]) == ["id", "object", "created", "choices", "model", "system_fingerprint"]


async def test_messages_stream_opens_and_closes_each_block() -> None:
    body = {"model": THINKER, "messages": HELLO, "max_tokens": 500, "stream": True}
    async with simulated() as client:
        events = list(events_of(await text_of(client, "/v1/messages", body)))

    kinds = [kind for kind, _ in events if kind != "content_block_delta"]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(kind == data["type"] for kind, data in events)
    blocks = [data["content_block"]["type"] for kind, data in events if kind == "content_block_start"]
    assert blocks == ["thinking", "text"]
    assert events[-2][1]["delta"]["stop_reason"] == "end_turn"


async def test_messages_call_tools_and_stop_at_max_tokens() -> None:
    async with simulated() as client:
        body = {"model": CHAT, "messages": HELLO, "max_tokens": 200, "tools": [CLAUDE_TOOL]}
        called = await json_of(client, "/v1/messages", body)
        cut = await json_of(client, "/v1/messages", {"model": CHAT, "messages": HELLO, "max_tokens": 2})

    assert called["stop_reason"] == "tool_use"
    assert called["content"][0]["type"] == "tool_use"
    assert isinstance(called["content"][0]["input"]["a"], int)
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 2)


async def test_responses_stream_is_numbered_and_ordered() -> None:
    body = {"model": CHAT, "input": "hello", "stream": True}
    async with simulated() as client:
        events = list(events_of(await text_of(client, "/v1/responses", body)))

    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [kind for kind, _ in events if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert list(events[0][1]) == sorted(events[0][1])


async def test_responses_give_reasoning_and_function_calls() -> None:
    async with simulated() as client:
        thought = await json_of(client, "/v1/responses", {"model": THINKER, "input": "hello"})
        called = await json_of(client, "/v1/responses", {"model": CHAT, "input": HELLO, "tools": [FLAT_TOOL]})

    assert [item["type"] for item in thought["output"]] == ["reasoning", "message"]
    (call,) = called["output"]
    assert (call["type"], call["name"]) == ("function_call", "add")
    assert set(json.loads(call["arguments"])) == {"a"}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/chat/completions", {"model": "nosuch", "messages": HELLO}, 404, "not_found_error"),
        ("/v1/chat/completions", {"model": CHAT, "messages": []}, 400, "invalid_request_error"),
        ("/v1/completions", {"model": CHAT, "prompt": ["a"]}, 400, "invalid_request_error"),
        ("/v1/embeddings", {"model": EMBEDDER, "input": [[1]]}, 400, "invalid_request_error"),
        ("/v1/embeddings", {"model": EMBEDDER, "input": []}, 400, "invalid_request_error"),
        (
            "/v1/embeddings",
            {"model": EMBEDDER, "input": "x", "encoding_format": "hex"},
            400,
            "invalid_request_error",
        ),
        ("/v1/messages", {"model": CHAT, "messages": HELLO}, 400, "invalid_request_error"),
        ("/v1/messages", {"model": "nosuch", "messages": HELLO, "max_tokens": 1}, 404, "not_found_error"),
        ("/v1/responses", {"model": "nosuch", "input": "x"}, 404, "not_found_error"),
    ],
)
async def test_errors_take_the_shape_of_their_dialect(
    path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    async with simulated() as client:
        response = await client.post(path, body)
        told = await response.json()

    assert (response.status, told["error"]["type"]) == (status, kind)
    assert ("request_id" in told) is (path == "/v1/messages")
    assert ("param" in told["error"]) is (path != "/v1/messages")


async def test_cloud_models_are_refused_with_the_native_shape_even_on_v1() -> None:
    async with simulated() as client:
        response = await client.post("/v1/chat/completions", {"model": "big:cloud", "messages": HELLO})

        assert response.status == 403
        assert isinstance((await response.json())["error"], str)


async def test_models_are_listed_and_found() -> None:
    async with simulated() as client:
        listed = await client.get("/v1/models")
        one = await client.get("/v1/models/llama3.2")
    async with simulated(fast(models=())) as client:
        empty = await client.get("/v1/models")

    assert {item["id"] for item in listed["data"]} == {CHAT, THINKER, EMBEDDER, SEER}
    assert (one["id"], one["owned_by"]) == ("llama3.2", "library")
    assert empty == {"object": "list", "data": None}


async def test_embeddings_come_as_floats_or_as_base64() -> None:
    async with simulated() as client:
        body = {"model": EMBEDDER, "input": "x"}
        floats = await json_of(client, "/v1/embeddings", body)
        packed = await json_of(client, "/v1/embeddings", {**body, "encoding_format": "base64"})

    vector = floats["data"][0]["embedding"]
    unpacked = struct.unpack(f"<{len(vector)}f", base64.b64decode(packed["data"][0]["embedding"]))
    assert vector == pytest.approx(unpacked, abs=1e-6)
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] == 3


async def test_zstd_bodies_are_inflated_on_v1_and_not_on_native_routes() -> None:
    packed = zstandard.compress(json.dumps({"model": CHAT, "messages": HELLO}).encode())
    headers = {"Content-Encoding": "zstd", "Content-Type": "application/json"}
    async with simulated() as client:
        statuses = []
        for path in ("/v1/chat/completions", "/api/chat"):
            async with client.session.post(path, data=packed, headers=headers) as response:
                statuses.append(response.status)

    assert statuses == [200, 400]


async def test_transcriptions_answer_in_json_or_in_text() -> None:
    async with simulated() as client:
        answers = []
        for wanted in ("json", "text"):
            form = aiohttp.FormData({"model": SEER, "response_format": wanted})
            form.add_field("file", b"RIFF", filename="a.wav")
            async with client.session.post("/v1/audio/transcriptions", data=form) as response:
                answers.append(await response.text())

    assert json.loads(answers[0])["text"] == answers[1]
    assert answers[1].startswith("[simulated")
