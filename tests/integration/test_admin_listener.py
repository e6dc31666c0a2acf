"""The admin listener of a running balancer: what it lets an operator do, and whom it turns away."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from balancer.admin.openapi import DOCUMENT
from balancer.control.config_files import ConfigFiles
from balancer.control.reloader import ConfigSource
from balancer.settings import Settings, Strategy, load
from tests.fakes.raw_client import Answer, RawClient, connected, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import DONE, ScriptedInstance, Send, Wait, chunked

JSON = "Content-Type: application/json"
DRAIN = "/admin/v1/instances/a/drain"
UNDRAIN = "/admin/v1/instances/a/undrain"
RELOAD = "/admin/v1/reload"
GENERATE = {"model": "m", "prompt": "hi"}
ODD_NAMES = [
    "127.0.0.1:11434",
    "a b",
    "50%",
    "a%2Fb",
    "%41",
    "a?b#c",
    "a+b",
    "..",
    ".",
    "a;b=c&d",
    "~[x]{y}|\\",
]


CHANGES: list[tuple[int, bytes, list[str]]] = [
    (200, b"{}", [JSON]),
    (200, b"", [JSON]),
    (200, b" { } ", [f"{JSON}; charset=utf-8"]),
    (415, b"{}", ["Content-Type: text/plain"]),
    (415, b"{}", ["Content-Type: application/x-www-form-urlencoded"]),
    (415, b"", ["X-Nothing: here"]),
    (400, b'{"force": true}', [JSON]),
    (400, b"[]", [JSON]),
    (400, b"null", [JSON]),
    (400, b"{", [JSON]),
    (400, b"\xff", [JSON]),
    (400, b"[" * 5000, [JSON]),
    (413, b" " * 70_000, [JSON]),
    (413, gzip.compress(b" " * 1_000_000), [JSON, "Content-Encoding: gzip"]),
    (400, b"no gzip", [JSON, "Content-Encoding: gzip"]),
    (403, b"{}", [JSON, "Origin: http://elsewhere.example"]),
    (403, b"{}", [JSON, "Origin: null"]),
    (403, b"{}", [JSON, "Origin: http://localhost:3000"]),
    (403, b"{}", [JSON, "Origin: http://localhost", "Origin: http://elsewhere.example"]),
    (200, b"{}", [JSON, "Origin: http://localhost"]),
]


@contextlib.asynccontextmanager
async def operating(running: Running) -> AsyncIterator[RawClient]:
    """A connection to the admin listener."""
    parts = urlsplit(running.addresses.admin)
    assert parts.hostname
    assert parts.port
    async with connected(parts.hostname, parts.port) as client:
        yield client


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def post(running: Running, path: str, body: bytes = b"{}", *headers: str, **more: Any) -> Answer:
    async with operating(running) as client:
        await client.send(request(path, body, *(headers or (JSON,)), **more))
        return await client.answer()


async def get(running: Running, path: str, **more: Any) -> Answer:
    async with operating(running) as client:
        await client.send(request(path, None, method="GET", **more))
        return await client.answer(method="GET")


def from_file(path: Path) -> Callable[[Settings], ConfigSource]:
    """Reloads read this file, over the settings of the start."""

    def source(settings: Settings) -> ConfigSource:
        overrides = settings.model_dump(mode="json", exclude={"batching", "strategy"})
        overrides.pop("gpu_instances")
        files = ConfigFiles([path])
        return ConfigSource(load=lambda: load([path], environ={}, overrides=overrides), files=files)

    return source


async def test_drained_instance_gets_nothing_new_and_finishes_its_streams() -> None:
    gate = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as other,
        balancing(one, other, each={"slots": 4}) as running,
    ):
        await post(running, "/admin/v1/instances/b/drain")
        one.play(Wait(gate), Send(chunked(DONE)))
        first = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(1)
        await post(running, "/admin/v1/instances/b/undrain")
        drained = await post(running, DRAIN)
        later = [await running.ask("/api/generate", GENERATE) for _ in range(4)]
        gate.set()

        assert (drained.status, drained.json["id"], drained.json["drained"]) == (200, "a", True)
        assert drained.json["running"] == 1
        assert {each.header("X-Balancer-Instance") for each in later} == {"b"}
        assert ((await first).header("X-Balancer-Instance"), (await first).body) == ("a", DONE)
        assert [each["instance"] for each in running.logged("instance_drained")] == ["b", "a"]


async def test_undrained_instance_serves_those_that_waited_for_it() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        await post(running, DRAIN)
        waiting = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await until(lambda: len(running.balancer.queue) or waiting.done())
        undrained = await post(running, UNDRAIN)
        again = await running.ask("/api/generate", GENERATE)
        await waiting

        assert (undrained.status, undrained.json["drained"], again.status) == (200, False, 200)


async def test_draining_twice_is_as_good_as_once() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        assert [(await post(running, DRAIN)).status for _ in range(2)] == [200, 200]
        assert (await post(running, UNDRAIN)).json["drained"] is False


async def test_instance_is_found_by_its_name_however_odd_it_is() -> None:
    dead = [{"url": f"http://127.0.0.1:{port}", "name": name} for port, name in enumerate(ODD_NAMES, start=1)]
    async with balancing(up=0, instances=dead) as running:
        paths = [f"/admin/v1/instances/{quote(name, safe='')}/drain" for name in ODD_NAMES]

        assert [(await post(running, path)).json.get("id") for path in paths] == ODD_NAMES


@pytest.mark.parametrize("unknown", ["x", "A", "a%00", "%C3%A4", "a%2Fdrain"])
async def test_unknown_instance_is_told_with_those_that_there_are(unknown: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await post(running, f"/admin/v1/instances/{unknown}/drain")

        assert answer.status == 404
        assert answer.json["error"].endswith("there are a")


@pytest.mark.parametrize("path", [DRAIN, UNDRAIN, RELOAD])
async def test_change_is_made_only_for_json_without_arguments_and_no_foreign_page(path: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        (instance,) = running.balancer.fleet.instances()
        for status, body, headers in CHANGES:
            running.balancer.drain(instance.id, False)
            answer = await post(running, path, body, *headers)

            assert answer.status == status, (body[:20], headers)
            assert status == 200 or set(answer.json) == {"error"}
            assert instance.drained is (path == DRAIN and status == 200)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_page_that_rebound_its_name_is_turned_away(method: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, operating(running) as client:
        await client.send(request(DRAIN, b"{}", JSON, method=method, host="evil.example"))

        assert (await client.answer()).status == 403


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/admin/v1/nothing", 404, None),
        ("POST", "/admin/v1/instances/a/nothing", 404, None),
        ("POST", "/admin/v1/instances//drain", 404, None),
        ("GET", DRAIN, 405, "POST"),
        ("PUT", RELOAD, 405, "POST"),
        ("POST", "/admin/v1/instances", 405, "GET, HEAD"),
        ("OPTIONS", DRAIN, 405, "POST"),
        ("DELETE", "/metrics", 405, "GET, HEAD"),
    ],
)
async def test_wrong_path_or_method_is_told_as_json(
    method: str, path: str, status: int, allow: str | None
) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, operating(running) as client:
        await client.send(request(path, b"{}", JSON, method=method))
        answer = await client.answer(method=method)

        assert (answer.status, answer.header("Allow")) == (status, allow)
        assert answer.json["error"]
        assert answer.header("Content-Type") == "application/json; charset=utf-8"
        assert answer.header("Access-Control-Allow-Origin") is None


async def test_body_that_never_comes_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.admin.guards._BODY_SECONDS", 0.05)
    async with ScriptedInstance().running() as one, balancing(one) as running, operating(running) as client:
        await client.send(request(DRAIN, b"{", JSON, "Content-Length: 2"))

        assert (await client.answer()).status == 408
        assert not running.balancer.fleet.instances()[0].drained


async def test_metrics_listener_changes_nothing_and_names_nobody() -> None:
    async with ScriptedInstance().running() as one, balancing(one, metrics_listen="127.0.0.1:0") as running:
        assert running.addresses.metrics
        parts = urlsplit(running.addresses.metrics)
        async with connected(str(parts.hostname), parts.port or 0) as client:
            answers = []
            for method, path in (
                ("POST", DRAIN),
                ("POST", RELOAD),
                ("GET", "/admin/v1/config"),
                ("GET", "/health"),
            ):
                await client.send(request(path, b"{}", JSON, method=method, host="scraper.example"))
                answers.append(await client.answer(method=method))

        assert [each.status for each in answers] == [404, 404, 404, 200]
        assert "config" not in answers[-1].json


async def test_reload_takes_a_changed_file_over(tmp_path: Path) -> None:
    path = tmp_path / "balancer.yaml"
    write(path, "batching: {max_size: 4}\n")
    async with ScriptedInstance().running() as one, balancing(one, source=from_file(path)) as running:
        before = (await get(running, "/admin/v1/config")).json
        same = (await post(running, RELOAD)).json
        write(path, "batching: {max_size: 5}\n")
        changed = (await post(running, RELOAD)).json
        after = (await get(running, "/admin/v1/config")).json

        assert same == {"config": before["config"], "changed": False}
        assert changed == {"config": after["config"], "changed": True}
        assert before["config"] != after["config"]
        assert running.balancer.settings.batching.max_size == 5
        assert (await get(running, "/health")).json["config"] == after["config"]
        assert [each["changed"] for each in running.logged("config_reloaded")] == [False, True]


async def test_a_reload_switches_the_strategy_for_those_that_wait_too(tmp_path: Path) -> None:
    path = tmp_path / "balancer.yaml"
    write(path, "strategy: random\n")
    async with (
        ScriptedInstance().running() as one,
        balancing(one, source=from_file(path), strategy="random", each={"slots": 1}) as running,
    ):
        for strategy in [*Strategy, Strategy.RANDOM]:
            gate = asyncio.Event()
            one.play(Wait(gate), Send(chunked(DONE)))
            first = asyncio.create_task(running.ask("/api/generate", GENERATE))
            await until(lambda: len(running.balancer.dispatcher.leases) == 1)
            waiting = asyncio.create_task(running.ask("/api/generate", GENERATE))
            await until(lambda: len(running.balancer.queue) == 1)

            write(path, f"strategy: {strategy.value}\n")
            assert (await post(running, RELOAD)).status == 200
            gate.set()

            assert (await first).status == 200
            reason = (await waiting).header("X-Balancer-Reason") or ""
            assert reason.startswith(strategy.value)


async def test_refused_reload_names_every_fault_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "balancer.yaml"
    write(path, "batching: {max_size: 4}\n")
    async with ScriptedInstance().running() as one, balancing(one, source=from_file(path)) as running:
        before = running.balancer.settings
        write(path, "batching: {max_size: -1}\nstrategi: random\n")
        answer = await post(running, RELOAD)
        told = (await get(running, "/admin/v1/config")).json

        assert answer.status == 400
        assert [each.startswith(f"{path}: ") for each in answer.json["faults"]] == [True, True]
        assert told["refused"] == answer.json["faults"]
        assert running.balancer.settings is before
        assert b"balancer_config_reload_success 0.0" in (await get(running, "/metrics")).body
        assert (await running.ask("/api/version", method="GET")).status == 200


async def test_changed_file_is_taken_over_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balancer.control.reloader._LOOK_SECONDS", 0.01)
    path = tmp_path / "balancer.yaml"
    write(path, "batching: {max_size: 4}\n")
    async with ScriptedInstance().running() as one, balancing(one, source=from_file(path)) as running:
        write(path, "batching: {max_size: 6}\n")

        await until(lambda: running.balancer.settings.batching.max_size == 6)


async def test_reload_without_any_source_is_harmless() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        assert (await post(running, RELOAD)).json["changed"] is False


async def test_live_requests_tell_how_far_they_have_come() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 1}) as running:
        answer = chunked(DONE)
        cut = answer.index(b"\r\n\r\n") + 4
        one.play(Wait(gates[0]), Send(answer[:cut]), Wait(gates[1]), Send(answer[cut:]))
        tasks = []
        for waiting in range(2):
            tasks.append(asyncio.create_task(running.ask("/api/generate", GENERATE)))
            await until(lambda count=waiting: len(running.balancer.queue) == count)
            await until(lambda: running.balancer.dispatcher.leases)
        silent = (await get(running, "/admin/v1/requests")).json["live"]
        gates[0].set()
        await until(lambda: any(each.answered_at for each in running.balancer.ledger.live()))
        begun = (await get(running, "/admin/v1/requests")).json["live"]
        gates[1].set()
        await asyncio.gather(*tasks)

        assert [each["stage"] for each in silent] == ["waiting", "queued"]
        assert [each["stage"] for each in begun] == ["streaming", "queued"]
        assert all(0 <= each["age_seconds"] < 20 for each in silent + begun)


async def test_description_of_the_api_names_every_path_and_method_and_nothing_else() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        served = {
            (route.resource.canonical, route.method.lower())
            for route in running.balancer.admin.application().router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
        told = (await get(running, "/admin/v1/openapi.json")).json

    paths: Any = DOCUMENT["paths"]
    assert told == json.loads(json.dumps(DOCUMENT))
    assert served == {(path, each) for path, item in paths.items() for each in item if each != "parameters"}
    assert all(("{id}" in path) == ("parameters" in item) for path, item in paths.items())
