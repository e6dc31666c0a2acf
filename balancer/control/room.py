"""Room for loads: what a load needs of a device is promised before it begins, and models of siblings that
serve nobody make way for it.

Ollama makes room among its own runners, but sees nothing of other processes on the same device, and so
takes memory for free that is not. So where siblings share a device and the device ledger has not enough
left, models that are idle there, in siblings or beside it, are unloaded, those idle for longest first.
Where siblings are busy the load waits. One that is larger than its devices begins all the same when it has
them for itself: Ollama then puts a part of it on the CPU.
"""

from collections.abc import Callable, Collection

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.errors import InstanceError
from balancer.fleet.device_ledger import RUNNER_BYTES, DeviceLedger, Holding, Promise
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.residency import Row
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient

_UNLOAD_SECONDS = 10.0
_MEASURED_LIMIT = 1000
_WEDGED_AFTER = 3
"""So many loads in a row met the end of memory though nothing else was loaded there: it is the process."""

Resident = tuple[Instance, ModelName]


class NoRoom(Exception):
    """Busy siblings keep their shares; later there may be room."""


class Room:
    """`restart` begins to restart an instance, False where it is not ours."""

    def __init__(
        self,
        *,
        ledger: DeviceLedger,
        fleet: Fleet,
        client: ControlClient,
        restart: Callable[[InstanceId], bool],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._client = client
        self._restart = restart
        self._metrics = metrics
        self._log = log
        self._measured: dict[tuple[InstanceId, ModelName], int] = {}
        self._met: dict[InstanceId, int] = {}

    async def promise(self, instance: Instance, variant: Variant) -> Promise:
        """A promise of what a load needs, once there is room for it; of all that its devices have where it
        needs more and has them for itself. Raises NoRoom; nothing is unloaded where that would not help."""
        need = self.need_bytes(instance, variant)
        while True:
            promise = self._ledger.promise(instance.id, need, self._holdings())
            if promise is not None:
                return promise
            idle = self._idle(instance, variant.model)
            if not self._made_by(idle, instance, need):
                raise NoRoom
            if not idle:
                whole = self._ledger.promise_whole(instance.id)
                if whole is None:
                    raise NoRoom
                return whole
            await self._unload(*min(idle, key=lambda pair: pair[0].answered_at(pair[1])))

    def possible(self, instance: Instance, variant: Variant) -> bool:
        """Whether there is room for a load, or could be made, as things are."""
        need = self.need_bytes(instance, variant)
        if self._ledger.has_room(instance.id, need, self._holdings()):
            return True
        idle = self._idle(instance, variant.model)
        return self._made_by(idle, instance, need) and (bool(idle) or self._ledger.unpromised(instance.id))

    def sharers(self, instance: Instance) -> list[Instance]:
        """It and its siblings: room for a load there is made by what happens in them."""
        siblings = self._ledger.siblings(instance.id)
        return [each for each in self._fleet.instances() if each is instance or each.id in siblings]

    def _made_by(self, idle: Collection[Resident], instance: Instance, need_bytes: int) -> bool:
        """Whether unloading these makes room, or leaves the devices to the instance alone."""
        left = self._holdings(without=idle)
        siblings = self._ledger.siblings(instance.id)
        alone = not any(each.used_bytes or each.busy for each in left if each.instance in siblings)
        return alone or self._ledger.has_room(instance.id, need_bytes, left)

    def need_bytes(self, instance: Instance, variant: Variant) -> int:
        """What a variant takes of the devices there: as measured of the model, else by its files."""
        measured = self._measured.get((instance.id, variant.model))
        return measured if measured is not None else instance.size_bytes(variant.model) + RUNNER_BYTES

    def loaded(self, instance: Instance, variant: Variant) -> None:
        """A load went well; its runner may be listed already, which tells what it takes."""
        self._met.pop(instance.id, None)
        self._ledger.grow(instance.id)
        runner = instance.inventory.runners.get(variant.model) if instance.inventory else None
        if runner is not None:
            key = instance.id, variant.model
            self._measured.pop(key, None)
            self._measured[key] = _used_bytes(runner.row)
            if len(self._measured) > _MEASURED_LIMIT:
                del self._measured[next(iter(self._measured))]

    def out_of_memory(self, instance: Instance) -> None:
        """A load or a request met the end of the device's memory: less is promised there from now on, and an
        instance that meets it again and again with nothing loaded is restarted."""
        limit = self._ledger.shrink(instance.id)
        loaded = bool(instance.inventory and instance.inventory.runners)
        self._met[instance.id] = 0 if loaded else self._met.get(instance.id, 0) + 1
        wedged = self._met[instance.id] >= _WEDGED_AFTER
        restarts = wedged and self._restart(instance.id)
        if restarts:
            self._met[instance.id] = 0
        self._log.warning("out_of_memory", instance=instance.id, limit_bytes=limit, restarts=restarts)

    def _holdings(self, *, without: Collection[Resident] = ()) -> list[Holding]:
        return [
            Holding(
                each.id,
                sum(_used_bytes(row) for model, row in _rows(each) if (each, model) not in without),
                each.running > 0,
            )
            for each in self._fleet.instances()
            if self._ledger.share(each.id) is not None
        ]

    def _idle(self, instance: Instance, wanted: ModelName) -> list[Resident]:
        """Models that serve nobody, in its siblings, or beside it where it has any."""
        siblings = self._ledger.siblings(instance.id)
        return [
            (each, model)
            for each in self._fleet.usable()
            if each.inventory is not None
            and ((each.id in siblings and each.loading is None) or (siblings and each is instance))
            for model in each.inventory.runners
            if not each.running_of(model) and not (each is instance and model == wanted)
        ]

    async def _unload(self, sibling: Instance, model: ModelName) -> None:
        """Raises NoRoom where it cannot be done."""
        assert sibling.inventory is not None
        body = {"model": sibling.inventory.runners[model].row["name"], "keep_alive": 0}
        self._fleet.unloaded(sibling, model)
        try:
            await self._client.post(sibling.spec.url, "/api/generate", body, timeout_seconds=_UNLOAD_SECONDS)
        except InstanceError as error:
            self._log.warning("unload_failed", instance=sibling.id, model=model, error=str(error))
            raise NoRoom from error
        self._fleet.unloaded(sibling, model)  # a list that was read meanwhile still has it
        self._metrics.model_evictions.labels(model, "room").inc()
        self._log.info("unloaded_for_room", instance=sibling.id, model=model)


def _rows(instance: Instance) -> list[tuple[ModelName, Row]]:
    runners = instance.inventory.runners if instance.inventory else {}
    return [(each.model, each.row) for each in runners.values()]


def _used_bytes(row: Row) -> int:
    """What a runner takes: of the device, or of the host's memory where it is on the CPU whole."""
    sizes = [row.get(each) for each in ("size_vram", "size")]
    vram, size = (each if isinstance(each, int) and each > 0 else 0 for each in sizes)
    return (vram or size) + RUNNER_BYTES
