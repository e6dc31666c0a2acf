"""One Ollama process in virtual time: the simulated server's scheduler, runners, slots and caches, with work
that flows on a device instead of tokens that are said one by one.

It answers what the balancer asks of an instance: for its lists, for loads and unloads, for answers.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from random import Random
from typing import Any

import msgspec

from balancer.errors import ConnectFailed, ConnectionLost
from balancer.settings.scenario import ScenarioNoise
from balancer.simulator.configuration import VERSION, ServerConfig
from balancer.simulator.errors import Refusal
from balancer.simulator.models import Model
from balancer.simulator.observations import Observations
from balancer.simulator.runner import Runner
from balancer.simulator.runner_options import RunnerOptions, effective_options
from balancer.simulator.scheduler import Demand, Grant, Scheduler
from balancer.simulator.service_model import ServiceRates, load_seconds, on_device
from balancer.simulator.virtual.execution import Device, Job, Work
from balancer.simulator.virtual.loop import VirtualClock
from balancer.simulator.virtual.refusals import Refused
from balancer.simulator.virtual.work import Segment

Prompt = tuple[Segment, ...]


class Served(msgspec.Struct, frozen=True, gc=False):
    """An answer: when its first byte came (seconds of virtual time), and what its counters say."""

    first_byte_at: float
    load_seconds: float
    cached_tokens: int
    prompt_seconds: float
    output_seconds: float
    output_tokens: int


def tokens_of(segments: Sequence[Segment]) -> int:
    """All tokens of some segments."""
    return sum([tokens for _, tokens in segments])


class VirtualInstance:
    """`rates` are nominal, by model name; what they are in this run is drawn from `chance`. All instances of
    one device share its memory, each as its own process sees it."""

    def __init__(
        self,
        name: str,
        *,
        device: Device,
        neighbours: "list[VirtualInstance]",
        config: ServerConfig,
        models: Mapping[str, Model],
        rates: Mapping[str, ServiceRates],
        clock: VirtualClock,
        noise: ScenarioNoise,
        chance: Random,
    ) -> None:
        self.name = name
        self.url = f"http://{name}"
        self.device = device
        self.models = models
        self.seen = Observations()
        self.load_seconds = 0.0
        self._wasted_seconds = 0.0
        self.loads_at_once = False
        """Whether loads take no time, as before a run begins."""
        self.loads_fail = False
        self._rows = {name: _row(each) for name, each in models.items()}
        self._neighbours = neighbours
        self._config = config
        self._clock = clock
        self._chance = chance
        self._noise = noise
        self._rates = {name: each.scaled(self._off(noise.rates)) for name, each in rates.items()}
        self._slower = 1.0
        self._works: dict[str, tuple[Runner, Work]] = {}
        self._options: dict[tuple[str, int | None], RunnerOptions] = {}
        self._calls: dict[_Call, None] = {}
        self._unused: dict[str, float] = {}
        self.last_load: dict[str, tuple[float, float]] = {}
        """When the newest load of each model began, and when it ended."""
        self._down = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._begin_life()

    @property
    def scheduler(self) -> Scheduler:
        """Of this life of the process."""
        return self._scheduler

    @property
    def wasted_load_seconds(self) -> float:
        """Spent on loads that failed, or that nobody used before they were unloaded."""
        gone = (seconds for model, seconds in self._unused.items() if self.runner(model) is None)
        return self._wasted_seconds + sum(gone)

    def true_rates(self, model: str) -> ServiceRates:
        """How fast a model is here, which nobody is told."""
        return self._rates[model] if self._slower == 1.0 else self._rates[model].scaled(self._slower)

    def runner(self, model: str) -> Runner | None:
        """The resident runner of a model."""
        return self._scheduler.loaded(self.models[model])

    def work(self, model: str) -> Work | None:
        """What the resident runner of a model has worked at; None where it has not worked yet."""
        known = self._works.get(model)
        return known[1] if known is not None and known[0] is self.runner(model) else None

    async def answer(
        self,
        model: str,
        prompt: Prompt,
        answer: Segment,
        num_ctx: int | None,
        begun: Callable[[Job], None] = lambda _job: None,
    ) -> Served:
        """Answer a prompt with so many tokens as the answer's segment has; with none, embed it. `begun` is
        told of its job once it has a slot.

        Raises:
            ConnectFailed: no process is there.
            ConnectionLost: it ended, or was given up, before the answer was whole.
            Refused: it answers with an error.
        """
        with self._call(begun) as call:
            scheduler = self._scheduler
            demand = Demand(
                model=self.models[model], options=self._options_of(model, num_ctx), keep_alive=None
            )
            try:
                grant = await scheduler.acquire(demand)
            except Refusal as refusal:
                raise Refused(refusal) from refusal
            try:
                return await self._evaluate(call, grant, model, prompt, answer)
            finally:
                scheduler.release(grant.runner)

    async def _evaluate(
        self, call: "_Call", grant: Grant, model: str, prompt: Prompt, answer: Segment
    ) -> Served:
        runner = grant.runner
        try:
            await runner.slots.acquire()
        except Refusal as refusal:
            raise Refused(refusal) from refusal
        work = self._work_of(runner, model)
        self._unused.pop(model, None)
        cached, in_slot = runner.cache.find(prompt) if answer[1] else (0, True)
        tokens: float = tokens_of(prompt) - cached
        if not in_slot:
            # A copy keeps the runner busy for as long as the evaluation of so many tokens.
            tokens += cached / work.rates.restore_tokens_per_second * work.rates.prefill_tokens_per_second
        call.job = job = self.device.begin(work, tokens, answer[1], 1 / self._off(self._noise.work))
        call.begun(job)
        try:
            await job.done
        except asyncio.CancelledError:
            left = self.device.cut(job, then=runner.slots.release)
            if answer[1]:
                runner.cache.remember(_beginning(prompt, tokens_of(prompt) - left))
            raise
        runner.slots.release()
        if answer[1]:
            runner.cache.remember((*prompt, answer))
        evaluated_at = job.evaluated_at
        return Served(
            first_byte_at=job.first_byte_at,
            load_seconds=grant.load_seconds,
            cached_tokens=cached,
            prompt_seconds=evaluated_at - job.began_at,
            output_seconds=self._clock.now() - evaluated_at,
            output_tokens=answer[1],
        )

    async def ask(self, path: str, body: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        """What a control path answers, with its status. Raises ConnectFailed, ConnectionLost."""
        with self._call():
            await self._thawed.wait()
        match path:
            case "/api/version":
                return 200, {"version": VERSION}
            case "/api/tags":
                return 200, {"models": list(self._rows.values())}
            case "/api/ps":
                return 200, {"models": [self._runner_row(each) for each in self._scheduler.runners]}
            case "/api/generate" | "/api/embed":
                return await self._load_or_unload(path, body)
            case _:
                return 404, {"error": "not found"}

    async def load(self, model: str, num_ctx: int | None = None) -> None:
        """Bring a model into memory, unless it is there. Raises Refusal, and as `answer` does."""
        with self._call():
            scheduler = self._scheduler
            demand = Demand(
                model=self.models[model], options=self._options_of(model, num_ctx), keep_alive=None
            )
            began_at = self._clock.now()
            scheduler.release((await scheduler.acquire(demand)).runner)
            self.last_load[model] = (began_at, self._clock.now())

    def has_room_for(self, model: str) -> bool:
        """Whether it could be loaded beside what is in memory."""
        demand = Demand(model=self.models[model], options=self._options_of(model, None), keep_alive=None)
        return self._scheduler.has_room(demand)

    def kill(self) -> None:
        """The process ends: whoever waits for it loses the connection, and nothing of it is in memory."""
        self._down = True
        self._scheduling.cancel()
        for job in [each for each in self.device.jobs if each.work in self._own_works()]:
            self.device.drop(job)
        for runner in self._scheduler.runners:
            runner.unloaded.set()
        self._end(self._calls)
        self._begin_life()

    def revive(self) -> None:
        """A new process answers, with nothing in memory."""
        self._down = False

    def freeze(self, *, frozen: bool) -> None:
        """Stop the process where it is, or let it go on."""
        if frozen:
            self._thawed.clear()
        else:
            self._thawed.set()
        for work in self._own_works():
            work.frozen = frozen
        self.device.changed()

    def slow_down(self, factor: float) -> None:
        """Work so much slower than before any fault."""
        self._slower = factor
        for name, (runner, work) in self._works.items():
            work.rates = self._rates_of(runner, name)
        self.device.changed()

    def abandon(self) -> None:
        """Fail every request whose answer has not begun, as the balancer does when it judges one down."""
        now = self._clock.now()
        self._end(each for each in self._calls if each.job is None or not each.job.first_byte_at <= now)

    def owes_first_byte(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a task waits here for an answer that has not begun."""
        now = self._clock.now()
        calls = (each for each in self._calls if each.task is task)
        return any(each.job is None or not each.job.first_byte_at <= now for each in calls)

    def _call(self, begun: Callable[[Job], None] = lambda _job: None) -> "_Call":
        if self._down:
            raise ConnectFailed("connection refused", refused=True)
        return _Call(self._calls, begun)

    def _end(self, calls: "Iterable[_Call]") -> None:
        for call in tuple(calls):
            del self._calls[call]
            call.task.cancel()

    def _begin_life(self) -> None:
        self._works.clear()
        self._scheduler = Scheduler(
            self._config,
            self._clock,
            self.seen,
            rates=lambda model: self.true_rates(model.name.display()),
            load_fails=lambda _model: self.loads_fail,
            load_time=self._load_time,
            others_bytes=self._others_bytes,
            weigh=tokens_of,
        )
        self._scheduling = asyncio.get_running_loop().create_task(self._scheduler.run())

    def _load_time(self, model: Model) -> float:
        if self.loads_at_once:
            return 0.0
        rates = self.true_rates(model.name.display())
        seconds = load_seconds(rates, model.weights.size_bytes) * self._off(self._noise.loads)
        self.load_seconds += seconds
        self._wasted_seconds += self._unused.pop(model.name.display(), 0.0)
        self._unused[model.name.display()] = seconds
        return seconds

    def _others_bytes(self) -> int:
        others = (each for each in self._neighbours if each is not self)
        return sum(runner.size.device_bytes for each in others for runner in each.scheduler.runners)

    def _work_of(self, runner: Runner, model: str) -> Work:
        known = self._works.get(model)
        if known is None or known[0] is not runner:
            known = self._works[model] = (runner, Work(self._rates_of(runner, model)))
            known[1].frozen = not self._thawed.is_set()
        return known[1]

    def _rates_of(self, runner: Runner, model: str) -> ServiceRates:
        return on_device(self.true_rates(model), runner.size.device_bytes / runner.size.total_bytes)

    def _own_works(self) -> list[Work]:
        return [work for _, work in self._works.values()]

    def _options_of(self, model: str, num_ctx: int | None) -> RunnerOptions:
        key = model, num_ctx
        if key not in self._options:
            self._options[key] = effective_options(
                requested={} if num_ctx is None else {"num_ctx": num_ctx},
                of_model={},
                default_num_ctx=self._config.context_length,
                trained_context=self.models[model].weights.trained_context,
                shift=None,
            )
        return self._options[key]

    async def _load_or_unload(
        self, path: str, body: Mapping[str, object]
    ) -> tuple[int, Mapping[str, object]]:
        model = str(body.get("model"))
        if model not in self.models:
            return 404, {"error": f"model '{model}' not found"}
        if body.get("keep_alive") == 0:
            runner = self.runner(model)
            if runner is not None:
                self._scheduler.unload_when_idle(runner)
                with self._call():
                    await runner.unloaded.wait()
            return 200, {"done": True}
        if path == "/api/generate" and self.models[model].weights.is_embedding:
            return 400, {"error": f'"{model}" does not support generate'}
        options = body.get("options")
        num_ctx = options.get("num_ctx") if isinstance(options, dict) else None
        try:
            await self.load(model, num_ctx if isinstance(num_ctx, int) else None)
        except Refusal as refusal:
            return refusal.status, {"error": refusal.message}
        return 200, {"done": True}

    def _runner_row(self, runner: Runner) -> dict[str, object]:
        """An item of `/api/ps`."""
        return {
            **self._rows[runner.model.name.display()],
            "size": runner.size.total_bytes,
            "size_vram": runner.size.device_bytes,
            "context_length": runner.options.num_ctx,
        }

    def _off(self, half_width: float) -> float:
        """A factor around 1."""
        return self._chance.uniform(1 - half_width, 1 + half_width) if half_width else 1.0


class AnswerCut(ConnectionLost):
    """The connection was lost when an answer had begun."""


class _Call:
    """Something that somebody waits for here. One that is taken out of `calls` before it is cancelled has
    lost its connection; any other cancel is the caller's own."""

    def __init__(self, calls: "dict[_Call, None]", begun: Callable[[Job], None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self.job: Job | None = None
        self.begun = begun
        self._calls = calls

    def __enter__(self) -> "_Call":
        self._calls[self] = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        lost = self._calls.pop(self, self) is self
        if lost and kind is asyncio.CancelledError:
            self.task.uncancel()
            begun = self.job is not None and self.job.first_byte_at <= asyncio.get_running_loop().time()
            raise (AnswerCut if begun else ConnectionLost)("the instance went down") from None


def _beginning(prompt: Prompt, tokens: int) -> Prompt:
    """The segments that are whole within so many tokens."""
    ends = accumulate(tokens for _, tokens in prompt)
    return tuple(segment for segment, end in zip(prompt, ends, strict=True) if end <= tokens)


def _row(model: Model) -> dict[str, object]:
    """An item of `/api/tags`."""
    row = {"name": model.name.display(), "size": model.weights.size_bytes, "digest": model.digest}
    return {**row, "capabilities": list(model.weights.capabilities)}
