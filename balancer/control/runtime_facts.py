"""What a runtime that is no Ollama tells of itself: its models, its slots, its version.

Sources: vLLM v0.11 and later, vllm/entrypoints (`/health`, `/version`, `/v1/models`); llama.cpp b11669
tools/server/README.md (`/health`, `/props`, `/v1/models`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from balancer.core.plan import Runtime
from balancer.fleet.residency import Row
from balancer.protocol.translation.shapes import ps_row, tag_rows

HEALTH_PATH = "/health"
"""Answers 200 once the model is loaded and for as long as it can be asked, 503 before."""
VLLM_SLOTS = 64
"""vLLM does not tell its --max-num-seqs; whatever it is by default, it is more than this."""

Ask = Callable[[str], Awaitable[Mapping[str, object] | None]]
"""What a path tells; None where it could not be read."""


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """Rows as `/api/tags` and `/api/ps` have them; `slots` by their digests."""

    version: str
    models: Sequence[Row]
    runners: Sequence[Row]
    slots: Mapping[str, int]


async def read_facts(runtime: Runtime, ask: Ask) -> RuntimeFacts | None:
    """Ask for all of it; None where the models could not be read."""
    listed = await ask("/v1/models")
    if listed is None:
        return None
    told = await ask("/props" if runtime is Runtime.LLAMA_SERVER else "/version") or {}
    models = tag_rows(runtime, listed.get("data"), told)
    slots = told.get("total_slots") if runtime is Runtime.LLAMA_SERVER else VLLM_SLOTS
    known = isinstance(slots, int) and slots > 0
    return RuntimeFacts(
        version=str(told.get("build_info") or told.get("version") or ""),
        models=models,
        runners=[ps_row(row) for row in models],
        slots={str(row["digest"]): slots for row in models} if known and isinstance(slots, int) else {},
    )
