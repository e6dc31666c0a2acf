"""The life of one generate or chat request, from its record to the last part.

Finds the model, checks what it can do, gets a runner and a slot, and paces the
script's steps into a sink. It knows neither HTTP nor dialects; the sink does
(web/exchange.py). Failures leave as the exceptions of errors.py.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from balancer.simulator.answers import Metrics, Part
from balancer.simulator.clock import Clock
from balancer.simulator.configuration import ServerConfig
from balancer.simulator.errors import RUN_OUT_OF_MEMORY, Refusal, RunnerDied, SimulatedError
from balancer.simulator.faults import Fault, FaultKind, Faults
from balancer.simulator.generation import Script, write_script
from balancer.simulator.models import Model
from balancer.simulator.names import is_cloud, parse_name
from balancer.simulator.observations import Observations
from balancer.simulator.requests import InferenceRequest
from balancer.simulator.runner import Runner, SlotLease
from balancer.simulator.runner_options import WrongOptionType, default_context, effective_options
from balancer.simulator.scheduler import Demand, Grant, Scheduler
from balancer.simulator.service_model import nanoseconds
from balancer.simulator.store import ModelStore

# Templating and tokenising; what is left of total_duration on an idle runner.
_OVERHEAD_SECONDS = 0.002
_MOST_LOGPROBS = 20
CLOUD_DISABLED = "ollama cloud is disabled: remote model is unavailable"


class Sink(Protocol):
    """Where an answer goes."""

    @property
    def stalled(self) -> bool:
        """Whether the last write never ended because the reader had stopped."""
        ...

    def begin(self) -> None:
        """A runner is at work: from here on, an error stands in place of a stream."""
        ...

    async def single(self, part: Part) -> None:
        """Send an answer that is one object even where a stream was asked for."""
        ...

    async def step(self, part: Part) -> None:
        """Send, or keep for the end, one part of a generated answer."""
        ...

    async def end(self) -> None:
        """End the answer properly."""
        ...


class ServerCut(SimulatedError):
    """The connection must end now, in the middle of the answer, without a proper end."""


class InferenceCore:
    """Runs inference requests against one server's scheduler."""

    def __init__(
        self,
        *,
        config: ServerConfig,
        clock: Clock,
        store: ModelStore,
        scheduler: Scheduler,
        faults: Faults,
        seen: Observations,
    ) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._scheduler = scheduler
        self._faults = faults
        self._seen = seen

    async def run(self, request: InferenceRequest, sink: Sink) -> None:
        """Answer one request into `sink`; cancelling it counts as the client's leaving.

        Raises: Refusal, RunnerDied, ServerCut.
        """
        if not 0 <= request.top_logprobs <= _MOST_LOGPROBS:
            raise Refusal(400, f"top_logprobs must be between 0 and {_MOST_LOGPROBS}")
        model = self._find(request)
        if request.is_empty and request.keep_alive == 0:
            if runner := self._scheduler.loaded(model):
                self._scheduler.unload_when_idle(runner)
            await sink.single(Part(done_reason="unload"))
            return
        _check_capabilities(request, model)
        grant = await self._scheduler.acquire(self.demand(request, model))
        try:
            if request.is_empty:
                await sink.single(Part(done_reason="load"))
            else:
                await self._generate(request, grant, model, sink)
        finally:
            self._scheduler.release(grant.runner)

    def demand(self, request: InferenceRequest, model: Model) -> Demand:
        """What a request needs resident. Raises: Refusal 500 for an option of a wrong type."""
        try:
            options = effective_options(
                requested=request.options,
                of_model=model.parameters,
                default_num_ctx=default_context(self._config.context_length, self._config.memory_bytes),
                trained_context=model.weights.trained_context,
                shift=request.shift,
            )
        except WrongOptionType as error:
            raise Refusal(500, str(error)) from error
        return Demand(model=model, options=options, keep_alive=request.keep_alive)

    def _find(self, request: InferenceRequest) -> Model:
        if not request.model:
            raise Refusal(400, "model is required") if request.is_chat else Refusal(404, "model '' not found")
        if is_cloud(request.model):
            raise Refusal(403, CLOUD_DISABLED)
        if not parse_name(request.model).is_valid:
            raise Refusal(400, "invalid model name")
        model = self._store.find(request.model)
        if model is None:
            raise Refusal(404, f"model '{request.model}' not found")
        return model

    async def _generate(self, request: InferenceRequest, grant: Grant, model: Model, sink: Sink) -> None:
        sink.begin()
        runner = grant.runner
        script = write_script(
            request,
            model,
            num_ctx=runner.options.num_ctx,
            seed=self._config.seed,
            answer_tokens=self._config.answer_tokens,
        )
        fault = self._fault_of(request)
        async with runner.slot() as lease:
            self._seen.running += 1
            try:
                await lease.prefill(script.prompt)
                await self._speak(script, lease, runner, sink, fault)
                if fault is not None and fault.kind is FaultKind.UNFINISHED:
                    await sink.end()
                    return
                await sink.step(_last_part(request, grant, lease, script))
            except asyncio.CancelledError:
                if sink.stalled:
                    lease.leak()
                    self._seen.slots_leaked += 1
                raise
            finally:
                self._seen.running -= 1
        await sink.end()
        self._seen.completed += 1
        self._seen.prompt_tokens += len(script.prompt)
        self._seen.answer_tokens += len(script.answer)

    async def _speak(
        self, script: Script, lease: SlotLease, runner: Runner, sink: Sink, fault: Fault | None
    ) -> None:
        self._strike(fault, 0, runner)
        for sent, step in enumerate(script.steps, start=1):
            for token in step.tokens:
                await lease.decode(token)
            await sink.step(step.part)
            if fault is not None and fault.kind is FaultKind.UNFINISHED and sent == fault.after_tokens:
                return
            self._strike(fault, sent, runner)

    def _fault_of(self, request: InferenceRequest) -> Fault | None:
        kinds = [FaultKind.RUNNER_DIES, FaultKind.SERVER_DIES, FaultKind.UNFINISHED]
        fault = self._faults.peek(FaultKind.OUT_OF_MEMORY, model=request.model)
        if fault is not None and fault.after_tokens is not None:
            kinds.append(FaultKind.OUT_OF_MEMORY)
        return self._faults.take(*kinds, model=request.model)

    def _strike(self, fault: Fault | None, sent: int, runner: Runner) -> None:
        """Carry out a fault whose time has come. Raises: RunnerDied, ServerCut."""
        if fault is None or fault.kind is FaultKind.UNFINISHED or sent != (fault.after_tokens or 0):
            return
        if fault.kind is FaultKind.SERVER_DIES:
            raise ServerCut("process" if fault.process else "connection")
        if fault.kind is FaultKind.OUT_OF_MEMORY:
            for other in self._scheduler.runners:
                self._scheduler.unload_when_idle(other)
            raise RunnerDied(RUN_OUT_OF_MEMORY)
        runner.crash()
        self._seen.runner_crashes += 1
        raise RunnerDied


def _check_capabilities(request: InferenceRequest, model: Model) -> None:
    """Raises: Refusal 400 for what the model cannot do. Source: Ollama v0.33 server/routes.go."""
    able = model.weights.capabilities
    if request.raw and (request.template or request.system or request.context):
        raise Refusal(400, "raw mode does not support template, system, or context")
    if request.think and "thinking" not in able and not request.relax_thinking:
        raise Refusal(400, f'"{request.model}" does not support thinking')
    if "completion" not in able:
        raise Refusal(400, f'"{request.model}" does not support {"chat" if request.is_chat else "generate"}')
    full = f"{model.name.host}/{model.name.namespace}/{model.name.model}:{model.name.tag}"
    if request.tools and "tools" not in able:
        raise Refusal(400, f"{full} does not support tools")
    if request.suffix and "insert" not in able:
        raise Refusal(400, f"{full} does not support insert")


def _last_part(request: InferenceRequest, grant: Grant, lease: SlotLease, script: Script) -> Part:
    seconds = (
        grant.load_seconds
        + lease.wait_seconds
        + lease.prompt_eval_seconds
        + lease.eval_seconds
        + _OVERHEAD_SECONDS
    )
    metrics = Metrics(
        total_duration=nanoseconds(seconds),
        load_duration=nanoseconds(grant.load_seconds),
        prompt_eval_count=len(script.prompt),
        prompt_eval_duration=nanoseconds(lease.prompt_eval_seconds),
        eval_count=len(script.answer),
        eval_duration=nanoseconds(lease.eval_seconds),
    )
    keeps_context = not request.is_chat and not request.raw
    return Part(
        done_reason=script.done_reason,
        metrics=metrics,
        context=(*script.prompt, *script.answer) if keeps_context else (),
    )
