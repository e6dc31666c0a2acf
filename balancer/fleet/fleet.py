"""The fleet: every instance in the order of the configuration, and who wants to know of a change.

All methods are synchronous and complete: a reader between two awaits sees one state. What must
act on a change (dispatch wakes, waiting requests are moved) listens; listeners must not block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId
from balancer.fleet.instance import Instance, Row
from balancer.fleet.stores import learn_shared_stores

Listener = Callable[[Instance], None]


class Fleet:
    """The one mutable store of the house."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._instances = {instance.id: instance for instance in instances}
        self._on_change: list[Listener] = []
        self._on_down: list[Listener] = []

    def instances(self) -> Sequence[Instance]:
        """All instances, usable or not."""
        return tuple(self._instances.values())

    def usable(self) -> Sequence[Instance]:
        """Those that answer."""
        return tuple(each for each in self._instances.values() if each.usable)

    def get(self, instance: InstanceId) -> Instance:
        """The instance of that id. Raises KeyError."""
        return self._instances[instance]

    def __contains__(self, instance: object) -> bool:
        return instance in self._instances

    def listen(self, *, on_change: Listener | None = None, on_down: Listener | None = None) -> None:
        """Be told of every change that may let a waiting request go, and of instances judged down."""
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
        came_up = instance.health.succeeded()
        if came_up:
            instance.incarnation += 1
            self._tell(self._on_change, instance)
        return came_up

    def failed(self, instance: Instance, error: str, *, refused: bool, incarnation: int) -> bool:
        """Note a failed probe, or a refused connection that a request met; True where the instance
        went down by it. A failure that belongs to an earlier incarnation changes nothing."""
        if incarnation != instance.incarnation:
            return False
        went_down = instance.health.failed(error, refused=refused)
        if went_down:
            instance.incarnation += 1
            instance.forget_runners()
            self._tell(self._on_down, instance)
            self._tell(self._on_change, instance)
        return went_down

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
        instance.read_inventory(models=models, runners=runners, slots=slots, at=at)
        learn_shared_stores(self._instances.values())
        self._tell(self._on_change, instance)

    def drain(self, instance: Instance, *, drained: bool) -> None:
        """Give no new leases there, or give them again; running ones are untouched either way."""
        instance.drained = drained
        self._tell(self._on_change, instance)

    def knows(self, model: str) -> bool:
        """Whether some usable instance has the model."""
        return any(each.inventory is not None and model in each.inventory.models for each in self.usable())

    def models(self) -> set[ModelName]:
        """Every model that some usable instance has."""
        return {name for each in self.usable() if each.inventory for name in each.inventory.models}

    def _tell(self, listeners: Iterable[Listener], instance: Instance) -> None:
        for listener in listeners:
            listener(instance)
