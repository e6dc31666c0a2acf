"""The health of instances beyond whether they answer: models that slipped to the CPU, devices in trouble."""

from balancer.control.device_watch import DeviceWatch
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.offload import Offload, offloads
from balancer.telemetry.logs import Logger


class InstanceHealth:
    """Judges instances, and tells of every runner that comes to lie on the CPU, once."""

    def __init__(self, *, fleet: Fleet, devices: DeviceWatch, log: Logger) -> None:
        self._fleet = fleet
        self._devices = devices
        self._log = log
        self._told: dict[InstanceId, tuple[Offload, ...]] = {}
        fleet.listen(on_change=self._look, on_members=self._forget_gone)

    def of(self, instance: Instance) -> float:
        """1 where nothing is wrong, 0 where it does not answer; the worst of its runners, times the worst
        of its devices."""
        if not instance.usable:
            return 0.0
        runners = min((each.health for each in offloads(instance)), default=1.0)
        return runners * self._devices.health_of(instance.spec.devices or ())

    def _look(self, instance: Instance) -> None:
        told, now = self._told.get(instance.id, ()), offloads(instance)
        if now == told:
            return
        self._told[instance.id] = now
        for each in now:
            if each not in told:
                self._tell(instance, each)
        for model in {each.model for each in told} - {each.model for each in now}:
            self._log.info("runner_left_cpu", instance=instance.id, model=model)

    def _tell(self, instance: Instance, offload: Offload) -> None:
        self._log.warning(
            "runner_fell_to_cpu",
            instance=instance.id,
            model=offload.model,
            cpu_percent=round(100 * offload.cpu_share, 1),
            size_bytes=offload.size_bytes,
            device_bytes=offload.device_bytes,
            advice="free device memory, lower num_ctx, or set device: cpu where this is meant",
        )

    def _forget_gone(self) -> None:
        there = {each.id for each in self._fleet.instances()}
        self._told = {name: told for name, told in self._told.items() if name in there}
