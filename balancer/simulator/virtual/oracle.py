"""What only the simulation knows: the true state of every instance, and the requests to come.

Answers are estimates of what the service model will do if nothing else comes: exact for what is known, and
without the noise that is not drawn yet.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId, Ticket, TicketId
from balancer.simulator.memory import choose_victim
from balancer.simulator.service_model import (
    ServiceRates,
    decode_seconds_per_token,
    load_seconds,
    prefill_seconds,
    restore_seconds,
)
from balancer.simulator.virtual.clairvoyant import HORIZON_SECONDS, Outlook
from balancer.simulator.virtual.execution import Job, Work
from balancer.simulator.virtual.instances import Prompt, VirtualInstance, tokens_of
from balancer.simulator.virtual.loop import VirtualClock


class TrueState:
    """Satisfies `clairvoyant.Oracle`. The run tells it what each ticket asks for, and what will come."""

    def __init__(self, instances: Mapping[InstanceId, VirtualInstance], clock: VirtualClock) -> None:
        self._instances = instances
        self._clock = clock
        self._asked: dict[TicketId, tuple[Prompt, int]] = {}
        self._coming: defaultdict[ModelName, list[float]] = defaultdict(list)

    def asks(self, ticket: TicketId, prompt: Prompt, answer_tokens: int) -> None:
        """What a ticket asks for, until it is `done`."""
        self._asked[ticket] = (prompt, answer_tokens)

    def done(self, ticket: TicketId) -> None:
        """The request of that ticket has ended."""
        self._asked.pop(ticket, None)

    def comes(self, model: ModelName, at: float) -> None:
        """A request for a model will come at that time."""
        insort(self._coming[model], at)

    def arrivals(self, model: ModelName) -> Sequence[float]:
        """In how many seconds requests for the model come, in order, as far as the horizon."""
        now, times = self._clock.now(), self._coming[model]
        del times[: bisect_right(times, now)]
        return [at - now for at in times[: bisect_right(times, now + HORIZON_SECONDS)]]

    def outlook(self, ticket: Ticket, instance: InstanceId) -> Outlook:
        """What it comes to if the request is sent there now."""
        assert ticket.variant is not None
        prompt, answer_tokens = self._asked[ticket.id]
        model, there = ticket.variant.model, self._instances[instance]
        runner, rates = there.runner(model), there.true_rates(model)
        work = there.work(model)
        prefilling, decoding = (work.prefilling, work.decoding) if work is not None else (0, 0)
        cached, in_slot = runner.cache.find(prompt) if runner is not None else (0, True)
        sharing = there.device.sharing + (not (work is not None and work.busy) and bool(there.device.jobs))
        prefill = prefill_seconds(rates, tokens_of(prompt) - cached, prefilling + 1, sharing)
        if not in_slot:
            prefill += restore_seconds(rates, cached)
        step = decode_seconds_per_token(rates, decoding + 1, 0, sharing)
        newcomer = _Newcomer(work, rates, prefill, prefill + answer_tokens * step, sharing)
        return Outlook(
            slot_seconds=self._slot_seconds(there, work, runner.slots.free if runner else 1),
            load_seconds=0.0 if runner else load_seconds(rates, there.models[model].weights.size_bytes),
            prefill_seconds=prefill,
            decode_seconds=answer_tokens * step,
            slowdown_seconds=sum(newcomer.slows(job, self._clock.now()) for job in there.device.jobs),
            unloads=() if runner else tuple(self._unloads(there, model)),
        )

    def _slot_seconds(self, there: VirtualInstance, work: Work | None, free: int) -> float:
        if free > 0:
            return 0.0
        now = self._clock.now()
        return min((job.ends - now for job in there.device.jobs if job.work is work), default=0.0)

    def _unloads(self, there: VirtualInstance, model: ModelName) -> list[tuple[ModelName, float]]:
        """What would leave first, unless it is resident elsewhere too."""
        if there.has_room_for(model):
            return []
        victim = choose_victim(there.scheduler.runners)
        if victim is None:
            return []
        name = ModelName(victim.model.name.display())
        if any(each.runner(name) for each in self._instances.values() if each is not there):
            return []
        return [(name, load_seconds(there.true_rates(name), victim.model.weights.size_bytes))]


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A request that would take `total` seconds, the first of them for its prompt."""

    work: Work | None
    rates: ServiceRates
    prefill: float
    total: float
    sharing: int

    def slows(self, job: Job, now: float) -> float:
        """How much later a job ends for it."""
        left = job.ends - now
        if job.work is not self.work:
            joins = self.work is None or not self.work.busy
            return min(left, self.total) / max(self.sharing - 1, 1) if joins else 0.0
        if job.prefilling:
            return min(left, self.prefill)
        stall = min(left, self.prefill) * (1 - self.rates.decode_while_prefilling)
        slowdown = self.rates.parallel_slowdown
        return stall + min(left, self.total) * slowdown / (1 + slowdown * (job.work.decoding - 1))
