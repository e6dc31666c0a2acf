"""`OLLAMA_BINARY=… python -m tests.benchmarks.virtual_ollama A.gguf B.gguf`: virtual time, and real Ollamas.

Two processes with one slot and one thread each, and two models of which each has room for one. The rates in
virtual time are means of what Ollama counted in all runs together, tokens those of each request; load times
are measured on an idle process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx

from balancer.simulator.service_model import ServiceRates
from tests.benchmarks.virtual import (
    Answer,
    Asked,
    World,
    drawn,
    in_virtual_time,
    medians,
    over_http,
    process,
    told,
)

POLICIES = ("least_connections", "round_robin@immediate", "random@immediate")
_NAMES = ("a:latest", "b:latest")
_CONTEXT = 2048


@contextlib.asynccontextmanager
async def ollama(models: Mapping[str, bytes]) -> AsyncIterator[str]:
    """One process with these models in a store of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "OLLAMA_HOST": address,
            "OLLAMA_MODELS": f"{folder}/models",
            "OLLAMA_NUM_PARALLEL": "1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_CONTEXT_LENGTH": str(_CONTEXT),
        }
        async with process((os.environ["OLLAMA_BINARY"], "serve"), environment), client(address) as asking:
            for _ in range(200):
                with contextlib.suppress(httpx.HTTPError):
                    await asking.get("/api/version")
                    break
                await asyncio.sleep(0.05)
            for name, content in models.items():
                await create(asking, name, content)
            yield f"http://{address}"


def client(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=120)


async def create(asking: httpx.AsyncClient, name: str, content: bytes) -> None:
    """Put a model into the store, with one thread for its runner."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    (await asking.post(f"/api/blobs/{digest}", content=content)).raise_for_status()
    body = {"model": name, "files": {"model.gguf": digest}, "parameters": {"num_thread": 1}, "stream": False}
    (await asking.post("/api/create", json=body)).raise_for_status()


async def load_seconds(url: str) -> float:
    """How long a model takes to load where the other one is in memory, median of some."""
    taken = []
    async with client(url.removeprefix("http://")) as asking:
        for turn in range(6):
            began_at = time.monotonic()
            (await asking.post("/api/generate", json={"model": _NAMES[turn % 2]})).raise_for_status()
            taken.append(time.monotonic() - began_at)
    return median(taken)


def rates_of(answers: Sequence[Answer], loads: Sequence[float]) -> ServiceRates:
    """All tokens that were counted over all seconds, as waits follow from means."""
    counted = [each for each in answers if each.prompt]
    return ServiceRates(
        prefill_tokens_per_second=sum(each.prompt for each in counted)
        / sum(each.prompt_seconds for each in counted),
        decode_tokens_per_second=sum(each.answer for each in counted)
        / sum(each.answer_seconds for each in counted),
        load_base_seconds=median(loads),
        load_bytes_per_second=1e15,
    )


def as_counted(asked: Sequence[Asked], answers: Sequence[Answer]) -> list[Asked]:
    """The requests with the tokens that Ollama counted; by the words where it did not."""
    pairs = list(zip(asked, answers, strict=True))
    tokens_per_word = median(answer.prompt / each.prompt for each, answer in pairs if answer.prompt)
    return [
        replace(
            each, prompt=answer.prompt or round(each.prompt * tokens_per_word), answer=max(answer.answer, 1)
        )
        for each, answer in pairs
    ]


async def compare(models: Mapping[str, bytes], requests: int, seed: int, per_second: float) -> None:
    """Every policy, each in front of new processes."""
    asked = drawn(requests, seed, models=_NAMES, per_second=per_second, prompt=3.5, answer=60)
    asked = [replace(each, prompt=min(each.prompt, _CONTEXT // 8)) for each in asked]
    world = World(
        models={name: len(each) for name, each in models.items()}, rates=(), slots=1, resident=1, asked=asked
    )
    loads, runs = [], {}
    for policy in POLICIES:
        async with ollama(models) as one, ollama(models) as two:
            loads.append(await load_seconds(one))
            runs[policy] = await over_http(world, policy, (one, two))
    answers = [each for run in runs.values() for each in run]
    rates = rates_of(answers, loads)
    print(
        f"{rates.prefill_tokens_per_second:.0f} tokens of prompts and "
        f"{rates.decode_tokens_per_second:.0f} of answers per second, {rates.load_base_seconds:.2f} s for a "
        f"load; {sum(not each.prompt for each in answers)} of {len(answers)} ended without last record",
        flush=True,
    )
    figures = {}
    for policy, run in runs.items():
        counted = replace(world, rates=(rates, rates), asked=as_counted(asked, run))
        figures[policy] = await asyncio.to_thread(in_virtual_time, counted, policy), medians(run)
    print(told("two real Ollamas, two models, room for one each", figures))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.virtual_ollama", description=__doc__)
    parser.add_argument("files", type=Path, nargs=2, metavar="GGUF")
    parser.add_argument("--requests", type=int, default=60, help="of each run (60)")
    parser.add_argument("--rate", type=float, default=0.7, help="requests per second (0.7)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    models = {name: file.read_bytes() for name, file in zip(_NAMES, chosen.files, strict=True)}
    asyncio.run(compare(models, chosen.requests, chosen.seed, chosen.rate))


if __name__ == "__main__":
    main()
