"""What the prefix index believes of a real server, which tells by its durations whether it is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import http
from real_ollama import Behind, behind, needs_ollama

pytestmark = needs_ollama

SYSTEM = "You are a patient teacher of the history of sailing. " * 20
QUESTIONS = ("Who built the first ship?", "And who the second one?", "Why?")


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """One server with one slot, and a balancer."""
    with behind([store], tmp_path_factory.mktemp("alone"), slots=1) as started:
        yield started


async def converse(started: Behind, name: str) -> list[dict[str, Any]]:
    """The records, oldest first, of a conversation of as many turns as there are questions."""
    said = [{"role": "system", "content": f"{name}: {SYSTEM}"}]
    async with http(started.url) as client:
        for question in QUESTIONS:
            said.append({"role": "user", "content": question})
            body = {"model": "m", "messages": said, "stream": False, "options": {"num_predict": 8}}
            answer = await client.post("/api/chat", json=body)
            assert answer.status_code == 200, answer.text
            said.append(answer.json()["message"])
    return started.recent()[len(QUESTIONS) - 1 :: -1]


async def test_a_conversation_is_believed_to_be_cached_and_is_until_its_model_is_unloaded(
    alone: Behind,
) -> None:
    first = await converse(alone, "first")
    second = await converse(alone, "second")
    async with http(alone.url) as client:
        await client.post("/api/chat", json={"model": "m", "messages": [], "keep_alive": 0})
    again = await converse(alone, "second")

    for records in (first, second, again):
        believed = [each["believed_share"] for each in records]
        assert believed[0] == 0.0
        assert all(share > 0.7 for share in believed[1:])
    # The first prompt of all teaches the rate that the others are judged by.
    assert all(each["inferred_share"] > 0.5 for each in [*first[1:], *second[1:], *again[1:]])
    for begun in (second, again):
        assert all(begun[0]["inferred_share"] < each["inferred_share"] - 0.3 for each in begun[1:])
