"""Models are changed on every store of the fleet, once each, and the client sees one answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
from harness import CHAT, EMBEDDER, Stack, fleet, http, quick, records, until

from balancer.simulator import ModelSpec

BLOB = b"GGUF" + bytes(300_000)
LENGTH = {"Content-Length": str(len(BLOB))}
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
SMALL = ModelSpec(name="small:1b", size_bytes=1_000_000_000)


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": False}


async def listed(url: str) -> set[str]:
    """The models that an address lists now."""
    async with http(url) as client:
        return {each["name"] for each in (await client.get("/api/tags")).json()["models"]}


async def holdings(stack: Stack) -> list[set[str]]:
    """The models of each instance, and last of the fleet."""
    return [await listed(url) for url in (*(each.url for each in stack.servers), stack.url)]


async def test_pull_fills_every_store_and_sums_the_progress() -> None:
    async with fleet(quick(models=()), quick(models=()), shared=False) as stack, http(stack.url) as client:
        told = records(await client.post("/api/pull", json={"model": CHAT}))
        held = await holdings(stack)
    layers = [each for each in told if "digest" in each]
    size = 2_019_393_189

    assert {2 * size} == {each["total"] for each in layers}
    assert sorted(each["completed"] for each in layers) == [each["completed"] for each in layers]
    assert 2 * size == layers[-1]["completed"]
    assert sum(each["status"] == "success" for each in told) == 1
    assert sum(each["status"] == "pulling manifest" for each in told) == 1
    assert told[-1] == {"status": "success"}
    assert [{CHAT}] * 3 == held


async def test_pull_through_the_client_library_ends_in_success() -> None:
    async with fleet(quick(models=()), quick(models=())) as stack:
        async with ollama.AsyncClient(host=stack.url) as client:
            streamed = [each async for each in await client.pull(CHAT, stream=True)]
            whole = await client.pull(EMBEDDER)
        held = await holdings(stack)

    assert (streamed[-1].status, whole.status) == ("success", "success")
    assert [{CHAT, EMBEDDER}] * 3 == held


async def test_one_instance_of_a_shared_store_is_asked() -> None:
    async with fleet(quick(), quick(), shared=True) as stack, http(stack.url) as client:
        await client.post("/api/pull", json={"model": "qwen3:8b"})
        await client.post(f"/api/blobs/{DIGEST}", content=BLOB)
        await client.post("/api/create", json={"model": "own", "files": {"own.gguf": DIGEST}})
        await client.post("/api/copy", json={"source": "own", "destination": "twin"})
        gone = await client.request("DELETE", "/api/delete", json={"model": "own"})
        held = await holdings(stack)

    paths = ("/api/pull", f"/api/blobs/{DIGEST}", "/api/create", "/api/copy", "/api/delete")
    assert [sum(stack.asked(path)) for path in paths] == [1] * 5
    assert gone.status_code == 200
    assert held[0] == held[1] == held[2]
    assert "twin:latest" in held[2]
    assert "own:latest" not in held[2]


async def test_upload_and_create_reach_every_store() -> None:
    async with fleet(quick(), quick(), strategy="round_robin") as stack, http(stack.url) as client:
        missing = await client.head(f"/api/blobs/{DIGEST}")
        uploaded = await client.post(f"/api/blobs/{DIGEST}", content=BLOB)
        found = await client.head(f"/api/blobs/{DIGEST}")
        again = await client.post(f"/api/blobs/{DIGEST}", content=BLOB)
        body = {"model": "own", "files": {"own.gguf": DIGEST}}
        told = records(await client.post("/api/create", json=body))
        answers = [await client.post("/api/chat", json=chat("own")) for _ in range(2)]
        held = await holdings(stack)

    assert [each.status_code for each in (missing, uploaded, found, again)] == [404, 201, 200, 200]
    assert sum(each["status"] == "success" for each in told) == 1
    assert [each.status_code for each in answers] == [200, 200]
    assert {"one", "two"} == {each.headers["X-Balancer-Instance"] for each in answers}
    assert all("own:latest" in each for each in held)


async def test_wrong_upload_is_refused() -> None:
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        refused = await client.post(f"/api/blobs/{DIGEST}", content=b"other")

    assert refused.status_code == 400
    assert refused.json()["error"].startswith("digest mismatch")


async def test_copy_and_delete_reach_every_store_that_has_the_model() -> None:
    extra, gone = (*quick().models, SMALL), {"twin:latest", "small:1b"}
    async with fleet(quick(), quick(models=extra)) as stack, http(stack.url) as client:
        copied = await client.post("/api/copy", json={"source": CHAT, "destination": "twin"})
        everywhere = await holdings(stack)
        partly = await client.request("DELETE", "/api/delete", json={"model": "small:1b"})
        deleted = await client.request("DELETE", "/api/delete", json={"name": "twin"})
        held = [await listed(each.url) for each in stack.servers]
        # The fleet's list waits for the instances' own no longer than a second, on a busy machine too.
        for _ in range(20):
            if gone.isdisjoint(await listed(stack.url)):
                break
        held.append(await listed(stack.url))

    assert [each.status_code for each in (copied, partly, deleted)] == [200] * 3
    assert [each.content for each in (copied, partly, deleted)] == [b""] * 3
    assert all("twin:latest" in each for each in everywhere)
    assert stack.asked("/api/delete") == [1, 2]
    assert all(gone.isdisjoint(each) for each in held)


async def test_unknown_model_cannot_be_copied_deleted_or_pushed() -> None:
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        answers = [
            await client.post("/api/copy", json={"source": "nosuch", "destination": "twin"}),
            await client.request("DELETE", "/api/delete", json={"model": "nosuch"}),
            await client.post("/api/push", json={"model": "nosuch"}),
        ]

    assert [each.status_code for each in answers] == [404] * 3
    assert all("nosuch" in each.json()["error"] for each in answers)
    assert all("not found" in each.json()["error"] for each in answers)


async def test_push_is_relayed_from_one_instance_that_has_the_model() -> None:
    extra = (*quick().models, SMALL)
    async with fleet(quick(), quick(models=extra)) as stack, http(stack.url) as client:
        told = records(await client.post("/api/push", json={"model": "small:1b"}))

    assert told[-1] == {"status": "success"}
    assert stack.asked("/api/push") == [0, 1]


async def test_partial_failure_is_told_by_name() -> None:
    async with fleet(quick(models=()), quick(models=())) as stack, http(stack.url) as client:
        stack.servers[1].faults.add({"kind": "close_before_headers", "path": "/api/pull"})
        streamed = records(await client.post("/api/pull", json={"model": CHAT}))
        whole = await client.post("/api/pull", json={"model": CHAT, "stream": False})
        held = await holdings(stack)

    assert "failed on 1 of 2 model stores: two: " in streamed[-1]["error"]
    assert not any(each.get("status") == "success" for each in streamed)
    assert whole.status_code == 502
    assert "failed on 1 of 2 model stores: two: " in whole.json()["error"]
    assert [{CHAT}, set(), {CHAT}] == held


async def test_pull_of_what_no_registry_has_fails_everywhere() -> None:
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        told = records(await client.post("/api/pull", json={"model": "nosuch"}))

    assert told[-1] == {"error": "pull model manifest: file does not exist"}


async def test_unload_reaches_every_instance_where_the_model_is_loaded() -> None:
    async with fleet(quick(), quick(), strategy="round_robin") as stack, http(stack.url) as client:
        await asyncio.gather(*(client.post("/api/chat", json=chat(CHAT)) for _ in range(4)))
        assert [len(each.scheduler.runners) for each in stack.servers] == [1, 1]
        answer = await client.post("/api/generate", json={"model": CHAT, "keep_alive": 0, "stream": False})
        await until(lambda: not any(each.scheduler.runners for each in stack.servers))

    assert answer.json()["done_reason"] == "unload"


async def test_unload_reaches_a_model_that_was_loaded_a_moment_ago() -> None:
    """Also where two loads come one right after the other."""
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        for model in (CHAT, "qwen3:8b", "gemma3:4b"):
            await client.post("/api/chat", json=chat(model))
        for model in (CHAT, "qwen3:8b", "gemma3:4b"):
            await client.post("/api/generate", json={"model": model, "keep_alive": 0})

        await until(lambda: not any(each.scheduler.runners for each in stack.servers), seconds=5)


async def test_runners_are_known_soon_after_loads_in_quick_succession() -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        (instance,) = stack.balancer.fleet.instances()
        for model in (CHAT, "qwen3:8b", "gemma3:4b"):
            await client.post("/api/chat", json=chat(model))

        await until(lambda: instance.inventory and len(instance.inventory.runners) == 3, seconds=5)


async def test_deleted_model_leaves_no_runner_behind() -> None:
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        await asyncio.gather(*(client.post("/api/chat", json=chat(CHAT)) for _ in range(4)))
        await client.request("DELETE", "/api/delete", json={"model": CHAT})

        await until(lambda: not any(each.scheduler.runners for each in stack.servers))


async def test_lists_are_right_at_once_even_where_one_was_being_read() -> None:
    """The reading under way when a change begins has seen what was before it."""
    async with fleet(quick(speed=1), quick(speed=1)) as stack, http(stack.url) as client:
        for server in stack.servers:
            server.faults.add({"kind": "probe_slow", "seconds": 0.5, "count": 1})
        await until(lambda: all(_age(each) > 0.3 for each in stack.balancer.fleet.instances()))
        await client.get("/api/tags")
        await client.post("/api/copy", json={"source": CHAT, "destination": "twin"})
        after = await listed(stack.url)

    assert "twin:latest" in after


def _age(instance: Any) -> float:
    return time.monotonic() - instance.inventory.read_at


async def test_client_that_leaves_a_pull_ends_it_at_every_instance() -> None:
    async with fleet(quick(models=(), speed=1), quick(models=(), speed=1)) as stack:
        async with (
            http(stack.url) as client,
            client.stream("POST", "/api/pull", json={"model": "qwen3:8b"}) as stream,
        ):
            await anext(stream.aiter_lines())
        await until(stack.finished)

        assert stack.finished()[-1]["outcome"] == "cancelled"
        assert "request_failed" not in stack.log.getvalue()


async def pieces(*, pause_seconds: float) -> AsyncIterator[bytes]:
    """A body whose second half is late."""
    yield BLOB[:1000]
    await asyncio.sleep(pause_seconds)
    yield BLOB[1000:]


@pytest.mark.parametrize("stores", [1, 2])
async def test_upload_that_stalls_is_told_so_and_ends_everywhere(stores: int) -> None:
    limits = {"body_idle_seconds": 0.1}
    async with fleet(*[quick()] * stores, limits=limits) as stack, http(stack.url) as client:
        late = pieces(pause_seconds=0.2)
        answer = await client.post(f"/api/blobs/{DIGEST}", content=late, headers=LENGTH)

        assert answer.status_code == 408
        assert not any(each.store.has_blob(DIGEST) for each in stack.servers)
        assert "request_failed" not in stack.log.getvalue()


@pytest.mark.parametrize("stores", [1, 2])
async def test_client_that_leaves_an_upload_is_no_failure(stores: int) -> None:
    async with fleet(*[quick()] * stores) as stack:
        _, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
        head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BLOB)}\r\n\r\n"
        writer.write(head.encode() + BLOB[:1000])
        await until(lambda: stack.asked(f"/api/blobs/{DIGEST}") == [1] * stores)
        writer.close()
        await until(stack.finished)

        assert [each["outcome"] for each in stack.finished()] == ["cancelled"]
        assert "request_failed" not in stack.log.getvalue()
