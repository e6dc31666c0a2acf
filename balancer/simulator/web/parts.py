"""What every route handler works on: the parts of one server, built once by server.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from balancer.simulator.clock import Clock
from balancer.simulator.configuration import ServerConfig
from balancer.simulator.faults import Faults
from balancer.simulator.inference import InferenceCore
from balancer.simulator.observations import Observations
from balancer.simulator.scheduler import Scheduler
from balancer.simulator.store import ModelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """One server's parts. `refuse` stops its listening for so many simulated seconds."""

    config: ServerConfig
    clock: Clock
    store: ModelStore
    scheduler: Scheduler
    core: InferenceCore
    faults: Faults
    seen: Observations
    ids: random.Random
    refuse: Callable[[float], None]
    connections_open: Callable[[], int]
