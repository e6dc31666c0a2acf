"""What the balancer learns of real servers, and what it does when they share a store or one dies."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from harness import http, records, wait_for
from real_ollama import CAST, GGUF, Behind, behind, copy_store, model_fields, needs_ollama

from balancer.provisioning.local import find_local_ollama

pytestmark = needs_ollama

FOREVER = {"num_predict": 100_000, "num_thread": 1}


def create(url: str, name: str) -> list[Any]:
    """Create a model from an upload; the progress told."""
    with ollama.Client(host=url) as client:
        digest = client.create_blob(GGUF / "say.gguf")
        fields = model_fields("say", digest)
        return [each.status for each in client.create(name, **fields, stream=True)]


def test_one_server_of_a_shared_store_creates(together: Behind) -> None:
    before = together.served("/api/create")
    told = create(together.url, "shared")

    assert told[-1] == "success"
    assert sum(together.served("/api/create")) - sum(before) == 1
    assert all("shared:latest" in each.listed() for each in together.servers)


def test_every_server_of_separate_stores_creates(apart: Behind) -> None:
    before = apart.served("/api/create")
    told = create(apart.url, "each")
    with ollama.Client(host=apart.url) as client:
        listed = {each.model for each in client.list().models}

    assert told.count("success") == 1
    assert told[-1] == "success"
    assert [each + 1 for each in before] == apart.served("/api/create")
    assert "each:latest" in listed
    assert all("each:latest" in each.listed() for each in apart.servers)


@pytest.mark.parametrize("parallel", [1, 2])
def test_slots_are_learned_from_the_runner(store: Path, tmp_path: Path, parallel: int) -> None:
    with behind([store], tmp_path, OLLAMA_NUM_PARALLEL=str(parallel)) as started:
        with ollama.Client(host=started.url) as client:
            client.generate(CAST.chat, "Hello")
        wait_for(started.runners, about="a runner in the balancer's status")

        assert [parallel] == [each["slots"] for each in started.runners()]


async def test_runner_tells_whether_it_works_at_something(store: Path, tmp_path: Path) -> None:
    """What the stall watch asks where a request stays silent."""
    with behind([store], tmp_path) as started:
        (server,) = started.servers
        async with http(started.url) as client, httpx.AsyncClient() as runner:
            await client.post("/api/chat", json={"model": "m", "messages": []})
            found = find_local_ollama(httpx.URL(server.url).port or 0)
            assert found is not None
            (port,) = found.ports.values()

            async def working() -> list[bool]:
                told = (await runner.get(f"http://127.0.0.1:{port}/slots")).json()
                return [each["is_processing"] for each in told]

            assert await working() == [False]
            body = {"model": "m", "prompt": "hi", "options": FOREVER}
            async with client.stream("POST", "/api/generate", json=body) as stream:
                await anext(stream.aiter_lines())
                assert await working() == [True]


async def test_killed_server_breaks_its_stream_off_and_the_other_serves_on(
    store: Path, tmp_path: Path
) -> None:
    with behind([store, copy_store(store, tmp_path / "models")], tmp_path) as started:
        async with http(started.url) as client:
            body = {"model": "m", "prompt": "hi", "options": FOREVER}
            async with client.stream("POST", "/api/generate", json=body) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                by_url = {each.url.removeprefix("http://"): each for each in started.servers}
                victim = by_url[stream.headers["X-Balancer-Instance"]]
                (other,) = (each for each in started.servers if each is not victim)
                os.kill(victim.child.pid, signal.SIGKILL)
                rest = await _until_cut(lines)
            answers = [await client.post("/api/chat", json=_hello()) for _ in range(4)]
            listed = await client.get("/api/tags")

    assert '{"error":' in rest[-1]
    assert [each.status_code for each in answers] == [200] * 4
    assert {other.url.removeprefix("http://")} == {each.headers["X-Balancer-Instance"] for each in answers}
    assert all(records(each)[-1]["done"] for each in answers)
    assert len(listed.json()["models"]) == 6


def _hello() -> dict[str, Any]:
    return {"model": CAST.chat, "messages": [{"role": "user", "content": "Hello"}]}


async def _until_cut(lines: AsyncIterator[str]) -> list[str]:
    """The lines that still come before the answer is cut."""
    rest: list[str] = []
    with contextlib.suppress(httpx.RemoteProtocolError):
        while True:
            rest.append(await anext(lines))
    return rest
