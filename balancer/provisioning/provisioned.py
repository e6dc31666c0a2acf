"""What was provisioned: the devices found, the plan made for them, and how its instances are started."""

import msgspec

from balancer.core.device import CPU, Device
from balancer.core.plan import Plan, PlannedInstance, Runtime
from balancer.core.ticket import InstanceId
from balancer.fleet.device_ledger import Share
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes.shares import split_over
from balancer.provisioning.tiers import promisable_bytes


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """Of this machine; by default nothing was looked for and nothing is started. `undetected` says why it is
    not known which GPUs there are, empty where it is."""

    devices: tuple[Device, ...] = ()
    plan: Plan = Plan()
    launches: tuple[Launch, ...] = ()
    undetected: str = ""

    @property
    def managed(self) -> tuple[PlannedInstance, ...]:
        """The instances that are started here, in the order of their launches."""
        return self.plan.instances

    def capacities(self, reserve_bytes: int) -> dict[str, int]:
        """What the device ledger may promise of each device, by key, bytes: what may be promised of all of
        it, without what runtimes of one model take at their start and keep; of the host what the plan gave
        to instances on the CPU."""
        room = {
            device.gpu.key: promisable_bytes(device.memory_bytes, reserve_bytes)
            for device in self.plan.devices
            if device.gpu
        }
        room[CPU] = sum(each.memory_bytes for each in self.managed if not each.devices)
        known = {device.key: device for device in self.devices}
        for each in self.managed:
            if each.runtime is not Runtime.OLLAMA:
                taken = split_over(each.memory_bytes, [known[key] for key in each.devices])
                for key, part in (taken or {CPU: each.memory_bytes}).items():
                    room[key] = max(0, room[key] - part)
        return room

    def shares(self) -> dict[InstanceId, Share]:
        """The share of each Ollama instance of its devices."""
        return {
            InstanceId(each.name): Share(
                devices=each.devices or (CPU,), bytes_each=each.memory_bytes // max(1, len(each.devices))
            )
            for each in self.managed
            if each.runtime is Runtime.OLLAMA
        }


NOTHING = Provisioned()
"""No devices, and nothing to start."""
