"""Shares of a device's memory: what a process is told that it may take, and that all of one device come to
less than the whole."""

from collections.abc import Iterable, Sequence

import msgspec

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.runtimes.base import CannotLaunch


def share_of(instance: PlannedInstance, devices: Sequence[Device]) -> float:
    """The share of each of its devices that an instance takes, the same on each (dimensionless)."""
    return instance.memory_bytes / sum(device.memory_bytes for device in devices)


def split_over(memory_bytes: int, devices: Sequence[Device]) -> dict[str, int]:
    """What an instance with this much memory takes of each of its devices, by key: the same share of each,
    rounded up."""
    whole = sum(device.memory_bytes for device in devices)
    return {device.key: -(-memory_bytes * device.memory_bytes // whole) for device in devices}


def left_for_ollama(devices: Iterable[Device], instances: Iterable[PlannedInstance]) -> tuple[Device, ...]:
    """The devices with the memory that these instances leave. For planning alone: shares of a device count
    of all its memory, so `Host` takes the devices as they are."""
    known = {device.key: device for device in devices}
    left = {key: device.memory_bytes for key, device in known.items()}
    for each in instances:
        for key, taken in split_over(each.memory_bytes, [known[key] for key in each.devices]).items():
            left[key] -= taken
    return tuple(
        msgspec.structs.replace(
            device,
            memory_bytes=left[key],
            free_bytes=max(device.free_bytes - (device.memory_bytes - left[key]), 0),
        )
        for key, device in known.items()
    )


def check_shares(instances: Sequence[PlannedInstance], devices: Sequence[Device]) -> None:
    """Check that what is taken of each device at the start, and held until the end, is less than all of it.

    An instance of Ollama takes memory when a model is loaded, and the ledger checks that; vLLM and
    llama-server take theirs at once.

    Raises:
        CannotLaunch: it is not; names the instances and their shares.
    """
    known = {device.key: device for device in devices}
    holders = [each for each in instances if each.runtime is not Runtime.OLLAMA]
    for device in devices:
        shares = {
            each.name: share_of(each, [known[key] for key in each.devices])
            for each in holders
            if device.key in each.devices and known.keys() >= set(each.devices)
        }
        if sum(shares.values()) >= 1.0:
            told = ", ".join(f"'{name}' {share:.2f}" for name, share in shares.items())
            raise CannotLaunch(
                f"GPU {device.index} ({device.name}) has too little memory for {told}: together "
                f"{sum(shares.values()):.2f} of it, and less than 1 is needed; lower memory_share, or name "
                "other devices for one"
            )
