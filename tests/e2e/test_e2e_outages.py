"""With one instance that hangs and one that refuses, lists answer at once and the third does the work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from harness import CHAT, Child, Stack, balancing, child, http, quick, refusing_address, simulated, until

from balancer.forwarding.answers import WAIT_SECONDS
from balancer.simulator import ModelSpec

LISTS = ("/api/version", "/api/tags", "/api/ps", "/v1/models", "/", "/readyz", "/health")
AT_ONCE_SECONDS = 5 * WAIT_SECONDS
WATCHFUL = {"interval_seconds": 0.2, "timeout_seconds": 0.3}
PATIENT = {"interval_seconds": 30, "timeout_seconds": 30}
RARE = (*quick().models, ModelSpec(name="rare:1b"))


@pytest.fixture
def refusing() -> Iterator[str]:
    with refusing_address() as url:
        yield url


async def timed(client: httpx.AsyncClient, path: str) -> tuple[httpx.Response, float]:
    """An answer, and the seconds that it took."""
    began = time.monotonic()
    answer = await client.get(path)
    return answer, time.monotonic() - began


def assert_at_once(taken: Iterable[float]) -> None:
    """Nothing waited for the hung instance, and what is usual is quick."""
    seconds = sorted(taken)
    assert statistics.median(seconds) < AT_ONCE_SECONDS
    assert PATIENT["timeout_seconds"] / 6 > seconds[-1]


async def chats(client: httpx.AsyncClient, count: int) -> list[httpx.Response]:
    """So many chats at once."""
    body = {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    return await asyncio.gather(*(client.post("/api/chat", json=body) for _ in range(count)))


async def states(stack: Stack) -> dict[str, str]:
    """The state of each instance, as the admin listener tells it."""
    async with http(stack.admin) as client:
        told = (await client.get("/admin/v1/instances")).json()["instances"]
    return {each["id"]: each["state"] for each in told}


async def test_fleet_that_was_never_whole_answers_at_once(refusing: str) -> None:
    """The hung one never answers a probe, and each of them may take half a minute."""
    async with simulated(quick(), quick()) as (hung, working):
        hung.faults.add({"kind": "hang"})
        async with (
            balancing([refusing, hung, working], usable=1, health=PATIENT) as stack,
            http(stack.url) as client,
        ):
            await until(lambda: hung.seen.requests_by_path["/api/version"])
            answers = {path: await timed(client, path) for path in LISTS}
            answered = await chats(client, 6)

            assert [200] * len(LISTS) == [each.status_code for each, _ in answers.values()]
            assert_at_once(seconds for _, seconds in answers.values())
            assert answers["/health"][0].json()["status"] == "degraded"
            assert answers["/health"][0].json()["instances"] == {"usable": 1, "total": 3}
            assert len(working.store.models()) == len(answers["/api/tags"][0].json()["models"])
            assert [_told(each) for each in answered] == [(200, "three", "1")] * 6
            assert await states(stack) == {"one": "down", "two": "unknown", "three": "up"}


async def test_lists_do_not_wait_for_an_instance_that_hangs_suddenly(refusing: str) -> None:
    """What it said last stands until it is judged, which takes minutes here."""
    async with (
        simulated(quick(models=RARE), quick()) as (hung, working),
        balancing([refusing, hung, working], usable=2, health=PATIENT) as stack,
        http(stack.url) as client,
    ):
        hung.faults.add({"kind": "hang"})
        taken: list[float] = []
        listed: list[set[str]] = []
        for _ in range(3):
            answers = {path: await timed(client, path) for path in LISTS}
            taken += [seconds for _, seconds in answers.values()]
            listed.append({each["name"] for each in answers["/api/tags"][0].json()["models"]})
            await asyncio.sleep(0.1)

        assert_at_once(taken)
        assert all({"rare:1b", CHAT} <= each for each in listed)
        assert (await states(stack))["two"] == "up"


async def test_requests_at_an_instance_that_hangs_move_to_the_third(refusing: str) -> None:
    async with (
        simulated(quick(slots=8), quick(slots=8)) as (hung, working),
        balancing([refusing, hung, working], usable=2, health=WATCHFUL) as stack,
        http(stack.url) as client,
    ):
        hung.faults.add({"kind": "hang"})
        answered = await chats(client, 8)
        await until(lambda: len(stack.balancer.fleet.usable()) == 1)
        later = await chats(client, 4)

        assert {(200, "three")} == {_told(each)[:2] for each in answered}
        assert [_told(each) for each in later] == [(200, "three", "1")] * 4
        assert await states(stack) == {"one": "down", "two": "down", "three": "up"}


async def test_stopped_process_is_left_alone_until_it_goes_on(tmp_path: Path, refusing: str) -> None:
    with simulator("stopped", tmp_path) as (stopped, url):
        async with (
            simulated(quick()) as (working,),
            balancing([refusing, url, working], usable=2, health=WATCHFUL, strategy="round_robin") as stack,
            http(stack.url) as client,
        ):
            os.kill(stopped.pid, signal.SIGSTOP)
            answers = [await timed(client, path) for path in LISTS]
            answered = await chats(client, 4)
            await until(lambda: len(stack.balancer.fleet.usable()) == 1)
            during = await states(stack)
            os.kill(stopped.pid, signal.SIGCONT)
            await until(lambda: len(stack.balancer.fleet.usable()) == 2)
            after = await chats(client, 4)

    assert_at_once(seconds for _, seconds in answers)
    assert {(200, "three")} == {_told(each)[:2] for each in answered}
    assert during == {"one": "down", "two": "down", "three": "up"}
    assert {"two", "three"} == {each.headers["X-Balancer-Instance"] for each in after}


async def test_fleet_without_a_usable_instance_says_so(refusing: str) -> None:
    async with balancing([refusing], usable=0) as stack, http(stack.url) as client:
        await until(lambda: stack.balancer.fleet.instances()[0].health.last_error)
        ready, health, alive, version, chat = [
            *[await client.get(path) for path in ("/readyz", "/health", "/livez", "/api/version")],
            *await chats(client, 1),
        ]

    assert [each.status_code for each in (ready, health, alive, version, chat)] == [503, 503, 200, 503, 503]
    assert health.json()["status"] == "unavailable"
    assert int(chat.headers["Retry-After"]) >= 1
    assert "usable" in chat.json()["error"]


@contextlib.contextmanager
def simulator(name: str, folder: Path) -> Iterator[tuple[Child, str]]:
    """A simulated instance in a process of its own, with its URL."""
    arguments = ("-m", "balancer.simulator", "--port", "0", "--name", name, "--speed", "500")
    with child(name, (sys.executable, *arguments), folder) as process:
        yield process, json.loads(process.line("listening"))["url"]


def _told(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    return (
        answer.status_code,
        answer.headers.get("X-Balancer-Instance"),
        answer.headers.get("X-Balancer-Attempts"),
    )
