"""An instance that becomes slow is left alone and comes back; where all become slow nobody is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from balancer.core.ticket import InstanceId
from balancer.fleet import ejection
from balancer.simulator import ServiceRates
from tests.e2e.harness import CHAT, NAMES, Stack, fleet, http, quick, until

RATES = ServiceRates(decode_tokens_per_second=50, prefill_tokens_per_second=2000)
SLOW = {"kind": "slow", "factor": 5}
WORKERS = 6
ANSWERS = 25
"""At each instance, from which it is known what it has always been like, or is like now."""
GENERATE = {"model": CHAT, "prompt": "why is the sky blue?", "stream": False}


@contextlib.asynccontextmanager
async def three() -> AsyncIterator[Stack]:
    """Three instances that are alike, under load, each with enough answers to know what it is like."""
    config = quick(speed=100, rates=RATES, load_seconds=0, answer_tokens=20)
    settings = {"strategy": "weighted_round_robin", "health": {"eject_after_seconds": 0}}
    async with fleet(config, config, config, shared=True, **settings) as stack, http(stack.url) as client:
        over = asyncio.Event()
        workers = [asyncio.create_task(_work(client, over)) for _ in range(WORKERS)]
        try:
            await until(all_served(stack, ANSWERS))
            yield stack
        finally:
            over.set()
            await asyncio.gather(*workers)


async def _work(client: httpx.AsyncClient, over: asyncio.Event) -> None:
    while not over.is_set():
        answer = await client.post("/api/generate", json=GENERATE)
        assert answer.status_code == 200


def all_served(stack: Stack, more: int) -> Callable[[], bool]:
    """Whether each has served so many more from now on."""
    before = stack.asked("/api/generate")
    return lambda: all(
        now - then >= more for now, then in zip(stack.asked("/api/generate"), before, strict=True)
    )


def out(stack: Stack) -> list[str]:
    return [each.id for each in stack.balancer.fleet.instances() if each.ejection is not None]


async def shown(stack: Stack, name: str) -> dict[str, object]:
    async with http(stack.admin) as client:
        rows = (await client.get("/admin/v1/instances")).json()["instances"]
    return next(row for row in rows if row["id"] == name)


async def test_an_instance_that_becomes_slow_is_left_alone_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ejection, "FIRST_SECONDS", 2.0)
    async with three() as stack:
        two = stack.balancer.fleet.get(InstanceId("two"))
        stack.servers[1].faults.add(SLOW)
        await until(lambda: two.ejection is not None)
        told = (await shown(stack, "two"))["ejected"]
        await until(lambda: two.running == 0)
        before = stack.asked("/api/generate")[1]
        stack.servers[1].faults.clear()

        meanwhile: set[int] = set()
        await until(lambda: two.ejection is None or meanwhile.add(stack.asked("/api/generate")[1]))
        assert isinstance(told, dict)
        assert (told["reason"] in {"token", "first token"}, told["health"] < 0.2) == (True, True)
        assert meanwhile == {before}
        await until(all_served(stack, ANSWERS))
        assert out(stack) == []
        assert two.health_score > 0.5
    events = [line for line in stack.log.getvalue().splitlines() if '"two"' in line]
    assert any("instance_ejected" in line for line in events)
    assert any("instance_readmitted" in line for line in events)


async def test_where_all_become_slow_nobody_is_left_alone() -> None:
    async with three() as stack:
        for server in stack.servers:
            server.faults.add(SLOW)
        for _ in range(3):
            await until(all_served(stack, ANSWERS))
            stack.balancer.outlier_watch.run_once()

            assert out(stack) == []
        assert [float(str((await shown(stack, name))["health"])) > 0.3 for name in NAMES] == [True] * 3
