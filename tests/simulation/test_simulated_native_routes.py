"""The native routes answer with Ollama's own shapes, texts and framing."""

from __future__ import annotations

import asyncio
import json

import pytest
from simulation_support import (
    CHAT,
    EMBEDDER,
    SEER,
    THINKER,
    fast,
    lines_of,
    raw_exchange,
    request_bytes,
    simulated,
    until,
    wire_chunks,
)

from balancer.simulator import SimulatedOllama

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
WRONG_TYPE = "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"
GENERATE = {"model": CHAT, "prompt": "why is the sky blue?"}


async def test_stream_sends_one_chunk_per_line_and_a_terminator() -> None:
    async with SimulatedOllama(fast()).running() as server:
        request = request_bytes("/api/generate", GENERATE, headers=["Connection: close"])
        head, chunks, terminated = wire_chunks(await raw_exchange(server, request))

    assert terminated
    assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in chunks)
    assert b"Content-Type: application/x-ndjson" in head
    assert b"Transfer-Encoding: chunked" in head
    assert b"Server:" not in head


async def test_http_1_0_stream_has_no_chunks_and_ends_with_the_connection() -> None:
    async with SimulatedOllama(fast()).running() as server:
        answer = await raw_exchange(server, request_bytes("/api/generate", GENERATE, version="1.0"))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert b"chunked" not in head
    assert lines_of(body.decode())[-1]["done"] is True


async def test_last_generate_record_has_ollamas_fields_in_ollamas_order() -> None:
    async with simulated() as client:
        response = await client.post("/api/generate", GENERATE)
        *_, last = lines_of(await response.text())

    assert list(last) == [
        "model",
        "created_at",
        "response",
        "done",
        "done_reason",
        "context",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    ]


async def test_durations_of_an_answer_add_up() -> None:
    async with simulated() as client:
        for _ in range(2):
            answer = await client.ask(text="count the durations")
            parts = answer["load_duration"] + answer["prompt_eval_duration"] + answer["eval_duration"]
            assert parts <= answer["total_duration"]
            assert all(isinstance(answer[name], int) for name in answer if name.endswith("_duration"))


async def test_chat_says_that_it_is_simulated_and_is_deterministic() -> None:
    async with simulated() as first, simulated() as second:
        answers = [(await client.ask(text="who are you?"))["message"] for client in (first, second, first)]
        other = (await first.ask(text="who are you?", options={"seed": 7}))["message"]

    assert answers[0] == answers[1] == answers[2] != other
    assert answers[0]["content"].startswith(f"[simulated {CHAT}]")


async def test_stream_and_whole_answer_say_the_same() -> None:
    async with simulated() as client:
        whole = await client.ask(text="twice")
        messages = [{"role": "user", "content": "twice"}]
        response = await client.post("/api/chat", {"model": CHAT, "messages": messages})
        parts = lines_of(await response.text())

    assert whole["message"]["content"] == "".join(part["message"]["content"] for part in parts)
    assert [False] * (len(parts) - 1) + [True] == [part["done"] for part in parts]


async def test_num_predict_cuts_the_answer_with_reason_length() -> None:
    async with simulated() as client:
        answer = await client.ask(options={"num_predict": 3})

    assert (answer["eval_count"], answer["done_reason"]) == (3, "length")


async def test_short_answers_carry_a_length_and_long_ones_are_chunked() -> None:
    async with simulated() as client:
        short = await client.post("/api/generate", {**GENERATE, "stream": False, "raw": True})
        body = {**GENERATE, "stream": False, "options": {"simulated_tokens": 600}}
        long = await client.post("/api/generate", body)

    assert "Content-Length" in short.headers
    assert "Transfer-Encoding" not in short.headers
    assert "Transfer-Encoding" in long.headers
    assert long.headers["Content-Type"] == "application/json; charset=utf-8"


async def test_thinking_is_on_unless_refused() -> None:
    async with simulated() as client:
        thought = await client.ask(THINKER)
        plain = await client.ask(THINKER, think=False)

    assert thought["message"]["thinking"].startswith("[simulated thinking]")
    assert "thinking" not in plain["message"]


async def test_tools_are_called_with_object_arguments_until_a_tool_has_answered() -> None:
    question = [{"role": "user", "content": "weather in Oslo?"}]
    async with simulated() as client:
        called = await client.ask(messages=question, tools=[TOOL])
        answered = [*question, called["message"], {"role": "tool", "content": "rain"}]
        final = await client.ask(messages=answered, tools=[TOOL])

    (call,) = called["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert {"city", "days"} == set(call["function"]["arguments"])
    assert "tool_calls" not in final["message"]


async def test_format_gives_json_that_fits_the_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "tags": {"type": "array"}}}
    async with simulated() as client:
        free = await client.ask(format="json")
        bound = await client.ask(format=schema)

    assert json.loads(free["message"]["content"])["simulated"] is True
    answer = json.loads(bound["message"]["content"])
    assert isinstance(answer["n"], int)
    assert isinstance(answer["tags"], list)


async def test_logprobs_are_given_per_token() -> None:
    async with simulated() as client:
        answer = await client.ask(logprobs=True, top_logprobs=2, options={"num_predict": 4})

    assert len(answer["logprobs"]) == 4
    assert {"token", "logprob", "bytes", "top_logprobs"} == set(answer["logprobs"][0])
    assert len(answer["logprobs"][0]["top_logprobs"]) == 2


async def test_generate_context_carries_a_conversation_on() -> None:
    async with simulated() as client:
        first = await (await client.post("/api/generate", {**GENERATE, "stream": False})).json()
        body = {**GENERATE, "stream": False, "context": first["context"]}
        second = await (await client.post("/api/generate", body)).json()

    assert first["prompt_eval_count"] + first["eval_count"] == len(first["context"])
    assert second["prompt_eval_count"] == len(first["context"]) + first["prompt_eval_count"]


async def test_images_are_read_as_prompt_tokens() -> None:
    async with simulated() as client:
        plain = await client.ask(SEER)
        picture = [{"role": "user", "content": "hi", "images": ["aGk="]}]
        seen = await client.ask(SEER, messages=picture)
        blind = await client.ask(CHAT, messages=picture)

    assert seen["prompt_eval_count"] > plain["prompt_eval_count"] + 100
    assert "Multimodal data provided" in json.loads(blind["error"])["error"]["message"]


async def test_empty_requests_load_and_unload_in_one_json_object() -> None:
    async with simulated() as client:
        load = await client.post("/api/chat", {"model": CHAT, "messages": []})
        after_load = await client.resident()
        unload = await client.post("/api/generate", {"model": CHAT, "keep_alive": "0s"})
        after_unload = await client.resident()
        bodies = [await load.json(), await unload.json()]

    assert [body["done_reason"] for body in bodies] == ["load", "unload"]
    assert bodies[0]["message"] == {"role": "assistant", "content": ""}
    assert (after_load, after_unload) == ([CHAT], [])
    assert load.headers["Content-Type"].startswith("application/json")


async def test_long_history_loses_its_oldest_messages() -> None:
    long = [{"role": "user", "content": f"message {n} " + "word " * 100} for n in range(10)]
    async with simulated() as client:
        answer = await client.ask(messages=long, options={"num_ctx": 512})

    assert answer["prompt_eval_count"] <= 512


async def test_prompt_over_the_context_loses_its_middle() -> None:
    async with simulated() as client:
        chat = await client.ask(text="word " * 1400, options={"num_ctx": 1024})
        body = {**GENERATE, "prompt": "word " * 700, "stream": False, "options": {"num_ctx": 300}}
        generated = await (await client.post("/api/generate", body)).json()

    assert (chat["prompt_eval_count"], generated["prompt_eval_count"]) == (515, 153)


async def test_prompt_over_the_context_is_refused_when_it_may_not_be_cut() -> None:
    body = {"text": "word " * 400, "options": {"num_ctx": 128}}
    async with simulated() as client:
        whole = await client.ask(**body, truncate=False)
        unshifted = await client.ask(**body, shift=False)

    assert json.loads(whole["error"])["error"]["type"] == "exceed_context_size_error"
    assert unshifted["error"].startswith("the prompt is longer than the context length")


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", {"model": "nosuch"}, 404, "model 'nosuch' not found"),
        ("/api/chat", {"model": "nosuch"}, 404, "model 'nosuch' not found"),
        ("/api/show", {"model": "nosuch"}, 404, "model 'nosuch:latest' not found"),
        ("/api/embed", {"model": "nosuch"}, 404, 'model "nosuch" not found, try pulling it first'),
        ("/api/embeddings", {"model": "nosuch"}, 404, 'model "nosuch" not found, try pulling it first'),
        ("/api/copy", {"source": "nosuch", "destination": "x"}, 404, 'model "nosuch" not found'),
        ("/api/generate", {"model": ""}, 404, "model '' not found"),
        ("/api/embed", {"model": ""}, 404, "model '' not found"),
        ("/api/chat", {"model": ""}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/chat", {"model": "a@b"}, 400, "invalid model name"),
        ("/api/pull", {"model": "//"}, 400, "invalid model name"),
        ("/api/chat", {"model": EMBEDDER}, 400, f'"{EMBEDDER}" does not support chat'),
        ("/api/generate", {"model": EMBEDDER}, 400, f'"{EMBEDDER}" does not support generate'),
        ("/api/chat", {"model": CHAT, "think": True}, 400, f'"{CHAT}" does not support thinking'),
        ("/api/chat", {"model": CHAT, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/embed", {"model": EMBEDDER, "input": [1]}, 400, "invalid input type"),
        (
            "/api/generate",
            {"model": "big:cloud"},
            403,
            "ollama cloud is disabled: remote model is unavailable",
        ),
        ("/api/chat", {"model": CHAT, "keep_alive": "5x"}, 400, 'time: invalid duration "5x"'),
        ("/api/chat", {"model": CHAT, "options": {"num_ctx": "big"}}, 500, None),
        (
            "/api/chat",
            {"model": CHAT, "options": {"seed": "x"}},
            500,
            'option "seed" must be of type integer',
        ),
        ("/api/chat", {"model": 1}, 400, WRONG_TYPE),
    ],
)
async def test_errors_have_ollamas_status_and_text(
    path: str, body: dict[str, object], status: int, error: str | None
) -> None:
    async with simulated() as client:
        response = await client.post(path, body)
        told = (await response.json())["error"]

    assert status == response.status
    assert told if error is None else error == told


async def test_missing_and_broken_bodies_are_told_apart() -> None:
    async with simulated() as client:
        told = []
        for data in (b"", b'{"model": oops}', b'{"model": "x"'):
            async with client.session.post("/api/chat", data=data) as response:
                told.append((response.status, (await response.json())["error"]))

    assert told == [
        (400, "missing request body"),
        (400, "invalid character 'o' looking for beginning of value"),
        (400, "unexpected EOF"),
    ]


async def test_unknown_paths_and_wrong_verbs_are_told_in_text() -> None:
    async with simulated() as client:
        told = []
        for method, path in (("GET", "/nothing"), ("GET", "/api/chat"), ("HEAD", "/api/ps"), ("HEAD", "/")):
            async with client.session.request(method, path) as response:
                told.append((response.status, await response.text()))

    assert told == [(404, "404 page not found"), (405, "405 method not allowed"), (405, ""), (200, "")]


async def test_foreign_hosts_and_origins_get_an_empty_403() -> None:
    refused = ({"Host": "ollama.example.com"}, {"Origin": "http://evil.example.com"})
    served = ({"Host": "box.local"}, {"Origin": "http://localhost:3000"}, {"Host": "192.168.1.2:11434"})
    async with simulated() as client:
        for headers, status in [(h, 403) for h in refused] + [(h, 200) for h in served]:
            async with client.session.get("/api/version", headers=headers) as response:
                body = await response.read()
                assert status == response.status
                assert (body == b"") is (status == 403)


async def test_the_version_says_simulated_and_the_cloud_is_off() -> None:
    async with simulated() as client:
        version = await client.get("/api/version")
        status = await client.get("/api/status")
        me = await client.post("/api/me", {})

    assert version["version"].endswith("-simulated")
    assert status["cloud"]["disabled"] is True
    assert me.status == 401


async def test_tags_ps_and_show_have_ollamas_fields() -> None:
    async with simulated() as client:
        await client.ask(options={"num_ctx": 2048})
        tag = next(item for item in (await client.get("/api/tags"))["models"] if item["name"] == CHAT)
        (process,) = (await client.get("/api/ps"))["models"]
        shown = await (await client.post("/api/show", {"name": "LLAMA3.2"})).json()

    assert list(tag) == ["name", "model", "modified_at", "size", "digest", "details", "capabilities"]
    assert list(process) == [
        "name",
        "model",
        "size",
        "digest",
        "details",
        "expires_at",
        "size_vram",
        "context_length",
    ]
    assert (tag["digest"], 2048) == (process["digest"], process["context_length"])
    assert {"details", "model_info", "capabilities", "modelfile", "modified_at"} <= set(shown)
    assert "license" not in shown
    assert "llama.context_length" in shown["model_info"]


async def test_embeddings_are_normalised_deterministic_and_equal_alone_and_in_a_batch() -> None:
    async with simulated() as client:
        batch = await (await client.post("/api/embed", {"model": EMBEDDER, "input": ["a b", "c"]})).json()
        alone = await (await client.post("/api/embed", {"model": EMBEDDER, "input": "c"})).json()
        body = {"model": EMBEDDER, "input": "c", "dimensions": 8}
        cut = await (await client.post("/api/embed", body)).json()
        older = await (await client.post("/api/embeddings", {"model": EMBEDDER, "prompt": "c"})).json()
        empty = await (await client.post("/api/embed", {"model": EMBEDDER, "input": []})).json()

    assert batch["embeddings"][1] == alone["embeddings"][0]
    assert batch["prompt_eval_count"] > alone["prompt_eval_count"]
    for vector in (*batch["embeddings"], *cut["embeddings"]):
        assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-5)
    assert (len(cut["embeddings"][0]), len(older["embedding"])) == (8, 768)
    assert empty == {"model": EMBEDDER, "embeddings": []}


async def test_one_input_over_the_context_fails_the_whole_call_without_truncation() -> None:
    body = {"model": EMBEDDER, "input": ["short", "word " * 3000], "truncate": False}
    async with simulated() as client:
        refused = await client.post("/api/embed", body)
        cut = await client.post("/api/embed", {**body, "truncate": True})
        error = (await refused.json())["error"]

    assert (refused.status, error) == (400, "the input length exceeds the context length")
    assert cut.status == 200


async def test_embedding_with_a_chat_model_loads_it_and_then_answers_501() -> None:
    async with simulated() as client:
        response = await client.post("/api/embed", {"model": CHAT, "input": "x"})
        resident = await client.resident()

    assert (response.status, resident) == (501, [CHAT])


async def test_headers_wait_for_the_first_token() -> None:
    """Nothing of a stream's answer may come while its model still loads."""
    async with simulated(fast(speed=1, load_seconds=60)) as client:
        asked = asyncio.create_task(client.session.post("/api/generate", json=GENERATE))
        await until(lambda: client.server.scheduler.loading == CHAT)
        await asyncio.sleep(0.1)

        assert not asked.done()
        asked.cancel()
