"""The health of instances beyond whether they answer: how they behave, models that slipped to the CPU,
devices in trouble.

What lies on the CPU is a fall only from a device: of an instance of which no device is known it counts once
a model of it was seen on one. Until then it may be on a machine that has none, where nothing is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from balancer.clock import Clock
from balancer.control.device_watch import DeviceWatch
from balancer.core.ticket import InstanceId
from balancer.fleet.conduct import Paces
from balancer.fleet.fleet import Fleet
from balancer.fleet.health_score import HealthScore, Term, factors
from balancer.fleet.instance import Instance
from balancer.fleet.offload import Offload, is_on_device, offloads
from balancer.telemetry.logs import Logger

_ON_CPU = "nothing of it was seen on a GPU: set its device where it has one, or device: cpu where it has none"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`score` is what the instance is worth now, compared with the others. `own` leaves out what it has
    always been like, and what is the matter of single models there: by that outliers are found."""

    score: HealthScore
    own: HealthScore


class InstanceHealth:
    """Judges instances, and tells once of every runner that falls to the CPU, and of every instance that
    was seen on nothing else."""

    def __init__(self, *, fleet: Fleet, devices: DeviceWatch, clock: Clock, log: Logger) -> None:
        self._fleet = fleet
        self._devices = devices
        self._clock = clock
        self._log = log
        self._told: dict[InstanceId, tuple[Offload, ...]] = {}
        self._on_device: set[Instance] = set()
        """Of those of which no device is known, who was seen to use one."""
        self._on_cpu: set[Instance] = set()
        """Who was told to run on the CPU."""
        fleet.listen(on_change=self._look, on_members=self._forget_gone)

    def of(self, instance: Instance) -> float:
        """1 where nothing is wrong, 0 where it does not answer."""
        return self.judge(instance).score.value

    def judge(self, instance: Instance) -> Judgement:
        """What it is worth among those that are there."""
        return self._judge(instance, *self._paces())

    def judge_all(self) -> Mapping[Instance, Judgement]:
        """All of them at once."""
        paces, now = self._paces()
        return {each: self._judge(each, paces, now) for each in self._fleet.instances()}

    def _paces(self) -> tuple[Paces, float]:
        now = self._clock.monotonic()
        return Paces((each.conduct for each in self._fleet.usable()), now), now

    def _judge(self, instance: Instance, paces: Paces, now: float) -> Judgement:
        """By its conduct, the worst of its devices, and the worst of its runners."""
        if not instance.usable:
            down = HealthScore({Term.DOWN: 0.0})
            return Judgement(down, down)
        around: Mapping[Term, float] = {
            **factors({Term.PROBES: instance.health.failed_probes}),
            **self._devices.factors_of(instance.spec.devices or ()),
        }
        falls = self._falls(instance)
        offload = {Term.OFFLOAD: min(each.health for each in falls)} if falls else {}
        compared, of_late = instance.conduct.burdens(paces, now)
        score = HealthScore({**factors(compared), **around, **offload})
        return Judgement(score, HealthScore({**factors(of_late), **around}))

    def _falls(self, instance: Instance) -> tuple[Offload, ...]:
        """Its runners that are on the CPU though it has a device."""
        known = bool(instance.spec.devices) or instance in self._on_device or is_on_device(instance)
        return offloads(instance) if known else ()

    def _look(self, instance: Instance) -> None:
        if instance not in self._on_device and is_on_device(instance):
            self._on_device.add(instance)
        told, now = self._told.get(instance.id, ()), self._falls(instance)
        if not now and instance not in self._on_cpu and offloads(instance):
            self._on_cpu.add(instance)
            self._log.warning("instance_on_cpu", instance=instance.id, advice=_ON_CPU)
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
        self._on_device &= set(self._fleet.instances())
        self._on_cpu &= set(self._fleet.instances())
