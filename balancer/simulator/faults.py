"""Faults on demand: which ones are set, and which request each one hits.

Bookkeeping only; a fault is carried out where it strikes (gate, inference,
scheduler, server). Set through the control routes or in process by tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from balancer.simulator.names import parse_name


class FaultKind(StrEnum):
    """What goes wrong; the seconds of all of them are simulated time."""

    REFUSE = "refuse"  # stops listening for `seconds`: connections are refused
    CLOSE_BEFORE_HEADERS = "close_before_headers"  # takes the request, closes the connection
    RUNNER_DIES = "runner_dies"  # the runner crashes after `after_tokens` of a stream
    SERVER_DIES = "server_dies"  # the connection is cut after `after_tokens`; `process` ends it all
    UNFINISHED = "unfinished"  # the stream ends well-formed but with no last record
    HANG = "hang"  # takes the request and never answers, or not for `seconds`
    SLOW = "slow"  # the model runs and loads `factor` times slower
    STATUS_500 = "status_500"
    OUT_OF_MEMORY = "out_of_memory"  # a load fails; with `after_tokens`, a stream does
    GARBAGE = "garbage"  # answers with bytes that are not HTTP
    BUSY_503 = "busy_503"
    PROBE_SLOW = "probe_slow"  # /api/ps alone is late by `seconds`


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: limited to a `model` and a `path` prefix when they are given.

    `count` None means until it is cleared; `after_tokens` counts sent parts.
    """

    id: int
    kind: FaultKind
    model: str | None = None
    path: str | None = None
    count: int | None = None
    after_tokens: int | None = None
    seconds: float | None = None
    factor: float = 1.0
    process: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "path": (str,),
    "count": (int,),
    "after_tokens": (int,),
    "seconds": (int, float),
    "factor": (int, float),
    "process": (bool,),
}


class Faults:
    """The faults that are set, in order of setting."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._ids = itertools.count(1)

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._faults.values()))

    def add(self, fields: Mapping[str, Any]) -> Fault:
        """Set a fault from its JSON fields. Raises: ValueError naming the wrong field."""
        rest = dict(fields)
        kind = rest.pop("kind", None)
        if kind not in set(FaultKind):
            raise ValueError(f"unknown kind {kind!r}; one of {', '.join(FaultKind)}")
        for name, value in rest.items():
            if name not in _FIELD_TYPES:
                raise ValueError(f"unknown field '{name}'; one of kind, {', '.join(_FIELD_TYPES)}")
            if value is not None and not isinstance(value, _FIELD_TYPES[name]):
                raise ValueError(f"field '{name}' cannot be {value!r}")
        fault = Fault(id=next(self._ids), kind=FaultKind(kind), **rest)
        self._faults[fault.id] = fault
        return fault

    def clear(self, fault_id: int | None = None) -> None:
        """Forget one fault, or all of them."""
        if fault_id is None:
            self._faults.clear()
        else:
            self._faults.pop(fault_id, None)

    def is_set(self, fault: Fault) -> bool:
        return fault.id in self._faults

    def take(
        self, *kinds: FaultKind, path: str = "", model: str | None = None, named: bool = False
    ) -> Fault | None:
        """The first fault of these kinds that this request meets; uses up one of its `count`.

        With `named`, faults that are limited to no model do not count.
        """
        fault = self.peek(*kinds, path=path, model=model, named=named)
        if fault is not None and fault.count is not None:
            if fault.count <= 1:
                del self._faults[fault.id]
            else:
                self._faults[fault.id] = replace(fault, count=fault.count - 1)
        return fault

    def peek(
        self, *kinds: FaultKind, path: str = "", model: str | None = None, named: bool = False
    ) -> Fault | None:
        """As `take`, but uses nothing up."""
        wanted = None if model is None else parse_name(model).folded
        for fault in self._faults.values():
            right_path = fault.path is None or path.startswith(fault.path)
            right_model = not named if fault.model is None else parse_name(fault.model).folded == wanted
            if fault.kind in kinds and right_path and right_model:
                return fault
        return None

    def slow_factor(self, model: str) -> float:
        """How many times slower this model runs at the moment."""
        fault = self.peek(FaultKind.SLOW, model=model)
        return fault.factor if fault else 1.0
