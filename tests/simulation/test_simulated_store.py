"""Pull, push, create, copy, delete and blobs change the store, and servers may share one."""

from __future__ import annotations

import hashlib
from typing import Any

from simulation_support import CHAT, Client, fast, lines_of, simulated, until

from balancer.simulator import ModelStore

BLOB = b"GGUF" + b"\0" * 5000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()


async def statuses_of(client: Client, path: str, body: dict[str, Any]) -> list[str]:
    return [
        line.get("status", line.get("error"))
        for line in lines_of(await (await client.post(path, body)).text())
    ]


async def test_pull_reports_progress_and_installs() -> None:
    async with simulated(fast(models=())) as client:
        response = await client.post("/api/pull", {"model": CHAT})
        lines = lines_of(await response.text())
        answer = await client.ask()

    assert lines[0] == {"status": "pulling manifest"}
    assert [line["status"] for line in lines[-3:]] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert lines[-4]["completed"] == lines[-4]["total"]
    assert answer["done"] is True


async def test_pull_without_a_stream_answers_once() -> None:
    async with simulated(fast(models=())) as client:
        response = await client.post("/api/pull", {"name": CHAT, "stream": False})

        assert await response.json() == {"status": "success"}


async def test_pull_of_an_unknown_model_is_an_error_line_in_a_200() -> None:
    async with simulated() as client:
        response = await client.post("/api/pull", {"model": "nosuch"})
        whole = await client.post("/api/pull", {"model": "nosuch", "stream": False})

        assert response.status == 200
        assert lines_of(await response.text())[-1] == {"error": "pull model manifest: file does not exist"}
        assert whole.status == 500


async def test_push_reports_progress() -> None:
    async with simulated() as client:
        statuses = await statuses_of(client, "/api/push", {"model": CHAT})

    assert (statuses[0], statuses[-2:]) == ("retrieving manifest", ["pushing manifest", "success"])


async def test_blobs_are_checked_stored_once_and_found() -> None:
    async with simulated() as client:
        told = []
        for method, digest, data in (
            ("HEAD", DIGEST, None),
            ("POST", DIGEST, b"other"),
            ("POST", DIGEST, BLOB),
            ("POST", DIGEST, b"not read"),
            ("HEAD", DIGEST, None),
            ("HEAD", "sha256:short", None),
        ):
            async with client.session.request(method, f"/api/blobs/{digest}", data=data) as response:
                told.append(response.status)

    assert told == [404, 400, 201, 200, 200, 400]


async def test_create_from_a_model_shares_its_runner_and_from_a_blob_does_not() -> None:
    async with simulated() as client:
        derived = {"model": "derived", "from": CHAT, "system": "be brief", "parameters": {"top_k": 3}}
        statuses = await statuses_of(client, "/api/create", derived)
        await client.session.post(f"/api/blobs/{DIGEST}", data=BLOB)
        await statuses_of(client, "/api/create", {"model": "own", "files": {"own.gguf": DIGEST}})
        answers = [await client.ask(name) for name in (CHAT, "derived", "own")]
        shown = await (await client.post("/api/show", {"model": "derived"})).json()
        loads = client.server.seen.loads

    assert statuses[-2:] == ["writing manifest", "success"]
    assert all(answer["done"] for answer in answers)
    assert answers[1]["prompt_eval_count"] > answers[0]["prompt_eval_count"]
    assert loads == 2
    assert (shown["system"], shown["parameters"].split()) == ("be brief", ["top_k", "3"])


async def test_create_tells_one_line_per_layer_and_which_are_new() -> None:
    body = {"model": "derived", "from": CHAT, "system": "be brief", "license": ["A", "B"]}
    async with simulated() as client:
        first = await statuses_of(client, "/api/create", body)
        again = await statuses_of(client, "/api/create", body)
        copied = await statuses_of(client, "/api/create", {"model": "third", "from": "derived"})
        lines = await statuses_of(
            client, "/api/create", {"model": "fourth", "from": "third", "parameters": {"top_k": 3}}
        )
        shown = await (await client.post("/api/show", {"model": "fourth"})).json()

    def kinds(statuses: list[str]) -> list[str]:
        return [line.split(" ")[0] for line in statuses if " layer sha256:" in line]

    assert kinds(first) == ["using"] * 2 + ["creating"] * 3
    assert kinds(again) == kinds(copied) == ["using"] * 5
    assert kinds(lines) == ["using"] * 5 + ["creating"]
    assert (shown["license"], shown["details"]["parent_model"]) == ("A\nB", "third:latest")


async def test_layers_go_with_the_last_model_that_has_them() -> None:
    async with simulated() as client:
        await statuses_of(client, "/api/create", {"model": "derived", "from": CHAT, "system": "be brief"})
        (layer,) = (
            one.digest
            for one in client.server.store.find("derived").layers
            if one.kind == "system"  # type: ignore[union-attr]
        )
        await client.post("/api/copy", {"source": "derived", "destination": "twin"})
        held = []
        for name in ("derived", "twin"):
            held.append(client.server.store.has_blob(layer))
            async with client.session.delete("/api/delete", json={"model": name}):
                pass

    assert [*held, client.server.store.has_blob(layer)] == [True, True, False]


async def test_create_needs_a_source_and_known_blobs() -> None:
    async with simulated() as client:
        nothing = await client.post("/api/create", {"model": "x"})
        unknown = await client.post("/api/create", {"model": "x", "files": {"a.gguf": DIGEST}})
        nameless = await client.post("/api/create", {"model": "x", "files": {"a": DIGEST}})
        empty = await client.post("/api/create", {"model": "x", "files": {"a": ""}})
        outside = await client.post("/api/create", {"model": "x", "files": {"/a": DIGEST}})

        assert (await nothing.json())["error"] == "neither 'from' or 'files' was specified"
        assert [nothing.status, unknown.status, nameless.status] == [400, 200, 400]
        assert (await nameless.json())["error"] == "unknown type"
        assert (empty.status, (await empty.json())["error"]) == (400, "invalid digest format")
        assert (outside.status, (await outside.json())["error"]) == (400, "file path must be relative")
        assert lines_of(await unknown.text())[-1]["error"].endswith("no such file or directory")


async def test_copy_and_delete_answer_with_empty_bodies() -> None:
    async with simulated() as client:
        copied = await client.post("/api/copy", {"source": CHAT, "destination": "twin"})
        async with client.session.delete("/api/delete", json={"name": "twin"}) as deleted:
            body = await deleted.read()
        async with client.session.delete("/api/delete", json={"model": "twin"}) as missing:
            told = await missing.json()

    assert (copied.status, await copied.read(), deleted.status, body) == (200, b"", 200, b"")
    assert told == {"error": "model 'twin' not found"}


async def test_servers_on_one_store_see_each_others_changes() -> None:
    store = ModelStore()
    async with simulated(store=store) as first, simulated(store=store) as second:
        await first.post("/api/copy", {"source": CHAT, "destination": "shared"})
        answer = await second.ask("shared")
        await first.session.delete("/api/delete", json={"model": "shared"})
        resident, gone = await second.resident(), await second.ask("shared")

    assert answer["done"] is True
    assert resident == ["shared:latest"]
    assert gone["error"] == "model 'shared' not found"


async def test_recreated_name_with_other_weights_is_listed_twice_until_the_old_one_expires() -> None:
    async with simulated() as client:
        await client.post("/api/create", {"model": "nu", "from": CHAT})
        await client.ask("nu")
        await client.session.post(f"/api/blobs/{DIGEST}", data=BLOB)
        await client.post("/api/create", {"model": "nu", "files": {"a.gguf": DIGEST}})
        await client.ask("nu")
        processes = (await client.get("/api/ps"))["models"]

    assert [process["name"] for process in processes] == ["nu:latest", "nu:latest"]
    assert len({process["digest"] for process in processes}) == 2


async def test_deleted_model_stays_resident_until_its_keep_alive_ends() -> None:
    async with simulated(fast(speed=100, keep_alive_seconds=1)) as client:
        await client.ask()
        async with client.session.delete("/api/delete", json={"model": CHAT}):
            pass
        unload = await client.post("/api/generate", {"model": CHAT, "keep_alive": 0})
        await until(lambda: not client.server.scheduler.runners)

    assert unload.status == 404
