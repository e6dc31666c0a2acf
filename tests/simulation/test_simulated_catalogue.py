"""Lists, /api/show and numbers are printed as the real one prints them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulation_support import CHAT, EMBEDDER, fast, raw_exchange, request_bytes, simulated

from balancer.simulator import ModelSpec, ModelStore, SimulatedOllama
from balancer.simulator.dialects.wire import encode
from balancer.simulator.models import weights_of


async def test_show_gives_the_metadata_of_a_generator_sorted_by_name() -> None:
    async with simulated() as client:
        shown = await (await client.post("/api/show", {"model": CHAT})).json()

    info = shown["model_info"]
    assert list(info) == sorted(info)
    assert info["general.architecture"] == shown["details"]["family"] == "llama"
    assert {
        "general.quantization_version",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.feed_forward_length",
        "llama.rope.dimension_count",
        "llama.vocab_size",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
    } <= set(info)
    assert [info[f"tokenizer.ggml.{name}"] for name in ("scores", "token_type", "tokens")] == [None] * 3
    assert {tensor["type"] for tensor in shown["tensors"]} == {"F32", "Q4_K", "Q6_K"}


async def test_show_gives_an_embedder_the_architecture_bert() -> None:
    async with simulated() as client:
        shown = await (await client.post("/api/show", {"model": EMBEDDER})).json()

    info = shown["model_info"]
    assert info["general.architecture"] == info["tokenizer.ggml.model"] == "bert"
    assert (info["bert.attention.causal"], info["bert.pooling_type"]) == (False, 1)
    assert not [name for name in info if name.startswith("llama.")]
    assert {tensor["type"] for tensor in shown["tensors"]} == {"F16", "F32"}


async def test_show_tells_the_vocabulary_only_when_verbose() -> None:
    async with simulated() as client:
        response = await client.post("/api/show", {"model": EMBEDDER, "verbose": True})
        wrong = await client.post("/api/show", {"model": EMBEDDER, "verbose": 3})
        info = (await response.json())["model_info"]

    assert len(info["tokenizer.ggml.tokens"]) == len(info["tokenizer.ggml.scores"]) > 1000
    assert wrong.status == 400


@pytest.mark.parametrize("model", [CHAT, EMBEDDER])
async def test_show_is_long_enough_to_be_chunked(model: str) -> None:
    async with SimulatedOllama(fast()).running() as server:
        request = request_bytes("/api/show", {"model": model}, headers=["Connection: close"])
        head = (await raw_exchange(server, request)).partition(b"\r\n\r\n")[0].lower()

    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head


async def test_modelfile_holds_all_that_create_was_given() -> None:
    body = {
        "model": "derived",
        "from": CHAT,
        "system": "two\nlines",
        "license": ["A", "B"],
        "parameters": {"stop": ["a", "b"], "num_ctx": 99},
        "messages": [{"role": "user", "content": "hi"}],
    }
    async with simulated() as client:
        await client.post("/api/create", body)
        shown = await (await client.post("/api/show", {"model": "derived"})).json()

    assert shown["modelfile"].partition("TEMPLATE ")[2].splitlines() == [
        "{{ .Prompt }}",
        'SYSTEM "two',
        'lines"',
        "PARAMETER num_ctx 99",
        "PARAMETER stop a",
        "PARAMETER stop b",
        "LICENSE A",
        "LICENSE B",
        "MESSAGE user hi",
    ]
    assert [line.split() for line in shown["parameters"].splitlines()] == [
        ["num_ctx", "99"],
        ["stop", '"a"'],
        ["stop", '"b"'],
    ]


async def test_recommendations_have_ollamas_shape() -> None:
    async with simulated() as client:
        listed = (await client.get("/api/experimental/model-recommendations"))["recommendations"]

    cloud = [item for item in listed if item["model"].endswith(":cloud")]
    local = [item for item in listed if item not in cloud]
    assert {tuple(item) for item in cloud} == {
        ("model", "description", "context_length", "max_output_tokens")
    }
    assert {tuple(item) for item in local} == {("model", "description", "vram_bytes")}


def test_models_are_listed_by_whole_seconds_and_ties_keep_their_order() -> None:
    store = ModelStore([ModelSpec(name=name) for name in "abc"])
    second = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for name, after in (("a", 0.1), ("b", 0.9), ("c", 1.0)):
        model = store.find(name)
        assert model is not None
        store.put(replace(model, modified_at=second + timedelta(seconds=after)))

    assert [model.name.model for model in store.models()] == ["c", "a", "b"]


async def test_whole_logprobs_are_printed_without_a_point() -> None:
    body = {"model": CHAT, "prompt": "hi", "stream": False, "logprobs": True}
    async with simulated(fast(answer_tokens=200)) as client:
        text = await (await client.post("/api/generate", body)).text()

    chosen = [item["logprob"] for item in json.loads(text)["logprobs"]]
    assert any(isinstance(value, int) for value in chosen)
    assert any(isinstance(value, float) for value in chosen)
    assert ".0," not in text


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.0, "0"),
        (-1.0, "-1"),
        (-0.25, "-0.25"),
        (1e-05, "0.00001"),
        (2.5e-07, "2.5e-7"),
        (1e-12, "1e-12"),
        (500000.0, "500000"),
        ([1.0, "1.0", {"1.0": 2.0, "a": None}], '[1,"1.0",{"1.0":2,"a":null}]'),
    ],
)
def test_numbers_are_printed_as_go_prints_them(value: object, printed: str) -> None:
    assert encode(value).decode() == printed


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(2_019_393_189, "3.3B"), (620_000_000, "1B"), (6_200_000, "10M"), (122_000, "197K")],
)
def test_parameter_counts_are_shortened_as_ollama_does(size_bytes: int, shown: str) -> None:
    assert weights_of(ModelSpec(name="x", size_bytes=size_bytes)).parameter_size == shown


async def test_only_a_preflight_with_an_origin_is_answered() -> None:
    origin = {"Origin": "http://localhost:3000"}
    async with simulated() as client:
        told = []
        for path, headers in (("/api/chat", {}), ("/api/chat", origin), ("/nothing", origin)):
            async with client.session.options(path, headers=headers) as response:
                told.append((response.status, response.headers.get("Allow")))
                varied = response.headers.getall("Vary", [])

    assert told == [(405, "POST"), (204, "POST"), (204, None)]
    assert varied == ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]


async def test_event_streams_promise_no_connection_that_the_client_closes() -> None:
    body = {"model": CHAT, "input": "hi", "stream": True}
    async with SimulatedOllama(fast()).running() as server:
        request = request_bytes("/v1/responses", body, headers=["Connection: close"])
        head = (await raw_exchange(server, request)).partition(b"\r\n\r\n")[0].lower()

    assert b"connection: close" in head
    assert b"keep-alive" not in head
