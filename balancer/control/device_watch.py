"""The device watch: readings become states, metrics, events, and word to whoever drains what is lost.

Sole writer of what is known of devices: memory, utilisation, temperature, faults. It asks no driver itself:
`provisioning.devices` does, in a child process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from balancer.clock import Clock
from balancer.core.detection import DeviceReading
from balancer.core.device import Device
from balancer.fleet.device_state import DeviceState, WatchedDevice
from balancer.fleet.health_score import Term
from balancer.provisioning.devices import DeviceWatcher
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics

_UNLISTED = "the driver lists it no more"
_AGAIN_SECONDS = 60.0
_NOT_USED = "no GPU is used until the balancer is started again and finds them"


class DeviceWatch:
    """Watches these devices until cancelled; with none it does nothing and starts nothing, unless it is
    `undetected`, for the reason that this says, whether there are any: then the driver is asked again, until
    it tells of one.

    `on_lost` is told the key of a device that is lost, once; `on_back` that of one that can be read
    again. Both are called on the event loop and must not block. An Ollama that ran on a lost device has
    to be started anew, also once that is back."""

    def __init__(
        self,
        devices: Iterable[Device],
        *,
        undetected: str = "",
        metrics: Metrics,
        clock: Clock,
        log: Logger,
        on_lost: Callable[[str], None] = lambda _: None,
        on_back: Callable[[str], None] = lambda _: None,
    ) -> None:
        now = clock.monotonic()
        self._watched = {each.key: WatchedDevice(each, now) for each in devices}
        self._states = dict.fromkeys(self._watched, DeviceState.OK)
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._on_lost = on_lost
        self._on_back = on_back
        self._problem: str | None = None
        self._turned = False
        self.undetected = undetected
        """Why it is not known which devices there are, and how many turned up since; empty where it is."""
        metrics.gpu_detection_success.set(0 if undetected else 1)

    async def run(self) -> None:
        """Watch until cancelled."""
        if self._watched:
            await DeviceWatcher(took=self.take, missed=self.missed).run()
        elif self.undetected:
            self._log.error("devices_undetected", error=self.undetected, advice=_NOT_USED)
            took, missed = self._turned_up, _ignore
            await DeviceWatcher(took=took, missed=missed, interval_seconds=_AGAIN_SECONDS).run()

    def devices(self) -> Sequence[WatchedDevice]:
        """All of them, lost or not."""
        return tuple(self._watched.values())

    def factors_of(self, devices: Iterable[str]) -> Mapping[Term, float]:
        """What makes the health of the worst of these devices; they are named by key or by index, as a
        configuration may. One that is not watched takes no part."""
        now = self._clock.monotonic()
        named = set(devices)
        found = (each for each in self._watched.values() if named & {each.key, str(each.device.index)})
        worst = min(found, key=lambda each: each.health(now), default=None)
        return worst.factors(now) if worst is not None else {}

    def take(self, readings: Sequence[DeviceReading]) -> None:
        """Take over one reading of all devices."""
        if self._problem is not None:
            self._problem = None
            self._log.info("devices_read_again")
        now = self._clock.monotonic()
        by_key = {each.key: each for each in readings}
        for watched in self._watched.values():
            reading = by_key.get(watched.key)
            faults = watched.gone(_UNLISTED) if reading is None else watched.take(reading, now)
            for fault in faults:
                self._metrics.gpu_faults.labels(watched.key, fault.kind).inc(fault.count)
                self._tell(
                    watched, "device_fault", kind=fault.kind.value, count=fault.count, error=fault.told
                )
            self._note_state(watched, now)

    def _turned_up(self, readings: Sequence[DeviceReading]) -> None:
        """Some can be read that were not detected at the start; told once."""
        found = [each.key for each in readings if each.lost is None]
        if found and not self._turned:
            self._turned = True
            self.undetected += f"; by now {len(found)} can be read: restart the balancer to use them"
            self._log.warning("devices_turned_up", devices=found, advice=_NOT_USED)

    def missed(self, problem: str) -> None:
        """No reading came; what was read last is stale."""
        if problem != self._problem:
            self._problem = problem
            self._log.warning("devices_unread", error=problem)
        now = self._clock.monotonic()
        for watched in self._watched.values():
            watched.missed()
            self._note_state(watched, now)

    def _note_state(self, watched: WatchedDevice, now: float) -> None:
        """Tell of a change of state, once."""
        before, state = self._states[watched.key], watched.state(now)
        if state is before:
            return
        self._states[watched.key] = state
        if state is DeviceState.LOST:
            self._log.error("device_lost", device=watched.key, name=watched.device.name, error=watched.lost)
            self._on_lost(watched.key)
            return
        if before is DeviceState.LOST:
            self._log.info("device_back", device=watched.key, name=watched.device.name)
            self._on_back(watched.key)
        elif state is DeviceState.OK:
            self._log.info("device_recovered", device=watched.key, name=watched.device.name, was=before.value)
        if state is not DeviceState.OK:
            self._tell(watched, "device_degraded", state=state.value)

    def _tell(self, watched: WatchedDevice, event: str, **facts: object) -> None:
        self._log.warning(event, device=watched.key, name=watched.device.name, **facts)


def _ignore(_problem: str) -> None:
    """That no reading comes was told at the start."""
