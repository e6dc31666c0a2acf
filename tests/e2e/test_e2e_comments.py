"""Streams that wait get comments, which client libraries skip; an error behind them they raise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from client_talks import plain
from harness import CHAT, Stack, balancing, fleet, http, quick, simulated, talkative, until

LIMITS = {"queue_comment_seconds": 1}
LOAD_SECONDS = 2.5
"""Two comments' time."""
SAID = [{"role": "user", "content": "Hello"}]
SAMPLING = {"temperature": 0, "max_tokens": 12}
EVENTS = {
    "/v1/chat/completions": {"messages": SAID, **SAMPLING},
    "/v1/completions": {"prompt": "Hello", **SAMPLING},
    "/v1/responses": {"input": "Hello", "temperature": 0, "max_output_tokens": 12},
}

on_both_sinks = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def slowly_loaded() -> Any:
    """A simulated instance that answers quickly, once it has loaded a model."""
    return quick(speed=1, load_seconds=LOAD_SECONDS, rates=quick().rates)


async def streamed(client: openai.AsyncOpenAI, path: str) -> list[Any]:
    """The parts of a stream, as the library gives them."""
    ask = {
        "/v1/chat/completions": client.chat.completions.create,
        "/v1/completions": client.completions.create,
        "/v1/responses": client.responses.create,
    }[path]
    # The library types its arguments more narrowly than a table of several paths can.
    parts = await ask(model=CHAT, stream=True, **EVENTS[path])  # type: ignore[operator]
    return plain([part async for part in parts])


def blocking(url: str) -> list[Any]:
    """The parts of a chat, by the library's blocking client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        # As above.
        parts = client.chat.completions.create(model=CHAT, stream=True, **EVENTS["/v1/chat/completions"])  # type: ignore[call-overload]
        return plain(list(parts))


def library(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


def comments_of(stack: Stack) -> list[int]:
    return [each.get("comments", 0) for each in stack.finished()]


@contextlib.asynccontextmanager
async def held(stack: Stack) -> AsyncIterator[None]:
    """The only slot there is, taken by a long answer."""
    body = {"model": CHAT, "prompt": "Hello"}
    async with http(stack.url) as client, client.stream("POST", "/api/generate", json=body) as answer:
        pieces = answer.aiter_raw()  # kept: one that is let go of ends its answer
        await anext(pieces)
        yield


@on_both_sinks
async def test_openai_clients_get_the_same_behind_comments_as_from_an_instance(*, fast: bool) -> None:
    async with (
        fleet(talkative(slots=1), limits=LIMITS, fast_path=fast) as stack,
        library(stack.url) as balanced,
        library(stack.servers[0].url) as instance,
        asyncio.TaskGroup() as tasks,
    ):
        async with held(stack):
            asked = [
                tasks.create_task(asyncio.to_thread(blocking, stack.url)),
                *[tasks.create_task(streamed(balanced, path)) for path in EVENTS],
            ]
            waiting = stack.balancer.ledger.live
            await until(lambda: sum(each.comments > 0 for each in waiting()) == len(asked))
        waited = [await each for each in asked]
        direct = [
            await asyncio.to_thread(blocking, stack.servers[0].url),
            *[await streamed(instance, path) for path in EVENTS],
        ]

    assert all(direct)
    assert waited == direct


@on_both_sinks
@pytest.mark.parametrize("path", EVENTS)
async def test_bytes_behind_comments_are_those_of_an_instance(path: str, *, fast: bool) -> None:
    body = {"model": CHAT, "stream": True, **EVENTS[path]}
    async with (
        fleet(slowly_loaded(), limits=LIMITS, fast_path=fast) as stack,
        http(stack.url) as client,
        client.stream("POST", path, json=body) as answer,
    ):
        raw = b"".join([piece async for piece in answer.aiter_raw()])

    comment = b": waiting\n\n"
    events = raw.removeprefix(comment * raw.count(comment))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert raw.count(comment) >= 1
    assert events.startswith((b"data: {", b"event: response.created\n"))
    assert events.endswith(b"data: [DONE]\n\n") or b"event: response.completed\n" in events


@on_both_sinks
async def test_openai_client_that_waits_is_told_what_failed(*, fast: bool) -> None:
    """The load fails, and there is no other instance to try."""
    async with simulated(slowly_loaded()) as (one,):
        one.faults.add({"kind": "out_of_memory"})
        async with balancing([one], limits=LIMITS, fast_path=fast) as stack, library(stack.url) as client:
            with pytest.raises(openai.APIError) as told:
                await streamed(client, "/v1/chat/completions")
            await until(stack.finished)

    assert not isinstance(told.value, openai.APIStatusError), "it came in the stream, behind a 200"
    assert "memory" in told.value.message
    assert comments_of(stack)[0] >= 1
