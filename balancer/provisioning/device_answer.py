"""What the balancer and its child process of `device_reader` say to each other, one line each way."""

import msgspec

from balancer.core.detection import Detection, DeviceReading

DETECT, READ = b"detect", b"read"


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for, or why it cannot be told."""

    detection: Detection | None = None
    readings: tuple[DeviceReading, ...] | None = None
    problem: str = ""
