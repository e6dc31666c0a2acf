"""One instance as the store holds it: what was configured, what the probes saw, what is lent out.

Each group of fields has one writer: configuration at construction, health and inventory by the
prober, leases and breakers by dispatch, loads by the loader, `drained` by whoever drains.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from balancer.core.names import ModelName, is_cloud_name
from balancer.core.plan import Runtime
from balancer.core.scores import Candidate
from balancer.core.serving import serves
from balancer.core.ticket import Lease, Outcome, Ticket, Trial, Verdict
from balancer.core.variant import Variant
from balancer.fleet.breaker import NOTHING_SAID, Breakers
from balancer.fleet.courses import ON_ITS_WAY_SECONDS
from balancer.fleet.device_time import DeviceTime
from balancer.fleet.health import Health
from balancer.fleet.instance_spec import DrainedBy, InstanceSpec
from balancer.fleet.judged import Judged
from balancer.fleet.learned import Learned
from balancer.fleet.no_room import NoRoom
from balancer.fleet.residency import Inventory, Residency, Row, by_name, only_embedding

_IN_USE_SECONDS = 60.0
"""A model that answered within so long is likely to be asked again."""
_PAUSE_SECONDS = 1.0
"""At least so long after a load failed no other load of the model is tried there."""


class Instance(Judged):
    """The live record of one instance; satisfies `core.views.InstanceView`."""

    def __init__(self, spec: InstanceSpec, health: Health, breakers: Breakers) -> None:
        super().__init__(health, breakers)
        self.spec = spec
        self.id = spec.id
        self.is_ollama = spec.runtime is Runtime.OLLAMA
        """Whether models can be loaded, unloaded, pulled and changed there; for life."""
        self.residency = Residency()
        self.incarnation = 0
        self.version: str | None = None
        self.inventory: Inventory | None = None
        self.learned_store: str | None = None
        self.drained = False
        self.drained_by: frozenset[DrainedBy] = frozenset()
        self.running = 0
        self.cooling = 0
        self._leased_at: dict[ModelName, list[float]] = {}
        self._cooling_of: Counter[ModelName] = Counter()
        self._paused_until = float("-inf")
        self.no_room = NoRoom()
        self.changes_of_memory = 0
        self._answered_at: dict[ModelName, float] = {}
        self.learned = Learned(spec.url)
        self.device_time = DeviceTime()
        self.neighbours: tuple[Instance, ...] = ()
        """Those that share a device with it, as the fleet tells."""

    def respecify(self, fresh: "Instance") -> None:
        """Take over how another of the same URL was configured, and keep what is known and lent."""
        self.spec, self.id = fresh.spec, fresh.id
        self.health.policy = fresh.health.policy
        self.breakers.use(fresh.breakers.policy)

    @property
    def spare(self) -> bool:
        return self.spec.spare_bytes is not None

    @property
    def capped(self) -> bool:
        return self.spec.max_concurrent_requests is not None

    @property
    def loading(self) -> Variant | None:
        return self.residency.loading

    @property
    def load_overdue_at(self) -> float:
        return self.residency.load_overdue_at

    @property
    def store(self) -> str:
        """The label of its model store; one of its own where nothing says that it is shared."""
        return self.spec.store or self.learned_store or self.spec.own_store

    @property
    def runtime(self) -> Runtime:
        return self.spec.runtime

    def serves(self, path: str) -> bool:
        return self.is_ollama or serves(self.spec.runtime, path)

    def holds(self, model: ModelName) -> bool:
        """Whether it has the model, as far as its newest list tells. One that answers but whose lists
        could not be read is believed to: its own 404 tells more than a guess."""
        if self.inventory is None:
            return self.usable or self.unproven
        return model in self.inventory.models or (is_cloud_name(model) and self.is_ollama)

    def meant_for(self, model: ModelName) -> bool:
        """Whether the configuration does not reserve it for other models."""
        return not self.spec.models or model in self.spec.models

    def small_enough(self, model: ModelName) -> bool:
        """Whether a spare one would take it, as far as its lists tell; any other takes all sizes."""
        return self.spec.spare_bytes is None or 0 < self.size_bytes(model) <= self.spec.spare_bytes

    def size_bytes(self, model: ModelName) -> int:
        """The size of the model's files, 0 where no list tells."""
        return self.inventory.size_bytes(model) if self.inventory is not None else 0

    def resident(self, model: ModelName) -> bool:
        """Whether the newest list of runners names the model."""
        return self.inventory is not None and model in self.inventory.runners

    def spared_until(self, now: float) -> float:
        if self.inventory is not None and not self.inventory.runners:
            return float("-inf")
        used_at = now if self.running else max(self._answered_at.values(), default=float("-inf"))
        return used_at + _IN_USE_SECONDS

    def generation_of(self, model: ModelName | None) -> int:
        """The life of the model's runner, 0 while none is known."""
        runner = self.inventory.runners.get(model) if model is not None and self.inventory else None
        return runner.generation if runner is not None else 0

    def running_of(self, model: ModelName) -> int:
        return len(self._leased_at.get(model, ()))

    def slots_told(self, variant: Variant) -> int | None:
        """How many slots a runner of the variant has by what is configured, else by what was read of it; None
        where nothing tells. Source: Ollama v0.33 server/sched.go (models that only embed have one)."""
        if self.is_ollama and self.inventory is not None and variant.model in self.inventory.only_embed:
            return 1
        if self.spec.slots is not None:
            return self.spec.slots
        if self.spec.max_concurrent_requests is not None:
            return self.spec.max_concurrent_requests
        runner = self.inventory.runners.get(variant.model) if self.inventory else None
        return runner.slots if runner else None

    def slots(self, variant: Variant) -> int:
        """How many of them to use, by what was told and learned."""
        return self.learned.slots(variant.model, self.slots_told(variant))

    def has_free_slot(self, variant: Variant) -> bool:
        cap = self.spec.max_concurrent_requests
        if cap is not None and self.running + self.cooling >= cap:
            return False
        taken = self._taken(variant)
        return not taken or taken < self.slots(variant)

    def slow_start_until(self, variant: Variant, now: float) -> float | None:
        if now >= self.health.slow_until:
            return None
        return self.health.slot_opens_at(self._taken(variant), self.slots(variant), now)

    def _taken(self, variant: Variant) -> int:
        cooling = self._cooling_of[variant.model] if self.cooling else 0
        return len(self._leased_at.get(variant.model, ())) + cooling

    def paused_until(self, now: float) -> float | None:
        return self._paused_until if now < self._paused_until else None

    def no_room_until(self, variant: Variant, now: float) -> float | None:
        return self.no_room.until(variant, now)

    def gated_until(self, variant: Variant, now: float) -> float | None:
        return self.residency.gated_until(variant, now)

    def warm(self, variant: Variant) -> bool:
        return not self.is_ollama or self.residency.warm(variant, self.inventory)

    def settled(self, now: float) -> bool:
        return (
            now >= self.health.settled_from
            and now >= self._paused_until
            and self.breakers.untroubled
            and self.residency.settled
            and self.ejection is None
            and not self.drained
            and not self.no_room.met
            and self.is_ollama
            and not self.spec.models
            and self.spec.spare_bytes is None
        )

    def candidate(self, variant: Variant | None) -> Candidate:
        if variant is None:
            return Candidate(self.id, self.spec.weight, self.health_score, self.running)
        model, warm = variant.model, self.warm(variant)
        return Candidate(
            self.id,
            self.spec.weight,
            self.health_score,
            self.running,
            len(self._leased_at.get(model, ())),
            self.slots(variant),
            warm,
            0.0 if warm else self.load_seconds(variant),
            self.sharing(model),
            self.learned.rates(model),
            self.learned.output_tokens(model),
        )

    def pause(self, until: float) -> None:
        """Lend no slots until then: it has said that its own queue is full, or a load came to nothing."""
        self._paused_until = max(until, self._paused_until)

    def load_began(self, variant: Variant, now: float, overdue_at: float) -> None:
        """The balancer loads a variant here, for which models that run nothing may have to make room."""
        self.residency.began(variant, overdue_at)
        for model in self.inventory.runners if self.inventory else ():
            self._doubt_if_idle(model, now)

    def load_ended(
        self, variant: Variant, outcome: Outcome, *, began_at: float, now: float, current: bool
    ) -> None:
        """That load ended; with `current` it belongs to this life of the instance."""
        self.residency.ended(variant)
        if outcome.kind != "no_room":
            self.changes_of_memory += 1
        if not current:
            return
        if outcome.kind == "no_room":  # nothing was asked of the instance, which serves on what it has
            self.residency.undoubt(began_at)
        elif outcome.kind == "rejected":
            self.residency.let_through(variant)
        elif outcome.verdict is Verdict.NEUTRAL:
            self.pause(now + _PAUSE_SECONDS)
        elif outcome.verdict is Verdict.FAILURE:
            self.breakers.settle_pair(variant, outcome, leased_at=began_at, trial=Trial(), now=now)
            self.breakers.pause(variant, outcome.error, until=now + _PAUSE_SECONDS)

    def gate(self, variant: Variant, until: float) -> None:
        """Lend no slots but to this variant until then at the latest."""
        self.residency.gate(variant, until)

    def cooling_seconds(self, ticket: Ticket) -> float:
        """How long a runner goes on with a prompt that was cancelled."""
        return self.learned.cooling_seconds(ticket)

    def load_seconds(self, variant: Variant) -> float:
        return self.learned.load_seconds(variant.model, self.size_bytes(variant.model))

    def sharing(self, model: ModelName) -> int:
        """How many runners work on its devices, that of the model included whether it works or not. Those of
        other models and of neighbours count while the balancer has requests there."""
        others = len(self._leased_at) - (model in self._leased_at)
        beside = sum(len(each._leased_at) for each in self.neighbours) if self.neighbours else 0
        return 1 + others + beside

    def answered_at(self, model: ModelName) -> float:
        """When a request for it last ended well here, monotonic seconds; minus infinity where none did."""
        return self._answered_at.get(model, float("-inf"))

    def forget_runner(self, model: ModelName, now: float) -> None:
        """A model was unloaded; a list whose reading began before is not believed in this."""
        if not self.is_ollama:
            return
        self.residency.unloaded(model, now)
        self.changes_of_memory += 1
        if self.inventory is not None and model in self.inventory.runners:
            left = {name: runner for name, runner in self.inventory.runners.items() if name != model}
            self.inventory = replace(self.inventory, runners=left)

    def forget_runners(self) -> None:
        """Its runners are gone with it; its models are still on its disk."""
        self.residency.forget()
        self.changes_of_memory += 1
        self._answered_at.clear()
        if self.inventory is not None:
            self.inventory = replace(self.inventory, runners={})

    def take_slot(self, model: ModelName, now: float) -> None:
        """Count one lease out."""
        self._pass_time(now)
        self.running += 1
        self._leased_at.setdefault(model, []).append(now)

    def give_slot_back(self, model: ModelName, leased_at: float, now: float) -> None:
        """Count back one lease that was taken then; never more than were taken."""
        assert leased_at in self._leased_at.get(model, ()), f"a slot of {model} came back to {self.id} twice"
        self._pass_time(now)
        self.running -= 1
        self._leased_at[model].remove(leased_at)
        if not self._leased_at[model]:
            del self._leased_at[model]
            self.changes_of_memory += 1
        self._doubt_if_idle(model, now)

    @property
    def running_on_device(self) -> int:
        """Leases out on it and on its neighbours."""
        return self.running + sum(each.running for each in self.neighbours)

    def _pass_time(self, now: float) -> None:
        for each in (self, *self.neighbours):
            each.device_time.pass_to(now, running=each.running_on_device)

    def _doubt_if_idle(self, model: ModelName, now: float) -> None:
        """Where another model is being loaded, one that runs nothing may have to make room. A request
        that was sent a moment ago may not be there yet, and so keeps nothing in memory."""
        loading = self.residency.loading
        if loading is None or loading.model == model:
            return
        if min(self._leased_at.get(model, ()), default=now) > now - ON_ITS_WAY_SECONDS:
            self.residency.doubt(model, now)

    def settle(self, lease: Lease, outcome: Outcome, now: float) -> None:
        """Tell the breakers how a lease ended. What belongs to an earlier life of the instance, or of
        the runner, only returns its permit; so does what a model did that is in no list of this one."""
        variant = lease.ticket.variant
        assert variant is not None
        if lease.incarnation == self.incarnation and not is_cloud_name(variant.model):
            self.conduct.ended(variant.model, outcome, leased_at=lease.leased_at, now=now)
        if outcome.verdict is Verdict.SUCCESS:
            self._answered_at[variant.model] = now
        if outcome.verdict is not Verdict.FAILURE and self.breakers.untroubled:
            return
        own = outcome if lease.incarnation == self.incarnation else NOTHING_SAID
        own = NOTHING_SAID if is_cloud_name(variant.model) else own
        generation = self.generation_of(variant.model)
        same_runner = 0 in {lease.generation, generation} or lease.generation == generation
        listed = self.inventory is not None and variant.model in self.inventory.models
        pair = own if same_runner and listed else NOTHING_SAID
        facts = {"leased_at": lease.leased_at, "now": now}
        self.breakers.settle_own(variant.model, own, trial=lease.trial.instance, **facts)
        self.breakers.settle_pair(variant, pair, trial=lease.trial, **facts)

    def begin_cooling(self, model: ModelName) -> None:
        """A slot that came back is not free yet: its runner still works on a prompt that was cancelled."""
        self.cooling += 1
        self._cooling_of[model] += 1

    def end_cooling(self, model: ModelName) -> None:
        """It is free now."""
        self.cooling -= 1
        self._cooling_of[model] -= 1
        if not self._cooling_of[model]:
            del self._cooling_of[model]

    def read_inventory(
        self,
        *,
        models: Sequence[Row] | None,
        runners: Sequence[Row] | None,
        slots: Mapping[str, int],
        at: float,
    ) -> bool:
        """Take over what the instance lists now, and tell whether anything is new; what could not be read
        (None) stays as it was, and no list of models at all leaves the inventory unknown.

        A runner that was there before with the same digest keeps its generation; `slots` maps digests to
        slots learned, and what was learned before is kept.
        """
        before = self.inventory
        if models is None and before is None:
            return False
        known, runners_before = (before.runners, before.runners_at) if before else ({}, None)
        listed = before.models if models is None and before else by_name(models or ())
        self.inventory = Inventory(
            read_at=at,
            runners_at=runners_before if runners is None else at,
            models=listed,
            only_embed=only_embedding(listed),
            runners=known if runners is None else self.residency.runners_of(runners, known, slots, at),
        )
        news = before is None or before.models != self.inventory.models or runners_before is None
        if runners is not None:
            self.changes_of_memory += known.keys() != self.inventory.runners.keys()
            news |= self.residency.runners_read(known, self.inventory.runners, at)
        news |= self.learned.forget_strangers(at)
        for model in self.breakers.models:
            if before is None or before.models.get(model) != self.inventory.models.get(model):
                self.breakers.forget(model)
        return news
