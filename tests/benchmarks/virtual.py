"""`python -m tests.benchmarks.virtual`: the same requests in virtual time and through a real balancer over
HTTP, in front of simulated instances or of a real Ollama, policy by policy.

What must agree is the ranking of the policies and their medians; both are printed with the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

import aiohttp

from balancer.core.ticket import InstanceId, Priority
from balancer.settings.scenario import (
    Scenario,
    ScenarioDevice,
    ScenarioInstances,
    ScenarioModel,
    ScenarioNoise,
    ScenarioPopulation,
    ScenarioWorkload,
)
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.hardware import InstanceShape
from balancer.simulator.virtual.run import serve
from balancer.simulator.virtual.shelf import IMMEDIATE
from balancer.simulator.virtual.work import Segment, Session, Turn

POLICIES = ("least_connections", "round_robin", "round_robin@immediate", "adaptive")
"""None that leaves more to chance than ties, which would be another sample each time."""
OURS, BASELINE = "adaptive", "least_connections"
_GIB = 1 << 30
_MANY_SLOTS = 1000
_START_SECONDS = 60.0
_SEEDS = range(8)
_FIRST_APPLICATION = 1 << 40
_CACHE_TOKENS = 262_144
"""What a simulated Ollama remembers of prompts by default."""


@dataclass(frozen=True)
class Asked:
    """One request: when, for which model, tokens of its prompt and of its answer. The first `shared` tokens
    of the prompt are those of one of several applications, by number."""

    at: float
    model: str
    prompt: int
    answer: int
    shared: int = 0
    application: int = 0


@dataclass(frozen=True)
class World:
    """Instances and what they are asked; `speed` is simulated seconds per second."""

    models: Mapping[str, int]
    rates: Sequence[ServiceRates]
    slots: int
    resident: int
    asked: Sequence[Asked]
    speed: float = 1.0


@dataclass(frozen=True)
class Answer:
    """What came of a request: seconds of the instances' time, and the counters of the last record; a prompt
    of 0 tokens where there was no such record."""

    ttft: float
    total: float
    prompt: int
    answer: int
    prompt_seconds: float
    answer_seconds: float


@dataclass(frozen=True)
class Figures:
    """Medians over the requests of one policy, seconds."""

    ttft: float
    total: float


def one_model(requests: int, seed: int, speed: float) -> World:
    """Two instances of which one is three times slower, and one model."""
    rates = ServiceRates(
        prefill_tokens_per_second=1500.0, decode_tokens_per_second=40.0, parallel_slowdown=0.1
    )
    return World(
        models={"m:8b": 2 * _GIB},
        rates=(rates, rates.scaled(3.0)),
        slots=2,
        resident=1,
        asked=drawn(requests, seed, models=("m:8b",), per_second=0.25, prompt=6.0, answer=60),
        speed=speed,
    )


def two_models(requests: int, seed: int) -> World:
    """Two equal instances with room for one of two models each. At the speed of the wall: how long the
    balancer waits for what when a model has to be loaded is told in its own seconds."""
    rates = ServiceRates(
        prefill_tokens_per_second=4000.0,
        decode_tokens_per_second=150.0,
        parallel_slowdown=0.1,
        load_bytes_per_second=3e9,
    )
    return World(
        models={"a:8b": 3 * _GIB, "b:8b": 3 * _GIB},
        rates=(rates, rates),
        slots=2,
        resident=1,
        asked=drawn(requests, seed, models=("a:8b", "a:8b", "b:8b"), per_second=0.6, prompt=6.0, answer=60),
    )


def shared_prompts(requests: int, seed: int, speed: float) -> World:
    """Two equal instances, one model, and long prompts of eight applications that mostly begin alike."""
    rates = ServiceRates(
        prefill_tokens_per_second=1000.0, decode_tokens_per_second=60.0, parallel_slowdown=0.1
    )
    chance = Random(f"{seed} applications")
    asked = drawn(requests, seed, models=("m:8b",), per_second=0.45, prompt=4.0, answer=60)
    return World(
        models={"m:8b": 2 * _GIB},
        rates=(rates, rates),
        slots=2,
        resident=1,
        asked=[
            replace(each, prompt=each.prompt + 2000, shared=2000, application=chance.randrange(8))
            for each in asked
        ],
        speed=speed,
    )


def drawn(
    requests: int, seed: int, *, models: Sequence[str], per_second: float, prompt: float, answer: int
) -> list[Asked]:
    """Poisson arrivals; prompts are lognormal about e^prompt tokens, answers exponential."""
    chance, at, asked = Random(seed), 0.0, []
    for _ in range(requests):
        at += chance.expovariate(per_second)
        tokens = min(3000, int(chance.lognormvariate(prompt, 0.8)) + 2)
        asked.append(Asked(at, chance.choice(models), tokens, int(chance.expovariate(1 / answer)) + 2))
    return asked


def in_virtual_time(world: World, policy: str) -> list[Figures]:
    """What the fleet in virtual time says, once for each way in which chance may break ties."""
    scenario = Scenario(
        name="benchmark",
        queue_requests=100_000,
        queue_seconds=86_400.0,
        devices=(ScenarioDevice(memory_bytes=24 * _GIB),),
        models=tuple(ScenarioModel(name=name, size_bytes=size) for name, size in world.models.items()),
        instances=ScenarioInstances(
            slots=world.slots,
            max_loaded_models=world.resident,
            context_length=4096,
            prefix_cache_tokens=_CACHE_TOKENS,
        ),
        noise=ScenarioNoise(rates=0, work=0, loads=0),
        workload=ScenarioWorkload(populations=(ScenarioPopulation(kind="chat"),)),
    )
    shapes = [
        InstanceShape(
            id=InstanceId(f"i{number}"),
            device=number,
            memory_bytes=24 * _GIB,
            rates=dict.fromkeys(world.models, rates),
        )
        for number, rates in enumerate(world.rates)
    ]
    sessions = [
        Session(
            each.at,
            "c",
            each.model,
            Priority.NORMAL,
            2 * number + 1,
            (Turn(segments(each, 2 * number), each.answer),),
        )
        for number, each in enumerate(world.asked)
    ]
    runs = (serve(scenario, shapes, sessions, strategy=policy, seed=seed).outcomes.columns for seed in _SEEDS)
    return [Figures(median(each["ttft_seconds"]), median(each["total_seconds"])) for each in runs]


def segments(asked: Asked, own: int) -> tuple[Segment, ...]:
    """Of a prompt whose own part has that number; those of applications are larger."""
    shared = ((_FIRST_APPLICATION + asked.application, asked.shared),) if asked.shared else ()
    return (*shared, (own, asked.prompt - asked.shared))


def medians(answers: Sequence[Answer]) -> Figures:
    """Of a whole run."""
    return Figures(median(each.ttft for each in answers), median(each.total for each in answers))


async def over_http(world: World, policy: str, urls: Sequence[str]) -> list[Answer]:
    """What clients of a real balancer in front of these instances see, in the order in which they ask."""
    async with balancer(urls, policy, world.slots) as url, aiohttp.ClientSession() as session:
        clients = Clients(session, url, world.speed, time.monotonic())
        return await asyncio.gather(*(clients.ask(each, number) for number, each in enumerate(world.asked)))


@dataclass(frozen=True)
class Clients:
    """All of them, at one address, since `began_at`."""

    session: aiohttp.ClientSession
    url: str
    speed: float
    began_at: float

    async def ask(self, asked: Asked, number: int) -> Answer:
        """One request at its time. Raises RuntimeError for an error before the first word."""
        await asyncio.sleep(max(0.0, self.began_at + asked.at / self.speed - time.monotonic()))
        words = "".join(
            f" {((-1 - asked.application if word < asked.shared else number) * 7919 + word) % 99991:05d}"
            for word in range(asked.prompt)
        )
        body = {
            "model": asked.model,
            "prompt": words,
            "raw": True,
            "options": {"simulated_tokens": asked.answer, "num_predict": asked.answer, "temperature": 0},
        }
        sent_at, first, lines = time.monotonic(), 0.0, [b""]
        post = self.session.post(f"{self.url}/api/generate", json=body, timeout=aiohttp.ClientTimeout())
        async with post as answer:
            answer.raise_for_status()
            # A model of random weights may end an answer without its last record, which cuts the stream.
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for line in answer.content:
                    first, lines = first or time.monotonic(), [*lines, line]
        told = json.loads(lines[-1])
        if "error" in told and len(lines) < 3:
            raise RuntimeError(told["error"])
        return Answer(
            ttft=(first - sent_at) * self.speed,
            total=(time.monotonic() - sent_at) * self.speed,
            prompt=told.get("prompt_eval_count", 0),
            answer=told.get("eval_count", len(lines) - 2),
            prompt_seconds=told.get("prompt_eval_duration", 0) / 1e9,
            answer_seconds=told.get("eval_duration", 0) / 1e9,
        )


@contextlib.asynccontextmanager
async def balancer(urls: Sequence[str], policy: str, slots: int) -> AsyncIterator[str]:
    """`balancer serve` with a policy."""
    told = _MANY_SLOTS if policy.endswith(IMMEDIATE) else slots
    instances = [{"name": f"i{number}", "url": url, "slots": told} for number, url in enumerate(urls)]
    settings = {
        "strategy": policy.removesuffix(IMMEDIATE),
        "instances": instances,
        "limits": {"queue_requests": 100_000, "queue_seconds": 86_400},
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "balancer.json.yaml"
        config.write_text(json.dumps(settings))
        command = ("-m", "balancer", "serve", "--config", str(config))
        listen = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        async with process((sys.executable, *command, *listen), os.environ) as lines:
            async for line in lines:
                found = [word for word in line.split() if word.startswith("http://127.0.0.1:")]
                if found:
                    yield found[0].rstrip(".,")
                    return


@contextlib.asynccontextmanager
async def simulated(world: World) -> AsyncIterator[list[str]]:
    """A simulated Ollama for each of the rates."""
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for rates in world.rates:
            options = {
                "slots": world.slots,
                "max-loaded-models": world.resident,
                "speed": world.speed,
                "context-length": 4096,
                "bandwidth": f"{rates.load_bytes_per_second / 1e6:.0f}MB",
                "prefill-rate": rates.prefill_tokens_per_second,
                "decode-rate": rates.decode_tokens_per_second,
                "keep-alive": -1,
                "port": 0,
            }
            command = [sys.executable, "-m", "balancer.simulator", "--exit-with-stdin"]
            for name, value in options.items():
                command += [f"--{name}", str(value)]
            for name, size in world.models.items():
                command += ["--model", f"{name}:{size // 2**20}MiB:chat"]
            lines = await stack.enter_async_context(process(command, os.environ))
            urls.append(json.loads(await anext(lines))["url"])
        yield urls


@contextlib.asynccontextmanager
async def process(
    command: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[AsyncIterator[str]]:
    """A process, by the lines that it prints; it ends with the block."""
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(environment),
    )

    async def lines() -> AsyncIterator[str]:
        assert child.stdout is not None
        while line := await asyncio.wait_for(child.stdout.readline(), _START_SECONDS):
            yield line.decode()

    try:
        yield lines()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def told(name: str, figures: Mapping[str, tuple[Sequence[Figures], Figures]]) -> str:
    """A table, and whether the ranking is the same."""
    lines = [f"{name}: medians over the requests, seconds; in virtual time [over seeds], over HTTP, ratio"]
    for what in ("ttft", "total"):
        middles = {}
        for policy, (virtual, real) in figures.items():
            values = sorted(getattr(each, what) for each in virtual)
            here, there = median(values), getattr(real, what)
            middles[policy] = here, there
            spread = f"[{values[0]:.2f} to {values[-1]:.2f}]"
            lines.append(f"  {what:6} {policy:28} {here:6.2f} {spread:16} {there:6.2f} {there / here:6.2f}")
        here_ranked = sorted(middles, key=lambda each: middles[each][0])
        there_ranked = sorted(middles, key=lambda each: middles[each][1])
        same = "the same" if here_ranked == there_ranked else f"{here_ranked} here, {there_ranked} there"
        lines.append(f"  {what:6} ranking: {same}")
        here, there = (1 - middles[OURS][at] / middles[BASELINE][at] for at in (0, 1))
        share = f", {there / here:.0%} of it" if here > 0 else ""
        lines.append(
            f"  {what:6} less with {OURS} than with {BASELINE}: {here:.0%} here, {there:.0%} there{share}"
        )
    return "\n".join(lines)


async def compare(requests: int, seed: int, speed: float) -> None:
    """Both worlds, every policy."""
    for name, world in (
        ("one model, unequal instances", one_model(requests, seed, speed)),
        ("one model, prompts that begin alike", shared_prompts(requests, seed, speed)),
        ("two models, room for one each", two_models(requests, seed)),
    ):
        figures = {}
        for policy in POLICIES:
            async with simulated(world) as urls:
                real = medians(await over_http(world, policy, urls))
            figures[policy] = await asyncio.to_thread(in_virtual_time, world, policy), real
        print(told(name, figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.virtual", description=__doc__)
    parser.add_argument("--requests", type=int, default=150, help="of each run (150)")
    parser.add_argument("--speed", type=float, default=10.0, help="simulated seconds per second (10)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    asyncio.run(compare(chosen.requests, chosen.seed, chosen.speed))


if __name__ == "__main__":
    main()
