"""What becomes of instances whose device is lost: nothing new goes there until it is back, and then they
start anew. One that uses several waits for all of them.
"""

from collections.abc import Callable, Iterable, Iterator

from balancer.core.device import Device
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance


class LostDevices:
    """`drain` is told to drain an instance, or to end that. `restart` begins to restart an instance, which
    those that the balancer did not start need not heed: an Ollama looks for devices only when it starts."""

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
        self._waiting: set[InstanceId] = set()
        self._lost: set[str] = set()
        """Keys and indices of devices that are lost now."""

    def lost(self, device: str) -> None:
        """A device, by its key, is lost."""
        self._lost |= self._called(device)
        for each in self._on(device):
            if each.id not in self._waiting:
                self._waiting.add(each.id)
                self._drain(each.id, True)

    def back(self, device: str) -> None:
        """It can be read again."""
        self._lost -= self._called(device)
        for each in self._on(device):
            if each.id in self._waiting and self._lost.isdisjoint(each.spec.devices or ()):
                self._waiting.discard(each.id)
                self._restart(each.id)
                self._drain(each.id, False)

    def _on(self, device: str) -> Iterator[Instance]:
        names = self._called(device)
        return (each for each in self._fleet.instances() if not names.isdisjoint(each.spec.devices or ()))

    def _called(self, device: str) -> set[str]:
        """What configurations and plans name a device by."""
        return self._names.get(device, {device})
