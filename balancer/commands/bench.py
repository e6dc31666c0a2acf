"""`balancer bench`: a bounded load on any Ollama address: time to first token, inter-token time,
throughput, errors. It sends streaming chats over the balancer's own upstream client.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import uvloop

from balancer.commands.exit_codes import DONE, FAILED
from balancer.commands.progress import Progress
from balancer.core.operation import Dialect, Kind, Operation
from balancer.errors import BalancerError
from balancer.protocol.endings import Ending, judge, read_counters
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.control_client import ControlClient
from balancer.upstream.stream_memory import StreamMemory

_TOKENS = 64
_BUFFER_BYTES = 1 << 26
_OPERATION = Operation(kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/api/chat", stream=True)


@dataclass(slots=True)
class _Results:
    ttft_seconds: list[float] = field(default_factory=list)
    inter_token_seconds: list[float] = field(default_factory=list)
    duration_seconds: list[float] = field(default_factory=list)
    generated_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)


def bench(url: str, *, model: str | None, concurrency: int, requests: int, as_json: bool) -> int:
    """Send `requests` chats, at most `concurrency` at once, and print what they took; fails where
    one of them failed."""
    try:
        report = uvloop.run(_bench(url, model, concurrency, requests))
    except BalancerError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps(report, indent=2) if as_json else render(report))
    return DONE if not report["errors"] else FAILED


def render(report: dict[str, object]) -> str:
    """The report as a few lines."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{name} {each}" for name, each in value.items()) or "none"
        else:
            shown = str(value)
        lines.append(f"{key.replace('_', ' '):24} {shown}")
    return "\n".join(lines)


async def _bench(url: str, model: str | None, concurrency: int, requests: int) -> dict[str, object]:
    model = model or await _first_model(url)
    client = UpstreamClient(
        connect_seconds=5.0, idle_seconds=60.0, buffer_bytes=_BUFFER_BYTES, memory=StreamMemory(_BUFFER_BYTES)
    )
    results = _Results()
    numbers = iter(range(requests))
    progress = Progress(requests)
    started = time.monotonic()

    async def work() -> None:
        for number in numbers:
            await _one(client, url, model, number, results)
            progress.step()

    try:
        await asyncio.gather(*(work() for _ in range(min(concurrency, requests))))
    finally:
        client.close()
        progress.end()
    seconds = time.monotonic() - started
    return {
        "url": url,
        "model": model,
        "requests": requests,
        "concurrency": concurrency,
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(results.duration_seconds) / seconds, 2),
        "tokens_per_second": round(results.generated_tokens / seconds, 1),
        "ttft_seconds": _spread(results.ttft_seconds),
        "inter_token_seconds": _spread(results.inter_token_seconds),
        "duration_seconds": _spread(results.duration_seconds),
        "instances": dict(results.instances),
        "errors": dict(results.errors),
    }


async def _one(client: UpstreamClient, url: str, model: str, number: int, results: _Results) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Question {number}: tell me something."}],
        "options": {"num_predict": _TOKENS},
        "stream": True,
    }
    request = UpstreamRequest(
        method="POST",
        target="/api/chat",
        headers=(("Content-Type", "application/json"), ("User-Agent", "ollama-balancer-bench")),
        body=msgspec.json.encode(body),
    )
    started = time.monotonic()
    try:
        exchange = await client.exchange(url, request)
        head = await exchange.response()
        arrivals = []
        while await exchange.next_chunk() is not None:
            arrivals.append(time.monotonic())
    except BalancerError as error:
        results.errors[error.kind] += 1
        return
    if head.status != 200:
        results.errors[f"status {head.status}"] += 1
        return
    if judge(_OPERATION, exchange.tail) is not Ending.WHOLE:
        results.errors["unfinished"] += 1
        return
    results.ttft_seconds.append(arrivals[0] - started)
    results.inter_token_seconds.extend(later - before for before, later in pairwise(arrivals))
    results.duration_seconds.append(time.monotonic() - started)
    results.generated_tokens += read_counters(_OPERATION, exchange.tail).generated_tokens or 0
    answered_by = next(
        (value for key, value in head.headers if key.casefold() == "x-balancer-instance"), "direct"
    )
    results.instances[answered_by] += 1


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile."""
    if len(values) < 2:
        return {
            name: round(each, 5) for name, each in zip(("p50", "p95", "p99"), [*values] * 3, strict=False)
        }
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 5), "p95": round(cuts[94], 5), "p99": round(cuts[98], 5)}


async def _first_model(url: str) -> str:
    """A model that can chat, by its capabilities where they are told."""
    client = ControlClient()
    try:
        tags = await client.get(url, "/api/tags", timeout_seconds=5.0)
    finally:
        await client.close()
    rows = tags.get("models")
    for row in rows if isinstance(rows, list) else []:
        if "completion" in row.get("capabilities", ["completion"]):
            return str(row["name"])
    raise BalancerError("it has no model that can chat; name one with --model")
