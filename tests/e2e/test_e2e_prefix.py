"""The prefix index through the whole balancer: what it believes of simulated instances, which have a prefix
cache, and what is told of it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from harness import CHAT, EMBEDDER, Stack, fleet, http, quick, talkative
from zstandard import ZstdCompressor

from balancer.core.names import canonical_name
from balancer.core.variant import Variant
from balancer.protocol.json_body import read_object
from balancer.protocol.prefix import read_prefix

SYSTEM = "You are a patient teacher of the history of sailing. " * 40
QUESTION, FURTHER = "Who built the first ship? " * 20, "And the second one? " * 20


def turn(*said: str) -> dict[str, Any]:
    """A request of a conversation whose turns were these, the last one the user's."""
    roles = ("user", "assistant") * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return {
        "model": CHAT,
        "messages": [{"role": "system", "content": SYSTEM}, *messages],
        "stream": False,
        "options": {"num_predict": 20},
    }


def sampled(text: str, name: str) -> float:
    """A metric over all of its labels."""
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def metrics(stack: Stack) -> str:
    async with http(stack.admin) as client:
        return (await client.get("/metrics")).text


async def asked(client: httpx.AsyncClient, body: dict[str, Any], path: str = "/api/chat") -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert isinstance(told, dict)
    return told


async def test_the_second_turn_of_a_conversation_is_believed_to_be_cached_and_is() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        first = await asked(client, turn(QUESTION))
        answer = first["message"]["content"]
        second = await asked(client, turn(QUESTION, answer, FURTHER))
        other = await asked(
            client, {**turn(QUESTION), "messages": [{"role": "user", "content": FURTHER * 5}]}
        )
        told = await metrics(stack)
        records = stack.finished()

    assert [
        records[0]["believed_share"],
        records[1]["believed_share"] > 0.7,
        records[2]["believed_share"],
    ] == [0.0, True, 0.0]
    assert records[1]["inferred_share"] > 0.7
    assert abs(records[2]["inferred_share"]) < 0.3
    assert second["prompt_eval_duration"] < 0.3 * first["prompt_eval_duration"]
    assert other["prompt_eval_count"] > 128
    assert sampled(told, "balancer_prefix_cache_lookups_total") == 3
    assert sampled(told, "balancer_prefix_cache_hits_total") == 1
    believed = sampled(told, "balancer_prefix_cache_believed_tokens_total")
    inferred = sampled(told, "balancer_prefix_cache_inferred_tokens_total")
    assert believed == pytest.approx(records[1]["believed_share"] * second["prompt_eval_count"], rel=0.01)
    assert inferred == pytest.approx(believed, rel=0.3)
    assert sampled(told, "balancer_prefix_index_bytes") == stack.balancer.prefix_index.bytes > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": SYSTEM + QUESTION}),
        ("/v1/chat/completions", {"messages": turn(QUESTION)["messages"], "max_tokens": 20}),
        ("/v1/completions", {"prompt": SYSTEM + QUESTION, "max_tokens": 20}),
        ("/v1/responses", {"instructions": SYSTEM, "input": QUESTION, "max_output_tokens": 20}),
        (
            "/v1/messages",
            {"system": SYSTEM, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 9},
        ),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
async def test_a_prompt_is_known_again_on_every_path(path: str, body: dict[str, Any], streams: bool) -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        for _ in range(2):
            (await client.post(path, json={"model": CHAT, "stream": streams, **body})).raise_for_status()
        records = stack.finished()

    assert [each["believed_share"] for each in records] == [0.0, 1.0]


async def test_what_was_believed_goes_with_the_runner() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        await asked(client, turn(QUESTION))
        await asked(client, {"model": CHAT, "messages": [], "keep_alive": 0})
        await asked(client, turn(QUESTION))
        wide = {**turn(QUESTION), "options": {"num_ctx": 16384, "num_predict": 20}}
        await asked(client, wide)
        await asked(client, wide)
        records = [each for each in stack.finished() if "believed_share" in each]

    assert [each["believed_share"] for each in records] == [0.0, 0.0, 0.0, 1.0]


async def test_wrong_beliefs_are_corrected_and_teach_no_rate() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        (instance,) = stack.balancer.fleet.instances()
        index, variant = stack.balancer.prefix_index, Variant(canonical_name(CHAT))
        await asked(client, turn(QUESTION))
        for name in ("two", "three"):
            body = turn(f"{name} {SYSTEM}")
            body["messages"][0]["content"] = f"{name} {SYSTEM}"
            prefix = read_prefix(read_object(json.dumps(body, separators=(",", ":")).encode()))
            index.remember(instance.id, variant, prefix[: len(prefix) * 3 // 4])
            await asked(client, body)
        records = stack.finished()

        assert all(0.5 < each["believed_share"] < 0.9 for each in records[1:])
        assert all(abs(each["inferred_share"]) < 0.1 for each in records[1:])
        assert index.cached_tokens(instance.id, variant, prefix) < index.believed_tokens(
            instance.id, variant, prefix
        )


async def test_a_compressed_prompt_is_as_long_as_its_beginning() -> None:
    body = json.dumps({**turn(SYSTEM * 50), "stream": True}).encode()
    headers = {"Content-Encoding": "zstd", "Content-Type": "application/json"}
    async with (
        fleet(talkative()) as stack,
        http(stack.url) as client,
        client.stream(
            "POST", "/v1/chat/completions", content=ZstdCompressor().compress(body), headers=headers
        ) as answer,
    ):
        assert answer.status_code == 200
        (lease,) = stack.balancer.dispatcher.leases

    assert lease.ticket.prefix[-1][1] > len(body) // 3
    assert lease.ticket.prompt_tokens is not None
    assert lease.ticket.prompt_tokens > lease.ticket.prefix[-1][1]


async def test_a_reload_that_switches_sharing_off_forgets() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        await asked(client, turn(QUESTION))
        assert stack.balancer.prefix_index.bytes > 0
        settings = stack.balancer.settings
        off = settings.cache.model_copy(update={"sharing": False})

        stack.balancer.apply(settings.model_copy(update={"cache": off}))
        assert stack.balancer.prefix_index.bytes == 0
        await asked(client, turn(QUESTION))

        assert "believed_share" not in stack.finished()[1]


async def test_embeddings_and_switched_off_sharing_mark_nothing() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        await asked(client, {"model": EMBEDDER, "input": SYSTEM}, "/api/embed")
        assert stack.balancer.prefix_index.bytes == 0
        assert "believed_share" not in stack.finished()[0]
    async with fleet(quick(), cache={"sharing": False}) as stack, http(stack.url) as client:
        await asked(client, turn(QUESTION))
        told = await metrics(stack)
        assert "believed_share" not in stack.finished()[0]

    assert sampled(told, "balancer_prefix_cache_lookups_total") == 0
    assert sampled(told, "balancer_prefix_index_bytes") == 0
    assert json.dumps(QUESTION) not in stack.log.getvalue()
