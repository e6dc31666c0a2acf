"""What stands in the fleet's lists for a model of another runtime."""

import asyncio
from collections.abc import Mapping
from typing import Any

from balancer.control.runtime_facts import VLLM_SLOTS, RuntimeFacts, read_facts
from balancer.core.plan import Runtime
from balancer.protocol.lists import merge_ps, merge_tags, openai_models, timestamp
from balancer.protocol.translation.served import Served
from balancer.protocol.translation.shapes import context_length_of, ps_row, shown, tag_rows

LLAMA = {
    "id": "qwen",
    "aliases": ["qwen", "q"],
    "created": 17,
    "architecture": {"input_modalities": ["text", "image"]},
    "meta": {"n_ctx": 8192, "n_params": 7_615_616_512, "size": 4_680_000_000, "ftype": "Q4_K - Medium"},
}
PROPERTIES: Mapping[str, object] = {
    "total_slots": 4,
    "build_info": "b11669-Debian",
    "default_generation_settings": {"n_ctx": 2048},
    "chat_template_caps": {"supports_tools": True},
}
VLLM = {"id": "org/Big", "created": 17, "max_model_len": 32768, "root": "/models/big"}


def row(runtime: Runtime, card: Mapping[str, object], **properties: Any) -> Mapping[str, object]:
    return tag_rows(runtime, [card], properties)[0]


def facts(runtime: Runtime, answers: Mapping[str, Mapping[str, object]]) -> RuntimeFacts | None:
    async def ask(path: str) -> Mapping[str, object] | None:
        return answers.get(path)

    return asyncio.run(read_facts(runtime, ask))


def test_a_model_is_listed_with_what_llama_server_tells() -> None:
    told = row(Runtime.LLAMA_SERVER, LLAMA, **PROPERTIES)

    assert (told["name"], told["model"], told["size"]) == ("qwen", "qwen", 4_680_000_000)
    assert told["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama-server",
        "families": None,
        "parameter_size": "7.6B",
        "quantization_level": "Q4_K - Medium",
        "context_length": 2048,  # of one slot, which is less than of them all
    }
    assert told["capabilities"] == ["completion", "vision", "tools"]
    assert context_length_of(told) == 2048


def test_a_model_is_listed_with_what_vllm_tells() -> None:
    told = row(Runtime.VLLM, VLLM)

    assert (told["name"], told["size"], context_length_of(told)) == ("org/Big", 0, 32768)
    assert told["capabilities"] == ["completion"]
    assert isinstance(told["details"], dict)
    assert told["details"]["parent_model"] == "/models/big"


def test_rows_stay_the_same_for_as_long_as_the_same_is_served() -> None:
    assert row(Runtime.VLLM, VLLM) == row(Runtime.VLLM, {**VLLM, "created": 18})
    assert row(Runtime.VLLM, VLLM)["digest"] != row(Runtime.VLLM, {**VLLM, "root": "/other"})["digest"]


def test_rows_hold_what_clients_cut_and_count_on() -> None:
    """`ollama list` and `ollama ps` cut the digest after 12 characters, and read both times."""
    told = row(Runtime.VLLM, VLLM)
    resident = ps_row(told)

    assert len(str(told["digest"])) == 64
    assert timestamp(resident["expires_at"]) > 1e10
    assert (resident["context_length"], resident["size_vram"]) == (32768, 0)
    assert merge_tags([[told]]) == {"models": [told]}
    assert merge_ps([[resident]]) == {"models": [resident]}
    assert openai_models([told])["data"] == [
        {"id": "org/Big", "object": "model", "created": 0, "owned_by": "org"}
    ]


def test_each_alias_is_a_name() -> None:
    assert [each["name"] for each in tag_rows(Runtime.LLAMA_SERVER, [LLAMA], PROPERTIES)] == ["qwen", "q"]


def test_what_is_no_card_is_left_out() -> None:
    cards: list[object] = [None, {}, {"id": 3}, "x", {"id": "m", "meta": 3, "architecture": [], "aliases": 1}]

    assert [each["name"] for each in tag_rows(Runtime.VLLM, cards, {"modalities": 3})] == ["m"]
    assert tag_rows(Runtime.VLLM, {"id": "m"}, {}) == []


def test_a_model_is_shown_as_far_as_its_runtime_tells() -> None:
    told = row(Runtime.VLLM, VLLM)
    served = Served(runtime=Runtime.VLLM, name="org/Big", context_length=32768, row=told)

    assert shown(served)["model_info"] == {"general.architecture": "vllm", "vllm.context_length": 32768}
    assert shown(served)["details"] == told["details"]
    assert shown(Served(runtime=Runtime.VLLM, name="x"))["capabilities"] == ["completion"]


def test_slots_and_version_are_what_the_runtime_tells() -> None:
    listed = {"data": [LLAMA]}
    llama = facts(Runtime.LLAMA_SERVER, {"/v1/models": listed, "/props": PROPERTIES})
    vllm = facts(Runtime.VLLM, {"/v1/models": {"data": [VLLM]}, "/version": {"version": "0.11.2"}})
    silent = facts(Runtime.LLAMA_SERVER, {"/v1/models": listed})

    assert llama is not None
    assert vllm is not None
    assert silent is not None
    assert (set(llama.slots.values()), llama.version) == ({4}, "b11669-Debian")
    assert (set(vllm.slots.values()), vllm.version) == ({VLLM_SLOTS}, "0.11.2")
    assert (silent.slots, silent.version) == ({}, "")
    assert set(llama.slots) == {each["digest"] for each in llama.runners}
    assert facts(Runtime.VLLM, {"/version": {}}) is None
