"""The fleet: every instance in the order of the configuration, and who wants to know of a change.

All methods are synchronous and complete: a reader between two awaits sees one state. What must
act on a change (dispatch wakes, waiting requests are moved) listens; listeners must not block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from balancer.clock import Clock, SystemClock
from balancer.core.ejection import Ejection
from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId, Lease, Outcome, Verdict
from balancer.core.variant import Variant
from balancer.fleet.health import HealthState
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import DrainedBy
from balancer.fleet.rates import RateBook
from balancer.fleet.residency import Row
from balancer.fleet.stores import learn_shared_stores

Listener = Callable[[Instance], None]
_HOLDING_LIMIT = 1000
"""For so many models it is remembered who holds them: clients make up names."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load that was begun, in which life of its instance and when (monotonic seconds)."""

    variant: Variant
    incarnation: int
    began_at: float


class Fleet:
    """The one mutable store of the house."""

    def __init__(self, instances: Iterable[Instance], *, clock: Clock | None = None) -> None:
        self._instances = {instance.id: instance for instance in instances}
        self._all = tuple(self._instances.values())
        self._holding: dict[ModelName, tuple[Instance, ...]] = {}
        self._clock = clock or SystemClock()
        self._on_change: list[Listener] = []
        self._on_down: list[Listener] = []
        self._on_members: list[Callable[[], None]] = []
        self._past_lives: dict[InstanceId, int] = {}
        self._book = RateBook()
        self._acquaint()

    def instances(self) -> Sequence[Instance]:
        """All instances, usable or not."""
        return self._all

    def holding(self, model: ModelName) -> Sequence[Instance]:
        """Those of them that hold the model, usable or not; looked up once, until a list, or what may be
        believed of one without lists, is another."""
        found = self._holding.get(model)
        if found is None:
            if len(self._holding) >= _HOLDING_LIMIT:
                self._holding.clear()
            found = self._holding[model] = tuple([each for each in self._all if each.holds(model)])
        return found

    def usable(self) -> Sequence[Instance]:
        """Those that answer."""
        return tuple(each for each in self._instances.values() if each.usable)

    def get(self, instance: InstanceId) -> Instance:
        """The instance of that id. Raises KeyError."""
        return self._instances[instance]

    def __contains__(self, instance: object) -> bool:
        return instance in self._instances

    def find(self, lease: Lease) -> Instance | None:
        """The instance of a lease in the life that the lease belongs to; None once that is over."""
        instance = self._instances.get(lease.instance)
        return instance if instance is not None and instance.incarnation == lease.incarnation else None

    def replace(self, instances: Iterable[Instance]) -> None:
        """From now on these and no others, in this order. One that is gone takes no new leases; those
        that it has run on. A new one under its name begins a later life."""
        before, self._instances = self._instances, {instance.id: instance for instance in instances}
        self._all = tuple(self._instances.values())
        self._holding.clear()
        for name, instance in before.items():
            if self._instances.get(name) is not instance:
                self._past_lives[name] = instance.incarnation
        for name, instance in self._instances.items():
            if before.get(name) is not instance and name in self._past_lives:
                instance.incarnation = self._past_lives[name] + 1
        self._acquaint()
        for told in self._on_members:
            told()

    def listen(
        self,
        *,
        on_change: Listener | None = None,
        on_down: Listener | None = None,
        on_members: Callable[[], None] | None = None,
    ) -> None:
        """Be told of every change that may let a waiting request go, of instances judged down, and of
        instances that were added or removed."""
        if on_members is not None:
            self._on_members.append(on_members)
        if on_change is not None:
            self._on_change.append(on_change)
        if on_down is not None:
            self._on_down.append(on_down)

    def probe_succeeded(self, instance: Instance, *, version: str, incarnation: int) -> bool:
        """Note an answer to a liveness probe; True where the instance came up by it, which begins
        a new incarnation. One that belongs to an earlier incarnation changes nothing."""
        if incarnation != instance.incarnation:
            return False
        instance.version = version
        now = self._clock.monotonic()
        was_down = instance.health.state is HealthState.DOWN
        came_up = instance.health.succeeded(now)
        if came_up:
            self._holding.clear()
            if was_down and len(self.usable()) > 1:
                instance.health.start_slowly(now)
            instance.incarnation += 1
            instance.breakers.begin_anew(now)
            self._tell(self._on_change, instance)
        return came_up

    def failed(self, instance: Instance, error: str, *, refused: bool, incarnation: int) -> bool:
        """Note a failed probe, or a refused connection that a request met; True where the instance
        went down by it. A failure that belongs to an earlier incarnation changes nothing."""
        if incarnation != instance.incarnation:
            return False
        before = (instance.unproven, instance.suspect)
        went_down = instance.health.failed(error, self._clock.monotonic(), refused=refused)
        if went_down or before != (instance.unproven, instance.suspect):
            self._holding.clear()
        if not went_down and before != (instance.unproven, instance.suspect):
            self._tell(self._on_change, instance)
        if went_down:
            instance.incarnation += 1
            instance.forget_runners()
            self._tell(self._on_down, instance)
            self._tell(self._on_change, instance)
        return went_down

    def ended(self, instance: Instance, error: str) -> None:
        """The process of a managed instance has ended: it is down, and its breaker open until it comes up."""
        instance.breakers.open(error, self._clock.monotonic())
        self.failed(instance, error, refused=True, incarnation=instance.incarnation)

    def inventory_read(
        self,
        instance: Instance,
        *,
        models: Sequence[Row] | None,
        runners: Sequence[Row] | None,
        slots: Mapping[str, int],
        at: float,
    ) -> None:
        """Note what an instance lists; None for a list that could not be read now."""
        before = instance.inventory
        news = instance.read_inventory(models=models, runners=runners, slots=slots, at=at)
        after = instance.inventory
        if after is not None and (before is None or before.models.keys() != after.models.keys()):
            self._holding.clear()
        learn_shared_stores(self._instances.values())
        if news:
            self._tell(self._on_change, instance)

    def pause(self, instance: Instance, *, for_seconds: float) -> None:
        """Lend no slots there for a moment: it has said that its own queue is full."""
        instance.pause(self._clock.monotonic() + for_seconds)

    def load_began(self, instance: Instance, variant: Variant, *, patience_seconds: float) -> Load:
        """The balancer loads a variant there; after so long it is overdue."""
        now = self._clock.monotonic()
        instance.load_began(variant, now, now + patience_seconds)
        return Load(variant, instance.incarnation, now)

    def loaded(self, instance: Instance, load: Load, outcome: Outcome) -> None:
        """A load was answered; it is believed until a list that was read later tells otherwise."""
        if outcome.verdict is Verdict.SUCCESS and load.incarnation == instance.incarnation:
            now = self._clock.monotonic()
            instance.residency.loaded(load.variant, now)
            instance.learned.learn_load(load.variant.model, now - load.began_at)

    def load_ended(self, instance: Instance, load: Load, outcome: Outcome) -> None:
        """A load ended. A failure counts against what is to blame for it. What belongs to an earlier
        incarnation changes nothing else."""
        current = load.incarnation == instance.incarnation
        now = self._clock.monotonic()
        instance.load_ended(load.variant, outcome, began_at=load.began_at, now=now, current=current)
        self._tell(self._on_change, instance)

    def no_room(self, instance: Instance, variant: Variant, *, among: Sequence[Instance]) -> None:
        """There is no room there to load a variant, until something changes among these."""
        instance.no_room.meet(variant, among, self._clock.monotonic())

    def unloaded(self, instance: Instance, model: ModelName) -> None:
        """A model was unloaded there by a request: the next one for it needs a load."""
        instance.forget_runner(model, self._clock.monotonic())

    def gate(self, instance: Instance, variant: Variant, *, for_seconds: float) -> None:
        """Lend no slots there but to this variant, so that it can be loaded; ends by itself."""
        instance.gate(variant, self._clock.monotonic() + for_seconds)

    def drain(self, instance: Instance, *, drained: bool, by: DrainedBy = DrainedBy.OPERATOR) -> None:
        """Give no new leases there, or give them again once nobody else has it drained; running ones are
        untouched either way."""
        instance.drained_by = instance.drained_by | {by} if drained else instance.drained_by - {by}
        instance.drained = bool(instance.drained_by)
        self._tell(self._on_change, instance)

    def eject(self, instance: Instance, ejection: Ejection) -> None:
        """Leave it alone for a while, where others can serve. It is judged anew by what comes from now on."""
        instance.ejection = ejection
        instance.conduct.begin_anew(self._clock.monotonic())
        self._tell(self._on_change, instance)

    def readmit(self, instance: Instance) -> None:
        """Leave it alone no more: it takes up its work slot by slot."""
        instance.ejection = None
        instance.conduct.begin_anew(self._clock.monotonic())
        instance.health.start_slowly(self._clock.monotonic())
        self._tell(self._on_change, instance)

    def knows(self, model: str) -> bool:
        """Whether some usable instance has the model."""
        return any(each.inventory is not None and model in each.inventory.models for each in self.usable())

    def models(self) -> set[ModelName]:
        """Every model that some usable instance has."""
        return {name for each in self.usable() if each.inventory for name in each.inventory.models}

    def last_error(self, variant: Variant | None, now: float) -> str | None:
        """What opened a breaker that keeps a variant from being served; None where none does."""
        if variant is None:
            return None
        return next(filter(None, (each.breakers.last_error(variant, now) for each in self.instances())), None)

    def _acquaint(self) -> None:
        """Give all members one rate book, and each its neighbours."""
        members = tuple(self._instances.values())
        self._book.keep({each.spec.url for each in members})
        for instance in members:
            instance.learned.book = self._book
            own = frozenset(instance.spec.devices or ())
            instance.neighbours = tuple(
                each
                for each in members
                if each is not instance and not own.isdisjoint(each.spec.devices or ())
            )

    def _tell(self, listeners: Iterable[Listener], instance: Instance) -> None:
        for listener in listeners:
            listener(instance)
