"""What the readings of one device come to: its state, its faults, and its term of an instance's health.

Pure: written by the device watch, read by whoever asks. Times are monotonic seconds.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from balancer.core.detection import DeviceReading
from balancer.core.device import Device
from balancer.fleet.health_score import Term, factors

STALE_SECONDS = 5.0
"""A reading that is older tells nothing of now; readings are to come every second."""
FAULTY_SECONDS = 300.0
"""So long after a fault of its own a device counts as faulty."""
_APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of a program on the device, not of the device. Source: NVIDIA k8s-device-plugin
internal/rm/health.go."""
_BACK_AFTER = 3
_HOT_MARGIN_CELSIUS = 3
_COOL_MARGIN_CELSIUS = 8
_THROTTLE_SECONDS = 30.0
_THROTTLE_READINGS = 100
_FULL_FROM = 0.92
_FAULTY_GATE = 0.1


class DeviceState(StrEnum):
    """The worst that is known of a device, in this order."""

    LOST = "lost"
    FAULTY = "faulty"
    STALE = "stale"
    THROTTLED = "throttled"
    HOT = "hot"
    OK = "ok"


class FaultKind(StrEnum):
    """What went wrong: `XID_APPLICATION` is the fault of a program that used the device."""

    LOST = "lost"
    XID = "xid"
    XID_APPLICATION = "xid_application"
    ECC = "ecc"


@dataclass(frozen=True, slots=True)
class Fault:
    """So many faults of a kind at once; `told` is what the driver said."""

    kind: FaultKind
    count: int
    told: str


class WatchedDevice:
    """One device and what was read of it last."""

    def __init__(self, device: Device, now: float) -> None:
        self.device = device
        self.reading: DeviceReading | None = None
        self.read_at: float | None = None
        self.lost: str | None = None
        """Why it is lost."""
        self._since = now
        self._unread = True
        self._hot = False
        self._faulty_until = float("-inf")
        self._good_readings = 0
        self._throttled: deque[tuple[float, bool]] = deque(maxlen=_THROTTLE_READINGS)

    @property
    def key(self) -> str:
        return self.device.key

    def take(self, reading: DeviceReading, now: float) -> list[Fault]:
        """Take a reading over; the faults that it tells of."""
        before, self._unread = self.reading, False
        faults = _faults(reading, before)
        if any(each.kind in {FaultKind.XID, FaultKind.ECC} for each in faults):
            self._faulty_until = now + FAULTY_SECONDS
        if reading.lost is not None:
            return faults + self.gone(reading.lost)
        self.reading, self.read_at = reading, now
        self._good_readings += 1
        if self._good_readings >= _BACK_AFTER:
            self.lost = None
        self._hot = _is_hot(reading, self._hot)
        if reading.throttled is not None:
            self._throttled.append((now, bool(reading.throttled)))
        return faults

    def gone(self, why: str) -> list[Fault]:
        """The driver says that it is lost, or lists it no more. It is back after some good readings."""
        known, self.lost, self._good_readings, self._unread = self.lost, why, 0, False
        return [Fault(FaultKind.LOST, 1, why)] if known is None else []

    def missed(self) -> None:
        """No reading came in time; the last one stands, and is stale."""
        self._unread = True

    def age_seconds(self, now: float) -> float | None:
        """How old the newest reading is; None where there never was one."""
        return None if self.read_at is None else now - self.read_at

    def state(self, now: float) -> DeviceState:
        """The worst that is known of it."""
        if self.lost is not None:
            return DeviceState.LOST
        if now < self._faulty_until:
            return DeviceState.FAULTY
        if self._unread or now - (self.read_at or self._since) > STALE_SECONDS:
            return DeviceState.STALE
        if self._throttle_share(now) > 0:
            return DeviceState.THROTTLED
        return DeviceState.HOT if self._hot else DeviceState.OK

    def health(self, now: float) -> float:
        """1 where nothing is wrong, 0 where it is lost. A full memory, heat, throttling and the age of the
        reading each take their part; what the card does not tell takes none."""
        return prod(self.factors(now).values())

    def factors(self, now: float) -> Mapping[Term, float]:
        """What each term leaves of its health."""
        state = self.state(now)
        if state is DeviceState.LOST:
            return {Term.DEVICE_FAULT: 0.0}
        age = (now - (self.read_at or self._since)) / STALE_SECONDS if state is DeviceState.STALE else 0.0
        gate = {Term.DEVICE_FAULT: _FAULTY_GATE} if state is DeviceState.FAULTY else {}
        burdens = {
            Term.MEMORY: _fullness(self.reading),
            Term.HEAT: self._throttle_share(now) / 0.25 + (1.0 if self._hot else 0.0),
            Term.READING_AGE: age,
        }
        return {**gate, **factors(burdens)}

    def _throttle_share(self, now: float) -> float:
        """The share of the readings of the last half minute in which it was slowed down."""
        recent = [throttled for at, throttled in self._throttled if now - at <= _THROTTLE_SECONDS]
        return sum(recent) / len(recent) if recent else 0.0


def _faults(reading: DeviceReading, before: DeviceReading | None) -> list[Fault]:
    """Counted from the first reading on: what was there before was not seen to happen."""
    faults = []
    programs = [xid for xid in reading.xids if xid in _APPLICATION_XIDS]
    own = [xid for xid in reading.xids if xid not in _APPLICATION_XIDS]
    for kind, xids in ((FaultKind.XID, own), (FaultKind.XID_APPLICATION, programs)):
        if xids:
            faults.append(Fault(kind, len(xids), "Xid " + ", ".join(map(str, dict.fromkeys(xids)))))
    if before is not None and before.ecc_uncorrected is not None and reading.ecc_uncorrected is not None:
        more = reading.ecc_uncorrected - before.ecc_uncorrected
        if more > 0:
            faults.append(Fault(FaultKind.ECC, more, f"{more} uncorrected memory errors"))
    return faults


def _is_hot(reading: DeviceReading, was: bool) -> bool:
    """Near where it slows down by itself; once hot, until it is well below."""
    if reading.temperature_celsius is None or reading.limit_celsius is None:
        return False
    below = reading.limit_celsius - reading.temperature_celsius
    return below < _COOL_MARGIN_CELSIUS if was else below <= _HOT_MARGIN_CELSIUS


def _fullness(reading: DeviceReading | None) -> float:
    """0 up to where memory gets scarce, 1 where all is used."""
    if reading is None or reading.memory_used_bytes is None or not reading.memory_total_bytes:
        return 0.0
    used = reading.memory_used_bytes / reading.memory_total_bytes
    return min(1.0, max(0.0, (used - _FULL_FROM) / (1 - _FULL_FROM)))
