"""One instance as the store holds it: what was configured, what the probes saw, what is lent out.

Each group of fields has one writer: configuration at construction, health and inventory by the
prober, leases by dispatch, `drained` by the operator.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from balancer.core.names import ModelName, canonical_name, is_cloud_name
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.fleet.health import Health, HealthState

Row = Mapping[str, object]
"""One item of `/api/tags` or `/api/ps`, as the instance sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What was configured for an instance. `max_concurrent_requests` caps all its runners together;
    `slots` is per runner, None where it is to be learned; `models` are those meant for it, none
    meaning all; instances with the same `store` share one model directory."""

    id: InstanceId
    url: str
    weight: float = 1.0
    max_concurrent_requests: int | None = None
    slots: int | None = None
    models: frozenset[ModelName] = frozenset()
    store: str | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """A model resident in an instance. `generation` counts its lives there; `slots` is None until known."""

    model: ModelName
    digest: str
    generation: int
    slots: int | None
    row: Row


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the instance last said that it has; `read_at` is when the reading began, monotonic seconds."""

    read_at: float
    models: Mapping[ModelName, Row] = field(default_factory=dict)
    runners: Mapping[ModelName, Runner] = field(default_factory=dict)


class Instance:
    """The live record of one instance; satisfies `core.views.InstanceView`."""

    def __init__(self, spec: InstanceSpec, health: Health) -> None:
        self.spec = spec
        self.health = health
        self.incarnation = 0
        self.version: str | None = None
        self.inventory: Inventory | None = None
        self.learned_store: str | None = None
        self.drained = False
        self.running = 0
        self._running_of: Counter[ModelName] = Counter()
        self._generations = 0

    @property
    def id(self) -> InstanceId:
        return self.spec.id

    @property
    def weight(self) -> float:
        return self.spec.weight

    @property
    def usable(self) -> bool:
        return self.health.state is HealthState.UP

    @property
    def suspect(self) -> bool:
        return self.health.suspect

    @property
    def store(self) -> str:
        """The label of its model store; one of its own where nothing says that it is shared."""
        return self.spec.store or self.learned_store or own_store(self.id)

    def holds(self, model: ModelName) -> bool:
        """Whether it has the model, as far as its newest list tells. One that answers but whose lists
        could not be read is believed to: its own 404 tells more than a guess."""
        if self.inventory is None:
            return self.usable
        return model in self.inventory.models or is_cloud_name(model)

    def meant_for(self, model: ModelName) -> bool:
        """Whether the configuration does not reserve it for other models."""
        return not self.spec.models or model in self.spec.models

    def resident(self, model: ModelName) -> bool:
        """Whether the newest list of runners names the model."""
        return self.inventory is not None and model in self.inventory.runners

    def generation_of(self, model: ModelName | None) -> int:
        """The life of the model's runner, 0 while none is known."""
        if model is None or self.inventory is None or model not in self.inventory.runners:
            return 0
        return self.inventory.runners[model].generation

    def running_of(self, model: ModelName) -> int:
        return self._running_of[model]

    def slots(self, variant: Variant) -> int:
        if self.spec.slots is not None:
            return self.spec.slots
        if self.spec.max_concurrent_requests is not None:
            return self.spec.max_concurrent_requests
        runner = self.inventory.runners.get(variant.model) if self.inventory else None
        return runner.slots if runner and runner.slots else 1

    def has_free_slot(self, variant: Variant) -> bool:
        cap = self.spec.max_concurrent_requests
        if cap is not None and self.running >= cap:
            return False
        return self._running_of[variant.model] < self.slots(variant)

    def forget_runners(self) -> None:
        """Its runners are gone with it; its models are still on its disk."""
        if self.inventory is not None:
            self.inventory = replace(self.inventory, runners={})

    def take_slot(self, model: ModelName) -> None:
        """Count one lease out."""
        self.running += 1
        self._running_of[model] += 1

    def give_slot_back(self, model: ModelName) -> None:
        """Count one lease back; never more than were taken."""
        assert self._running_of[model] > 0, f"a slot of {model} came back to {self.id} twice"
        self.running -= 1
        self._running_of[model] -= 1
        if not self._running_of[model]:
            del self._running_of[model]

    def read_inventory(
        self,
        *,
        models: Sequence[Row] | None,
        runners: Sequence[Row] | None,
        slots: Mapping[str, int],
        at: float,
    ) -> None:
        """Take over what the instance lists now; what could not be read (None) stays as it was, and
        no list of models at all leaves the inventory unknown.

        A runner that was there before with the same digest keeps its generation; `slots` maps
        digests to slots learned, and what was learned of a runner before is kept.
        """
        before = self.inventory
        if models is None and before is None:
            return
        known = before.runners if before else {}
        self.inventory = Inventory(
            read_at=at,
            models=before.models if models is None and before else _by_name(models or ()),
            runners=known
            if runners is None
            else {
                runner.model: runner
                for runner in (self._runner_of(row, known, slots) for row in reversed(runners))
            },
        )

    def _runner_of(self, row: Row, known: Mapping[ModelName, Runner], slots: Mapping[str, int]) -> Runner:
        model = canonical_name(str(row["name"]))
        digest = str(row.get("digest", ""))
        before = known.get(model)
        if before is not None and before.digest == digest:
            return Runner(model, digest, before.generation, slots.get(digest, before.slots), row)
        self._generations += 1
        return Runner(model, digest, self._generations, slots.get(digest), row)


def own_store(instance: InstanceId) -> str:
    """The label of a store that belongs to one instance alone, as far as anyone knows."""
    return f"own:{instance}"


def _by_name(rows: Sequence[Row]) -> Mapping[ModelName, Row]:
    return {canonical_name(str(row["name"])): row for row in rows}
