"""Over HTTP, in front of simulated instances: rates, slots that differ from what was told, and strangers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from harness import CHAT, EMBEDDER, Stack, balancing, http, simulated, until

from balancer.clock import SystemClock
from balancer.core.names import canonical_name
from balancer.core.variant import Variant
from balancer.simulator import ServerConfig, ServiceRates, SimulatedOllama

RATES = ServiceRates(prefill_tokens_per_second=10_000, decode_tokens_per_second=100)
SPEED = 20.0
LONG = [{"role": "user", "content": "some words " * 500}]


class Shifted(SystemClock):
    """The machine's time, and a while later on demand."""

    later = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.later


def config(slots: int, **more: Any) -> ServerConfig:
    """Answers of 2 simulated seconds."""
    own = {"slots": slots, "speed": SPEED, "rates": RATES, "answer_tokens": 200, "load_seconds": 0}
    return ServerConfig(**{"keep_alive_seconds": 1e6, **own, **more})


@contextlib.asynccontextmanager
async def one(
    served: ServerConfig, *, slots: int | None = None, clock: Shifted | None = None
) -> AsyncIterator[Stack]:
    """A balancer in front of one simulated instance, of which it is told these slots."""
    health = {"interval_seconds": 0.1}
    async with (
        simulated(served) as servers,
        balancing(servers, slots=slots, clock=clock, health=health) as stack,
    ):
        yield stack


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": CHAT, "messages": [{"role": "user", "content": text}], **fields}


async def ask(client: httpx.AsyncClient, path: str = "/api/chat", **fields: Any) -> None:
    answer = await client.post(path, json={**chat(), **fields})
    assert answer.status_code == 200


async def shown(stack: Stack) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the admin API tells of the instance, and of its runner of the model."""
    async with http(stack.admin) as client:
        (instance,) = (await client.get("/admin/v1/instances")).json()["instances"]
    (runner,) = [each for each in instance["runners"] if each["model"] == CHAT] or [{}]
    return instance, runner


async def test_rates_are_learned_from_native_answers() -> None:
    async with one(config(2)) as stack, http(stack.url) as client:
        for _ in range(3):
            await ask(client, messages=LONG, options={"simulated_tokens": 200})
            await ask(client, stream=False, options={"simulated_tokens": 200})
        _, runner = await shown(stack)
        at = stack.balancer.fleet.instances()[0]
        tokens = at.learned.output_tokens(canonical_name(CHAT))

    assert runner["rates"]["decode_tokens_per_second"] > 0
    assert runner["rates"]["prefill_tokens_per_second"] > 0
    assert runner["rates"]["samples"] == 6
    assert tokens == 200


async def test_other_dialects_teach_how_long_answers_are() -> None:
    async with one(config(2)) as stack, http(stack.url) as client:
        answer = (await client.post("/v1/chat/completions", json=chat())).json()
        learned = stack.balancer.fleet.instances()[0].learned
        model = canonical_name(CHAT)

        assert learned.output_tokens(model) == answer["usage"]["completion_tokens"]
        assert learned.rates(model) is None


async def test_one_that_left_teaches_nothing() -> None:
    async with one(config(2, speed=1.0)) as stack, http(stack.url) as client:
        async with client.stream("POST", "/api/chat", json=chat()) as answer:
            await anext(answer.aiter_bytes())
        await until(lambda: not stack.balancer.dispatcher.leases)
        learned = stack.balancer.fleet.instances()[0].learned

        assert learned.output_tokens(canonical_name(CHAT)) is None
        assert learned.rates(canonical_name(CHAT)) is None


async def test_a_runner_with_fewer_slots_than_configured_gets_as_many_as_it_has() -> None:
    async with one(config(1), slots=4) as stack, http(stack.url) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(20)]
        await asyncio.gather(*asking)
        instance, runner = await shown(stack)

    assert (runner["slots"], runner["slots_learned"], instance["shared"]) == (1, 1, False)


async def test_slots_that_nobody_tells_of_are_found() -> None:
    """Answers of different lengths, so that they do not end together."""
    async with one(config(3, speed=5.0)) as stack, http(stack.url) as client:
        asking = [
            asyncio.create_task(ask(client, options={"simulated_tokens": 150 + 37 * (number % 5)}))
            for number in range(30)
        ]
        await asyncio.gather(*asking)
        instance, runner = await shown(stack)

    assert runner["slots"] in {3, 4}  # where one more is being tried
    assert not instance["shared"]


async def test_a_model_that_embeds_gets_one_request_at_a_time() -> None:
    async with one(config(4), slots=4) as stack, http(stack.url) as client:
        await ask(client, "/api/embed", model=EMBEDDER, input="hello")
        at = stack.balancer.fleet.instances()[0]

        assert at.slots(Variant(canonical_name(EMBEDDER))) == 1
        assert at.slots(Variant(canonical_name(CHAT))) == 4


async def occupy(server: SimulatedOllama, times: int) -> None:
    """A stranger: requests that the balancer does not see."""
    async with http(server.url) as client:
        await asyncio.gather(*(ask(client, options={"simulated_tokens": 400}) for _ in range(times)))


async def test_strangers_are_recognised_and_forgotten_when_they_are_gone() -> None:
    clock = Shifted()
    async with one(config(2), clock=clock, slots=2) as stack, http(stack.url) as client:
        (server,) = stack.servers
        for _ in range(12):
            strangers = asyncio.create_task(occupy(server, 4))
            await until(lambda: server.seen.running == 2)
            await ask(client)
            await strangers
            instance, runner = await shown(stack)
            if instance["shared"]:
                break
        assert (instance["shared"], runner["slots"], instance["breaker"]) == (True, 1, "closed")

        clock.later += 61.0
        await until(lambda: not stack.balancer.fleet.instances()[0].learned.shared)
        _, runner = await shown(stack)
        assert runner["slots"] == 2
