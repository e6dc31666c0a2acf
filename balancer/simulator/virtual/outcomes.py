"""What became of every request of a run, in columns: a million rows must fit in memory."""

from array import array
from enum import IntEnum
from typing import Any

import msgspec

from balancer.core.ticket import Priority


class Outcome(IntEnum):
    """How a request ended. A rejection was told at once, an expired one waited for its whole deadline."""

    OK = 0
    REJECTED = 1
    EXPIRED = 2
    CANCELLED = 3
    FAILED = 4


PRIORITIES = tuple(Priority)


class Request(msgspec.Struct, gc=False):
    """One request as the run saw it; seconds of virtual time. `ttft_seconds` is from arrival to the first
    byte of the answer, NaN where there was none; `total_seconds` to its end, whatever that was.
    `queued_seconds` were in the balancer, `load_seconds` those of them in which its model was being loaded
    for it. `shared_tokens` is how much of its prompt an earlier request to the same model began with: what an
    infinite cache of all instances together would have held."""

    arrived_at: float
    client: int
    model: int
    priority: int
    outcome: int
    embeds: bool
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    cached_tokens: int
    ttft_seconds: float
    total_seconds: float
    queued_seconds: float
    load_seconds: float
    attempts: int
    instance: int


_COLUMNS = {name: "d" if name.endswith(("seconds", "_at")) else "q" for name in Request.__struct_fields__}


class Outcomes:
    """The requests of one run in the order of their ends. `clients` and `models` name their numbers."""

    def __init__(self) -> None:
        self.columns = {name: array(code) for name, code in _COLUMNS.items()}
        self.clients: list[str] = []
        self.models: list[str] = []
        self._appends = [self.columns[name].append for name in Request.__struct_fields__]

    def __len__(self) -> int:
        return len(self.columns["outcome"])

    def add(self, *values: float) -> None:
        """One row; the values in the order of `Request`'s fields."""
        for append, value in zip(self._appends, values, strict=True):
            append(value)  # type: ignore[arg-type]  # columns of whole numbers get whole numbers

    def row(self, index: int) -> Request:
        """One request."""
        values: list[Any] = [self.columns[name][index] for name in Request.__struct_fields__]
        return Request(*values)


class RunFacts(msgspec.Struct, kw_only=True):
    """What a run tells besides its requests. `busy_seconds` are those of each device in which it worked at
    anything; `load_seconds` those spent on loads, of which `wasted_load_seconds` on loads that no request
    used before they were unloaded or failed."""

    strategy: str
    seed: int
    virtual_seconds: float
    loads: int
    evictions: int
    load_seconds: float
    wasted_load_seconds: float
    busy_seconds: tuple[float, ...]
    decisions: int
    events: int
    cpu_seconds: float
    slots_out: int = 0
    """Leases that were never given back, always 0 in a sound run."""
