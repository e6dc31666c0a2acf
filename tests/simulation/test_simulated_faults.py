"""Each fault shows on the wire what a real failure shows, and only where it was asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from simulation_support import (
    CHAT,
    EMBEDDER,
    THINKER,
    fast,
    raw_exchange,
    request_bytes,
    simulated,
    until,
    wire_chunks,
)

HELLO = [{"role": "user", "content": "hello"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": CHAT, "prompt": "hi"},
    "/api/chat": {"model": CHAT, "messages": HELLO},
    "/v1/chat/completions": {"model": CHAT, "messages": HELLO, "stream": True},
    "/v1/completions": {"model": CHAT, "prompt": "hi", "stream": True},
    "/v1/messages": {"model": CHAT, "messages": HELLO, "max_tokens": 50, "stream": True},
    "/v1/responses": {"model": CHAT, "input": "hi", "stream": True},
}
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"


async def streamed_under(fault: dict[str, Any], path: str) -> tuple[list[bytes], bool]:
    """The chunks of a stream that meets the fault, and whether it ended well-formed."""
    async with simulated() as client:
        await client.fault(**fault)
        request = request_bytes(path, STREAMS[path], headers=["Connection: close"])
        _, chunks, terminated = wire_chunks(await raw_exchange(client.server, request))
        return chunks, terminated


@pytest.mark.parametrize("path", STREAMS)
async def test_dead_runner_ends_every_stream_well_formed_and_incomplete(path: str) -> None:
    chunks, terminated = await streamed_under({"kind": "runner_dies", "after_tokens": 3}, path)
    body = b"".join(chunks)

    assert terminated
    assert len(chunks) >= 3
    for mark in (b"[DONE]", b"message_stop", b"response.completed", b'"done":true'):
        assert mark not in body
    if path.startswith("/api/"):
        assert json.loads(chunks[-1]) == {"error": RUNNER_DIED}
    elif path.endswith("completions"):
        assert b'"model":""' in chunks[-1]
    else:
        assert b'error":{' not in body


@pytest.mark.parametrize("path", STREAMS)
async def test_dead_server_ends_every_stream_without_a_terminator(path: str) -> None:
    chunks, terminated = await streamed_under({"kind": "server_dies", "after_tokens": 2}, path)

    assert chunks
    assert not terminated


async def test_dead_runner_before_the_first_token_is_a_500() -> None:
    async with simulated() as client:
        await client.fault(kind="runner_dies", count=2)
        native = await client.post("/api/generate", STREAMS["/api/generate"])
        openai = await client.post("/v1/chat/completions", {"model": CHAT, "messages": HELLO})
        after = await client.ask()
        bodies = [await native.json(), await openai.json()]

    assert [native.status, openai.status] == [500, 500]
    assert bodies[0] == {"error": RUNNER_DIED}
    assert bodies[1]["error"]["type"] == "api_error"
    assert native.headers["Content-Type"] == "application/json"
    assert after["done"] is True


async def test_unfinished_stream_ends_well_formed_without_error_or_last_record() -> None:
    chunks, terminated = await streamed_under({"kind": "unfinished", "after_tokens": 4}, "/api/chat")

    assert terminated
    assert [json.loads(chunk)["done"] for chunk in chunks] == [False] * 4


async def test_connection_closed_before_headers_gives_no_byte() -> None:
    async with simulated() as client:
        await client.fault(kind="close_before_headers", count=1)
        nothing = await raw_exchange(client.server, request_bytes("/api/chat", STREAMS["/api/chat"]))
        version = await client.get("/api/version")

    assert nothing == b""
    assert "version" in version


@pytest.mark.parametrize(
    ("path", "status"), [("/api/embed", 400), ("/v1/embeddings", 400), ("/api/embeddings", 500)]
)
async def test_runner_that_dies_under_an_embedding_is_told_of(path: str, status: int) -> None:
    asked = {"model": EMBEDDER, "prompt" if path == "/api/embeddings" else "input": "a text"}
    async with simulated() as client:
        await client.fault(kind="runner_dies", count=1)
        answers = [await client.session.post(path, json=asked) for _ in range(2)]
        told = await answers[0].text()

    assert [each.status for each in answers] == [status, 200]
    assert "do embedding request: " in told


async def test_garbage_is_no_http() -> None:
    async with simulated() as client:
        await client.fault(kind="garbage")
        answer = await raw_exchange(client.server, request_bytes("/api/chat", STREAMS["/api/chat"]))

    assert answer
    assert not answer.startswith(b"HTTP/")


async def test_hang_answers_nothing_not_even_the_version() -> None:
    async with simulated() as client:
        await client.fault(kind="hang")
        for path in ("/api/version", "/"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.session.get(path), 0.1)
        await client.session.delete("/simulator/faults")

        assert "version" in await client.get("/api/version")


async def test_hang_for_a_while_answers_late() -> None:
    async with simulated(fast(speed=10)) as client:
        await client.fault(kind="hang", seconds=0.5, count=1)
        before = client.server.clock.now()
        await client.get("/api/version")

        assert client.server.clock.now() - before >= 0.5


async def test_slow_probe_delays_ps_alone() -> None:
    async with simulated(fast(speed=10)) as client:
        await client.fault(kind="probe_slow", seconds=3600)
        probe = asyncio.create_task(client.get("/api/ps"))
        await client.get("/api/version")
        await client.get("/api/tags")
        await client.ask()

        assert not probe.done()
        probe.cancel()


@pytest.mark.parametrize(("kind", "status"), [("status_500", 500), ("busy_503", 503)])
async def test_status_faults_hit_inference_in_its_dialect_and_spare_the_rest(kind: str, status: int) -> None:
    async with simulated() as client:
        await client.fault(kind=kind)
        answers = [await client.post(path, body) for path, body in STREAMS.items()]
        embed = await client.post("/api/embed", {"model": EMBEDDER, "input": "x"})
        messages = await answers[4].json()
        version = await client.get("/api/version")

    assert {answer.status for answer in (*answers, embed)} == {status}
    assert messages["type"] == "error"
    assert "version" in version


async def test_fault_of_one_model_spares_the_others_and_ends_with_its_count() -> None:
    async with simulated() as client:
        await client.fault(kind="status_500", model="llama3.2", count=1)
        other = await client.ask(THINKER)
        hit = await client.ask(CHAT)
        again = await client.ask(CHAT)
        left = await client.get("/simulator/faults")

    assert other["done"]
    assert hit == {"error": "simulated fault"}
    assert again["done"]
    assert left == {"faults": []}


async def test_out_of_memory_fails_a_load_and_leaves_nothing_resident() -> None:
    async with simulated() as client:
        await client.fault(kind="out_of_memory", model=CHAT, count=1)
        failed = await client.ask()
        resident = await client.resident()
        loaded = await client.ask()

    assert "out of memory" in failed["error"]
    assert resident == []
    assert loaded["done"] is True


async def test_out_of_memory_in_a_stream_expires_every_model() -> None:
    async with simulated() as client:
        await client.ask(THINKER)
        await client.fault(kind="out_of_memory", model=CHAT, after_tokens=2)
        await client.post("/api/chat", STREAMS["/api/chat"])
        await until(lambda: not client.server.scheduler.runners)


async def test_slow_stretches_every_duration() -> None:
    async with simulated() as client:
        normal = await client.ask(text="word " * 300)
        await client.fault(kind="slow", model=CHAT, factor=4)
        slow = await client.ask(text="other " * 300)

    per_token = [answer["eval_duration"] / answer["eval_count"] for answer in (normal, slow)]
    assert per_token[1] == pytest.approx(4 * per_token[0], rel=0.01)


async def test_refusing_server_keeps_open_connections_and_comes_back() -> None:
    async with simulated(fast(speed=10)) as client:
        await client.get("/api/version")
        await client.fault(kind="refuse", seconds=3)
        await asyncio.sleep(0)
        kept = await client.get("/api/version")
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession(client.server.url) as stranger:
                await stranger.get("/api/version")

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
            except ConnectionRefusedError:
                return False
            writer.close()
            return True

        for _ in range(400):
            if back := await listens():
                break
            await asyncio.sleep(0.01)

    assert "version" in kept
    assert back


async def test_wrong_faults_are_refused_with_a_reason() -> None:
    async with simulated() as client:
        told = []
        for fields in ({"kind": "nonsense"}, {"kind": "hang", "minutes": 1}, {"kind": "hang", "count": "x"}):
            response = await client.post("/simulator/faults", fields)
            told.append((response.status, (await response.json())["error"]))
        deadly = await client.post("/simulator/faults", {"kind": "server_dies", "process": True})

    assert [status for status, _ in told] == [400, 400, 400]
    assert "unknown kind" in told[0][1]
    assert "minutes" in told[1][1]
    assert "count" in told[2][1]
    assert deadly.status == 400


async def test_state_counts_what_happened() -> None:
    async with simulated() as client:
        await client.ask()
        headers = {"X-Trace": "7"}
        async with client.session.post("/api/chat", json=STREAMS["/api/chat"], headers=headers) as response:
            await response.read()
        state = await client.get("/simulator/state")

    assert state["requests_by_path"] == {"/api/chat": 2}
    assert state["requests_by_model"] == {CHAT: 2}
    assert state["connections_accepted"] >= 1
    assert ["X-Trace", "7"] in state["recent_requests"][-1]["headers"]
    assert state["runners"][0]["slots_free"] == 1
