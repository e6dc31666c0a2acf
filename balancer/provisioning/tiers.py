"""How many instances a GPU gets, and which share of its memory is promised to each."""

import msgspec

from balancer.core.device import Device
from balancer.settings import ProvisioningSettings

GIB = 2**30
# From so much memory on, so many instances. Cards report less than their name says, a T4 of 16 GB 15 GiB:
# each bound lies where no card's report does, below the size that is sold.
_TIERS = ((38 * GIB, 4), (22 * GIB, 3), (14 * GIB, 2))
_MOST_BY_SIZE = 4


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """`count` instances with `share_bytes` each, and why so many."""

    count: int
    share_bytes: int
    reason: str


def tier_of(memory_bytes: int) -> int:
    """Instances on a GPU that reports so much memory: 1 to 4."""
    return next((count for bound, count in _TIERS if memory_bytes >= bound), 1)


def promisable_bytes(memory_bytes: int, reserve_bytes: int) -> int:
    """What may be promised of a device that nobody else uses: its memory without the reserve, half of it at
    least."""
    return max(memory_bytes - reserve_bytes, memory_bytes // 2)


def usable_bytes(device: Device, settings: ProvisioningSettings) -> int:
    """What may be promised of it now: less only where others hold more than the reserve, so that small
    changes of free memory change no plan."""
    promisable = promisable_bytes(device.memory_bytes, settings.memory_reserve_bytes)
    return max(min(promisable, device.free_bytes), 0)


def divide(device: Device, settings: ProvisioningSettings) -> Division:
    """The instances of a GPU by settings, model size or memory. None only where a setting says so."""
    count, reason = _count(device, settings)
    most = settings.max_instances_per_device
    if most is not None and count > most:
        count, reason = most, f"{reason}, at most {most} by max_instances_per_device"
    share = usable_bytes(device, settings) // count if count else 0
    return Division(count=count, share_bytes=share, reason=reason)


def _count(device: Device, settings: ProvisioningSettings) -> tuple[int, str]:
    own = next((each.instances for each in settings.devices if each.gpu_id == device.index), None)
    if own == 0 or not settings.several_instances:
        return (0, "left alone by devices") if own == 0 else (1, "several_instances is off")
    if own is not None:
        return own, f"{_instances(own)} by devices"
    if settings.instances_per_device is not None:
        return settings.instances_per_device, f"{_instances(settings.instances_per_device)} each by settings"
    if settings.model_size_estimate_bytes is not None:
        return _by_model_size(device, settings, settings.model_size_estimate_bytes)
    count = tier_of(device.memory_bytes)
    bound = next((bound for bound, _ in _TIERS if device.memory_bytes >= bound), None)
    told = f"from {bound // GIB} GiB" if bound else f"below {_TIERS[-1][0] // GIB} GiB"
    return count, f"{_instances(count)} {told}"


def _by_model_size(device: Device, settings: ProvisioningSettings, size: int) -> tuple[int, str]:
    room = max(device.free_bytes - settings.memory_reserve_bytes, 0)
    most = settings.max_instances_per_device or _MOST_BY_SIZE
    count = max(1, min(room // size, most))
    return count, f"{gib(room)} free beyond the reserve hold {room // size} models of {gib(size)}"


def gib(size: int) -> str:
    """A size in GiB as people read it."""
    return f"{size / GIB:.1f} GiB"


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
