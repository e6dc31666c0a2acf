"""Which devices `CUDA_VISIBLE_DEVICES` leaves, and in which order. Pure.

Source: NVIDIA CUDA Programming Guide, CUDA Environment Variables: indices, UUIDs or unique beginnings
of UUIDs, separated by commas; an invalid entry hides itself and all after it; set but empty hides all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from balancer.core.device import Device
from balancer.provisioning.other_gpus import ATTACH

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_PCI_ORDER = "PCI_BUS_ID"


@dataclass(frozen=True, slots=True)
class Visible:
    """What is left. `mig` is the first entry that names a MIG instance, which hides all else."""

    devices: tuple[Device, ...]
    mig: str | None = None
    notes: tuple[str, ...] = ()


def visible(devices: Sequence[Device], told: str | None, order: str | None = None) -> Visible:
    """What `told`, the variable's value, leaves of `devices` in the driver's order; None hides nothing.
    `order` is the value of `CUDA_DEVICE_ORDER`."""
    if told is None:
        return Visible(tuple(devices))
    left: list[Device] = []
    notes: list[str] = []
    entries = [each.strip() for each in told.split(",")]
    for entry in entries:
        if entry.startswith("MIG-"):
            return Visible((), mig=entry, notes=(_mig_note(entry),))
        found = _named(devices, entry)
        if found is None:
            if told.strip():
                notes.append(f"{VISIBLE}={told}: '{entry}' is no GPU here, so it and all after it are hidden")
            break
        if found not in left:
            left.append(found)
    unlike = len({each.name for each in devices}) > 1
    if unlike and order != _PCI_ORDER and any(each.isdecimal() for each in entries):
        notes.append(
            f"{VISIBLE} names GPUs by index: taken in PCI order, as nvidia-smi shows them, while CUDA alone "
            f"would count the fastest first; name them by UUID, or set {ORDER}={_PCI_ORDER}"
        )
    return Visible(tuple(left), notes=tuple(notes))


def _named(devices: Sequence[Device], entry: str) -> Device | None:
    """The device of an entry; None where it names none, or more than one."""
    if entry.isdecimal() and entry.isascii():
        return next((each for each in devices if each.index == int(entry[:9])), None)
    matching = [each for each in devices if entry.startswith("GPU-") and each.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _mig_note(entry: str) -> str:
    return (
        f"{VISIBLE} names the MIG instance {entry}, which is not planned on: start an Ollama there yourself "
        f"and write {ATTACH}"
    )
