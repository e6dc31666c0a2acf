"""Which models are resident: the queue of loads, evictions, reloads and expiry.

One request at a time is scheduled; everything that a loaded, compatible runner
can serve goes past the queue to that runner's own line. The rules are in
memory.py and runner_options.py, the work in runner.py. Called by the route
handlers; `run` is one task of the server.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from balancer.simulator.clock import Clock
from balancer.simulator.configuration import ServerConfig
from balancer.simulator.errors import LOAD_OUT_OF_MEMORY, QUEUE_FULL, Refusal
from balancer.simulator.memory import choose_victim, fits_beside_others, footprint, predicted_bytes
from balancer.simulator.models import Model
from balancer.simulator.observations import Observations
from balancer.simulator.prefix_cache import PrefixCache
from balancer.simulator.runner import Runner
from balancer.simulator.runner_options import RunnerOptions, needs_reload
from balancer.simulator.service_model import ServiceRates, load_seconds

# What a request to a warm runner reports as load_duration. Source: observed.
_WARM_LOAD_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request needs before it can run; `keep_alive` None leaves the runner's as it is."""

    model: Model
    options: RunnerOptions
    keep_alive: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A runner that counts this request as its own until `release`."""

    runner: Runner
    load_seconds: float


@dataclass(slots=True)
class _Pending:
    demand: Demand
    granted: asyncio.Future[Runner]


class Scheduler:
    """The resident runners of one server, by weights digest."""

    def __init__(
        self,
        config: ServerConfig,
        clock: Clock,
        seen: Observations,
        *,
        rates: Callable[[Model], ServiceRates],
        load_fails: Callable[[Model], bool],
        load_time: Callable[[Model], float] | None = None,
        others_bytes: Callable[[], int] = lambda: 0,
        weigh: Callable[[Sequence[Any]], int] = len,
    ) -> None:
        """`load_time` replaces the load time that size and bandwidth give, `others_bytes` is what other
        processes hold on the device, `weigh` counts the tokens of what prompts are made of."""
        self._config = config
        self._clock = clock
        self._seen = seen
        self._rates = rates
        self._load_fails = load_fails
        self._load_time = load_time or self._nominal_load_time
        self._others_bytes = others_bytes
        self._weigh = weigh
        self._loaded: dict[str, Runner] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._scheduling = False
        self.loading: str | None = None

    @property
    def runners(self) -> list[Runner]:
        """Resident runners; one that is being loaded is not among them."""
        return list(self._loaded.values())

    @property
    def pending(self) -> int:
        """Requests in the queue of loads, less those that left."""
        return sum(not entry.granted.done() for entry in self._pending)

    async def acquire(self, demand: Demand) -> Grant:
        """A runner for the demand, after the loads and evictions that it takes.

        Cancelling a caller whose load is running aborts that load.
        Raises: Refusal 503 when the queue is full (never for a warm runner),
        500 when the load fails.
        """
        runner = self._usable(demand)
        if runner is not None:
            self._use(runner, demand.keep_alive)
            return Grant(runner=runner, load_seconds=_WARM_LOAD_SECONDS)
        # Ollama's channel counts an entry until it is dequeued, left or not. An idle
        # scheduler dequeues at once, so one more fits before its task has had its turn.
        if len(self._pending) >= self._config.max_queue + (not self._scheduling):
            raise Refusal(503, QUEUE_FULL)
        asked_at = self._clock.now()
        entry = _Pending(demand, asyncio.get_running_loop().create_future())
        self._pending.append(entry)
        self._arrived.set()
        try:
            runner = await entry.granted
        except asyncio.CancelledError:
            if entry.granted.done() and not entry.granted.cancelled() and entry.granted.exception() is None:
                self.release(entry.granted.result())
            raise
        return Grant(runner=runner, load_seconds=max(self._clock.now() - asked_at, _WARM_LOAD_SECONDS))

    def release(self, runner: Runner) -> None:
        """End one request's claim; the last one starts the keep_alive, or unloads."""
        runner.refs -= 1
        if runner.refs > 0 or runner.unloaded.is_set():
            return
        if runner.keep_alive <= 0:
            self._unload(runner)
            return
        runner.expires_at = self._clock.date_after(runner.keep_alive)
        if not math.isinf(runner.keep_alive):
            key = runner.model.weights.digest
            self._stop_timer(key)
            self._timers[key] = self._clock.call_later(runner.keep_alive, lambda: self._expire(runner))

    def unload_when_idle(self, runner: Runner) -> None:
        """Let the runner go after its last request; one that carries a keep_alive revokes this."""
        runner.keep_alive = 0.0
        runner.expires_at = self._clock.date_after(0.0)
        self._stop_timer(runner.model.weights.digest)
        if runner.refs <= 0 and not runner.unloaded.is_set():
            self._unload(runner)

    def loaded(self, model: Model) -> Runner | None:
        """The resident runner of a model's weights, whichever name loaded it."""
        return self._loaded.get(model.weights.digest)

    async def run(self) -> None:
        """Schedule pending requests for ever, strictly one after the other."""
        while True:
            await self._arrived.wait()
            if not self._pending:
                self._arrived.clear()
                continue
            entry = self._pending.popleft()
            if not entry.granted.done():
                self._scheduling = True
                await self._schedule(entry)
                self._scheduling = False

    async def _schedule(self, entry: _Pending) -> None:
        demand = entry.demand
        while True:
            runner = self._loaded.get(demand.model.weights.digest)
            if runner is None:
                victim = self._victim_for(demand)
                if victim is None:
                    await self._load(entry)
                    return
                self._seen.evictions += 1
            elif self._usable(demand) is not None:
                self._grant(entry, runner)
                return
            else:
                victim = runner
                self._seen.reloads += 1
            # Unbounded, and blocks every other load: that is Ollama's behaviour.
            self.unload_when_idle(victim)
            await victim.unloaded.wait()

    def _usable(self, demand: Demand) -> Runner | None:
        runner = self._loaded.get(demand.model.weights.digest)
        if runner is None or runner.crashed or needs_reload(runner.options, demand.options):
            return None
        return runner

    def _victim_for(self, demand: Demand) -> Runner | None:
        """Who must go before this load; None when it may start. A first load always may."""
        if not self._loaded:
            return None
        return None if self.has_room(demand) else choose_victim(self._loaded.values())

    def has_room(self, demand: Demand) -> bool:
        """Whether the demand's model could be loaded beside what is resident."""
        limit = self._config.max_loaded_models
        too_many = limit > 0 and len(self._loaded) >= limit
        return not too_many and fits_beside_others(
            self._needed_bytes(demand), self._free_bytes(), has_device=self._config.memory_bytes > 0
        )

    async def _load(self, entry: _Pending) -> None:
        demand = entry.demand
        self.loading = demand.model.name.display()
        try:
            await self._pass_load_time(entry)
        finally:
            self.loading = None
        if entry.granted.done():
            self._seen.load_aborts += 1
            return
        if self._load_fails(demand.model):
            entry.granted.set_exception(Refusal(500, LOAD_OUT_OF_MEMORY))
            return
        self._seen.loads += 1
        runner = self._start(demand)
        self._loaded[demand.model.weights.digest] = runner
        self._grant(entry, runner)

    async def _pass_load_time(self, entry: _Pending) -> None:
        """Return when the load is done or its requester has left."""
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seconds = self._load_time(entry.demand.model)
        timer = self._clock.call_later(seconds, lambda: finished.set_result(None))
        await asyncio.wait((finished, entry.granted), return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()

    def _nominal_load_time(self, model: Model) -> float:
        if self._config.load_seconds is not None:
            return self._config.load_seconds
        return load_seconds(self._rates(model), model.weights.size_bytes)

    def _start(self, demand: Demand) -> Runner:
        weights = demand.model.weights
        slots = 1 if weights.is_embedding else self._config.slots
        runner = Runner(
            model=demand.model,
            options=demand.options,
            slots=slots,
            size=footprint(
                self._needed_bytes(demand), self._free_bytes(), on_device=demand.options.num_gpu != 0
            ),
            clock=self._clock,
            cache=PrefixCache(self._config.prefix_cache_tokens, slots=slots, weigh=self._weigh),
            rates=lambda: self._rates(demand.model),
        )
        runner.keep_alive = self._config.keep_alive_seconds
        return runner

    def _grant(self, entry: _Pending, runner: Runner) -> None:
        if not entry.granted.done():
            self._use(runner, entry.demand.keep_alive)
            entry.granted.set_result(runner)

    def _use(self, runner: Runner, keep_alive: float | None) -> None:
        runner.refs += 1
        self._stop_timer(runner.model.weights.digest)
        if keep_alive is not None:
            runner.keep_alive = keep_alive
        if runner.refs == 1:
            runner.expires_at = self._clock.date_after(runner.keep_alive)

    def _expire(self, runner: Runner) -> None:
        if runner.refs <= 0 and not runner.unloaded.is_set():
            self._unload(runner)

    def _unload(self, runner: Runner) -> None:
        self._stop_timer(runner.model.weights.digest)
        del self._loaded[runner.model.weights.digest]
        runner.unloaded.set()
        self._seen.unloads += 1

    def _stop_timer(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _needed_bytes(self, demand: Demand) -> int:
        weights = demand.model.weights
        return predicted_bytes(
            weight_bytes=weights.size_bytes,
            kv_bytes_per_token=weights.kv_bytes_per_token,
            num_ctx=demand.options.num_ctx,
            slots=1 if weights.is_embedding else self._config.slots,
        )

    def _free_bytes(self) -> int:
        own = sum(runner.size.device_bytes for runner in self._loaded.values())
        return self._config.memory_bytes - own - self._others_bytes()
