"""A resident model: its slots, its prefix cache and the time that its work takes.

One Runner stands for one llama-server process. A request takes a SlotLease,
evaluates its prompt in batches and then decodes token by token; what it says is
not decided here (generation.py), nor when a runner is loaded or unloaded
(scheduler.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

from balancer.simulator.clock import Clock
from balancer.simulator.errors import RUNNER_GONE, Refusal, RunnerDied
from balancer.simulator.memory import Footprint
from balancer.simulator.models import Model
from balancer.simulator.prefix_cache import PrefixCache
from balancer.simulator.runner_options import RunnerOptions
from balancer.simulator.service_model import (
    BATCH_TOKENS,
    ServiceRates,
    decode_seconds_per_token,
    prefill_batches,
    prefill_seconds,
    restore_seconds,
)
from balancer.simulator.slots import SlotQueue

# A consumer that stops for a while gets at most this much of the text in one burst.
_LARGEST_BURST_SECONDS = 1.0
_STEP_TOKENS = 128


class Runner:
    """One loaded model. The scheduler alone writes `refs`, `keep_alive` and `expires_at`."""

    def __init__(
        self,
        *,
        model: Model,
        options: RunnerOptions,
        slots: int,
        size: Footprint,
        clock: Clock,
        cache: PrefixCache,
        rates: Callable[[], ServiceRates],
    ) -> None:
        self.model = model
        self.options = options
        self.size = size
        self.slots = SlotQueue(slots)
        self.cache = cache
        self.refs = 0
        self.keep_alive = math.inf
        self.expires_at: datetime = clock.date_after(0.0)
        self.crashed = False
        self.unloaded = asyncio.Event()
        self.clock = clock
        self.rates = rates
        self.prefilling = 0
        self._sleepers: set[asyncio.Future[None]] = set()

    @property
    def path(self) -> str:
        return self.model.weights.path

    @property
    def busy(self) -> bool:
        """Whether any request, running or in line, holds this runner."""
        return self.refs > 0

    @property
    def batch_tokens(self) -> int:
        return self.options.num_batch or BATCH_TOKENS

    def crash(self) -> None:
        """End the process: running requests die, those in line are turned away with 500.

        The runner stays listed until its next request finds it dead.
        Source: observed on Ollama 0.33 after kill -9 of llama-server.
        """
        self.crashed = True
        self.slots.fail_waiting(Refusal(500, RUNNER_GONE))
        for sleeper in self._sleepers:
            _wake(sleeper)

    async def wait_until(self, due: float) -> None:
        """Let simulated time pass. Raises: RunnerDied as soon as this runner crashes."""
        while (remaining := due - self.clock.now()) > 0 and not self.crashed:
            sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.add(sleeper)
            timer = self.clock.call_later(remaining, functools.partial(_wake, sleeper))
            try:
                await sleeper
            finally:
                timer.cancel()
                self._sleepers.discard(sleeper)
        await asyncio.sleep(0)
        if self.crashed:
            raise RunnerDied

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[SlotLease]:
        """Hold one slot, waiting in line for it as long as it takes.

        A cancel in the middle of a prefill batch keeps the slot busy until that
        batch would have ended. Source: observed on Ollama 0.33.
        """
        asked_at = self.clock.now()
        at_once = self.slots.free > 0
        await self.slots.acquire()
        lease = SlotLease(self, wait_seconds=0.0 if at_once else self.clock.now() - asked_at)
        try:
            yield lease
        finally:
            lease.close()


class SlotLease:
    """One request's hold of a slot; counts the simulated seconds of its work."""

    def __init__(self, runner: Runner, *, wait_seconds: float) -> None:
        self.wait_seconds = wait_seconds
        self.prompt_eval_seconds = 0.0
        self.eval_seconds = 0.0
        self._runner = runner
        self._due = runner.clock.now()
        self._batch_ends_at: float | None = None
        self._evaluated: list[int] = []
        self._leaked = False

    async def prefill(self, prompt: Sequence[int]) -> None:
        """Evaluate the part of the prompt that the runner's cache does not hold."""
        runner = self._runner
        cached, in_slot = runner.cache.find(prompt)
        self._evaluated = list(prompt[:cached])
        runner.prefilling += 1
        try:
            if not in_slot:
                await self._evaluate(restore_seconds(runner.rates(), cached))
            for batch in prefill_batches(len(prompt) - cached, runner.batch_tokens):
                await self._evaluate_batch(batch)
                self._evaluated = list(prompt[: len(self._evaluated) + batch])
        finally:
            runner.prefilling -= 1
        self._batch_ends_at = None

    async def _evaluate_batch(self, tokens: int) -> None:
        """In steps, as who else works on the runner may change meanwhile."""
        left = tokens
        for step in prefill_batches(tokens, _STEP_TOKENS):
            seconds = prefill_seconds(self._runner.rates(), 1, self._runner.prefilling)
            left -= step
            await self._evaluate(step * seconds, then_seconds=left * seconds)

    async def _evaluate(self, seconds: float, then_seconds: float = 0.0) -> None:
        """Let time pass; so much more is left of the batch then."""
        self._due += seconds
        self._batch_ends_at = self._due + then_seconds
        await self._runner.wait_until(self._due)
        self.prompt_eval_seconds += seconds

    async def decode(self, token: int) -> None:
        """Make one token; slower while other slots of the runner are busy."""
        runner = self._runner
        decoding = runner.slots.busy - runner.prefilling
        seconds = decode_seconds_per_token(runner.rates(), decoding, runner.prefilling)
        self._due = max(self._due, runner.clock.now() - _LARGEST_BURST_SECONDS) + seconds
        await runner.wait_until(self._due)
        self.eval_seconds += seconds
        self._evaluated.append(token)

    def leak(self) -> None:
        """Never give this slot back: its producer is stuck on a reader that is gone."""
        self._leaked = True

    def close(self) -> None:
        """Give the slot back: now, at the end of the running batch, or never."""
        runner = self._runner
        runner.cache.remember(self._evaluated)
        if self._leaked:
            runner.slots.leak()
        elif self._batch_ends_at is not None and not runner.crashed:
            runner.clock.call_later(self._batch_ends_at - runner.clock.now(), runner.slots.release)
        else:
            runner.slots.release()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
