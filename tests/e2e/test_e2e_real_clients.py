"""With real Ollama servers too, client libraries get through the balancer what one server tells them."""

from __future__ import annotations

from typing import Any

import pytest
from client_talks import TALKERS, Talker, conversations, leave, talk
from harness import BalancerProcess, until
from real_ollama import CAST, RANDOM, SLOW, RealOllama, needs_ollama

pytestmark = needs_ollama

EACH = [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in conversations()]


@pytest.mark.parametrize(("talker", "operation"), EACH)
async def test_real_answer_is_that_of_an_instance(
    pair: list[RealOllama], balanced: BalancerProcess, talker: Talker, operation: str
) -> None:
    direct = await talk(talker, operation, pair[0].url, CAST)

    assert direct
    assert direct == await talk(talker, operation, balanced.url, CAST)


@pytest.mark.parametrize("operation", ["chat", "stream", "generate", "generate_stream"])
async def test_seeded_words_are_those_of_an_instance(
    pair: list[RealOllama], balanced: BalancerProcess, operation: str
) -> None:
    """Warm on both sides, since a prompt that was seen before is evaluated in other batches."""
    (talker,) = (each for each in TALKERS if each.name == "ollama-async")
    answers: list[Any] = []
    for _ in range(2):
        answers = [
            await talk(talker, operation, url, RANDOM) for url in (pair[0].url, pair[1].url, balanced.url)
        ]

    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("talker", TALKERS, ids=lambda talker: talker.name)
async def test_client_that_leaves_ends_the_work_at_the_real_server(
    pair: list[RealOllama], balanced: BalancerProcess, talker: Talker
) -> None:
    """A server logs a request when it has ended; this answer would go on for minutes."""
    paths = ("/api/chat", "/v1/chat/completions", "/v1/messages")
    before = sum(each.served(path) for each in pair for path in paths)
    told = len(balanced.finished())

    await leave(talker, balanced.url, SLOW)

    await until(lambda: sum(each.served(path) for each in pair for path in paths) == before + 1)
    await until(lambda: outcomes(balanced, told))
    assert outcomes(balanced, told) == ["cancelled"]


def outcomes(balanced: BalancerProcess, told: int) -> list[str]:
    """How requests for the slow model ended, of all that were told after so many."""
    since = balanced.finished()[told:]
    return [each["outcome"] for each in since if each.get("model") == f"{SLOW.chat}:latest"]
