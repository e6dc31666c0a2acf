"""What tests and dashboards may ask about a simulated server that Ollama itself would not tell.

Plain counters and the last requests; every field is written by the module that
causes it. Read by the control routes and by in-process tests.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """One request as it arrived: header names keep their spelling and order."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Observations:
    """Counts since the server started."""

    connections_accepted: int = 0
    requests_by_path: Counter[str] = field(default_factory=Counter)
    requests_by_model: Counter[str] = field(default_factory=Counter)
    running: int = 0
    completed: int = 0
    cancelled: int = 0
    refused: int = 0
    loads: int = 0
    load_aborts: int = 0
    reloads: int = 0
    evictions: int = 0
    unloads: int = 0
    runner_crashes: int = 0
    slots_leaked: int = 0
    stalled_writes: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    recent: deque[SeenRequest] = field(default_factory=lambda: deque(maxlen=100))

    def counts(self) -> dict[str, Any]:
        """The plain numbers, by name, in the order above."""
        names = (name for name in self.__slots__ if name != "recent")
        return {
            name: dict(value) if isinstance(value := getattr(self, name), Counter) else value
            for name in names
        }
