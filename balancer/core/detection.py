"""What a look at the GPUs of this machine came to, and what is read of one of them again and again.

Plain data: it crosses from the child process that asks the driver to the balancer as JSON.
"""

from enum import StrEnum

import msgspec

from balancer.core.device import Device


class DetectionOutcome(StrEnum):
    """How the look ended. Only after `OK` are there devices."""

    OK = "ok"
    NO_DRIVER = "no_driver"
    NO_GPU = "no_gpu"
    ALL_HIDDEN = "all_hidden"
    MIG = "mig"
    NO_PERMISSION = "no_permission"
    FAILED = "failed"
    NO_ANSWER = "no_answer"


_FAILED = frozenset({DetectionOutcome.NO_PERMISSION, DetectionOutcome.FAILED, DetectionOutcome.NO_ANSWER})
_WITHOUT = "whether there are GPUs is not known: none is used until serve is started again and finds them"


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """`devices` are those that a plan may use, in the order in which they are to be used. `reason` says
    why there are none. `notes` say what was left out or taken for granted, and what to write instead;
    whoever shows a detection shows them all. `driver` is the driver's version where it could be asked."""

    outcome: DetectionOutcome
    devices: tuple[Device, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    driver: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there may be GPUs that could not be asked for, rather than none."""
        return self.outcome in _FAILED

    @property
    def sentences(self) -> tuple[str, ...]:
        """All that is to be told of it, a line each."""
        reason = (self.reason,) if self.reason else ()
        return (*reason, *((_WITHOUT,) if self.failed else ()), *self.notes)


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one device, by its key. None: the card does not tell. A device that is lost tells
    nothing but why.

    `utilization` is 0..1. `limit_celsius` is where the card begins to slow down by itself. `throttled`
    names what slows it down now and means trouble: `thermal`, `power_brake`, `hw_slowdown`.
    `ecc_uncorrected` counts since the driver was loaded; `xids` are the errors that the driver
    reported since the reading before."""

    key: str
    lost: str | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    temperature_celsius: int | None = None
    limit_celsius: int | None = None
    power_watts: float | None = None
    throttled: tuple[str, ...] | None = None
    ecc_uncorrected: int | None = None
    xids: tuple[int, ...] = ()
