"""What becomes of instances whose device is lost: nothing new goes there until it is back, and then they
start anew. One that uses several waits for all of them.
"""

from collections.abc import Callable, Iterable

from balancer.core.device import Device
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance_spec import DrainedBy


class LostDevices:
    """`drain` is told to drain an instance for a lost device, or to end that. `restart` begins to restart an
    instance, which those that the balancer did not start need not heed: an Ollama looks for devices only
    when it starts. Instances that other settings put on other devices are judged anew."""

    def __init__(
        self,
        *,
        devices: Iterable[Device],
        fleet: Fleet,
        drain: Callable[[InstanceId, bool], None],
        restart: Callable[[InstanceId], object],
    ) -> None:
        self._names = {each.key: {each.key, str(each.index)} for each in devices}
        self._fleet = fleet
        self._drain = drain
        self._restart = restart
        self._lost: set[str] = set()
        """Keys and indices of devices that are lost now."""
        fleet.listen(on_members=self._judge)

    def lost(self, device: str) -> None:
        """A device, by its key, is lost."""
        self._lost |= self._called(device)
        self._judge()

    def back(self, device: str) -> None:
        """It can be read again."""
        self._lost -= self._called(device)
        self._judge()

    def _judge(self) -> None:
        for each in self._fleet.instances():
            lost = not self._lost.isdisjoint(each.spec.devices or ())
            if lost is (DrainedBy.LOST_DEVICE in each.drained_by):
                continue
            if not lost:
                self._restart(each.id)
            self._drain(each.id, lost)

    def _called(self, device: str) -> set[str]:
        """What configurations and plans name a device by."""
        return self._names.get(device, {device})
