"""The stall watch: models at instances that take requests and give no byte, though nothing is being loaded.

Ollama can lose a slot of a runner for good, when a reader stalls and leaves: its lists look healthy, and
each request for the model waits for ever. To unload the model cures it. What is slow only must not be
taken for it, so the watch acts on evidence alone: the runner itself says, twice, that it is idle while
requests wait for it for longer than Ollama may need to make a prompt of them; or, where nobody can ask the
runner, nothing of a stream came for much longer than the prompt should take, and more than one request met
that.
Source: observed on Ollama v0.33 (readers that stop, unload as the cure in 4 of 4; a chat that is too long,
of which it drops the oldest messages one by one and counts the tokens each time, while its runner idles:
25 s for 400 KB in 400 messages).
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from balancer.clock import Clock
from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId, Lease, Silence
from balancer.errors import InstanceError, SlotLost
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.learned_slots import cut_seconds
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient

_UNLOAD_SECONDS = 5.0
_HOLD_SECONDS = 2.0
"""So long the instance takes nothing, that what is sent again finds the model unloaded."""
_CURE_LASTS_SECONDS = 600.0
"""Where a runner stalls again within so long and has answered nobody since, an unload is no cure."""
_PREDICTED_TIMES = 3.0
_UNKNOWN_TOKENS_PER_SECOND = 50.0
"""What a prompt is evaluated at where nothing was measured."""
_CUT_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StallTimes:
    """Seconds: between two looks; of silence before a runner is asked; of silence that is evidence where
    none can be asked."""

    look: float = 5.0
    ask: float = 10.0
    silent: float = 60.0


Pair = tuple[InstanceId, ModelName]


@dataclass(slots=True)
class _Suspicion:
    """What is known of a pair whose requests stay silent: since when, how often its runner has said that it
    is idle, and which leases met the silence, ended ones too."""

    since: float
    idle_looks: int = 0
    leases: set[int] = field(default_factory=set)


class StallWatch:
    """`silences` are the leases under which nothing has come for a while, `give_up` fails one. `is_idle`
    asks the runner of a model, None where it cannot be asked. `restart` begins to restart an instance,
    False where it is not ours. Models are unloaded at managed instances, and with `unload_all` at all."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        client: ControlClient,
        silences: Callable[[], Sequence[Silence]],
        give_up: Callable[[Lease, InstanceError], None],
        is_idle: Callable[[Instance, ModelName], Awaitable[bool | None]],
        restart: Callable[[InstanceId], bool],
        unload_all: bool,
        metrics: Metrics,
        clock: Clock,
        log: Logger,
        times: StallTimes = StallTimes(),
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._silences = silences
        self._give_up = give_up
        self._is_idle = is_idle
        self._restart = restart
        self.unload_all = unload_all
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self.times = times
        self._suspicions: dict[Pair, _Suspicion] = {}
        self._loading_until: dict[InstanceId, float] = {}
        self._cured_at: dict[Pair, float] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self.times.look)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a boundary of tasks: a defect here ends nothing
                self._log.error("stall_watch_defect", exc_info=error)

    async def look(self) -> None:
        """One look at all that is silent."""
        now = self._clock.monotonic()
        for instance in self._fleet.instances():
            if instance.loading is not None:
                self._loading_until[instance.id] = now
        silent: dict[Pair, list[Silence]] = defaultdict(list)
        for each in self._silences():
            variant = each.lease.ticket.variant
            if variant is not None and each.lease.ticket.needs_slot and self._fleet.find(each.lease):
                silent[each.lease.instance, variant.model].append(each)
        self._forget_answered()
        for pair, waiting in silent.items():
            await self._examine(pair, waiting)

    def _forget_answered(self) -> None:
        """A runner that has answered someone since is under no suspicion. One without requests stays as it
        is: those that met the silence may have left."""
        for (instance, model), suspicion in tuple(self._suspicions.items()):
            if instance not in self._fleet or self._fleet.get(instance).answered_at(model) > suspicion.since:
                del self._suspicions[instance, model]

    async def _examine(self, pair: Pair, waiting: Sequence[Silence]) -> None:
        instance, model = self._fleet.get(pair[0]), pair[1]
        loading_until = self._loading_until.get(instance.id, float("-inf"))
        since = max(min(each.since for each in waiting), loading_until)
        now = self._clock.monotonic()
        if not instance.is_ollama or not instance.resident(model) or instance.loading is not None:
            return
        if now - since < self.times.ask or instance.running_of(model) > len(waiting):
            return
        suspicion = self._suspicions.setdefault(pair, _Suspicion(since))
        suspicion.leases.update(each.lease.id for each in waiting if each.streams)
        idle = await self._is_idle(instance, model)
        overdue = any(now - max(each.since, loading_until) >= self._ask_seconds(each) for each in waiting)
        suspicion.idle_looks = suspicion.idle_looks + 1 if idle and overdue else 0
        told = suspicion.idle_looks >= 2
        if idle is None and now - since >= self._patience_seconds(instance, waiting):
            told = len(suspicion.leases) >= 2
        silent = {each.lease.id for each in self._silences()}  # the runner took its time to tell
        if told and all(each.lease.id in silent for each in waiting):
            del self._suspicions[pair]
            await self._act(instance, model, waiting, now - since)

    def _ask_seconds(self, silence: Silence) -> float:
        """How long Ollama may work on a request before its runner does."""
        cut = cut_seconds(silence.lease.ticket.prompt_tokens or 0)
        return max(self.times.ask, min(cut, _CUT_LONGEST_SECONDS))

    def _patience_seconds(self, instance: Instance, waiting: Sequence[Silence]) -> float:
        """Where none can be asked; their prompts may be evaluated one after the other."""
        predicted = sum(self._prefill_seconds(instance, each) for each in waiting)
        return max(self.times.silent, _PREDICTED_TIMES * predicted)

    def _prefill_seconds(self, instance: Instance, silence: Silence) -> float:
        ticket = silence.lease.ticket
        return (
            instance.learned.prefill_seconds(ticket)
            or (ticket.prompt_tokens or 0) / _UNKNOWN_TOKENS_PER_SECOND
        )

    async def _act(
        self, instance: Instance, model: ModelName, waiting: Sequence[Silence], seconds: float
    ) -> None:
        """Cure it by an unload where that is allowed; one that was, lately and in vain, is restarted where it
        is ours, else left alone by the breaker of the model there."""
        now = self._clock.monotonic()
        pair = instance.id, model
        cured_at = self._cured_at.get(pair, float("-inf"))
        again = now - cured_at < _CURE_LASTS_SECONDS and instance.answered_at(model) <= cured_at
        may_unload = instance.spec.managed or self.unload_all
        restarts = again and instance.spec.managed and self._restart(instance.id)
        cures = (may_unload and not again) or restarts
        self._log.warning(
            "slot_lost",
            instance=instance.id,
            model=model,
            silent_seconds=round(seconds, 1),
            requests=len(waiting),
            action="restart" if restarts else "unload" if cures else "left_alone",
        )
        if cures:
            self._cured_at[pair] = now
            self._fleet.pause(instance, for_seconds=_HOLD_SECONDS)
        text = "the instance took the request and gave nothing, while its runner did nothing"
        for each in waiting:
            self._give_up(each.lease, SlotLost(text, cured=cures))
        if cures and not restarts:
            await self._unload(instance, model)

    async def _unload(self, instance: Instance, model: ModelName) -> None:
        row = instance.inventory.models.get(model) if instance.inventory else None
        body = {"model": row["name"] if row is not None else model, "keep_alive": 0}
        try:
            await self._client.post(instance.spec.url, "/api/generate", body, timeout_seconds=_UNLOAD_SECONDS)
        except InstanceError as error:
            self._log.warning("unload_failed", instance=instance.id, model=model, error=str(error))
            return
        self._metrics.model_evictions.labels(model, "slot_lost").inc()
        self._fleet.unloaded(instance, model)
