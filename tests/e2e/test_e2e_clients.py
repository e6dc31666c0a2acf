"""Public client libraries get through the balancer what they get from an instance directly."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from client_talks import TALKERS, Cast, Talker, conversations, leave, talk
from harness import CHAT, EMBEDDER, THINKER, Stack, fleet, quick, talkative, until

CAST = Cast(chat=CHAT, tools=CHAT, thinker=THINKER, embedder=EMBEDDER)
EACH = [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in conversations()]


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    """Three quick instances that answer alike and list alike, being of one store."""
    async with fleet(quick(), quick(), quick(), shared=True) as stack:
        yield stack


@pytest.mark.parametrize(("talker", "operation"), EACH)
async def test_answer_is_that_of_an_instance(stack: Stack, talker: Talker, operation: str) -> None:
    direct = await talk(talker, operation, stack.servers[0].url, CAST)

    assert direct
    assert direct == await talk(talker, operation, stack.url, CAST)


@pytest.mark.parametrize("talker", TALKERS, ids=lambda talker: talker.name)
async def test_client_that_leaves_cancels_its_request_at_the_instance(talker: Talker) -> None:
    async with fleet(talkative(), talkative()) as stack:
        await leave(talker, stack.url, CAST)
        await until(lambda: sum(each.seen.cancelled for each in stack.servers) == 1)
        await until(stack.finished)

        assert [each.seen.running for each in stack.servers] == [0, 0]
        assert [each["outcome"] for each in stack.finished()] == ["cancelled"]
        assert len(stack.balancer.dispatcher.leases) == 0
